package tc

import (
	"context"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Apply makes the objects of a plan on the devices of a namespace, which have to be there. It is not atomic: after
// an error some objects may have been made. The error wraps [*rawnl.Error] and names the object that was refused.
func Apply(ctx context.Context, n *ns.NS, plan []rawnl.Message) error {
	if len(plan) == 0 {
		return nil
	}
	c, err := rawnl.Dial(n, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("apply traffic control: %w", err)
	}
	defer c.Close()
	err = c.Apply(ctx, plan)
	if refused, ok := errors.AsType[*rawnl.Error](err); ok && refused.Index >= 0 && refused.Index < len(plan) {
		return fmt.Errorf("apply traffic control: add %s: %w", Describe(plan[refused.Index], namesIn(n)), err)
	}
	if err != nil {
		return fmt.Errorf("apply traffic control: %w", err)
	}
	return nil
}

// namesIn returns a function that looks a device up in a namespace.
func namesIn(n *ns.NS) func(int32) string {
	return func(index int32) string {
		name := fmt.Sprintf("if%d", index)
		_ = n.Do(func() error {
			if dev, err := net.InterfaceByIndex(int(index)); err == nil {
				name = dev.Name
			}
			return nil
		})
		return name
	}
}
