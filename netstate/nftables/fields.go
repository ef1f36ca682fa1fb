package nftables

// field says how one attribute of an expression or object is shown.
type field struct {
	label string
	form  form
	names []string // of an enumeration's values
}

// fieldsOf returns the attributes of an expression or object by their type (linux/netfilter/nf_tables.h);
// a field without a label is shown by its number.
func fieldsOf(name string) []field {
	num := func(label string, names ...string) field { return field{label: label, form: formNumber, names: names} }
	str := func(label string) field { return field{label: label, form: formText} }
	data := func(label string) field { return field{label: label, form: formData} }
	raw := func(label string) field { return field{label: label, form: formHex} }
	skip := field{form: formSkip} // padding, and what is rendered elsewhere
	none := field{}
	compare := []string{"eq", "neq", "lt", "lte", "gt", "gte"}

	switch name {
	case "immediate":
		return []field{none, num("reg"), data("")}
	case "cmp":
		return []field{none, num("reg"), num("", compare...), data("")}
	case "range":
		return []field{none, num("reg"), num("", compare...), data("from"), data("to")}
	case "bitwise":
		return []field{none, num("reg"), num("=> reg"), num("len"), data("&"), data("^"), num("op", "mask-xor", "lshift", "rshift", "and", "or", "xor"), data(""), num("reg")}
	case "byteorder":
		return []field{none, num("reg"), num("=> reg"), num("", "ntoh", "hton"), num("len"), num("size")}
	case "payload":
		return []field{none, num("=> reg"), num("at", "link", "network", "transport", "inner", "tunnel"), num("+"), num("len"), num("write reg"), num("csum-type"), num("csum-off"), num("csum-flags")}
	case "exthdr":
		return []field{none, num("=> reg"), num("type"), num("+"), num("len"), num("flags"), num("op", "ipv6", "tcpopt", "ipv4", "sctp", "dccp"), num("write reg")}
	case "meta":
		return []field{none, num("=> reg"), num("", "len", "protocol", "priority", "mark", "iif", "oif", "iifname", "oifname", "iiftype", "oiftype", "skuid", "skgid", "nftrace", "rtclassid", "secmark", "nfproto", "l4proto", "ibrname", "obrname", "pkttype", "cpu", "iifgroup", "oifgroup", "cgroup", "random", "ipsec", "iifkind", "oifkind", "ibrpvid", "ibrvproto", "time", "day", "hour", "sdif", "sdifname", "broute"), num("set reg")}
	case "rt":
		return []field{none, num("=> reg"), num("", "classid", "nexthop4", "nexthop6", "mtu", "ipsec")}
	case "socket":
		return []field{none, num("", "transparent", "mark", "wildcard", "cgroupv2"), num("=> reg"), num("level")}
	case "ct":
		return []field{none, num("=> reg"), num("", "state", "direction", "status", "mark", "secmark", "expiration", "helper", "l3proto", "saddr", "daddr", "protocol", "sport", "dport", "label", "packets", "bytes", "avgpkt", "zone", "event", "ip saddr", "ip daddr", "ip6 saddr", "ip6 daddr", "id"), num("direction", "original", "reply"), num("set reg")}
	case "lookup":
		return []field{none, str("set"), num("reg"), num("=> reg"), num("id"), num("flags")}
	case "dynset":
		return []field{none, str("set"), num("id"), num("", "add", "update", "delete"), num("key reg"), num("data reg"), num("timeout"), skip, skip, num("flags"), skip}
	case "inner":
		return []field{none, num("num"), num("type"), num("flags"), num("header"), skip}
	case "objref":
		return []field{none, num("", "object", "counter", "quota", "ct helper", "limit", "ct limit", "tunnel", "ct timeout", "secmark", "ct expectation", "synproxy"), str("name"), num("reg"), str("map"), num("id")}
	case "counter":
		return []field{none, num("bytes"), num("packets"), skip}
	case "quota":
		return []field{none, num("bytes"), num("flags"), skip, num("consumed")}
	case "limit":
		return []field{none, num("rate"), num("per"), num("burst"), num("", "packets", "bytes"), num("flags"), skip}
	case "connlimit", "ct_limit":
		return []field{none, num("count"), num("flags")}
	case "last":
		return []field{none, num("set"), num("ago"), skip}
	case "log":
		return []field{none, num("group"), str("prefix"), num("snaplen"), num("queue-threshold"), num("level"), num("flags")}
	case "queue":
		return []field{none, num("num"), num("total"), num("flags"), num("reg")}
	case "reject":
		return []field{none, num("", "icmp", "tcp reset", "icmpx"), num("code")}
	case "nat":
		return []field{none, num("", "snat", "dnat"), num("family"), num("addr reg"), num("addr-max reg"), num("port reg"), num("port-max reg"), num("flags")}
	case "masq":
		return []field{none, num("flags"), num("port reg"), num("port-max reg")}
	case "redir":
		return []field{none, num("port reg"), num("port-max reg"), num("flags")}
	case "tproxy":
		return []field{none, num("family"), num("addr reg"), num("port reg")}
	case "dup":
		return []field{none, num("addr reg"), num("dev reg")}
	case "fwd":
		return []field{none, num("dev reg"), num("addr reg"), num("family")}
	case "fib":
		return []field{none, num("=> reg"), num("", "none", "oif", "oifname", "type"), num("flags")}
	case "hash":
		return []field{none, num("reg"), num("=> reg"), num("len"), num("mod"), num("seed"), num("offset"), num("", "jhash", "symhash")}
	case "numgen":
		return []field{none, num("=> reg"), num("mod"), num("", "inc", "random"), num("offset")}
	case "osf":
		return []field{none, num("=> reg"), num("ttl"), num("flags")}
	case "synproxy":
		return []field{none, num("mss"), num("wscale"), num("flags")}
	case "tunnel":
		return []field{none, num("key"), num("=> reg"), num("mode")}
	case "xfrm":
		return []field{none, num("=> reg"), num("key"), num("dir", "in", "out"), num("spnum")}
	case "flow_offload":
		return []field{none, str("flowtable")}
	case "match", "target":
		return []field{none, str(""), num("rev"), raw("info")}
	case "ct_helper":
		return []field{none, str(""), num("l3proto"), num("protocol")}
	case "ct_timeout":
		return []field{none, num("l3proto"), num("protocol"), raw("policy")}
	case "ct_expectation":
		return []field{none, num("l3proto"), num("protocol"), num("dport"), num("timeout"), num("size")}
	}
	return nil
}
