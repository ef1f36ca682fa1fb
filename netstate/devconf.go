package netstate

import (
	"context"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// The parameters that netlink tells of a device, in the order in which it tells them, with "-" for what is no
// parameter, or none that is told right. A suffix says how the file shows what is told as a number (conf) or in
// milliseconds (neigh): u unsigned, s in seconds, t in ticks of USER_HZ.
const (
	// Elements of the array IFLA_INET_CONF: IPV4_DEVCONF_* of linux/ip.h, from 1 on.
	toldIPv4Conf = `forwarding mc_forwarding proxy_arp accept_redirects secure_redirects send_redirects shared_media
		rp_filter accept_source_route bootp_relay log_martians tag arp_filter medium_id disable_xfrm disable_policy
		force_igmp_version arp_announce arp_ignore promote_secondaries arp_accept arp_notify accept_local
		src_valid_mark proxy_arp_pvlan route_localnet igmpv2_unsolicited_report_interval
		igmpv3_unsolicited_report_interval ignore_routes_with_linkdown drop_unicast_in_l2_multicast
		drop_gratuitous_arp bc_forwarding arp_evict_nocarrier`
	// Elements of the array IFLA_INET6_CONF: DEVCONF_* of linux/ipv6.h.
	toldIPv6Conf = `forwarding hop_limit mtu accept_ra accept_redirects autoconf dad_transmits router_solicitations
		router_solicitation_interval:s router_solicitation_delay:s use_tempaddr temp_valid_lft ` +
		`temp_prefered_lft ` + //nolint:misspell // the kernel's
		`regen_max_retry max_desync_factor max_addresses force_mld_version accept_ra_defrtr accept_ra_pinfo
		accept_ra_rtr_pref router_probe_interval:s accept_ra_rt_info_max_plen proxy_ndp optimistic_dad
		accept_source_route mc_forwarding disable_ipv6 accept_dad force_tllao ndisc_notify
		mldv1_unsolicited_report_interval:u mldv2_unsolicited_report_interval:u suppress_frag_ndisc
		accept_ra_from_local use_optimistic accept_ra_mtu - use_oif_addrs_only accept_ra_min_hop_limit
		ignore_routes_with_linkdown
		drop_unicast_in_l2_multicast drop_unsolicited_na keep_addr_on_down router_solicitation_max_interval:s
		seg6_enabled seg6_require_hmac enhanced_dad - disable_policy accept_ra_rt_info_min_plen ndisc_tclass
		rpl_seg_enabled ra_defrtr_metric:u ioam6_enabled ioam6_id:u ioam6_id_wide:u ndisc_evict_nocarrier
		accept_untracked_na accept_ra_min_lft force_forwarding`
	// Attributes of NDTA_PARMS: NDTPA_* of linux/neighbour.h.
	toldNeigh = `- - - - base_reachable_time_ms retrans_time_ms gc_stale_time:s delay_first_probe_time:s - app_solicit
		ucast_solicit mcast_solicit anycast_delay:t proxy_delay:t proxy_qlen locktime:t unres_qlen_bytes
		mcast_resolicit - interval_probe_time_ms`
)

// told is what netlink tells of the parameters of devices: one answer has hundreds of values, each of which would be a
// file to open. It has an array (conf) or a run of attributes (neigh) for each device and directory of [perDevice].
type told map[deviceDir][]byte

type deviceDir struct{ dev, dir string }

// tell asks netlink for the parameters of the links of a namespace.
func tell(ctx context.Context, n *ns.NS, links []link) (told, error) {
	nl, err := rawnl.Dial(n, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer nl.Close()
	msgs, err := nl.Dump(ctx, rawnl.Message{Type: unix.RTM_GETNEIGHTBL, Data: make([]byte, sizeofNdtMsg)})
	if err != nil {
		return nil, fmt.Errorf("dump neighbour tables: %w", err)
	}
	t, names := toldOf(links...), make(map[int32]string, len(links))
	for i := range links {
		names[links[i].index] = links[i].name
	}
	for _, m := range msgs {
		if len(m.Data) < sizeofNdtMsg {
			continue
		}
		params := rawnl.Get(m.Data[sizeofNdtMsg:], ndtaParms)
		name, ok := names[int32(rawnl.Uint32(rawnl.Get(params, ndtpaIfindex)))]
		if !ok {
			continue
		}
		for _, kind := range []uint16{ndtpaIfindex, ndtpaRefcnt, ndtpaReachableTime} { // what else is told of two devices is often the same
			clear(rawnl.Get(params, kind))
		}
		switch m.Data[0] {
		case unix.AF_INET:
			t[deviceDir{name, "ipv4/neigh"}] = params
		case unix.AF_INET6:
			t[deviceDir{name, "ipv6/neigh"}] = params
		}
	}
	return t, nil
}

// toldOf returns what links themselves tell, which leaves neighbours out.
func toldOf(links ...link) told {
	t := told{}
	for i := range links {
		l := &links[i]
		if array, ok := rawnl.Find(l.afSpec(unix.AF_INET), iflaInetConf); ok {
			t[deviceDir{l.name, "ipv4/conf"}] = array
		}
		if array, ok := rawnl.Find(l.afSpec(unix.AF_INET6), iflaInet6Conf); ok {
			t[deviceDir{l.name, "ipv6/conf"}] = array
		}
	}
	return t
}

// deviceParam is a parameter that devices have.
type deviceParam struct {
	name string // of the file
	at   int    // position of the element, or kind of the attribute; -1 if netlink doesn't tell the parameter
	unit string // suffix in the list of the directory
}

// toldParams returns the parameters that netlink tells in a directory of [perDevice], by name.
func toldParams(dir string) map[string]deviceParam {
	list := toldNeigh
	switch dir {
	case "ipv4/conf":
		list = toldIPv4Conf
	case "ipv6/conf":
		list = toldIPv6Conf
	}
	params := map[string]deviceParam{}
	for at, word := range strings.Fields(list) {
		name, unit, _ := strings.Cut(word, ":")
		params[name] = deviceParam{name, at, unit}
	}
	return params
}

// in returns the value that the parameter's file shows, from what netlink tells; false if that doesn't say it exactly.
func (p *deviceParam) in(dir string, told []byte) (string, bool) {
	var v int64
	if p.at < 0 {
		return "", false
	} else if strings.HasSuffix(dir, "/conf") {
		if len(told) < 4*p.at+4 {
			return "", false
		}
		v = int64(int32(binary.NativeEndian.Uint32(told[4*p.at:])))
	} else {
		switch b := rawnl.Get(told, uint16(p.at)); len(b) {
		case 4:
			v = int64(binary.NativeEndian.Uint32(b))
		case 8:
			v = int64(binary.NativeEndian.Uint64(b))
		default:
			return "", false
		}
	}
	perUnit := int64(1)
	switch p.unit {
	case "u":
		v = int64(uint32(v))
	case "s":
		perUnit = 1000
	case "t":
		perUnit = 1000 / userHZ
	}
	if perUnit > 1 && (v < 0 || v%perUnit != 0) {
		return "", false
	}
	return strconv.FormatInt(v/perUnit, 10), true
}
