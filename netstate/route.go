package netstate

import (
	"encoding/binary"
	"iter"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// routeMsg is a checked RTM_NEWROUTE message. It aliases the message: there may be a million of them, each of which is
// looked at several times.
type routeMsg struct {
	hdr   [unix.SizeofRtMsg]byte // family, dst_len, src_len, tos, table, protocol, scope, type, flags
	attrs []byte
}

func parseRoute(m rawnl.Message) (routeMsg, error) {
	if len(m.Data) < unix.SizeofRtMsg {
		return routeMsg{}, errShort
	}
	attrs := m.Data[unix.SizeofRtMsg:]
	return routeMsg{hdr: [unix.SizeofRtMsg]byte(m.Data), attrs: attrs}, rawnl.Check(attrs)
}

func (r *routeMsg) family() uint8   { return r.hdr[0] }
func (r *routeMsg) protocol() uint8 { return r.hdr[5] }
func (r *routeMsg) scope() uint8    { return r.hdr[6] }
func (r *routeMsg) typ() uint8      { return r.hdr[7] }

// attr returns the data of an attribute; nil if there is none.
func (r *routeMsg) attr(kind uint16) []byte { return rawnl.Get(r.attrs, kind) }

// list returns the attributes.
func (r *routeMsg) list() []rawnl.Attr {
	attrs, _ := rawnl.ParseAttrs(r.attrs) // checked before
	return attrs
}

func (r *routeMsg) table() uint32 {
	if b := r.attr(unix.RTA_TABLE); b != nil {
		return rawnl.Uint32(b)
	}
	return uint32(r.hdr[4])
}

// usesNexthop reports whether the route goes through a nexthop object.
func (r *routeMsg) usesNexthop() bool { return r.attr(rtaNHID) != nil }

// gatewayed reports whether the route needs another route that reaches its gateway.
func (r *routeMsg) gatewayed() bool {
	for a := range rawnl.Each(r.attrs) {
		switch a.Kind() {
		case unix.RTA_GATEWAY, unix.RTA_VIA, unix.RTA_MULTIPATH, rtaNHID:
			return true
		}
	}
	return false
}

// kernelMade reports whether the route belongs to an address or a link and comes and goes with it: entries
// of table local, and the broadcast, anycast and multicast routes beside them.
func (r *routeMsg) kernelMade() bool {
	return r.protocol() == unix.RTPROT_KERNEL && r.typ() != unix.RTN_UNICAST
}

// uses reports whether a nexthop of the route is the device.
func (r *routeMsg) uses(index int32) bool {
	if b := r.attr(unix.RTA_OIF); b != nil && int32(rawnl.Uint32(b)) == index {
		return true
	}
	for hop := range nexthopsOf(r.attr(unix.RTA_MULTIPATH)) {
		if int32(binary.NativeEndian.Uint32(hop[4:])) == index {
			return true
		}
	}
	return false
}

// nexthopsOf yields the nexthops of RTA_MULTIPATH: each a struct rtnexthop (length, flags, hops, ifindex)
// with its attributes. They alias b.
func nexthopsOf(b []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for len(b) >= unix.SizeofRtNexthop {
			n := int(binary.NativeEndian.Uint16(b))
			if n < unix.SizeofRtNexthop || n > len(b) || !yield(b[:n:n]) {
				return
			}
			b = b[min(rawnl.Align(n), len(b)):]
		}
	}
}

// programmed reports whether the attributes of a route, of one of its nexthops or of a nexthop object say that a BPF
// program makes the encapsulation. It is known by a descriptor, which only its loader has.
func programmed(attrs []byte) bool {
	for _, part := range [][2]uint16{{unix.RTA_ENCAP_TYPE, unix.RTA_ENCAP}, {unix.NHA_ENCAP_TYPE, unix.NHA_ENCAP}} {
		typ := rawnl.Get(attrs, part[0])
		if len(typ) != 2 {
			continue // another attribute has this number
		}
		switch binary.NativeEndian.Uint16(typ) {
		case unix.LWTUNNEL_ENCAP_BPF:
			return true
		case lwtunnelSEG6Local:
			return rawnl.Get(rawnl.Get(attrs, part[1]), seg6LocalBPF) != nil
		}
	}
	return false
}

// programmedRoute is [programmed] for a dumped route and its nexthops.
func programmedRoute(m rawnl.Message) bool {
	if len(m.Data) < unix.SizeofRtMsg {
		return false
	}
	attrs := m.Data[unix.SizeofRtMsg:]
	var hops []byte
	encapsulated := false
	for a := range rawnl.Each(attrs) {
		switch a.Kind() {
		case unix.RTA_MULTIPATH:
			hops = a.Data
		case unix.RTA_ENCAP_TYPE:
			encapsulated = true
		}
	}
	if hops == nil && !encapsulated {
		return false // as nearly all of a million
	}
	for hop := range nexthopsOf(hops) {
		if programmed(hop[unix.SizeofRtNexthop:]) {
			return true
		}
	}
	return programmed(attrs)
}

// asStated reports whether a dumped route has the form in which a request states it already, as nearly all of
// IPv4's have: then the message serves as it is, and a million routes are not copied.
func (r *routeMsg) asStated() bool {
	if r.family() == unix.AF_MPLS || binary.NativeEndian.Uint32(r.hdr[8:])&^(unix.RTNH_F_ONLINK|unix.RTNH_F_PERVASIVE) != 0 {
		return false
	}
	for a := range rawnl.Each(r.attrs) {
		switch a.Kind() {
		case unix.RTA_CACHEINFO, unix.RTA_EXPIRES, unix.RTA_IIF, unix.RTA_UID, rtaNHID, unix.RTA_MULTIPATH:
			return false
		}
	}
	return true
}

// routeRequest is the form in which a request states a route.
type routeRequest struct {
	hdr   [unix.SizeofRtMsg]byte
	attrs []rawnl.Attr
}

func (r *routeRequest) encode(typ, flags uint16) rawnl.Message {
	return join(typ, flags, r.hdr[:], r.attrs)
}

// input turns a dumped route into a request.
func (r *routeMsg) input() routeRequest {
	in := routeRequest{hdr: r.hdr}
	// Of the flags only onlink is set by users; linkdown, offload and the like are the kernel's findings.
	flags := binary.NativeEndian.Uint32(r.hdr[8:])
	binary.NativeEndian.PutUint32(in.hdr[8:], flags&(unix.RTNH_F_ONLINK|unix.RTNH_F_PERVASIVE))
	in.attrs = rawnl.Without(r.list(), unix.RTA_CACHEINFO, unix.RTA_EXPIRES, unix.RTA_IIF, unix.RTA_UID)
	if r.usesNexthop() {
		// With net.ipv4.nexthop_compat_mode the dump states the nexthop's contents as well.
		in.attrs = rawnl.Without(in.attrs, unix.RTA_OIF, unix.RTA_GATEWAY, unix.RTA_VIA, unix.RTA_MULTIPATH,
			unix.RTA_ENCAP, unix.RTA_ENCAP_TYPE, unix.RTA_FLOW)
		binary.NativeEndian.PutUint32(in.hdr[8:], 0)
	}
	for i, a := range in.attrs {
		if a.Kind() == unix.RTA_MULTIPATH {
			in.attrs[i].Data = cleanNexthops(a.Data)
		}
	}
	return in
}

// cleanNexthops keeps the onlink flag alone in each struct rtnexthop of a multipath route.
func cleanNexthops(b []byte) []byte {
	b = slices.Clone(b)
	for hop := range nexthopsOf(b) {
		hop[2] &= unix.RTNH_F_ONLINK | unix.RTNH_F_PERVASIVE
	}
	return b
}

// userHZ is the unit of rta_cacheinfo on every architecture that Go supports.
const userHZ = 100

// expires returns the remaining lifetime of a route in seconds, 0 if it has none.
func (r *routeMsg) expires() uint32 {
	b := r.attr(unix.RTA_CACHEINFO)
	if len(b) < sizeofRtaCacheinfo || r.family() != unix.AF_INET6 {
		return 0
	}
	left := int32(binary.NativeEndian.Uint32(b[8:])) // struct rta_cacheinfo: clntref, lastuse, expires
	if left <= 0 {
		return 0
	}
	return uint32(left)/userHZ + 1
}

func routeAdd(r *routeMsg) rawnl.Message {
	in := r.input()
	if r.family() == unix.AF_MPLS { // a label has one route
		return in.encode(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	}
	if left := r.expires(); left > 0 {
		in.attrs = append(in.attrs, u32Attr(unix.RTA_EXPIRES, left))
	}
	return in.encode(unix.RTM_NEWROUTE, routeAddFlags)
}

const routeAddFlags = unix.NLM_F_CREATE | unix.NLM_F_APPEND

func routeDelete(r *routeMsg) rawnl.Message {
	in := r.input()
	in.attrs = rawnl.Without(in.attrs, unix.RTA_PREF)
	return in.encode(unix.RTM_DELROUTE, 0)
}

// normalizeRoute brings a dumped route into the form of a request; that it expires is kept, when is not.
func normalizeRoute(m rawnl.Message) rawnl.Message {
	r, err := parseRoute(m)
	if err != nil || r.asStated() {
		return m
	}
	in := r.input()
	if r.expires() > 0 {
		in.attrs = append(in.attrs, u32Attr(unix.RTA_EXPIRES, 0))
	}
	return in.encode(unix.RTM_NEWROUTE, 0)
}

// rank orders routes so that what a gateway is reached by comes before what goes through it: IPv4 checks
// gateways against routes of a narrower scope, which has the larger number; in IPv6 all scopes are 0.
func (r *routeMsg) rank() int {
	rank := 2 * (0xff - int(r.scope()))
	if r.gatewayed() {
		rank++
	}
	return rank
}
