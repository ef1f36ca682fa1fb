# Configures the network namespace that it runs in with one or more of each kind of link and object that can be carried.
# FULL=1 adds what needs a kernel with all kinds: Debian's has them. The namespace may have an eth0 already.
set -eu
full() { [ "${FULL:-}" = 1 ]; }
up() { for dev; do ip link set dev "$dev" up; done; }

# --- links: a stack of all that can be stacked, and the rest beside it ---
ip link set lo up mtu 60000 alias 'the loop' txqueuelen 55 group 7
ip address add 10.255.0.1/32 dev lo; ip address add fd0f::1/128 dev lo; ip address add 127.0.0.2/8 dev lo
ip link add name va index 1001 numtxqueues 3 numrxqueues 3 address 02:00:00:00:00:0a type veth peer name vb
ip link add name vc type veth peer name vd; ip link add name ve type veth peer name vf
ip link property add dev va altname first-of-two altname the-second-name-of-va-is-longer-than-a-name-may-be
ip link set ve arp off; up va vb vc vd ve vf
ip link set vb gso_max_size 30000 gro_max_size 31000 gso_max_segs 99 txqueuelen 123
ip link add br0 type bridge ageing_time 12300 forward_delay 400 priority 777 mcast_querier 1 mcast_igmp_version 3 group_fwd_mask 8
ip link set vb master br0; ip link set vd master br0; up br0
bridge link set dev vb cost 55 priority 9 hairpin on guard on flood off; bridge link set dev vd isolated on neigh_suppress on
bridge fdb add 02:00:00:00:00:01 dev vb master static; bridge fdb add 02:00:00:00:00:02 dev br0 self
bridge mdb add dev br0 port vb grp 239.1.1.1 permanent; bridge mdb add dev br0 port vd grp ff15::7 permanent
ip link add br1 address 02:00:00:00:00:0b type bridge stp_state 1
ip link add link vf name mv0 address 02:00:00:00:00:0c type macvlan mode bridge; ip link add link vf name mvt0 type macvtap mode vepa bcqueuelen 77
ip link add link ve name mvs0 type macvlan mode source macaddr set 02:00:00:00:00:11 02:00:00:00:00:22; up mv0 mvt0 mvs0
ip address add 10.30.0.1/24 dev va; ip address add 10.31.0.1/24 dev mv0; ip address add 10.32.0.1/24 dev br0
ip address add fd30::1/64 dev va nodad; ip address add fd31::1/64 dev mv0 nodad; ip address add fd32::1/64 dev br0 nodad
ip link add vx0 type vxlan id 42 dstport 4789 local 10.30.0.1 remote 10.30.0.2 dev va srcport 1000 2000 ttl 9; ip link set vx0 addrgenmode none
ip link add vx1 type vxlan dstport 4790 external; up vx0 vx1
bridge fdb append 00:00:00:00:00:00 dev vx0 dst 10.30.0.7; bridge fdb add 02:00:00:00:00:99 dev vx0 dst 10.30.0.9 port 999 vni 7
ip link add ifb7 type ifb; up ifb7
modprobe -q tun || true
ip tuntap add dev tap0 mode tap multi_queue vnet_hdr user 1000 group 1001; ip tuntap add dev tun0 mode tun
ip link set tap0 address 02:aa:bb:cc:dd:ee up; ip link set tun0 up mtu 1234; ip address add 10.33.0.1 peer 10.33.0.2 dev tun0
ip maddr add 01:00:5e:00:00:77 dev va; ip link set vc promisc on allmulticast on

# --- addresses, labels ---
ip address add 10.30.0.2/24 dev va; ip address add 10.30.0.3/24 brd 10.30.0.99 dev va label va:three; ip address add 10.34.0.1/16 dev va noprefixroute metric 77
ip address add 10.35.0.1/24 dev va valid_lft 50000 preferred_lft 30000; ip address add 10.36.0.1/24 dev va scope link
ip address add fd30::2/64 dev va nodad; ip address add fd34::1/64 dev va noprefixroute nodad; ip address add fd35::1/128 peer fd35::9/128 dev va nodad
ip address add fd36::1/64 dev va nodad valid_lft 50000 preferred_lft 0; ip address add fd37::1/64 dev va nodad metric 99 home
ip addrlabel add prefix 2001:db8::/32 label 99; ip addrlabel del prefix 2002::/16 label 2

# --- nexthops, routes, rules, neighbours ---
ip nexthop add id 9 via 10.30.0.9 dev va; ip nexthop add id 3 via 10.31.0.9 dev mv0 proto static; ip nexthop add id 5 blackhole; ip nexthop add id 8 via fd30::9 dev va
ip nexthop add id 1 group 9,4/3,2; ip nexthop add id 2 group 3/9 type resilient buckets 8 idle_timer 60
ip route add default via 10.30.0.9 metric 500; ip route add 198.18.0.0/24 via 10.30.0.9 src 10.255.0.1 mtu lock 1300 advmss 900 initcwnd 20 rto_min 50ms congctl reno
ip route add 198.18.1.0/24 nexthop via 10.30.0.9 weight 3 nexthop via 10.31.0.9 dev mv0 weight 7; ip route add 198.18.2.0/24 via 10.99.0.1 dev va onlink
ip route add 198.18.3.0/24 via inet6 fd30::9 dev va; ip route add blackhole 198.18.4.0/24; ip route add throw 198.18.5.0/24 table 77; ip route add prohibit 198.18.6.0/24
ip route add 198.18.7.0/24 via 10.30.0.8 table 1000 tos 0x10; ip route add local 198.18.8.0/24 dev lo table local; ip route add 198.18.9.0/24 dev va scope link proto 99 realm 5
ip route add 198.18.10.0/24 nhid 1; ip route add 198.18.11.0/24 nhid 2; ip route add 198.18.12.0/24 nhid 5; ip -6 route add 2001:db8:f::/48 nhid 8
ip -6 route add default via fd30::9 metric 500 mtu 1400 hoplimit 33; ip -6 route add 2001:db8:1::/48 nexthop via fd30::9 weight 2 nexthop via fd31::9 dev mv0
ip -6 route add 2001:db8:2::/48 via fd31::9 expires 90000 pref low; ip -6 route add unreachable 2001:db8:3::/48; ip -6 route add 2001:db8:4::/48 from fd30::/64 via fd30::9
ip route add 198.18.13.0/24 encap ip id 7 src 10.30.0.1 dst 10.30.0.2 ttl 9 dev vx1; ip -6 route add 2001:db8:5::/48 encap ip6 id 9 dst fd30::3 dev vx1
ip rule add from 10.0.0.0/8 lookup 77 pref 100; ip rule add to 192.0.2.0/24 fwmark 0x10/0xff lookup 78 pref 200; ip rule add iif lo oif nothere blackhole pref 300
ip rule add uidrange 1000-2000 lookup main suppress_prefixlength 0 pref 400; ip rule add ipproto tcp dport 80-90 sport 5 lookup 79 pref 600 protocol static
ip -6 rule add from fd00::/8 lookup 77 pref 100; ip -6 rule del pref 32766; ip -6 rule add lookup main pref 40000; ip mrule add iif lo lookup 7 pref 5
ip neigh replace 10.30.0.7 lladdr 02:00:00:00:00:07 dev va nud permanent; ip neigh replace fd30::7 lladdr 02:00:00:00:00:07 dev va nud permanent router
ip neigh replace 10.30.0.5 lladdr 02:00:00:00:00:05 dev va extern_learn; ip neigh add proxy 10.30.0.77 dev va; ip -6 neigh add proxy fd30::77 dev va

# --- packet filters, sets, connections: what the kernel sends by itself changes none of them ---
ipset create blocked hash:net timeout 0 comment counters; ipset add blocked 10.66.0.0/16 comment bad; ipset create ports bitmap:port range 0-100; ipset add ports 80
ipset create all list:set; ipset add all blocked
nfacct add counted byte 100000; nfct timeout add long inet tcp established 77777; iptables-legacy -A FORWARD -m nfacct --nfacct-name counted
nft -f - <<X
	table inet filter {
		comment "all of it"
		set blocked { type ipv4_addr; flags interval; elements = { 10.66.0.0/16, 192.0.2.7 }; }
		set seen { type ipv4_addr; flags dynamic,timeout; timeout 10h; size 999; elements = { 192.0.2.77 } }
		map where { type inet_service : verdict; elements = { 80 : accept, 81 : jump other }; }
		counter hits { }
		quota much { over 75 mbytes }
		limit few { rate 16/second }
		ct helper ftp { type "ftp" protocol tcp; }
		chain other { meta mark set 7; }
		chain input {
			type filter hook input priority 10; policy accept;
			ct state established,related accept
			ip saddr @blocked counter name hits drop
			tcp dport vmap @where
			ip saddr 10.66.0.7 update @seen { ip saddr limit rate 18/second }
			ip saddr 10.66.0.9 limit name few quota name much log prefix "much "
			tcp dport 21 ct helper set "ftp"
		}
		chain early { type filter hook prerouting priority raw; meta l4proto != tcp notrack; }
		chain late { type filter hook output priority raw; meta l4proto != tcp notrack; }
	}
	table ip nat {
		chain pre { type nat hook prerouting priority -100; tcp dport 8080 redirect to :80; }
		chain post { type nat hook postrouting priority 100; ip saddr 10.31.0.0/24 oifname "va" snat to 10.30.0.1; }
	}
	table netdev edge {
		chain in { type filter hook ingress device va priority 0; ip daddr 203.0.113.0/24 drop; }
	}
	table bridge b {
		chain f { type filter hook forward priority 0; ether type arp accept; }
	}
X
iptables-legacy -N MINE; iptables-legacy -A INPUT -p udp -j MINE; iptables-legacy -t nat -A PREROUTING -p tcp --dport 8000 -j REDIRECT --to-ports 7000
ip6tables-legacy -A OUTPUT -p icmpv6 -j ACCEPT; iptables-legacy -A FORWARD -m set --match-set all src -j DROP
arptables-legacy -A INPUT --source-ip 10.66.0.1 -j DROP || true
conntrack -I -p tcp -s 10.30.0.7 -d 10.30.0.1 --sport 4001 --dport 8080 \
	--dst-nat 10.30.0.1:80 --state ESTABLISHED --status SEEN_REPLY,ASSURED --timeout 90000 --mark 77 >/dev/null
conntrack -I -p udp -s 10.30.0.7 -d 10.30.0.1 --sport 4002 --dport 53 --timeout 90000 --zone 5 >/dev/null

# --- traffic control ---
tc qdisc add dev va root handle 1: htb default 20; tc class add dev va parent 1: classid 1:1 htb rate 10mbit; tc class add dev va parent 1:1 classid 1:20 htb rate 1mbit ceil 10mbit
tc qdisc add dev va parent 1:20 handle 20: tbf rate 1mbit burst 10k limit 30k
tc filter add dev va parent 1: protocol ip prio 5 u32 match ip dport 80 0xffff flowid 1:20
tc qdisc add dev vc ingress_block 22 clsact; tc filter add block 22 protocol all prio 1 u32 match u32 0 0 action mirred egress mirror dev ifb7
tc qdisc add dev br0 clsact; tc filter add dev br0 egress protocol ip prio 1 chain 7 u32 match u32 0 0 action mirred egress redirect dev ifb7

# --- IPsec, MPTCP, offloads, segment routing, OAM ---
ip xfrm policy add src 10.8.0.0/16 dst 192.0.2.0/24 dir out priority 7 tmpl src 10.30.0.1 dst 192.0.2.1 proto esp reqid 5 mode tunnel
ip xfrm policy add src 192.0.2.0/24 dst 10.8.0.0/16 dir in if_id 77 tmpl src 192.0.2.1 dst 10.30.0.1 proto esp mode tunnel; ip xfrm policy setdefault in accept fwd block out accept
ip mptcp endpoint add 10.30.0.1 signal; ip mptcp endpoint add 10.31.0.1 id 77 dev mv0 subflow backup; ip mptcp limits set subflows 5 add_addr_accepted 3
ethtool -K va tx off gro on rx-gro-list on; ethtool -L va rx 2 tx 3; ethtool -C tap0 rx-frames 7; ethtool -s tap0 speed 1000 duplex half
ip sr tunsrc set fd0f::1; printf 'secret\nsecret\n' | ip sr hmac set 17 sha256 >/dev/null
ip ioam namespace add 7 data 0x10 wide 0x20; ip ioam schema add 5 abcd; ip ioam namespace set 7 schema 5

# --- sysctls ---
sysctl -qw net.ipv4.conf.all.forwarding=1 net.ipv4.conf.va.rp_filter=2 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.mv0.forwarding=0 net.ipv6.conf.vc.accept_ra=2 \
	net.ipv4.conf.va.arp_ignore=1 net.ipv6.conf.va.mtu=1400 net.ipv4.neigh.va.gc_stale_time=77 net.ipv4.tcp_retries2=5 net.ipv4.tcp_rmem='4096 5000 60000' \
	net.ipv4.ip_local_port_range='20000 30000' net.ipv4.tcp_congestion_control=reno net.core.somaxconn=333 net.ipv4.ping_group_range='0 2147483647' \
	net.netfilter.nf_conntrack_tcp_timeout_established=11111 net.unix.max_dgram_qlen=99 net.ipv6.conf.default.hop_limit=77

full || exit 0

# --- what takes a kernel with all kinds ---
modprobe -a fou fou6 mpls_iptunnel ila ip_vs can_gw vxlan
ip link set br0 type bridge vlan_filtering 1; bridge vlan add dev vb vid 100 pvid untagged; bridge vlan add dev vb vid 200-205; bridge vlan add dev br0 vid 30 self
bridge vlan set dev vb vid 200 state blocking; bridge vlan global set dev br0 vid 30 mcast_query_interval 5000
# A stack: veth, vlan, bond, bridge, vrf, vlan, macvlan.
ip link add name s1 type veth peer name t1; ip link add name s2 type veth peer name t2; up s1 t1 s2 t2
ip link add link s1 name s1.5 type vlan id 5 egress-qos-map 4:5; ip link add link s2 name s2.5 type vlan id 5 reorder_hdr off
ip link add bond7 type bond mode active-backup miimon 100 updelay 200; ip link set s1.5 master bond7; ip link set s2.5 master bond7
ip link add br7 type bridge vlan_filtering 1 vlan_default_pvid 9; ip link set bond7 master br7; up bond7
bridge vlan add dev bond7 vid 30; bridge vlan add dev br7 vid 30 self
ip link add red type vrf table 7777; up red; ip link set br7 master red; up br7
ip link add link br7 name br7.30 type vlan id 30; ip link set br7.30 master red; up br7.30; ip link add link br7.30 name mv30 type macvlan mode bridge; up mv30
ip address add 10.40.0.1/24 dev br7; ip address add 10.41.0.1/24 dev br7.30; ip route add vrf red default via 10.40.0.9
ip link add blue type vrf table 7778
# Tunnels over va.
ip link add name g1 type gre local 10.30.0.1 remote 10.30.0.2 ttl 64 key 5 csum seq dev va; ip link add name g2 type gretap local 10.30.0.1 remote 10.30.0.3 key 6
ip link add name g3 type gre local 10.30.0.1 remote 10.30.0.4 encap gue encap-sport 7000 encap-dport 5555 encap-csum; ip link add name g4 type gre external
ip link add name e1 type erspan local 10.30.0.1 remote 10.30.0.2 seq key 15 erspan_ver 1 erspan 123; ip link add name e6 type ip6erspan local fd30::1 remote fd30::2 seq key 7 erspan_ver 1 erspan 9
ip link add name g6 type ip6gre local fd30::1 remote fd30::2 ttl 64 key 5 encaplimit 7; ip link add name gt6 type ip6gretap local fd30::1 remote fd30::4 tclass 0x10
ip link add name i4 type ipip local 10.30.0.1 remote 10.30.0.2 ttl 64 dev va; ip link add name i6 type ip6tnl local fd30::1 remote fd30::2 mode any encaplimit 6
ip link add name s4 type sit local 10.30.0.1 remote 10.30.0.2 ttl 64 dev va; ip link add name gn1 type geneve id 7 remote 10.30.0.2 ttl 5 dstport 6082
ip link add name v4 type vti local 10.30.0.1 remote 10.30.0.2 ikey 25 okey 26 dev va; ip link add name v6 type vti6 local fd30::1 remote fd30::2 key 7
ip link add name xf type xfrm dev va if_id 42
for dev in g1 g2 i4 s4 gn1; do ip link set $dev addrgenmode none; done; up g1 g2 i4 s4 gn1; ip address add 10.50.0.1 peer 10.50.0.2 dev g1; ip address add fd50::1/64 dev s4 nodad
ip fou add port 5555 gue; ip fou add port 5556 ipproto 4
# Links of all sorts.
ip link add d0 mtu 9000 type dummy; up d0; ip link set d0 carrier off
ip link add link t1 name iv0 type ipvlan mode l2; ip link add link t2 name it0 type ipvtap mode l2; ip address add 10.51.0.1/24 dev iv0; up iv0 it0
ip link add name p1 type veth peer name p2; ip link add name p3 type veth peer name p4; up p1 p2 p3 p4; ip link add link p2 name ms0 type macsec sci 5 encrypt on cipher gcm-aes-256 icvlen 12; ip link add name prp0 type hsr slave1 p1 slave2 p3 supervision 45 proto 1; up prp0
ip link add ka type netkit; ip link set nk0 name kb; up ka kb; ip address add 10.52.0.1/24 dev ka
ip link add can0 type vcan; ip link add ca type vxcan peer name cb; up can0 ca cb; ip link add nl0 type nlmon; ip link add vs0 type vsockmon; up nl0 vs0
ip link add vn0 type vxlan dstport 4795 external vnifilter local 10.30.0.1 dev va; up vn0; bridge vni add vni 100-102 dev vn0; bridge vni add vni 200 group 239.1.1.1 dev vn0
umask 077; keys=$(mktemp -d); wg genkey >"$keys/own"; wg genkey | wg pubkey >"$keys/peer"; wg genpsk >"$keys/psk"
ip link add wg0 type wireguard; wg set wg0 private-key "$keys/own" listen-port 51820 fwmark 0x77 peer "$(cat "$keys/peer")" preshared-key "$keys/psk" endpoint 10.30.0.2:7777 allowed-ips 10.53.0.0/24,fd53::/64
up wg0; ip address add 10.53.0.1/24 dev wg0; rm -r "$keys"
# Labels, segments, states, services.
sysctl -qw net.mpls.platform_labels=1000 net.mpls.conf.va.input=1
ip -f mpls route add 100 as 200/201 via inet 10.30.0.9 dev va; ip -f mpls route add 101 dev lo
ip -f mpls route add 103 nexthop as 300 via inet 10.30.0.9 dev va nexthop as 301 via inet6 fd30::9 dev va
ip route add 198.18.20.0/24 encap mpls 100/200 via 10.30.0.9 dev va; ip -6 route add 2001:db8:20::/48 encap seg6 mode encap segs fc00::1,fc00::2 dev va
ip -6 route add fc00::9/128 encap seg6local action End dev va
ip xfrm state add src 10.30.0.1 dst 10.30.0.2 proto esp spi 0x100 reqid 7 mode tunnel replay-window 64 aead 'rfc4106(gcm(aes))' 0x0102030405060708090a0b0c0d0e0f1011121314 128
ip xfrm policy add src 10.54.0.0/24 dst 10.55.0.0/24 dir out tmpl src 10.30.0.1 dst 10.30.0.2 proto esp reqid 7 mode tunnel
ipvsadm -A -t 10.30.0.1:8088 -s rr -p 77; ipvsadm -a -t 10.30.0.1:8088 -r 10.32.0.2:8080 -m -w 3; ipvsadm -A -f 7 -s sh; ipvsadm -a -f 7 -r 10.32.0.3 -m; ipvsadm --set 100 20 30
ip ila add loc_match 1:2:3:4 loc 5:6:7:8
tc qdisc add dev s1 root handle 5: fq_codel limit 1000 target 3ms; tc qdisc add dev s2 root handle 6: netem delay 10ms loss 1% limit 100
