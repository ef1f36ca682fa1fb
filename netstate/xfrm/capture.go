// Package xfrm carries the IPsec states and policies of a network namespace as xfrm messages, so that tunnels go on
// with the keys and sequence numbers that they have: a state's replay window and counters, the bytes, packets and
// times that count against its lifetimes, marks, interface ids and encapsulation are kept.
//
// What the kernel doesn't take and so isn't carried: how often and since when a policy was used (a policy's lifetime
// starts anew), statistics, and the thresholds for notifications of key management daemons. What can't be carried at
// all is in [Losses].
package xfrm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Capture reads the states and policies of a namespace in the kernel's order, newest first, and the defaults and hash
// thresholds for policies if they aren't those of a fresh namespace. A kernel without xfrm has none, which is no
// error.
func Capture(ctx context.Context, n *ns.NS) ([]rawnl.Message, error) {
	msgs, err := capture(ctx, n)
	if err != nil {
		return nil, fmt.Errorf("capture xfrm: %w", err)
	}
	return msgs, nil
}

func capture(ctx context.Context, n *ns.NS) ([]rawnl.Message, error) {
	c, err := rawnl.Dial(n, unix.NETLINK_XFRM)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer c.Close()
	const idLen, policyIDLen = 24, 64 // struct xfrm_usersa_id, struct xfrm_userpolicy_id
	states, err := c.Dump(ctx, rawnl.Message{Type: getState, Data: make([]byte, idLen)})
	if err != nil {
		return nil, fmt.Errorf("dump states: %w", err)
	}
	policies, err := c.Dump(ctx, rawnl.Message{Type: getPolicy, Data: make([]byte, policyIDLen)})
	if err != nil {
		return nil, fmt.Errorf("dump policies: %w", err)
	}
	msgs := slices.DeleteFunc(append(states, policies...), func(m rawnl.Message) bool {
		return m.Type != typeState && m.Type != typePolicy || len(m.Data) < HeaderLen(m.Type)
	})
	for i, m := range msgs {
		// When a state was last used can't be given back.
		msgs[i] = rewrite(m, func(a rawnl.Attr) (rawnl.Attr, bool) { return a, a.Kind() != attrLastUsed && a.Kind() != attrPad })
	}
	settings, err := settings(ctx, c)
	if err != nil {
		return nil, err
	}
	return append(msgs, settings...), nil
}

// settings reads what holds for all policies, if it differs from a fresh namespace.
func settings(ctx context.Context, c *rawnl.Conn) ([]rawnl.Message, error) {
	var changed []rawnl.Message
	thresholds, err := c.Request(ctx, rawnl.Message{Type: getThreshold, Data: make([]byte, thresholdLen)})
	if err != nil {
		return nil, fmt.Errorf("get hash thresholds: %w", err)
	}
	for _, m := range thresholds {
		if len(m.Data) < thresholdLen {
			continue
		}
		m = rewrite(rawnl.Message{Type: typeThreshold, Data: m.Data}, func(a rawnl.Attr) (rawnl.Attr, bool) {
			fresh := a.Kind() == thresholdV4 && bytes.Equal(a.Data, []byte{32, 32}) || a.Kind() == thresholdV6 && bytes.Equal(a.Data, []byte{128, 128})
			return a, !fresh && (a.Kind() == thresholdV4 || a.Kind() == thresholdV6)
		}, [2]int{0, thresholdLen})
		if len(attrsOf(m)) > 0 {
			changed = append(changed, m)
		}
	}
	defaults, err := c.Request(ctx, rawnl.Message{Type: getDefault, Data: make([]byte, defaultLen)})
	if err != nil && !errors.Is(err, unix.EINVAL) { // Linux 5.15 has it
		return nil, fmt.Errorf("get default policy: %w", err)
	}
	for _, m := range defaults {
		if len(m.Data) >= defaultLen && !bytes.Equal(m.Data[:defaultLen], []byte{accept, accept, accept}) {
			changed = append(changed, rawnl.Message{Type: typeDefault, Data: m.Data[:defaultLen]})
		}
	}
	return changed, nil
}
