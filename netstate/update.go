package netstate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"reflect"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/conntrack"
	"github.com/nsmigrate/nsmigrate/netstate/genl"
	"github.com/nsmigrate/nsmigrate/netstate/ipset"
	"github.com/nsmigrate/nsmigrate/netstate/nftables"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
	"github.com/nsmigrate/nsmigrate/netstate/xfrm"
)

// ErrRebuild means that [Update] can't bring a namespace to a State: a fresh one has to be built. The error is a
// [*RebuildError], which says why.
var ErrRebuild = errors.New("the namespace has to be built anew")

// RebuildError names what can't be updated where it is.
type RebuildError struct {
	Kind   string // class of object: "link", "sysctl" ...
	Object string // in the words of ip(8)
	Err    error  // the kernel's refusal of an attempt, after which the namespace is neither the one nor the other; or nil
}

func (e *RebuildError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%v: %v", e.Err, ErrRebuild)
	}
	return fmt.Sprintf("%s %s was altered: %v", e.Kind, e.Object, ErrRebuild)
}

// Unwrap returns [ErrRebuild] and the cause.
func (e *RebuildError) Unwrap() []error { return []error{ErrRebuild, e.Err} }

// Update brings the namespace n, which [Build] made from old and [Connect] did not connect yet, to next: afterwards it
// is as if it had been built from next. What is the same in both States is left alone, so that it takes a millisecond
// where little changed while a service went on running: neighbours, connections, counters and sets of packet filters,
// forwarding entries, lifetimes; and also addresses, routes and rules.
//
// What a running service hardly changes is not updated: links and their settings, parameters, traffic control, legacy
// iptables. Then, and when the kernel refuses a change, the error is [ErrRebuild]. Both States must be valid, as those
// from [Capture], [ReadState] and [Delta.Apply] are.
func Update(ctx context.Context, n *ns.NS, old, next *State, opts BuildOptions) error {
	start := time.Now()
	err := update(ctx, n, old.orFresh(), next.orFresh(), opts)
	if err != nil {
		return fmt.Errorf("update namespace: %w", err)
	}
	if opts.Logger != nil {
		opts.Logger.Debug("updated network namespace", "namespace", n.String(), "took", time.Since(start))
	}
	return nil
}

func update(ctx context.Context, n *ns.NS, old, next *State, opts BuildOptions) error {
	if err := rebuilt(old, next); err != nil {
		return err
	}
	links, err := next.links()
	if err != nil {
		return err
	}
	b := &builder{s: next, n: n, opts: opts, names: next.names(), lots: drawn(links), log: slog.New(slog.DiscardHandler)}
	if b.nl, err = rawnl.Dial(n, unix.NETLINK_ROUTE); err != nil {
		return err
	}
	defer b.nl.Close()
	present, err := b.fallbacks(ctx)
	if err != nil {
		return err
	}
	batches, err := planUpdate(old, next, Site{Present: present})
	if err != nil {
		return err
	}
	for _, batch := range batches {
		if err := b.run(ctx, batch); err != nil {
			return refused(ctx, fmt.Errorf("%s: %w", batch.Name, err))
		}
	}
	return refused(ctx, b.updateOthers(ctx, old))
}

// refused turns the failure of an attempt into an [ErrRebuild], unless the caller gave up.
func refused(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	return &RebuildError{Err: err}
}

// rebuilt returns the error if the States differ in what is not updated. Nothing has been changed then.
func rebuilt(old, next *State) error {
	for _, k := range []Kind{KindLink, KindBridgeVLAN, KindVLANOption, KindVNI, KindTC, KindGeneric, KindNetfilter} {
		gone, come := altered(k, old, next)
		for _, part := range []struct {
			s    *State
			msgs []rawnl.Message
		}{{next, come}, {old, gone}} {
			if len(part.msgs) > 0 {
				return &RebuildError{Kind: k.String(), Object: part.s.objectText(k, part.msgs[0])}
			}
		}
	}
	if i := firstDifference(old.Sysctls, next.Sysctls); i >= 0 {
		return &RebuildError{Kind: "sysctl", Object: sysctlName(at(old.Sysctls, next.Sysctls, i).Path)}
	}
	if i := firstDifference(old.Tables, next.Tables); i >= 0 {
		return &RebuildError{Kind: "ruleset", Object: "of " + at(old.Tables, next.Tables, i).Tool}
	}
	for i := range max(len(old.uplinks), len(next.uplinks)) {
		if i >= len(old.uplinks) || i >= len(next.uplinks) || !reflect.DeepEqual(old.uplinks[i].lasting(), next.uplinks[i].lasting()) {
			return &RebuildError{Kind: "uplink", Object: at(old.uplinks, next.uplinks, i).Name}
		}
	}
	return nil
}

// lasting returns the uplink without what changes by itself on the host's side.
func (u Uplink) lasting() Uplink {
	clean := func(k Kind, list [][]byte) [][]byte {
		out := make([][]byte, len(list))
		for i, data := range list {
			out[i] = normalize(k, rawnl.Message{Data: data}).Data
		}
		return out
	}
	if u.Link != nil {
		u.Link = clean(KindLink, [][]byte{u.Link})[0]
	}
	u.Addresses, u.Routes, u.Neighs = clean(KindAddress, u.Addresses), clean(KindRoute, u.Routes), clean(KindNeigh, u.Neighs)
	return u
}

// objectText names an object of the State for people.
func (s *State) objectText(k Kind, m rawnl.Message) string {
	if l, err := parseLink(m); k == KindLink && err == nil {
		return l.name
	}
	return describe(k, m, s.names())
}

// altered returns the objects of a kind that only one of the States has, without those that are not built.
func altered(k Kind, old, next *State) (gone, come []rawnl.Message) {
	gone, come = unequal(old.Messages[k], next.Messages[k])
	if k == KindNetfilter {
		return gone, come // what an account has counted can only be stated when it is made
	}
	counts := map[string]int{}
	for _, m := range gone {
		counts[identity(k, m)]++
	}
	come = slices.DeleteFunc(come, func(m rawnl.Message) bool {
		counts[identity(k, m)]--
		return counts[identity(k, m)] >= 0 || unbuilt(k, m)
	})
	gone = slices.DeleteFunc(gone, func(m rawnl.Message) bool {
		left := counts[identity(k, m)] > 0
		counts[identity(k, m)]--
		return !left || unbuilt(k, m)
	})
	return gone, come
}

// unbuilt reports whether an object is left out when a namespace is built.
func unbuilt(k Kind, m rawnl.Message) bool {
	if k == KindGeneric {
		plan, err := genl.Plan([]rawnl.Message{m})
		return err == nil && len(plan) == 0
	}
	return spare(k, m)
}

// firstDifference returns the first place at which two lists differ, or -1.
func firstDifference[T comparable](a, b []T) int {
	if len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) {
		return -1
	}
	for i := range max(len(a), len(b)) {
		if i >= len(a) || i >= len(b) || a[i] != b[i] {
			return i
		}
	}
	return -1
}

// at returns what is at a place of the first list that is so long.
func at[T any](a, b []T, i int) T {
	if i < len(b) {
		return b[i]
	}
	return a[i]
}

// fallbacks returns the names of the fallback devices of a State that the namespace has at their place.
func (b *builder) fallbacks(ctx context.Context) (map[string]bool, error) {
	links, err := b.s.links()
	if err != nil || !slices.ContainsFunc(links, func(l link) bool { return l.fallback() }) {
		return nil, err
	}
	there, err := dumpLinks(ctx, b.nl)
	if err != nil {
		return nil, err
	}
	present := map[string]bool{}
	for i := range there {
		present[there[i].name] = b.names[there[i].index] == there[i].name
	}
	return present, nil
}

// updater plans an update.
type updater struct {
	old, next *State
	was, is   *planner
}

// planUpdate orders the rtnetlink operations that make a namespace built from old one built from next, of which
// [rebuilt] allows that.
func planUpdate(old, next *State, site Site) ([]Batch, error) {
	u := &updater{old: old, next: next}
	var err error
	if u.was, err = newPlanner(old, site); err != nil {
		return nil, err
	}
	if u.is, err = newPlanner(next, site); err != nil {
		return nil, err
	}
	addresses, err := u.addresses()
	if err != nil {
		return nil, err
	}
	nexthops := u.nexthops()
	// Routes end with what they go through, and neighbours with the last address of their device.
	derived := len(addresses) > 0 || len(nexthops) > 0
	batches := []Batch{
		{Name: "settings of links", Ops: u.endpoints()},
		{Name: "address labels", Ops: u.settle(KindAddrLabel, func(p *planner) []Op { return p.replay(KindAddrLabel, addrLabelAdd) })},
		{Name: "addresses", Ops: addresses},
		{Name: "nexthops", Patient: true, Ops: nexthops},
		{Name: "rules", Ops: u.settle(KindRule, func(p *planner) []Op { return p.replay(KindRule, ruleAdd) })},
	}
	if derived {
		routes, order := u.is.routes()
		batches = append(batches, Batch{Name: "routes", Settle: KindRoute, Ops: routes}, Batch{Name: "order of routes", Ops: order})
	} else {
		routes, order := u.routes()
		batches = append(batches, Batch{Name: "routes", Ops: routes}, Batch{Name: "order of routes", Ops: order})
	}
	neighbours := u.settle(KindNeigh, (*planner).neighbours)
	if derived {
		neighbours = append(neighbours, u.is.neighbours()...)
	}
	batches = append(batches, Batch{Name: "neighbours", Ops: neighbours})
	if len(nexthops) > 0 {
		batches = append(batches, Batch{Name: "forwarding entries", Settle: KindFDB, Ops: u.is.fdb()})
	} else {
		batches = append(batches, Batch{Name: "forwarding entries", Ops: u.settle(KindFDB, (*planner).fdb)})
	}
	batches = append(batches,
		Batch{Name: "multicast forwarding entries", Ops: u.settle(KindMDB, func(p *planner) []Op { return p.replay(KindMDB, mdbAdd) })},
		Batch{Name: "lifetimes", Ops: u.lifetimes()})
	return slices.DeleteFunc(batches, func(b Batch) bool { return len(b.Ops) == 0 && b.Settle == 0 }), nil
}

// with returns a planner that knows these messages alone of a kind.
func (p *planner) with(kind Kind, msgs []rawnl.Message) *planner {
	q, s := *p, *p.s
	s.Messages = map[Kind][]rawnl.Message{kind: msgs}
	q.s = &s
	return &q
}

// settle returns the operations that change the objects of a kind: of those in lineups that differ in anything.
func (u *updater) settle(kind Kind, plan func(*planner) []Op) []Op {
	gone, come := u.touched(kind)
	if len(gone) == 0 && len(come) == 0 {
		return nil
	}
	return exchange(kind, gone, plan(u.is.with(kind, come)))
}

// touched returns the objects of a kind that only one of the States has, and of lineups that differ in anything all of
// both.
func (u *updater) touched(kind Kind) (gone, come []rawnl.Message) {
	gone, come = unequal(u.old.Messages[kind], u.next.Messages[kind])
	if len(gone) == 0 && len(come) == 0 {
		return nil, nil
	}
	if kind == KindAddress || kind == KindRoute || kind == KindRule {
		touched := map[string]bool{}
		for _, m := range slices.Concat(gone, come) {
			name, _ := appendLineup(nil, kind, m)
			touched[string(name)] = true
		}
		var name []byte
		in := func(msgs []rawnl.Message) (list []rawnl.Message) {
			for _, m := range msgs {
				if name, _ = appendLineup(name[:0], kind, m); touched[string(name)] {
					list = append(list, m)
				}
			}
			return list
		}
		gone, come = in(u.old.Messages[kind]), in(u.next.Messages[kind])
	}
	return gone, come
}

// addresses returns the operations that change addresses; those of IPv6 are settled at once. With an address that
// manages temporary ones the kernel would make another one of these, which only a build can prevent.
func (u *updater) addresses() ([]Op, error) {
	ops := u.settle(KindAddress, (*planner).addresses)
	var added []rawnl.Message
	for _, op := range ops {
		a, err := parseAddress(op.Object)
		if op.Verb != "add" || err != nil {
			continue
		}
		added = append(added, op.Object)
		device := u.is.byIdx[a.index].name
		if a.flags&unix.IFA_F_MANAGETEMPADDR != 0 && slices.ContainsFunc(u.next.Sysctls, func(c Sysctl) bool {
			return sysctlDevice(c.Path) == device && path.Base(c.Path) == "use_tempaddr" && c.Value != "0" && c.Value != "-1" // as lo has it
		}) {
			return nil, &RebuildError{Kind: KindAddress.String(), Object: u.next.objectText(KindAddress, op.Object)}
		}
	}
	return append(ops, u.is.with(KindAddress, added).settledAddresses()...), nil
}

// nexthops returns the operations that change nexthops. When any was altered all are stated again: groups lose the
// members that are removed.
func (u *updater) nexthops() []Op {
	gone, come := altered(KindNexthop, u.old, u.next)
	if u.is.waits(true) || len(gone) == 0 && len(come) == 0 {
		return nil
	}
	var ops []Op
	for _, m := range gone {
		ops = append(ops, Op{Verb: "delete", Kind: KindNexthop, Object: m, Msg: nexthopDelete(m)})
	}
	return append(ops, u.is.nexthops()...)
}

// routes returns the operations that change routes where no address and no nexthop changed, and then those that put
// them into order. What the kernel makes for IPv6 by itself, which takes a moment, was made when the namespace was built.
func (u *updater) routes() (change, order []Op) {
	gone, come := u.touched(KindRoute)
	if len(gone) == 0 && len(come) == 0 {
		return nil, nil
	}
	var have []rawnl.Message // those that were made, in their order
	sleeping := u.was.sleeping()
	for _, m := range gone {
		r, err := parseRoute(m)
		if err == nil && !slices.ContainsFunc(sleeping, r.uses) && !u.was.waits(r.usesNexthop()) {
			have = append(have, m)
		}
	}
	add, order := u.is.with(KindRoute, come).routes()
	return slices.DeleteFunc(exchange(KindRoute, have, add), func(op Op) bool {
		r, err := parseRoute(op.Object)
		return err == nil && r.family() == unix.AF_INET6 && r.kernelMade()
	}), order
}

// lifetimes returns the operations that state again what is there and ends some day, with what is left of its life.
func (u *updater) lifetimes() []Op {
	var ops []Op
	for _, k := range []Kind{KindAddress, KindRoute} {
		gone, come := unequal(u.old.Messages[k], u.next.Messages[k])
		was := map[string]bool{}
		for _, m := range gone {
			was[identity(k, m)] = true
		}
		come = slices.DeleteFunc(come, func(m rawnl.Message) bool { return !mortal(k, m) || !was[identity(k, m)] })
		if k == KindRoute {
			again, _ := u.is.with(k, come).routes()
			ops = append(ops, again...)
			continue
		}
		for _, m := range come {
			if a, err := parseAddress(m); err == nil && u.is.byIdx[a.index] != nil {
				ops = append(ops, Op{Verb: "set", Kind: k, Object: m, Msg: addressSettle(&a)})
			}
		}
	}
	return ops
}

// mortal reports whether an address or route ends by itself.
func mortal(k Kind, m rawnl.Message) bool {
	switch k {
	case KindAddress:
		a, err := parseAddress(normalizeAddress(m))
		return err == nil && slices.ContainsFunc(a.attrs, func(a rawnl.Attr) bool { return a.Kind()&^1 == lifetimeMark })
	case KindRoute:
		r, err := parseRoute(m)
		return err == nil && r.expires() > 0
	}
	return false
}

// endpoints returns the operations for settings of links that packets change: the addresses at which WireGuard's peers
// were heard last.
func (u *updater) endpoints() []Op {
	_, come := unequal(u.old.Messages[KindGeneric], u.next.Messages[KindGeneric])
	come = slices.DeleteFunc(come, func(m rawnl.Message) bool { return unbuilt(KindGeneric, m) })
	return u.is.with(KindGeneric, come).linkSettings()
}

// updateOthers updates what has a package of its own.
func (b *builder) updateOthers(ctx context.Context, old *State) error {
	for _, k := range []struct {
		kind   Kind
		update func(gone, come, old, next []rawnl.Message) error
	}{
		{KindIPSet, func(gone, come, _, next []rawnl.Message) error {
			plan, err := ipset.Change(gone, come, next)
			if err != nil {
				return err
			}
			return ipset.Apply(ctx, b.n, plan)
		}},
		{KindNFTables, func(_, _, old, next []rawnl.Message) error { return nftables.Update(ctx, b.n, old, next) }},
		{KindConntrack, func(gone, come, _, next []rawnl.Message) error {
			return conntrack.Update(ctx, b.n, gone, come, next)
		}},
		{KindXFRM, func(_, _, old, next []rawnl.Message) error { return xfrm.Replace(ctx, b.n, old, next) }},
	} {
		was, is := old.Messages[k.kind], b.s.Messages[k.kind]
		gone, come := unequal(was, is)
		if len(gone) == 0 && len(come) == 0 {
			continue
		}
		if err := k.update(gone, come, was, is); err != nil {
			return err
		}
	}
	return nil
}
