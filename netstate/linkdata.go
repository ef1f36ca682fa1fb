package netstate

import (
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// fixData adapts the dumped IFLA_INFO_DATA of the kinds whose requests differ from their dumps.
func fixData(kind string, data []rawnl.Attr) []rawnl.Attr {
	switch kind {
	case "vxlan":
		return fixVXLAN(data)
	case "bridge":
		// Stating the group address, even the default, makes the kernel keep it when the protocol changes.
		// To touch what the kernel was built without is refused, even to turn it off, which it is anyway.
		data = slices.DeleteFunc(data, func(a rawnl.Attr) bool {
			return a.Kind() == unix.IFLA_BR_GROUP_ADDR && string(a.Data) == "\x01\x80\xc2\x00\x00\x00" ||
				a.Kind() == unix.IFLA_BR_VLAN_FILTERING && allZero(a.Data)
		})
		for i, a := range data {
			if a.Kind() == unix.IFLA_BR_MULTI_BOOLOPT && len(a.Data) == 8 { // struct br_boolopt_multi: value, mask
				// The mask says which options are touched.
				data[i].Data = append(slices.Clone(a.Data[:4]), a.Data[:4]...)
			}
		}
	case "macvlan", "macvtap":
		if _, ok := rawnl.Find(data, unix.IFLA_MACVLAN_MACADDR_DATA); ok {
			return append(data, u32Attr(unix.IFLA_MACVLAN_MACADDR_MODE, macvlanMacaddrSet))
		}
	}
	return data
}

// linkIn returns the attribute of a kind's IFLA_INFO_DATA that repeats the index of the lower device, 0 if there
// is none. IFLA_GRE_LINK, IFLA_IPTUN_LINK, IFLA_VTI_LINK and IFLA_XFRM_LINK have the same number.
func linkIn(kind string) uint16 {
	switch kind {
	case "vxlan":
		return unix.IFLA_VXLAN_LINK
	case "gre", "gretap", "erspan", "ip6gre", "ip6gretap", "ip6erspan", "ipip", "ip6tnl", "sit", "vti", "vti6", "xfrm":
		return 1
	}
	return 0
}

// fixVXLAN removes flags that are off and whose mere presence in a request has an effect.
func fixVXLAN(data []rawnl.Attr) []rawnl.Attr {
	var out []rawnl.Attr
	for _, a := range data {
		switch a.Kind() {
		case unix.IFLA_VXLAN_REMCSUM_TX, unix.IFLA_VXLAN_REMCSUM_RX:
			if allZero(a.Data) {
				continue // would claim a header bit
			}
		case unix.IFLA_VXLAN_TTL_INHERIT:
			if allZero(a.Data) {
				continue
			}
			a.Data = nil // a number in a dump, a flag in a request
		}
		out = append(out, a)
	}
	return out
}

func allZero(b []byte) bool { return !slices.ContainsFunc(b, func(c byte) bool { return c != 0 }) }

// portData returns the settings among a port's IFLA_INFO_SLAVE_DATA.
func portData(l *link) []rawnl.Attr {
	switch l.slave {
	case "bridge":
		return rawnl.Without(l.port, bridgePortState()...)
	case "bond":
		return only(l.port, unix.IFLA_BOND_SLAVE_QUEUE_ID, unix.IFLA_BOND_SLAVE_PRIO)
	}
	return nil
}

// bridgePortState lists the attributes of a bridge port that report and don't set. The port's state is
// among them: it follows from spanning tree and carrier.
func bridgePortState() []uint16 {
	return []uint16{
		unix.IFLA_BRPORT_STATE, unix.IFLA_BRPORT_ROOT_ID, unix.IFLA_BRPORT_BRIDGE_ID, unix.IFLA_BRPORT_DESIGNATED_PORT,
		unix.IFLA_BRPORT_DESIGNATED_COST, unix.IFLA_BRPORT_ID, unix.IFLA_BRPORT_NO, unix.IFLA_BRPORT_TOPOLOGY_CHANGE_ACK,
		unix.IFLA_BRPORT_CONFIG_PENDING, unix.IFLA_BRPORT_MESSAGE_AGE_TIMER, unix.IFLA_BRPORT_FORWARD_DELAY_TIMER,
		unix.IFLA_BRPORT_HOLD_TIMER, unix.IFLA_BRPORT_PAD, unix.IFLA_BRPORT_MCAST_EHT_HOSTS_CNT,
		unix.IFLA_BRPORT_MCAST_N_GROUPS, unix.IFLA_BRPORT_MRP_RING_OPEN, unix.IFLA_BRPORT_MRP_IN_OPEN,
	}
}

// normalizeLink removes from a link what follows from the world outside or from its own life: carrier and
// operational state, promiscuity counts (open packet sockets), the queueing discipline's name (an object of
// its own), the index of an outside device, limits that the driver states, the per-device parameters (they
// are sysctls), and what bridges and ports learn and count.
func normalizeLink(m rawnl.Message) rawnl.Message {
	l, err := parseLink(m)
	if err != nil {
		return m
	}
	drop := []uint16{
		unix.IFLA_OPERSTATE, unix.IFLA_CARRIER, unix.IFLA_PROMISCUITY, unix.IFLA_ALLMULTI, unix.IFLA_QDISC,
		unix.IFLA_LINK_NETNSID, unix.IFLA_MIN_MTU, unix.IFLA_MAX_MTU, unix.IFLA_TSO_MAX_SIZE, unix.IFLA_TSO_MAX_SEGS,
		unix.IFLA_AF_SPEC, unix.IFLA_LINKINFO, unix.IFLA_XDP, unix.IFLA_PERM_ADDRESS, iflaMaxPacingHorizon,
		iflaHeadroom, iflaTailroom, iflaNetnsImmutable, unix.IFLA_EVENT,
	}
	if l.outside {
		drop = append(drop, unix.IFLA_LINK)
	}
	attrs := rawnl.Without(l.attrs, drop...)
	if l.kind != "" {
		data := rawnl.Without(l.data, l.rule().drop...)
		if l.outside && linkIn(l.kind) != 0 {
			data = rawnl.Without(data, linkIn(l.kind))
		}
		attrs = append(attrs, nest(unix.IFLA_LINKINFO, strAttr(unix.IFLA_INFO_KIND, l.kind), nest(unix.IFLA_INFO_DATA, data...)))
	}
	if l.slave != "" {
		attrs = append(attrs, nest(unix.IFLA_LINKINFO, strAttr(unix.IFLA_INFO_SLAVE_KIND, l.slave), nest(unix.IFLA_INFO_SLAVE_DATA, portData(&l)...)))
	}
	if mode, ok := l.ipv6(); ok {
		attrs = append(attrs, genMode(&l, mode))
	}
	out := encodeLink(l.family, l.index, l.flags&settableFlags, 0, attrs)
	copy(out.Data[2:4], m.Data[2:4])
	return out
}
