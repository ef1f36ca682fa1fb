package ipset

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Apply carries out a plan: that of [Plan] in a namespace that has no sets, that of [Change] in one that has those of
// the earlier capture. It is not atomic: after an error some of it may have been done. The error names the set that was
// refused, and wraps [*rawnl.Error] if the kernel was asked to make it. Nothing is made if a set does what this kernel's
// sets can't do.
func Apply(ctx context.Context, n *ns.NS, plan []rawnl.Message) error {
	plan, err := adapt(ctx, n, plan)
	if err != nil {
		return fmt.Errorf("apply ipset: %w", err)
	}
	if len(plan) == 0 {
		return nil
	}
	c, err := rawnl.Dial(n, unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("apply ipset: %w", err)
	}
	defer c.Close()
	if err := c.Apply(ctx, plan); err != nil {
		return fmt.Errorf("apply ipset: %w", rawnl.Named(worded(err, plan), plan, Describe))
	}
	return nil
}
