package netstate_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/nsmigrate/nsmigrate/netstate"
)

// TestRandomUpdate lets random namespaces change while they are moved: the destination builds what was captured first
// and is updated to what is captured later, of which only the difference travels.
func TestRandomUpdate(t *testing.T) {
	needRoot(t)
	first, last := seeds(t, 100)
	kinds := slices.DeleteFunc([]string{"dummy", "vlan", "ipvlan", "vrf", "ipip"}, func(kind string) bool { return lack(t, kind) != "" })
	next := make(chan uint64)
	var workers sync.WaitGroup
	for range 8 {
		workers.Go(func() {
			for seed := range next {
				t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
					g := newGenerator(seed, kinds)
					script, change := g.script(), g.change()
					t.Cleanup(func() {
						if t.Failed() {
							t.Logf("repeat it with: NSMIGRATE_SEEDS=%d-%d go test -run TestRandomUpdate ./netstate\n%s\n# and later\n%s", seed, seed, script, change)
						}
					})
					updated(t, script, change, randomCommands(), !strings.Contains(script, "HOST"))
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

// change returns a script that alters a namespace without touching its links and parameters.
func (g *generator) change() string {
	g.ip.Reset()
	g.bridge.Reset()
	for i, dev := range append([]string{"lo"}, g.devices...) {
		n := strconv.Itoa(i)
		flush := g.maybe("addr flush dev "+dev+" scope global\n", 15) + g.maybe("-6 addr flush dev "+dev+"\n", 5)
		if flush != "" { // a nexthop outlives the address by which its gateway was reached, but can't be made without it
			g.line(&g.ip, flush+"nexthop flush dev "+dev)
		}
		g.line(&g.ip, g.maybe("neigh flush dev "+dev+" nud all", 20))
		// Not the kernel's own: without them no namespace can be built whose nexthops were reached through one.
		g.line(&g.ip, g.maybe("route flush root 10."+n+".0.0/8 proto boot", 10))
		g.line(&g.ip, g.maybe("-6 route flush root fd0"+n+"::/16 proto boot", 10))
	}
	for _, table := range []string{"main", "100", "7", "70000"} {
		for _, family := range []string{"-4", "-6"} {
			for _, proto := range []string{"boot", "static"} {
				g.line(&g.ip, g.maybe(family+" route flush table "+table+" proto "+proto, 30))
			}
		}
	}
	for _, family := range []string{"-4", "-6"} {
		for pref := 100; pref < 105; pref++ {
			g.line(&g.ip, g.maybe(family+" rule del pref "+strconv.Itoa(pref), 30))
		}
	}
	g.line(&g.ip, g.maybe("nexthop flush", 20))
	g.network()
	for _, dev := range g.devices {
		g.line(&g.bridge, g.maybe("fdb flush dev "+dev, 10))
		g.line(&g.bridge, g.maybe("fdb add "+g.mac()+" dev "+dev+" master "+g.of("static", "permanent"), 20))
		g.line(&g.bridge, g.maybe("fdb add "+g.mac()+" dev "+dev+" self", 10))
	}
	nft := ""
	for i := range 4 {
		for _, family := range []string{"ip", "ip6", "inet", "bridge", "arp"} {
			nft += g.maybe("nft delete table "+family+" t"+strconv.Itoa(i)+" 2>/dev/null || true\n", 25)
		}
	}
	return batch("ip", &g.ip) + batch("bridge", &g.bridge) + nft + g.tables(5)
}

// updated captures what the first script makes, lets the second alter it, and brings what was built of the first
// capture to the second one.
func updated(t *testing.T, script, change string, commands []string, early bool) {
	t.Helper()
	ctx := context.Background()
	hostA, source := arrange(t, script)
	settleDown(t, source, hostA)
	prev := capture(t, source, hostA)
	old := reread(t, prev)
	hostB, target := otherHost(t), newNS(t)
	opts := netstate.BuildOptions{Host: hostB}
	if err := netstate.Build(ctx, target, old, opts); err != nil {
		t.Fatal(err)
	}

	sh(t, source, change)
	settleDown(t, source, hostA)
	now, err := netstate.Capture(ctx, source, netstate.CaptureOptions{Host: hostA, Prev: prev})
	if err != nil {
		t.Fatal(err)
	}
	next := travel(t, prev, old, now)
	if err := netstate.Update(ctx, target, old, next, opts); err != nil {
		t.Fatal(err)
	}
	if early && !slices.ContainsFunc(next.Uplinks(), func(u netstate.Uplink) bool { return u.Kind != "veth" }) {
		checkDiff(t, next, func() *netstate.State { return capture(t, target, hostB) })
	}
	if err := netstate.Connect(ctx, target, next, opts); err != nil {
		t.Fatal(err)
	}
	checkDiff(t, next, func() *netstate.State { return capture(t, target, hostB) })
	compareTools(t, commands, source, target, strings.NewReplacer(netstate.Redrawn(capture(t, target, hostB), next)...))
}

// travel returns what the destination, which has old, makes of the difference between two captures of the source.
func travel(t *testing.T, prev, old, now *netstate.State) *netstate.State {
	t.Helper()
	d, err := netstate.Difference(prev, now)
	if err != nil {
		t.Fatal(err)
	}
	var wire bytes.Buffer
	if _, err := d.WriteTo(&wire); err != nil {
		t.Fatal(err)
	}
	if d, err = netstate.ReadDelta(&wire); err != nil {
		t.Fatal(err)
	}
	next, err := d.Apply(old)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(written(t, next), written(t, now)) {
		t.Errorf("the difference makes another state:\n%v", netstate.Diff(now, next))
	}
	return next
}

func written(t testing.TB, s *netstate.State) []byte {
	t.Helper()
	var b bytes.Buffer
	if _, err := s.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// updateCase is a namespace that changes while it is moved.
type updateCase struct {
	name, script, change string
	commands             []string // that print the same afterwards, beside those for all
}

func updateCases() []updateCase {
	const links = `
		ip link set lo up; ip link add e0 type veth peer name e1; ip link set e0 up; ip link set e1 up
		ip addr add 10.1.0.1/24 dev e0; ip addr add fd01::1/64 dev e0 nodad
	`
	return []updateCase{
		{"nothing", links, "", nil},
		{"neighbours", links + `
			for i in 1 2 3 4; do ip neigh add 10.1.0.1$i lladdr 02:00:00:00:00:0$i dev e0 nud permanent; done
			ip neigh add 10.1.0.21 lladdr 02:00:00:00:00:21 dev e0 nud reachable; ip neigh add 10.1.0.22 lladdr 02:00:00:00:00:22 dev e0 nud stale
			ip neigh add fd01::7 lladdr 02:00:00:00:00:07 dev e0 nud permanent; ip neigh add proxy 10.1.0.77 dev e0; ip neigh add proxy fd01::77 dev e0`, `
			ip neigh del 10.1.0.12 dev e0; ip neigh change 10.1.0.13 lladdr 02:00:00:00:01:03 dev e0 nud permanent
			ip neigh change 10.1.0.14 lladdr 02:00:00:00:00:04 dev e0 nud noarp; ip neigh add 10.1.0.15 lladdr 02:00:00:00:00:05 dev e0 nud permanent
			ip neigh del 10.1.0.21 dev e0; ip neigh change 10.1.0.22 lladdr 02:00:00:00:01:22 dev e0 nud stale
			ip neigh add fd01::8 lladdr 02:00:00:00:00:08 dev e0 router extern_learn
			ip neigh del proxy 10.1.0.77 dev e0; ip neigh add proxy 10.1.0.78 dev e0; ip neigh del proxy fd01::77 dev e0`, nil},
		{"the order of addresses", links + "for i in 2 3 4 5; do ip addr add 10.1.0.$i/24 dev e0; ip addr add fd01::$i/64 dev e0 nodad; ip addr add 10.$i.0.1/24 dev e0; done", `
			ip addr del 10.1.0.3/24 dev e0; ip addr del 10.3.0.1/24 dev e0; ip addr del fd01::3/64 dev e0
			for i in 6 3; do ip addr add 10.1.0.$i/24 dev e0; ip addr add fd01::$i/64 dev e0 nodad; ip addr add 10.$i.0.1/24 dev e0; done`, nil},
		{"a primary address goes", links + `
			ip addr add 10.1.0.2/24 dev e0; ip addr add 10.1.0.3/24 dev e0; ip addr add 10.9.0.1/16 dev e1
			ip route add 192.0.2.0/24 via 10.1.0.9 src 10.1.0.3; ip route add 198.51.100.0/24 via 10.9.0.9 dev e1; ip neigh add 10.9.0.9 lladdr 02:00:00:00:00:99 dev e1`, `
			ip addr del 10.1.0.1/24 dev e0; ip addr add 10.1.0.3/24 dev e0; ip addr del 10.9.0.1/16 dev e1; ip addr add 10.9.0.1/24 dev e1
			ip route replace 192.0.2.0/24 via 10.1.0.8 src 10.1.0.3; ip neigh add 10.9.0.8 lladdr 02:00:00:00:00:98 dev e1 nud permanent`, nil},
		{"the order of routes", links + `
			for i in 1 2 3; do ip route append 192.0.2.0/24 via 10.1.0.1$i; ip -6 route append 2001:db8::/64 via fd01::1$i; done
			ip route add 198.51.100.0/24 via 10.1.0.11 metric 5; ip -6 route add 2001:db8:1::/64 dev e1 metric 5
			ip route add 203.0.113.7 dev e0; ip route add 203.0.113.0/25 via 203.0.113.7`, `
			ip route del 192.0.2.0/24 via 10.1.0.11; ip route prepend 192.0.2.0/24 via 10.1.0.14; ip route append 192.0.2.0/24 via 10.1.0.11
			ip -6 route del 2001:db8::/64 via fd01::12; ip -6 route append 2001:db8::/64 via fd01::14
			ip route change 198.51.100.0/24 via 10.1.0.12 metric 5 mtu 1300; ip -6 route append 2001:db8:1::/64 via fd01::11 metric 5
			ip route add 203.0.113.128/25 via 203.0.113.7; ip route del 203.0.113.7 dev e0; ip route del broadcast 10.1.0.255 dev e0 table local`, nil},
		{"the kernel's own routes", links + "ip route del broadcast 10.1.0.255 dev e0 table local", "ip route add broadcast 10.1.0.255 dev e0 table local proto kernel scope link src 10.1.0.1", nil},
		{"the order of rules", links + `
			for mark in 1 2 3; do ip rule add pref 100 fwmark $mark lookup 7; done; ip rule add pref 100 lookup 7; ip rule add pref 101 from 10.0.0.0/8 lookup 8
			ip rule add pref 102 not from 10.0.0.0/8 lookup 9; ip -6 rule add pref 100 lookup 7`, `
			ip rule del pref 100 fwmark 2; ip rule add pref 100 from 10.7.0.0/16 lookup 7; ip rule add pref 100 fwmark 2 lookup 7
			ip rule del pref 101; ip rule add pref 102 from 10.0.0.0/8 lookup 10; ip -6 rule add pref 99 to fd00::/8 blackhole; ip rule del pref 32766`, nil},
		{"lifetimes", links + `
			ip addr add 10.7.0.1/24 dev e0 valid_lft 500 preferred_lft 400; ip addr add fd07::1/64 dev e0 nodad valid_lft 500 preferred_lft 400
			ip -6 route add 2001:db8::/64 via fd01::9 expires 500`, `
			ip addr change 10.7.0.1/24 dev e0 valid_lft 50000 preferred_lft 40000; ip addr change fd07::1/64 dev e0 valid_lft 50000 preferred_lft 40000
			ip -6 route replace 2001:db8::/64 via fd01::9 expires 50000`, []string{
			`ip -o addr show dev e0 to 10.7.0.0/24 | grep -o '_lft [45][0-9]\{4\}sec\|_lft [34]9[0-9]\{3\}sec' | cut -c1-5`,
			`ip -o -6 addr show dev e0 to fd07::/64 | grep -o '_lft [45][0-9]\{4\}sec\|_lft [34]9[0-9]\{3\}sec' | cut -c1-5`,
			`ip -6 route show 2001:db8::/64 | grep -o 'expires \(50000\|49[0-9]\{3\}\)sec' | cut -c1-7`,
		}},
		{"nexthops", links + `
			for i in 1 2 3; do ip nexthop add id $i via 10.1.0.1$i dev e0; done; ip nexthop add id 10 group 1/2; ip nexthop add id 11 group 2/3
			ip route add 192.0.2.0/24 nhid 10; ip route add 198.51.100.0/24 nhid 11; ip route add 203.0.113.0/24 nhid 3`, `
			ip nexthop del id 3; ip nexthop replace id 1 via 10.1.0.21 dev e0; ip nexthop add id 4 via 10.1.0.14 dev e0; ip nexthop replace id 10 group 1,7/4
			ip route add 203.0.113.0/24 nhid 4`, nil},
		{"forwarding entries", `
			ip link add br7 type bridge mcast_snooping 1; ip link add p1 type veth peer name q1; ip link add p2 type veth peer name q2
			for d in p1 p2; do ip link set $d master br7; done; for d in br7 p1 p2 q1 q2; do ip link set $d up; done
			bridge fdb add 02:00:00:00:00:01 dev p1 master static; bridge fdb add 02:00:00:00:00:02 dev p1 master permanent; bridge fdb add 02:00:00:00:00:03 dev p1 self
			for p in p1 p2; do until bridge -d link show dev $p | grep -q 'state forwarding'; do :; done; done
			bridge fdb add 02:00:00:00:00:04 dev p1 master dynamic; bridge fdb add 02:00:00:00:00:05 dev p1 master dynamic
			bridge mdb add dev br7 port p1 grp 239.1.1.1 permanent; bridge mdb add dev br7 port p2 grp 239.1.1.2 permanent`, `
			bridge fdb del 02:00:00:00:00:01 dev p1 master; bridge fdb replace 02:00:00:00:00:02 dev p2 master static; bridge fdb del 02:00:00:00:00:03 dev p1 self
			bridge fdb replace 02:00:00:00:00:04 dev p2 master dynamic; bridge fdb del 02:00:00:00:00:05 dev p1 master; bridge fdb add 02:00:00:00:00:06 dev p2 self
			bridge mdb del dev br7 port p1 grp 239.1.1.1; bridge mdb add dev br7 port p1 grp 239.1.1.2 permanent`, []string{
			"bridge fdb show br br7 | grep '^02:00:00:00:00' | sort",
		}},
		{"address labels", links + "ip addrlabel add prefix fd00::/8 label 77; ip addrlabel add prefix fd01::/16 label 78", "ip addrlabel del prefix fd00::/8 label 77; ip addrlabel del prefix fd01::/16 label 78; ip addrlabel add prefix fd01::/16 label 79", nil},
		{"nftables", links + `
			nft -f - <<X
			table ip t {
				counter c1 { }
				quota q1 { over 99 mbytes }
				set seen { type ipv4_addr; flags dynamic,timeout; timeout 10m; }
				set ports { type inet_service; elements = { 1, 2, 3 }; }
				chain out {
					type filter hook output priority 0;
					ip protocol icmp counter name c1 quota name q1
					icmp type { echo-request, echo-reply } counter update @seen { ip daddr counter }
					tcp dport @ports goto { counter drop; }
				}
			}
			table inet still { chain in { type filter hook input priority 0; meta mark 7 counter packets 7 bytes 77; }; }
			table arp gone { chain in { type filter hook input priority 0; }; }
X
			until ping -qc1 -W1 10.1.0.1 >/dev/null; do :; done`, `
			until ping -qc1 -W1 127.0.0.1 >/dev/null; do :; done; until ping -qc1 -W1 127.0.0.1 >/dev/null; do :; done; nft add element ip t ports { 4-5 } 2>/dev/null || nft add element ip t ports { 4, 5 }; nft delete element ip t ports { 2 }
			nft delete table arp gone; nft add table ip6 new`, []string{
			`nft list ruleset | sed 's/ expires [0-9a-z]*//g'`,
		}},
		{"iptables", links + `
			iptables-nft -A OUTPUT -p icmp -j ACCEPT; iptables-nft -A INPUT -p tcp --dport 80 -j DROP; until ping -qc1 -W1 10.1.0.1 >/dev/null; do :; done`, `
			until ping -qc1 -W1 10.1.0.1 >/dev/null; do :; done; until ping -qc1 -W1 10.1.0.1 >/dev/null; do :; done; iptables-nft -t nat -A OUTPUT -p tcp -d 192.0.2.1 -j DNAT --to 10.1.0.1`, []string{
			"iptables-nft -L -v -x -n; iptables-nft -t nat -S",
		}},
		{"connections", links + `
			entry() { conntrack -I -s 10.1.0.1 -d 192.0.2.$1 -p tcp --sport 1000 --dport 80 --state $2 --timeout $3 -u SEEN_REPLY,ASSURED >/dev/null; }
			entry 1 ESTABLISHED 9000; entry 2 ESTABLISHED 9000; entry 3 ESTABLISHED 9000; entry 4 FIN_WAIT 9000
			conntrack -I -s 10.1.0.1 -d 192.0.2.5 -p tcp --sport 1000 --dport 80 --state ESTABLISHED --timeout 9000 -u SEEN_REPLY -g 10.9.9.9 >/dev/null
			conntrack -I -s 10.1.0.1 -d 192.0.2.6 -p udp --sport 53 --dport 53 --timeout 9000 -m 7 >/dev/null`, `
			conntrack -D -d 192.0.2.1 >/dev/null 2>&1; conntrack -U -p tcp -d 192.0.2.2 --state CLOSE_WAIT --timeout 60000 >/dev/null 2>&1
			conntrack -D -d 192.0.2.3 >/dev/null 2>&1; conntrack -I -s 10.1.0.1 -d 192.0.2.3 -p tcp --sport 1000 --dport 80 --state SYN_SENT --timeout 9000 >/dev/null
			conntrack -D -d 192.0.2.5 >/dev/null 2>&1
			conntrack -I -s 10.1.0.1 -d 192.0.2.5 -p tcp --sport 1000 --dport 80 --state ESTABLISHED --timeout 9000 -u SEEN_REPLY -g 10.8.8.8 >/dev/null
			conntrack -U -d 192.0.2.6 -p udp -m 8 >/dev/null 2>&1
			conntrack -I -s 10.1.0.1 -d 192.0.2.7 -p udp --sport 53 --dport 53 --timeout 9000 >/dev/null`, []string{
			`conntrack -L 2>/dev/null | sed -E 's/^([a-z]+ +[0-9]+) [0-9]{5} /\1 long /; s/^([a-z]+ +[0-9]+) [0-9]{1,4} /\1 short /; s/use=[0-9]+//' | tr -s ' ' | sort`,
		}},
		{"ipset", links + `
			ipset create nets hash:net timeout 3000 counters comment; ipset add nets 10.66.0.0/16 comment bad timeout 0; ipset add nets 10.67.0.0/16; ipset add nets 10.68.0.0/16 packets 5 bytes 55
			ipset create ports bitmap:port range 0-100; ipset add ports 80; ipset create more hash:net,port
			ipset add more 10.0.0.0/8,tcp:1-3; ipset create all list:set; ipset add all nets; ipset add all more; ipset create quiet hash:ip; ipset add quiet 10.0.0.1`, `
			ipset del nets 10.66.0.0/16; ipset -exist add nets 10.68.0.0/16 packets 6 bytes 66 comment worse timeout 0; ipset add nets 10.69.0.0/16 nomatch timeout 0
			ipset add ports 81; ipset del ports 80; ipset flush more; ipset add more 10.0.0.0/9,udp:9; ipset del all nets; ipset add all nets`, []string{
			"ipset save | sort | sed 's/timeout [1-9][0-9]*/timeout/'",
		}},
		{"IPsec policies", links + "ip xfrm policy add src 10.0.0.0/8 dst 192.0.2.0/24 dir out priority 7 tmpl src 10.0.0.1 dst 192.0.2.1 proto esp reqid 5 mode tunnel", `
			ip xfrm policy flush; ip xfrm policy add src 10.0.0.0/8 dst 192.0.2.0/25 dir out priority 8 tmpl src 10.0.0.1 dst 192.0.2.1 proto esp reqid 5 mode tunnel
			ip xfrm policy add src 192.0.2.0/24 dst 10.0.0.0/8 dir in tmpl src 192.0.2.1 dst 10.0.0.1 proto esp mode tunnel`, []string{"ip xfrm policy"}},
		{"an uplink", bridged + "; ip neigh add 10.0.0.7 lladdr 02:00:00:00:00:77 dev eth0 nud permanent; ip nexthop add id 5 via 10.0.0.1 dev eth0; ip route add 192.0.2.0/24 nhid 5", `
			ip addr add 10.0.0.3/24 dev eth0; ip addr del fd00::2/64 dev eth0; ip addr add fd00::3/64 dev eth0 nodad; ip -6 route replace default via fd00::4
			ip route replace default via 10.0.0.9; ip route replace 198.51.100.0/24 via 10.0.0.8; ip neigh del 10.0.0.7 dev eth0; ip neigh add 10.0.0.8 lladdr 02:00:00:00:00:78 dev eth0 nud permanent
			ip nexthop add id 6 via 10.0.0.8 dev eth0; ip route add 203.0.113.0/24 nhid 6`, nil},
	}
}

// TestUpdateInPlace does so for one kind of object at a time.
func TestUpdateInPlace(t *testing.T) {
	needRoot(t)
	for _, c := range updateCases() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			// Of chains without a name nft has no JSON. Without a carrier an uplink has no nexthops.
			commands := slices.DeleteFunc(toolCommands(), func(cmd string) bool { return strings.Contains(cmd, "nft -j") && strings.Contains(c.script, "goto {") })
			updated(t, c.script, c.change, append(commands, c.commands...), !strings.Contains(c.script, "HOST"))
		})
	}
}

// TestUpdateRefused: what can't be updated is told before anything is changed.
func TestUpdateRefused(t *testing.T) {
	needRoot(t)
	for _, c := range []struct{ name, change, object string }{
		{"link", "ip link set e0 mtu 1300", "link e0"},
		{"new link", "ip link add e3 type bridge", "link e3"},
		{"sysctl", "echo 7 > /proc/sys/net/ipv4/tcp_retries2", "sysctl net.ipv4.tcp_retries2"},
		{"queueing discipline", "tc qdisc add dev e0 root tbf rate 1mbit burst 10k limit 30k", "tc qdisc"},
		{"ruleset", "iptables-legacy -A INPUT -j DROP", "ruleset of iptables-legacy"},
		{"set", "ipset create more hash:ip", `set "more" was made`},
		{"account", "nfacct add web", "netfilter nfacct web"},
		{"uplink", "host ip addr add 10.9.9.9/32 dev veth-svc", "uplink eth0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			host, source := arrange(t, bridged+`
				ip link add e0 type veth peer name e1; ip link set e0 up; ip link add br7 type bridge; ipset create some hash:ip`)
			old := capture(t, source, host)
			sh(t, source, `host() { nsenter --net=/proc/self/fd/3 "$@"; }; `+c.change+"; ip neigh add 10.0.0.99 lladdr 02:00:00:00:00:99 dev eth0", host)
			next := capture(t, source, host)
			target, opts := newNS(t), netstate.BuildOptions{Host: otherHost(t)}
			if err := netstate.Build(context.Background(), target, old, opts); err != nil {
				t.Fatal(err)
			}
			err := netstate.Update(context.Background(), target, old, next, opts)
			var rebuild *netstate.RebuildError
			if !errors.Is(err, netstate.ErrRebuild) || !errors.As(err, &rebuild) || !strings.Contains(err.Error(), c.object) {
				t.Fatalf("got %v", err)
			}
			if rebuild.Err == nil {
				checkDiff(t, old, func() *netstate.State { return capture(t, target, opts.Host) })
			}
		})
	}
}
