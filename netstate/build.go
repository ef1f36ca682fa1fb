package netstate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/genl"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// BuildOptions of [Build], [Connect] and [Preflight]. The zero value attaches the uplinks in the caller's
// namespace as they were attached on the source host.
type BuildOptions struct {
	Host    *ns.NS                  // where uplinks end; nil is the caller's own namespace
	Uplinks map[string]UplinkTarget // by inner interface name; what is not there is as on the source host
	// Note is told of each change of the host before the change is made, so that [UndoHostChange] can take it back,
	// in another process if need be. Its error stops the build before the change. nil if nobody will undo. What
	// happens inside the namespace ends with the namespace and is not told.
	Note   func(HostChange) error
	Logger *slog.Logger // nil discards
}

// OpError is the kernel's refusal of an operation.
type OpError struct {
	Op   string // in the words of ip(8)
	Err  error  // the kernel's text and errno
	Host bool   // it happened in the host's namespace
}

func (e *OpError) Error() string {
	where := ""
	if e.Host {
		where = " on the host"
	}
	return fmt.Sprintf("%s%s: %v", e.Op, where, e.Err)
}

// Unwrap returns the cause, usually a *rawnl.Error.
func (e *OpError) Unwrap() error { return e.Err }

// builder holds what is open while a namespace is built.
type builder struct {
	s     *State
	n     *ns.NS
	host  *host
	nl    *rawnl.Conn
	opts  BuildOptions
	names linkNames
	later []Sysctl // parameters that could not be set at their turn
	// The addresses of bridges that the kernel drew by lot, in the State and, once they are made, in this namespace.
	lots, redrawn map[int32]net.HardwareAddr
	log           *slog.Logger
}

func newBuilder(n *ns.NS, s *State, opts BuildOptions) (*builder, error) {
	h, err := openHost(opts.Host)
	if err != nil {
		return nil, err
	}
	nl, err := rawnl.Dial(n, unix.NETLINK_ROUTE)
	if err != nil {
		h.close(opts.Host)
		return nil, err
	}
	log := opts.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	links, err := s.links()
	if err != nil {
		nl.Close()
		h.close(opts.Host)
		return nil, err
	}
	return &builder{s: s, n: n, host: h, nl: nl, opts: opts, names: s.names(), log: log, lots: drawn(links)}, nil
}

func (b *builder) close() {
	b.nl.Close()
	b.host.close(b.opts.Host)
}

// Build turns the fresh namespace n into the State. The host's side of every veth uplink is made and stays
// administratively down, other uplinks are held mute: until [Connect] nothing that the namespace does can be
// heard. On an error the namespace is of no use any more and the caller undoes the changes that were
// noted.
func Build(ctx context.Context, n *ns.NS, s *State, opts BuildOptions) error {
	if err := s.Validate(); err != nil {
		return fmt.Errorf("build namespace: %w", err)
	}
	b, err := newBuilder(n, s, opts)
	if err != nil {
		return fmt.Errorf("build namespace: %w", err)
	}
	defer b.close()
	if err := b.build(ctx); err != nil {
		return fmt.Errorf("build namespace: %w", err)
	}
	return nil
}

func (b *builder) build(ctx context.Context) error {
	site, err := b.site(ctx)
	if err != nil {
		return err
	}
	batches, err := Plan(b.s, site)
	if err != nil {
		return err
	}
	if err := b.noteUplinks(ctx, site); err != nil {
		return err
	}
	for _, batch := range batches {
		if err := b.run(ctx, batch); err != nil {
			return fmt.Errorf("%s: %w", batch.Name, err)
		}
	}
	if err := b.buildFilters(ctx); err != nil {
		return err
	}
	if err := b.buildOthers(ctx, site); err != nil {
		return err
	}
	if err := b.finishSysctls(); err != nil {
		return err
	}
	return b.buildHostSide(ctx, site)
}

// site looks up what a Plan needs to know of the host and of the fresh namespace.
func (b *builder) site(ctx context.Context) (Site, error) {
	site := Site{
		HostFD: b.host.ns.Fd(), NSFD: b.n.Fd(),
		Uplinks: map[string]UplinkTarget{}, Parents: map[string]int32{}, Present: map[string]bool{}, Peers: map[string]int32{},
	}
	free := int32(0) // where an index on the host is, after all the others
	for i := range b.s.uplinks {
		u := &b.s.uplinks[i]
		t := u.Target(b.opts.Uplinks)
		if u.pair() && t.Peer == "" {
			return Site{}, fmt.Errorf("uplink %s: no name is known for its host side", u.Name)
		}
		if t.Parent != "" {
			l, _, err := b.host.linkByName(ctx, t.Parent)
			if err != nil {
				return Site{}, fmt.Errorf("uplink %s: parent device %s: %w", u.Name, t.Parent, err)
			}
			site.Parents[t.Parent] = l.index
		}
		site.Uplinks[u.Name] = t
		if u.Kind == "netkit" {
			if free == 0 {
				links, err := dumpLinks(ctx, b.host.nl)
				if err != nil {
					return Site{}, err
				}
				for i := range links {
					free = max(free, links[i].index)
				}
			}
			free++
			site.Peers[u.Name] = free
		}
	}
	fresh, err := dumpLinks(ctx, b.nl)
	if err != nil {
		return Site{}, err
	}
	for i := range fresh {
		l := &fresh[i]
		if !l.loopback() && !l.fallback() {
			return Site{}, fmt.Errorf("the namespace is not fresh: it has link %s", l.name)
		}
		site.Present[l.name] = b.names[l.index] == l.name
	}
	misplaced, err := b.s.misplaced(fresh)
	if err != nil {
		return Site{}, err
	}
	if len(misplaced) > 0 {
		return Site{}, errors.New(misplaced[0].String())
	}
	return site, nil
}

// noteUplinks checks that the names of the peers are free and notes that they will be taken. A peer that is there
// already is not ours to remove, so its name is refused before anything is noted.
func (b *builder) noteUplinks(ctx context.Context, site Site) error {
	var changes []HostChange
	for i := range b.s.uplinks {
		u := &b.s.uplinks[i]
		if !u.pair() {
			continue // lives in the namespace and ends with it
		}
		peer := site.Uplinks[u.Name].Peer
		if _, _, err := b.host.linkByName(ctx, peer); err == nil {
			return fmt.Errorf("uplink %s: the host has a link %s already", u.Name, peer)
		} else if !errors.Is(err, errNoLink) {
			return fmt.Errorf("uplink %s: %w", u.Name, err)
		}
		changes = append(changes, HostChange{Kind: hostLink, Name: peer, Inner: u.Index})
	}
	if b.opts.Note == nil || len(changes) == 0 {
		return nil
	}
	id, err := b.host.identify(ctx, b.n)
	if err != nil {
		return err
	}
	for _, c := range changes {
		c.NSID = id
		if err := b.opts.Note(c); err != nil {
			return fmt.Errorf("note %s: %w", c, err)
		}
	}
	return nil
}

func (h *host) deleteLink(ctx context.Context, l *link) error {
	m := encodeLink(unix.AF_UNSPEC, l.index, 0, 0, nil)
	m.Type = unix.RTM_DELLINK
	if err := h.nl.Apply(ctx, []rawnl.Message{m}); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove link %s: %w", l.name, err)
	}
	return nil
}

// run applies one batch.
func (b *builder) run(ctx context.Context, batch Batch) error {
	ops, err := b.readdress(ctx, batch.Ops)
	if err != nil {
		return err
	}
	if batch.Settle != 0 && !b.untouched(batch.Settle) {
		have, err := b.dump(ctx, batch.Settle)
		if err != nil {
			return err
		}
		ops = settle(batch.Settle, have, ops)
	}
	deadline := time.Now().Add(patience)
	for {
		err := b.runOps(ctx, ops)
		if err == nil && batch.Carriers {
			return b.syncCarriers(ctx)
		}
		if !batch.Patient || !errors.Is(err, unix.ENETDOWN) && !errors.Is(err, unix.EHOSTUNREACH) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// syncCarriers asks for every link by itself, before which the kernel does its deferred work on the link's
// carrier (linkwatch_sync_dev, since Linux 6.8); else it takes up to a second. What is above a link follows from it, so
// that the links are asked for until none changes: an address that the kernel makes of its own with the first carrier
// of a bridge must not come after those that were carried.
func (b *builder) syncCarriers(ctx context.Context) error {
	last := map[int32]uint32{}
	for changed, pass := true, 0; changed && pass < len(b.names)+2; pass++ {
		changed = false
		for index := range b.names {
			req := encodeLink(unix.AF_UNSPEC, index, 0, 0, []rawnl.Attr{u32Attr(unix.IFLA_EXT_MASK, rtextFilterSkipStats)})
			req.Type = unix.RTM_GETLINK
			msgs, err := b.nl.Request(ctx, req)
			if err != nil && !errors.Is(err, unix.ENODEV) {
				return err
			}
			for _, m := range msgs {
				if l, err := parseLink(m); err == nil {
					changed = changed || last[index] != l.flags
					last[index] = l.flags
				}
			}
		}
	}
	return nil
}

// patience bounds the wait for the carrier of a link whose other end is up. Of a bridge it comes within a second.
const patience = 3 * time.Second

// runOps applies operations; those that go the same way are sent together.
func (b *builder) runOps(ctx context.Context, ops []Op) error {
	for len(ops) > 0 {
		n := 1
		for n < len(ops) && ops[n].way() == ops[0].way() {
			n++
		}
		if err := b.runSame(ctx, ops[:n]); err != nil {
			return err
		}
		ops = ops[n:]
	}
	return nil
}

// untouched reports whether a kind need not be settled, because only bridges have it and there is none.
func (b *builder) untouched(kind Kind) bool {
	return (kind == KindBridgeVLAN || kind == KindMDB) && !b.s.hasBridge()
}

type way int

const (
	wayInside way = iota
	wayHost
	wayTun
	waySysctl
	wayGeneric
)

func (o *Op) way() way {
	switch {
	case o.Tun != nil:
		return wayTun
	case o.Sysctl != nil:
		return waySysctl
	case o.Kind == KindGeneric:
		return wayGeneric
	case o.Host:
		return wayHost
	}
	return wayInside
}

func (b *builder) runSame(ctx context.Context, ops []Op) error {
	switch ops[0].way() {
	case wayTun:
		return b.n.Do(func() error {
			for i := range ops {
				if err := ops[i].Tun.create(); err != nil {
					return b.opError(&ops[i], err)
				}
			}
			return nil
		})
	case waySysctl:
		list := make([]Sysctl, len(ops))
		for i := range ops {
			list[i] = *ops[i].Sysctl
		}
		told, err := b.tell(ctx, list)
		if err != nil {
			return err
		}
		return b.n.Do(func() error {
			later, skipped := writeSysctls(list, told)
			b.later = append(b.later, later...)
			for _, c := range skipped {
				b.log.Info("this host has its own value", "sysctl", sysctlName(c.Path), "source", c.Value)
			}
			return nil
		})
	case wayGeneric:
		msgs := make([]rawnl.Message, len(ops))
		for i := range ops {
			msgs[i] = ops[i].Msg
		}
		plan, err := genl.Plan(msgs)
		if err != nil {
			return err
		}
		return genl.Apply(ctx, b.n, plan)
	case wayHost:
		return b.send(ctx, b.host.nl, ops)
	}
	return b.send(ctx, b.nl, ops)
}

// tell asks netlink for the parameters of devices before any is set, if it pays.
func (b *builder) tell(ctx context.Context, list []Sysctl) (told, error) {
	if !slices.ContainsFunc(list, func(c Sysctl) bool { return sysctlDevice(c.Path) != "" }) {
		return nil, nil
	}
	links, err := dumpLinks(ctx, b.nl)
	if err != nil {
		return nil, err
	}
	return tell(ctx, b.n, links)
}

// send applies operations over one socket. Routes whose gateway is not reachable yet are tried again after
// the others, as long as that helps.
func (b *builder) send(ctx context.Context, nl *rawnl.Conn, ops []Op) error {
	for {
		msgs := make([]rawnl.Message, len(ops))
		for i := range ops {
			msgs[i] = ops[i].Msg
		}
		var again []Op
		var refused error
		err := nl.ApplyEach(ctx, msgs, func(e *rawnl.Error) {
			op := &ops[e.Index]
			switch {
			case op.tolerates(e.Errno):
			case op.Kind == KindRoute && op.Verb == "add" && (e.Errno == unix.ENETUNREACH || e.Errno == unix.EHOSTUNREACH || e.Errno == unix.EINVAL):
				again = append(again, *op)
				if len(again) == 1 && refused == nil {
					refused = b.opError(op, e)
				}
			case refused == nil || len(again) > 0:
				refused, again = b.opError(op, e), nil
			}
		})
		if err != nil {
			return err
		}
		if len(again) == 0 || len(again) == len(ops) {
			return refused
		}
		ops = again
	}
}

// tolerates reports whether a refusal means that the operation's aim is reached: the kernel makes and removes
// some objects along with others, at a moment of its own.
func (o *Op) tolerates(errno unix.Errno) bool {
	switch o.Verb {
	case "add":
		if n, err := parseNeigh(o.Object); o.Kind == KindFDB && errno == unix.EPERM && err == nil && learnedFDB(&n) {
			return true // the bridge's port has no carrier yet; it will learn again
		}
		return errno == unix.EEXIST && (o.Kind == KindRoute || o.Kind == KindAddress || o.Kind == KindFDB)
	case "prefer":
		return errno == unix.EINVAL || errno == unix.ENETDOWN
	case "delete":
		return errno == unix.ESRCH || errno == unix.ENOENT || errno == unix.EADDRNOTAVAIL
	}
	return false
}

func (b *builder) opError(op *Op, err error) error {
	return &OpError{Op: op.text(b.names), Err: err, Host: op.Host}
}

// dump returns what the namespace has of a kind.
func (b *builder) dump(ctx context.Context, kind Kind) ([]rawnl.Message, error) {
	var have []rawnl.Message
	for _, d := range dumps() {
		if d.kind != kind {
			continue
		}
		msgs, err := take(ctx, b.nl, d)
		if err != nil {
			return nil, err
		}
		have = append(have, msgs...)
	}
	return have, nil
}

// finishSysctls tries once more what could not be set at its turn, because another parameter bounded it or
// the module that has it was not in use.
func (b *builder) finishSysctls() error {
	if len(b.later) == 0 {
		return nil
	}
	return b.n.Do(func() error {
		later, _ := writeSysctls(b.later, nil)
		for _, c := range later {
			if err := writeSysctl(c.Path, c.Value); err != nil {
				return err
			}
		}
		return nil
	})
}

// buildHostSide gives the host's end of each veth uplink what it had on the source host, except for being up
// and for the routes through it, which need that.
func (b *builder) buildHostSide(ctx context.Context, site Site) error {
	for i := range b.s.uplinks {
		u := &b.s.uplinks[i]
		if !u.pair() {
			continue
		}
		t := site.Uplinks[u.Name]
		peer, _, err := b.host.linkByName(ctx, t.Peer)
		if err != nil {
			return fmt.Errorf("uplink %s: host side %s: %w", u.Name, t.Peer, err)
		}
		var bridge int32
		if t.Bridge != "" {
			l, _, err := b.host.linkByName(ctx, t.Bridge)
			if err != nil {
				return fmt.Errorf("uplink %s: bridge %s: %w", u.Name, t.Bridge, err)
			}
			bridge = l.index
		}
		if err := b.send(ctx, b.host.nl, hostSide(u, peer.index, bridge)); err != nil {
			return fmt.Errorf("uplink %s: %w", u.Name, err)
		}
		settings := slices.Clone(u.Sysctls)
		err = b.host.ns.Do(func() error {
			for _, c := range settings {
				if err := writeSysctl(c.path(t.Peer), c.Value); err != nil && !errors.Is(err, unix.EACCES) {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("uplink %s: %w", u.Name, err)
		}
	}
	return nil
}

// hostSide returns the operations for the host's end of a veth uplink; bridge is the index of its master,
// or 0. The bridge port's settings apply only if the master is a bridge, as on the source host.
func hostSide(u *Uplink, peer, bridge int32) []Op {
	outer, err := parseLink(rawnl.Message{Type: unix.RTM_NEWLINK, Data: u.Link})
	if err != nil {
		outer = link{}
	}
	object := encodeLink(unix.AF_UNSPEC, peer, 0, 0, append(only(outer.attrs, unix.IFLA_LINKINFO), strAttr(unix.IFLA_IFNAME, u.Peer)))
	set := func(attrs ...rawnl.Attr) Op {
		return Op{Verb: "set", Kind: KindLink, Host: true, Object: object, Msg: encodeLink(unix.AF_UNSPEC, peer, 0, 0, attrs)}
	}
	attrs := only(outer.attrs, unix.IFLA_IFALIAS, unix.IFLA_GSO_MAX_SEGS, unix.IFLA_GSO_MAX_SIZE, unix.IFLA_GRO_MAX_SIZE,
		iflaGSOIPv4MaxSize, iflaGROIPv4MaxSize)
	if bridge != 0 {
		attrs = append(attrs, u32Attr(unix.IFLA_MASTER, uint32(bridge)))
	}
	if mode, ok := outer.ipv6(); ok {
		attrs = append(attrs, genMode(&outer, mode))
	}
	var ops []Op
	if len(attrs) > 0 {
		ops = append(ops, set(attrs...))
	}
	if port := portData(&outer); bridge != 0 && len(port) > 0 {
		ops = append(ops, set(nest(unix.IFLA_LINKINFO, strAttr(unix.IFLA_INFO_SLAVE_KIND, outer.slave), nest(unix.IFLA_INFO_SLAVE_DATA, port...))))
	}
	return append(ops, peerAddresses(u, peer)...)
}

// peerAddresses returns the operations for the addresses of the host's end of a veth uplink.
func peerAddresses(u *Uplink, peer int32) []Op {
	var ops []Op
	for _, data := range u.Addresses {
		m := rawnl.Message{Type: unix.RTM_NEWADDR, Data: data}
		a, err := parseAddress(m)
		if err != nil {
			continue
		}
		a.index = peer
		if a.family != unix.AF_INET6 {
			ops = append(ops, Op{Verb: "add", Kind: KindAddress, Host: true, Object: m, Msg: addressAdd(&a, 0)})
			continue
		}
		ops = append(ops, Op{Verb: "add", Kind: KindAddress, Host: true, Object: m, Msg: addressAdd(&a, unix.IFA_F_NODAD)},
			Op{Verb: "set", Kind: KindAddress, Host: true, Object: m, Msg: addressSettle(&a)})
	}
	return ops
}
