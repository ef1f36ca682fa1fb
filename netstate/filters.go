package netstate

import (
	"context"
	"strings"

	"github.com/nsmigrate/nsmigrate/netstate/conntrack"
	"github.com/nsmigrate/nsmigrate/netstate/genl"
	"github.com/nsmigrate/nsmigrate/netstate/ipset"
	"github.com/nsmigrate/nsmigrate/netstate/iptables"
	"github.com/nsmigrate/nsmigrate/netstate/netfilter"
	"github.com/nsmigrate/nsmigrate/netstate/nftables"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
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
	if msgs, err = netfilter.Capture(ctx, n); err != nil {
		return err
	}
	if len(msgs) > 0 {
		s.Messages[KindNetfilter] = msgs
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

// captureOthers reads what has a package of its own beside the filters: traffic control, IPsec, and what is spoken of
// over generic netlink. kinds has those of the links.
func (s *State) captureOthers(ctx context.Context, n *ns.NS, names linkNames, kinds map[int32]string) error {
	name := names.of
	generic := func(ctx context.Context, n *ns.NS) ([]rawnl.Message, error) { return genl.Capture(ctx, n, kinds) }
	for _, k := range []struct {
		kind    Kind
		capture func(context.Context, *ns.NS) ([]rawnl.Message, error)
		losses  func([]rawnl.Message) []string // each begins with the class of the object
	}{
		{KindTC, tc.Capture, func(msgs []rawnl.Message) []string { return tc.Losses(msgs, name) }},
		{KindXFRM, xfrm.Capture, xfrm.Losses},
		{KindGeneric, generic, func(msgs []rawnl.Message) []string { return genl.Losses(msgs, name) }},
	} {
		msgs, err := k.capture(ctx, n)
		if err != nil {
			return err
		}
		if len(msgs) > 0 {
			s.Messages[k.kind] = msgs
		}
		for _, line := range k.losses(msgs) {
			class, rest, _ := strings.Cut(line, " ")
			object, reason := rest, ""
			if i := strings.LastIndex(rest, ": "); i >= 0 {
				object, reason = rest[:i], rest[i+2:]
			}
			s.losses = append(s.losses, Loss{Kind: class, Object: object, Reason: reason})
		}
	}
	return nil
}

// buildFilters replays the packet filters, after the sets and other objects that their rules refer to, and then the
// connections that they track.
func (b *builder) buildFilters(ctx context.Context) error {
	plan, err := netfilter.Plan(b.s.Messages[KindNetfilter])
	if err != nil {
		return err
	}
	if err := netfilter.Apply(ctx, b.n, plan); err != nil {
		return err
	}
	if plan, err = ipset.Plan(b.s.Messages[KindIPSet]); err != nil {
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

// buildOthers replays traffic control, IPsec, and what is spoken of over generic netlink but for settings of links.
func (b *builder) buildOthers(ctx context.Context, site Site) error {
	p, err := newPlanner(b.s, site)
	if err != nil {
		return err
	}
	for _, k := range []struct {
		kind  Kind
		plan  func([]rawnl.Message) ([]rawnl.Message, error)
		apply func(context.Context, *ns.NS, []rawnl.Message) error
	}{{KindGeneric, genl.Plan, genl.Apply}, {KindTC, tc.Plan, tc.Apply}, {KindXFRM, xfrm.Plan, xfrm.Apply}} {
		plan, err := k.plan(p.others(k.kind))
		if err != nil {
			return err
		}
		if err := k.apply(ctx, b.n, plan); err != nil {
			return err
		}
	}
	return nil
}
