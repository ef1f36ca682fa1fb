package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/e2e/lab"
)

// A namespace that is altered after the destination has built it arrives as it is when the service is frozen: changed
// where it stands, or, of what can't be changed, built anew, which the user is told.
func TestMigrateAltered(t *testing.T) {
	for _, c := range []struct {
		name, change string
		anew         bool
		look         string // command whose output in the namespace must follow it
	}{
		{
			"in place", `
			ip address add 10.77.0.101/24 dev eth0
			ip route add 10.10.0.0/16 via 10.77.0.254
			ip rule add from 10.77.0.101 table 100 priority 500
			ip neigh add 10.77.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent
			nft add table inet filter
			nft add set inet filter seen '{ type ipv4_addr; elements = { 192.0.2.1, 192.0.2.2 }; }'`, false,
			"ip -4 -o address | tr -s ' '; ip route; ip rule; ip neigh show nud permanent; nft list ruleset",
		},
		{"anew", "ip link set eth0 txqueuelen 77; ip link add e0 type veth peer name e1", true, "ip -o link | grep -o ' e[^:@]*\\|qlen.*' | sort"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.serve()
			load := w.echo("4", 3)
			ls := w.links()
			stop := filepath.Join(w.Dir, "stop")
			cmd := exec.Command(w.faultyBin(), "migrate", "--netns", w.svc.Name, "--to", ls[w.B].address(), "--print-stats")
			cmd.Env = append(lab.Environ(), "NSMIGRATE_FAULT=source/running/built/precopy=wait:"+stop)
			p, said := w.run(w.A, cmd)
			w.check(lab.Eventually(w.limit(), func() error {
				_, err := os.Stat(stop)
				return err
			}))
			w.sh(w.A, "ip netns exec svc sh -ec %s", quote(c.change))
			want := w.inside(w.A, c.look)
			w.check(os.Remove(stop))
			<-p.Done()
			w.Log(said)
			if told := strings.Contains(said.String(), "has to be built anew"); told != c.anew {
				t.Errorf("told that the namespace was built anew: %v, want %v", told, c.anew)
			}
			if got := w.inside(w.B, c.look); got != want {
				t.Errorf("on the source there was\n%s\non the destination is\n%s", want, got)
			}
			w.noneUnfinished()
			w.same(w.A, w.empty[w.A])
			load.progress()
			w.unharmed()
			w.stopAll(load)
		})
	}
}

// inside returns what a command prints in the service's namespace.
func (w *world) inside(h *lab.Host, command string) string {
	w.Helper()
	out, err := h.Output(w.ctx, "ip", "netns", "exec", w.svc.Name, "sh", "-c", command)
	w.check(err)
	return out
}

// quote makes one word of a text for sh.
func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }
