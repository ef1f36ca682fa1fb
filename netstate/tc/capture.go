// Package tc carries the traffic control of a network namespace as rtnetlink messages: queueing disciplines,
// classes, chains, filters and shared actions, with their handles. An attribute that this package has never
// heard of travels like any other.
//
// What a device has by itself is not part of the state: its default qdisc, which has handle 0, and the classes
// that a qdisc makes on its own.
//
// What the kernel doesn't tell and so isn't carried: counters and queued packets; the tables from which red and
// choke compute the decay of an idle queue's average ([Plan] makes new ones); the table of netem's delay
// distribution. What can't be carried at all is in [Losses].
package tc

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Capture reads the traffic control of a namespace: shared actions, qdiscs, classes, chains that don't follow
// from their filters, and filters. Objects with the same parent are in the kernel's order.
func Capture(ctx context.Context, n *ns.NS) ([]rawnl.Message, error) {
	msgs, err := capture(ctx, n)
	if err != nil {
		return nil, fmt.Errorf("capture traffic control: %w", err)
	}
	return msgs, nil
}

func capture(ctx context.Context, n *ns.NS) ([]rawnl.Message, error) {
	c, err := rawnl.Dial(n, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	actions, err := dumpActions(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("dump actions: %w", err)
	}
	qdiscs, err := dump(ctx, c, typeQdisc, tcmsg{}, func(m rawnl.Message) bool { return header(m).handle != 0 })
	if err != nil {
		return nil, fmt.Errorf("dump qdiscs: %w", err)
	}
	slices.SortStableFunc(qdiscs, byHandle)
	classes, err := dumpClasses(ctx, c, qdiscs)
	if err != nil {
		return nil, fmt.Errorf("dump classes: %w", err)
	}
	chains, filters, err := dumpFilters(ctx, c, places(qdiscs, classes))
	if err != nil {
		return nil, err
	}
	return slices.Concat(actions, qdiscs, classes, chains, filters), nil
}

// byHandle orders qdiscs or classes: the kernel shows those of a device in the order of a hash table.
func byHandle(a, b rawnl.Message) int {
	return cmp.Or(cmp.Compare(header(a).index, header(b).index), cmp.Compare(header(a).handle, header(b).handle))
}

// dump returns the messages of a type for a device and parent that are wanted, without what isn't carried.
func dump(ctx context.Context, c *rawnl.Conn, typ uint16, h tcmsg, wanted func(rawnl.Message) bool) ([]rawnl.Message, error) {
	return ask(ctx, c, message(typ+get, h, nil), wanted)
}

func ask(ctx context.Context, c *rawnl.Conn, request rawnl.Message, wanted func(rawnl.Message) bool) ([]rawnl.Message, error) {
	msgs, err := c.Dump(ctx, request)
	if err != nil {
		return nil, err
	}
	typ := request.Type - get
	var kept []rawnl.Message
	for _, m := range msgs {
		if m.Type == typ && len(m.Data) >= tcmsgLen && wanted(m) {
			kept = append(kept, tidy(m))
		}
	}
	return kept, nil
}

// classful reports whether the classes of a kind of qdisc are made by users. Those of other kinds come with
// the qdisc.
func classful(kind string) bool {
	return slices.Contains([]string{"htb", "hfsc", "drr", "qfq", "cbq"}, kind)
}

// dumpClasses returns the classes that users made. That of hfsc which has the handle of the qdisc came with it.
func dumpClasses(ctx context.Context, c *rawnl.Conn, qdiscs []rawnl.Message) ([]rawnl.Message, error) {
	var all []rawnl.Message
	asked := map[int32]bool{}
	for _, q := range qdiscs {
		index := header(q).index
		if !classful(kindOf(q)) || asked[index] {
			continue
		}
		asked[index] = true
		msgs, err := dump(ctx, c, typeClass, tcmsg{index: index}, func(m rawnl.Message) bool {
			return classful(kindOf(m)) && header(m).handle&0xffff != 0
		})
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, msgs...)
	}
	slices.SortStableFunc(all, byHandle)
	return all, nil
}

// gone reports whether a device or qdisc ended since it was listed.
func gone(err error) bool { return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) }

// places returns where filters can be attached: a device with the handle of a qdisc or class, or a shared block.
func places(qdiscs, classes []rawnl.Message) []tcmsg {
	var list []tcmsg
	for _, q := range qdiscs {
		h := header(q)
		switch kindOf(q) {
		case "clsact":
			list = append(list, tcmsg{index: h.index, parent: clsIngress}, tcmsg{index: h.index, parent: clsEgress})
		default:
			list = append(list, tcmsg{index: h.index, parent: h.handle})
		}
		for _, block := range blocksOf(q) {
			if at := (tcmsg{index: blockMagic, parent: block}); !slices.Contains(list, at) {
				list = append(list, at)
			}
		}
	}
	for _, m := range classes {
		if kind := kindOf(m); kind == "htb" || kind == "hfsc" || kind == "cbq" { // the others' filters belong to the qdisc
			list = append(list, tcmsg{index: header(m).index, parent: header(m).handle})
		}
	}
	return list
}

// blocksOf returns the shared blocks of filters that a qdisc uses.
func blocksOf(q rawnl.Message) []uint32 {
	candidates := [][]byte{rawnl.Get(attrsOf(q), tcaIngressBlock), rawnl.Get(attrsOf(q), tcaEgressBlock)}
	if kindOf(q) == "red" {
		options := rawnl.Get(attrsOf(q), tcaOptions)
		candidates = append(candidates, rawnl.Get(options, redEarlyDropBlock), rawnl.Get(options, redMarkBlock))
	}
	var blocks []uint32
	for _, b := range candidates {
		if block := rawnl.Uint32(b); block != 0 {
			blocks = append(blocks, block)
		}
	}
	return blocks
}

func dumpFilters(ctx context.Context, c *rawnl.Conn, places []tcmsg) (chains, filters []rawnl.Message, err error) {
	for _, at := range places {
		// A place with a shared block answers with the block's filters; those are read once, from the block.
		here := func(m rawnl.Message) bool { return header(m).index == at.index }
		some, err := filtersAt(ctx, c, at, here)
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("dump filters: %w", err)
		}
		used := map[uint32]bool{}
		for _, m := range some {
			used[chainOf(m)] = true
		}
		// The kernel shows chains in the order in which they were made, which has no meaning.
		slices.SortStableFunc(some, func(a, b rawnl.Message) int { return cmp.Compare(chainOf(a), chainOf(b)) })
		filters = append(filters, some...)
		made, err := dump(ctx, c, typeChain, at, func(m rawnl.Message) bool {
			return here(m) && (kindOf(m) != "" || !used[chainOf(m)])
		})
		if err != nil && !gone(err) && !errors.Is(err, unix.EOPNOTSUPP) {
			return nil, nil, fmt.Errorf("dump chains: %w", err)
		}
		for i, m := range made {
			h := header(m)
			h.parent = at.parent // the kernel tells that of the qdisc, which may have two places
			made[i] = message(m.Type, h, attrsOf(m))
		}
		// Where an action refers to a chain that doesn't exist, the kernel shows the chains after it twice.
		chains = append(chains, slices.CompactFunc(made, func(a, b rawnl.Message) bool { return chainOf(a) == chainOf(b) })...)
	}
	return chains, filters, nil
}

// filtersAt returns the filters of a place. Where a dump goes on in another datagram, the kernel (6.12 at least, in
// mall_walk) leaves the matchall filter out that did not fit into the one before: only its priority is in the dump. A
// dump of that priority alone has it.
func filtersAt(ctx context.Context, c *rawnl.Conn, at tcmsg, here func(rawnl.Message) bool) ([]rawnl.Message, error) {
	msgs, err := dump(ctx, c, typeFilter, at, here)
	if err != nil {
		return nil, err
	}
	var filters []rawnl.Message
	for i, m := range msgs {
		switch {
		case !bare(m):
			filters = append(filters, m)
		case kindOf(m) == "matchall" && (i+1 == len(msgs) || bare(msgs[i+1])):
			request := message(typeFilter+get, tcmsg{index: at.index, parent: at.parent, info: header(m).info}, rawnl.AppendAttr(nil, tcaChain, u32(chainOf(m))))
			missed, err := ask(ctx, c, request, func(m rawnl.Message) bool { return here(m) && !bare(m) })
			if err != nil {
				return nil, err
			}
			filters = append(filters, missed...)
		}
	}
	return filters, nil
}

// bare reports whether a message of the filter dump only says that there are filters of a priority.
func bare(m rawnl.Message) bool {
	return header(m).handle == 0 && rawnl.Get(attrsOf(m), tcaOptions) == nil
}

func chainOf(m rawnl.Message) uint32 { return rawnl.Uint32(rawnl.Get(attrsOf(m), tcaChain)) }

// dumpActions returns the actions that exist without a filter, one to a message. The others are made with their
// filters.
func dumpActions(ctx context.Context, c *rawnl.Conn) ([]rawnl.Message, error) {
	var all []rawnl.Message
	for _, kind := range actionKinds() {
		list := rawnl.AppendAttr(nil, 1|unix.NLA_F_NESTED, rawnl.AppendAttr(nil, actKind, append([]byte(kind), 0)))
		req := rawnl.Message{Type: typeAction + get, Data: rawnl.AppendAttr(make([]byte, tcamsgLen), rootTab|unix.NLA_F_NESTED, list)}
		// struct nla_bitfield32: value and selector
		req.Data = rawnl.AppendAttr(req.Data, rootFlags, append(u32(flagLargeDump), u32(flagLargeDump)...))
		msgs, err := c.Dump(ctx, req)
		if err != nil {
			return nil, err
		}
		for _, m := range msgs {
			for a := range rawnl.Each(rawnl.Get(attrsOf(rawnl.Message{Type: typeAction, Data: m.Data}), rootTab)) {
				if held(a.Data) {
					all = append(all, action(tidyAction(a.Data)))
				}
			}
		}
	}
	return all, nil
}

// action returns the message that holds one action.
func action(attrs []byte) rawnl.Message {
	list := rawnl.AppendAttr(nil, 1|unix.NLA_F_NESTED, attrs)
	return rawnl.Message{Type: typeAction, Data: rawnl.AppendAttr(make([]byte, tcamsgLen), rootTab|unix.NLA_F_NESTED, list)}
}

// actionOf returns the action that a message holds.
func actionOf(m rawnl.Message) []byte {
	for a := range rawnl.Each(rawnl.Get(attrsOf(m), rootTab)) {
		return a.Data
	}
	return nil
}

// general is the head that the parameters of all kinds of actions share (tc_gen in linux/pkt_cls.h).
type general struct{ index, refs, binds uint32 }

// generalOf finds the parameters of an action; that of police is their second part (struct tc_police).
func generalOf(kind string, options []byte) (general, bool) {
	var b []byte
	at := 12
	switch kind {
	case "police":
		b, at = rawnl.Get(options, policeTBF), policeGeneral
	case "connmark", "csum", "ct", "ife", "nat":
		b = rawnl.Get(options, 1)
	case "ctinfo":
		b = rawnl.Get(options, 3)
	case "pedit":
		if b = rawnl.Get(options, 4); b == nil { // TCA_PEDIT_PARMS_EX
			b = rawnl.Get(options, 2)
		}
	default:
		b = rawnl.Get(options, 2)
	}
	if kind != "police" && len(b) >= 20 {
		return general{binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint32(b[at:]), binary.NativeEndian.Uint32(b[at+4:])}, true
	}
	if kind == "police" && len(b) >= at+8 {
		return general{binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint32(b[at:]), binary.NativeEndian.Uint32(b[at+4:])}, true
	}
	return general{}, false
}

// held reports whether an action was made by itself: it has more holders than filters.
func held(act []byte) bool {
	g, ok := generalOf(rawnl.CString(rawnl.Get(act, actKind)), rawnl.Get(act, actOptions))
	return ok && g.refs > g.binds
}
