package netstate_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// TestRandom moves namespaces that nobody would set up: each seed makes another one. NSMIGRATE_SEEDS says how
// many, or as "N-M" which ones. A seed that fails prints how to repeat it, and its script.
func TestRandom(t *testing.T) {
	needRoot(t)
	first, last := seeds(t, 400)
	kinds := slices.DeleteFunc([]string{"dummy", "vlan", "ipvlan", "vrf", "ipip"}, func(kind string) bool { return lack(t, kind) != "" })
	next := make(chan uint64)
	var workers sync.WaitGroup
	for range 8 { // most of a move is waiting for the kernel, so that more run at once than there are cores
		workers.Go(func() {
			for seed := range next {
				t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
					script := randomScript(seed, kinds)
					t.Cleanup(func() {
						if t.Failed() {
							t.Logf("repeat it with: NSMIGRATE_SEEDS=%d-%d go test -run TestRandom ./netstate\n%s", seed, seed, script)
						}
					})
					// Without a carrier an uplink has no nexthops and no proxy entries.
					move(t, script, randomCommands(), !strings.Contains(script, "HOST"))
				})
			}
		})
	}
	for seed := first; seed <= last; seed++ {
		next <- seed
	}
	close(next)
	workers.Wait()
}

func seeds(t *testing.T, usual uint64) (first, last uint64) {
	text := os.Getenv("NSMIGRATE_SEEDS")
	if text == "" {
		return 1, usual
	}
	from, to, found := strings.Cut(text, "-")
	if !found {
		from, to = "1", from
	}
	first, err := strconv.ParseUint(from, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if last, err = strconv.ParseUint(to, 10, 64); err != nil {
		t.Fatal(err)
	}
	return first, last
}

// randomCommands are those of the second oracle, without what was learned of the
// traffic of the moment, and the multicast groups that the kernel itself joins.
func randomCommands() []string {
	commands := slices.DeleteFunc(toolCommands(), func(cmd string) bool {
		return strings.Contains(cmd, "bridge -d -j fdb") || strings.Contains(cmd, "bridge -d -j link") || strings.Contains(cmd, "nud stale")
	})
	// bridge takes the index of a host's device for one of the namespace's own.
	return append(commands, "bridge -d fdb | grep -E 'permanent|static|extern' | grep -Ev '^(33:33|01:00:5e)' | sort || true", `bridge -d -j link | sed 's/"link":"[^"]*",//g'`+anyOrder)
}

// generator writes a script that sets up a namespace. What the kernel refuses is left out by ip -force: the
// generator need not know which combinations are possible.
type generator struct {
	*rand.Rand
	host, links, ip, bridge, sysctls strings.Builder
	devices, bridges                 []string
	gates4, gates6                   []gate
	kinds                            []string
	joined                           map[string]string // see join
	lower                            map[string]string // device below a device
	down                             map[string]bool   // devices that nobody sets up
	reflects                         bool              // a port sends frames back; two of them could be a loop
}

// gate is a gateway and the device by which it is reached.
type gate struct{ addr, own, dev string }

func randomScript(seed uint64, kinds []string) string {
	return newGenerator(seed, kinds).script()
}

func newGenerator(seed uint64, kinds []string) *generator {
	return &generator{Rand: rand.New(rand.NewPCG(seed, 0)), kinds: kinds, joined: map[string]string{}, lower: map[string]string{}, down: map[string]bool{}}
}

// script returns the commands that make a namespace.
func (g *generator) script() string {
	early := g.sysctlLines("all", "default")
	if !g.chance(10) {
		// Duplicate address detection takes a second and more.
		early += "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad\n"
	}
	g.line(&g.links, g.maybe("link set lo up", 80))
	for i := range 2 + g.IntN(6) {
		g.link(i)
	}
	g.settings()
	g.network()
	for _, dev := range g.devices {
		g.sysctls.WriteString(g.sysctlLines(dev))
	}
	return early + batch("ip", &g.links) + g.host.String() + batch("bridge", &g.bridge) + batch("ip", &g.ip) + g.tables(4) + g.sysctls.String()
}

// network adds what is above the links.
func (g *generator) network() {
	for range g.IntN(8) {
		g.address()
	}
	g.nexthops()
	for range g.IntN(16) {
		g.route4()
		g.route6()
	}
	for range g.IntN(6) {
		g.rule()
		g.neighbour()
	}
}

// tables returns commands that make less than n tables of nftables, or more of what is in them.
func (g *generator) tables(n int) string {
	var nft strings.Builder
	for i := range g.IntN(n) {
		fmt.Fprintf(&nft, "nft -f - <<X || true\n%sX\n", g.table(i))
	}
	return nft.String()
}

func batch(tool string, lines *strings.Builder) string {
	return tool + " -force -batch - <<X 2>/dev/null || true\n" + lines.String() + "X\n"
}

func (g *generator) chance(percent int) bool { return g.IntN(100) < percent }

// maybe returns the text in so many of 100 cases.
func (g *generator) maybe(text string, percent int) string {
	if g.chance(percent) {
		return text
	}
	return ""
}

// num is maybe for an option with a number in a range.
func (g *generator) num(option string, from, to, percent int) string {
	return g.maybe(fmt.Sprintf("%s %d", option, from+g.IntN(to-from+1)), percent)
}

func (g *generator) of(list ...string) string { return list[g.IntN(len(list))] }

func (g *generator) line(b *strings.Builder, parts ...string) {
	if text := strings.Join(slices.DeleteFunc(parts, func(p string) bool { return p == "" }), " "); text != "" {
		b.WriteString(text + "\n")
	}
}

// join says that frames get from one device to another, and returns false if they already do on another way: bridges in a
// loop keep the machine busy with a single frame until their namespace is gone.
func (g *generator) join(a, b string) bool {
	root := func(dev string) string {
		for g.joined[dev] != "" {
			dev = g.joined[dev]
		}
		return dev
	}
	a, b = root(a), root(b)
	if a == b {
		return false
	}
	g.joined[a] = b
	return true
}

func (g *generator) mac() string {
	return fmt.Sprintf("02:00:00:00:%02x:%02x", g.IntN(256), g.IntN(256))
}

func (g *generator) common() string {
	return strings.TrimSpace(g.maybe("address "+g.mac(), 40) + " " + g.num("mtu", 1280, 3000, 20) + " " + g.num("txqueuelen", 1, 2000, 20) + " " +
		g.num("numtxqueues", 1, 4, 10) + " " + g.num("index", 100, 9000, 20))
}

func (g *generator) link(i int) {
	name := func(prefix string) string { return prefix + strconv.Itoa(i) }
	add := func(dev string, parts ...string) {
		g.devices = append(g.devices, dev)
		g.line(&g.links, parts...)
	}
	on := func(dev string) string { // a device for another one on top of it
		lower := "lo"
		if len(g.devices) > 0 {
			lower = g.of(g.devices...)
		}
		g.join(dev, lower)
		g.lower[dev] = lower
		return lower
	}
	kinds := append([]string{"veth", "veth", "bridge", "bridge", "macvlan", "macvtap", "vxlan", "ifb", "tuntap", "uplink"}, g.kinds...)
	switch kind := g.of(kinds...); kind {
	case "veth":
		g.devices = append(g.devices, name("f"))
		g.join(name("e"), name("f"))
		add(name("e"), "link add", name("e"), g.common(), "type veth peer name", name("f"), g.maybe("address "+g.mac(), 40))
	case "bridge":
		g.bridges = append(g.bridges, name("br"))
		add(name("br"), "link add", name("br"), g.common(), "type bridge", g.num("ageing_time", 100, 90000, 30), g.num("forward_delay", 200, 3000, 30),
			g.num("priority", 0, 65535, 30), g.num("mcast_snooping", 0, 1, 30), g.num("mcast_querier", 0, 1, 20), g.num("group_fwd_mask", 0, 1, 10),
			g.num("vlan_filtering", 0, 1, 30), g.num("mcast_startup_query_count", 1, 9, 20), g.num("fdb_max_learned", 1, 999, 10),
			g.num("nf_call_iptables", 0, 1, 10), g.num("mcast_igmp_version", 2, 3, 20), g.num("max_age", 600, 4000, 20))
	case "macvlan", "macvtap":
		add(name("mv"), "link add", name("mv"), "link", on(name("mv")), g.common(), "type", kind, "mode", g.of("private", "vepa", "bridge", "bridge", "passthru"),
			g.num("bcqueuelen", 1, 2000, 20))
	case "vxlan":
		to := g.of("", "remote 10.4.0.2", "group 239.1.1.1", "external", "local 10.4.0.1", "remote fd04::2")
		id := "id " + strconv.Itoa(1+g.IntN(9999))
		switch to {
		case "external":
			id = ""
		case "group 239.1.1.1":
			to += " dev " + on(name("vx"))
		}
		add(name("vx"), "link add", name("vx"), g.common(), "type vxlan", id, to, "dstport", strconv.Itoa(4789+i), g.maybe("nolearning", 30), g.num("ttl", 1, 255, 30),
			g.num("tos", 1, 255, 20), g.num("ageing", 1, 999, 30), g.maybe("udp6zerocsumrx", 20), g.maybe("proxy", 20), g.maybe("l3miss", 20), g.num("maxaddress", 1, 99, 20))
	case "ifb", "dummy":
		add(name(kind), "link add", name(kind), g.common(), "type", kind)
	case "tuntap":
		add(name("tap"), "tuntap add dev", name("tap"), "mode", g.of("tun", "tap"), g.maybe("multi_queue", 30), g.maybe("pi", 30), g.maybe("vnet_hdr", 30), g.num("user", 1, 999, 30), g.num("group", 1, 999, 30))
	case "uplink":
		g.join(name("u"), "the bridge of the host")
		add(name("u"), "link add", name("u"), g.common(), "type veth peer name", name("hu"), g.maybe("address "+g.mac(), 40), "netns $HOST")
		g.line(&g.host, "host ip link set", name("hu"), g.maybe("master br0", 50), g.maybe("up", 80), "|| true")
		g.line(&g.host, g.maybe(fmt.Sprintf("host ip addr add 10.%d.0.1/24 dev %s || true", 1+i, name("hu")), 40))
	case "vlan":
		add(name("v"), "link add link", on(name("v")), name("v"), g.common(), "type vlan id", strconv.Itoa(1+g.IntN(4000)), g.maybe("protocol 802.1ad", 20), g.maybe("reorder_hdr off", 20), g.maybe("gvrp on", 20))
	case "ipvlan":
		add(name("iv"), "link add link", on(name("iv")), name("iv"), "type ipvlan mode", g.of("l2", "l3", "l3s"), g.of("", "private", "vepa"))
	case "vrf":
		g.bridges = append(g.bridges, name("vrf"))
		add(name("vrf"), "link add", name("vrf"), "type vrf table", g.of("77", "100", strconv.Itoa(300+i)))
	case "ipip":
		add(name("t"), "link add", name("t"), "type ipip local 10.1.0.1 remote", "10.4.0."+strconv.Itoa(i+1), g.num("ttl", 1, 255, 50), g.num("tos", 1, 100, 20))
	}
}

// master returns a bridge or vrf to which a device can belong, or none.
func (g *generator) master(dev string) string {
	if len(g.bridges) == 0 || slices.Contains(g.bridges, dev) || !g.chance(50) {
		return ""
	}
	master := g.of(g.bridges...)
	if strings.HasPrefix(master, "br") && !g.join(dev, master) {
		return ""
	}
	return master
}

// settings gives the links their masters and attributes, and sets most of them up.
func (g *generator) settings() {
	for i, dev := range g.devices {
		set := func(percent int, parts ...string) {
			if g.chance(percent) {
				g.line(&g.links, append([]string{"link set", dev}, parts...)...)
			}
		}
		if master := g.master(dev); master != "" {
			set(100, "master", master)
			port := g.num("cost", 1, 99, 50)
			for _, option := range []string{"hairpin", "guard", "root_block", "fastleave", "learning", "flood", "mcast_flood", "bcast_flood", "mcast_to_unicast", "neigh_suppress", "isolated"} {
				text := g.maybe(" "+option+" "+g.of("on", "off"), 15)
				if text == " hairpin on" {
					if g.reflects {
						continue
					}
					g.reflects = true
				}
				port += text
			}
			g.line(&g.bridge, "link set dev", dev, port)
			g.line(&g.bridge, g.maybe("fdb add "+g.mac()+" dev "+dev+" master "+g.of("static", "permanent")+g.num(" vlan", 1, 5, 20), 40))
			g.line(&g.bridge, g.maybe("vlan add dev "+dev+" vid "+g.of("5", "6-9", "100 pvid untagged", "7 untagged"), 40))
			g.line(&g.bridge, g.maybe("mdb add dev "+g.of(g.bridges...)+" port "+dev+" grp "+g.of("239.1.1.1", "239.1.1.2", "ff15::7", "01:02:03:04:05:06")+" permanent", 40))
		}
		g.line(&g.bridge, g.maybe("fdb append 00:00:00:00:00:00 dev "+dev+" dst 10.4.0."+strconv.Itoa(i+1), 20))
		g.line(&g.bridge, g.maybe("fdb add "+g.mac()+" dev "+dev+" self", 20))
		set(20, fmt.Sprintf("alias \"link %d, so called\"", i))
		set(20, g.num("group", 1, 99, 100))
		set(15, "mtu", strconv.Itoa(1280+g.IntN(500)))
		set(10, "multicast", g.of("on", "off"))
		set(10, "arp", g.of("on", "off"))
		set(10, "allmulticast on")
		set(10, "promisc on")
		set(10, "gso_max_size", strconv.Itoa(20000+g.IntN(20000)), "gso_max_segs", strconv.Itoa(1+g.IntN(200)))
		set(10, "gro_max_size", strconv.Itoa(20000+g.IntN(20000)))
		set(15, "addrgenmode", g.of("none", "eui64", "stable_secret", "random"))
		g.line(&g.links, g.maybe("link property add dev "+dev+" altname alt-"+dev+" altname another-name-of-"+dev, 15))
		if g.chance(85) {
			g.line(&g.links, "link set", dev, "up")
		} else {
			g.down[dev] = true
		}
	}
}

func (g *generator) address() {
	at := g.IntN(len(g.devices) + 1)
	dev := append(g.devices, "lo")[at]
	n := strconv.Itoa(1 + at)
	if g.chance(25) { // a subnet that another device is in as well
		n = strconv.Itoa(1 + g.IntN(len(g.devices)+1))
	}
	host := strconv.Itoa(1 + g.IntN(200))
	life := ""
	if g.chance(15) {
		valid := 3000 + g.IntN(5000)
		life = fmt.Sprintf("valid_lft %d preferred_lft %d", valid, g.IntN(valid))
	}
	if g.chance(50) {
		addr := "10." + n + ".0." + host
		g.gates4 = append(g.gates4, gate{"10." + n + ".0.250", addr, dev})
		g.line(&g.ip, "addr add", addr+g.of("/24", "/24", "/16", "/32", " peer 10."+n+".0.250/32"), g.of("", "brd +", "brd 10."+n+".0.99"), g.maybe("label "+dev+":x", 20),
			g.of("", "", "", "scope link", "scope host"), g.num("metric", 1, 999, 20), g.maybe("noprefixroute", 15), g.num("proto", 5, 200, 15), life, "dev", dev)
		return
	}
	addr := "fd0" + n + "::" + host
	g.gates6 = append(g.gates6, gate{"fd0" + n + "::fff", addr, dev})
	g.line(&g.ip, "addr add", addr+g.of("/64", "/64", "/48", "/128", " peer fd0"+n+"::fff/128"), "nodad", g.num("metric", 1, 999, 20), g.maybe("noprefixroute", 15),
		g.maybe("mngtmpaddr", 5), g.maybe("home", 10), g.num("proto", 5, 200, 15), life, "dev", dev)
}

func (g *generator) nexthops() {
	var ids []string
	for i := range g.IntN(5) {
		id := strconv.Itoa(50 - i)
		gates := g.of("4", "6")
		switch {
		case gates == "4" && len(g.gates4) > 0:
			gw := g.gates4[g.IntN(len(g.gates4))]
			line := []string{"nexthop add id", id, "via", gw.addr, "dev", gw.dev, g.maybe("onlink", 20), g.maybe("proto static", 30)}
			if g.down[g.lower[gw.dev]] {
				continue // whether it has a carrier is a matter of history
			}
			g.line(&g.ip, line...)
			ids = append(ids, id)
		case len(g.gates6) > 0:
			gw := g.gates6[g.IntN(len(g.gates6))]
			if g.down[g.lower[gw.dev]] {
				continue
			}
			g.line(&g.ip, "nexthop add id", id, "via", gw.addr, "dev", gw.dev)
			ids = append(ids, id)
		default:
			g.line(&g.ip, "nexthop add id", id, g.of("blackhole", "dev "+g.of(g.devices...)))
		}
	}
	if len(ids) > 0 {
		g.line(&g.ip, "nexthop add id 7 group", g.of(ids...)+","+strconv.Itoa(1+g.IntN(200))+"/"+g.of(ids...), g.maybe("type resilient buckets 8 idle_timer 60", 20))
	}
}

func (g *generator) route4() {
	to := g.of("192.0.2.", "198.51.100.", "203.0.113.") + g.of("0/24", "0/25", "128/25", "7", "8")
	opts := strings.Join([]string{g.num("metric", 1, 5, 50), "table", g.of("main", "main", "100", "7", "70000"), g.num("proto", 5, 200, 30), g.num("tos", 1, 7, 10)}, " ")
	metrics := strings.Join([]string{g.num("mtu lock", 600, 1500, 10), g.num("advmss", 500, 1400, 20), g.num("initcwnd", 1, 40, 20), g.num("rto_min", 10, 200, 20), g.maybe("congctl reno", 5), g.maybe("quickack 1", 10), g.maybe("features ecn", 5)}, " ")
	verb := "route " + g.of("add", "append", "prepend")
	switch k := g.IntN(8); {
	case k == 0:
		g.line(&g.ip, verb, g.of("blackhole", "unreachable", "prohibit", "throw"), to, opts)
	case k == 1:
		g.line(&g.ip, verb, to, opts, "dev", g.of(g.devices...), g.maybe("scope link", 70), metrics)
	case k == 2:
		g.line(&g.ip, verb, to, opts, "nhid", g.of("7", "50", "49", "48"))
	case k == 3:
		g.line(&g.ip, verb, to, opts, "via inet6 fe80::9 dev", g.of(g.devices...))
	case len(g.gates4) == 0:
	case k == 4:
		hops := ""
		for range 2 + g.IntN(3) {
			gw := g.gates4[g.IntN(len(g.gates4))]
			hops += " nexthop via " + gw.addr + g.maybe(" dev "+gw.dev, 70) + g.num(" weight", 1, 255, 60)
		}
		g.line(&g.ip, verb, to, opts, metrics, hops)
	default:
		gw := g.gates4[g.IntN(len(g.gates4))]
		g.line(&g.ip, verb, g.of(to, to, to, "default"), opts, "via", gw.addr, g.maybe("dev "+gw.dev, 70), g.maybe("src "+gw.own, 30), g.maybe("onlink", 20), metrics)
	}
}

func (g *generator) route6() {
	to := g.of("2001:db8:1::", "2001:db8:2::", "2001:db8:3::") + g.of("/48", "/64", "/128")
	opts := strings.Join([]string{g.num("metric", 1, 5, 50), "table", g.of("main", "main", "100", "7", "70000"), g.num("proto", 5, 200, 30), g.maybe("pref "+g.of("low", "high"), 10), g.num("expires", 500, 9000, 10)}, " ")
	metrics := strings.Join([]string{g.num("mtu", 1280, 1500, 20), g.num("hoplimit", 1, 255, 20), g.num("initrwnd", 1, 40, 10)}, " ")
	verb := "-6 route " + g.of("add", "append", "prepend")
	switch k := g.IntN(8); {
	case k == 0:
		g.line(&g.ip, verb, g.of("blackhole", "unreachable", "prohibit", "throw"), to, opts)
	case k == 1:
		g.line(&g.ip, verb, to, opts, "dev", g.of(g.devices...), metrics)
	case k == 2:
		g.line(&g.ip, verb, to, opts, "nhid", g.of("7", "50", "49", "48"))
	case k == 3:
		g.line(&g.ip, verb, to, opts, "via fe80::9 dev", g.of(g.devices...), metrics)
	case len(g.gates6) == 0:
	case k == 4:
		hops := ""
		for range 2 + g.IntN(3) {
			gw := g.gates6[g.IntN(len(g.gates6))]
			hops += " nexthop via " + gw.addr + " dev " + gw.dev + g.num(" weight", 1, 255, 60)
		}
		g.line(&g.ip, verb, to, opts, metrics, hops)
	default:
		gw := g.gates6[g.IntN(len(g.gates6))]
		g.line(&g.ip, verb, g.of(to, to, to, "default"), opts, "via", gw.addr, "dev", gw.dev, g.maybe("src "+gw.own, 30), g.maybe("onlink", 20), metrics)
	}
}

func (g *generator) rule() {
	family, prefix := g.of("-4", "-6"), "10.%d.0.0/16"
	if family == "-6" {
		prefix = "fd0%d::/32"
	}
	net := func() string { return fmt.Sprintf(prefix, 1+g.IntN(6)) }
	g.line(&g.ip, family, "rule add", g.maybe("not", 10), g.maybe("from "+net(), 60), g.maybe("to "+net(), 30), g.num("fwmark", 1, 99, 30), g.maybe("iif "+g.of("lo", "nothere", g.of(g.devices...)), 20),
		g.maybe("ipproto "+g.of("tcp", "udp")+" dport "+g.of("80", "1000-2000"), 20), g.maybe("uidrange 5-77", 10), g.num("tos", 1, 7, 5),
		g.of("lookup main suppress_prefixlength 0", "lookup 100", "lookup 7", "blackhole", "prohibit", "lookup 70000"), g.num("pref", 100, 104, 70), g.num("protocol", 5, 200, 20))
	g.line(&g.ip, g.maybe(family+" rule del pref 32766", 5))
}

func (g *generator) neighbour() {
	dev, n := g.of(g.devices...), strconv.Itoa(1+g.IntN(6))
	addr := g.of("10."+n+".0.77", "10."+n+".0.78", "fd0"+n+"::77", "fe80::77")
	if g.chance(25) {
		g.line(&g.ip, "neigh add proxy", addr, "dev", dev, g.maybe("router", 10), g.num("protocol", 5, 200, 10))
	}
	g.line(&g.ip, "neigh add", addr, "lladdr", g.mac(), "dev", dev, g.of("nud permanent", "nud permanent", "nud noarp", "nud stale", "extern_learn"), g.maybe("router", 10), g.num("protocol", 5, 200, 10))
}

// sysctlLines sets a few parameters of the namespace and of the named devices, after all, or default.
func (g *generator) sysctlLines(devices ...string) string {
	text := ""
	set := func(percent int, path string, values ...string) {
		if g.chance(percent) {
			text += "echo " + g.of(values...) + " > /proc/sys/net/" + path + " 2>/dev/null || true\n"
		}
	}
	for _, dev := range devices {
		for _, name := range []string{"forwarding", "accept_redirects", "rp_filter", "arp_ignore", "arp_announce", "proxy_arp", "send_redirects", "log_martians", "accept_source_route", "route_localnet", "drop_gratuitous_arp"} {
			set(6, "ipv4/conf/"+dev+"/"+name, "0", "1", "1")
		}
		for _, name := range []string{"forwarding", "accept_ra", "autoconf", "accept_redirects", "proxy_ndp", "ignore_routes_with_linkdown", "keep_addr_on_down"} {
			set(6, "ipv6/conf/"+dev+"/"+name, "0", "1")
		}
		set(3, "ipv6/conf/"+dev+"/disable_ipv6", "0", "1")
		set(5, "ipv6/conf/"+dev+"/hop_limit", "33", "77")
		set(5, "ipv6/conf/"+dev+"/mtu", "1280", "1300")
		set(5, "ipv4/neigh/"+dev+"/gc_stale_time", "61", "70")
		set(5, "ipv6/neigh/"+dev+"/base_reachable_time_ms", "12345")
	}
	if devices[0] == "all" {
		set(20, "ipv4/ip_default_ttl", "33", "99")
		set(20, "ipv4/tcp_rmem", `"4096 50000 600000"`)
		set(20, "ipv4/ip_local_port_range", `"2000 3001"`)
		set(20, "ipv4/fib_multipath_hash_policy", "1", "2")
		set(20, "ipv6/bindv6only", "1")
		set(20, "core/somaxconn", "77", "5000")
		set(20, "ipv4/nexthop_compat_mode", "0")
		set(20, "ipv6/conf/all/keep_addr_on_down", "1")
		set(20, "ipv4/ping_group_range", `"0 77"`)
	}
	return text
}

// table returns an nftables ruleset that is valid by construction.
func (g *generator) table(i int) string {
	var b strings.Builder
	family := g.of("ip", "ip6", "inet", "inet", "bridge", "arp")
	fmt.Fprintf(&b, "table %s t%d {\n", family, i)
	g.line(&b, g.maybe("flags dormant;", 5))
	number := func(n int) string { return strconv.Itoa(1 + g.IntN(n)) }
	addr := func() string { return "10." + number(200) + "." + number(200) + "." + number(200) }
	list := func(n int, element func() string) string {
		seen := map[string]bool{}
		for range 1 + g.IntN(n) {
			seen[element()] = true
		}
		elements := make([]string, 0, len(seen))
		for e := range seen {
			elements = append(elements, e)
		}
		slices.Sort(elements)
		return strings.Join(elements, ", ")
	}
	fmt.Fprintf(&b, "counter c1 { }\nquota q1 { over %s mbytes }\nlimit l1 { rate %s/second }\n", number(99), number(99))
	fmt.Fprintf(&b, "set s1 { type ipv4_addr; %s elements = { %s } }\n", g.of("", "flags interval; ", "flags timeout; timeout 1h; ", "counter; "), list(40, addr))
	fmt.Fprintf(&b, "set s2 { type inet_service; flags interval; auto-merge; elements = { %s } }\n", list(20, func() string { n := g.IntN(60000); return fmt.Sprintf("%d-%d", n, n+g.IntN(500)) }))
	fmt.Fprintf(&b, "set s3 { type ipv4_addr . inet_service; %s elements = { %s } }\n", g.of("", "flags interval; "), list(20, func() string { return addr() + " . " + number(999) }))
	fmt.Fprintf(&b, "set s4 { type ipv4_addr; size 999; flags dynamic,timeout; timeout %ss; }\n", number(900))
	fmt.Fprintf(&b, "map m1 { type ifname : verdict; elements = { \"eth%s\" : drop, \"x*\" : jump other } }\n", number(9))
	fmt.Fprintf(&b, "map m2 { type mark : ipv4_addr; elements = { %s } }\n", list(9, func() string { n := number(99); return n + " : 10.0.0." + n }))
	rules := []func() string{
		func() string { return "meta mark " + number(99) + " counter accept" },
		func() string { return "meta mark set " + number(99) },
		func() string {
			return `iifname "eth` + number(9) + `" ` + g.of("drop", "accept", "return", "jump other", "goto other")
		},
		func() string { return "iifname vmap @m1" },
		func() string {
			return "meta mark { " + list(9, func() string { return number(99) }) + " } counter name c1"
		},
		func() string {
			return "limit rate " + number(99) + "/minute burst " + number(9) + ` packets log prefix "r` + number(99) + `"`
		},
		func() string { return "limit name l1 quota name q1 drop" },
		func() string { return `meta length ` + number(999) + `-2000 accept comment "rule ` + number(99) + `"` },
		func() string { return "meta mark set numgen random mod " + number(9) },
	}
	if family == "inet" || family == "ip" {
		rules = append(rules,
			func() string { return "tcp dport @s2 " + g.of("accept", "reject with tcp reset", "drop") },
			func() string { return "ip saddr @s1 counter drop" },
			func() string { return "ip saddr . tcp dport @s3 accept" },
			func() string { return "ct state " + g.of("established,related", "new", "invalid") + " accept" },
			func() string {
				return "ip saddr " + addr() + "/" + strconv.Itoa(8+g.IntN(25)) + " ct mark set " + number(99)
			},
			func() string { return "update @s4 { ip saddr limit rate " + number(99) + "/second } accept" },
			func() string { return "tcp flags & (fin|syn) == syn tcp option maxseg size set rt mtu" },
			func() string { return "ip dscp set cs" + number(7) },
			func() string { return "icmp type { echo-request, echo-reply } ip ttl set " + number(200) },
		)
	}
	chain := func(name, head string, n int) {
		fmt.Fprintf(&b, "chain %s {\n%s\n", name, head)
		for range g.IntN(n) {
			rule := g.of("meta mark 7", rules[g.IntN(len(rules))](), rules[g.IntN(len(rules))]())
			if name == "other" && (strings.Contains(rule, "other") || strings.Contains(rule, "@m1")) {
				continue // it would be a loop
			}
			b.WriteString(rule + "\n")
		}
		b.WriteString("}\n")
	}
	chain("other", "", 6)
	hooks := []string{"input", "output"}
	if family != "arp" {
		hooks = append(hooks, "forward", "prerouting", "postrouting")
	}
	for j, hook := range hooks {
		if g.chance(50) {
			chain("c"+strconv.Itoa(j), "type filter hook "+hook+" priority "+strconv.Itoa(g.IntN(400)-200)+"; policy "+g.of("accept", "drop")+";", 12)
		}
	}
	if family == "ip" && g.chance(50) {
		chain("nat", "type nat hook postrouting priority srcnat;", 1)
		b.WriteString("chain nat { ip saddr 10.0.0.0/8 masquerade; snat to meta mark map @m2; }\n")
	}
	b.WriteString("}\n")
	return b.String()
}
