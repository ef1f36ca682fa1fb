package iptables

import (
	"context"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
)

// CaptureIn is Capture with the places to look for tools besides PATH.
func CaptureIn(ctx context.Context, n *ns.NS, dirs []string) ([]Table, error) {
	return captureIn(ctx, n, dirs)
}
