package netstate

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/nsmigrate/nsmigrate/netstate/iptables"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Kind is a class of kernel objects that are dumped together. Its value is the section's number in the
// binary form, so values are never reused.
type Kind uint16

// The kinds, in the order in which they are rendered.
const (
	KindLink       Kind = 1  // rtnetlink links, without statistics
	KindBridgeVLAN Kind = 2  // the VLAN tables of bridges and their ports (links of family AF_BRIDGE)
	KindAddress    Kind = 3  // IPv4 and IPv6 addresses
	KindNexthop    Kind = 4  // nexthop objects and groups
	KindRoute      Kind = 5  // routes of all tables
	KindRule       Kind = 6  // policy routing rules
	KindNeigh      Kind = 7  // neighbour and proxy entries
	KindFDB        Kind = 8  // forwarding entries of bridges, vxlans and plain devices
	KindMDB        Kind = 9  // multicast forwarding entries of bridges
	KindAddrLabel  Kind = 10 // IPv6 address selection labels
	KindNFTables   Kind = 11 // nftables, see package nftables
	KindConntrack  Kind = 12 // connection tracking entries, see package conntrack
	KindTC         Kind = 13 // traffic control, see package tc
	KindIPSet      Kind = 14 // sets of ipset, see package ipset
	KindXFRM       Kind = 15 // IPsec states and policies, see package xfrm
	KindVLANOption Kind = 16 // options of the VLANs of bridges and their ports, where they are not the usual ones
	KindVNI        Kind = 17 // VNI filters of vxlans
	KindGeneric    Kind = 18 // objects of generic netlink families, see package genl
	KindNetfilter  Kind = 19 // accounts and timeout policies of netfilter, see package netfilter
)

// kinds lists all kinds in rendering order.
func kinds() []Kind {
	return []Kind{
		KindLink, KindBridgeVLAN, KindVLANOption, KindVNI, KindAddress, KindNexthop, KindRoute, KindRule, KindNeigh, KindFDB, KindMDB,
		KindAddrLabel, KindTC, KindNetfilter, KindIPSet, KindNFTables, KindConntrack, KindXFRM, KindGeneric,
	}
}

func (k Kind) String() string {
	switch k {
	case KindLink:
		return "link"
	case KindBridgeVLAN:
		return "vlan"
	case KindAddress:
		return "address"
	case KindNexthop:
		return "nexthop"
	case KindRoute:
		return "route"
	case KindRule:
		return "rule"
	case KindNeigh:
		return "neigh"
	case KindFDB:
		return "fdb"
	case KindMDB:
		return "mdb"
	case KindAddrLabel:
		return "addrlabel"
	case KindNFTables:
		return "nft"
	case KindConntrack:
		return "conntrack"
	case KindTC:
		return "tc"
	case KindIPSet:
		return "ipset"
	case KindXFRM:
		return "xfrm"
	case KindGeneric:
		return "genl"
	case KindNetfilter:
		return "netfilter"
	case KindVLANOption:
		return "vlan option"
	case KindVNI:
		return "vni"
	}
	return fmt.Sprintf("kind %d", uint16(k))
}

// plural returns the kind's title in a list.
func (k Kind) plural() string {
	switch k {
	case KindAddress:
		return "addresses"
	case KindNeigh:
		return "neighbours"
	case KindFDB, KindMDB, KindNFTables, KindConntrack, KindTC, KindIPSet, KindXFRM, KindGeneric, KindNetfilter:
		return k.String()
	}
	return k.String() + "s"
}

// State is the network state of one namespace. It is plain data; the zero value and nil stand for a fresh
// namespace.
type State struct {
	Kernel   string                   // release of the kernel that was captured, as uname -r prints it
	Messages map[Kind][]rawnl.Message // the kernel's messages in dump order
	Sysctls  []Sysctl                 // sorted by path; see [Sysctl] for which
	Tables   []iptables.Table         // rulesets of legacy iptables, arptables
	uplinks  []Uplink
	losses   []Loss
	others   []Loss // those of the losses that only a full capture looks for
}

// Loss is an object that a capture saw and that a State does not carry.
type Loss struct {
	Kind   string `json:"kind"`   // class of object: "link", "qdisc", "ipset" ...
	Object string `json:"object"` // in the words of ip(8)
	Reason string `json:"reason"`
	Remedy string `json:"remedy,omitempty"` // what the user can do; may be empty
}

func (l Loss) String() string { return fmt.Sprintf("%s %s: %s", l.Kind, l.Object, l.Reason) }

// Losses returns what the capture saw and could not take along.
func (s *State) Losses() []Loss { return s.losses }

// Uplinks returns how the namespace hangs on its host.
func (s *State) Uplinks() []Uplink { return s.uplinks }

// Address is one address of the namespace in decoded form.
type Address struct {
	Device string       `json:"device"` // name of the interface
	Prefix netip.Prefix `json:"prefix"` // the address itself with its prefix length, host bits kept
	Peer   netip.Addr   `json:"peer"`   // the other end of a point-to-point address, or the zero Addr
	Scope  uint8        `json:"scope"`  // rtnetlink scope: 0 global, 253 link, 254 host
	Flags  uint32       `json:"flags"`  // IFA_F_*
}

// Addresses returns the namespace's IPv4 and IPv6 addresses in dump order.
func (s *State) Addresses() []Address {
	if s == nil {
		return nil
	}
	names := s.names()
	addrs := make([]Address, 0, len(s.Messages[KindAddress]))
	for _, m := range s.Messages[KindAddress] {
		if a, ok := decodeAddress(m, names); ok {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// linkNames maps interface indexes to names.
type linkNames map[int32]string

// of returns the name of an index, or ip(8)'s notation for an unknown one.
func (n linkNames) of(index int32) string {
	if name, ok := n[index]; ok {
		return name
	}
	return fmt.Sprintf("if%d", index)
}

func (s *State) names() linkNames {
	if s == nil {
		return linkNames{}
	}
	names := make(linkNames, len(s.Messages[KindLink]))
	for _, m := range s.Messages[KindLink] {
		if l, err := parseLink(m); err == nil {
			names[l.index] = l.name
		}
	}
	return names
}

// MAC returns the link-layer address of a device; it is empty if the device has none or doesn't exist.
func (s *State) MAC(device string) net.HardwareAddr {
	links, err := s.links()
	if err != nil {
		return nil
	}
	for i := range links {
		if links[i].name == device {
			return links[i].mac()
		}
	}
	return nil
}

func (s *State) hasBridge() bool {
	links, err := s.links()
	return err == nil && slices.ContainsFunc(links, func(l link) bool { return l.kind == "bridge" })
}
