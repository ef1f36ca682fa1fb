package nftables_test

import (
	"bufio"
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/netstate/nftables"
	"github.com/nsmigrate/nsmigrate/netstate/ns/nstest"
)

// TestMoveXtables moves rules that iptables-nft and its siblings wrote, with xtables matches and targets
// that the kernel lets in only beside the right protocol.
func TestMoveXtables(t *testing.T) {
	nstest.NeedRoot(t, "iptables-nft", "ip6tables-nft", "arptables-nft", "ebtables-nft", "iptables-nft-save")
	from, to := nstest.New(t), nstest.New(t)
	for _, line := range lines(t, "testdata/xtables.txt") {
		run(t, from, "sh", "-c", line)
	}
	before := move(t, from, to)
	checkMoved(t, from, to, before)
	for _, tool := range []string{"iptables-nft-save", "ip6tables-nft-save", "arptables-nft-save", "ebtables-nft-save"} {
		if want, got := saved(run(t, from, tool)), saved(run(t, to, tool)); want != got {
			t.Errorf("%s differs:\n%s", tool, diff(want, got))
		} else if len(want) == 0 {
			t.Errorf("%s says nothing", tool)
		}
	}
}

// saved drops the comments of an iptables-save, which hold the time.
func saved(b []byte) string {
	return regexp.MustCompile(`(?m)^#.*\n`).ReplaceAllString(string(b), "")
}

func lines(t testing.TB, file string) []string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		if line := strings.TrimSpace(s.Text()); line != "" && !strings.HasPrefix(line, "#") {
			all = append(all, line)
		}
	}
	return all
}

// TestCompatProtocol shows the protocol that a plan puts beside rules with xtables extensions.
func TestCompatProtocol(t *testing.T) {
	nstest.NeedRoot(t, "iptables-nft", "ebtables-nft")
	cases := []struct{ command, want string }{
		{"iptables-nft -A INPUT -p tcp -m socket -j ACCEPT", "compat 6"},
		{"iptables-nft -A INPUT ! -p udp -m u32 --u32 0=1", "compat !17"},
		{"ip6tables-nft -A INPUT -p tcp -m socket", "compat 6"},
		{"iptables-nft -A INPUT -m u32 --u32 0=1", ""},
		{"ebtables-nft -A INPUT -p ARP --arp-op Request", "compat 1544"},
	}
	for _, c := range cases {
		n := nstest.New(t)
		run(t, n, "sh", "-c", c.command)
		msgs, err := nftables.Capture(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		plan, err := nftables.Plan(msgs)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, m := range plan {
			if line := nftables.Describe(m); strings.HasPrefix(line, "rule ") {
				_, got, _ = strings.Cut(line, "] compat ")
			}
		}
		if want := strings.TrimPrefix(c.want, "compat "); got != want {
			t.Errorf("%s: compat %q, want %q", c.command, got, want)
		}
	}
}
