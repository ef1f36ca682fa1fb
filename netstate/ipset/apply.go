package ipset

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Apply makes the sets of a plan in a namespace that has none. It is not atomic: after an error some sets may have
// been made. The error wraps [*rawnl.Error] and names the set that was refused.
func Apply(ctx context.Context, n *ns.NS, plan []rawnl.Message) error {
	if len(plan) == 0 {
		return nil
	}
	c, err := rawnl.Dial(n, unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("apply ipset: %w", err)
	}
	defer c.Close()
	err = c.Apply(ctx, plan)
	if refused, ok := errors.AsType[*rawnl.Error](err); ok && refused.Index >= 0 && refused.Index < len(plan) {
		return fmt.Errorf("apply ipset: %s: %w", Describe(plan[refused.Index]), err)
	}
	if err != nil {
		return fmt.Errorf("apply ipset: %w", err)
	}
	return nil
}
