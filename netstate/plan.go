package netstate

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"net"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/conntrack"
	"github.com/nsmigrate/nsmigrate/netstate/genl"
	"github.com/nsmigrate/nsmigrate/netstate/ipset"
	"github.com/nsmigrate/nsmigrate/netstate/netfilter"
	"github.com/nsmigrate/nsmigrate/netstate/nftables"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
	"github.com/nsmigrate/nsmigrate/netstate/tc"
	"github.com/nsmigrate/nsmigrate/netstate/xfrm"
)

// Op is one change of a namespace. Exactly one of Msg.Data, Tun and Sysctl is set.
type Op struct {
	Verb   string        // "add", "set", "delete", "prefer" for what depends on things outside, "expect" for what comes with others
	Kind   Kind          // of the object
	Host   bool          // the request is made in the host's namespace
	Msg    rawnl.Message // the rtnetlink request
	Object rawnl.Message // the object as dumped, for messages to people
	Tun    *Tun
	Sysctl *Sysctl
}

// Batch is a run of operations that are applied in order.
type Batch struct {
	Name string
	// Settle means that the operations state the whole content of their kind: what the namespace already
	// has is not added again, and what it has too much is deleted.
	Settle Kind
	// Patient batches are tried again for a while if a link has no carrier yet or the route for the other end
	// of an IPv6 address is not there yet: the kernel does both a moment later.
	Patient bool
	// Carriers means that what the kernel has yet to do about carriers must be done after the batch: it flushes
	// neighbours, proxy entries and nexthops, resets the IPv6 MTU and makes addresses when it gets to it.
	Carriers bool
	Ops      []Op
}

// Site is what a Plan must know of the place where the namespace is built.
type Site struct {
	HostFD  int                     // descriptor of the host's namespace
	NSFD    int                     // descriptor of the namespace that is built
	Uplinks map[string]UplinkTarget // as in [BuildOptions], complete
	Parents map[string]int32        // index of each parent device on the host, by name
	Present map[string]bool         // names of the links that the fresh namespace has, where the State has them
	Peers   map[string]int32        // a free index on the host for the other end of each pair, by the name of the uplink
}

// planner holds what the steps of a Plan share.
type planner struct {
	s        *State
	site     Site
	links    []link
	bottomUp []*link // the links, each after its lower device
	byIdx    map[int32]*link
	ups      map[int32]*Uplink // by the index of the inner link
	msgs     map[int32]rawnl.Message
	lots     map[int32]net.HardwareAddr // of bridges whose address the kernel draws
	lifted   map[int32]uint32           // see [planner.lift]
	awake    bool                       // links that had to sleep are up
}

// Plan orders the operations that turn a fresh namespace into the State, with every uplink mute: the host's
// side of a veth is left down, and other uplinks are held without carrier, or down, until [Connect].
func Plan(s *State, site Site) ([]Batch, error) {
	p, err := newPlanner(s, site)
	if err != nil {
		return nil, err
	}
	create, err := p.create()
	if err != nil {
		return nil, err
	}
	routes, order := p.routes()
	return []Batch{
		{Name: "sysctls", Ops: sysctlOps(s.namespaceSysctls())},
		{Name: "links", Ops: create},
		{Name: "link attributes", Ops: p.attributes()},
		{Name: "device sysctls", Ops: sysctlOps(p.deviceSysctls())},
		{Name: "bridge VLANs", Settle: KindBridgeVLAN, Ops: p.replay(KindBridgeVLAN, func(m rawnl.Message) rawnl.Message { return vlanInput(m, unix.RTM_SETLINK) })},
		{Name: "options of bridge VLANs", Ops: p.tables(KindVLANOption)},
		{Name: "VNI filters", Ops: p.tables(KindVNI)},
		{Name: "link settings", Ops: p.linkSettings()},
		{Name: "links up", Carriers: true, Ops: p.flags()},
		{Name: "address labels", Settle: KindAddrLabel, Ops: p.replay(KindAddrLabel, addrLabelAdd)},
		{Name: "addresses", Settle: KindAddress, Ops: p.addresses()},
		{Name: "nexthops", Patient: true, Ops: p.nexthops()},
		{Name: "routes", Settle: KindRoute, Ops: routes},
		{Name: "order of routes", Ops: order},
		{Name: "rules", Settle: KindRule, Ops: p.replay(KindRule, ruleAdd)},
		{Name: "forwarding entries", Settle: KindFDB, Ops: p.fdb()},
		p.surplusFDB(),
		{Name: "multicast forwarding entries of no VLAN", Ops: p.mdbWithoutVLAN()},
		{Name: "multicast forwarding entries", Settle: KindMDB, Ops: p.replay(KindMDB, mdbAdd)},
		{Name: "final address flags", Ops: p.settled()},
		p.lateSysctls(),
		{Name: "states of links", Ops: p.states()},
		// Whatever else is set on a link without a carrier removes learned neighbours.
		{Name: "neighbours", Ops: p.neighbours()},
	}, nil
}

func newPlanner(s *State, site Site) (*planner, error) {
	links, err := s.links()
	if err != nil {
		return nil, err
	}
	p := &planner{s: s, site: site, byIdx: map[int32]*link{}, ups: map[int32]*Uplink{}, msgs: map[int32]rawnl.Message{}, lots: drawn(links)}
	for i := range links {
		l := &links[i]
		if l.leftOut() {
			continue // the user agreed to the loss
		}
		if l.fallback() && !site.Present[l.name] {
			continue // nobody asked for it
		}
		p.links = append(p.links, *l)
		p.msgs[l.index] = s.Messages[KindLink][i]
	}
	for i := range p.links {
		p.byIdx[p.links[i].index] = &p.links[i]
	}
	for i := range s.uplinks {
		p.ups[s.uplinks[i].Index] = &s.uplinks[i]
	}
	if p.bottomUp, err = p.sortLinks(); err != nil {
		return nil, err
	}
	p.lifted = p.lift()
	return p, nil
}

func (p *planner) names() []string {
	names := make([]string, len(p.links))
	for i := range p.links {
		names[i] = p.links[i].name
	}
	return names
}

func sysctlOps(list []Sysctl) []Op {
	ops := make([]Op, len(list))
	for i := range list {
		ops[i] = Op{Verb: "set", Sysctl: &list[i]}
	}
	return ops
}

// create returns the operations that make the links, each after its lower device.
func (p *planner) create() ([]Op, error) {
	var ops []Op
	done := map[int32]bool{}
	for _, l := range p.bottomUp {
		done[l.index] = true
		op, err := p.createOne(l, done)
		if err != nil {
			return nil, err
		}
		if op != nil {
			op.Verb, op.Kind, op.Object = "add", KindLink, p.msgs[l.index]
			ops = append(ops, *op)
			if mtu := p.lifted[l.index]; mtu != 0 && op.Tun != nil {
				ops = append(ops, Op{Verb: "set", Kind: KindLink, Object: p.msgs[l.index], Msg: encodeLink(unix.AF_UNSPEC, l.index, 0, 0, []rawnl.Attr{u32Attr(unix.IFLA_MTU, mtu)})})
			}
		}
	}
	return ops, nil
}

// lift returns the MTU with which links must start, by index, where it is not their own: that of a vxlan is bounded by
// its lower device's when it is made, and does not follow it afterwards; and nobody says of a tun device with which it
// is made.
func (p *planner) lift() map[int32]uint32 {
	const headroom = 70 // of a vxlan over IPv6
	lifted := map[int32]uint32{}
	for _, l := range slices.Backward(p.bottomUp) {
		lower, need := p.below(l), lifted[l.index]
		if l.kind == "vxlan" {
			need = max(need, l.mtu()) + headroom
		} else if lower != nil && lower.rule().how == replayTun {
			need = max(need, l.mtu())
		}
		if lower == nil || need == 0 {
			continue
		}
		start := lower.mtu()
		switch lower.rule().how {
		case replayPresent:
			continue
		case replayTun:
			start = 1500
		}
		if limit := rawnl.Uint32(lower.attr(unix.IFLA_MAX_MTU)); limit != 0 {
			need = min(need, limit)
		}
		if need > start {
			lifted[lower.index] = max(lifted[lower.index], need)
		}
	}
	return lifted
}

// sortLinks returns the links so that each follows its lower device.
func (p *planner) sortLinks() ([]*link, error) {
	var order []*link
	done := map[int32]bool{}
	var visit func(l *link, depth int) error
	visit = func(l *link, depth int) error {
		if done[l.index] {
			return nil
		}
		if depth > len(p.links) {
			return fmt.Errorf("link %s: is its own lower device", l.name)
		}
		for _, lower := range p.beneath(l) {
			if err := visit(lower, depth+1); err != nil {
				return err
			}
		}
		done[l.index] = true
		order = append(order, l)
		return nil
	}
	for i := range p.links {
		if err := visit(&p.links[i], 0); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// below returns a link's lower device if that is in the namespace too, else nil.
func (p *planner) below(l *link) *link {
	if lower := p.byIdx[l.lower]; lower != l && !l.outside && !l.pair() {
		return lower
	}
	return nil
}

// beneath returns all links that must be there before a link is made.
func (p *planner) beneath(l *link) []*link {
	list := []*link{p.below(l)}
	if l.kind == "hsr" {
		for _, a := range only(l.data, unix.IFLA_HSR_SLAVE1, unix.IFLA_HSR_SLAVE2) {
			list = append(list, p.byIdx[int32(rawnl.Uint32(a.Data))])
		}
	}
	return slices.DeleteFunc(list, func(l *link) bool { return l == nil })
}

// createOne returns the operation that makes a link, nil if there is nothing to do.
func (p *planner) createOne(l *link, done map[int32]bool) (*Op, error) {
	rule := l.rule()
	switch rule.how {
	case replayPresent:
		return nil, nil
	case replayTun:
		t := tunOf(l)
		return &Op{Tun: &t}, nil
	case replayPair:
		return p.createPair(l, done)
	}
	attrs := p.birth(l)
	op := &Op{}
	if l.outside {
		// Made by the host in the new namespace: only there does IFLA_LINK mean the host's device.
		op.Host = true
		attrs = append(attrs, u32Attr(unix.IFLA_NET_NS_FD, uint32(p.site.NSFD)))
		if u := p.ups[l.index]; l.lower != 0 {
			if u == nil {
				return nil, fmt.Errorf("link %s: no uplink is recorded for it", l.name)
			}
			parent := p.site.Uplinks[l.name].Parent
			index, ok := p.site.Parents[parent]
			if !ok {
				return nil, fmt.Errorf("link %s: parent device %q is not on the host", l.name, parent)
			}
			attrs = append(attrs, u32Attr(unix.IFLA_LINK, uint32(index)))
		}
	} else if l.lower != 0 && l.lower != l.index {
		attrs = append(attrs, u32Attr(unix.IFLA_LINK, uint32(l.lower)))
	}
	for i, a := range l.data {
		if parent := linkIn(l.kind); l.outside && l.lower != 0 && parent != 0 && a.Kind() == parent {
			l.data[i] = u32Attr(parent, uint32(p.site.Parents[p.site.Uplinks[l.name].Parent]))
		}
	}
	info := []rawnl.Attr{strAttr(unix.IFLA_INFO_KIND, l.kind)}
	drop := slices.Concat(rule.drop, rule.late)
	if p.lots[l.index] != nil && l.carrier() {
		drop = append(drop, unix.IFLA_BR_PRIORITY) // it is the usual one; stated, it takes the carrier away
	}
	if data := rawnl.Without(l.data, drop...); len(data) > 0 {
		info = append(info, nest(unix.IFLA_INFO_DATA, fixData(l.kind, data)...))
	}
	op.Msg = encodeLink(unix.AF_UNSPEC, l.index, 0, 0, append(attrs, nest(unix.IFLA_LINKINFO, info...)))
	op.Msg.Flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	return op, nil
}

// birth returns the attributes that a link gets when it is made.
func (p *planner) birth(l *link) []rawnl.Attr {
	kinds := []uint16{unix.IFLA_IFNAME, unix.IFLA_MTU, unix.IFLA_TXQLEN, unix.IFLA_NUM_TX_QUEUES, unix.IFLA_NUM_RX_QUEUES, unix.IFLA_GROUP}
	if l.addressed() && !p.derivedMAC(l) && p.lots[l.index] == nil && (l.kind != "vlan" || !inherited(p.lots, l)) {
		kinds = append(kinds, unix.IFLA_ADDRESS)
	}
	attrs := only(l.attrs, kinds...)
	if mtu := p.lifted[l.index]; mtu != 0 {
		attrs = append(rawnl.Without(attrs, unix.IFLA_MTU), u32Attr(unix.IFLA_MTU, mtu))
	}
	if own, ok := rawnl.Find(l.port, unix.IFLA_BOND_SLAVE_PERM_HWADDR); ok && l.slave == "bond" {
		for i, a := range attrs {
			if a.Kind() == unix.IFLA_ADDRESS {
				attrs[i].Data = own // the bond gives it another one, and this one back in the end
			}
		}
	}
	return attrs
}

// derivedMAC reports whether a bridge's address is that of one of its ports. Such a bridge follows its
// ports; setting the address would pin it.
func (p *planner) derivedMAC(l *link) bool {
	return l.kind == "bridge" && slices.ContainsFunc(p.links, func(port link) bool {
		return port.master == l.index && bytes.Equal(port.mac(), l.mac())
	})
}

// createPair returns the operation that makes both ends of a pair, one of which may be the host's; nil if they are
// there already.
func (p *planner) createPair(l *link, done map[int32]bool) (*Op, error) {
	other := p.byIdx[l.lower]
	u := p.ups[l.index]
	switch {
	case !l.outside && other != nil && other.kind == l.kind && other != l:
		if done[other.index] {
			return nil, nil // made as the peer of the other
		}
		done[other.index] = true
		if l.secondary() {
			l, other = other, l
		}
		return pairOp(l, l.index, p.birth(l), other.index, p.birth(other)), nil
	case l.outside && u != nil && l.secondary():
		// Made by the host as the other end of its own, the first one.
		outer, err := parseLink(rawnl.Message{Type: unix.RTM_NEWLINK, Data: u.Link})
		if err != nil {
			return nil, fmt.Errorf("link %s: its other end, which has the settings of both, is not known", l.name)
		}
		op := pairOp(&outer, p.site.Peers[u.Name], p.uplinkPeer(u), l.index, append(p.birth(l), u32Attr(unix.IFLA_NET_NS_FD, uint32(p.site.NSFD))))
		op.Host = true
		return op, nil
	case l.outside && u != nil:
		return pairOp(l, l.index, p.birth(l), 0, append(p.uplinkPeer(u), u32Attr(unix.IFLA_NET_NS_FD, uint32(p.site.HostFD)))), nil
	}
	return nil, fmt.Errorf("link %s: %s without its other end", l.name, l.kind)
}

// secondary reports whether a link can't be made but as the other end of a first one, which has the settings of both.
func (l *link) secondary() bool {
	primary, ok := rawnl.Find(l.data, unix.IFLA_NETKIT_PRIMARY)
	return l.kind == "netkit" && ok && allZero(primary)
}

// pairOp returns the request for a pair whose settings the link has.
func pairOp(l *link, index int32, attrs []rawnl.Attr, peerIndex int32, peerAttrs []rawnl.Attr) *Op {
	peer := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(peer[4:], uint32(peerIndex))
	rule := linkKinds[l.kind]
	data := append(rawnl.Without(l.data, rule.drop...), rawnl.Attr{Type: rule.peer | unix.NLA_F_NESTED, Data: rawnl.AppendAttrs(peer, peerAttrs)})
	info := nest(unix.IFLA_LINKINFO, strAttr(unix.IFLA_INFO_KIND, l.kind), nest(unix.IFLA_INFO_DATA, data...))
	op := &Op{Msg: encodeLink(unix.AF_UNSPEC, index, 0, 0, append(attrs, info))}
	op.Msg.Flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	return op
}

// uplinkPeer returns the attributes with which the host's end of a pair is born.
func (p *planner) uplinkPeer(u *Uplink) []rawnl.Attr {
	var attrs []rawnl.Attr
	if outer, err := parseLink(rawnl.Message{Type: unix.RTM_NEWLINK, Data: u.Link}); err == nil {
		attrs = only(outer.attrs, unix.IFLA_MTU, unix.IFLA_TXQLEN, unix.IFLA_NUM_TX_QUEUES, unix.IFLA_NUM_RX_QUEUES, unix.IFLA_GROUP)
		if outer.addressed() {
			attrs = append(attrs, only(outer.attrs, unix.IFLA_ADDRESS)...)
		}
	}
	return append(attrs, strAttr(unix.IFLA_IFNAME, p.site.Uplinks[u.Name].Peer))
}

// attributes returns what is set on links when all of them exist.
func (p *planner) attributes() []Op {
	var ops []Op
	set := func(l *link, attrs ...rawnl.Attr) {
		if len(attrs) > 0 {
			ops = append(ops, Op{Verb: "set", Kind: KindLink, Object: p.msgs[l.index], Msg: encodeLink(unix.AF_UNSPEC, l.index, 0, 0, attrs)})
		}
	}
	var up func(l *link)
	up = func(l *link) {
		if l != nil && l.flags&iffUp != 0 && !p.asleep(l) {
			up(p.below(l))
			ops = append(ops, Op{Verb: "set", Kind: KindLink, Object: p.msgs[l.index], Msg: encodeLink(unix.AF_UNSPEC, l.index, iffUp, iffUp, nil)})
		}
	}
	for i := range p.links {
		l := &p.links[i]
		attrs := only(l.attrs, unix.IFLA_IFALIAS, unix.IFLA_GSO_MAX_SEGS, unix.IFLA_GSO_MAX_SIZE, unix.IFLA_GRO_MAX_SIZE,
			iflaGSOIPv4MaxSize, iflaGROIPv4MaxSize, unix.IFLA_LINKMODE)
		if l.arphrd == unix.ARPHRD_ETHER && string(l.attr(unix.IFLA_BROADCAST)) != "\xff\xff\xff\xff\xff\xff" {
			attrs = append(attrs, only(l.attrs, unix.IFLA_BROADCAST)...)
		}
		if reasons := rawnl.Get(l.attr(iflaProtoDownReason), protoDownReasonValue); !allZero(reasons) {
			attrs = append(attrs, nest(iflaProtoDownReason, rawnl.Attr{Type: protoDownReasonValue, Data: reasons}))
		}
		if how := l.rule().how; how == replayPresent || how == replayTun {
			attrs = append(attrs, only(l.attrs, unix.IFLA_MTU, unix.IFLA_TXQLEN, unix.IFLA_GROUP)...)
			if how == replayTun && len(l.mac()) > 0 {
				attrs = append(attrs, only(l.attrs, unix.IFLA_ADDRESS)...)
			}
		}
		if l.slave != "bond" {
			attrs = append(attrs, p.master(l)...)
		}
		if _, ok := l.ipv6(); ok && !l.fallback() {
			// No address may appear by itself while the namespace is built. A fallback device takes part in
			// IPv6 only once it is up; what appears there is removed when the addresses are settled.
			attrs = append(attrs, genMode(l, inet6AddrGenModeNone))
		}
		if p.held(l) {
			attrs = append(attrs, rawnl.Attr{Type: unix.IFLA_PROTO_DOWN, Data: []byte{1}})
		} else if l.protoDown() {
			attrs = append(attrs, rawnl.Attr{Type: unix.IFLA_PROTO_DOWN, Data: []byte{1}})
		}
		set(l, attrs...)
		if b := l.attr(unix.IFLA_PROP_LIST); b != nil {
			m := encodeLink(unix.AF_UNSPEC, l.index, 0, 0, []rawnl.Attr{{Type: unix.IFLA_PROP_LIST | unix.NLA_F_NESTED, Data: b}})
			m.Type, m.Flags = unix.RTM_NEWLINKPROP, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_APPEND
			ops = append(ops, Op{Verb: "set", Kind: KindLink, Object: p.msgs[l.index], Msg: m})
		}
	}
	for i := range p.links { // a bond opens what becomes its slave, and that fails unless all below is up
		l := &p.links[i]
		if l.slave != "bond" {
			continue
		}
		if lower := p.below(l); lower != nil {
			up(lower)
			// A vlan comes up with its lower device, and what is up can't become a slave.
			ops = append(ops, Op{Verb: "set", Kind: KindLink, Object: p.msgs[l.index], Msg: encodeLink(unix.AF_UNSPEC, l.index, 0, iffUp, nil)})
		}
		set(l, p.master(l)...)
	}
	for i := range p.links { // the kernel accepts a port's attributes only when it has its master
		l := &p.links[i]
		if port := portData(l); len(port) > 0 && p.byIdx[l.master] != nil {
			set(l, nest(unix.IFLA_LINKINFO, strAttr(unix.IFLA_INFO_SLAVE_KIND, l.slave), nest(unix.IFLA_INFO_SLAVE_DATA, port...)))
		}
	}
	// What depends on the ports that a master has, and on the links above. A bridge takes the smallest MTU of its ports,
	// and what is stacked on a link never exceeds it, except a vxlan once it is made.
	for _, l := range slices.Backward(p.bottomUp) {
		if l.kind == "vxlan" && p.lifted[l.index] != 0 {
			set(l, only(l.attrs, unix.IFLA_MTU)...) // while the lower device allows it
		}
	}
	moved := map[int32]bool{}
	for _, l := range p.bottomUp {
		lower := p.below(l)
		moved[l.index] = l.rule().ownMTU || p.lifted[l.index] != 0 || lower != nil && moved[lower.index] ||
			slices.ContainsFunc(p.links, func(port link) bool { return port.master == l.index })
		if moved[l.index] && l.kind != "vxlan" {
			set(l, only(l.attrs, unix.IFLA_MTU)...)
		}
		if late := only(l.data, l.rule().late...); len(late) > 0 && l.rule().how == replayData {
			set(l, nest(unix.IFLA_LINKINFO, strAttr(unix.IFLA_INFO_KIND, l.kind), nest(unix.IFLA_INFO_DATA, fixData(l.kind, late)...)))
		}
	}
	return ops
}

// master returns the attribute that makes a link a port of its master.
func (p *planner) master(l *link) []rawnl.Attr {
	if l.master == 0 || p.byIdx[l.master] == nil {
		return nil
	}
	return []rawnl.Attr{u32Attr(unix.IFLA_MASTER, uint32(l.master))}
}

// genMode sets a link's IPv6 address generation mode.
func genMode(l *link, mode uint8) rawnl.Attr {
	inet6 := []rawnl.Attr{{Type: unix.IFLA_INET6_ADDR_GEN_MODE, Data: []byte{mode}}}
	if token, ok := rawnl.Find(l.afSpec(unix.AF_INET6), unix.IFLA_INET6_TOKEN); ok && slices.ContainsFunc(token, func(b byte) bool { return b != 0 }) {
		inet6 = append(inet6, rawnl.Attr{Type: unix.IFLA_INET6_TOKEN, Data: token})
	}
	return nest(unix.IFLA_AF_SPEC, nest(unix.AF_INET6, inet6...))
}

// held reports whether a link is up, hangs on a device outside, and is kept without carrier until Connect.
func (p *planner) held(l *link) bool {
	return l.outside && !l.pair() && l.rule().hold
}

// asleep reports whether a link hangs on a device outside and can only be kept mute by being down.
func (p *planner) asleep(l *link) bool {
	return l != nil && !p.awake && l.outside && !l.pair() && !l.rule().hold
}

// flags returns the operations that set the flags of links, up last of all. Which slave of a bond is active is
// for the bond to say when the slave has no carrier yet.
func (p *planner) flags() []Op {
	var ops []Op
	for _, l := range p.bottomUp {
		flags := l.flags & settableFlags
		if p.asleep(l) {
			flags &^= iffUp
		}
		if p.deaf(l) {
			ops = append(ops, Op{Verb: "set", Kind: KindLink, Object: p.msgs[l.index], Msg: encodeLink(unix.AF_UNSPEC, l.index, iffAllmulti, iffAllmulti, nil)})
		}
		ops = append(ops, Op{Verb: "set", Kind: KindLink, Object: p.msgs[l.index], Msg: encodeLink(unix.AF_UNSPEC, l.index, flags, settableFlags, nil)})
	}
	for _, l := range p.bottomUp {
		if active, ok := rawnl.Find(l.data, unix.IFLA_BOND_ACTIVE_SLAVE); ok && l.kind == "bond" {
			data := nest(unix.IFLA_INFO_DATA, rawnl.Attr{Type: unix.IFLA_BOND_ACTIVE_SLAVE, Data: active})
			ops = append(ops, Op{Verb: "prefer", Kind: KindLink, Object: p.msgs[l.index], Msg: encodeLink(unix.AF_UNSPEC, l.index, 0, 0,
				[]rawnl.Attr{nest(unix.IFLA_LINKINFO, strAttr(unix.IFLA_INFO_KIND, l.kind), data)})})
		}
	}
	return ops
}

// deaf reports whether a link takes all multicast frames and its lower device does not hear of it: a macvlan that passes
// everything through tells it only when the flag is set while it is up.
func (p *planner) deaf(l *link) bool {
	lower := p.byIdx[l.lower]
	if l.kind != "macvlan" && l.kind != "macvtap" || l.outside || lower == nil || l.flags&iffAllmulti == 0 || l.flags&iffUp == 0 {
		return false
	}
	count, own := lower.attr(unix.IFLA_ALLMULTI), uint32(0)
	if lower.flags&iffAllmulti != 0 {
		own = 1
	}
	return count != nil && rawnl.Uint32(count) == own
}

// states returns the states of links that a user set and that need the link to be up, with a carrier where it will
// have one. Where it has none yet, they are set again when the namespace is connected. The state of a bridge's port
// comes last of all: any other change of the link ends it.
func (p *planner) states() []Op {
	var ops, ports []Op
	set := func(l *link, attrs []rawnl.Attr) {
		ops = append(ops, Op{Verb: "prefer", Kind: KindLink, Object: p.msgs[l.index], Msg: encodeLink(unix.AF_UNSPEC, l.index, 0, 0, attrs)})
	}
	for _, l := range p.bottomUp {
		if l.dormant() {
			set(l, only(l.attrs, unix.IFLA_OPERSTATE))
		}
		if l.unplugged() {
			set(l, only(l.attrs, unix.IFLA_CARRIER))
		}
		if state := only(l.port, unix.IFLA_BRPORT_STATE); len(state) > 0 && l.slave == "bridge" {
			m := encodeLink(unix.AF_BRIDGE, l.index, 0, 0, []rawnl.Attr{nest(unix.IFLA_PROTINFO, state...)})
			m.Type = unix.RTM_SETLINK
			ports = append(ports, Op{Verb: "prefer", Kind: KindLink, Object: p.msgs[l.index], Msg: m})
		}
	}
	return append(ops, ports...)
}

// linkSettings returns the settings of links that generic netlink knows: offloads, channels, keys.
func (p *planner) linkSettings() []Op {
	var ops []Op
	for _, m := range p.s.Messages[KindGeneric] {
		if index, ok := genl.Device(m); ok && p.byIdx[index] != nil {
			ops = append(ops, Op{Verb: "set", Kind: KindGeneric, Object: m, Msg: m})
		}
	}
	return ops
}

// others returns the messages of a kind that are not [planner.linkSettings] and whose device is built.
func (p *planner) others(kind Kind) []rawnl.Message {
	return slices.DeleteFunc(slices.Clone(p.s.Messages[kind]), func(m rawnl.Message) bool {
		switch kind {
		case KindGeneric:
			_, ok := genl.Device(m)
			return ok
		case KindTC:
			index, ok := tc.Device(m)
			return ok && p.byIdx[index] == nil
		}
		return false
	})
}

// replay states the objects of a kind one for one.
func (p *planner) replay(kind Kind, request func(rawnl.Message) rawnl.Message) []Op {
	var ops []Op
	for _, m := range p.s.Messages[kind] {
		ops = append(ops, Op{Verb: "add", Kind: kind, Object: m, Msg: request(m)})
	}
	return ops
}

// fdb returns the forwarding entries of the links that are there. The addresses that a bridge itself accepts as a plain
// device are those of the links on top of it, with which they come; stated, they would be entries of the bridge.
func (p *planner) fdb() []Op {
	ops := slices.DeleteFunc(p.replay(KindFDB, fdbAdd), func(op Op) bool {
		n, err := parseNeigh(op.Object)
		return err != nil || p.byIdx[n.index()] == nil || p.waits(rawnl.Get(n.attrs, ndaNHID) != nil)
	})
	for i := range ops {
		n, _ := parseNeigh(ops[i].Object)
		if rawnl.Get(n.attrs, unix.NDA_MASTER) == nil && p.byIdx[n.index()].kind == "bridge" {
			ops[i].Verb = "expect"
		}
	}
	return ops
}

// surplusFDB looks at the forwarding entries once more if some of them name no VLAN while ports have VLANs: the bridge
// added each of those to all VLANs.
func (p *planner) surplusFDB() Batch {
	batch := Batch{Name: "forwarding entries of more VLANs than there were"}
	without := slices.ContainsFunc(p.s.Messages[KindFDB], func(m rawnl.Message) bool {
		n, err := parseNeigh(m)
		return err == nil && rawnl.Get(n.attrs, unix.NDA_MASTER) != nil && rawnl.Get(n.attrs, unix.NDA_VLAN) == nil
	})
	if without && len(p.s.Messages[KindBridgeVLAN]) > 0 {
		batch.Settle, batch.Ops = KindFDB, p.fdb()
	}
	return batch
}

// mdbWithoutVLAN returns the entries that name no VLAN of bridges that filter by VLAN. Such a bridge would add them to
// each VLAN instead, so that it has to stop filtering for a moment.
func (p *planner) mdbWithoutVLAN() []Op {
	entries := map[int32][]Op{} // by bridge
	for _, op := range p.replay(KindMDB, mdbAdd) {
		if entry, _, ok := mdbEntry(op.Object); ok && entry[6] == 0 && entry[7] == 0 {
			index := int32(binary.NativeEndian.Uint32(op.Object.Data[4:]))
			entries[index] = append(entries[index], op)
		}
	}
	var ops []Op
	for i := range p.links {
		l := &p.links[i]
		filters, _ := rawnl.Find(l.data, unix.IFLA_BR_VLAN_FILTERING)
		if l.kind != "bridge" || len(entries[l.index]) == 0 || allZero(filters) {
			continue
		}
		set := func(data ...rawnl.Attr) Op {
			info := nest(unix.IFLA_LINKINFO, strAttr(unix.IFLA_INFO_KIND, l.kind), nest(unix.IFLA_INFO_DATA, data...))
			return Op{Verb: "set", Kind: KindLink, Object: p.msgs[l.index], Msg: encodeLink(unix.AF_UNSPEC, l.index, 0, 0, []rawnl.Attr{info})}
		}
		ops = append(ops, set(rawnl.Attr{Type: unix.IFLA_BR_VLAN_FILTERING, Data: []byte{0}}))
		ops = append(ops, entries[l.index]...)
		ops = append(ops, set(fixData(l.kind, only(l.data, l.rule().late...))...))
	}
	return ops
}

// addresses returns the addresses so that they are listed in the dumped order again: IPv4 appends, IPv6
// inserts before the addresses of the same scope.
func (p *planner) addresses() []Op {
	var v4, v6 []Op
	for _, m := range p.s.Messages[KindAddress] {
		a, err := parseAddress(m)
		if err != nil || p.byIdx[a.index] == nil {
			continue
		}
		if a.family == unix.AF_INET6 {
			v6 = append(v6, Op{Verb: "add", Kind: KindAddress, Object: m, Msg: addressAdd(&a, p.noDAD(&a))})
		} else {
			v4 = append(v4, Op{Verb: "add", Kind: KindAddress, Object: m, Msg: addressAdd(&a, 0)})
		}
	}
	slices.Reverse(v6)
	return append(v4, v6...)
}

// noDAD returns the flag that keeps an IPv6 address from duplicate address detection, which would make it
// unusable for a second although its owner is not new. A loopback device has none.
func (p *planner) noDAD(a *addressMsg) uint32 {
	if p.byIdx[a.index].loopback() {
		return 0
	}
	return unix.IFA_F_NODAD
}

// lateSysctls sets those parameters of devices that can't be set with the others: the IPv6 MTU, which the kernel resets
// when a link comes up or gets a carrier, and those that are postponed.
func (p *planner) lateSysctls() Batch {
	postponed := p.postponed()
	list := slices.DeleteFunc(p.s.deviceSysctls(p.names(), "mtu", "use_tempaddr", "disable_ipv6"), func(c Sysctl) bool { return !isLinkMTU(c.Path) && !postponed(c) })
	return Batch{Name: "late device sysctls", Ops: sysctlOps(list)}
}

// deviceSysctls returns the parameters of devices, with those that are postponed switched off.
func (p *planner) deviceSysctls() []Sysctl {
	list := p.s.deviceSysctls(p.names())
	postponed := p.postponed()
	for i, c := range list {
		if postponed(c) {
			list[i].Value = "0"
		}
	}
	return list
}

// ipv6On switches off those postponed parameters that switch IPv6 off.
func (p *planner) ipv6On() Batch {
	postponed := p.postponed()
	list := slices.DeleteFunc(p.s.deviceSysctls(p.names(), "disable_ipv6"), func(c Sysctl) bool { return !disablesIPv6(c) || !postponed(c) })
	for i := range list {
		list[i].Value = "0"
	}
	return Batch{Name: "IPv6 on", Ops: sysctlOps(list)}
}

// postponed returns a function that tells whether a parameter must be off while other objects are made. With
// use_tempaddr the kernel makes a temporary address along with each that manages such. With disable_ipv6 nothing can
// be given an IPv6 gateway, not even a route of IPv4; what has one outlives it.
func (p *planner) postponed() func(Sysctl) bool {
	managing, gateways := map[int32]bool{}, map[int32]bool{}
	for _, m := range p.s.Messages[KindAddress] {
		if a, err := parseAddress(m); err == nil && a.flags&unix.IFA_F_MANAGETEMPADDR != 0 {
			managing[a.index] = true
		}
	}
	if slices.ContainsFunc(p.s.Sysctls, disablesIPv6) {
		gateways = p.ipv6Gateways()
	}
	in := map[string]*link{}
	for i := range p.links {
		in[p.links[i].name] = &p.links[i]
	}
	return func(c Sysctl) bool {
		l := in[sysctlDevice(c.Path)]
		return l != nil && (managing[l.index] && path.Base(c.Path) == "use_tempaddr" || gateways[l.index] && disablesIPv6(c))
	}
}

func disablesIPv6(c Sysctl) bool { return path.Base(c.Path) == "disable_ipv6" && c.Value != "0" }

// ipv6Gateways returns the indexes of the devices by which nexthop objects and routes of IPv4 reach an IPv6 gateway.
func (p *planner) ipv6Gateways() map[int32]bool {
	used := map[int32]bool{}
	note := func(attr []byte) { used[int32(rawnl.Uint32(attr))] = true }
	for _, m := range p.s.Messages[KindNexthop] {
		if len(m.Data) >= sizeofNhMsg && m.Data[0] == unix.AF_INET6 {
			note(rawnl.Get(m.Data[sizeofNhMsg:], unix.NHA_OIF))
		}
	}
	for _, m := range p.s.Messages[KindRoute] {
		if len(m.Data) < unix.SizeofRtMsg || m.Data[0] != unix.AF_INET {
			continue
		}
		attrs := m.Data[unix.SizeofRtMsg:]
		if rawnl.Get(attrs, unix.RTA_VIA) != nil {
			note(rawnl.Get(attrs, unix.RTA_OIF))
		}
		for hop := range nexthopsOf(rawnl.Get(attrs, unix.RTA_MULTIPATH)) {
			if rawnl.Get(hop[unix.SizeofRtNexthop:], unix.RTA_VIA) != nil {
				note(hop[4:8])
			}
		}
	}
	return used
}

// waits reports whether a route or forwarding entry can't be made before Connect: it goes through a nexthop
// object, and those need a carrier, which an uplink and what is stacked on it do not have.
func (p *planner) waits(nhid bool) bool {
	return nhid && !p.awake && len(p.ups) > 0
}

func (p *planner) nexthops() []Op {
	if p.waits(true) {
		return nil
	}
	var singles, groups []Op
	for _, m := range p.s.Messages[KindNexthop] {
		op := Op{Verb: "add", Kind: KindNexthop, Object: m, Msg: nexthopAdd(m)}
		op.Msg.Flags = unix.NLM_F_CREATE | unix.NLM_F_REPLACE // a group that lost a member is still there
		if isGroup(m) {
			groups = append(groups, op)
		} else {
			singles = append(singles, op)
		}
	}
	return append(p.reached(singles), groups...)
}

// routes returns the operations that add the routes, what a gateway is reached by before what goes through it, and those
// that put them into order then.
func (p *planner) routes() (add, order []Op) {
	msgs := p.s.Messages[KindRoute]
	places := make([]int, 0, len(msgs)) // rank and position: there may be a million of them
	sleeping := p.sleeping()
	uses := func(r *routeMsg) bool { return slices.ContainsFunc(sleeping, r.uses) }
	for i, m := range msgs {
		if r, err := parseRoute(m); err == nil && !uses(&r) && !p.waits(r.usesNexthop()) {
			places = append(places, r.rank()<<32|i)
		}
	}
	order = p.moves(places)
	slices.Sort(places)
	sorted := make([]int, 0, len(places))
	for len(places) > 0 {
		n := 1
		for n < len(places) && places[n]>>32 == places[0]>>32 {
			n++
		}
		sorted = appendSpread(sorted, places[:n], func(a, b int) bool { return sameList(msgs[uint32(a)], msgs[uint32(b)]) })
		places = places[n:]
	}
	add = make([]Op, len(sorted))
	for i, place := range sorted {
		m := msgs[uint32(place)]
		r := routeMsg{hdr: [unix.SizeofRtMsg]byte(m.Data), attrs: m.Data[unix.SizeofRtMsg:]} // checked above
		request := rawnl.Message{Type: m.Type, Flags: routeAddFlags, Data: m.Data}
		if !r.asStated() {
			request = routeAdd(&r)
		}
		add[i] = Op{Verb: "add", Kind: KindRoute, Object: m, Msg: request}
	}
	return add, order
}

// appendSpread appends places in an order that starts everywhere at once: the middle, the quarters, the eighths and so
// on. A trie of routes that grows from one end to the other is rearranged again and again, which takes the kernel as long
// as all the rest (net/ipv4/fib_trie.c). Neighbours that are together stay so, in their order.
func appendSpread(order, places []int, together func(a, b int) bool) []int {
	starts := make([]int32, 0, len(places)) // of what is together
	for i := range places {
		if i == 0 || !together(places[i-1], places[i]) {
			starts = append(starts, int32(i))
		}
	}
	width := bits.Len(uint(len(starts) - 1))
	for i := range 1 << width {
		n := int(bits.Reverse32(uint32(i)) >> (32 - width))
		switch {
		case n >= len(starts):
		case n == len(starts)-1:
			order = append(order, places[starts[n]:]...)
		default:
			order = append(order, places[starts[n]:starts[n+1]]...)
		}
	}
	return order
}

// sleeping returns the indexes of the links that are down until Connect.
func (p *planner) sleeping() []int32 {
	var indexes []int32
	for i := range p.links {
		if p.asleep(&p.links[i]) {
			indexes = append(indexes, p.links[i].index)
		}
	}
	return indexes
}

// neighbours returns the neighbour entries. A learned entry for the bridge that the host had its side of an
// uplink in is left out: on another host that address belongs to another bridge.
func (p *planner) neighbours() []Op {
	var ops []Op
	for _, m := range p.s.Messages[KindNeigh] {
		n, err := parseNeigh(m)
		if err != nil || p.byIdx[n.index()] == nil || p.asleep(p.byIdx[n.index()]) {
			continue
		}
		if u := p.ups[n.index()]; u != nil && !n.permanent() && !n.proxy() && u.BridgeMAC != "" &&
			bytes.Equal(n.lladdr(), hardwareAddr(u.BridgeMAC)) {
			continue
		}
		ops = append(ops, Op{Verb: "add", Kind: KindNeigh, Object: m, Msg: neighAdd(m)})
	}
	return ops
}

// settled returns the operations that end the special treatment of IPv6 during the build.
func (p *planner) settled() []Op {
	ops := p.settledAddresses()
	for i := range p.links {
		l := &p.links[i]
		mode, ok := l.ipv6()
		if fallback := l.fallback(); ok && (!fallback && mode != inet6AddrGenModeNone || fallback && l.flags&iffUp != 0) {
			ops = append(ops, Op{Verb: "set", Kind: KindLink, Object: p.msgs[l.index], Msg: encodeLink(unix.AF_UNSPEC, l.index, 0, 0, []rawnl.Attr{genMode(l, mode)})})
		}
	}
	return ops
}

func (p *planner) settledAddresses() []Op {
	var ops []Op
	for _, m := range p.s.Messages[KindAddress] {
		a, err := parseAddress(m)
		if err == nil && a.family == unix.AF_INET6 && a.flags&unix.IFA_F_NODAD == 0 && p.byIdx[a.index] != nil && !p.byIdx[a.index].loopback() {
			ops = append(ops, Op{Verb: "set", Kind: KindAddress, Object: m, Msg: addressSettle(&a)})
		}
	}
	return ops
}

// settle compares what a namespace has of a kind with what a batch adds: it returns the operations that are
// still needed, in the memory of want. Deletions come first, because what is there could stand in the way; only routes
// that are too many are deleted last, because a gateway may have been reached through one that was removed later.
func settle(kind Kind, have []rawnl.Message, want []Op) []Op {
	// What is there is little, even where very much is wanted: only that is remembered.
	surplus := map[string]int{}
	var displacedAt map[int]bool
	if kind == KindRoute {
		displacedAt = displaced(have, want)
	}
	var deletions []Op
	remove := func(m rawnl.Message) {
		if del, ok := deletion(kind, m); ok && !byItself(kind, m) {
			deletions = append(deletions, Op{Verb: "delete", Kind: kind, Object: m, Msg: del})
		}
	}
	for i, m := range have {
		if displacedAt[i] {
			remove(m)
		} else {
			surplus[identity(kind, m)]++
		}
	}
	first := deletions
	deletions = nil
	ops := want[:0] // in place: there may be a million of them
	var key []byte
	for _, op := range want {
		key = appendIdentity(key[:0], kind, op.Object)
		if n := surplus[string(key)]; n > 0 {
			surplus[string(key)] = n - 1
			continue
		}
		if op.Verb == "expect" {
			continue
		}
		if kind == KindRoute {
			if r, err := parseRoute(op.Object); err == nil && r.family() == unix.AF_INET6 && r.kernelMade() {
				continue // it comes with its address or its link, a moment later
			}
		}
		ops = append(ops, op)
	}
	for _, m := range slices.Backward(have) { // of equal objects the first ones stay
		key := identity(kind, m)
		if surplus[key] == 0 {
			continue
		}
		surplus[key]--
		remove(m)
	}
	slices.Reverse(deletions)
	if kind == KindRoute {
		return append(slices.Insert(ops, 0, first...), deletions...)
	}
	return append(deletions, ops...)
}

// normalize removes from a dumped object what changes without anybody setting it. Each kind's function says
// what and why.
func normalize(kind Kind, m rawnl.Message) rawnl.Message {
	switch kind {
	case KindLink:
		return normalizeLink(m)
	case KindAddress:
		return normalizeAddress(m)
	case KindRoute:
		return normalizeRoute(m)
	case KindRule:
		return normalizeRule(m)
	case KindNexthop:
		return normalizeNexthop(m)
	case KindNeigh:
		return normalizeNeigh(m)
	case KindAddrLabel:
		return normalizeAddrLabel(m)
	case KindFDB:
		return normalizeFDB(m)
	case KindMDB:
		return normalizeMDB(m)
	case KindNFTables:
		return nftables.Normalize(m)
	case KindConntrack:
		return conntrack.Normalize(m)
	case KindTC:
		return tc.Normalize(m)
	case KindIPSet:
		return ipset.Normalize(m)
	case KindXFRM:
		return xfrm.Normalize(m)
	case KindGeneric:
		return genl.Normalize(m)
	case KindNetfilter:
		return netfilter.Normalize(m)
	}
	return m
}

// Text renders a batch for people, a line for each operation.
func (b *Batch) Text(s *State) string {
	names := s.names()
	var text strings.Builder
	fmt.Fprintf(&text, "%s\n", b.Name)
	for i := range b.Ops {
		op := &b.Ops[i]
		where := ""
		if op.Host {
			where = " (from the host)"
		}
		fmt.Fprintf(&text, "  %s%s\n", op.text(names), where)
		if op.Kind == KindLink && op.Tun == nil {
			fmt.Fprintf(&text, "    %s\n", lineOf(decode(KindLink, op.Msg, names)))
		}
	}
	return text.String()
}
