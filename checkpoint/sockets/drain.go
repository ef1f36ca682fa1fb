package sockets

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Waiting lists the connections of a namespace that no process has accepted yet: listeners with a filled
// accept queue, and half-open connections. CRIU can carry neither.
func Waiting(list []Inet) (listeners, embryonic []Inet) {
	for _, s := range list {
		switch {
		case s.Protocol != unix.IPPROTO_TCP:
		case s.State == Listen && s.RecvQueue > 0:
			listeners = append(listeners, s)
		case s.State == SynRecv:
			embryonic = append(embryonic, s)
		}
	}
	return listeners, embryonic
}

// Orphans lists the TCP sockets that their process has closed while the kernel still has data or a FIN to
// deliver. Nothing but the kernel holds them, so they can't be carried.
func Orphans(list []Inet) []Inet {
	var found []Inet
	for _, s := range list {
		if s.Protocol == unix.IPPROTO_TCP && s.Inode == 0 && s.SendQueue > 0 &&
			(s.State == FinWait1 || s.State == LastAck || s.State == Closing) {
			found = append(found, s)
		}
	}
	return found
}

// NotDrainedError says which connections were still waiting when the time was over.
type NotDrainedError struct {
	Listeners []Inet // with what is in their accept queues
	Embryonic []Inet // half-open
}

func (e *NotDrainedError) Error() string {
	var parts []string
	for _, s := range e.Listeners {
		parts = append(parts, fmt.Sprintf("%v has %d unaccepted connections", s.Local, s.RecvQueue))
	}
	if n := len(e.Embryonic); n > 0 {
		parts = append(parts, fmt.Sprintf("%d connections are half-open, e.g. %v from %v", n, e.Embryonic[0].Local, e.Embryonic[0].Remote))
	}
	return "accept queues are not empty: " + strings.Join(parts, "; ")
}

// drainPoll is the time between two looks: the kernel has no event for an empty accept queue.
const drainPoll = 2 * time.Millisecond

// AwaitDrained waits until the processes of a namespace have accepted all connections and none is half-open.
// New SYNs must be held back meanwhile. After the timeout the error is a [*NotDrainedError].
func AwaitDrained(ctx context.Context, n *ns.NS, timeout time.Duration) error {
	left := &NotDrainedError{}
	done, err := await(ctx, n, unix.IPPROTO_TCP, 1<<Listen|1<<SynRecv|1<<newSynRecv, timeout, func(list []Inet) bool {
		left.Listeners, left.Embryonic = Waiting(list)
		return len(left.Listeners) == 0 && len(left.Embryonic) == 0
	})
	if err != nil {
		return fmt.Errorf("watch accept queues: %w", err)
	}
	if !done {
		return left
	}
	return nil
}

// AwaitDelivered waits until the kernel has delivered what closed connections still had to send, which takes a round
// trip, and returns those that remain after the timeout.
func AwaitDelivered(ctx context.Context, n *ns.NS, timeout time.Duration) (orphans []Inet, err error) {
	if _, err = await(ctx, n, unix.IPPROTO_TCP, 1<<FinWait1|1<<LastAck|1<<Closing, timeout, func(list []Inet) bool {
		orphans = Orphans(list)
		return len(orphans) == 0
	}); err != nil {
		return nil, fmt.Errorf("watch closed connections: %w", err)
	}
	return orphans, nil
}

// AwaitRead waits until the processes of a namespace have read all datagrams that their UDP sockets received, and reports
// whether they have. New ones must be held back meanwhile.
func AwaitRead(ctx context.Context, n *ns.NS, timeout time.Duration) (bool, error) {
	done, err := await(ctx, n, unix.IPPROTO_UDP, allStates, timeout, func(list []Inet) bool {
		return !slices.ContainsFunc(list, func(s Inet) bool { return s.RecvQueue > 0 })
	})
	if err != nil {
		return false, fmt.Errorf("watch datagrams: %w", err)
	}
	return done, nil
}

// await looks at a protocol's sockets in some states until done says so; false if the time was over before.
func await(ctx context.Context, n *ns.NS, protocol int, states uint32, timeout time.Duration, done func([]Inet) bool) (bool, error) {
	c, err := rawnl.Dial(n, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return false, err
	}
	defer c.Close()
	deadline := time.Now().Add(timeout)
	for {
		list, err := inets(ctx, c, protocol, states, 0)
		if err != nil {
			return false, err
		}
		if done(list) {
			return true, nil
		}
		if time.Now().After(deadline) {
			return false, nil
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(drainPoll):
		}
	}
}
