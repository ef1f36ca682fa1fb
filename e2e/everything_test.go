package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/nsmigrate/nsmigrate/e2e/everything"
)

// TestEverything moves a service with a namespace that has all that this kernel knows. nsmigrate finds no difference
// between what it was and what it is now, and neither do the system's tools.
func TestEverything(t *testing.T) {
	w := newWorld(t)
	w.sh(w.A, "ip netns exec svc sh -eu <<'script'\n%s\nscript", everything.Script)
	w.serve()
	c := w.echo("4", 3)
	before := w.settled(w.A)
	was := filepath.Join(w.B.Dir, "was.nsm")
	w.ok(w.A, "dump", "--netns", "svc", "--no-processes", "-e", w.image(w.A))
	w.copyFile(w.image(w.A), was)
	w.check(os.Remove(w.image(w.A)))
	w.move(w.A, w.B)
	c.progress()
	w.unharmed()
	if r := w.nsmigrate(w.B, "diff", was, "svc"); r.Code != exitOK || r.Stdout != "" {
		t.Errorf("before and after the move: %v", r)
	}
	for _, diff := range differences(before, w.network(w.B)) {
		t.Error(diff)
	}
	w.says(w.nsmigrate(w.B, "diff", "empty", was), 1, "+ link 1001: va ", "+ tc qdisc htb 1:", "+ ipset ", "+ genl mptcp ", "+ xfrm policy ")
	sections := []string{
		"links", "addresses", "nexthops", "routes", "rules", "neighbours", "fdb", "mdb", "addrlabels", "tc", "netfilter", "ipset", "nft", "conntrack", "xfrm", "genl",
		"sysctls that were altered", "legacy iptables", "uplinks",
	}
	for i, title := range sections {
		sections[i] = "\n" + title + "\n"
	}
	w.says(w.nsmigrate(w.B, "inspect", "-i", was), exitOK, sections...)
	w.says(w.nsmigrate(w.B, "inspect", "--netns", "svc"), exitOK, sections...)
	w.check(os.Remove(was))
	w.stopAll(c)
}
