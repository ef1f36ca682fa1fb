// Package nftables carries the nf_tables ruleset of a network namespace as the kernel's own netlink
// messages: what a dump returned is kept byte for byte, and [Plan] turns it into one transaction that
// builds the same ruleset in another namespace. An expression, object or attribute that this package has
// never heard of travels like any other.
//
// What the kernel does not tell and so cannot be carried: the tokens left in a limit, the connections
// counted by a connlimit, the counts inside xt matches that keep them privately (hashlimit, recent, quota
// of xtables), and the owner of an owned table, which is a netlink socket. See [Losses].
package nftables

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/nfnl"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// LockPrefix begins the names of the tables that mute a namespace while it is moved. They are not part of
// its state: captures leave them out.
const LockPrefix = "nsmigrate_lock"

const captureTries = 10

// Capture reads the whole ruleset of a namespace: tables, chains, objects, flowtables, sets, the elements
// of each set in an order that does not change between two captures, and rules in the order of their chains. A ruleset that
// changes meanwhile is read again; the error is [rawnl.ErrInterrupted] if it never holds still. Elements
// that packets add (dynamic sets) are no such change: they are as of the moment their set was read. A
// kernel without nf_tables has no ruleset, which is no error.
func Capture(ctx context.Context, n *ns.NS) ([]rawnl.Message, error) {
	msgs, err := capture(ctx, n)
	if err != nil {
		return nil, fmt.Errorf("capture nftables: %w", err)
	}
	return msgs, nil
}

func capture(ctx context.Context, n *ns.NS) ([]rawnl.Message, error) {
	c, err := rawnl.Dial(n, unix.NETLINK_NETFILTER)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var last []rawnl.Message
	for range captureTries {
		// A commit raises the generation first and exchanges the objects then: one that is under way would be seen by
		// halves, between two looks at the same generation.
		if err := c.Settle(ctx, unix.NFNL_SUBSYS_NFTABLES); err != nil {
			return nil, err
		}
		before, err := generation(ctx, c)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
			return nil, nil // nfnetlink knows no such subsystem
		}
		if err != nil {
			return nil, err
		}
		msgs, dumpErr := dumpAll(ctx, c)
		after, err := generation(ctx, c)
		if err != nil {
			return nil, err
		}
		// A set that vanished between two dumps fails the second; only a quiet ruleset's errors count.
		if before != after {
			continue
		}
		// A transaction that is being prepared counts already, and is over when its commit is.
		if dumpErr != nil || last != nil || hidden(msgs) == nil {
			return msgs, dumpErr
		}
		last = msgs
	}
	if last != nil {
		return last, nil
	}
	return nil, rawnl.ErrInterrupted
}

// generation returns the counter that every committed transaction raises.
func generation(ctx context.Context, c *rawnl.Conn) (uint64, error) {
	msgs, err := c.Request(ctx, get(unix.NFT_MSG_GETGEN, unix.AF_UNSPEC))
	if err != nil {
		return 0, fmt.Errorf("get ruleset generation: %w", err)
	}
	if len(msgs) != 1 {
		return 0, fmt.Errorf("get ruleset generation: %w: %d answers", rawnl.ErrMalformed, len(msgs))
	}
	return nfnl.Number(rawnl.Get(nfnl.Attrs(msgs[0]), unix.NFTA_GEN_ID)), nil
}

func get(kind uint16, family byte, attrs ...byte) rawnl.Message {
	return rawnl.Message{Type: typeOf(kind), Data: append([]byte{family, unix.NFNETLINK_V0, 0, 0}, attrs...)}
}

func dumpAll(ctx context.Context, c *rawnl.Conn) ([]rawnl.Message, error) {
	all, err := dump(ctx, c, get(unix.NFT_MSG_GETTABLE, unix.AF_UNSPEC))
	if err != nil {
		return nil, fmt.Errorf("dump tables: %w", err)
	}
	if len(all) == 0 {
		return nil, nil
	}
	for _, kind := range []uint16{unix.NFT_MSG_GETCHAIN, unix.NFT_MSG_GETOBJ, unix.NFT_MSG_GETFLOWTABLE, unix.NFT_MSG_GETSET} {
		msgs, err := dump(ctx, c, get(kind, unix.AF_UNSPEC))
		if err != nil {
			return nil, fmt.Errorf("dump %ss: %w", nounOf(kind-1), err)
		}
		all = append(all, msgs...)
	}
	for _, m := range all {
		if kindOf(m) != unix.NFT_MSG_NEWSET {
			continue
		}
		msgs, err := dumpElements(ctx, c, m)
		if err != nil {
			return nil, fmt.Errorf("dump elements of %s: %w", nameOf(m), err)
		}
		all = append(all, msgs...)
	}
	rules, err := dump(ctx, c, get(unix.NFT_MSG_GETRULE, unix.AF_UNSPEC))
	if err != nil {
		return nil, fmt.Errorf("dump rules: %w", err)
	}
	return append(all, rules...), nil
}

// dump runs one dump and leaves out what belongs to a lock table, and in every message the number of the generation,
// which is another one after each change of whatever table.
func dump(ctx context.Context, c *rawnl.Conn, req rawnl.Message) ([]rawnl.Message, error) {
	msgs, err := c.Dump(ctx, req)
	if err != nil {
		return nil, err
	}
	for _, m := range msgs {
		if len(m.Data) >= nfnl.HeaderLen {
			clear(m.Data[2:nfnl.HeaderLen])
		}
	}
	return slices.DeleteFunc(msgs, func(m rawnl.Message) bool {
		return strings.HasPrefix(tableOf(m), LockPrefix)
	}), nil
}

func dumpElements(ctx context.Context, c *rawnl.Conn, set rawnl.Message) ([]rawnl.Message, error) {
	attrs := nfnl.Attrs(set)
	table, name := rawnl.Get(attrs, unix.NFTA_SET_TABLE), rawnl.Get(attrs, unix.NFTA_SET_NAME)
	var ref []byte
	ref = rawnl.AppendAttr(ref, unix.NFTA_SET_ELEM_LIST_TABLE, table)
	ref = rawnl.AppendAttr(ref, unix.NFTA_SET_ELEM_LIST_SET, name)
	msgs, err := c.Dump(ctx, get(unix.NFT_MSG_GETSETELEM, nfnl.Family(set), ref...))
	if err != nil {
		return nil, err
	}
	// Every set answers, an empty one with an empty list.
	elems := make([]element, 0, estimate(msgs))
	for _, m := range msgs {
		elems = appendElements(elems, rawnl.Get(nfnl.Attrs(m), unix.NFTA_SET_ELEM_LIST_ELEMENTS))
	}
	if len(elems) == 0 {
		return nil, nil
	}
	// A set of concatenated intervals keeps its elements in the order of their insertion
	// (net/netfilter/nft_set_pipapo.c), and nft lists them so.
	const ordered = unix.NFT_SET_INTERVAL | setFlagConcat
	if nfnl.Number(rawnl.Get(attrs, unix.NFTA_SET_FLAGS))&ordered != ordered {
		sortElements(elems)
	}
	return packElements(get(unix.NFT_MSG_NEWSETELEM, nfnl.Family(set), ref...), elems), nil
}

// estimate guesses how many elements the messages of one set hold, from the size of the first.
func estimate(msgs []rawnl.Message) int {
	total, one := 0, 0
	for _, m := range msgs {
		total += len(m.Data)
		if one == 0 {
			for e := range rawnl.Each(rawnl.Get(nfnl.Attrs(m), unix.NFTA_SET_ELEM_LIST_ELEMENTS)) {
				one = unix.SizeofNlAttr + len(e.Data)
				break
			}
		}
	}
	if one == 0 {
		return 0
	}
	return total/one + 1
}

// element is one element of a set as the kernel wrote it.
type element struct {
	prefix uint64 // the first bytes of the key, so that most comparisons need no more
	data   []byte
	typ    uint16
	end    bool // the closing bound of an interval
}

func (e element) key() []byte {
	return rawnl.Get(rawnl.Get(e.data, unix.NFTA_SET_ELEM_KEY), unix.NFTA_DATA_VALUE)
}

func appendElements(elems []element, list []byte) []element {
	for a := range rawnl.Each(list) {
		e := element{typ: a.Type, data: a.Data}
		for f := range rawnl.Each(a.Data) {
			switch f.Kind() {
			case unix.NFTA_SET_ELEM_KEY:
				var first [8]byte
				copy(first[:], rawnl.Get(f.Data, unix.NFTA_DATA_VALUE))
				e.prefix = binary.BigEndian.Uint64(first[:])
			case unix.NFTA_SET_ELEM_FLAGS:
				e.end = nfnl.Number(f.Data)&unix.NFT_SET_ELEM_INTERVAL_END != 0
			}
		}
		elems = append(elems, e)
	}
	return elems
}

// sortElements puts elements into the order in which an interval set takes them: ascending keys, the end
// of one interval before the start of the next at the same key (net/netfilter/nft_set_rbtree.c). For
// other sets the order only has to be the same every time, which that of a hash table is not.
func sortElements(elems []element) {
	slices.SortFunc(elems, func(a, b element) int {
		if a.prefix != b.prefix {
			return cmp.Compare(a.prefix, b.prefix)
		}
		if c := bytes.Compare(a.key(), b.key()); c != 0 {
			return c
		}
		if a.end != b.end {
			if a.end {
				return -1
			}
			return 1
		}
		return bytes.Compare(a.data, b.data)
	})
}

// elementsMax bounds the list of elements in one message: an attribute's length has 16 bits.
const elementsMax = 60_000

// packElements returns messages that start like head and hold the elements in order.
func packElements(head rawnl.Message, elems []element) []rawnl.Message {
	size := 0
	for _, e := range elems {
		size += unix.SizeofNlAttr + rawnl.Align(len(e.data))
	}
	perMessage := len(head.Data) + unix.SizeofNlAttr
	buf := make([]byte, 0, size+perMessage*(1+size/(elementsMax/2)))
	var msgs []rawnl.Message
	for len(elems) > 0 {
		start := len(buf)
		buf = append(buf, head.Data...)
		var list int
		buf, list = openAttr(buf, unix.NFTA_SET_ELEM_LIST_ELEMENTS|unix.NLA_F_NESTED)
		n := 0
		for _, e := range elems {
			if n > 0 && len(buf)-list+unix.SizeofNlAttr+len(e.data) > elementsMax {
				break
			}
			buf = rawnl.AppendAttr(buf, e.typ, e.data)
			n++
		}
		closeAttr(buf, list)
		elems = elems[n:]
		msgs = append(msgs, rawnl.Message{Type: head.Type, Flags: head.Flags, Data: buf[start:len(buf):len(buf)]})
	}
	return msgs
}
