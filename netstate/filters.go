package netstate

import (
	"context"
	"strings"

	"github.com/nsmigrate/nsmigrate/netstate/conntrack"
	"github.com/nsmigrate/nsmigrate/netstate/ipset"
	"github.com/nsmigrate/nsmigrate/netstate/iptables"
	"github.com/nsmigrate/nsmigrate/netstate/nftables"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/tc"
	"github.com/nsmigrate/nsmigrate/netstate/xfrm"
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
	if msgs, err = ipset.Capture(ctx, n); err != nil {
		return err
	}
	if len(msgs) > 0 {
		s.Messages[KindIPSet] = msgs
	}
	if prev != nil {
		s.Tables = prev.Tables
		return nil
	}
	s.Tables, err = iptables.Capture(ctx, n)
	return err
}

// captureQueues reads what happens to packets behind the filters: traffic control, which only a user changes and so
// is taken from an earlier capture if there is one, and IPsec.
func (s *State) captureQueues(ctx context.Context, n *ns.NS, prev *State) error {
	msgs, err := xfrm.Capture(ctx, n)
	if err != nil {
		return err
	}
	if len(msgs) > 0 {
		s.Messages[KindXFRM] = msgs
	}
	s.lose("xfrm", xfrm.Losses(msgs))
	if prev != nil {
		msgs = prev.Messages[KindTC]
	} else if msgs, err = tc.Capture(ctx, n); err != nil {
		return err
	}
	if len(msgs) > 0 {
		s.Messages[KindTC] = msgs
	}
	for _, line := range tc.Losses(msgs, s.names().of) {
		noun, rest, _ := strings.Cut(line, " ")
		s.lose(noun, []string{rest})
	}
	return nil
}

// lose adds losses that a package reports, each as the object, a colon and the reason.
func (s *State) lose(kind string, lines []string) {
	for _, line := range lines {
		object, reason := line, ""
		if i := strings.LastIndex(line, ": "); i >= 0 {
			object, reason = line[:i], line[i+2:]
		}
		s.losses = append(s.losses, Loss{Kind: kind, Object: object, Reason: reason})
	}
}

// buildFilters replays the packet filters, after the sets that their rules refer to, and then the connections that
// they track.
func (b *builder) buildFilters(ctx context.Context) error {
	plan, err := ipset.Plan(b.s.Messages[KindIPSet])
	if err != nil {
		return err
	}
	if err := ipset.Apply(ctx, b.n, plan); err != nil {
		return err
	}
	if plan, err = nftables.Plan(b.s.Messages[KindNFTables]); err != nil {
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

// buildQueues replays traffic control and IPsec.
func (b *builder) buildQueues(ctx context.Context) error {
	plan, err := tc.Plan(b.s.Messages[KindTC])
	if err != nil {
		return err
	}
	if err := tc.Apply(ctx, b.n, plan); err != nil {
		return err
	}
	if plan, err = xfrm.Plan(b.s.Messages[KindXFRM]); err != nil {
		return err
	}
	return xfrm.Apply(ctx, b.n, plan)
}
