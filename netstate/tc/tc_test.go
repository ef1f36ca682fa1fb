package tc_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/ns/nstest"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
	"github.com/nsmigrate/nsmigrate/netstate/tc"
)

// devices are there before and after; their indexes are chosen so that they are the same.
const devices = `
	ip link add name a index 10 numtxqueues 4 numrxqueues 4 type veth peer name b index 11
	ip link add name c index 12 type veth peer name d index 13
	for dev in a b c d; do ip link set dev $dev up; done
`

type testCase struct {
	name   string
	full   bool // needs what only the full kernel has
	script string
}

func testCases() []testCase {
	return []testCase{
		{"nothing", false, ""},
		{"htb and tbf", false, `
			tc qdisc add dev a root handle 1: htb default 30 r2q 20 direct_qlen 77
			tc class add dev a parent 1: classid 1:1 htb rate 10mbit burst 15k
			tc class add dev a parent 1:1 classid 1:30 htb rate 1mbit ceil 5mbit prio 3 quantum 2000
			tc class add dev a parent 1:1 classid 1:2 htb rate 50gbit ceil 60gbit
			tc class add dev a parent 1:2 classid 1:1f htb rate 5mbit mtu 9000 overhead 24 mpu 64
			tc class add dev a parent 1: classid 1:40 htb rate 8bit
			tc qdisc add dev a parent 1:30 handle 30: tbf rate 1mbit burst 10k latency 50ms
			tc qdisc add dev a parent 1:1f tbf rate 1gbit burst 1514 limit 100k peakrate 2gbit mtu 2000
			tc qdisc add dev a parent 1:40 handle ff: pfifo limit 7
			tc qdisc add dev b root handle 5: tbf rate 100kbit burst 1600 limit 9000 overhead 8
			tc qdisc add dev b parent 5: handle 6: bfifo limit 12345
			tc qdisc add dev c root pfifo_head_drop limit 9
			tc qdisc add dev d root handle 9: pfifo limit 9`},
		{"many classes", false, `
			tc qdisc add dev a root handle 1: htb
			for i in $(seq 1 300); do printf 'class add dev a parent 1:%x classid 1:%x htb rate %dmbit\n' $((i/4)) $i $i; done | sed 's/parent 1:0/parent 1:/' | tc -b -`},
		{"u32", false, `
			tc qdisc add dev a root handle 1: htb
			tc class add dev a parent 1: classid 1:10 htb rate 1mbit
			tc filter add dev a parent 1: protocol ip prio 5 u32 match ip dst 10.0.0.0/8 flowid 1:10
			tc filter add dev a parent 1: protocol ip prio 5 u32 match ip src 10.1.0.0/16 match ip dport 80 0xffff flowid 1:10
			tc filter add dev a parent 1: protocol ip prio 4 u32 match mark 7 0xff flowid 1:10
			tc filter add dev a parent 1: protocol ipv6 prio 9 u32 match ip6 dst fd00::/8 flowid 1:10
			tc filter add dev a parent 1:10 protocol ip prio 1 u32 match ip tos 0x10 0xff flowid 1:10
			tc filter add dev a parent 1: prio 20 handle 2: protocol ip u32 divisor 256
			tc filter add dev a parent 1: protocol ip prio 20 u32 ht 2:7b: match ip src 192.0.2.123 flowid 1:10
			tc filter add dev a parent 1: protocol ip prio 20 handle 2:7b:fe u32 ht 2:7b: match ip src 192.0.2.124 flowid 1:10
			tc filter add dev a parent 1: protocol ip prio 20 u32 ht 800:: match ip src 192.0.2.0/24 hashkey mask 0x000000ff at 12 link 2:`},
		{"u32 tables numbered by the kernel", false, `
			tc qdisc add dev a root handle 1: htb
			for p in 1 2 3 4; do tc filter add dev a parent 1: protocol ip prio $p u32 match ip dst 10.$p.0.0/16 flowid 1:10; done
			tc filter add dev a parent 1: protocol ip prio 9 u32 match ip dst 10.9.0.0/16 flowid 1:10
			tc filter add dev a parent 1: protocol ip prio 7 u32 match ip dst 10.7.0.0/16 flowid 1:10
			tc filter add dev a parent 1: protocol ip prio 8 u32 match ip dst 10.8.0.0/16 flowid 1:10`},
		{"clsact with actions", false, `
			tc qdisc add dev b clsact
			tc qdisc add dev d ingress
			tc filter add dev b ingress protocol ip prio 1 u32 match ip dport 80 0xffff action mirred egress redirect dev a
			tc actions add action mirred egress mirror dev a index 77 cookie aabb
			tc actions add action mirred egress mirror dev c index 78
			tc filter add dev b egress protocol all chain 5 prio 7 u32 match u32 0 0 action mirred egress mirror dev a index 77
			tc filter add dev b egress protocol all chain 6 prio 8 u32 match u32 0 0 action mirred egress mirror dev c index 5 action mirred ingress mirror dev c
			tc filter add dev b egress protocol all chain 6 prio 9 u32 match u32 0 0 action mirred egress mirror dev c index 5
			tc filter add dev d ingress protocol ip prio 3 u32 match ip protocol 17 0xff action mirred egress mirror dev c`},
		{"shared blocks and chains", false, `
			tc qdisc add dev b ingress_block 22 egress_block 23 clsact
			tc qdisc add dev d ingress_block 22 ingress
			tc filter add block 22 protocol ip prio 1 chain 3 u32 match ip dport 80 0xffff action mirred egress redirect dev a
			tc filter add block 23 protocol ip prio 1 u32 match ip dport 81 0xffff action mirred egress redirect dev a
			tc qdisc add dev a clsact
			tc chain add dev a ingress chain 42`},
		{"classic BPF", false, `
			tc qdisc add dev a clsact
			tc filter add dev a ingress protocol ip prio 3 bpf bytecode '4,40 0 0 12,21 0 1 2048,6 0 0 262144,6 0 0 0' classid 1:7`},
		{"a qdisc on every queue", true, `
			tc qdisc add dev a root handle 1: mq
			tc qdisc add dev a parent 1:1 handle 11: fq_codel
			tc qdisc add dev a parent 1:3 handle 13: sfq perturb 7`},
		{"queueing disciplines", true, `
			set -- "fq_codel limit 999 flows 77 target 3ms interval 90ms noecn ce_threshold 4ms memory_limit 3Mb drop_batch 9" \
				"fq limit 5000 flow_limit 50 quantum 3000 initial_quantum 9000 maxrate 1gbit buckets 512 pacing refill_delay 20ms orphan_mask 255 horizon 3s horizon_cap ce_threshold 5ms timer_slack 7us" \
				"cake bandwidth 20mbit diffserv4 dual-srchost nat wash ack-filter split-gso rtt 50ms overhead 18 mpu 64 atm memlimit 4Mb fwmark 0xf0" \
				"cake unlimited besteffort flowblind no-split-gso raw" "codel limit 99 target 4ms interval 80ms ecn" "pie limit 99 target 10ms tupdate 20ms alpha 3 beta 21 ecn bytemode" \
				"fq_pie limit 999 flows 64 target 10ms alpha 3 ecn" "sfq limit 90 divisor 512 perturb 9 quantum 2000 depth 60 flows 50" \
				"sfq limit 90 redflowlimit 60000 min 8000 max 50000 probability 0.1 ecn headdrop" \
				"hhf limit 999 quantum 2000 hh_limit 99 reset_timeout 30ms admit_bytes 120000 evict_timeout 900ms non_hh_weight 3" "sfb limit 99 target 12 increment 0.0006 decrement 0.0003 penalty_rate 9 penalty_burst 19 db 50000 rehash 500000" \
				"red limit 100000 min 8000 max 20000 avpkt 1000 burst 20 bandwidth 10mbit ecn probability 0.05" "red limit 100000 min 8000 max 20000 avpkt 1000 burst 20 bandwidth 10mbit harddrop adaptive nodrop ecn" \
				"choke limit 99 min 8 max 40 avpkt 1000 burst 20 bandwidth 10mbit ecn" "netem delay 10ms 3ms 25% loss 1% 20% duplicate 2% corrupt 0.5% reorder 25% 50% gap 5 rate 1mbit 20 100 5 limit 99 ecn" \
				"netem loss state 1% 2% 3% 4% 5%" "netem loss gemodel 1% 10% 70% 0.1% delay 5ms 1ms distribution normal slot 800us 10ms packets 9 bytes 9999" \
				"pfifo_fast" "skbprio limit 99" "noqueue" "stab mtu 2000 tsize 256 mpu 64 overhead 24 linklayer atm tbf rate 1mbit burst 10k limit 9999" "stab overhead 30 linklayer adsl pfifo"
			i=20
			for q in "$@"; do
				i=$((i+1)); ip link add name n$i index $i type dummy; ip link set dev n$i up
				case $q in stab*) s=${q%% tbf*}; s=${s%% pfifo*}; tc qdisc add dev n$i root handle $i: $s ${q#$s};; *) tc qdisc add dev n$i root handle $i: $q || { echo "$q"; exit 1; };; esac
			done`},
		{"classful disciplines", true, `
			tc qdisc add dev a root handle 1: prio bands 4 priomap 0 1 2 3 3 2 1 0 0 1 2 3 3 2 1 0
			tc qdisc add dev a parent 1:2 handle 12: hfsc default 3
			tc class add dev a parent 12: classid 12:1 hfsc sc rate 10mbit ul rate 20mbit
			tc class add dev a parent 12:1 classid 12:3 hfsc rt m1 5mbit d 10ms m2 2mbit ls m1 0 d 5ms m2 3mbit
			tc filter add dev a parent 12:1 protocol ip prio 1 u32 match ip tos 0x10 0xff flowid 12:3
			tc qdisc add dev b root handle 2: drr
			tc class add dev b parent 2: classid 2:1 drr quantum 3000
			tc class add dev b parent 2: classid 2:2 drr
			tc filter add dev b parent 2: protocol all prio 1 matchall classid 2:1
			tc qdisc add dev c root handle 3: qfq
			tc class add dev c parent 3: classid 3:1 qfq weight 10 maxpkt 2000
			tc qdisc add dev c parent 3:1 handle 31: fq_codel
			tc qdisc add dev d root handle 4: ets bands 5 strict 2 quanta 4000 3000 2000 priomap 0 1 2 3 4
			tc qdisc add dev d parent 4:3 handle 43: red limit 100000 min 8000 max 20000 avpkt 1000 burst 20 bandwidth 10mbit qevent early_drop block 10
			tc filter add block 10 protocol all prio 1 matchall action drop`},
		{"time-aware disciplines", true, `
			tc qdisc add dev a parent root handle 100: taprio num_tc 3 map 2 2 1 0 2 2 2 2 2 2 2 2 2 2 2 2 queues 1@0 1@1 2@2 base-time 1528743495910289987 sched-entry S 01 300000 sched-entry S 02 300000 sched-entry S 04 400000 clockid CLOCK_TAI
			ip link add name m index 50 numtxqueues 4 type dummy; ip link set dev m up
			tc qdisc add dev m root handle 1: mqprio num_tc 2 map 0 0 1 1 0 0 0 0 0 0 0 0 0 0 0 0 queues 2@0 2@2 hw 0
			tc qdisc add dev m parent 1:1 handle 5: etf clockid CLOCK_TAI delta 300000
			tc qdisc add dev m parent 1:2 handle 6: cbs idleslope 20000 sendslope -980000 hicredit 30 locredit -1470 offload 0`},
		{"classifiers", true, `
			tc qdisc add dev a root handle 1: htb
			tc class add dev a parent 1: classid 1:10 htb rate 1mbit
			tc filter add dev a parent 1: protocol ip prio 1 handle 0x10/0xff fw classid 1:10
			tc filter add dev a parent 1: protocol ip prio 2 route from 7 to 8 classid 1:10
			tc filter add dev a parent 1: protocol ip prio 3 handle 1 flow hash keys src,dst divisor 16 baseclass 1:10
			tc filter add dev a parent 1: protocol ip prio 4 handle 1 flow map key mark and 0xf baseclass 1:1
			tc filter add dev a parent 1: protocol ip prio 5 handle 3: basic match 'meta(priority eq 6) and not u32(u8 0x11 0xff at 9)' classid 1:10
			tc filter add dev a parent 1: protocol ip prio 5 basic match 'cmp(u16 at 0 layer 2 mask 0xffff gt 20)' classid 1:10
			tc filter add dev a parent 1: protocol ip prio 5 basic match 'nbyte("ababa" at 12 layer 1)' classid 1:10
			tc filter add dev a parent 1: protocol ip prio 6 handle 1 cgroup
			tc filter add dev a parent 1: protocol all prio 7 handle 9 matchall classid 1:10
			tc qdisc add dev b clsact
			tc chain add dev b ingress chain 9 protocol ip flower dst_ip 0.0.0.0/16
			tc filter add dev b ingress protocol ip prio 1 flower ip_proto tcp dst_port 80-90 src_ip 10.0.0.0/8 skip_hw action drop
			tc filter add dev b ingress protocol ip prio 1 handle 7 flower ip_proto udp dst_port 53 tcp_flags 0 classid 1:1 action pass 2>/dev/null ||
			tc filter add dev b ingress protocol ip prio 1 handle 7 flower ip_proto udp dst_port 53 classid 1:1 action pass
			tc filter add dev b ingress protocol 802.1Q prio 2 flower vlan_id 7 vlan_prio 3 vlan_ethtype ipv4 dst_mac 02:00:00:00:00:01/ff:ff:00:00:00:00 action goto chain 4
			tc filter add dev b ingress protocol 802.1ad prio 8 flower vlan_id 100 vlan_ethtype 802.1q cvlan_id 200 cvlan_ethtype ipv4 action drop
			tc filter add dev b ingress protocol ipv6 prio 3 flower dst_ip fd00::/8 enc_key_id 77 enc_dst_ip 192.0.2.1 enc_dst_port 4789 action continue
			tc filter add dev b ingress protocol ip prio 4 flower ct_state +trk+est ct_zone 7 ct_mark 5/0xff action pass
			tc filter add dev b ingress chain 9 protocol ip prio 1 flower dst_ip 10.1.0.0/16 action drop`},
		{"actions", true, `
			tc qdisc add dev b clsact
			set -- "gact drop random netrand ok 5" "police rate 1mbit burst 10k mtu 2000 conform-exceed pipe/drop" "police rate 10gbit burst 1m peakrate 20gbit mtu 9000 overhead 24 drop" "police pkts_rate 1000 pkts_burst 200 conform-exceed drop/pipe" \
				"pedit ex munge ip ttl set 64 munge tcp dport set 80 munge eth dst set 02:00:00:00:00:05 pipe" "pedit munge offset 0 u32 set 0x12345678 pipe" "simple sdata hello" "skbedit mark 7 priority 1:5 ptype host" "csum ip tcp udp" \
				"vlan push id 7 priority 3" "vlan pop" "nat egress 10.0.0.0/8 192.0.2.1" "ct zone 5 commit mark 7/0xff nat src addr 10.0.0.1-10.0.0.9 port 5-9" "ctinfo dscp 0xfc 0x1" "ctinfo cpmark 0xff" \
				"tunnel_key set src_ip 192.0.2.1 dst_ip 192.0.2.2 id 7 dst_port 4789 ttl 9 geneve_opts 0102:80:00880022" "connmark zone 7" "sample rate 100 group 5 trunc 64" "skbmod set dmac 02:00:00:00:00:01 etype 0x800" \
				"ife encode type 0xed3e allow mark use prio 5 dst 02:00:00:00:00:01" "mpls push protocol mpls_uc label 7 tc 1 ttl 9" "mpls pop protocol ip" \
				"gate clockid CLOCK_TAI base-time 200000000000ns sched-entry open 200000000ns -1 8000000b sched-entry close 100000000ns -1 -1" \
				"bpf bytecode '1,6 0 0 4294967295,'"
			i=1
			for act in "$@"; do
				i=$((i+1))
				eval tc filter add dev b ingress protocol ip prio $i matchall action "$act" index $((i+100)) || { echo "$act"; exit 1; }
				eval tc actions add action "$act" index $((i+200)) || { echo "$act"; exit 1; }
			done
			tc filter add dev b egress protocol ip prio 1 u32 match u32 0 0 police rate 2mbit burst 20k drop flowid :1
			tc filter add dev b egress protocol ip prio 2 matchall action gact pass action police index 203 action mirred egress redirect dev a`},
	}
}

// volatile are the parts of tc's output that may differ.
func tidy(text string) string {
	for _, re := range []string{`"refcnt":\d+,?`, `refcnt \d+ `, `direct_packets_stat \d+ ?`, `"direct_packets_stat":\d+,?`, `installed \d+ sec`, `used \d+ sec`, `"(installed|last_used|first_used|expires)":\d+,?`} {
		text = regexp.MustCompile(re).ReplaceAllString(text, "")
	}
	return text
}

// list returns what tc says of a namespace.
func list(t *testing.T, n *ns.NS) string {
	t.Helper()
	const script = `
		for dev in $(ls /proc/sys/net/ipv4/conf | grep -vE '^(all|default|lo)$'); do
			echo class show dev $dev >> classes
			for at in "" ingress egress "parent 1:10" "parent 12:" "parent 12:1"; do echo filter show dev $dev $at; done
			for at in "" ingress egress; do echo chain show dev $dev $at; done
		done > show
		for block in 10 22 23; do echo filter show block $block; echo chain show block $block; done >> show
		for act in gact mirred police pedit simple skbedit csum vlan nat ct ctinfo tunnel_key connmark sample skbmod ife mpls gate bpf; do echo actions list action $act; done >> show
		tc -d -j qdisc show | tr -d '[]' | sed 's/},{/}\n{/g' | sort
		tc -d -force -batch classes | grep -v '^class cake' | sort
		tc -d -force -batch show 2>/dev/null || true`
	t.Chdir(t.TempDir())
	return tidy(nstest.Run(t, n, script))
}

func name(index int32) string { return fmt.Sprintf("if%d", index) }

func capture(t *testing.T, n *ns.NS) []rawnl.Message {
	t.Helper()
	msgs, err := tc.Capture(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	return msgs
}

func render(msgs []rawnl.Message) string {
	var lines []string
	for _, m := range msgs {
		m = tc.Normalize(m)
		lines = append(lines, fmt.Sprintf("%s [%x]", tc.Describe(m, name), m.Data))
	}
	return strings.Join(lines, "\n")
}

// TestReplay builds each case a second time from what was captured.
func TestReplay(t *testing.T) {
	nstest.NeedRoot(t, "ip", "tc")
	for _, c := range testCases() {
		t.Run(c.name, func(t *testing.T) {
			source, target := nstest.New(t), nstest.New(t)
			nstest.Run(t, source, devices)
			if c.full {
				nstest.Arrange(t, source, c.script)
			} else {
				nstest.Run(t, source, c.script)
			}
			nstest.Run(t, target, devices)
			for line := range strings.Lines(nstest.Run(t, source, `ip -o link show type dummy | sed -n 's/^\([0-9]*\): \([^:]*\):.*/\1 \2/p'`)) {
				var index, dev string
				_, _ = fmt.Sscan(line, &index, &dev)
				nstest.Run(t, target, "ip link add name "+dev+" index "+index+" numtxqueues 4 type dummy; ip link set dev "+dev+" up")
			}
			msgs := capture(t, source)
			if losses := tc.Losses(msgs, name); len(losses) > 0 {
				t.Errorf("losses: %q", losses)
			}
			plan, err := tc.Plan(msgs)
			if err != nil {
				t.Fatal(err)
			}
			if err := tc.Apply(t.Context(), target, plan); err != nil {
				t.Fatal(err)
			}
			nstest.Compare(t, "capture", render(msgs), render(capture(t, target)))
			nstest.Compare(t, "tc", list(t, source), list(t, target))
		})
	}
}

// TestManyMatchall captures so many filters that their dump takes many datagrams, at the ends of which the kernel leaves
// filters of this kind out, and filters that are larger than a page.
func TestManyMatchall(t *testing.T) {
	nstest.NeedRoot(t, "ip", "tc")
	const many, actions = 1500, 25
	source := nstest.New(t)
	nstest.Run(t, source, devices)
	nstest.Arrange(t, source, fmt.Sprintf(`
		tc qdisc add dev b clsact
		for i in $(seq 1 %d); do printf 'filter add dev b ingress chain %%d protocol ip prio %%d handle 0x%%x matchall classid 1:%%x\n' $((i/100)) $i $i $i; done | tc -b -
		tc filter add dev b egress protocol ip prio 1 handle 5 matchall $(yes 'action pedit munge offset 0 u32 set 1 pipe' | head -%d)
		tc filter add dev b egress protocol ip prio 2 handle 6 matchall $(yes 'action pedit munge offset 0 u32 set 1 pipe' | head -%d)`, many, actions, actions))
	for i, m := range capture(t, source) {
		line, want := tc.Describe(m, name), ""
		switch {
		case i == 0:
			want = "qdisc"
		case i <= many:
			want = fmt.Sprintf("filter dev if11 ingress protocol 0x0800 pref %d matchall chain %d handle 0x%x ", i, i/100, i)
		default:
			want = fmt.Sprintf("filter dev if11 egress protocol 0x0800 pref %d matchall chain 0 handle 0x%x ", i-many, i-many+4)
		}
		if !strings.HasPrefix(line, want) {
			t.Fatalf("object %d is %q instead of %q", i, line, want)
		}
	}
	if n := len(capture(t, source)); n != 1+many+2 {
		t.Errorf("%d objects", n)
	}
}
