package netstate

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Connect lets the namespace n, which [Build] made, be heard: the host's side of its uplinks comes up (unless it
// was down on the source host), the
// host's routes and neighbours through them are set, and links that were held are released. Neighbour entries
// of the namespace are stated again, because learned ones do not survive the lack of a carrier.
//
// It is also the inverse of [Disconnect] on the source host.
func Connect(ctx context.Context, n *ns.NS, s *State, opts BuildOptions) error {
	b, err := newBuilder(n, s, opts)
	if err != nil {
		return fmt.Errorf("connect namespace: %w", err)
	}
	defer b.close()
	if err := b.connect(ctx); err != nil {
		return fmt.Errorf("connect namespace: %w", err)
	}
	return nil
}

func (b *builder) connect(ctx context.Context) error {
	peers, err := b.peers(ctx)
	if err != nil {
		return err
	}
	var outside []Op
	for i := range b.s.uplinks {
		if u := &b.s.uplinks[i]; u.pair() && (u.Up || u.Link == nil) {
			outside = append(outside, peerUp(u, peers[u.Index])...)
		}
	}
	if err := b.send(ctx, b.host.nl, outside); err != nil {
		return err
	}
	p, err := newPlanner(b.s, Site{})
	if err != nil {
		return err
	}
	for _, batch := range p.connect() {
		if err := b.run(ctx, batch); err != nil {
			return fmt.Errorf("%s: %w", batch.Name, err)
		}
		if batch.Carriers { // now both ends are up
			if err := b.awaitPeers(ctx, peers); err != nil {
				return err
			}
		}
	}
	return nil
}

// peers returns the index of each veth uplink's host side, by the index of the inner link.
func (b *builder) peers(ctx context.Context) (map[int32]int32, error) {
	peers := map[int32]int32{}
	for i := range b.s.uplinks {
		u := &b.s.uplinks[i]
		if !u.pair() {
			continue
		}
		name := u.Target(b.opts.Uplinks).Peer
		l, _, err := b.host.linkByName(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("uplink %s: host side %s: %w", u.Name, name, err)
		}
		peers[u.Index] = l.index
	}
	return peers, nil
}

// peerUp returns the operations that bring the host's end of a veth up, with what the host has behind it.
func peerUp(u *Uplink, peer int32) []Op {
	flags := iffUp
	if outer, err := parseLink(rawnl.Message{Type: unix.RTM_NEWLINK, Data: u.Link}); err == nil {
		flags |= outer.flags & (iffNoARP | iffPromisc | iffAllmulti | iffMulticast)
	} else {
		flags |= iffMulticast
	}
	ops := peerAddresses(u, peer) // the IPv6 ones are gone since it went down
	ops = append(ops, Op{
		Verb: "set", Kind: KindLink, Host: true,
		Object: encodeLink(unix.AF_UNSPEC, peer, 0, 0, []rawnl.Attr{strAttr(unix.IFLA_IFNAME, u.Peer)}),
		Msg:    encodeLink(unix.AF_UNSPEC, peer, flags, iffUp|iffNoARP|iffPromisc|iffAllmulti|iffMulticast, nil),
	})
	first := len(ops) // of the routes
	for _, data := range u.Routes {
		m := rawnl.Message{Type: unix.RTM_NEWROUTE, Data: data}
		r, err := parseRoute(m)
		if err != nil || r.attr(unix.RTA_OIF) == nil || r.usesNexthop() {
			continue
		}
		r.attrs = rawnl.Rewrite(r.attrs, func(a rawnl.Attr) (rawnl.Attr, bool) {
			if a.Kind() == unix.RTA_OIF {
				a = u32Attr(unix.RTA_OIF, uint32(peer))
			}
			return a, true
		})
		ops = append(ops, Op{Verb: "add", Kind: KindRoute, Host: true, Object: m, Msg: routeAdd(&r)})
	}
	slices.SortStableFunc(ops[first:], func(a, b Op) int {
		ra, _ := parseRoute(a.Object)
		rb, _ := parseRoute(b.Object)
		return ra.rank() - rb.rank()
	})
	for _, data := range u.Neighs {
		m := neighAdd(rawnl.Message{Type: unix.RTM_NEWNEIGH, Data: data})
		if len(m.Data) < sizeofNdMsg {
			continue
		}
		binary.NativeEndian.PutUint32(m.Data[4:], uint32(peer))
		ops = append(ops, Op{Verb: "add", Kind: KindNeigh, Host: true, Object: m, Msg: m})
	}
	return ops
}

// rulesForGateways returns the operations that put the main table in front of the rules. A gateway has to be reachable
// when it is stated, which the rules may keep it from: they may have come after it, or it was stated with its link. Every
// packet without a mark agrees with these rules, and no other rule with a request to delete them.
func rulesForGateways() []Op {
	var ops []Op
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		m := join(unix.RTM_NEWRULE, unix.NLM_F_CREATE, []byte{family, 0, 0, 0, unix.RT_TABLE_MAIN, 0, 0, unix.FR_ACT_TO_TBL, 0, 0, 0, 0},
			[]rawnl.Attr{u32Attr(unix.FRA_PRIORITY, 0), u32Attr(unix.FRA_FWMARK, 0), u32Attr(unix.FRA_FWMASK, math.MaxUint32)})
		ops = append(ops, Op{Verb: "add", Kind: KindRule, Object: m, Msg: m})
	}
	return ops
}

// connect returns the batches that release the namespace's side.
func (p *planner) connect() []Batch {
	var wake []Op
	asleep := false
	for i := range p.links {
		l := &p.links[i]
		var m rawnl.Message
		switch {
		case p.held(l) && !l.protoDown():
			m = encodeLink(unix.AF_UNSPEC, l.index, 0, 0, []rawnl.Attr{{Type: unix.IFLA_PROTO_DOWN, Data: []byte{0}}})
		case p.asleep(l) && l.flags&iffUp != 0:
			asleep = true
			m = encodeLink(unix.AF_UNSPEC, l.index, iffUp, iffUp, nil)
		default:
			continue
		}
		wake = append(wake, Op{Verb: "set", Kind: KindLink, Object: p.msgs[l.index], Msg: m})
	}
	batches := []Batch{{Name: "links up", Carriers: true, Ops: wake}}
	p.awake = true
	if asleep {
		batches = append(batches, Batch{Name: "addresses", Settle: KindAddress, Ops: p.addresses()})
	}
	nexthops := p.nexthops()
	nexthopsWaited := len(p.ups) > 0 && len(nexthops) > 0
	if asleep || nexthopsWaited {
		batches = append(batches, p.ipv6On())
		ruled := slices.ContainsFunc(p.s.Messages[KindRule], func(m rawnl.Message) bool { return !implicit(KindRule, m) })
		if ruled {
			batches = append(batches, Batch{Name: "rules for gateways", Ops: rulesForGateways()})
		}
		if nexthopsWaited {
			batches = append(batches, Batch{Name: "nexthops", Patient: true, Ops: nexthops}, Batch{Name: "forwarding entries", Settle: KindFDB, Ops: p.fdb()})
		}
		routes, order := p.routes()
		batches = append(batches, Batch{Name: "routes", Settle: KindRoute, Ops: routes}, Batch{Name: "order of routes", Ops: order})
		if ruled {
			batches = append(batches, Batch{Name: "rules", Settle: KindRule, Ops: p.replay(KindRule, ruleAdd)})
		}
	}
	return append(batches, p.lateSysctls(), Batch{Name: "states of links", Ops: p.states()}, Batch{Name: "neighbours", Ops: p.neighbours()})
}

// Disconnect cuts the namespace n from its host: the host's side of each uplink goes down, which takes the
// host's routes through it along; links on a parent device lose their carrier or go down. [Connect] undoes it.
func Disconnect(ctx context.Context, n *ns.NS, s *State, opts BuildOptions) error {
	b, err := newBuilder(n, s, opts)
	if err != nil {
		return fmt.Errorf("disconnect namespace: %w", err)
	}
	defer b.close()
	peers, err := b.peers(ctx)
	if err != nil {
		return fmt.Errorf("disconnect namespace: %w", err)
	}
	var outside, inside []Op
	for i := range s.uplinks {
		if u := &s.uplinks[i]; u.pair() {
			outside = append(outside, Op{
				Verb: "set", Kind: KindLink, Host: true,
				Object: encodeLink(unix.AF_UNSPEC, peers[u.Index], 0, 0, []rawnl.Attr{strAttr(unix.IFLA_IFNAME, u.Peer)}),
				Msg:    encodeLink(unix.AF_UNSPEC, peers[u.Index], 0, iffUp, nil),
			})
		}
	}
	p, err := newPlanner(s, Site{})
	if err != nil {
		return fmt.Errorf("disconnect namespace: %w", err)
	}
	for i := range p.links {
		l := &p.links[i]
		switch {
		case p.held(l):
			inside = append(inside, Op{Verb: "set", Kind: KindLink, Object: p.msgs[l.index], Msg: encodeLink(unix.AF_UNSPEC, l.index, 0, 0, []rawnl.Attr{{Type: unix.IFLA_PROTO_DOWN, Data: []byte{1}}})})
		case p.asleep(l):
			inside = append(inside, Op{Verb: "set", Kind: KindLink, Object: p.msgs[l.index], Msg: encodeLink(unix.AF_UNSPEC, l.index, 0, iffUp, nil)})
		}
	}
	if err := b.send(ctx, b.host.nl, outside); err != nil {
		return fmt.Errorf("disconnect namespace: %w", err)
	}
	if err := b.send(ctx, b.nl, inside); err != nil {
		return fmt.Errorf("disconnect namespace: %w", err)
	}
	return nil
}

// RemoveUplinks deletes the host's side of the veth uplinks of a [State], and with it the routes and addresses
// on it; the other ends vanish as well. A link counts as the State's only if its name, its index and its
// address are those that were captured, so that a namesake is safe. It is slow (the kernel waits for a grace
// period for each link) and belongs after the move.
func RemoveUplinks(ctx context.Context, uplinks []Uplink, opts BuildOptions) error {
	h, err := openHost(opts.Host)
	if err != nil {
		return fmt.Errorf("remove uplinks: %w", err)
	}
	defer h.close(opts.Host)
	var errs []error
	for i := range uplinks {
		u := &uplinks[i]
		if !u.pair() || u.Peer == "" {
			continue
		}
		l, _, err := h.linkByName(ctx, u.Peer)
		if errors.Is(err, errNoLink) {
			continue
		}
		if err == nil && l.kind == u.Kind && l.index == u.PeerIndex && l.mac().String() == u.MAC {
			err = h.deleteLink(ctx, &l)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("remove uplink %s: %w", u.Name, err))
		}
	}
	return errors.Join(errs...)
}

// Preflight returns everything on the host that stands in the way of [Build], all of it at once. Nothing is
// changed.
func Preflight(ctx context.Context, s *State, opts BuildOptions) ([]Loss, error) {
	h, err := openHost(opts.Host)
	if err != nil {
		return nil, fmt.Errorf("preflight: %w", err)
	}
	defer h.close(opts.Host)
	var problems []Loss
	add := func(u *Uplink, remedy, reason string, args ...any) {
		problems = append(problems, Loss{Kind: "uplink", Object: u.Name, Reason: fmt.Sprintf(reason, args...), Remedy: remedy})
	}
	for name := range opts.Uplinks {
		if !slices.ContainsFunc(s.uplinks, func(u Uplink) bool { return u.Name == name }) {
			problems = append(problems, Loss{Kind: "uplink", Object: name, Reason: "the namespace has no uplink of this name"})
		}
	}
	slices.SortFunc(problems, func(a, b Loss) int { return strings.Compare(a.Object, b.Object) })
	peers := map[string]string{}
	for i := range s.uplinks {
		u := &s.uplinks[i]
		t := u.Target(opts.Uplinks)
		if !u.pair() {
			h.preflightParent(ctx, u, t, add)
			continue
		}
		switch other, taken := peers[t.Peer]; {
		case t.Peer == "":
			add(u, "--uplink "+u.Name+"=PEER[@BRIDGE]", "its other end was in a namespace that is not the source host's")
		case checkIfName(t.Peer) != nil:
			add(u, "", "%q can't name a link", t.Peer)
		case taken:
			add(u, "--uplink "+u.Name+"=PEER[@BRIDGE]", "uplink %s uses the name %s for its host side too", other, t.Peer)
		default:
			peers[t.Peer] = u.Name
			if _, _, err := h.linkByName(ctx, t.Peer); err == nil {
				add(u, "--uplink "+u.Name+"=PEER[@BRIDGE]", "the host has a link %s already", t.Peer)
			}
		}
		if t.Bridge != "" {
			l, _, err := h.linkByName(ctx, t.Bridge)
			switch {
			case err != nil:
				add(u, "create the bridge, or --uplink "+u.Name+"="+t.Peer+"@BRIDGE", "the host has no bridge %s", t.Bridge)
			case l.kind != "bridge" && l.kind != "vrf" && l.kind != "openvswitch":
				add(u, "--uplink "+u.Name+"="+t.Peer+"@BRIDGE", "%s is not a bridge", t.Bridge)
			}
		}
	}
	clashes, err := h.addressClashes(ctx, s)
	if err != nil {
		return nil, fmt.Errorf("preflight: %w", err)
	}
	large, err := h.tooLarge(ctx, s, opts.Uplinks)
	if err != nil {
		return nil, fmt.Errorf("preflight: %w", err)
	}
	fresh, err := freshLinks(ctx)
	if err != nil {
		return nil, fmt.Errorf("preflight: %w", err)
	}
	misplaced, err := s.misplaced(fresh)
	if err != nil {
		return nil, fmt.Errorf("preflight: %w", err)
	}
	return slices.Concat(problems, clashes, large, misplaced), nil
}

func (h *host) preflightParent(ctx context.Context, u *Uplink, t UplinkTarget, add func(*Uplink, string, string, ...any)) {
	if t.Parent == "" {
		add(u, "--uplink "+u.Name+"=DEVICE", "its parent device was in a namespace that is not the source host's")
	} else if _, _, err := h.linkByName(ctx, t.Parent); err != nil {
		add(u, "--uplink "+u.Name+"=DEVICE", "the host has no device %s", t.Parent)
	}
}

// addressClashes finds addresses of the namespace that the host itself has: answers for them would never
// reach the namespace.
func (h *host) addressClashes(ctx context.Context, s *State) ([]Loss, error) {
	own := map[string]string{}
	for _, a := range s.Addresses() {
		if a.Device != "lo" && !a.Prefix.Addr().IsLinkLocalUnicast() {
			own[a.Prefix.Addr().String()] = a.Device
		}
	}
	if len(s.uplinks) == 0 {
		return nil, nil
	}
	var clashes []Loss
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		msgs, err := h.nl.Dump(ctx, rawnl.Message{Type: unix.RTM_GETADDR, Data: []byte{family, 0, 0, 0, 0, 0, 0, 0}})
		if err != nil {
			return nil, fmt.Errorf("addresses of the host: %w", err)
		}
		for _, m := range msgs {
			a, err := parseAddress(m)
			if err != nil {
				continue
			}
			addr, _ := a.local()
			if dev, ok := own[addr.String()]; ok {
				clashes = append(clashes, Loss{
					Kind: "address", Object: fmt.Sprintf("%s dev %s", addr, dev),
					Reason: "the host has this address itself", Remedy: "remove it from the host",
				})
			}
		}
	}
	return clashes, nil
}
