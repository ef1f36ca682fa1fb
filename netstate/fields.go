package netstate

import "golang.org/x/sys/unix"

// The tables in this file name attributes in the words of ip(8) and bridge(8).

func routeFields() []field {
	return []field{
		{unix.RTA_OIF, "dev", formDev, nil},
		{unix.RTA_GATEWAY, "via", formAddr, nil},
		{unix.RTA_PRIORITY, "metric", formNumber, nil},
		{unix.RTA_PREFSRC, "src", formAddr, nil},
		{unix.RTA_FLOW, "realm", formNumber, nil},
		{unix.RTA_EXPIRES, "expires", formNumber, nil},
		{unix.RTA_ENCAP_TYPE, "encap-type", formNumber, nil},
		{unix.RTA_ENCAP, "encap", formHex, nil},
		{unix.RTA_VIA, "via-family", formHex, nil},
		{unix.RTA_NEWDST, "as", formLabels, nil},
		{unix.RTA_TTL_PROPAGATE, "ttl-propagate", formNumber, nil},
		{rtaNHID, "nhid", formNumber, nil},
		{unix.RTA_METRICS, "metrics", formNest, []field{
			{unix.RTAX_LOCK, "lock", formNumber, nil},
			{unix.RTAX_MTU, "mtu", formNumber, nil},
			{unix.RTAX_WINDOW, "window", formNumber, nil},
			{unix.RTAX_RTT, "rtt", formNumber, nil},
			{unix.RTAX_RTTVAR, "rttvar", formNumber, nil},
			{unix.RTAX_SSTHRESH, "ssthresh", formNumber, nil},
			{unix.RTAX_CWND, "cwnd", formNumber, nil},
			{unix.RTAX_ADVMSS, "advmss", formNumber, nil},
			{unix.RTAX_REORDERING, "reordering", formNumber, nil},
			{unix.RTAX_HOPLIMIT, "hoplimit", formNumber, nil},
			{unix.RTAX_INITCWND, "initcwnd", formNumber, nil},
			{unix.RTAX_FEATURES, "features", formNumber, nil},
			{unix.RTAX_RTO_MIN, "rto_min", formNumber, nil},
			{unix.RTAX_INITRWND, "initrwnd", formNumber, nil},
			{unix.RTAX_QUICKACK, "quickack", formNumber, nil},
			{unix.RTAX_CC_ALGO, "congctl", formString, nil},
			{unix.RTAX_FASTOPEN_NO_COOKIE, "fastopen_no_cookie", formNumber, nil},
		}},
	}
}

// lifetimeMark marks an address whose lifetime is finite in a normalized message: the preferred one, and
// with 1 added the valid one. The kernel has no such attributes.
const lifetimeMark = 0x3000

func addressFields() []field {
	return []field{
		{unix.IFA_BROADCAST, "brd", formAddr, nil},
		{unix.IFA_LABEL, "label", formString, nil},
		{unix.IFA_RT_PRIORITY, "metric", formNumber, nil},
		{ifaProto, "proto", formNumber, nil},
		{lifetimeMark, "preferred_lft-limited", formHex, nil},
		{lifetimeMark + 1, "valid_lft-limited", formHex, nil},
	}
}

func nexthopFields() []field {
	return []field{
		{unix.NHA_ID, "id", formNumber, nil},
		{unix.NHA_GROUP, "group", formHex, nil},
		{unix.NHA_GROUP_TYPE, "type", formNumber, nil},
		{unix.NHA_BLACKHOLE, "blackhole", formHex, nil},
		{unix.NHA_OIF, "dev", formDev, nil},
		{unix.NHA_GATEWAY, "via", formAddr, nil},
		{unix.NHA_ENCAP_TYPE, "encap-type", formNumber, nil},
		{unix.NHA_ENCAP, "encap", formHex, nil},
		{nhaFDB, "fdb", formHex, nil},
	}
}

func ruleFields() []field {
	return []field{
		{unix.FRA_IIFNAME, "iif", formString, nil},
		{unix.FRA_OIFNAME, "oif", formString, nil},
		{unix.FRA_GOTO, "goto", formNumber, nil},
		{unix.FRA_FWMARK, "fwmark", formNumber, nil},
		{unix.FRA_FWMASK, "fwmask", formNumber, nil},
		{unix.FRA_FLOW, "realms", formNumber, nil},
		{unix.FRA_TUN_ID, "tun_id", formBigEndian, nil},
		{unix.FRA_SUPPRESS_IFGROUP, "suppress_ifgroup", formNumber, nil},
		{unix.FRA_SUPPRESS_PREFIXLEN, "suppress_prefixlength", formNumber, nil},
		{unix.FRA_L3MDEV, "l3mdev", formNumber, nil},
		{unix.FRA_UID_RANGE, "uidrange", formHex, nil},
		{unix.FRA_PROTOCOL, "proto", formNumber, nil},
		{unix.FRA_IP_PROTO, "ipproto", formNumber, nil},
		{unix.FRA_SPORT_RANGE, "sport", formHex, nil},
		{unix.FRA_DPORT_RANGE, "dport", formHex, nil},
	}
}

func neighFields() []field {
	return []field{
		{unix.NDA_DST, "dst", formAddr, nil},
		{unix.NDA_LLADDR, "lladdr", formAddr, nil},
		{unix.NDA_VLAN, "vlan", formNumber, nil},
		{unix.NDA_PORT, "port", formBigEndian, nil},
		{unix.NDA_VNI, "vni", formNumber, nil},
		{unix.NDA_SRC_VNI, "src_vni", formNumber, nil},
		{unix.NDA_IFINDEX, "via", formDev, nil},
		{unix.NDA_MASTER, "master", formDev, nil},
		{ndaProtocol, "proto", formNumber, nil},
		{ndaNHID, "nhid", formNumber, nil},
		{ndaFlagsExt, "flags_ext", formNumber, nil},
	}
}

func linkFields(kind, slave string) []field {
	return []field{
		{unix.IFLA_ADDRESS, "address", formAddr, nil},
		{unix.IFLA_BROADCAST, "brd", formAddr, nil},
		{unix.IFLA_MTU, "mtu", formNumber, nil},
		{unix.IFLA_LINK, "link", formDev, nil},
		{unix.IFLA_MASTER, "master", formDev, nil},
		{unix.IFLA_TXQLEN, "qlen", formNumber, nil},
		{unix.IFLA_GROUP, "group", formNumber, nil},
		{unix.IFLA_IFALIAS, "alias", formString, nil},
		{unix.IFLA_LINKMODE, "linkmode", formNumber, nil},
		{unix.IFLA_NUM_TX_QUEUES, "numtxqueues", formNumber, nil},
		{unix.IFLA_NUM_RX_QUEUES, "numrxqueues", formNumber, nil},
		{unix.IFLA_GSO_MAX_SIZE, "gso_max_size", formNumber, nil},
		{unix.IFLA_GSO_MAX_SEGS, "gso_max_segs", formNumber, nil},
		{unix.IFLA_GRO_MAX_SIZE, "gro_max_size", formNumber, nil},
		{iflaGSOIPv4MaxSize, "gso_ipv4_max_size", formNumber, nil},
		{iflaGROIPv4MaxSize, "gro_ipv4_max_size", formNumber, nil},
		{unix.IFLA_PROTO_DOWN, "protodown", formNumber, nil},
		{iflaProtoDownReason, "protodown_reason", formNest, []field{{protoDownReasonValue, "value", formNumber, nil}}},
		{unix.IFLA_OPERSTATE, "operstate", formNumber, nil},
		{unix.IFLA_CARRIER, "carrier", formNumber, nil},
		{unix.IFLA_PROP_LIST, "altnames", formNest, []field{{unix.IFLA_ALT_IFNAME, "altname", formString, nil}}},
		{unix.IFLA_LINKINFO, "linkinfo", formNest, []field{
			{unix.IFLA_INFO_KIND, "kind", formString, nil},
			{unix.IFLA_INFO_DATA, "data", formNest, dataFields(kind)},
			{unix.IFLA_INFO_SLAVE_KIND, "slave_kind", formString, nil},
			{unix.IFLA_INFO_SLAVE_DATA, "slave_data", formNest, slaveFields(slave)},
		}},
		{unix.IFLA_AF_SPEC, "af_spec", formNest, []field{
			{unix.AF_INET6, "inet6", formNest, []field{
				{unix.IFLA_INET6_ADDR_GEN_MODE, "addrgenmode", formNumber, nil},
				{unix.IFLA_INET6_TOKEN, "token", formAddr, nil},
			}},
		}},
	}
}

func dataFields(kind string) []field {
	switch kind {
	case "bridge":
		return bridgeFields()
	case "vxlan":
		return vxlanFields()
	case "macvlan", "macvtap":
		return []field{
			{unix.IFLA_MACVLAN_MODE, "mode", formNumber, nil},
			{unix.IFLA_MACVLAN_FLAGS, "flags", formNumber, nil},
			{unix.IFLA_MACVLAN_BC_QUEUE_LEN, "bcqueuelen", formNumber, nil},
			{unix.IFLA_MACVLAN_MACADDR_DATA, "macaddrs", formNest, []field{{unix.IFLA_MACVLAN_MACADDR, "macaddr", formAddr, nil}}},
		}
	case "tun":
		return []field{
			{unix.IFLA_TUN_OWNER, "user", formNumber, nil},
			{unix.IFLA_TUN_GROUP, "group", formNumber, nil},
			{unix.IFLA_TUN_TYPE, "type", formNumber, nil},
			{unix.IFLA_TUN_PI, "pi", formNumber, nil},
			{unix.IFLA_TUN_VNET_HDR, "vnet_hdr", formNumber, nil},
			{unix.IFLA_TUN_PERSIST, "persist", formNumber, nil},
			{unix.IFLA_TUN_MULTI_QUEUE, "multi_queue", formNumber, nil},
		}
	case "vlan":
		return []field{{unix.IFLA_VLAN_ID, "id", formNumber, nil}, {unix.IFLA_VLAN_PROTOCOL, "protocol", formBigEndian, nil}}
	case "vrf":
		return []field{{unix.IFLA_VRF_TABLE, "table", formNumber, nil}}
	}
	return nil
}

func slaveFields(kind string) []field {
	if kind != "bridge" {
		return nil
	}
	return []field{
		{unix.IFLA_BRPORT_STATE, "state", formNumber, nil},
		{unix.IFLA_BRPORT_PRIORITY, "priority", formNumber, nil},
		{unix.IFLA_BRPORT_COST, "cost", formNumber, nil},
		{unix.IFLA_BRPORT_MODE, "hairpin", formNumber, nil},
		{unix.IFLA_BRPORT_GUARD, "guard", formNumber, nil},
		{unix.IFLA_BRPORT_PROTECT, "root_block", formNumber, nil},
		{unix.IFLA_BRPORT_FAST_LEAVE, "fastleave", formNumber, nil},
		{unix.IFLA_BRPORT_LEARNING, "learning", formNumber, nil},
		{unix.IFLA_BRPORT_UNICAST_FLOOD, "flood", formNumber, nil},
		{unix.IFLA_BRPORT_PROXYARP, "proxy_arp", formNumber, nil},
		{unix.IFLA_BRPORT_PROXYARP_WIFI, "proxy_arp_wifi", formNumber, nil},
		{unix.IFLA_BRPORT_MULTICAST_ROUTER, "mcast_router", formNumber, nil},
		{unix.IFLA_BRPORT_MCAST_FLOOD, "mcast_flood", formNumber, nil},
		{unix.IFLA_BRPORT_MCAST_TO_UCAST, "mcast_to_unicast", formNumber, nil},
		{unix.IFLA_BRPORT_VLAN_TUNNEL, "vlan_tunnel", formNumber, nil},
		{unix.IFLA_BRPORT_BCAST_FLOOD, "bcast_flood", formNumber, nil},
		{unix.IFLA_BRPORT_GROUP_FWD_MASK, "group_fwd_mask", formNumber, nil},
		{unix.IFLA_BRPORT_NEIGH_SUPPRESS, "neigh_suppress", formNumber, nil},
		{unix.IFLA_BRPORT_ISOLATED, "isolated", formNumber, nil},
		{unix.IFLA_BRPORT_BACKUP_PORT, "backup_port", formDev, nil},
		{unix.IFLA_BRPORT_MCAST_EHT_HOSTS_LIMIT, "mcast_eht_hosts_limit", formNumber, nil},
		{unix.IFLA_BRPORT_LOCKED, "locked", formNumber, nil},
		{unix.IFLA_BRPORT_MAB, "mab", formNumber, nil},
		{unix.IFLA_BRPORT_MCAST_MAX_GROUPS, "mcast_max_groups", formNumber, nil},
		{unix.IFLA_BRPORT_NEIGH_VLAN_SUPPRESS, "neigh_vlan_suppress", formNumber, nil},
	}
}

func bridgeFields() []field {
	return []field{
		{unix.IFLA_BR_FORWARD_DELAY, "forward_delay", formNumber, nil},
		{unix.IFLA_BR_HELLO_TIME, "hello_time", formNumber, nil},
		{unix.IFLA_BR_MAX_AGE, "max_age", formNumber, nil},
		{unix.IFLA_BR_AGEING_TIME, "ageing_time", formNumber, nil},
		{unix.IFLA_BR_STP_STATE, "stp_state", formNumber, nil},
		{unix.IFLA_BR_PRIORITY, "priority", formNumber, nil},
		{unix.IFLA_BR_VLAN_FILTERING, "vlan_filtering", formNumber, nil},
		{unix.IFLA_BR_VLAN_PROTOCOL, "vlan_protocol", formBigEndian, nil},
		{unix.IFLA_BR_GROUP_FWD_MASK, "group_fwd_mask", formNumber, nil},
		{unix.IFLA_BR_GROUP_ADDR, "group_address", formAddr, nil},
		{unix.IFLA_BR_MCAST_ROUTER, "mcast_router", formNumber, nil},
		{unix.IFLA_BR_MCAST_SNOOPING, "mcast_snooping", formNumber, nil},
		{unix.IFLA_BR_MCAST_QUERY_USE_IFADDR, "mcast_query_use_ifaddr", formNumber, nil},
		{unix.IFLA_BR_MCAST_QUERIER, "mcast_querier", formNumber, nil},
		{unix.IFLA_BR_MCAST_HASH_ELASTICITY, "mcast_hash_elasticity", formNumber, nil},
		{unix.IFLA_BR_MCAST_HASH_MAX, "mcast_hash_max", formNumber, nil},
		{unix.IFLA_BR_MCAST_LAST_MEMBER_CNT, "mcast_last_member_count", formNumber, nil},
		{unix.IFLA_BR_MCAST_STARTUP_QUERY_CNT, "mcast_startup_query_count", formNumber, nil},
		{unix.IFLA_BR_MCAST_LAST_MEMBER_INTVL, "mcast_last_member_interval", formNumber, nil},
		{unix.IFLA_BR_MCAST_MEMBERSHIP_INTVL, "mcast_membership_interval", formNumber, nil},
		{unix.IFLA_BR_MCAST_QUERIER_INTVL, "mcast_querier_interval", formNumber, nil},
		{unix.IFLA_BR_MCAST_QUERY_INTVL, "mcast_query_interval", formNumber, nil},
		{unix.IFLA_BR_MCAST_QUERY_RESPONSE_INTVL, "mcast_query_response_interval", formNumber, nil},
		{unix.IFLA_BR_MCAST_STARTUP_QUERY_INTVL, "mcast_startup_query_interval", formNumber, nil},
		{unix.IFLA_BR_NF_CALL_IPTABLES, "nf_call_iptables", formNumber, nil},
		{unix.IFLA_BR_NF_CALL_IP6TABLES, "nf_call_ip6tables", formNumber, nil},
		{unix.IFLA_BR_NF_CALL_ARPTABLES, "nf_call_arptables", formNumber, nil},
		{unix.IFLA_BR_VLAN_DEFAULT_PVID, "vlan_default_pvid", formNumber, nil},
		{unix.IFLA_BR_VLAN_STATS_ENABLED, "vlan_stats_enabled", formNumber, nil},
		{unix.IFLA_BR_MCAST_STATS_ENABLED, "mcast_stats_enabled", formNumber, nil},
		{unix.IFLA_BR_MCAST_IGMP_VERSION, "mcast_igmp_version", formNumber, nil},
		{unix.IFLA_BR_MCAST_MLD_VERSION, "mcast_mld_version", formNumber, nil},
		{unix.IFLA_BR_VLAN_STATS_PER_PORT, "vlan_stats_per_port", formNumber, nil},
		{unix.IFLA_BR_MULTI_BOOLOPT, "boolopt", formHex, nil},
		{unix.IFLA_BR_FDB_MAX_LEARNED, "fdb_max_learned", formNumber, nil},
	}
}

func vxlanFields() []field {
	return []field{
		{unix.IFLA_VXLAN_ID, "id", formNumber, nil},
		{unix.IFLA_VXLAN_GROUP, "remote", formAddr, nil},
		{unix.IFLA_VXLAN_GROUP6, "remote", formAddr, nil},
		{unix.IFLA_VXLAN_LINK, "dev", formDev, nil},
		{unix.IFLA_VXLAN_LOCAL, "local", formAddr, nil},
		{unix.IFLA_VXLAN_LOCAL6, "local", formAddr, nil},
		{unix.IFLA_VXLAN_TTL, "ttl", formNumber, nil},
		{unix.IFLA_VXLAN_TOS, "tos", formNumber, nil},
		{unix.IFLA_VXLAN_LEARNING, "learning", formNumber, nil},
		{unix.IFLA_VXLAN_AGEING, "ageing", formNumber, nil},
		{unix.IFLA_VXLAN_LIMIT, "maxaddr", formNumber, nil},
		{unix.IFLA_VXLAN_PORT_RANGE, "srcport", formHex, nil},
		{unix.IFLA_VXLAN_PROXY, "proxy", formNumber, nil},
		{unix.IFLA_VXLAN_RSC, "rsc", formNumber, nil},
		{unix.IFLA_VXLAN_L2MISS, "l2miss", formNumber, nil},
		{unix.IFLA_VXLAN_L3MISS, "l3miss", formNumber, nil},
		{unix.IFLA_VXLAN_PORT, "dstport", formBigEndian, nil},
		{unix.IFLA_VXLAN_UDP_CSUM, "udpcsum", formNumber, nil},
		{unix.IFLA_VXLAN_UDP_ZERO_CSUM6_TX, "udp6zerocsumtx", formNumber, nil},
		{unix.IFLA_VXLAN_UDP_ZERO_CSUM6_RX, "udp6zerocsumrx", formNumber, nil},
		{unix.IFLA_VXLAN_GBP, "gbp", formHex, nil},
		{unix.IFLA_VXLAN_GPE, "gpe", formHex, nil},
		{unix.IFLA_VXLAN_COLLECT_METADATA, "external", formNumber, nil},
		{unix.IFLA_VXLAN_LABEL, "flowlabel", formBigEndian, nil},
		{unix.IFLA_VXLAN_TTL_INHERIT, "ttl-inherit", formNumber, nil},
		{unix.IFLA_VXLAN_DF, "df", formNumber, nil},
		{unix.IFLA_VXLAN_VNIFILTER, "vnifilter", formNumber, nil},
		{unix.IFLA_VXLAN_LOCALBYPASS, "localbypass", formNumber, nil},
	}
}
