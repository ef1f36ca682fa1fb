package xfrm

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Apply makes the states and policies of a plan in a namespace that has none. It is not atomic: after an error some
// may have been made. The error wraps [*rawnl.Error] and names the object that was refused.
func Apply(ctx context.Context, n *ns.NS, plan []rawnl.Message) error {
	if len(plan) == 0 {
		return nil
	}
	c, err := rawnl.Dial(n, unix.NETLINK_XFRM)
	if err != nil {
		return fmt.Errorf("apply xfrm: %w", err)
	}
	defer c.Close()
	err = c.Apply(ctx, plan)
	if refused, ok := errors.AsType[*rawnl.Error](err); ok && refused.Index >= 0 && refused.Index < len(plan) {
		return fmt.Errorf("apply xfrm: add %s: %w", Describe(plan[refused.Index]), err)
	}
	if err != nil {
		return fmt.Errorf("apply xfrm: %w", err)
	}
	return nil
}
