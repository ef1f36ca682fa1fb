package netstate

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// lineup is a list of objects that stand in each other's way, as it is and as it should be.
type lineup struct {
	ordered bool // the place of an object has a meaning
	have    []rawnl.Message
	kept    []bool // of have
	want    []int  // places in the operations
}

// exchange returns the operations that make of what there is of a kind what is wanted, in the memory of want. Unlike
// [settle], to which a kind must be known whole, it is content with the lineups in which anything differs, and it knows
// that nothing in them came by itself.
//
// Where order counts, the longest beginning of the wanted lineup stays that is there in its order. All else in it is
// deleted and the rest is added behind, as the kernel does with what is added.
//
// Deletions come before additions, because what is there could stand in the way. Only routes that make room for
// nothing are deleted last: a gateway may have been reached through one that was removed later.
func exchange(kind Kind, have []rawnl.Message, want []Op) []Op {
	var lists []*lineup
	byName := map[string]*lineup{}
	var name []byte
	for _, m := range inOrderOfAdding(kind, have) {
		var ordered bool
		name, ordered = appendLineup(name[:0], kind, m)
		l := byName[string(name)]
		if l == nil {
			l = &lineup{ordered: ordered}
			byName[string(name)] = l
			lists = append(lists, l)
		}
		l.have, l.kept = append(l.have, m), append(l.kept, false)
	}
	for i := range want {
		name, _ = appendLineup(name[:0], kind, want[i].Object)
		if l := byName[string(name)]; l != nil {
			l.want = append(l.want, i)
		}
	}
	there := make([]bool, len(want))
	var first, last []Op
	for _, l := range lists {
		additions := l.compare(kind, want, there)
		var deletions []Op
		for i, m := range l.have {
			if del, ok := deletion(kind, m); ok && !l.kept[i] {
				deletions = append(deletions, Op{Verb: "delete", Kind: kind, Object: m, Msg: del})
			}
		}
		if kind == KindRule {
			slices.SortStableFunc(deletions, func(a, b Op) int { return details(b.Msg) - details(a.Msg) })
		}
		if kind == KindRoute && !additions {
			last = append(last, deletions...)
		} else {
			first = append(first, deletions...)
		}
	}
	ops := want[:0]
	for i, op := range want {
		if !there[i] && op.Verb != "expect" {
			ops = append(ops, op)
		}
	}
	if len(first) > 0 {
		ops = append(first, ops...)
	}
	return append(ops, last...)
}

// compare marks what stays: in kept, and in there the operations that are not needed. It reports whether others are.
func (l *lineup) compare(kind Kind, want []Op, there []bool) (additions bool) {
	ids := make([]string, len(l.have))
	for i, m := range l.have {
		ids[i] = identity(kind, m)
	}
	next, stay := 0, 0
	for _, at := range l.want {
		id, i := identity(kind, want[at].Object), next
		for i < len(ids) && (l.kept[i] || ids[i] != id) {
			i++
		}
		switch {
		case i < len(ids):
			l.kept[i], there[at] = true, true
			stay++
			if l.ordered {
				next = i + 1
			}
		case l.ordered:
			next = len(ids)
		}
	}
	if kind == KindRule && (stay < len(l.want) || stay < len(l.have)) {
		// A request to delete a rule can mean several of one preference, so that all of them have to go.
		stay = 0
		clear(l.kept)
		for _, at := range l.want {
			there[at] = false
		}
	}
	return stay < len(l.want)
}

// appendLineup appends the name of the lineup of an object; of one that stands for itself, its identity.
func appendLineup(b []byte, kind Kind, m rawnl.Message) (name []byte, ordered bool) {
	size, _ := headerOf(kind)
	if size == 0 || len(m.Data) < size {
		return append(b, identity(kind, m)...), false
	}
	switch kind {
	case KindAddress: // of a device, of one scope in IPv6
		b = append(append(b, m.Data[0]), m.Data[4:8]...)
		if m.Data[0] == unix.AF_INET6 {
			b = append(b, m.Data[3])
		}
		return b, true
	case KindRoute:
		if list, ok := routeListOf(m); ok {
			b = append(append(b, list.head[:]...), list.dst[:]...)
			b = binary.NativeEndian.AppendUint32(append(b, list.src[:]...), list.table)
			return binary.NativeEndian.AppendUint32(b, list.priority), true
		}
	case KindRule: // of one preference
		return append(append(b, m.Data[0]), rawnl.Get(m.Data[size:], unix.FRA_PRIORITY)...), true
	}
	return append(b, identity(kind, m)...), false
}

// inOrderOfAdding returns dumped objects in the order in which they have to be added to be dumped like that. IPv6
// puts a new address before those of its scope.
func inOrderOfAdding(kind Kind, msgs []rawnl.Message) []rawnl.Message {
	if kind != KindAddress {
		return msgs
	}
	var v4, v6 []rawnl.Message
	for _, m := range msgs {
		if len(m.Data) > 0 && m.Data[0] == unix.AF_INET6 {
			v6 = append(v6, m)
		} else {
			v4 = append(v4, m)
		}
	}
	slices.Reverse(v6)
	return append(v4, v6...)
}

// details counts what a rule says, so that one which says more goes before one which says less: the kernel deletes
// the first rule that agrees with all that a request says.
func details(rule rawnl.Message) int {
	n := 0
	for range rawnl.Each(rule.Data[min(sizeofRuleHdr, len(rule.Data)):]) {
		n++
	}
	if len(rule.Data) > 3 && rule.Data[3] != 0 { // the type of service
		n++
	}
	return n
}

// deletion returns the request that deletes an object; false if objects of its kind are not deleted.
func deletion(kind Kind, m rawnl.Message) (rawnl.Message, bool) {
	switch kind {
	case KindAddress:
		a, err := parseAddress(m)
		return addressDelete(&a), err == nil
	case KindNexthop:
		return nexthopDelete(m), true
	case KindRoute:
		r, err := parseRoute(m)
		return routeDelete(&r), err == nil
	case KindRule:
		return ruleDelete(m), true
	case KindNeigh:
		return neighDelete(m), true
	case KindAddrLabel:
		return addrLabelDelete(m), true
	case KindFDB:
		return fdbDelete(m), true
	case KindMDB:
		return mdbDelete(m), true
	case KindBridgeVLAN:
		return vlanInput(m, unix.RTM_DELLINK), true
	}
	return rawnl.Message{}, false
}

// byItself reports whether an object that is not wanted may come by itself a moment later, or has done so: it was captured
// too early, or a bridge has learned.
func byItself(kind Kind, m rawnl.Message) bool {
	switch kind {
	case KindRoute:
		r, err := parseRoute(m)
		return err == nil && r.followsDAD()
	case KindFDB:
		n, err := parseNeigh(m)
		return err == nil && learnedFDB(&n)
	}
	return false
}
