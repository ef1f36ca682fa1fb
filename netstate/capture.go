package netstate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

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

// CaptureOptions of [Capture]. The zero value captures everything and looks for the other ends of uplinks
// in the caller's namespace.
type CaptureOptions struct {
	Host *ns.NS // where uplinks end; nil is the caller's own namespace
	// Prev is an earlier capture of the same namespace. What only a user changes (sysctls, legacy iptables,
	// the host's side of uplinks) is taken from it; all that netlink dumps quickly is taken again. What did not change
	// is shared with it.
	Prev   *State
	Logger *slog.Logger // nil discards
}

// dump is one request of a capture.
type dump struct {
	kind Kind
	req  rawnl.Message
	// optional dumps exist only if the kernel was built with the protocol.
	optional bool
	// among says that the dump is of interest only if the namespace has a link of one of these kinds.
	among []string
	// sign is a file that is there if the kernel has the protocol: a family that it lacks is answered with the objects
	// of all families, which may be a million.
	sign string
}

// of reports whether a dump can have an answer in a namespace with these links.
func (d *dump) of(links []link) bool {
	if d.sign != "" {
		if _, err := os.Stat(d.sign); err != nil {
			return false
		}
	}
	return d.among == nil || slices.ContainsFunc(links, func(l link) bool { return slices.Contains(d.among, l.kind) })
}

// get returns a request of rtnetlink: a header that begins with the address family.
func get(typ uint16, header int, family byte) rawnl.Message {
	m := rawnl.Message{Type: typ, Data: make([]byte, header)}
	m.Data[0] = family
	return m
}

// linkDump is the request for links.
func linkDump() dump {
	req := get(unix.RTM_GETLINK, unix.SizeofIfInfomsg, unix.AF_UNSPEC)
	req.Data = rawnl.AppendAttrs(req.Data, []rawnl.Attr{u32Attr(unix.IFLA_EXT_MASK, rtextFilterSkipStats)})
	return dump{kind: KindLink, req: req}
}

// dumps lists the requests for rtnetlink's other kinds.
func dumps() []dump {
	proxies := get(unix.RTM_GETNEIGH, sizeofNdMsg, unix.AF_UNSPEC)
	proxies.Data[10] = unix.NTF_PROXY
	vlans := get(unix.RTM_GETLINK, unix.SizeofIfInfomsg, unix.AF_BRIDGE)
	vlans.Data = rawnl.AppendAttrs(vlans.Data, []rawnl.Attr{u32Attr(unix.IFLA_EXT_MASK, rtextFilterBRVlan|rtextFilterMRP|rtextFilterCFM|rtextFilterMST)})
	globals := get(rtmGetVLAN, sizeofTableMsg, unix.AF_BRIDGE)
	globals.Data = rawnl.AppendAttrs(globals.Data, []rawnl.Attr{u32Attr(vlandbDumpFlags, vlandbDumpGlobal)})
	bridges := []string{"bridge"}
	return []dump{
		{kind: KindAddress, req: get(unix.RTM_GETADDR, unix.SizeofIfAddrmsg, unix.AF_UNSPEC)},
		{kind: KindNexthop, req: get(unix.RTM_GETNEXTHOP, sizeofNhMsg, unix.AF_UNSPEC)},
		{kind: KindRoute, req: get(unix.RTM_GETROUTE, unix.SizeofRtMsg, unix.AF_INET)},
		{kind: KindRoute, req: get(unix.RTM_GETROUTE, unix.SizeofRtMsg, unix.AF_INET6), optional: true},
		{kind: KindRoute, req: get(unix.RTM_GETROUTE, unix.SizeofRtMsg, unix.AF_MPLS), sign: sysctlRoot + "/mpls"},
		{kind: KindRule, req: get(unix.RTM_GETRULE, sizeofRuleHdr, unix.AF_INET)},
		{kind: KindRule, req: get(unix.RTM_GETRULE, sizeofRuleHdr, unix.AF_INET6), optional: true},
		{kind: KindRule, req: get(unix.RTM_GETRULE, sizeofRuleHdr, rtnlFamilyIPMR), optional: true},
		{kind: KindRule, req: get(unix.RTM_GETRULE, sizeofRuleHdr, rtnlFamilyIP6MR), optional: true},
		{kind: KindNeigh, req: get(unix.RTM_GETNEIGH, sizeofNdMsg, unix.AF_UNSPEC)},
		{kind: KindNeigh, req: proxies},
		{kind: KindBridgeVLAN, req: vlans, among: bridges},
		{kind: KindVLANOption, req: get(rtmGetVLAN, sizeofTableMsg, unix.AF_BRIDGE), among: bridges, optional: true},
		{kind: KindVLANOption, req: globals, among: bridges, optional: true},
		{kind: KindVNI, req: get(rtmGetTunnel, sizeofTableMsg, unix.AF_BRIDGE), among: []string{"vxlan"}, optional: true},
		{kind: KindFDB, req: get(unix.RTM_GETNEIGH, sizeofNdMsg, unix.AF_BRIDGE)},
		{kind: KindMDB, req: get(unix.RTM_GETMDB, sizeofBridgePortMsg, unix.AF_BRIDGE), among: []string{"bridge", "vxlan"}, optional: true},
		{kind: KindAddrLabel, req: get(unix.RTM_GETADDRLABEL, sizeofAddrLabel, unix.AF_INET6), optional: true},
	}
}

// take runs one dump and keeps of its answer what has a meaning beyond the moment.
func take(ctx context.Context, nl *rawnl.Conn, d dump) ([]rawnl.Message, error) {
	msgs, err := fetch(ctx, nl, d)
	return d.tidy(msgs), err
}

// fetch runs one dump.
func fetch(ctx context.Context, nl *rawnl.Conn, d dump) ([]rawnl.Message, error) {
	msgs, err := nl.Dump(ctx, d.req)
	if d.optional && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT)) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("dump %ss: %w", d.kind, err)
	}
	return msgs, nil
}

// tidy keeps of a dump's answer what has a meaning beyond the moment.
func (d *dump) tidy(msgs []rawnl.Message) []rawnl.Message {
	switch d.kind {
	case KindLink:
		for i := range msgs {
			if len(msgs[i].Data) >= unix.SizeofIfInfomsg {
				msgs[i] = tidyLink(msgs[i])
			}
		}
	case KindAddress:
		msgs = slices.DeleteFunc(msgs, func(m rawnl.Message) bool { return len(m.Data) == 0 || !slices.Contains(familiesOf(d.kind), m.Data[0]) })
	case KindRule: // those of multicast routing that every namespace has, where the kernel has more than one table
		msgs = slices.DeleteFunc(msgs, func(m rawnl.Message) bool {
			return len(m.Data) == 0 || m.Data[0] >= rtnlFamilyIPMR && implicit(d.kind, m)
		})
	case KindRoute: // a kernel without strict checking for a family answers with all of them
		msgs = slices.DeleteFunc(msgs, func(m rawnl.Message) bool { return len(m.Data) == 0 || m.Data[0] != d.req.Data[0] })
	case KindNeigh:
		return keep(msgs, func(m rawnl.Message) (rawnl.Message, bool) {
			n, err := parseNeigh(m)
			return tidyNeigh(m), err == nil && n.carried() && n.family() != unix.AF_BRIDGE
		})
	case KindFDB:
		return keep(msgs, func(m rawnl.Message) (rawnl.Message, bool) { return tidyNeigh(m), fdbCarried(m) })
	case KindMDB:
		var entries []rawnl.Message
		for _, m := range msgs {
			entries = append(entries, splitMDB(m)...)
		}
		return entries
	case KindBridgeVLAN:
		return keep(msgs, tidyVLANs)
	case KindVLANOption:
		return keep(msgs, tidyVLANOptions)
	case KindVNI:
		return keep(msgs, tidyVNIs)
	}
	return msgs
}

// keep applies a function to messages and returns those for which it is true.
func keep(msgs []rawnl.Message, tidy func(rawnl.Message) (rawnl.Message, bool)) []rawnl.Message {
	var kept []rawnl.Message
	for _, m := range msgs {
		if t, ok := tidy(m); ok {
			kept = append(kept, t)
		}
	}
	return kept
}

// Capture reads the state of a namespace. Each kind of object is dumped consistently; a dump that the kernel
// marks as interrupted is taken again. Objects that can't be carried are in the State's Losses.
func Capture(ctx context.Context, n *ns.NS, opts CaptureOptions) (*State, error) {
	start := time.Now()
	s, err := capture(ctx, n, opts)
	if err == nil && opts.Logger != nil {
		opts.Logger.Debug("captured network state", "namespace", n.String(), "took", time.Since(start), "links", len(s.Messages[KindLink]),
			"routes", len(s.Messages[KindRoute]), "losses", len(s.losses))
	}
	return s, err
}

func capture(ctx context.Context, n *ns.NS, opts CaptureOptions) (*State, error) {
	nl, err := rawnl.Dial(n, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("capture: %w", err)
	}
	defer nl.Close()
	s := &State{Kernel: kernelRelease(), Messages: map[Kind][]rawnl.Message{}}
	links, err := s.captureLinks(ctx, nl)
	if err != nil {
		return nil, fmt.Errorf("capture: %w", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.captureObjects(ctx, n, nl, links, opts.Prev) })
	if p := opts.Prev; p != nil {
		s.Sysctls, s.uplinks, s.others = p.Sysctls, p.uplinks, p.others
	} else {
		g.Go(func() (err error) {
			s.Sysctls, err = captureSysctls(ctx, n, links)
			return err
		})
		g.Go(func() (err error) {
			s.uplinks, s.others, err = captureUplinksAndLosses(ctx, n, opts.Host, links)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("capture: %w", err)
	}
	s.losses = append(s.losses, s.others...)
	if opts.Prev != nil {
		s.share(opts.Prev)
	}
	return s, nil
}

// captureLinks reads the links, on which what else there is depends.
func (s *State) captureLinks(ctx context.Context, nl *rawnl.Conn) ([]link, error) {
	msgs, err := take(ctx, nl, linkDump())
	if err != nil {
		return nil, err
	}
	s.Messages[KindLink] = msgs
	links, err := s.links()
	if err != nil {
		return nil, err
	}
	tidyPorts(msgs, links)
	for i := range links {
		if loss, lost := checkLink(&links[i]); lost {
			s.losses = append(s.losses, loss)
		}
	}
	return links, nil
}

// captureObjects reads what netlink dumps.
func (s *State) captureObjects(ctx context.Context, n *ns.NS, nl *rawnl.Conn, links []link, prev *State) error {
	shown := 0 // nexthops of IPv6 routes
	names, kinds := make(linkNames, len(links)), make(map[int32]string, len(links))
	for i := range links {
		names[links[i].index], kinds[links[i].index] = links[i].name, links[i].kind
	}
	for _, d := range dumps() {
		if !d.of(links) {
			continue
		}
		msgs, err := fetch(ctx, nl, d)
		if err != nil {
			return err
		}
		if d.kind == KindRoute && d.req.Data[0] == unix.AF_INET6 {
			shown = hopsOf(msgs)
		}
		msgs, losses := sift(d.kind, msgs, names, kinds)
		s.losses = append(s.losses, losses...)
		if msgs = d.tidy(msgs); len(msgs) > 0 {
			s.Messages[d.kind] = append(s.Messages[d.kind], msgs...)
		}
	}
	proc, err := readProcNet(n)
	if err != nil {
		return err
	}
	groups, losses := multicastAddresses(proc.devMcast, links)
	s.Messages[KindFDB] = append(s.Messages[KindFDB], groups...)
	hidden, err := hiddenRoutes(ctx, n, nl, shown, proc)
	if err != nil {
		return err
	}
	qdiscs, err := hiddenQdiscs(ctx, nl, links)
	if err != nil {
		return err
	}
	s.losses = slices.Concat(s.losses, hidden, qdiscs, losses)
	if err := s.captureFilters(ctx, n, prev); err != nil {
		return err
	}
	return s.captureOthers(ctx, n, names, kinds)
}

func captureUplinksAndLosses(ctx context.Context, n, host *ns.NS, links []link) ([]Uplink, []Loss, error) {
	nl, err := rawnl.Dial(n, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, nil, err
	}
	defer nl.Close()
	uplinks, err := captureUplinks(ctx, nl, host, links)
	if err != nil {
		return nil, nil, err
	}
	losses, err := findLosses(ctx, n, host, nl, links, uplinks)
	return uplinks, losses, err
}

// links decodes the State's links.
func (s *State) links() ([]link, error) {
	links := make([]link, 0, len(s.Messages[KindLink]))
	for i, m := range s.Messages[KindLink] {
		l, err := parseLink(m)
		if err != nil {
			return nil, fmt.Errorf("link %d: %w", i, err)
		}
		links = append(links, l)
	}
	return links, nil
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

// headerOf returns the size of the fixed header of a kind's messages, and the one message type it holds.
func headerOf(k Kind) (size int, typ uint16) {
	switch k {
	case KindLink, KindBridgeVLAN:
		return unix.SizeofIfInfomsg, unix.RTM_NEWLINK
	case KindAddress:
		return unix.SizeofIfAddrmsg, unix.RTM_NEWADDR
	case KindNexthop:
		return sizeofNhMsg, unix.RTM_NEWNEXTHOP
	case KindRoute:
		return unix.SizeofRtMsg, unix.RTM_NEWROUTE
	case KindRule:
		return sizeofRuleHdr, unix.RTM_NEWRULE
	case KindNeigh, KindFDB:
		return sizeofNdMsg, unix.RTM_NEWNEIGH
	case KindMDB:
		return sizeofBridgePortMsg, unix.RTM_NEWMDB
	case KindVLANOption:
		return sizeofTableMsg, rtmNewVLAN
	case KindVNI:
		return sizeofTableMsg, rtmNewTunnel
	case KindAddrLabel:
		return sizeofAddrLabel, unix.RTM_NEWADDRLABEL
	}
	return 0, 0
}

// Validate checks a State that comes from a file: only messages of known types and families, with
// well-formed headers and attributes, and nothing that would reach beyond the namespace.
func (s *State) Validate() error {
	for _, k := range kinds() {
		for i, m := range s.Messages[k] {
			if err := validateMessage(k, m); err != nil {
				return fmt.Errorf("%w: %s %d: %w", ErrMalformed, k, i, err)
			}
		}
	}
	return s.validateRest()
}

func validateMessage(k Kind, m rawnl.Message) error {
	switch k {
	case KindNFTables:
		return nftables.Validate(m)
	case KindConntrack:
		return conntrack.Validate(m)
	case KindTC:
		return tc.Validate(m)
	case KindIPSet:
		return ipset.Validate(m)
	case KindXFRM:
		return xfrm.Validate(m)
	case KindGeneric:
		return genl.Validate(m)
	case KindNetfilter:
		return netfilter.Validate(m)
	}
	size, typ := headerOf(k)
	if m.Type != typ || m.Flags != 0 {
		return fmt.Errorf("message of type %d with flags %#x", m.Type, m.Flags)
	}
	if len(m.Data) < size {
		return errShort
	}
	attrs := m.Data[size:]
	if err := rawnl.Check(attrs); err != nil {
		return err
	}
	if family := m.Data[0]; !slices.Contains(familiesOf(k), family) {
		return fmt.Errorf("address family %d", family)
	}
	switch k {
	case KindLink:
		return validateLink(m)
	case KindAddress:
		if rawnl.Get(attrs, unix.IFA_TARGET_NETNSID) != nil {
			return errors.New("names another namespace")
		}
	case KindRoute, KindNexthop:
		return validateEncap(attrs)
	}
	return nil
}

func familiesOf(k Kind) []byte {
	switch k {
	case KindLink:
		return []byte{unix.AF_UNSPEC}
	case KindBridgeVLAN, KindFDB, KindMDB, KindVLANOption, KindVNI:
		return []byte{unix.AF_BRIDGE}
	case KindAddrLabel:
		return []byte{unix.AF_INET6}
	case KindNexthop:
		return []byte{unix.AF_UNSPEC, unix.AF_INET, unix.AF_INET6}
	case KindRoute:
		return []byte{unix.AF_INET, unix.AF_INET6, unix.AF_MPLS}
	case KindRule:
		return []byte{unix.AF_INET, unix.AF_INET6, rtnlFamilyIPMR, rtnlFamilyIP6MR}
	}
	return []byte{unix.AF_INET, unix.AF_INET6}
}

// validateEncap refuses encapsulations whose attributes hold descriptors of this process.
func validateEncap(attrs []byte) error {
	for a := range rawnl.Each(attrs) {
		if a.Kind() == unix.RTA_MULTIPATH {
			for hop := range nexthopsOf(a.Data) {
				inner := hop[unix.SizeofRtNexthop:]
				if err := rawnl.Check(inner); err != nil {
					return err
				}
				if err := validateEncap(inner); err != nil {
					return err
				}
			}
		}
	}
	if programmed(attrs) {
		return errors.New("encapsulation by a BPF program")
	}
	return nil
}

func validateLink(m rawnl.Message) error {
	l, err := parseLink(m)
	if err != nil {
		return err
	}
	if l.index <= 0 {
		return fmt.Errorf("interface index %d", l.index)
	}
	return checkIfName(l.name)
}

// checkIfName applies the kernel's rule for interface names (dev_valid_name).
func checkIfName(name string) error {
	if name == "" || len(name) >= unix.IFNAMSIZ || name == "." || name == ".." {
		return fmt.Errorf("interface name %q", name)
	}
	for i := range len(name) {
		if c := name[i]; c == '/' || c == ':' || c <= ' ' {
			return fmt.Errorf("interface name %q", name)
		}
	}
	return nil
}

func (s *State) validateRest() error {
	for _, c := range s.Sysctls {
		if !sysctlPathValid(c.Path) {
			return fmt.Errorf("%w: sysctl path %q", ErrMalformed, c.Path)
		}
	}
	for _, t := range s.Tables {
		if err := iptables.Validate(t); err != nil {
			return fmt.Errorf("%w: %w", ErrMalformed, err)
		}
	}
	seen := map[int32]bool{}
	names := map[string]bool{}
	for _, m := range s.Messages[KindLink] {
		l, err := parseLink(m)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrMalformed, err)
		}
		if seen[l.index] || names[l.name] {
			return fmt.Errorf("%w: link %d %s is there twice", ErrMalformed, l.index, l.name)
		}
		seen[l.index], names[l.name] = true, true
	}
	for i := range s.uplinks {
		if err := s.uplinks[i].validate(); err != nil {
			return fmt.Errorf("%w: uplink %q: %w", ErrMalformed, s.uplinks[i].Name, err)
		}
	}
	return nil
}

// validate checks an uplink as [State.Validate] checks messages.
func (u *Uplink) validate() error {
	for _, name := range []string{u.Name, u.Peer, u.Bridge, u.Parent} {
		if name == "" && u.Name != "" {
			continue
		}
		if err := checkIfName(name); err != nil {
			return err
		}
	}
	parts := []struct {
		kind Kind
		list [][]byte
	}{{KindAddress, u.Addresses}, {KindRoute, u.Routes}, {KindNeigh, u.Neighs}}
	if u.Link != nil {
		parts = append(parts, struct {
			kind Kind
			list [][]byte
		}{KindLink, [][]byte{u.Link}})
	}
	for _, p := range parts {
		_, typ := headerOf(p.kind)
		for _, b := range p.list {
			if err := validateMessage(p.kind, rawnl.Message{Type: typ, Data: b}); err != nil {
				return err
			}
		}
	}
	for _, c := range u.Sysctls {
		if !sysctlPathValid(c.Name) {
			return fmt.Errorf("sysctl %q", c.Name)
		}
	}
	return nil
}
