package netstate_test

// netCase is a namespace built with the tools of iproute2. The host's namespace is $HOST in the script, and
// "host CMD" runs a command there.
type netCase struct{ name, script string }

// cases returns what is moved in the round trips. Each one is small, so that a failure names what broke.
func cases() []netCase {
	return []netCase{
		{"empty", ""},
		{"lo", "ip link set lo up"},
		{"lo altered", `
			ip link set lo up mtu 9000 alias "the loop" group 7 txqueuelen 55
			ip addr add 10.9.9.9/32 dev lo; ip addr add fd09::9/128 dev lo
			ip addr del ::1/128 dev lo`},
		{"container", `
			ip link set lo up
			ip link add eth0 mtu 1400 type veth peer name veth-svc mtu 1450 netns $HOST
			ip addr add 10.0.0.2/24 brd + dev eth0
			ip addr add fd00::2/64 dev eth0 nodad
			ip link set eth0 up
			host ip link set veth-svc master br0 up
			ip route add default via 10.0.0.1
			ip -6 route add default via fd00::1
			ip route add 192.0.2.0/24 via 10.0.0.1 dev eth0 metric 7 proto static
			ip neigh add 10.0.0.1 lladdr 02:00:00:00:00:01 dev eth0
			echo 0 > /proc/sys/net/ipv4/tcp_syncookies
			echo 2 > /proc/sys/net/ipv4/conf/eth0/rp_filter`},
		{"routed uplink", `
			ip link add eth0 address 02:11:22:33:44:55 type veth peer name calif1 address ee:ee:ee:ee:ee:ee netns $HOST
			ip addr add 10.5.0.2/32 dev eth0; ip addr add fd05::2/128 dev eth0 nodad
			ip link set eth0 up; ip link set lo up
			host ip link set calif1 up
			ip route add 169.254.1.1 dev eth0 scope link
			ip route add default via 169.254.1.1
			ip neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud stale
			host ip route add 10.5.0.2 dev calif1
			host ip -6 route add fd05::2 dev calif1
			host ip neigh add proxy 10.5.0.9 dev calif1
			host sysctl -qw net.ipv4.conf.calif1.proxy_arp=1 net.ipv4.conf.calif1.rp_filter=1`},
		{"two uplinks, one down", `
			ip link add eth0 type veth peer name va netns $HOST
			ip link add eth1 type veth peer name vb netns $HOST
			ip addr add 10.1.0.2/24 dev eth0; ip addr add 10.2.0.2/24 dev eth1
			ip link set eth0 up; host ip addr add 10.1.0.1/24 dev va; host ip link set va up; host ip link set vb up`},
		{"links", `
			ip link add name e0 index 77 numtxqueues 3 numrxqueues 2 type veth peer name e1
			ip link property add dev e0 altname first-of-two altname second
			ip link set e0 alias "e0 thing" txqueuelen 123 group 9 mtu 3000 gso_max_size 30000 gro_max_size 30000 gso_max_segs 99
			ip link set e1 address 02:00:00:00:00:bb multicast off allmulticast on promisc on
			ip link set e0 arp off up
			ip link set e1 up
			ip link add ifb3 type ifb`},
		{"bridge", `
			ip link add br7 type bridge forward_delay 400 hello_time 300 max_age 1500 ageing_time 12300 priority 777 \
				mcast_snooping 1 mcast_querier 1 group_fwd_mask 8 mcast_hash_max 1024 mcast_igmp_version 3
			ip link add p1 type veth peer name q1
			ip link add p2 type veth peer name q2
			ip link set p1 master br7 up; ip link set p2 master br7 up
			ip link set q1 up; ip link set q2 up; ip link set br7 up
			bridge link set dev p1 cost 55 priority 9 hairpin on guard on learning off flood off
			bridge link set dev p2 isolated on neigh_suppress on mcast_flood off
			bridge fdb add 02:00:00:00:00:01 dev p1 master static
			bridge fdb add 02:00:00:00:00:02 dev p2 master permanent
			bridge fdb add 02:00:00:00:00:03 dev br7 self
			bridge mdb add dev br7 port p1 grp 239.1.1.1 permanent
			bridge mdb add dev br7 port p2 grp ff15::7 permanent
			ip addr add 10.7.0.1/24 dev br7`},
		{"bridge with a pinned address and stp", `
			ip link add br7 address 02:77:00:00:00:01 mtu 1300 type bridge stp_state 1
			ip link add p1 type veth peer name q1; ip link set p1 master br7
			ip link set br7 mtu 1280 up; ip link set p1 up; ip link set q1 up`},
		{"bridge without ports", `
			ip link add br7 type bridge; ip link set br7 up
			ip addr add 10.7.0.1/24 dev br7; ip addr add fd07::1/64 dev br7 nodad
			ip nexthop add id 7 via 10.7.0.9 dev br7
			ip route add 192.0.2.0/24 nhid 7; ip route add 198.51.100.0/24 via 10.7.0.8
			echo 1 > /proc/sys/net/ipv6/conf/br7/ignore_routes_with_linkdown`},
		{"bridges without ports or carrier", `
			ip link add br1 type bridge stp_state 1; ip link add br2 type bridge priority 777; ip link set br2 up
			ip link add br3 type bridge; ip link add br4 type bridge; ip link set br4 address 02:00:00:00:00:04 up
			ip link add br5 type bridge; ip link add p5 type veth peer name q5; ip link set p5 master br5; ip link set p5 nomaster; ip link set br5 up`},
		{"addresses of links on top of a bridge", `
			ip link add br7 type bridge priority 7; ip link set br7 up
			ip link add mv0 link br7 type macvtap mode passthru; ip link set mv0 up
			bridge fdb add 02:00:00:00:07:07 dev mv0 self`},
		{"vxlan larger than its lower device", `
			ip link add br7 mtu 3000 type bridge
			ip link add vx0 type vxlan id 7 group 239.1.1.1 dev br7 dstport 4789; ip link set vx0 up
			ip tuntap add tap0 mode tap; ip link set tap0 mtu 4000
			ip link add vx1 type vxlan id 8 group 239.1.1.1 dev tap0 dstport 4790
			ip link set tap0 mtu 1400 master br7; ip link set br7 up`},
		{"links on a bridge larger than its ports", `
			ip link add br7 type bridge; ip link add e0 type veth peer name e1; ip link set e0 master br7
			ip link set br7 mtu 3000; ip link add mv0 link br7 mtu 2900 type macvlan; ip link set mv0 mtu 2900
			ip link set br7 up; ip link set mv0 up`},
		{"settings of links that are easily forgotten", `
			ip link add br7 type bridge; ip link add p1 type veth peer name q1; ip link set p1 master br7 up
			for d in q1 p1 br7; do ip link set $d addrgenmode none; ip link set $d up; done
			until bridge link show dev p1 | grep -q forwarding; do sleep 0.02; done; bridge link set dev p1 state 0
			ip link set q1 mode dormant state up broadcast 02:ff:ff:ff:ff:ff
			ip link add mv link q1 type macvlan; ip link set mv protodown on; ip link set mv protodown_reason 3 on
			ip maddr add 01:00:5e:00:00:77 dev q1; ip addr add 239.1.1.1/32 dev q1 autojoin`},
		{"rules of multicast routing", `
			ip mrule add iif lo lookup 7 pref 5; ip -6 mrule add iif lo lookup 8 pref 6`},
		{"macvlan on a parent outside", `
			host ip link add par type veth peer name parpeer
			host ip link set par up; host ip link set parpeer up
			host ip link add mv0 link par address 02:aa:00:00:00:01 type macvlan mode bridge
			host ip link set mv0 netns $HOST_TARGET
			ip addr add 10.8.0.2/24 dev mv0; ip addr add fd08::2/64 dev mv0 nodad
			ip link set mv0 up
			ip route add default via 10.8.0.1`},
		{"macvlan and vxlan on a parent outside", `
			host ip link add par type veth peer name parpeer
			host ip addr add 10.4.0.1/24 dev par; host ip link set par up; host ip link set parpeer up
			host ip link add vx0 type vxlan id 5 dev par dstport 4789 group 239.1.1.1
			host ip link add mv0 link par type macvlan mode vepa
			host ip link set vx0 netns $HOST_TARGET; host ip link set mv0 netns $HOST_TARGET
			ip link set vx0 up; ip addr add 10.8.0.2/24 dev vx0; ip route add default via 10.8.0.1`},
		{"macvlan inside", `
			ip link add low type veth peer name lowpeer; ip link set low up; ip link set lowpeer up
			ip link add mv1 link low type macvlan mode private
			ip link add mv2 link low type macvlan mode source macaddr set 02:00:00:00:00:11 02:00:00:00:00:22
			ip link set mv1 up; ip addr add 10.3.0.1/24 dev mv1`},
		{"links with large MTUs on a tap", `
			ip tuntap add dev tap0 mode tap; ip link set tap0 mtu 9000 up; ip link add mv0 link tap0 mtu 8000 type macvlan mode bridge; ip link set mv0 up
			ip tuntap add dev tap1 mode tap; ip link set tap1 mtu 1400; ip link add mv1 link tap1 type macvtap mode vepa`},
		{"macvlans that pass everything through", `
			for i in 1 2 3; do ip link add low$i type veth peer name peer$i; ip link set low$i up; ip link set peer$i up; done
			ip link add mv1 link low1 type macvlan mode passthru; ip link set mv1 allmulticast on; ip link set mv1 up
			ip link add mv2 link low2 type macvlan mode passthru nopromisc; ip link set mv2 up; ip link set mv2 allmulticast on
			ip link add mv3 link low3 type macvtap mode passthru; ip link set mv3 allmulticast on; ip link set mv3 up; ip link set low3 allmulticast on`},
		{"vxlan", `
			ip link add low type veth peer name lowpeer; ip addr add 10.4.0.1/24 dev low; ip link set low up; ip link set lowpeer up
			ip link add vx1 type vxlan id 42 dstport 4789 local 10.4.0.1 dev low nolearning
			ip link add vx2 type vxlan id 43 dstport 4790 remote 10.4.0.2 ttl 9 tos inherit srcport 1000 2000 ageing 77 udp6zerocsumrx
			ip link add vx3 type vxlan dstport 4791 external
			ip link set vx1 up; ip link set vx2 up
			bridge fdb append 00:00:00:00:00:00 dev vx1 dst 10.4.0.7
			bridge fdb append 00:00:00:00:00:00 dev vx1 dst 10.4.0.8
			bridge fdb add 02:00:00:00:00:99 dev vx1 dst 10.4.0.9 port 999 vni 7
			ip link add br0 type bridge; ip link set vx1 master br0; ip link set br0 up`},
		{"tun and tap", `
			ip tuntap add dev tun7 mode tun user 1000 group 1001
			ip tuntap add dev tap7 mode tap multi_queue vnet_hdr
			ip tuntap add dev tap8 mode tap pi
			ip link set tun7 mtu 1234 up; ip addr add 10.6.0.1 peer 10.6.0.2 dev tun7
			ip link set tap7 address 02:00:00:00:07:07`},
		{"addresses", `
			ip link add e0 type veth peer name e1; ip link set e0 up; ip link set e1 up
			ip addr add 10.1.0.1/24 dev e0; ip addr add 10.1.0.2/24 dev e0; ip addr add 10.1.0.3/24 brd 10.1.0.99 dev e0 label e0:three
			ip addr add 10.2.0.1 peer 10.2.0.9/32 dev e0; ip addr add 10.3.0.1/16 dev e0 noprefixroute metric 77
			ip addr add 10.4.0.1/24 dev e0 valid_lft 5000 preferred_lft 3000
			ip addr add 10.5.0.1/24 dev e0 scope link
			ip addr add fd01::1/64 dev e0 nodad; ip addr add fd01::2/64 dev e0 nodad; ip addr add fd02::1/64 dev e0 noprefixroute nodad
			ip addr add fd03::1/128 peer fd03::9/128 dev e0 nodad; ip addr add fd04::1/64 dev e0 nodad valid_lft 5000 preferred_lft 0
			ip addr add fd05::1/64 dev e0 nodad mngtmpaddr; ip addr add fd06::1/64 dev e0 nodad metric 99 home`},
		{"no IPv6 on one link", `
			ip link add e0 type veth peer name e1
			echo 1 > /proc/sys/net/ipv6/conf/e0/disable_ipv6
			ip link set e0 addrgenmode none; ip link set e1 addrgenmode stable_secret 2>/dev/null || true
			ip link set e0 up; ip link set e1 up; ip addr add 10.1.0.1/24 dev e0`},
		{"routes", `
			ip link set lo up
			ip link add e0 type veth peer name e1; ip link set e0 up; ip link set e1 up
			ip addr add 10.1.0.1/24 dev e0; ip addr add 10.2.0.1/24 dev e1
			ip addr add fd01::1/64 dev e0 nodad; ip addr add fd02::1/64 dev e1 nodad
			ip route add default via 10.1.0.9 metric 5; ip route add default via 10.2.0.9 metric 6
			ip route add 192.0.2.0/24 via 10.1.0.9 src 10.2.0.1 mtu lock 1300 advmss 900 initcwnd 20 rto_min 50ms congctl reno
			ip route add 198.51.100.0/24 nexthop via 10.1.0.9 weight 3 nexthop via 10.2.0.9 dev e1 weight 7
			ip route add 203.0.113.0/24 via 10.99.0.1 dev e0 onlink
			ip route add 203.0.113.0/25 via inet6 fd01::9 dev e0
			ip route add blackhole 10.66.0.0/16; ip route add unreachable 10.67.0.0/16 metric 9; ip route add prohibit 10.68.0.0/16
			ip route add throw 10.69.0.0/16 table 77; ip route add 10.70.0.0/16 via 10.1.0.8 table 1000 tos 0x10
			ip route add local 10.71.0.0/16 dev lo table local; ip route add 10.72.0.0/16 dev e0 scope link proto 99
			ip route append 10.72.0.0/16 dev e1 scope link proto 99
			ip route add 10.73.0.0/16 dev e0 realm 5
			ip -6 route add default via fd01::9 metric 3 mtu 1400 hoplimit 33
			ip -6 route add 2001:db8::/32 nexthop via fd01::9 weight 2 nexthop via fd02::9 dev e1
			ip -6 route add 2001:db9::/32 via fd02::9 expires 900 pref low
			ip -6 route add unreachable 2001:dba::/32; ip -6 route add blackhole 2001:dbb::/32 table 55
			ip -6 route add 2001:dbc::/32 from fd01::/64 via fd01::9
			ip -6 route add local 2001:dbd::/32 dev lo table local
			ip route del 10.2.0.0/24 dev e1; ip route add 10.2.0.0/24 dev e1 metric 50; ip -6 route del fd02::/64 dev e1`},
		{"order of routes", `
			for d in e0 e1 e2; do ip link add $d type veth peer name p$d; ip link set $d up; ip link set p$d up; done
			ip addr add 10.1.0.2/24 dev e2; ip addr add 10.1.0.3/24 dev e0; ip addr add 10.1.0.4/24 dev e1
			ip addr add fd01::2/64 dev e2 nodad; ip addr add fd01::3/64 dev e0 nodad; ip addr add fd01::4/64 dev e1 nodad
			ip route append 192.0.2.0/24 dev e2; ip route append 192.0.2.0/24 via 10.1.0.9 dev e1; ip route append 192.0.2.0/24 dev e0
			ip route prepend 192.0.2.0/24 via 10.1.0.8 dev e0 onlink; ip route append blackhole 192.0.2.0/24
			ip -6 route append 2001:db8::/64 dev e2; ip -6 route append 2001:db8::/64 dev e0; ip -6 route append 2001:db8::/64 dev e1
			ip -6 route append 2001:db8::/64 via fd01::9 dev e0; ip -6 route append 2001:db8::/64 via fd01::8 dev e1
			ip route append 198.51.100.0/24 via 10.1.0.9 dev e0; ip route append 198.51.100.0/24 dev e0`},
		{"addresses that are broadcast addresses of others", `
			ip link set lo up
			ip addr add 10.3.0.99/24 brd 10.3.0.99 metric 483 dev lo
			ip addr add 10.3.0.60 peer 10.3.0.250/32 brd 10.3.0.99 scope link dev lo`},
		{"IPv6 gateways without IPv6", `
			ip link add e0 type veth peer name e1; ip link set e0 up; ip link set e1 up
			ip route add 192.0.2.0/24 via inet6 fe80::9 dev e0; ip -6 nexthop add id 7 via fe80::9 dev e1
			ip route add 198.51.100.0/24 nhid 7
			echo 1 > /proc/sys/net/ipv6/conf/e0/disable_ipv6; echo 1 > /proc/sys/net/ipv6/conf/e1/disable_ipv6`},
		{"IPv6 gateways without IPv6 on an uplink", `
			ip link add eth0 type veth peer name va netns $HOST; ip link set eth0 up; host ip link set va up
			while ! ip -6 nexthop add id 7 via fe80::9 dev eth0 2>/dev/null; do :; done
			ip route add 198.51.100.0/24 nhid 7; ip route add 192.0.2.0/24 via inet6 fe80::9 dev eth0
			echo 1 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6`},
		{"routes with encapsulation", `
			ip link add e0 type veth peer name e1; ip link set e0 up; ip link set e1 up; ip addr add 10.1.0.1/24 dev e0
			ip route add 192.0.2.0/24 encap ip id 7 dst 10.9.0.1 ttl 9 via 10.1.0.9 dev e0 || true`},
		{"nexthops", `
			ip link set lo up
			ip link add e0 type veth peer name e1; ip link set e0 up; ip link set e1 up
			ip addr add 10.1.0.1/24 dev e0; ip addr add 10.2.0.1/24 dev e1; ip addr add fd01::1/64 dev e0 nodad
			ip nexthop add id 9 via 10.1.0.9 dev e0; ip nexthop add id 3 via 10.2.0.9 dev e1 proto static
			ip nexthop add id 5 blackhole; ip nexthop add id 6 dev e0; ip nexthop add id 8 via fd01::9 dev e0
			ip nexthop add id 1 group 9,4/3,2; ip nexthop add id 2 group 3/9 type resilient buckets 8 idle_timer 60 || true
			ip route add 192.0.2.0/24 nhid 1; ip route add 198.51.100.0/24 nhid 9; ip route add 203.0.113.0/24 nhid 5
			ip -6 route add 2001:db8::/32 nhid 8`},
		{"nexthops by gateways that no address reaches", `
			ip link set lo up
			ip link add e0 type veth peer name e1; ip link set e0 up; ip link set e1 up
			ip addr add 10.1.0.1/24 dev e0 noprefixroute; ip addr add fd01::1/64 dev e0 nodad noprefixroute
			ip route add 10.1.0.0/24 dev e0; ip -6 route add fd01::/64 dev e0
			ip nexthop add id 9 via 10.1.0.9 dev e0; ip nexthop add id 8 via fd01::9 dev e0
			ip addr add 10.2.0.1/24 dev e1; ip addr add fd02::1/64 dev e1 nodad
			ip nexthop add id 7 via 10.2.0.9 dev e1; ip nexthop add id 6 via fd02::9 dev e1
			ip addr del 10.2.0.1/24 dev e1; ip addr del fd02::1/64 dev e1
			ip route add 192.0.2.0/24 nhid 9; ip -6 route add 2001:db8::/32 nhid 8`},
		{"rules", `
			ip rule del from all lookup default
			ip rule add from 10.0.0.0/8 lookup 77 pref 100; ip rule add to 192.0.2.0/24 fwmark 0x10/0xff lookup 78 pref 200
			ip rule add iif lo oif nothere blackhole pref 300; ip rule add not from 10.1.0.0/16 tos 0x10 prohibit pref 301
			ip rule add uidrange 1000-2000 lookup main suppress_prefixlength 0 pref 400; ip rule add goto 32766 pref 500
			ip rule add ipproto tcp dport 80-90 sport 5 lookup 79 pref 600 protocol static; ip rule add lookup 5 pref 600 tun_id 7
			ip -6 rule add from fd00::/8 lookup 77 pref 100; ip -6 rule del pref 32766; ip -6 rule add lookup main pref 40000`},
		{"neighbours", `
			ip link add e0 address 02:00:00:00:00:0a type veth peer name e1 address 02:00:00:00:00:0b; ip link set e0 up; ip link set e1 up
			ip addr add 10.1.0.1/24 dev e0; ip addr add fd01::1/64 dev e0 nodad
			ip neigh add 10.1.0.2 lladdr 02:00:00:00:00:02 dev e0 nud permanent; ip neigh add 10.1.0.3 lladdr 02:00:00:00:00:03 dev e0 nud noarp
			ip neigh add fd01::2 lladdr 02:00:00:00:00:02 dev e0 nud permanent router; ip neigh add 10.1.0.5 lladdr 02:00:00:00:00:05 dev e0 extern_learn
			ip neigh add proxy 10.1.0.77 dev e0; ip -6 neigh add proxy fd01::77 dev e0`},
		{"address labels", "ip addrlabel add prefix 2001:db8::/32 label 99; ip addrlabel del prefix 2002::/16 label 2"},
		{"sysctls", `
			ip link add e0 type veth peer name e1
			cd /proc/sys/net
			echo 1 > ipv4/conf/all/forwarding; echo 0 > ipv4/conf/default/forwarding; echo 0 > ipv4/conf/lo/forwarding
			echo 1 > ipv6/conf/all/forwarding; echo 0 > ipv6/conf/e1/forwarding; echo 2 > ipv6/conf/e0/accept_ra
			echo 1 > ipv4/conf/e0/accept_redirects; echo 0 > ipv4/conf/e1/accept_redirects; echo 1 > ipv4/conf/all/arp_ignore
			echo 1400 > ipv6/conf/e0/mtu; echo 77 > ipv4/neigh/e0/gc_stale_time; echo 1234 > ipv6/neigh/e1/base_reachable_time_ms
			echo 5 > ipv4/tcp_retries2; echo "4096 5000 60000" > ipv4/tcp_rmem; echo "2000 3000" > ipv4/ip_local_port_range
			echo reno > ipv4/tcp_congestion_control; echo "8080,9090-9095" > ipv4/ip_local_reserved_ports; echo 333 > core/somaxconn
			echo "0 2147483647" > ipv4/ping_group_range; echo 9000000 > ipv4/ipfrag_high_thresh; echo 8000000 > ipv4/ipfrag_low_thresh
			echo 1111 > netfilter/nf_conntrack_tcp_timeout_established || true; echo 99 > unix/max_dgram_qlen
			echo 0 > ipv4/conf/default/rp_filter; echo 2 > ipv4/conf/all/rp_filter
			echo 2001:db8::1 > ipv6/conf/default/stable_secret; echo 1 > ipv6/conf/all/disable_ipv6; echo 0 > ipv6/conf/e0/disable_ipv6
			ip link set e0 up; ip link set e1 up`},
		{"nftables", `
			ip link set lo up
			nft -f - <<X
			table inet filter {
				set blocked { type ipv4_addr; flags interval; elements = { 10.66.0.0/16, 192.0.2.7 }; }
				chain input {
					type filter hook input priority 0; policy accept;
					ct state established accept
					ip saddr @blocked counter drop
					tcp dport { 22, 80 } accept
				}
			}
			table ip nat {
				chain pre {
					type nat hook prerouting priority -100
					tcp dport 8080 redirect to :80
				}
			}
			table inet nsmigrate_lock_x {
				chain c { type filter hook input priority 0; policy drop; }
			}
X
			nft delete table inet nsmigrate_lock_x`},
	}
}
