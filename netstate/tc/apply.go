package tc

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Apply makes the objects of a plan on the devices of a namespace, which have to be there. It is not atomic: after
// an error some objects may have been made. The error wraps [*rawnl.Error] and names the object that was refused.
func Apply(ctx context.Context, n *ns.NS, plan []rawnl.Message) error {
	if err := rawnl.Replay(ctx, n, unix.NETLINK_ROUTE, plan, func(m rawnl.Message) string { return "add " + Describe(m, n.LinkName) }); err != nil {
		return fmt.Errorf("apply traffic control: %w", err)
	}
	return nil
}
