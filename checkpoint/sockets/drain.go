package sockets

import (
	"context"
	"fmt"
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
	c, err := rawnl.Dial(n, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return err
	}
	defer c.Close()
	deadline := time.Now().Add(timeout)
	for {
		list, err := inets(ctx, c, unix.IPPROTO_TCP, 1<<Listen|1<<SynRecv|1<<newSynRecv, 0)
		if err != nil {
			return fmt.Errorf("watch accept queues: %w", err)
		}
		listeners, embryonic := Waiting(list)
		if len(listeners) == 0 && len(embryonic) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return &NotDrainedError{Listeners: listeners, Embryonic: embryonic}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(drainPoll):
		}
	}
}
