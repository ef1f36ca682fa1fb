package netstate

import (
	"context"
	"strings"

	"github.com/nsmigrate/nsmigrate/netstate/conntrack"
	"github.com/nsmigrate/nsmigrate/netstate/iptables"
	"github.com/nsmigrate/nsmigrate/netstate/nftables"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
)

// captureFilters reads the packet filters and the tracked connections. The legacy ones come from their tools, so they are taken from an
// earlier capture if there is one.
func (s *State) captureFilters(ctx context.Context, n *ns.NS, prev *State) error {
	msgs, err := nftables.Capture(ctx, n)
	if err != nil {
		return err
	}
	if len(msgs) > 0 {
		s.Messages[KindNFTables] = msgs
	}
	for _, line := range nftables.Losses(msgs) {
		object, reason, _ := strings.Cut(line, ": ")
		s.losses = append(s.losses, Loss{Kind: "nft", Object: object, Reason: reason})
	}
	if msgs, err = conntrack.Capture(ctx, n); err != nil {
		return err
	}
	if len(msgs) > 0 {
		s.Messages[KindConntrack] = msgs
	}
	if prev != nil {
		s.Tables = prev.Tables
		return nil
	}
	s.Tables, err = iptables.Capture(ctx, n)
	return err
}

// buildFilters replays the packet filters and then the connections that they track.
func (b *builder) buildFilters(ctx context.Context) error {
	plan, err := nftables.Plan(b.s.Messages[KindNFTables])
	if err != nil {
		return err
	}
	if err := nftables.Apply(ctx, b.n, plan); err != nil {
		return err
	}
	if err := iptables.Apply(ctx, b.n, b.s.Tables); err != nil {
		return err
	}
	if plan, err = conntrack.Plan(b.s.Messages[KindConntrack]); err != nil {
		return err
	}
	return conntrack.Apply(ctx, b.n, plan)
}
