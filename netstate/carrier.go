package netstate

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// forwardingFor bounds the wait for the host's side of an uplink.
const forwardingFor = 50 * time.Millisecond

// awaitPeers waits until the host has noticed that its side of the uplinks has a carrier: until then a bridge drops what
// comes by it, without a word. To ask for a link has the kernel do that at once (see syncCarriers), else it takes a
// moment.
func (b *builder) awaitPeers(ctx context.Context, peers map[int32]int32) error {
	for i := range b.s.uplinks {
		u := &b.s.uplinks[i]
		if !u.pair() || !u.Up && u.Link != nil {
			continue
		}
		if err := b.host.awaitLink(ctx, peers[u.Index], forwardingFor, (*link).noticed); err != nil {
			return fmt.Errorf("uplink %s: host side: %w", u.Name, err)
		}
	}
	return nil
}

// noticed reports that no more becomes of a link whose ends are both up: it is in operation, or has no carrier and won't
// get one, as when its other end is down on purpose, or its user keeps it from operation.
func (l *link) noticed() bool {
	carrier := l.attr(unix.IFLA_CARRIER)
	if len(carrier) == 1 && carrier[0] == 0 {
		return true
	}
	state := string(l.attr(unix.IFLA_OPERSTATE))
	return state == operUp || state == operDormant
}

// awaitLink waits until a link is as wanted. It is no error if the time is over before.
func (h *host) awaitLink(ctx context.Context, index int32, timeout time.Duration, done func(*link) bool) error {
	l, _, err := h.link(ctx, index)
	if err != nil || done(&l) {
		return err
	}
	events, err := rawnl.Dial(h.ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer events.Close()
	if err := events.Join(unix.RTNLGRP_LINK); err != nil {
		return err
	}
	deadline := time.Now().Add(timeout)
	for {
		l, _, err := h.link(ctx, index)
		if err != nil || done(&l) {
			return err
		}
		if came, err := events.Await(ctx, deadline); err != nil || !came {
			return err
		}
		if err := events.Drain(func(rawnl.Message) {}); err != nil { // the link itself says more than any of them
			return err
		}
	}
}
