package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/e2e/lab"
)

// The namespace that arrives is the one that left, as ip(8), nft(8) and their like show it.
func TestNetwork(t *testing.T) {
	for name, setup := range map[string]string{
		"plain": "",
		"links": `
			ip link add va type veth peer name vb
			ip link add br1 type bridge ageing_time 12345 stp_state 0
			ip link set br1 type bridge vlan_filtering 1 || echo no VLANs in this kernel
			ip link set va master br1
			ip link set va up; ip link set vb up; ip link set br1 up
			ip address add 10.1.0.1/24 dev br1
			ip link add link vb name mv0 type macvlan mode bridge
			ip link set mv0 address 02:11:22:33:44:55 up
			ip link add link vb name mvt0 type macvtap mode bridge
			ip link add vx0 type vxlan id 42 dstport 4789 local %[1]s remote 10.77.0.10 dev eth0
			ip link set vx0 mtu 1400 up
			ip link add ifb0 type ifb
			ip link set ifb0 txqueuelen 77 alias 'mirror of eth0' up
			ip tuntap add dev tap0 mode tap multi_queue
			ip tuntap add dev tun0 mode tun
			ip link set tap0 address 02:aa:bb:cc:dd:ee up
			ip link set tun0 up
			ip address add 10.2.0.1/32 peer 10.2.0.2 dev tun0`,
		"addresses": `
			ip address add 10.77.0.101/24 dev eth0 label eth0:web
			ip address add 10.77.0.102/32 dev eth0 scope host
			ip address add 127.0.0.2/8 dev lo
			ip address add fd77::101/64 dev eth0 nodad preferred_lft 0
			ip address add fd77::102/128 dev lo nodad
			ip address add 10.3.0.1/24 dev eth0 noprefixroute metric 50`,
		"routes": `
			ip route add 10.10.0.0/16 via 10.77.0.254 metric 7 mtu 1300 advmss 1200
			ip route add 10.11.0.0/16 nexthop via 10.77.0.1 weight 1 nexthop via 10.77.0.2 weight 3
			ip route add unreachable 10.12.0.0/16
			ip route add blackhole 10.13.0.0/16 table 100
			ip route add 10.14.0.0/16 via 10.77.0.254 table 100 proto static src %[1]s
			ip route add 2001:db8:10::/48 via fd77::fe metric 9
			ip route add 2001:db8:11::/48 nexthop via fd77::1 nexthop via fd77::2
			ip route add prohibit 2001:db8:12::/48
			ip nexthop add id 5 via 10.77.0.254 dev eth0
			ip nexthop add id 6 via 10.77.0.1 dev eth0
			ip nexthop add id 7 group 5/6,3
			ip nexthop add id 8 via fd77::fe dev eth0
			ip route add 10.15.0.0/16 nhid 7
			ip route add 2001:db8:15::/48 nhid 8
			ip rule add from 10.77.0.101 table 100 priority 500
			ip rule add fwmark 0x10/0xff iif lo lookup 100 priority 600
			ip -6 rule add to 2001:db8:16::/48 unreachable priority 700
			ip neigh add 10.77.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent
			ip neigh add fd77::77 lladdr 02:00:00:00:00:78 dev eth0 nud permanent
			ip neigh add proxy 10.77.0.78 dev eth0`,
		"sysctls": `
			sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.eth0.rp_filter=2 net.ipv4.tcp_syn_retries=3
			sysctl -qw net.ipv6.conf.all.forwarding=1 net.ipv6.conf.eth0.accept_ra=0 net.core.somaxconn=333
			sysctl -qw net.ipv4.ip_local_port_range='20000 30000' net.ipv4.conf.default.arp_ignore=1`,
		"nftables": `
			nft -f - <<-'end'
				table inet filter {
					set blocked { type ipv4_addr; flags interval; elements = { 192.0.2.128/25 } }
					map ports { type inet_service : verdict; elements = { 7000 : accept } }
					counter hits { packets 0 bytes 0 }
					chain in {
						type filter hook input priority filter; policy accept;
						ct state established,related accept
						ip saddr @blocked drop
						tcp dport vmap @ports
						iifname "lo" accept
						limit rate 10/second accept comment "spare"
					}
				}
				table ip nat {
					chain pre {
						type nat hook prerouting priority dstnat;
						tcp dport 8000 redirect to :7000
					}
				}
			end`,
		"iptables": `
			iptables-legacy -t nat -A PREROUTING -p tcp --dport 8000 -j REDIRECT --to-ports 7000
			iptables-legacy -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT
			iptables-legacy -N MINE
			iptables-legacy -A INPUT -p udp -j MINE
			ip6tables-legacy -A OUTPUT -p icmpv6 -j ACCEPT`,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if strings.Contains(setup, "%") {
				setup = fmt.Sprintf(setup, w.svc.IPv4)
			}
			w.sh(w.A, "ip netns exec svc sh -eu <<'script'\n%s\nscript", setup)
			w.serve()
			c := w.echo("4", 3)
			before := w.settled(w.A)
			w.move(w.A, w.B)
			c.progress()
			w.unharmed()
			after := w.network(w.B)
			for _, diff := range differences(before, after) {
				t.Error(diff)
			}
			w.stopAll(c)
		})
	}
}

// Connections that the namespace's own rules translate keep their bindings.
func TestTranslatedConnections(t *testing.T) {
	for name, rule := range map[string]string{
		"nftables": "nft 'table ip nat { chain pre { type nat hook prerouting priority dstnat; tcp dport 8000 redirect to :7000; }; }'",
		"iptables": "iptables-legacy -t nat -A PREROUTING -p tcp --dport 8000 -j REDIRECT --to-ports 7000",
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.sh(w.A, "ip netns exec svc %s", rule)
			w.serve()
			c := w.load("--connect", w.svc.Addr("4", 8000), "--conns", "5")
			w.moves(rounds, c)
			w.stopAll(c)
		})
	}
}

// views are what the namespace is compared by.
var views = map[string]string{
	"links":       "ip -d -j link",
	"addresses":   "ip -d -j address",
	"IPv4 routes": "ip -4 -d -j route show table all",
	"IPv6 routes": "ip -6 -d -j route show table all",
	"IPv4 rules":  "ip -4 -d -j rule",
	"IPv6 rules":  "ip -6 -d -j rule",
	"nexthops":    "ip -d -j nexthop",
	"neighbours":  "ip -d -j neigh show nud permanent",
	"proxies":     "ip -d -j neigh show proxy",
	"forwarding":  "bridge -d -j fdb show state permanent",
	"VLANs":       "bridge -d -j vlan",
	"nftables":    "nft -j list ruleset",
	"iptables":    "iptables-legacy-save",
	"ip6tables":   "ip6tables-legacy-save",
	"sysctls":     "sysctl -a -r ^net",
	"tap queues":  "ip -d -j tuntap",
}

// settled is network when no address is tentative any more and nothing changes by itself: duplicate detection
// takes a second, and the routes of an address come after it.
func (w *world) settled(h *lab.Host) map[string][]string {
	w.Helper()
	var shown map[string][]string
	w.check(lab.Eventually(w.limit(), func() error {
		before := shown
		shown = w.network(h)
		if diffs := differences(before, shown); len(before) == 0 || len(diffs) > 0 {
			return fmt.Errorf("still changing: %v", diffs)
		}
		for _, line := range shown["addresses"] {
			if strings.Contains(line, "tentative") {
				return errors.New(line)
			}
		}
		return nil
	}))
	return shown
}

// ordered are the views in which the order of lines means something. The others list what a hash, a tree or the
// order of devices' coming up yields; iptables-save lists tables in the order in which they were made, so that
// each line names its table.
var ordered = map[string]bool{"addresses": true, "IPv4 rules": true, "IPv6 rules": true, "nftables": true}

// network shows a host's "svc" through all views, one line an object.
func (w *world) network(h *lab.Host) map[string][]string {
	w.Helper()
	shown := map[string][]string{}
	for name, command := range views {
		out, err := h.Output(w.ctx, "ip", "netns", "exec", "svc", "sh", "-c", command+" 2>/dev/null || true")
		w.check(err)
		shown[name] = viewLines(out)
	}
	return shown
}

func viewLines(out string) []string {
	var lines []string
	var document any
	switch json.Unmarshal([]byte(out), &document) {
	case nil:
		list, ok := document.([]any)
		if rules, isRules := document.(map[string]any); isRules {
			list, ok = rules["nftables"].([]any)
		}
		if !ok {
			list = []any{document}
		}
		for _, object := range list {
			forget(object)
			line, _ := json.Marshal(object)
			lines = append(lines, string(line))
		}
	default:
		table := ""
		for line := range strings.Lines(out) {
			switch line = strings.TrimSpace(countersRemoved(line)); {
			case strings.HasPrefix(line, "#"), line == "COMMIT": // iptables-save says when it ran
			case strings.HasPrefix(line, "*"):
				table = line + " "
			default:
				lines = append(lines, table+line)
			}
		}
	}
	return lines
}

// volatile are properties that differ by their nature, with the reason.
var volatile = map[string]string{
	"link_index":            "the index of the peer, in the host",
	"link_netnsid":          "the host's number is the namespace's own affair",
	"handle":                "of nft: counted by the kernel",
	"metainfo":              "of nft: its own version",
	"packets":               "a counter",
	"bytes":                 "a counter",
	"hello_timer":           "runs",
	"gc_timer":              "runs",
	"tcn_timer":             "runs",
	"topology_change_timer": "runs",
	"forward_delay_timer":   "runs",
	"message_age_timer":     "runs",
	"hold_timer":            "runs",
	"expires":               "runs",
	"valid_life_time":       "runs",
	"preferred_life_time":   "runs, and 0 is shown as deprecated",
}

func forget(v any) {
	switch v := v.(type) {
	case map[string]any:
		maps.DeleteFunc(v, func(key string, _ any) bool { return volatile[key] != "" })
		for _, inner := range v {
			forget(inner)
		}
	case []any:
		for _, inner := range v {
			forget(inner)
		}
	}
}

// countersRemoved is a line of iptables-save or sysctl without what counts up by itself.
func countersRemoved(line string) string {
	if strings.HasPrefix(line, ":") { // chain policy [packets:bytes]
		line, _, _ = strings.Cut(line, " [")
	}
	for _, name := range []string{"net.netfilter.nf_conntrack_count", "net.ipv4.tcp_fastopen_key"} {
		if strings.HasPrefix(line, name+" ") {
			return name
		}
	}
	return line
}

func differences(before, after map[string][]string) []string {
	var diffs []string
	for _, view := range slices.Sorted(maps.Keys(before)) {
		for _, line := range before[view] {
			if !slices.Contains(after[view], line) {
				diffs = append(diffs, view+": - "+line)
			}
		}
		for _, line := range after[view] {
			if !slices.Contains(before[view], line) {
				diffs = append(diffs, view+": + "+line)
			}
		}
		if was, is := before[view], after[view]; ordered[view] && len(was) == len(is) && !slices.Equal(was, is) {
			diffs = append(diffs, fmt.Sprintf("%s: another order:\n%s\nwas:\n%s", view, strings.Join(is, "\n"), strings.Join(was, "\n")))
		}
	}
	return diffs
}
