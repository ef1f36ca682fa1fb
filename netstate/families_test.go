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
		{"accounts and timeout policies, and the rules that use them", `
			nfacct add web; nfacct add much byte 100000; nfacct add few packet 1000
			nfct timeout add long inet tcp established 77777 close 7; nfct timeout add short inet6 udp unreplied 5 replied 6
			iptables-legacy -A FORWARD -m nfacct --nfacct-name web; iptables-nft -A FORWARD -m nfacct --nfacct-name few
			iptables-legacy -t raw -A PREROUTING -p tcp -j CT --timeout long`},
		{"IPsec policies", `
			ip xfrm policy add src 10.0.0.0/8 dst 192.0.2.0/24 dir out priority 7 tmpl src 10.0.0.1 dst 192.0.2.1 proto esp reqid 5 mode tunnel
			ip xfrm policy add src 192.0.2.0/24 dst 10.0.0.0/8 dir in if_id 77 tmpl src 192.0.2.1 dst 10.0.0.1 proto esp mode tunnel
			ip xfrm policy setdefault in accept fwd block out accept`},
	}
}

// objectCase is a [kindCase] with objects that only a tool of their own prints.
type objectCase struct{ name, needs, script, list string }

// objectCases are namespaces with objects that are spoken of over generic netlink, on links that are carried.
func objectCases() []objectCase {
	return []objectCase{
		{
			"ports of foo over UDP", "/sys/module/fou", `modprobe -a fou fou6; ip link set lo up
			ip fou add port 5555 ipproto 4; ip fou add port 5556 gue; ip -6 fou add port 5557 ipproto 41; ip fou add port 5558 gue local 127.0.0.1`,
			"ip fou show | sort; ip -6 fou show | sort",
		},
		{
			"virtual services", "/sys/module/ip_vs", `ip link set lo up; ip addr add 10.0.0.1/24 dev lo
			ipvsadm -A -t 10.0.0.1:80 -s rr -p 77; ipvsadm -a -t 10.0.0.1:80 -r 10.0.0.2:8080 -m -w 3; ipvsadm -a -t 10.0.0.1:80 -r 10.0.0.3:80 -g -x 100 -y 50
			ipvsadm -A -u 10.0.0.1:53 -s wlc -o; ipvsadm -a -u 10.0.0.1:53 -r 10.0.0.5 -i; ipvsadm -A -f 7 -s sh -b sh-fallback; ipvsadm -a -f 7 -r 10.0.0.6 -m
			ipvsadm -A -t [fd00::1]:80 -s lc; ipvsadm -a -t [fd00::1]:80 -r [fd00::2]:80 -m; ipvsadm --set 100 20 30
			ipvsadm --start-daemon master --mcast-interface lo --syncid 7`,
			"ipvsadm -S -n | sort; ipvsadm -L --timeout; ipvsadm -L --daemon; ipvsadm -L -n --thresholds | sort",
		},
		{
			"translations of locators", "/sys/module/ila", `modprobe ila; ip link add d0 type dummy; ip link set d0 up
			ip ila add loc_match 1:2:3:4 loc 5:6:7:8; ip ila add loc_match 2:2:3:4 loc 5:6:7:9 csum-mode neutral-map dev d0`,
			"ip ila list | awk '{ print $3, $4, $5 }' | sort", // it prints addresses of its own memory before
		},
		{
			"keys and peers of wireguard", "wireguard", `umask 077; cd $(mktemp -d); for k in 1 2 3 4; do wg genkey > key$k; wg pubkey < key$k > pub$k; done; wg genpsk > psk
			ip link add wg0 type wireguard; ip link add wg1 type wireguard; ip link set wg0 up; ip addr add 10.7.0.1/24 dev wg0
			wg set wg0 private-key key1 listen-port 5555 fwmark 0x77 peer $(cat pub2) preshared-key psk endpoint 192.0.2.1:7777 persistent-keepalive 25 allowed-ips 10.0.0.0/8,fd00::/8 peer $(cat pub3) endpoint '[2001:db8::1]:9' allowed-ips 192.0.2.0/24
			wg set wg0 peer $(cat pub4); wg set wg1 peer $(cat pub1) allowed-ips $(seq -s, -f 11.0.%g.0/24 1 250)`,
			"wg show all dump | cut -f 1-5,9 | sort; wg showconf wg0 | sort", // without what was counted
		},
		{
			"paths, offloads, segment routing and OAM", "", `
			ip link add e0 numtxqueues 4 numrxqueues 4 type veth peer name e1; ip link set dev e0 up; ip link set dev e1 up; modprobe -q tun || true; ip tuntap add dev tap0 mode tap
			ip addr add 10.0.0.1/24 dev e0; ip addr add 10.0.0.2/24 dev e0; ip addr add fd00::1/64 dev e0 nodad
			ip mptcp endpoint add 10.0.0.1 signal; ip mptcp endpoint add 10.0.0.2 id 77 dev e0 subflow backup; ip mptcp endpoint add fd00::1 subflow fullmesh; ip mptcp limits set subflows 5 add_addr_accepted 3
			ethtool -K e0 tx off gro on rx-gro-list on; ethtool -L e0 rx 2 tx 3; ethtool -C tap0 rx-frames 7; ethtool -s tap0 speed 1000 duplex half port fibre
			ip sr tunsrc set fd00::7; printf 'secret\nsecret\n' | ip sr hmac set 17 sha256 >/dev/null
			ip ioam namespace add 7 data 0x10 wide 0x20; ip ioam schema add 5 abcd; ip ioam namespace set 7 schema 5`,
			`ip mptcp endpoint show; ip mptcp limits show; ip sr tunsrc show; ip sr hmac show; ip ioam namespace show; ip ioam schema show
			for d in lo e0 e1 tap0; do ethtool $d; for f in k l g c; do ethtool -$f $d || true; done; done 2>&1`,
		},
	}
}

// familyCommands are those of the second oracle for these families.
func familyCommands() []string {
	return []string{
		"tc -d qdisc show | sed 's/refcnt [0-9]* //; s/direct_packets_stat [0-9]* //' | sort",
		`for d in $(ls /proc/sys/net/ipv4/conf); do echo class show dev $d; for at in "" ingress egress; do echo filter show dev $d $at; done; done | tc -force -batch - 2>/dev/null || true`,
		"ipset save | sort | sed 's/timeout [1-9][0-9]*/timeout/'",
		"iptables-legacy-save | grep -v '^#' || true",
		"echo accounts; nfacct list; nfct timeout list",
		"ip xfrm policy; ip xfrm policy getdefault",
		"ip -s xfrm state",
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
