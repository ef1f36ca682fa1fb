package netstate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// errShort means that a message is smaller than its family's fixed header.
var errShort = errors.New("message shorter than its header")

// link is a decoded RTM_NEWLINK message. Its slices alias the message.
type link struct {
	family  uint8
	arphrd  uint16 // ARPHRD_*
	index   int32
	flags   uint32
	attrs   []rawnl.Attr
	name    string
	kind    string // IFLA_INFO_KIND; "" for lo and for hardware
	data    []rawnl.Attr
	slave   string // IFLA_INFO_SLAVE_KIND
	port    []rawnl.Attr
	lower   int32 // IFLA_LINK, 0 if none
	outside bool  // the lower device or the peer is in another namespace
	nsid    int32 // of that namespace, if outside; may be -1 (unknown)
	master  int32
}

func parseLink(m rawnl.Message) (link, error) {
	if len(m.Data) < unix.SizeofIfInfomsg {
		return link{}, errShort
	}
	attrs, err := rawnl.ParseAttrs(m.Data[unix.SizeofIfInfomsg:])
	if err != nil {
		return link{}, err
	}
	l := link{
		family: m.Data[0],
		arphrd: binary.NativeEndian.Uint16(m.Data[2:]),
		index:  int32(binary.NativeEndian.Uint32(m.Data[4:])),
		flags:  binary.NativeEndian.Uint32(m.Data[8:]),
		attrs:  attrs,
	}
	for _, a := range attrs {
		switch a.Kind() {
		case unix.IFLA_IFNAME:
			l.name = rawnl.CString(a.Data)
		case unix.IFLA_LINK:
			l.lower = int32(rawnl.Uint32(a.Data))
		case unix.IFLA_LINK_NETNSID:
			l.outside, l.nsid = true, int32(rawnl.Uint32(a.Data))
		case unix.IFLA_MASTER:
			l.master = int32(rawnl.Uint32(a.Data))
		case unix.IFLA_LINKINFO:
			if err := l.parseInfo(a.Data); err != nil {
				return link{}, err
			}
		}
	}
	l.resolveLower()
	return l, nil
}

// resolveLower finds the lower device of the kinds that have it in their data. Of a link that was made in
// another namespace the kernel reports an IFLA_LINK in any case: its own index if it has no lower device.
func (l *link) resolveLower() {
	if kind := linkIn(l.kind); kind != 0 {
		b, _ := rawnl.Find(l.data, kind)
		l.lower = int32(rawnl.Uint32(b))
	} else if l.kind == "geneve" || l.kind == "bareudp" {
		l.lower = 0
	}
}

func (l *link) parseInfo(b []byte) error {
	info, err := rawnl.ParseAttrs(b)
	if err != nil {
		return err
	}
	for _, a := range info {
		switch a.Kind() {
		case unix.IFLA_INFO_KIND:
			l.kind = rawnl.CString(a.Data)
		case unix.IFLA_INFO_SLAVE_KIND:
			l.slave = rawnl.CString(a.Data)
		case unix.IFLA_INFO_DATA:
			// wireguard and others could put anything here: only attributes are kept decoded.
			if l.data, err = rawnl.ParseAttrs(a.Data); err != nil {
				return err
			}
		case unix.IFLA_INFO_SLAVE_DATA:
			if l.port, err = rawnl.ParseAttrs(a.Data); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *link) attr(kind uint16) []byte {
	b, _ := rawnl.Find(l.attrs, kind)
	return b
}

func (l *link) mac() net.HardwareAddr { return net.HardwareAddr(l.attr(unix.IFLA_ADDRESS)) }

func (l *link) mtu() uint32 { return rawnl.Uint32(l.attr(unix.IFLA_MTU)) }

func (l *link) protoDown() bool {
	b := l.attr(unix.IFLA_PROTO_DOWN)
	return len(b) == 1 && b[0] != 0
}

func (l *link) loopback() bool { return l.arphrd == unix.ARPHRD_LOOPBACK }

// replay says how links of a kind are made again.
type replay int

const (
	replayNo      replay = iota // not known to come back right
	replayData                  // RTM_NEWLINK with the dumped IFLA_INFO_DATA, less what linkKind.drop names
	replayPair                  // the same, with the other end described, which no dump does
	replayTun                   // has no netlink request; see tun.go
	replayPresent               // is there in a fresh namespace
)

// linkKind is the rule of one kind of link.
type linkKind struct {
	how  replay
	peer uint16   // of replayPair: the attribute of IFLA_INFO_DATA that describes the other end
	drop []uint16 // attributes of IFLA_INFO_DATA that are dumped and refused or harmful on input
	late []uint16 // attributes that are set when all links have their masters
	// noMAC says that IFLA_ADDRESS follows from the kind's data and is refused on input.
	noMAC bool
	// ownMTU says that the kind overrides the MTU with which a link is made.
	ownMTU bool
	// hold says that a link with its lower device outside can be kept mute by IFLA_PROTO_DOWN.
	hold        bool
	why, remedy string // of replayNo: why, and what to do about it
}

// linkKinds has the rules of the kinds that are known. KINDS.md tells them to people.
var linkKinds = func() map[string]linkKind {
	data := linkKind{how: replayData}
	tunnel := linkKind{how: replayData, noMAC: true} // the link address is the tunnel's local address
	lent := tunnel                                   // it is that of the lower device
	macvlan := linkKind{how: replayData, hold: true, drop: []uint16{unix.IFLA_MACVLAN_MACADDR_COUNT, unix.IFLA_MACVLAN_BC_QUEUE_LEN_USED}}
	return map[string]linkKind{
		"veth":   {how: replayPair, peer: vethInfoPeer},
		"vxcan":  {how: replayPair, peer: vxcanInfoPeer},
		"netkit": {how: replayPair, peer: unix.IFLA_NETKIT_PEER_INFO, drop: []uint16{unix.IFLA_NETKIT_PRIMARY}},
		"tun":    {how: replayTun},

		"dummy": data, "ifb": data, "nlmon": data, "vcan": data, "vsockmon": data, "vlan": data, "vrf": data,
		"vxlan":     {how: replayData, hold: true},
		"geneve":    data,
		"bareudp":   data,
		"pfcp":      data,
		"gretap":    data,
		"ip6gretap": data,
		"erspan":    data,
		"ip6erspan": data,
		"gre":       tunnel,
		"ip6gre":    tunnel,
		"ipip":      tunnel,
		"ip6tnl":    tunnel,
		"sit":       tunnel,
		"vti":       tunnel,
		"vti6":      tunnel,
		"xfrm":      tunnel,
		"wireguard": tunnel, // its keys and peers are of package genl
		"ipvlan":    lent,
		"ipvtap":    lent,
		"macvlan":   macvlan,
		"macvtap":   macvlan,
		// Its keys can't be read; package genl names the associations that are lost with them. An identifier can't be
		// stated for a link that does not send it, but kept.
		"macsec": {how: replayData, ownMTU: true, late: []uint16{unix.IFLA_MACSEC_INC_SCI, unix.IFLA_MACSEC_ES, unix.IFLA_MACSEC_SCB}},
		"hsr":    {how: replayData, noMAC: true, ownMTU: true, drop: []uint16{unix.IFLA_HSR_SEQ_NR}},
		"bridge": {
			how: replayData,
			drop: []uint16{
				unix.IFLA_BR_ROOT_ID, unix.IFLA_BR_BRIDGE_ID, unix.IFLA_BR_ROOT_PORT, unix.IFLA_BR_ROOT_PATH_COST,
				unix.IFLA_BR_TOPOLOGY_CHANGE, unix.IFLA_BR_TOPOLOGY_CHANGE_DETECTED, unix.IFLA_BR_HELLO_TIMER,
				unix.IFLA_BR_TCN_TIMER, unix.IFLA_BR_TOPOLOGY_CHANGE_TIMER, unix.IFLA_BR_GC_TIMER,
				unix.IFLA_BR_FDB_N_LEARNED, unix.IFLA_BR_MCAST_QUERIER_STATE, unix.IFLA_BR_PAD,
			},
			// The default PVID can't be changed while filtering is on; an option depends on it being on.
			late: []uint16{unix.IFLA_BR_VLAN_FILTERING, unix.IFLA_BR_MULTI_BOOLOPT},
		},
		"bond": {
			how:  replayData,
			drop: []uint16{unix.IFLA_BOND_AD_INFO, unix.IFLA_BOND_ACTIVE_SLAVE},
			late: []uint16{unix.IFLA_BOND_PRIMARY},
		},

		"team":        {why: "it is configured by a daemon of its own", remedy: "use a bond"},
		"gtp":         {why: "the kernel does not tell whose sockets it receives from"},
		"amt":         {why: "it is a daemon's connection to a relay, which it has to make anew"},
		"batadv":      {why: "its mesh is configured through a family of its own, which is not carried"},
		"openvswitch": {why: "it belongs to a switch of Open vSwitch, whose flows are not carried"},
		"ppp":         {why: "it lives by the open files of pppd or of another daemon"},
		"ovpn":        {why: "its keys can't be read, and its peers are a daemon's"},
	}
}()

// rule returns the rule of a link's kind.
func (l *link) rule() linkKind {
	if l.loopback() || l.fallback() {
		return linkKind{how: replayPresent}
	}
	return linkKinds[l.kind]
}

// pair reports whether a link is one of two ends that are made and removed together.
func (l *link) pair() bool { return linkKinds[l.kind].how == replayPair }

// dormant reports whether a user set the operational state of a link (802.1X does so).
func (l *link) dormant() bool {
	mode, state := l.attr(unix.IFLA_LINKMODE), l.attr(unix.IFLA_OPERSTATE)
	return len(mode) == 1 && mode[0] == linkModeDormant && string(state) == operUp && l.flags&iffUp != 0
}

// unplugged reports whether a user took the carrier from a link whose carrier nothing else takes.
func (l *link) unplugged() bool {
	carrier, ok := rawnl.Find(l.attrs, unix.IFLA_CARRIER)
	return l.kind == "dummy" && ok && allZero(carrier)
}

// addressed reports whether a link is made with a link-layer address of its own.
func (l *link) addressed() bool {
	return !l.rule().noMAC && (l.kind != "netkit" || !allZero(l.mac())) // one that routes packets has none
}

// leftOut reports whether a link is not made again at all. Of what else checkLink names, something comes back.
func (l *link) leftOut() bool {
	return l.rule().how == replayNo || l.kind == "hsr" && !l.prp() || l.rule().how == replayTun && !tunOf(l).persistent
}

// checkLink returns why a link can't be carried, or the empty Loss.
func checkLink(l *link) (Loss, bool) {
	loss := Loss{Kind: "link", Object: l.name}
	if l.kind != "" {
		loss.Object += " (" + l.kind + ")"
	}
	sitFlags, _ := rawnl.Find(l.data, iflaIPTunFlags)
	rule := l.rule()
	switch {
	case l.kind == "" && !l.loopback():
		loss.Reason = "it is a hardware device, which stays with its host"
		loss.Remedy = "connect the namespace by veth or macvlan instead"
	case rule.how == replayNo && rule.why != "":
		loss.Reason, loss.Remedy = rule.why, rule.remedy
	case rule.how == replayNo:
		loss.Reason = fmt.Sprintf("links of kind %q are not carried", l.kind)
	case l.kind == "hsr" && !l.prp():
		loss.Reason = "the kernel does not tell the version of its protocol"
	case l.kind == "tun" && !tunOf(l).persistent:
		loss.Reason = "it is not persistent: it exists only as an open file of a process"
		loss.Remedy = "create it with ip tuntap add"
	case l.kind == "sit" && len(sitFlags) == 2 && sitFlags[0]&sitISATAP != 0:
		loss.Reason = "its list of ISATAP routers is not carried"
	case l.xdpAttached():
		loss.Kind, loss.Reason = "xdp", "an XDP program is attached to it"
	default:
		return Loss{}, false
	}
	return loss, true
}

// prp reports whether a link of kind hsr speaks PRP, which has one version.
func (l *link) prp() bool {
	protocol, _ := rawnl.Find(l.data, unix.IFLA_HSR_PROTOCOL)
	return len(protocol) == 1 && protocol[0] == hsrProtocolPRP
}

func (l *link) xdpAttached() bool {
	attrs, err := rawnl.ParseAttrs(l.attr(unix.IFLA_XDP))
	if err != nil {
		return false
	}
	mode, _ := rawnl.Find(attrs, unix.IFLA_XDP_ATTACHED)
	return len(mode) > 0 && mode[0] != 0
}

// afSpec returns the attributes of one address family in IFLA_AF_SPEC.
func (l *link) afSpec(family uint16) []rawnl.Attr {
	families, err := rawnl.ParseAttrs(l.attr(unix.IFLA_AF_SPEC))
	if err != nil {
		return nil
	}
	b, _ := rawnl.Find(families, family)
	attrs, err := rawnl.ParseAttrs(b)
	if err != nil {
		return nil
	}
	return attrs
}

// ipv6 reports whether the link takes part in IPv6, with its address generation mode.
func (l *link) ipv6() (mode uint8, ok bool) {
	b, ok := rawnl.Find(l.afSpec(unix.AF_INET6), unix.IFLA_INET6_ADDR_GEN_MODE)
	if !ok || len(b) < 1 {
		return 0, false
	}
	return b[0], true
}

// encodeLink builds an RTM_NEWLINK message.
func encodeLink(family uint8, index int32, flags, change uint32, attrs []rawnl.Attr) rawnl.Message {
	b := make([]byte, unix.SizeofIfInfomsg, 256)
	b[0] = family
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	binary.NativeEndian.PutUint32(b[8:], flags)
	binary.NativeEndian.PutUint32(b[12:], change)
	return rawnl.Message{Type: unix.RTM_NEWLINK, Data: rawnl.AppendAttrs(b, attrs)}
}

func u32Attr(kind uint16, v uint32) rawnl.Attr {
	return rawnl.Attr{Type: kind, Data: binary.NativeEndian.AppendUint32(nil, v)}
}

func strAttr(kind uint16, s string) rawnl.Attr {
	return rawnl.Attr{Type: kind, Data: append([]byte(s), 0)}
}

func nest(kind uint16, attrs ...rawnl.Attr) rawnl.Attr {
	return rawnl.Attr{Type: kind | unix.NLA_F_NESTED, Data: rawnl.EncodeAttrs(attrs)}
}

// only returns the attributes of the listed kinds, in dump order.
func only(attrs []rawnl.Attr, kinds ...uint16) []rawnl.Attr {
	return slices.DeleteFunc(slices.Clone(attrs), func(a rawnl.Attr) bool { return !slices.Contains(kinds, a.Kind()) })
}

// tidyLink removes from a dumped link what is counted, not set: it changes from dump to dump and would fill
// the State.
func tidyLink(m rawnl.Message) rawnl.Message {
	attrs, err := rawnl.ParseAttrs(m.Data[unix.SizeofIfInfomsg:])
	if err != nil {
		return m
	}
	attrs = rawnl.Without(attrs, unix.IFLA_STATS, unix.IFLA_STATS64, unix.IFLA_MAP, unix.IFLA_CARRIER_CHANGES,
		unix.IFLA_CARRIER_UP_COUNT, unix.IFLA_CARRIER_DOWN_COUNT, unix.IFLA_DEVLINK_PORT, unix.IFLA_DPLL_PIN)
	b := slices.Clone(m.Data[:unix.SizeofIfInfomsg])
	return rawnl.Message{Type: m.Type, Data: rawnl.AppendAttrs(b, attrs)}
}
