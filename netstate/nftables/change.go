package nftables

import (
	"bytes"
	"context"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/nfnl"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Update brings the ruleset of a namespace, which was made from one capture, to another one, in one transaction:
// after an error it is what it was before.
func Update(ctx context.Context, n *ns.NS, old, next []rawnl.Message) error {
	plan, err := Change(old, next)
	if err != nil {
		return err
	}
	return Apply(ctx, n, plan)
}

// Change turns two captures into the messages of one transaction that makes the second ruleset out of the first.
//
// In a table of which only the contents differ these are replaced: all rules, if any counted a packet, because a
// rule can't be told what it counted; all objects; and the elements of the sets that differ. From the first table on
// that is another one, tables are removed and made anew with all that is in them. Chains that are called at the same
// place with the same priority are so called in their order.
func Change(old, next []rawnl.Message) ([]rawnl.Message, error) {
	was, is := tables(old), tables(next)
	same := 0
	for same < len(was) && same < len(is) && is[same].updates(was[same]) {
		same++
	}
	c := &change{}
	for _, t := range was[same:] {
		c.remove(unix.NFT_MSG_DELTABLE, t.all[0], unix.NFTA_TABLE_NAME)
	}
	for i := range same {
		c.contents(was[i], is[i])
	}
	for _, t := range is[same:] {
		c.made = append(c.made, t.all...)
	}
	additions, err := Plan(c.made)
	return slices.Concat(c.removed, additions, c.counted), err
}

// table is a table of a capture.
type table struct {
	all      []rawnl.Message
	frame    []string        // what the table is made of, without what packets count and without the contents:
	rules    []rawnl.Message // with the sets and chains that have no name and end with their rule
	objects  []rawnl.Message
	chains   []rawnl.Message
	sets     []rawnl.Message
	elements map[string][]rawnl.Message // by the name of the set
}

// tables returns the tables of a capture in their order.
func tables(msgs []rawnl.Message) []*table {
	var list []*table
	byName := map[object]*table{}
	for _, m := range msgs {
		name := object{family: nfnl.Family(m), table: tableOf(m)}
		t := byName[name]
		if t == nil {
			t = &table{elements: map[string][]rawnl.Message{}}
			byName[name] = t
			list = append(list, t)
		}
		t.add(m)
	}
	return list
}

// add sorts a message in. Sets come before their elements.
func (t *table) add(m rawnl.Message) {
	t.all = append(t.all, m)
	attrs := nfnl.Attrs(m)
	switch kindOf(m) {
	case unix.NFT_MSG_NEWRULE:
		t.rules = append(t.rules, m)
		return
	case unix.NFT_MSG_NEWSETELEM:
		set := text(attrs, unix.NFTA_SET_ELEM_LIST_SET)
		if _, named := t.elements[set]; named {
			t.elements[set] = append(t.elements[set], m)
		} else {
			t.rules = append(t.rules, m)
		}
		return
	case unix.NFT_MSG_NEWSET:
		if nfnl.Number(rawnl.Get(attrs, unix.NFTA_SET_FLAGS))&unix.NFT_SET_ANONYMOUS != 0 {
			t.rules = append(t.rules, m)
			return
		}
		t.sets = append(t.sets, m)
		t.elements[text(attrs, unix.NFTA_SET_NAME)] = nil
	case unix.NFT_MSG_NEWCHAIN:
		if nfnl.Number(rawnl.Get(attrs, chainFlags))&chainFlagBinding != 0 {
			t.rules = append(t.rules, m)
			return
		}
		t.chains = append(t.chains, m)
	case unix.NFT_MSG_NEWOBJ:
		t.objects = append(t.objects, m)
	}
	lasting := Normalize(m)
	t.frame = append(t.frame, string([]byte{byte(m.Type)})+string(lasting.Data))
}

// updates reports whether a table can be made out of another one by exchanging what is in it. Objects to which
// elements of a set refer can't be exchanged.
func (t *table) updates(was *table) bool {
	holdsObjects := func(m rawnl.Message) bool {
		return nfnl.Number(rawnl.Get(nfnl.Attrs(m), unix.NFTA_SET_FLAGS))&setFlagObject != 0
	}
	return slices.Equal(t.frame, was.frame) && (same(t.objects, was.objects) || !slices.ContainsFunc(t.sets, holdsObjects))
}

// change collects the messages of a transaction.
type change struct {
	removed []rawnl.Message // requests, which come first
	made    []rawnl.Message // as captured, to be planned
	counted []rawnl.Message // requests, which come last
}

// contents replaces what is in a table.
func (c *change) contents(was, is *table) {
	if same(was.all, is.all) {
		return
	}
	counted := !same(was.objects, is.objects)
	if counted || !same(was.rules, is.rules) {
		c.remove(unix.NFT_MSG_DELRULE, is.all[0], unix.NFTA_RULE_TABLE)
		c.made = append(c.made, is.rules...)
	}
	if counted { // nothing refers to them without the rules
		for _, m := range was.objects {
			c.remove(unix.NFT_MSG_DELOBJ, m, unix.NFTA_OBJ_TABLE, unix.NFTA_OBJ_NAME, unix.NFTA_OBJ_TYPE)
		}
		c.made = append(c.made, is.objects...)
	}
	for _, set := range is.sets {
		name := text(nfnl.Attrs(set), unix.NFTA_SET_NAME)
		if !same(was.elements[name], is.elements[name]) {
			c.remove(unix.NFT_MSG_DELSETELEM, set, unix.NFTA_SET_TABLE, unix.NFTA_SET_NAME) // all of them
			c.made = append(c.made, is.elements[name]...)
		}
	}
	for i, m := range is.chains {
		if rawnl.Get(nfnl.Attrs(m), unix.NFTA_CHAIN_COUNTERS) != nil && !equal(m, was.chains[i]) {
			c.counted = append(c.counted, reduced(unix.NFT_MSG_NEWCHAIN, m, unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_NAME, unix.NFTA_CHAIN_COUNTERS))
		}
	}
}

// remove adds a request of a kind that has some attributes of a captured message.
func (c *change) remove(kind uint16, m rawnl.Message, attrs ...uint16) {
	c.removed = append(c.removed, reduced(kind, m, attrs...))
}

func reduced(kind uint16, m rawnl.Message, attrs ...uint16) rawnl.Message {
	data := rawnl.Rewrite(nfnl.Attrs(m), func(a rawnl.Attr) (rawnl.Attr, bool) { return a, slices.Contains(attrs, a.Kind()) })
	return rawnl.Message{Type: typeOf(kind), Data: append([]byte{nfnl.Family(m), unix.NFNETLINK_V0, 0, 0}, data...)}
}

func same(a, b []rawnl.Message) bool { return slices.EqualFunc(a, b, equal) }

func equal(a, b rawnl.Message) bool { return a.Type == b.Type && bytes.Equal(a.Data, b.Data) }
