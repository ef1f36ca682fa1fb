package conntrack

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

const applyTries = 3

// Apply creates the entries of a plan. Entries with the same tuples that are there already (CRIU restores
// some, without their translation) are replaced; other entries stay. It is not atomic: after an error some
// entries may have been created. The error wraps [*rawnl.Error] and names the entry that was refused.
func Apply(ctx context.Context, n *ns.NS, plan []rawnl.Message) error {
	if len(plan) == 0 {
		return nil
	}
	c, err := rawnl.Dial(n, unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("apply conntrack: %w", err)
	}
	defer c.Close()
	for range applyTries {
		err = apply(ctx, c, n, plan)
		// An entry that a packet makes between the look and the creation is seen at the next look.
		if !errors.Is(err, unix.EEXIST) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("apply conntrack: %w", err)
	}
	return nil
}

func apply(ctx context.Context, c *rawnl.Conn, n *ns.NS, plan []rawnl.Message) error {
	used, err := inUse(n)
	if err != nil {
		return err
	}
	creates := plan
	if used {
		existing, err := dump(ctx, c, typeEntry)
		if err != nil {
			return fmt.Errorf("dump entries: %w", err)
		}
		var deletes []rawnl.Message
		deletes, creates = reconcile(plan, existing)
		if err := send(ctx, c, "delete", deletes); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return send(ctx, c, "add", creates)
}

func send(ctx context.Context, c *rawnl.Conn, verb string, msgs []rawnl.Message) error {
	return rawnl.Named(c.Apply(ctx, msgs), msgs, func(m rawnl.Message) string { return verb + " " + Describe(m) })
}
