package netstate_test

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/netstate"
)

// kindCase is a namespace with links of some kind, which the machine's kernel may lack. Where NSMIGRATE_VM is
// set, as e2e/vm does in a guest that has Debian's kernel, every case runs and none is skipped.
type kindCase struct {
	name   string
	needs  string // the link kinds, and the files of kernel features, that a kernel must have
	script string // as in [netCase]
	losses string // what the capture must name, as the words that each Loss begins with; such a case is not moved
}

// pair makes a pair of links that the kinds with a lower device hang on.
const pair = `
	ip link add low address 02:00:00:00:00:0a type veth peer name low2 address 02:00:00:00:00:0b
	ip link set low up; ip link set low2 up
	ip addr add 10.4.0.1/24 dev low; ip addr add fd04::1/64 dev low nodad
`

// mpls lets a namespace route labels.
const mpls = `
	sysctl -qw net.mpls.platform_labels=1000 net.mpls.conf.low.input=1
`

func kindCases() []kindCase {
	return []kindCase{
		{"vlan", "vlan", pair + `
			ip link add low.5 link low type vlan id 5 reorder_hdr off gvrp on mvrp on loose_binding on ingress-qos-map 1:2 2:3 egress-qos-map 4:5 6:7
			ip link add low.6 link low mtu 1400 type vlan protocol 802.1ad id 6
			ip link add low.6.7 link low.6 address 02:00:00:00:67:67 type vlan id 7
			ip link add low.8 link low type vlan id 8 reorder_hdr off
			ip link set low.5 up; ip link set low.6 up; ip link set low.6.7 up; ip link set low.8 up
			ip addr add 10.5.0.1/24 dev low.5; ip addr add 10.67.0.1/24 dev low.6.7; ip route add default via 10.5.0.9`, ""},
		{"vlan on a bridge", "vlan", `
			ip link add br7 type bridge vlan_filtering 1; ip link add p1 type veth peer name q1; ip link set p1 master br7
			ip link add br7.5 link br7 type vlan id 5 bridge_binding on
			bridge vlan add dev p1 vid 5; bridge vlan add dev br7 vid 5 self
			ip link set p1 up; ip link set q1 up; ip link set br7 up; ip link set br7.5 up; ip addr add 10.5.0.1/24 dev br7.5`, ""},
		{"vlan on a parent outside", "vlan", `
			host ip link add par type veth peer name parpeer
			host ip link set par up; host ip link set parpeer up
			host ip link add par.9 link par type vlan id 9 egress-qos-map 1:2
			host ip link set par.9 netns $HOST_TARGET name eth0
			ip addr add 10.8.0.2/24 dev eth0; ip addr add fd08::2/64 dev eth0 nodad
			ip link set eth0 up
			ip route add default via 10.8.0.1; ip neigh add 10.8.0.1 lladdr 02:00:00:00:00:01 dev eth0`, ""},
		{"macvtap", "macvtap", pair + `
			ip link add mt0 link low address 02:00:00:00:00:01 type macvtap mode vepa
			ip link add mt1 link low type macvtap mode bridge bcqueuelen 77
			ip link set mt0 up; ip addr add 10.3.0.1/24 dev mt0`, ""},
		{"ipvlan", "ipvlan", pair + `
			ip link add name va type veth peer name vb; ip link set va up; ip link set vb up
			ip link add name vc type veth peer name vd; ip link set vc up; ip link set vd up
			ip link add iv2 link low type ipvlan mode l2 private
			ip link add iv3 link va type ipvlan mode l3 vepa
			ip link add iv4 link vc type ipvlan mode l3s bridge
			ip link set iv2 up; ip link set iv3 up; ip link set iv4 up
			ip addr add 10.2.0.1/24 dev iv2; ip addr add 10.3.0.1/24 dev iv3; ip addr add fd03::1/64 dev iv3 nodad
			ip route add default via 10.2.0.9`, ""},
		{"ipvlan on a parent outside", "ipvlan", `
			host ip link add par address 02:00:00:00:aa:aa type veth peer name parpeer
			host ip link set par up; host ip link set parpeer up
			host ip link add iv0 link par type ipvlan mode l2
			host ip link set iv0 netns $HOST_TARGET name eth0
			ip link set eth0 up; ip addr add 10.8.0.2/24 dev eth0; ip route add default via 10.8.0.1`, ""},
		{"ipvtap", "ipvtap", pair + `
			ip link add it0 link low type ipvtap mode l2; ip link set it0 up; ip addr add 10.3.0.1/24 dev it0`, ""},
		{"geneve", "geneve", pair + `
			ip link add gn1 type geneve id 7 remote 10.4.0.2 ttl 5 tos 0x10 dstport 6082 udpcsum df set
			ip link add gn2 type geneve id 8 remote fd04::2 ttl inherit tos inherit udp6zerocsumtx udp6zerocsumrx flowlabel 0x1234
			ip link add gn3 type geneve external dstport 6083
			ip link set gn1 up; ip link set gn2 up; ip addr add 10.3.0.1/24 dev gn1`, ""},
		{"gre", "gre", pair + `
			ip link add g1 type gre local 10.4.0.1 remote 10.4.0.2 ttl 64 tos inherit key 5 csum seq dev low
			ip link add g2 type gre local 10.4.0.1 remote 10.4.0.3 ikey 6 okey 7 nopmtudisc ignore-df
			ip link add g3 type gre local 10.4.0.1 key 8 ttl 9
			ip link add g4 type gre external
			ip link set g1 up; ip link set g3 up; ip link set g4 up mtu 1300
			ip addr add 10.3.0.1 peer 10.3.0.2 dev g1; ip addr add 10.5.0.1/24 dev g3; ip neigh add 10.5.0.2 lladdr 10.4.0.9 dev g3`, ""},
		{"gre in udp", "gre", pair + `
			ip link add g1 type gre local 10.4.0.1 remote 10.4.0.2 encap gue encap-sport 7000 encap-dport 5555 encap-csum encap-remcsum`, ""},
		{"fallback devices in use", "gre ipip sit", pair + `
			ip link set gre0 up; ip addr add 10.3.0.1/24 dev gre0
			ip link set tunl0 up mtu 1400 alias "the fallback"; ip addr add 10.5.0.1/24 dev tunl0; ip route add 192.0.2.0/24 via 10.4.0.2 dev tunl0 onlink
			ip link set sit0 up`, ""},
		{"gretap", "gretap", pair + `
			ip link add g1 address 02:00:00:00:00:01 type gretap local 10.4.0.1 remote 10.4.0.2 ttl 64 key 5
			ip link add g2 type gretap local 10.4.0.1 remote 10.4.0.3 dev low
			ip link add g3 type gretap external
			ip link add br7 type bridge; ip link set g1 master br7 up; ip link set g2 master br7 up; ip link set br7 up`, ""},
		{"erspan", "erspan ip6erspan", pair + `
			ip link add e1 type erspan local 10.4.0.1 remote 10.4.0.2 seq key 5 erspan_ver 1 erspan 123
			ip link add e2 type erspan local 10.4.0.1 remote 10.4.0.3 seq key 6 erspan_ver 2 erspan_dir egress erspan_hwid 17
			ip link add e3 type ip6erspan local fd04::1 remote fd04::2 seq key 7 erspan_ver 1 erspan 9
			ip link add e4 type erspan external
			ip link set e1 up; ip link set e3 up`, ""},
		{"ip6gre and ip6gretap", "ip6gre ip6gretap", pair + `
			ip link add g1 type ip6gre local fd04::1 remote fd04::2 ttl 64 tclass inherit flowlabel 0x12 key 5 encaplimit 7
			ip link add g2 type ip6gre local fd04::1 remote fd04::3 encaplimit none flowlabel inherit csum seq dev low
			ip link add g3 address 02:00:00:00:00:03 type ip6gretap local fd04::1 remote fd04::4 tclass 0x10
			ip link add g4 type ip6gre external
			ip link set g1 up; ip link set g3 up; ip addr add 10.3.0.1/24 dev g3`, ""},
		{"ipip", "ipip", pair + `
			ip link add t1 type ipip local 10.4.0.1 remote 10.4.0.2 ttl 64 tos 0x10 dev low
			ip link add t2 type ipip local 10.4.0.1 remote 10.4.0.3 mode any nopmtudisc
			ip link add t3 type ipip external
			ip link set t1 up; ip addr add 10.3.0.1 peer 10.3.0.2 dev t1`, ""},
		{"ip6tnl", "ip6tnl", pair + `
			ip link add t1 type ip6tnl local fd04::1 remote fd04::2 mode any ttl 64 encaplimit 6 tclass 0x10
			ip link add t2 type ip6tnl local fd04::1 remote fd04::3 mode ip4ip6 encaplimit none flowlabel inherit dscp inherit
			ip link add t3 type ip6tnl local fd04::1 remote fd04::4 mode ip6ip6 dev low
			ip link add t4 type ip6tnl external
			ip link set t1 up; ip link set t2 up; ip addr add 10.3.0.1/24 dev t2; ip addr add fd33::1/64 dev t1 nodad`, ""},
		{"sit", "sit", pair + `
			ip link add s1 type sit local 10.4.0.1 remote 10.4.0.2 ttl 64 dev low
			ip link add s2 type sit local 10.4.0.1 mode ip6ip 6rd-prefix 2001:db8::/32 6rd-relay_prefix 10.0.0.0/8
			ip link add s3 type sit local 10.4.0.1 remote 10.4.0.3 mode any
			ip link set s1 up; ip link set s2 up; ip addr add fd33::1/64 dev s1 nodad; ip -6 route add 2001:db8:1::/48 dev s1`, ""},
		{"isatap", "sit", pair + `
			ip link add s4 type sit local 10.4.0.1 isatap; ip link set s4 up; ip tunnel prl prl-default 10.4.0.7 dev s4`, "link s4 (sit)"},
		{"vti and vti6", "vti vti6", pair + `
			ip link add v1 type vti local 10.4.0.1 remote 10.4.0.2 ikey 5 okey 6 dev low
			ip link add v2 type vti6 local fd04::1 remote fd04::2 key 7
			ip link add v3 type vti local 10.4.0.1 remote 10.4.0.3 key 9 fwmark 5
			ip link set v1 up; ip link set v2 up; ip addr add 10.3.0.1/30 dev v1`, ""},
		{"xfrm interface", "xfrm", pair + `
			ip link add x1 type xfrm dev low if_id 42
			ip link add x2 type xfrm if_id 43
			ip link add x3 type xfrm external
			ip link set x1 up; ip addr add 10.3.0.1/30 dev x1`, ""},
		{"xfrm states and policies", "xfrm", pair + `
			ip xfrm state add src 10.4.0.1 dst 10.4.0.2 proto esp spi 0x100 reqid 7 mode tunnel aead 'rfc4106(gcm(aes))' 0x0102030405060708090a0b0c0d0e0f1011121314 128
			ip xfrm policy add src 10.3.0.0/24 dst 10.5.0.0/24 dir out tmpl src 10.4.0.1 dst 10.4.0.2 proto esp reqid 7 mode tunnel`, ""},
		{"bond active-backup", "bond dummy", `
			ip link add d0 address 02:00:00:00:00:d0 type dummy; ip link add d1 address 02:00:00:00:00:d1 type dummy
			ip link add bond7 type bond mode active-backup miimon 100 updelay 200 downdelay 300 fail_over_mac none primary_reselect better num_grat_arp 3 resend_igmp 4 all_slaves_active 1
			ip link set d0 master bond7; ip link set d1 master bond7
			ip link set bond7 type bond primary d1; ip link set bond7 up
			until ip link set bond7 type bond active_slave d1 2>/dev/null; do sleep 0.1; done; ip addr add 10.3.0.1/24 dev bond7`, ""},
		{"bond arp monitor", "bond dummy", `
			ip link add d0 type dummy; ip link add d1 type dummy
			ip link add bond7 type bond mode active-backup arp_interval 500 arp_ip_target 10.3.0.9,10.3.0.10 arp_validate active arp_all_targets all ns_ip6_target fd03::9
			ip link set d0 master bond7; ip link set d1 master bond7; ip link set bond7 up; ip addr add 10.3.0.1/24 dev bond7`, ""},
		{"bond 802.3ad", "bond dummy", `
			ip link add name va type veth peer name vb; ip link add name vc type veth peer name vd; ip link set vb up; ip link set vd up
			ip link add bond7 address 02:00:00:00:00:77 type bond mode 802.3ad miimon 50 lacp_rate fast xmit_hash_policy layer3+4 ad_select bandwidth ad_actor_sys_prio 77 ad_user_port_key 5 ad_actor_system 02:00:00:00:00:99 min_links 1
			ip link set va master bond7; ip link set vc master bond7; ip link set bond7 up; ip addr add 10.3.0.1/24 dev bond7`, ""},
		{"bonds of other modes", "bond dummy", `
			for mode in balance-rr balance-xor broadcast balance-tlb balance-alb; do
				ip link add b-$mode type bond mode $mode miimon 100; ip link add d-$mode type dummy; ip link set d-$mode master b-$mode; ip link set b-$mode up
			done
			ip link set dev b-balance-rr type bond packets_per_slave 5
			ip link set dev d-balance-xor type bond_slave queue_id 3`, ""},
		{"team", "team", `ip link add team0 type team`, "link team0 (team)"},
		{"vrf", "vrf", pair + `
			ip link add red type vrf table 77; ip link set red up; ip link set low master red; ip addr add fd04::1/64 dev low nodad
			ip link add blue type vrf table 78
			ip route add table 77 default via 10.4.0.9; ip route add vrf red 192.0.2.0/24 via 10.4.0.8
			ip route add table 77 unreachable default metric 4278198272
			ip -6 route add vrf red default via fd04::9; ip addr add 127.0.0.1/8 dev red
			ip neigh add 10.4.0.9 lladdr 02:00:00:00:00:09 dev low nud permanent`, ""},
		{"dummy", "dummy", `
			ip link add d0 mtu 9000 type dummy; ip link set d0 up; ip addr add 192.0.2.1/32 dev d0; ip addr add 2001:db8::1/128 dev d0 nodad
			ip link add d1 numtxqueues 4 type dummy; ip link set d1 alias "spare" txqueuelen 5`, ""},
		{"wireguard", "wireguard", `
			ip link add wg0 type wireguard; wg set wg0 listen-port 51820 private-key /proc/self/fd/5 5<<-X
				GFnbEpPm9c6qZbYlI5l3mW9C7VU5Tpz9hA3B8kQq0Uo=
			X
			wg set wg0 peer FXKhzHEWOXMzVqR9sQgUIcR4ZUZ1IMBZ2X2ECCJ8E1U= endpoint 10.9.0.1:7 allowed-ips 10.3.0.0/24,fd03::/64
			ip link set wg0 up; ip addr add 10.3.0.1/24 dev wg0; ip route add 192.0.2.0/24 dev wg0`, ""},
		{"macsec", "macsec", pair + `
			ip link add ms0 link low type macsec sci 5 encrypt on cipher gcm-aes-256 icvlen 12 encodingsa 2 protect on replay on window 100 validate check send_sci on
			ip link add ms1 link low address 02:00:00:00:00:5e type macsec port 7 send_sci off end_station on encrypt off
			ip link set ms0 up mtu 1300; ip addr add 10.3.0.1/24 dev ms0`, ""},
		{"macsec with keys", "macsec", pair + `ip link add ms0 link low type macsec sci 5 encrypt on; ip macsec add ms0 tx sa 0 pn 1 on key 01 12345678901234567890123456789012`, "macsec associations of dev ms0: the kernel does not show their keys"},
		{"prp", "hsr", `
			ip link add name va type veth peer name vb; ip link add name vc type veth peer name vd; ip link set va up; ip link set vc up; ip link set vb up; ip link set vd up
			ip link add name prp0 index 200 type hsr slave1 va slave2 vc supervision 45 proto 1
			ip link set prp0 up; ip addr add 10.3.0.1/24 dev prp0`, ""},
		{"hsr", "hsr", `
			ip link add name va type veth peer name vb; ip link add name vc type veth peer name vd
			ip link add hsr0 type hsr slave1 va slave2 vc supervision 45 version 1`, "link hsr0 (hsr): the kernel does not tell the version of its protocol"},
		{"nlmon, vcan and vsockmon", "nlmon vcan vsockmon", `
			ip link add nl0 type nlmon; ip link set nl0 up; ip link add can0 type vcan; ip link set can0 up mtu 72
			ip link add vs0 type vsockmon; ip link set vs0 up`, ""},
		{"vxcan", "vxcan", `ip link add ca index 70 type vxcan peer name cb; ip link set ca up mtu 72 alias "one end"; ip link set cb up`, ""},
		{"vxcan to the host", "vxcan", `
			ip link add can0 type vxcan peer name veth-can netns $HOST; ip link set can0 up; host ip link set veth-can up`, ""},
		{"netkit", "netkit", `
			ip link add ka type netkit; ip link set ka up mtu 1400; ip link set nk0 up; ip addr add 10.3.0.1/24 dev ka; ip addr add fd03::1/64 dev nk0 nodad`, ""},
		{"netkit to the host", "netkit", `
			host ip link add ka mtu 1400 type netkit; host ip link set nk0 netns $HOST_TARGET name eth0; ip link set eth0 up; host ip link set ka up
			ip addr add 10.3.0.2/32 dev eth0; ip addr add fd03::2/64 dev eth0 nodad; ip route add default dev eth0
			host ip addr add 10.3.0.1/32 dev ka; host ip route add 10.3.0.2 dev ka`, ""},
		{"netkit from the host", "netkit", `
			ip link add eth0 type netkit; ip link set nk0 name ka; ip link set ka netns $HOST; ip link set eth0 up; host ip link set ka up
			ip addr add 10.3.0.2/32 dev eth0; ip route add default dev eth0`, ""},
		{"gtp", "gtp", `ip link add gtp0 type gtp role ggsn hsize 64`, "link gtp0 (gtp): the kernel does not tell whose sockets"},
		{"batman", "batadv", `ip link add bat0 type batadv`, "link bat0 (batadv)"},
		{"l2tp", "/sys/module/l2tp_eth", pair + `
			ip l2tp add tunnel tunnel_id 5 peer_tunnel_id 6 encap ip local 10.4.0.1 remote 10.4.0.2
			ip l2tp add session name l2 tunnel_id 5 session_id 7 peer_session_id 8`, "link l2;l2tp"},
		{"vxlan with vni filter", "vxlan", pair + `
			ip link add vx0 type vxlan dstport 4789 external vnifilter local 10.4.0.1 dev low; ip link set vx0 up
			bridge vni add vni 100-102 dev vx0; bridge vni add vni 200 group 239.1.1.1 dev vx0
			bridge fdb append 02:00:00:00:00:01 dev vx0 dst 10.4.0.9 src_vni 100`, ""},
		{"bridge with vlans and tunnels", "vlan vxlan", `
			ip link add br7 type bridge vlan_filtering 1 vlan_default_pvid 9 vlan_stats_per_port 1 vlan_protocol 802.1ad
			ip link add vx0 type vxlan dstport 4789 external
			ip link add p1 type veth peer name q1; ip link set p1 master br7 up; ip link set vx0 master br7 up; ip link set q1 up; ip link set br7 up
			bridge link set dev vx0 vlan_tunnel on
			bridge vlan add dev p1 vid 100 pvid untagged; bridge vlan add dev p1 vid 200-205; bridge vlan add dev br7 vid 300 self
			bridge vlan add dev vx0 vid 100; bridge vlan add dev vx0 vid 100 tunnel_info id 1000; bridge vlan add dev vx0 vid 200-202; bridge vlan add dev vx0 vid 200-202 tunnel_info id 2000-2002
			bridge fdb add 02:00:00:00:00:01 dev p1 master static vlan 100
			bridge fdb add 02:00:00:00:00:02 dev vx0 dst 10.4.0.9 src_vni 1000 vni 1000 self
			bridge mdb add dev br7 port p1 grp 239.1.1.1 permanent vid 200`, ""},
		{"bridge with entries of no vlan", "vlan", `
			ip link add br7 type bridge vlan_filtering 0; ip link add p1 type veth peer name q1; ip link set p1 master br7
			for d in q1 p1 br7; do ip link set $d addrgenmode none; ip link set $d up; done
			bridge vlan add dev p1 vid 100; bridge vlan add dev br7 vid 100 self
			bridge fdb add 02:00:00:00:00:01 dev p1 master static; bridge fdb add 02:00:00:00:00:02 dev br7 self
			bridge vlan add dev p1 vid 200; bridge fdb del 02:00:00:00:00:01 dev p1 master vlan 1
			bridge mdb add dev br7 port p1 grp 239.1.1.1 permanent; bridge mdb add dev br7 port p1 grp ff15::7 permanent
			ip link set br7 type bridge vlan_filtering 1 mcast_vlan_snooping 1; bridge mdb add dev br7 port p1 grp 239.1.1.2 permanent vid 100`, ""},
		{"bridge with options of vlans", "vlan", `
			ip link add br7 type bridge vlan_filtering 1 mcast_vlan_snooping 1 mcast_snooping 1
			ip link add p1 type veth peer name q1; ip link set p1 master br7 up; ip link set q1 up; ip link set br7 up
			bridge vlan add dev p1 vid 100-110; bridge vlan add dev br7 vid 100-110 self
			bridge vlan set dev p1 vid 100 state blocking; bridge vlan set dev p1 vid 102-104 mcast_router 2
			bridge vlan global set dev br7 vid 100 mcast_snooping 1 mcast_querier 1 mcast_igmp_version 3
			bridge vlan global set dev br7 vid 105-107 mcast_query_interval 5000 mcast_startup_query_interval 777`, ""},
		{"stack", "vlan bond vrf", `
			ip link add name va type veth peer name a2; ip link add name vb type veth peer name b2; ip link set a2 up; ip link set b2 up
			ip link set va up; ip link set vb up
			ip link add va.5 link va type vlan id 5; ip link add vb.5 link vb type vlan id 5
			ip link add bond7 type bond mode active-backup miimon 100; ip link set va.5 master bond7; ip link set vb.5 master bond7
			ip link add br7 type bridge vlan_filtering 1; ip link set bond7 master br7; ip link set bond7 up
			bridge vlan add dev bond7 vid 30; bridge vlan add dev br7 vid 30 self
			ip link add red type vrf table 77; ip link set red up; ip link set br7 master red; ip link set br7 up
			ip link add br7.30 link br7 type vlan id 30; ip link set br7.30 master red; ip link set br7.30 up
			ip link add mv0 link br7.30 type macvlan mode bridge; ip link set mv0 up
			ip addr add 10.3.0.1/24 dev br7; ip addr add 10.30.0.1/24 dev br7.30; ip addr add 10.31.0.1/24 dev mv0
			ip route add vrf red default via 10.3.0.9`, ""},
		{"stack upside down", "vlan bond dummy ipip", `
			ip link add name top index 100 type dummy; ip link add name bot index 200 type dummy; ip link set bot up
			ip link add name v9 index 50 link bot type vlan id 9; ip link add name bond9 index 40 type bond mode balance-xor
			ip link set v9 master bond9; ip link add name br9 index 30 type bridge; ip link set bond9 master br9
			ip link add name t9 index 20 type ipip local 10.4.0.1 remote 10.4.0.2 dev top
			ip link set bond9 up; ip link set br9 up; ip link set top up; ip link set t9 up`, ""},
		{"tunnel routes", "vxlan gre", pair + `
			ip link add vx0 type vxlan dstport 4789 external; ip link set vx0 up; ip addr add 10.3.0.1/24 dev vx0
			ip route add 192.0.2.0/24 encap ip id 7 src 10.4.0.1 dst 10.4.0.2 ttl 9 tos 4 via 10.3.0.9 dev vx0
			ip route add 198.51.100.0/24 encap ip6 id 8 dst fd04::2 hoplimit 9 via 10.3.0.9 dev vx0
			ip -6 route add 2001:db8::/32 encap ip6 id 9 dst fd04::3 dev vx0`, ""},
		{"mpls encapsulation", "/proc/sys/net/mpls", pair + `
			ip route add 192.0.2.0/24 encap mpls 100/200 ttl 9 via 10.4.0.9 dev low
			ip -6 route add 2001:db8::/32 encap mpls 300 via fd04::9 dev low
			ip nexthop add id 7 encap mpls 400 via 10.4.0.9 dev low; ip nexthop add id 8 group 7; ip route add 198.51.100.0/24 nhid 8`, ""},
		{"mpls routes", "/proc/sys/net/mpls", pair + mpls + `
			ip -f mpls route add 100 as 200/201 via inet 10.4.0.9 dev low; ip -f mpls route add 101 via inet6 fd04::9 dev low
			ip -f mpls route add 102 dev lo; ip -f mpls route add 103 nexthop as 300 via inet 10.4.0.9 dev low nexthop as 301 via inet 10.4.0.8 dev low
			ip -f mpls route add 104 as 400 ttl-propagate enabled via inet 10.4.0.9 dev low proto static`, ""},
		{"seg6", "/proc/sys/net/ipv6/seg6_flowlabel", pair + `
			ip -6 route add 2001:db8:1::/48 encap seg6 mode encap segs fc00::1,fc00::2 dev low
			ip -6 route add 2001:db8:2::/48 encap seg6 mode inline segs fc00::1 dev low
			ip route add 192.0.2.0/24 encap seg6 mode l2encap segs fc00::3 dev low
			ip -6 route add fc00::9/128 encap seg6local action End dev low
			ip -6 route add fc00::a/128 encap seg6local action End.X nh6 fd04::9 dev low
			ip -6 route add fc00::b/128 encap seg6local action End.DX4 nh4 10.4.0.9 count dev low
			sysctl -qw net.ipv6.conf.low.seg6_enabled=1`, ""},
		{"nexthop groups", "vxlan", pair + `
			ip link add vx0 type vxlan id 7 dstport 4789 local 10.4.0.1; ip link set vx0 up
			ip nexthop add id 10 via 10.4.0.2 fdb; ip nexthop add id 11 via 10.4.0.3 fdb; ip nexthop add id 12 group 10/11 fdb
			bridge fdb add 02:00:00:00:00:01 dev vx0 nhid 12 self
			ip nexthop add id 5 via 10.4.0.9 dev low; ip nexthop add id 4 via 10.4.0.8 dev low onlink; ip nexthop add id 3 via fd04::9 dev low
			ip nexthop add id 2 group 5,200/4,256; ip nexthop add id 1 group 5/4 type resilient buckets 16 idle_timer 30 unbalanced_timer 300
			ip route add 192.0.2.0/24 nhid 2; ip route add 198.51.100.0/24 nhid 1 metric 5; ip -6 route add 2001:db8::/32 nhid 3`, ""},
		{"promiscuous and multicast flags", "dummy", `
			ip link add d0 type dummy; ip link set d0 promisc on; ip link set d0 allmulticast on arp off multicast off; ip link set d0 up`, ""},
		{"legacy ebtables", "/sys/module/ebtables", `
			ip link add br7 type bridge; ebtables-legacy -A FORWARD -p arp -j DROP; ebtables-legacy -t nat -P OUTPUT DROP; ebtables-legacy -t broute -L >/dev/null`, "ebtables table filter: ;ebtables table nat: "},
		{"a dummy without a carrier", "dummy", `ip link add d0 type dummy; ip link set d0 up; ip link set d0 carrier off; ip addr add 10.3.0.1/24 dev d0`, ""},
	}
}

// kindCommands print what only such links have, for the second oracle.
func kindCommands() []string {
	return append(toolCommands(), "bridge -d -j vlan show || true"+anyOrder, "bridge -j vlan tunnelshow || true", "bridge -d -j vlan global show || true",
		"bridge -d -j vni show || true", "ip -f mpls -d -j route || true", "ip -d xfrm state || true", "ip -d xfrm policy || true",
		`for f in /proc/net/vlan/*; do echo "$f"; grep -siv total "$f" || true; done`, bonding)
}

// bonding prints what the kernel tells of bonds, but not how often it monitored, and which link by turns: a bond that
// monitors by ARP and has no answer calls one link after the other up and down, for ever.
const bonding = `for f in /proc/net/bonding/*; do
	awk '/^ARP Polling/ { turns = 1 } /^Slave Interface/ { slave = 1 } !(/Count/ || turns && slave && /^MII Status/)' "$f"
done 2>/dev/null || true`

// TestKinds moves namespaces with links of every kind that the kernel offers, and objects of every family.
func TestKinds(t *testing.T) {
	needRoot(t)
	for _, c := range objectCases() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for need := range strings.FieldsSeq(c.needs) {
				if why := lack(t, need); why != "" {
					t.Skip(why)
				}
			}
			roundTrip(t, c.script, append(toolCommands(), c.list))
		})
	}
	for _, c := range kindCases() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for need := range strings.FieldsSeq(c.needs) {
				if why := lack(t, need); why != "" {
					t.Skip(why)
				}
			}
			if c.losses != "" {
				checkLosses(t, c)
				return
			}
			roundTrip(t, c.script, kindCommands())
		})
	}
}

// lack returns why the kernel can't run a case that needs a link kind, or the feature that a file belongs to.
func lack(t *testing.T, need string) string {
	t.Helper()
	if os.Getenv("NSMIGRATE_VM") != "" {
		return ""
	}
	if strings.HasPrefix(need, "/") {
		if _, err := os.Stat(need); err != nil {
			return "the kernel has no " + need
		}
		return ""
	}
	// A request without any data is refused by most kinds, but not in these words.
	if strings.Contains(sh(t, newNS(t), "ip link add nsm-probe type "+need+" 2>&1 || true"), "Unknown device type") {
		return "the kernel has no links of kind " + need
	}
	return ""
}

// checkLosses builds a case that is not carried yet, and expects to be told.
func checkLosses(t *testing.T, c kindCase) {
	host, source := arrange(t, c.script)
	var got []string
	for _, loss := range capture(t, source, host).Losses() {
		got = append(got, loss.String())
	}
	for want := range strings.SplitSeq(c.losses, ";") {
		if !slices.ContainsFunc(got, func(l string) bool { return strings.HasPrefix(l, want) }) {
			t.Errorf("no loss %q among %q", want, got)
		}
	}
}

// TestFallbackDevices moves a namespace between hosts that give different devices to every namespace. It runs in a
// guest only, because that is a setting of the whole machine.
func TestFallbackDevices(t *testing.T) {
	if os.Getenv("NSMIGRATE_VM") == "" {
		t.Skip("alters the machine's own settings")
	}
	ctx := context.Background()
	give := func(fallbacks bool) {
		value := map[bool]string{true: "0", false: "2"}[fallbacks]
		if err := os.WriteFile("/proc/sys/net/core/fb_tunnels_only_for_init_net", []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	defer give(true)
	for _, c := range []struct {
		name     string
		from, to bool // whether the host gives fallback devices
		script   string
		problem  string
	}{
		{"from none to some", false, true, pair, "link low"},
		{"from some to none", true, false, pair, ""},
		{"from some to none, one in use", true, false, "ip link set gre0 up", "link gre0: it is in use"},
		{"from some to some", true, true, pair + "ip link set gre0 up", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			give(c.from)
			host, source := arrange(t, c.script)
			settleDown(t, source, host)
			want := reread(t, capture(t, source, host))
			give(c.to)
			other, target := otherHost(t), newNS(t)
			opts := netstate.BuildOptions{Host: other}
			problems, err := netstate.Preflight(ctx, want, opts)
			if err != nil {
				t.Fatal(err)
			}
			err = netstate.Build(ctx, target, want, opts)
			if c.problem != "" {
				if len(problems) == 0 || !strings.HasPrefix(problems[0].String(), c.problem) || err == nil || !strings.Contains(err.Error(), c.problem) {
					t.Errorf("problems %v, build: %v", problems, err)
				}
				return
			}
			if len(problems) > 0 || err != nil {
				t.Fatalf("problems %v, build: %v", problems, err)
			}
			checkDiff(t, want, func() *netstate.State { return capture(t, target, other) })
		})
	}
}
