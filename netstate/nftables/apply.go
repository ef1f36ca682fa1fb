package nftables

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Apply carries out a plan in one transaction: after an error the namespace is as it was. The error wraps
// [*rawnl.Error] and names the object that the kernel refused.
func Apply(ctx context.Context, n *ns.NS, plan []rawnl.Message) error {
	if len(plan) == 0 {
		return nil
	}
	c, err := rawnl.Dial(n, unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("apply nftables: %w", err)
	}
	defer c.Close()
	err = c.Transaction(ctx, unix.NFNL_SUBSYS_NFTABLES, plan)
	var refused *rawnl.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refused) && refused.Index >= 0 && refused.Index < len(plan):
		return fmt.Errorf("apply nftables: add %s: %w", Describe(plan[refused.Index]), err)
	default:
		return fmt.Errorf("apply nftables: commit: %w", err)
	}
}
