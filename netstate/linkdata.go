package netstate

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// fixData adapts the dumped IFLA_INFO_DATA of the kinds whose requests differ from their dumps.
func fixData(kind string, data []rawnl.Attr) []rawnl.Attr {
	switch kind {
	case "vxlan":
		return fixVXLAN(data)
	case "vlan":
		for i, a := range data {
			if a.Kind() == unix.IFLA_VLAN_FLAGS && len(a.Data) == 8 { // struct ifla_vlan_flags: flags, mask
				// The mask of a dump is all ones, of which a request accepts the flags that there are.
				data[i].Data = binary.NativeEndian.AppendUint32(slices.Clone(a.Data[:4]), vlanFlags)
			}
		}
		if _, ok := rawnl.Find(data, unix.IFLA_VLAN_FLAGS); !ok { // none, which is not what a new link has
			data = append(data, rawnl.Attr{Type: unix.IFLA_VLAN_FLAGS, Data: binary.NativeEndian.AppendUint32(make([]byte, 4), vlanFlags)})
		}
	case "geneve":
		// A number in both directions, but its mere presence makes a request's IFLA_GENEVE_TTL be ignored.
		return slices.DeleteFunc(data, func(a rawnl.Attr) bool { return a.Kind() == unix.IFLA_GENEVE_TTL_INHERIT && allZero(a.Data) })
	case "gretap", "erspan", "ip6gretap", "ip6erspan":
		// Without a remote end (external) it is dumped as zero and, other than for gre, refused as that.
		return slices.DeleteFunc(data, func(a rawnl.Attr) bool { return a.Kind() == iflaGRERemote && allZero(a.Data) })
	case "bond":
		return fixBond(data)
	case "hsr":
		for i, a := range data {
			if a.Kind() == unix.IFLA_HSR_SUPERVISION_ADDR && len(a.Data) == 6 { // a request has its last byte
				data[i] = rawnl.Attr{Type: unix.IFLA_HSR_MULTICAST_SPEC, Data: a.Data[5:]}
			}
		}
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

// fixBond removes the options that a bond refuses for its mode or for lack of a monitor; a dump has them all.
func fixBond(data []rawnl.Attr) []rawnl.Attr {
	b, ok := rawnl.Find(data, unix.IFLA_BOND_MODE)
	if !ok || len(b) != 1 {
		return data // options that are set late, which are dumped only if they have a meaning
	}
	mode := b[0]
	var refused []uint16
	if mode != bondModeRoundRobin {
		refused = append(refused, unix.IFLA_BOND_PACKETS_PER_SLAVE)
	}
	if mode == bondMode8023AD || mode == bondModeTLB || mode == bondModeALB {
		refused = append(refused, unix.IFLA_BOND_ARP_INTERVAL, unix.IFLA_BOND_ARP_VALIDATE, unix.IFLA_BOND_ARP_IP_TARGET,
			unix.IFLA_BOND_NS_IP6_TARGET, unix.IFLA_BOND_MISSED_MAX)
	}
	if mode != bondModeActiveBackup && mode != bondModeTLB && mode != bondModeALB {
		refused = append(refused, unix.IFLA_BOND_PRIMARY_RESELECT)
	}
	if mode != bondMode8023AD {
		refused = append(refused, unix.IFLA_BOND_AD_LACP_RATE, unix.IFLA_BOND_AD_LACP_ACTIVE, unix.IFLA_BOND_COUPLED_CONTROL)
	}
	if mode != bondModeTLB {
		refused = append(refused, unix.IFLA_BOND_TLB_DYNAMIC_LB)
	}
	if miimon, _ := rawnl.Find(data, unix.IFLA_BOND_MIIMON); allZero(miimon) {
		refused = append(refused, unix.IFLA_BOND_UPDELAY, unix.IFLA_BOND_DOWNDELAY, unix.IFLA_BOND_PEER_NOTIF_DELAY)
	}
	return rawnl.Without(data, refused...)
}

func allZero(b []byte) bool { return !slices.ContainsFunc(b, func(c byte) bool { return c != 0 }) }

// portData returns the settings among a port's IFLA_INFO_SLAVE_DATA.
func portData(l *link) []rawnl.Attr {
	switch l.slave {
	case "bridge":
		return rawnl.Without(l.port, bridgePortState()...)
	case "bond":
		port := only(l.port, unix.IFLA_BOND_SLAVE_QUEUE_ID, unix.IFLA_BOND_SLAVE_PRIO)
		// Most modes have no priorities.
		return slices.DeleteFunc(port, func(a rawnl.Attr) bool { return a.Kind() == unix.IFLA_BOND_SLAVE_PRIO && allZero(a.Data) })
	}
	return nil
}

// tidyPorts removes the state from the dumped ports of bridges, except where a user set it: that can only be disabled,
// without spanning tree, and while the port has a carrier (br_set_port_state of net/bridge/br_stp_if.c).
func tidyPorts(msgs []rawnl.Message, links []link) {
	plain := map[int32]bool{} // bridges without spanning tree that are up
	for i := range links {
		stp, ok := rawnl.Find(links[i].data, unix.IFLA_BR_STP_STATE)
		plain[links[i].index] = links[i].kind == "bridge" && ok && allZero(stp) && links[i].flags&iffUp != 0
	}
	for i := range links {
		l := &links[i]
		state, ok := rawnl.Find(l.port, unix.IFLA_BRPORT_STATE)
		if !ok || l.slave != "bridge" || allZero(state) && plain[l.master] && l.flags&iffUp != 0 && string(l.attr(unix.IFLA_OPERSTATE)) == operUp {
			continue
		}
		attrs := rawnl.Rewrite(msgs[i].Data[unix.SizeofIfInfomsg:], func(a rawnl.Attr) (rawnl.Attr, bool) {
			if a.Kind() == unix.IFLA_LINKINFO {
				a.Data = rawnl.Rewrite(a.Data, func(info rawnl.Attr) (rawnl.Attr, bool) {
					if info.Kind() == unix.IFLA_INFO_SLAVE_DATA {
						info.Data = rawnl.Rewrite(info.Data, func(p rawnl.Attr) (rawnl.Attr, bool) { return p, p.Kind() != unix.IFLA_BRPORT_STATE })
					}
					return info, true
				})
			}
			return a, true
		})
		msgs[i].Data = append(slices.Clone(msgs[i].Data[:unix.SizeofIfInfomsg]), attrs...)
	}
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
		if l.rule().noMAC { // it is that of the device outside
			drop = append(drop, unix.IFLA_ADDRESS)
		}
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
		port := portData(&l)
		if l.slave == "bridge" {
			port = append(port, only(l.port, unix.IFLA_BRPORT_STATE)...)
		}
		attrs = append(attrs, nest(unix.IFLA_LINKINFO, strAttr(unix.IFLA_INFO_SLAVE_KIND, l.slave), nest(unix.IFLA_INFO_SLAVE_DATA, port...)))
	}
	if l.dormant() {
		attrs = append(attrs, only(l.attrs, unix.IFLA_OPERSTATE)...)
	}
	if l.unplugged() {
		attrs = append(attrs, only(l.attrs, unix.IFLA_CARRIER)...)
	}
	if mode, ok := l.ipv6(); ok {
		attrs = append(attrs, genMode(&l, mode))
	}
	out := encodeLink(l.family, l.index, l.flags&settableFlags, 0, attrs)
	copy(out.Data[2:4], m.Data[2:4])
	return out
}
