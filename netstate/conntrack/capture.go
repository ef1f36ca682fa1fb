// Package conntrack carries the connection tracking entries and expectations of a network namespace as
// ctnetlink messages.
//
// The kernel shows an entry's two tuples and takes translations instead, so [Plan] derives them: an
// entry replayed as it was shown is tracked but not translated, and a connection that was redirected
// hangs. The position of a TCP connection's window is not shown; see [Plan] for what is done about it.
//
// What can't be carried: packet counters and start times (they count from the move on), security contexts,
// and the device by whose loss a masqueraded entry would be flushed.
package conntrack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/nfnl"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Capture reads the entries of a namespace and then its expectations, of all protocols and zones, each
// ordered by tuple. Counters, ids, use counts, start times and security contexts are left out. Where
// connections aren't tracked there is nothing, which is no error, costs little and stays so: looking does
// not switch tracking on.
func Capture(ctx context.Context, n *ns.NS) ([]rawnl.Message, error) {
	msgs, err := capture(ctx, n)
	if err != nil {
		return nil, fmt.Errorf("capture conntrack: %w", err)
	}
	return msgs, nil
}

func capture(ctx context.Context, n *ns.NS) ([]rawnl.Message, error) {
	if used, err := inUse(n); err != nil || !used {
		return nil, err
	}
	c, err := rawnl.Dial(n, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	entries, err := dump(ctx, c, typeEntry)
	if err != nil {
		return nil, fmt.Errorf("dump entries: %w", err)
	}
	if len(entries) == 0 {
		return nil, nil
	}
	expected, err := dump(ctx, c, typeExpect)
	if err != nil {
		return nil, fmt.Errorf("dump expectations: %w", err)
	}
	return append(entries, expected...), nil
}

// inUse reports whether a namespace can have entries. A dump would load the kernel's modules and walk a
// table that all namespaces share; the namespace's own count is free.
func inUse(n *ns.NS) (used bool, err error) {
	err = n.Do(func() error {
		count, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
		if errors.Is(err, fs.ErrNotExist) {
			// Either the module isn't there, or the namespace belongs to a user namespace that the kernel
			// doesn't show the file to (net/netfilter/nf_conntrack_standalone.c).
			_, err = os.Stat("/sys/module/nf_conntrack")
			used = err == nil
			return nil
		}
		used = string(bytes.TrimSpace(count)) != "0"
		return err
	})
	return used, err
}

// dump returns the messages of a type (entries or expectations) without what can't be carried, in order.
func dump(ctx context.Context, c *rawnl.Conn, typ uint16) ([]rawnl.Message, error) {
	msgs, err := c.Dump(ctx, request(typ|requestGet, unix.AF_UNSPEC, nil))
	if err != nil {
		return nil, err
	}
	for i, m := range msgs {
		msgs[i] = carried(m)
	}
	slices.SortFunc(msgs, func(a, b rawnl.Message) int { return bytes.Compare(key(a), key(b)) })
	// The table can be resized or shifted under a dump, which then shows an entry twice.
	return slices.CompactFunc(msgs, func(a, b rawnl.Message) bool { return bytes.Equal(key(a), key(b)) }), nil
}

// carried returns a message without the attributes that can't be given back.
func carried(m rawnl.Message) rawnl.Message {
	if len(m.Data) < nfnl.HeaderLen {
		return m
	}
	drop := []uint16{ctaCountersOrig, ctaCountersReply, ctaUse, ctaID, ctaSecmark, ctaSecctx, ctaTimestamp}
	if m.Type == typeExpect {
		drop = []uint16{expectID}
	}
	data := rawnl.Rewrite(nfnl.Attrs(m), func(a rawnl.Attr) (rawnl.Attr, bool) {
		// An entry that was created through netlink shows a synproxy state even if it has none.
		blank := m.Type == typeEntry && a.Kind() == ctaSynproxy && allZero(a.Data)
		return a, !blank && !slices.Contains(drop, a.Kind())
	})
	return request(m.Type, nfnl.Family(m), data)
}

// allZero reports whether all attributes of a run have the value 0.
func allZero(b []byte) bool {
	for a := range rawnl.Each(b) {
		if nfnl.Number(a.Data) != 0 {
			return false
		}
	}
	return true
}

// key identifies an entry or expectation within a namespace: its tuple and zone.
func key(m rawnl.Message) []byte {
	b := nfnl.Attrs(m)
	k := []byte{nfnl.Family(m)}
	if m.Type == typeExpect {
		k = append(k, rawnl.Get(b, expectTuple)...)
		k = append(k, rawnl.Get(b, expectMask)...)
		return append(k, rawnl.Get(b, expectZone)...)
	}
	k = append(k, rawnl.Get(b, ctaTupleOrig)...)
	return append(k, rawnl.Get(b, ctaZone)...)
}
