package netstate_test

import "testing"

// familyCases are namespaces with objects of the families that have a package each.

func familyCases() []struct {
	name   string
	script string
} {
	return []struct{ name, script string }{
		{"traffic control", `
			ip link add br0 type bridge; ip link add e0 numtxqueues 2 type veth peer name e1; ip link add ifb7 type ifb
			for d in br0 e0 e1 ifb7; do ip link set dev $d up; done
			tc qdisc add dev e0 root handle 1: htb default 20
			tc class add dev e0 parent 1: classid 1:1 htb rate 10mbit
			tc class add dev e0 parent 1:1 classid 1:20 htb rate 1mbit ceil 10mbit
			tc qdisc add dev e0 parent 1:20 handle 20: tbf rate 1mbit burst 10k limit 30k
			tc filter add dev e0 parent 1: protocol ip prio 5 u32 match ip dport 80 0xffff flowid 1:20
			tc qdisc add dev e1 handle ffff: ingress
			tc filter add dev e1 parent ffff: protocol all prio 1 u32 match u32 0 0 action mirred egress redirect dev ifb7
			tc qdisc add dev br0 clsact
			tc filter add dev br0 egress protocol ip prio 1 chain 7 u32 match u32 0 0 action mirred egress mirror dev ifb7`},
		{"sets and the rules of iptables that use them", `
			ipset create gone hash:ip
			ipset create blocked hash:net timeout 3000 comment; ipset add blocked 10.66.0.0/16 comment bad timeout 0
			ipset create ports bitmap:port range 0-100; ipset add ports 80
			ipset create all list:set; ipset add all blocked
			ipset destroy gone
			iptables-nft -A INPUT -m set --match-set blocked src -j DROP
			iptables-nft -A INPUT -p tcp -m set --match-set ports dst -j ACCEPT
			iptables-legacy -A FORWARD -m set --match-set all src -j DROP`},
		{"IPsec policies", `
			ip xfrm policy add src 10.0.0.0/8 dst 192.0.2.0/24 dir out priority 7 tmpl src 10.0.0.1 dst 192.0.2.1 proto esp reqid 5 mode tunnel
			ip xfrm policy add src 192.0.2.0/24 dst 10.0.0.0/8 dir in if_id 77 tmpl src 192.0.2.1 dst 10.0.0.1 proto esp mode tunnel
			ip xfrm policy setdefault in accept fwd block out accept`},
		{"MPTCP, offloads and channels, segment routing and IOAM", `
			ip link add e0 numtxqueues 4 numrxqueues 4 type veth peer name e1; ip link set dev e0 up; ip link set dev e1 up
			ip addr add 10.0.0.1/24 dev e0; ip addr add 10.0.0.2/24 dev e0
			ip mptcp endpoint add 10.0.0.1 signal; ip mptcp endpoint add 10.0.0.2 dev e0 subflow backup; ip mptcp limits set subflows 5
			ethtool -K e0 tx off gro on rx-gro-list on; ethtool -L e0 rx 2 tx 3
			ip sr tunsrc set fd00::7; ip ioam namespace add 7 data 0x10`},
	}
}

// familyCommands are those of the second oracle for these families.
func familyCommands() []string {
	return []string{
		"tc -d qdisc show | sed 's/refcnt [0-9]* //; s/direct_packets_stat [0-9]* //' | sort",
		`for d in $(ls /proc/sys/net/ipv4/conf); do echo class show dev $d; for at in "" ingress egress; do echo filter show dev $d $at; done; done | tc -force -batch - 2>/dev/null || true`,
		"ipset save | sort | sed 's/timeout [1-9][0-9]*/timeout/'",
		"iptables-legacy-save | grep -v '^#' || true",
		"ip xfrm policy; ip xfrm policy getdefault",
		"ip -s xfrm state",
		"ip mptcp endpoint show; ip mptcp limits show; ip sr tunsrc show; ip ioam namespace show",
		`for d in $(ls /proc/sys/net/ipv4/conf | grep -vE '^(all|default)$'); do ethtool -k $d; ethtool -l $d || true; done 2>&1`,
	}
}

// TestRoundTripFamilies is TestRoundTrip for these cases.
func TestRoundTripFamilies(t *testing.T) {
	needRoot(t)
	for _, c := range familyCases() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			roundTrip(t, c.script, append(toolCommands(), familyCommands()...))
		})
	}
}
