package netstate

import (
	"math"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// reached puts nexthop objects between operations that make their gateways reachable and operations that end this. A
// gateway must be when the object is made, but not later: a route may lead there, which is made after the objects that
// routes go through, or an address that has gone since.
func (p *planner) reached(nexthops []Op) []Op {
	type hop struct {
		gateway netip.Addr
		device  int32
	}
	var before, after []Op
	have := map[hop]bool{}
	for i := range nexthops {
		gateway, device := gatewayOf(nexthops[i].Object)
		if !gateway.IsValid() || device == 0 || gateway.IsLinkLocalUnicast() && gateway.Is6() || have[hop{gateway, device}] || p.connected(gateway, device) {
			continue
		}
		have[hop{gateway, device}] = true
		m := p.hostRoute(gateway, device)
		before = append(before, Op{Verb: "add", Kind: KindRoute, Object: m, Msg: rawnl.Message{Type: unix.RTM_NEWROUTE, Flags: routeAddFlags, Data: m.Data}})
		after = append(after, Op{Verb: "delete", Kind: KindRoute, Object: m, Msg: rawnl.Message{Type: unix.RTM_DELROUTE, Data: m.Data}})
	}
	return append(append(before, nexthops...), after...)
}

// gatewayOf returns the gateway of a nexthop object that has to be reachable, and its device; a nexthop of forwarding
// entries has none.
func gatewayOf(m rawnl.Message) (netip.Addr, int32) {
	hdr, attrs, err := split(m, sizeofNhMsg)
	if err != nil || rawnl.Uint32(hdr[4:])&unix.RTNH_F_ONLINK != 0 {
		return netip.Addr{}, 0
	}
	b, _ := rawnl.Find(attrs, unix.NHA_GATEWAY)
	gateway, _ := netip.AddrFromSlice(b)
	device, _ := rawnl.Find(attrs, unix.NHA_OIF)
	return gateway, int32(rawnl.Uint32(device))
}

// connected reports whether an address of a device makes the kernel add a route to a gateway.
func (p *planner) connected(gateway netip.Addr, device int32) bool {
	for _, m := range p.s.Messages[KindAddress] {
		a, err := parseAddress(m)
		if err != nil || a.index != device || a.flags&unix.IFA_F_NOPREFIXROUTE != 0 {
			continue
		}
		addr, peer := a.local()
		if peer.IsValid() {
			addr = peer
		}
		if prefix, err := addr.Prefix(int(a.bits)); err == nil && prefix.Contains(gateway) {
			return true
		}
	}
	return false
}

// hostRoute returns a route to one address of the network that a device is in. No other route has its metric.
func (p *planner) hostRoute(to netip.Addr, device int32) rawnl.Message {
	hdr := make([]byte, unix.SizeofRtMsg)
	hdr[0], hdr[1] = unix.AF_INET, byte(to.BitLen())
	if to.Is6() {
		hdr[0] = unix.AF_INET6
	}
	hdr[5], hdr[6], hdr[7] = unix.RTPROT_STATIC, unix.RT_SCOPE_LINK, unix.RTN_UNICAST
	return join(unix.RTM_NEWROUTE, 0, hdr, []rawnl.Attr{
		{Type: unix.RTA_DST, Data: to.AsSlice()},
		u32Attr(unix.RTA_OIF, uint32(device)),
		u32Attr(unix.RTA_PRIORITY, math.MaxUint32-1), u32Attr(unix.RTA_TABLE, p.tableOf(device)),
	})
}

// tableOf returns the table in which the kernel looks for what a device reaches: that of its VRF, or the main one.
func (p *planner) tableOf(device int32) uint32 {
	if l := p.byIdx[device]; l != nil {
		if master := p.byIdx[l.master]; master != nil && master.kind == "vrf" {
			table, _ := rawnl.Find(master.data, unix.IFLA_VRF_TABLE)
			return rawnl.Uint32(table)
		}
	}
	return unix.RT_TABLE_MAIN
}
