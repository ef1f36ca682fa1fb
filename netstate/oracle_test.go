package netstate_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// arrange builds a case's namespace on a host with a bridge, which is left out if the case has no use for it: of all
// that these tests do, the kernel takes longest to remove bridges.
func arrange(t testing.TB, script string) (host, source *ns.NS) {
	host, source = newNS(t), newNS(t)
	if usesHost(script) {
		sh(t, host, "ip link set lo up; ip link add br0 type bridge; ip link set br0 up")
	}
	prelude := `HOST=/proc/self/fd/3; HOST_TARGET=/proc/self/fd/4; host() { nsenter --net=/proc/self/fd/3 "$@"; }; `
	sh(t, source, prelude+script, host, source)
	return host, source
}

func usesHost(script string) bool { return strings.Contains(strings.ToLower(script), "host") }

// otherHost makes a host to which every case can be moved.
func otherHost(t testing.TB) *ns.NS {
	host := newNS(t)
	sh(t, host, `ip link set lo up; ip link add br0 type bridge; ip link set br0 up
		ip link add par address 02:00:00:00:aa:aa type veth peer name parpeer; ip link set par up; ip link set parpeer up`)
	return host
}

// TestRoundTrip moves each case to another host and looks with two eyes: a second capture must equal the
// first one (oracle 1), and iproute2 must print the same (oracle 2).
func TestRoundTrip(t *testing.T) {
	needRoot(t)
	for _, c := range cases() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			roundTrip(t, c.script, toolCommands())
		})
	}
}

// roundTrip moves what a script builds to another host. commands are those of the second oracle.
func roundTrip(t *testing.T, script string, commands []string) {
	t.Helper()
	move(t, script, commands, true)
}

// move is roundTrip; early says whether the namespace must be the same before it is connected already.
func move(t *testing.T, script string, commands []string, early bool) {
	t.Helper()
	ctx := context.Background()
	hostA, source := arrange(t, script)
	settleDown(t, source, hostA)
	want := reread(t, capture(t, source, hostA))
	if losses := want.Losses(); len(losses) > 0 {
		t.Fatalf("losses: %v", losses)
	}
	hostB, target := newNS(t), newNS(t)
	if usesHost(script) {
		hostB = otherHost(t)
	}
	opts := netstate.BuildOptions{Host: hostB}
	if problems, err := netstate.Preflight(ctx, want, opts); err != nil || len(problems) > 0 {
		t.Fatalf("preflight: %v %v", problems, err)
	}
	if err := netstate.Build(ctx, target, want, opts); err != nil {
		t.Fatal(err)
	}
	// A link whose parent is outside is held without carrier, or down, until it is connected, and nexthops need a carrier.
	early = early && (len(want.Uplinks()) == 0 || len(want.Messages[netstate.KindNexthop]) == 0)
	if early && !slices.ContainsFunc(want.Uplinks(), func(u netstate.Uplink) bool { return u.Kind != "veth" }) {
		checkDiff(t, want, func() *netstate.State { return capture(t, target, hostB) })
	}
	if err := netstate.Connect(ctx, target, want, opts); err != nil {
		t.Fatal(err)
	}
	checkDiff(t, want, func() *netstate.State { return capture(t, target, hostB) })
	got := capture(t, target, hostB)
	compareTools(t, commands, source, target, strings.NewReplacer(netstate.Redrawn(got, want)...))
	compareUplinks(t, want, got)
}

// settleDown waits until the kernel is done with what it does by itself after a configuration: carrier comes,
// link-local addresses and their routes appear, duplicate address detection ends.
func settleDown(t testing.TB, n, host *ns.NS) {
	nl, err := rawnl.Dial(n, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	last := capture(t, n, host)
	quiet := 0
	for deadline := time.Now().Add(time.Minute); quiet < 4 && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		syncCarriers(t, nl, last)
		next, err := netstate.Capture(context.Background(), n, netstate.CaptureOptions{Prev: last})
		if err != nil {
			t.Fatal(err)
		}
		tentative := func(a netstate.Address) bool { return a.Flags&unix.IFA_F_TENTATIVE != 0 }
		if len(netstate.Diff(last, next)) > 0 || slices.ContainsFunc(next.Addresses(), tentative) {
			quiet = 0
		}
		quiet++
		last = next
	}
}

// syncCarriers asks for each link by itself, before which the kernel tells the world of its carrier. On a busy machine
// it comes to that by itself a second later.
func syncCarriers(t testing.TB, nl *rawnl.Conn, s *netstate.State) {
	for _, link := range s.Messages[netstate.KindLink] {
		req := rawnl.Message{Type: unix.RTM_GETLINK, Data: make([]byte, unix.SizeofIfInfomsg)}
		copy(req.Data[4:8], link.Data[4:8]) // the index
		if _, err := nl.Request(context.Background(), req); err != nil {
			t.Fatal(err)
		}
	}
}

// toolCommands print a namespace's state.
func toolCommands() []string {
	return []string{
		"ip -d -j link", "ip -d -j addr", "ip -4 -d -j route show table all", "ip -6 -d -j route show table all",
		"ip -d -j rule", "ip -6 -d -j rule", "ip mrule; ip -6 mrule", "ip maddr show | grep static || true", "ip -d -j neigh show nud permanent", "ip -d -j neigh show nud stale", "ip -d -j neigh show proxy", "ip -6 -d -j neigh show proxy",
		"ip -d -j nexthop", "ip -j addrlabel", "bridge -d -j link", `bridge link | sed -n 's/^[0-9]*: \([^@:]*\).*LOWER_UP.* state disabled.*/\1/p' | sort`, "ip -br link show | grep dormant || true", "bridge -d -j fdb", "bridge -d mdb | grep permanent | sort", "nft -j list ruleset",
	}
}

// volatile lists the keys of iproute2's JSON that may differ, each for a reason.
func volatile() []string {
	return []string{
		"link_index", "link_netnsid", // the other end is on another host
		"operstate", "carrier", // follow the other end
		"valid_life_time", "preferred_life_time", "expires", // count down
		"hello_timer", "tcn_timer", "topology_change_timer", "gc_timer", "updated", "used", // timers
		"state", "designated_port", "no", "id", "port", "forward_delay_timer", "hold_timer", "message_age_timer", "topology_change", // spanning tree
		"root_id", "bridge_id", "root_port", "designated_root", "designated_bridge",
		"tso_max_size", "tso_max_segs", // follow from the lower device, at the time when the link was made
		"qdisc",              // noqueue or noop, by the moment
		"unbalanced_time",    // of a resilient nexthop group
		"stable-privacy",     // tells how the kernel once chose the address
		"permaddr", "handle", // of the device; nftables' own numbering
		"bytes", "packets", // counters of the packets since
		"seq_nr", // of the packets that an hsr link sends
	}
}

// anyOrder ends a command whose lines are compared without their order.
const anyOrder = " # in any order"

// compareTools compares what commands print in two namespaces, with what is said to be the same in the target.
func compareTools(t *testing.T, commands []string, source, target *ns.NS, same *strings.Replacer) {
	t.Helper()
	for _, cmd := range differing(t, commands, source, target, same) {
		var want, got string
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			want, got = tidyJSON(t, sh(t, source, cmd)), tidyJSON(t, same.Replace(sh(t, target, cmd)))
			if strings.Contains(cmd, "fdb") || strings.Contains(cmd, "neigh") || strings.Contains(cmd, "-6 -d -j route") || strings.HasSuffix(cmd, anyOrder) { // hash tables; the order of joining
				want, got = sortLines(want), sortLines(got)
			}
			if want == got {
				break
			}
		}
		if want != got {
			t.Errorf("%s\n before and after:\n%s", cmd, lineDiff(want, got))
		}
	}
}

// differing runs all commands at once, which is much faster, and returns those that must be looked at closely.
func differing(t *testing.T, commands []string, source, target *ns.NS, same *strings.Replacer) []string {
	t.Helper()
	const mark = "\n-- next --\n"
	all := strings.Join(commands, "\nprintf '"+strings.ReplaceAll(mark, "\n", `\n`)+"'\n")
	want, got := strings.Split(sh(t, source, all), mark), strings.Split(same.Replace(sh(t, target, all)), mark)
	if len(want) != len(commands) || len(got) != len(commands) {
		return commands
	}
	var list []string
	for i, cmd := range commands {
		if tidyJSON(t, want[i]) != tidyJSON(t, got[i]) {
			list = append(list, cmd)
		}
	}
	return list
}

func sortLines(s string) string {
	return strings.Join(slices.Sorted(strings.SplitSeq(s, "\n")), "\n")
}

// tidyJSON removes volatile keys and prints one object a line.
func tidyJSON(t *testing.T, text string) string {
	t.Helper()
	if !strings.HasPrefix(text, "[") && !strings.HasPrefix(text, "{") {
		return text
	}
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	drop := volatile()
	var tidy func(any) any
	tidy = func(v any) any {
		switch v := v.(type) {
		case map[string]any:
			for key := range v {
				if slices.Contains(drop, key) {
					delete(v, key)
				} else {
					v[key] = tidy(v[key])
				}
			}
			if flags, ok := v["flags"].([]any); ok {
				v["flags"] = slices.DeleteFunc(flags, func(f any) bool {
					return f == "LOWER_UP" || f == "NO-CARRIER" || f == "linkdown" || f == "M-DOWN"
				})
			}
			return v
		case []any:
			for i := range v {
				v[i] = tidy(v[i])
			}
		}
		return v
	}
	v = tidy(v)
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	var b strings.Builder
	for _, e := range list {
		line, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		b.Write(append(line, '\n'))
	}
	return b.String()
}

func lineDiff(a, b string) string {
	la, lb := strings.Split(a, "\n"), strings.Split(b, "\n")
	var out []string
	for _, l := range la {
		if !slices.Contains(lb, l) {
			out = append(out, "- "+l)
		}
	}
	for _, l := range lb {
		if !slices.Contains(la, l) {
			out = append(out, "+ "+l)
		}
	}
	if len(out) == 0 {
		return fmt.Sprintf("the order differs:\n%s\n%s", a, b)
	}
	return strings.Join(out, "\n")
}

// compareUplinks compares the host's side of the uplinks on both hosts.
func compareUplinks(t *testing.T, want, got *netstate.State) {
	t.Helper()
	text := func(s *netstate.State) string {
		var lines []string
		for _, u := range s.Uplinks() {
			lines = append(lines, u.String())
		}
		return strings.Join(lines, "\n")
	}
	if a, b := text(want), text(got); a != b {
		t.Errorf("uplinks\n- %s\n+ %s", a, b)
	}
}
