package ipset

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Apply makes the sets of a plan in a namespace that has none. It is not atomic: after an error some sets may have
// been made. The error wraps [*rawnl.Error] and names the set that was refused.
func Apply(ctx context.Context, n *ns.NS, plan []rawnl.Message) error {
	if err := rawnl.Replay(ctx, n, unix.NETLINK_NETFILTER, plan, Describe); err != nil {
		return fmt.Errorf("apply ipset: %w", err)
	}
	return nil
}
