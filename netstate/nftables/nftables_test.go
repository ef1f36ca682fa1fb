package nftables_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/netstate/nftables"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/ns/nstest"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// run runs a command inside the namespace and returns its output.
func run(t testing.TB, n *ns.NS, name string, args ...string) []byte {
	t.Helper()
	return runInput(t, n, nil, name, args...)
}

func runInput(t testing.TB, n *ns.NS, stdin []byte, name string, args ...string) []byte {
	t.Helper()
	var out, stderr bytes.Buffer
	err := n.Do(func() error {
		cmd := exec.Command(name, args...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &stderr
		return cmd.Run()
	})
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, stderr.Bytes())
	}
	return out.Bytes()
}

// devices makes the links that rulesets with device hooks name.
func devices(t testing.TB, n *ns.NS) {
	t.Helper()
	run(t, n, "ip", "link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
}

// move captures one namespace and builds its ruleset in another.
func move(t testing.TB, from, to *ns.NS) []rawnl.Message {
	t.Helper()
	msgs, err := nftables.Capture(t.Context(), from)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := nftables.Plan(msgs)
	if err != nil {
		t.Fatal(err)
	}
	if err := nftables.Apply(t.Context(), to, plan); err != nil {
		t.Fatal(err)
	}
	return msgs
}

// list returns what nft says of the namespace, without handles.
func list(t testing.TB, n *ns.NS) string {
	t.Helper()
	var ruleset any
	if err := json.Unmarshal(run(t, n, "nft", "-j", "list", "ruleset"), &ruleset); err != nil {
		t.Fatal(err)
	}
	dropHandles(ruleset)
	out, err := json.MarshalIndent(ruleset, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	// What is left of a life runs out while the test runs, and nft counts it in seconds.
	return regexp.MustCompile(`"expires": \d+`).ReplaceAllString(string(out), `"expires": 0`)
}

func dropHandles(v any) {
	switch v := v.(type) {
	case map[string]any:
		delete(v, "handle")
		for _, inner := range v {
			dropHandles(inner)
		}
		if set, ok := v["set"].(map[string]any); ok { // sets without order are listed by their hashes
			if elements, ok := set["elem"].([]any); ok {
				slices.SortFunc(elements, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
			}
		}
	case []any:
		for _, inner := range v {
			dropHandles(inner)
		}
	}
}

// normal renders messages for comparison: type, family and every attribute that isn't volatile.
func normal(msgs []rawnl.Message) []string {
	var lines []string
	for _, m := range msgs {
		n := nftables.Normalize(m)
		lines = append(lines, nftables.Describe(n)+"\n\t"+string(n.Data))
	}
	return lines
}

// checkMoved fails the test unless both namespaces hold the same ruleset, by nft's word and by ours.
func checkMoved(t testing.TB, from, to *ns.NS, before []rawnl.Message) {
	t.Helper()
	after, err := nftables.Capture(t.Context(), to)
	if err != nil {
		t.Fatal(err)
	}
	want, got := normal(before), normal(after)
	for i := range min(len(want), len(got)) {
		if want[i] != got[i] {
			t.Errorf("message %d differs:\n- %q\n+ %q", i, want[i], got[i])
		}
	}
	if len(want) != len(got) {
		t.Errorf("%d messages captured, %d after the move", len(want), len(got))
	}
	if want, got := list(t, from), list(t, to); want != got {
		t.Errorf("nft lists another ruleset:\n%s", diff(want, got))
	}
}

// diff shows the lines of two texts that differ.
func diff(want, got string) string {
	var out strings.Builder
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(w), len(g)) {
		a, b := "", ""
		if i < len(w) {
			a = w[i]
		}
		if i < len(g) {
			b = g[i]
		}
		if a != b {
			out.WriteString("- " + a + "\n+ " + b + "\n")
		}
	}
	return out.String()
}

// TestMoveRulesets moves each ruleset of testdata, as one nft file each.
func TestMoveRulesets(t *testing.T) {
	nstest.NeedRoot(t, "nft", "ip")
	files, err := filepath.Glob("testdata/*.nft")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			from, to := nstest.New(t), nstest.New(t)
			devices(t, from)
			devices(t, to)
			run(t, from, "nft", "-f", file)
			before := move(t, from, to)
			checkMoved(t, from, to, before)
		})
	}
}

// TestMoveLargeRules moves rules that are larger than the datagrams in which the kernel answers those who receive little
// at a time: it leaves such a rule and all after it out.
func TestMoveLargeRules(t *testing.T) {
	nstest.NeedRoot(t, "nft")
	from, to := nstest.New(t), nstest.New(t)
	const matches = 60 // of two expressions each; a rule has 128 at most
	var script strings.Builder
	for _, table := range []string{"one", "two"} {
		fmt.Fprintf(&script, "table ip %s { chain c { counter drop; %s drop; ip daddr 192.0.2.1 drop; }; };\n", table, strings.Repeat("ip saddr 192.0.2.0/32 ", matches))
	}
	runInput(t, from, []byte(script.String()), "nft", "-f", "-")
	checkMoved(t, from, to, move(t, from, to))
}

func TestCaptureEmpty(t *testing.T) {
	nstest.NeedRoot(t)
	msgs, err := nftables.Capture(t.Context(), nstest.New(t))
	if err != nil || len(msgs) != 0 {
		t.Fatalf("got %d messages, %v", len(msgs), err)
	}
}

func TestCaptureLeavesLockOut(t *testing.T) {
	nstest.NeedRoot(t, "nft")
	n := nstest.New(t)
	runInput(t, n, []byte(`
		table inet nsmigrate_lock { set s { type mark; elements = { 1 }; }; chain in { type filter hook input priority -300; meta mark @s accept; drop; }; }
		table inet mine { chain c { accept; }; }`), "nft", "-f", "-")
	msgs, err := nftables.Capture(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, m := range msgs {
		lines = append(lines, nftables.Describe(m))
	}
	want := []string{"table inet mine", "chain inet mine c", "rule inet mine c [ immediate reg 0 accept ]"}
	if !slices.Equal(lines, want) {
		t.Fatalf("got %q", lines)
	}
}

// TestHidden: a rule that is larger than a netlink message ends the kernel's dump without an error. What it hides is named.
func TestHidden(t *testing.T) {
	nstest.NeedRoot(t, "nft", "iptables-nft")
	n := nstest.New(t)
	runInput(t, n, []byte(`
		table ip other { map m { type ipv4_addr : verdict; elements = { 10.0.0.1 : jump c, 10.0.0.2 : goto c } }
			chain c { accept; }; chain b { type filter hook input priority 0; jump c; ip saddr vmap @m; ip daddr vmap { 10.0.0.3 : jump c }; jump { drop; }
}; }`), "nft", "-f", "-")
	run(t, n, "iptables-nft", "-A", "INPUT", "-p", "tcp", "-j", "ACCEPT")
	losses := func() string {
		msgs, err := nftables.Capture(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(nftables.Losses(msgs), "\n")
	}
	if got := losses(); got != "" {
		t.Errorf("losses of a ruleset that is shown: %s", got)
	}
	large := []string{"-A", "INPUT"}
	for i := range 30 {
		large = append(large, "-m", "u32", "--u32", fmt.Sprintf("%d=1", i))
	}
	run(t, n, "iptables-nft", append(large, "-j", "DROP")...)
	run(t, n, "iptables-nft", "-A", "INPUT", "-p", "udp", "-j", "ACCEPT")
	run(t, n, "iptables-nft", "-A", "OUTPUT", "-p", "udp", "-j", "ACCEPT")
	const because = " of the objects that use it, because one is larger than a netlink message"
	want := "chain ip filter INPUT: the kernel does not show 2" + because + "\nchain ip filter OUTPUT: the kernel does not show 1" + because
	if got := losses(); got != want {
		t.Errorf("losses:\n%s\nwant:\n%s", got, want)
	}
}
