package netstate

import (
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Order of routes. Of routes to one destination with one metric the kernel takes the first that serves, so their
// order has a meaning: which of two devices in one subnet is used, or whether an address counts as a broadcast
// address. A dump has such routes one after the other in that order. A route that is added becomes the last of its
// list; routes that come with an address take the place that the moment gives them.

// routeList is what the routes of one list have in common.
type routeList struct {
	head     [4]byte // of struct rtmsg: family, dst_len, src_len, tos
	table    uint32
	priority uint32
	dst, src [16]byte
}

// routeListOf returns the list in which a route's place has a meaning; false if it has none. The routes that the
// kernel makes for IPv6 addresses and links in the table local come at a moment of their own.
func routeListOf(m rawnl.Message) (routeList, bool) {
	if len(m.Data) < unix.SizeofRtMsg {
		return routeList{}, false
	}
	r := routeMsg{hdr: [unix.SizeofRtMsg]byte(m.Data)}
	if r.family() == unix.AF_INET6 && r.kernelMade() {
		return routeList{}, false
	}
	list := routeList{head: [4]byte(m.Data), table: uint32(m.Data[4])}
	for a := range rawnl.Each(m.Data[unix.SizeofRtMsg:]) {
		switch a.Kind() {
		case unix.RTA_TABLE:
			list.table = rawnl.Uint32(a.Data)
		case unix.RTA_PRIORITY:
			list.priority = rawnl.Uint32(a.Data)
		case unix.RTA_DST:
			copy(list.dst[:], a.Data)
		case unix.RTA_SRC:
			copy(list.src[:], a.Data)
		}
	}
	return list, true
}

// sameList reports whether the place of two routes relative to each other has a meaning.
func sameList(a, b rawnl.Message) bool {
	if len(a.Data) < 4 || len(b.Data) < 4 || [4]byte(a.Data) != [4]byte(b.Data) {
		return false // a million routes are compared: most differ here, or in their destination
	}
	x, ok := routeListOf(a)
	y, too := routeListOf(b)
	return ok && too && x == y
}

// moves returns the operations that put routes into the order of the dump which an order by rank mixes up. places
// holds the ranks and positions of [planner.routes] in the order of the dump.
func (p *planner) moves(places []int) []Op {
	msgs := p.s.Messages[KindRoute]
	at := func(i int) rawnl.Message { return msgs[uint32(places[i])] }
	var ops []Op
	for i := 1; i < len(places); i++ {
		if places[i]>>32 >= places[i-1]>>32 || !sameList(at(i), at(i-1)) {
			continue
		}
		first, end := i-1, i+1
		for first > 0 && sameList(at(first-1), at(i)) {
			first--
		}
		for end < len(places) && sameList(at(end), at(i)) {
			end++
		}
		for _, place := range places[first:end] {
			m := msgs[uint32(place)]
			if r, err := parseRoute(m); err == nil {
				ops = append(ops, Op{Verb: "delete", Kind: KindRoute, Object: m, Msg: routeDelete(&r)},
					Op{Verb: "add", Kind: KindRoute, Object: m, Msg: routeAdd(&r)})
			}
		}
		i = end - 1
	}
	return ops
}

// displaced returns which of the routes that a namespace has must be deleted and added again because others come
// before them in their list. want is in the order in which the routes are added.
func displaced(have []rawnl.Message, want []Op) map[int]bool {
	type places struct {
		have []int
		want []string
	}
	lists := map[routeList]*places{}
	heads := map[[5]byte]bool{} // so that few of a million routes are looked at closely
	headOf := func(m rawnl.Message) [5]byte {
		if len(m.Data) < 5 {
			return [5]byte{}
		}
		return [5]byte(m.Data)
	}
	for i, m := range have {
		if list, ok := routeListOf(m); ok {
			if lists[list] == nil {
				lists[list] = &places{}
			}
			lists[list].have = append(lists[list].have, i)
			heads[headOf(m)] = true
		}
	}
	for i := range want {
		m := want[i].Object
		if !heads[headOf(m)] {
			continue
		}
		if list, ok := routeListOf(m); ok && lists[list] != nil {
			lists[list].want = append(lists[list].want, identity(KindRoute, m))
		}
	}
	var out map[int]bool
	for _, l := range lists {
		next := 0 // in want
		for _, i := range l.have {
			id := identity(KindRoute, have[i])
			switch {
			case next < len(l.want) && l.want[next] == id:
				next++
			case slices.Contains(l.want, id):
				if out == nil {
					out = map[int]bool{}
				}
				out[i] = true
				next = len(l.want) // and so must those that follow it
			}
		}
	}
	return out
}
