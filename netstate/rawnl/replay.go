package rawnl

import (
	"context"
	"errors"
	"fmt"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
)

// Replay is [Conn.Apply] over a socket of its own in a namespace. Its error is one of [Named].
func Replay(ctx context.Context, n *ns.NS, protocol int, msgs []Message, describe func(Message) string) error {
	if len(msgs) == 0 {
		return nil
	}
	c, err := Dial(n, protocol)
	if err != nil {
		return err
	}
	defer c.Close()
	return Named(c.Apply(ctx, msgs), msgs, describe)
}

// Named puts into words which of the messages it was that an [*Error] is about. Any other error it returns as it is.
func Named(err error, msgs []Message, describe func(Message) string) error {
	if refused, ok := errors.AsType[*Error](err); ok && refused.Index >= 0 && refused.Index < len(msgs) {
		return fmt.Errorf("%s: %w", describe(msgs[refused.Index]), err)
	}
	return err
}
