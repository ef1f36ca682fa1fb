package xfrm

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Apply makes the states and policies of a plan in a namespace that has none. It is not atomic: after an error some
// may have been made. The error wraps [*rawnl.Error] and names the object that was refused.
func Apply(ctx context.Context, n *ns.NS, plan []rawnl.Message) error {
	if err := rawnl.Replay(ctx, n, unix.NETLINK_XFRM, plan, func(m rawnl.Message) string { return "add " + Describe(m) }); err != nil {
		return fmt.Errorf("apply xfrm: %w", err)
	}
	return nil
}
