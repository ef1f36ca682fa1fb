package netstate

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// derivedRoute is what identifies a route that the kernel makes for an address.
type derivedRoute struct {
	typ   uint8
	index int32
	dst   netip.Prefix
}

// derived maps the routes that the kernel makes for a State's addresses to the identity of the address.
type derived map[derivedRoute]string

// derive lists what fib_add_ifaddr (net/ipv4/fib_frontend.c) and __ipv6_ifa_notify (net/ipv6/addrconf.c)
// add to the table local, or to that of a VRF. That an address has no such route, because it is secondary or
// its link is down, does no harm here.
func derive(s *State) derived {
	d := derived{}
	for _, m := range s.messages(KindAddress) {
		a, err := parseAddress(m)
		if err != nil {
			continue
		}
		addr, peer := a.local()
		if !addr.IsValid() || int(a.bits) > addr.BitLen() {
			continue
		}
		id := identity(KindAddress, m)
		add := func(typ uint8, dst netip.Prefix) { d[derivedRoute{typ, a.index, dst}] = id }
		single := func(addr netip.Addr) netip.Prefix { return netip.PrefixFrom(addr, addr.BitLen()) }
		net := netip.PrefixFrom(addr, int(a.bits)).Masked()
		add(unix.RTN_LOCAL, single(addr))
		if a.family == unix.AF_INET6 {
			if peer.IsValid() {
				net = netip.PrefixFrom(peer, int(a.bits)).Masked()
			}
			add(unix.RTN_ANYCAST, single(net.Addr()))
			continue
		}
		add(unix.RTN_LOCAL, net) // of the loopback device
		add(unix.RTN_BROADCAST, single(net.Addr()))
		add(unix.RTN_BROADCAST, single(lastOf(net)))
		if b, ok := rawnl.Find(a.attrs, unix.IFA_BROADCAST); ok {
			if brd, ok := netip.AddrFromSlice(b); ok {
				add(unix.RTN_BROADCAST, single(brd))
			}
		}
	}
	return d
}

// lastOf returns the last address of an IPv4 network.
func lastOf(net netip.Prefix) netip.Addr {
	b := net.Addr().As4()
	for i := net.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

// explains reports whether a route that the other State lacks is there only because of an address: one that
// the other State lacks too, so that the difference is told already; or an IPv6 address, whose routes come
// a moment after it, when duplicate address detection is over.
func (d derived) explains(m rawnl.Message, other map[string]bool) bool {
	r, err := parseRoute(m)
	if err != nil || !r.kernelMade() {
		return false
	}
	key := derivedRoute{typ: r.typ()}
	key.index = int32(rawnl.Uint32(r.attr(unix.RTA_OIF)))
	dst, ok := netip.AddrFromSlice(r.attr(unix.RTA_DST))
	if !ok {
		return false
	}
	if r.family() == unix.AF_INET6 && r.typ() == unix.RTN_MULTICAST {
		return dst == netip.MustParseAddr("ff00::") // comes with a link's carrier
	}
	key.dst = netip.PrefixFrom(dst, int(r.hdr[1]))
	id, ok := d[key]
	return ok && (!other[id] || r.followsDAD())
}

// followsDAD reports whether a route appears when an IPv6 address is no longer tentative. Whether one is there
// is a matter of the moment.
func (r *routeMsg) followsDAD() bool {
	return r.family() == unix.AF_INET6 && r.kernelMade() && (r.typ() == unix.RTN_LOCAL || r.typ() == unix.RTN_ANYCAST)
}
