package nftables

import (
	"context"
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
	defer c.Leave()
	if err := c.Transaction(ctx, unix.NFNL_SUBSYS_NFTABLES, plan); err != nil {
		return fmt.Errorf("apply nftables: %w", rawnl.Named(err, plan, func(m rawnl.Message) string {
			switch kindOf(m) {
			case unix.NFT_MSG_DELTABLE, unix.NFT_MSG_DELRULE, unix.NFT_MSG_DELOBJ, unix.NFT_MSG_DELSETELEM:
				return "delete " + Describe(m)
			}
			return "add " + Describe(m)
		}))
	}
	return nil
}
