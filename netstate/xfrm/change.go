package xfrm

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Replace makes the states and policies of a capture in a namespace that has those of an earlier one, which are all
// removed before: states count every packet, so that hardly one is as it was. Settings for all policies are not
// altered; the error says so if they differ.
func Replace(ctx context.Context, n *ns.NS, old, next []rawnl.Message) error {
	setting := func(m rawnl.Message) bool { return m.Type != typeState && m.Type != typePolicy }
	settings := func(msgs []rawnl.Message) (list []string) {
		for _, m := range msgs {
			if setting(m) {
				list = append(list, string(m.Data))
			}
		}
		return list
	}
	if !slices.Equal(settings(old), settings(next)) {
		return errors.New("the settings for IPsec policies were altered")
	}
	plan, err := Plan(next)
	if err != nil {
		return err
	}
	if err := flush(ctx, n); err != nil {
		return fmt.Errorf("flush xfrm: %w", err)
	}
	return Apply(ctx, n, slices.DeleteFunc(plan, setting))
}

func flush(ctx context.Context, n *ns.NS) error {
	c, err := rawnl.Dial(n, unix.NETLINK_XFRM)
	if err != nil {
		return err
	}
	defer c.Close()
	var refused error
	err = c.ApplyEach(ctx, []rawnl.Message{{Type: flushPolicies}, {Type: flushStates, Data: []byte{0}}}, func(e *rawnl.Error) {
		if e.Errno != unix.ESRCH { // there is nothing to flush
			refused = e
		}
	})
	return errors.Join(err, refused)
}
