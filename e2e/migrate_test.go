package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/e2e/lab"
)

// links are the ways between the two hosts of a world.
type links map[*lab.Host]*link

func (w *world) links() links { return links{w.A: w.linkTo(w.A), w.B: w.linkTo(w.B)} }

// migrate moves the service from a host to the other one, live, and demands that nothing of it stays.
func (w *world) migrate(ls links, from, to *lab.Host, args ...string) lab.Result {
	w.Helper()
	r := w.ok(from, append([]string{"migrate", "--netns", w.svc.Name, "--to", ls[to].address()}, args...)...)
	w.same(from, w.empty[from])
	w.noneUnfinished()
	return r
}

// noneUnfinished demands that no migration is unfinished on either host.
func (w *world) noneUnfinished() {
	w.Helper()
	for _, h := range w.Hosts() {
		w.check(lab.Eventually(w.limit(), func() error {
			r := w.ok(h, "recover", "--list")
			if !strings.Contains(r.Stdout, "nothing is unfinished") {
				return fmt.Errorf("%s: %v", h.Name, r)
			}
			return nil
		}))
	}
}

// migrations takes the service back and forth, and demands after each that the loads go on unharmed.
func (w *world) migrations(n int, loads ...*client) {
	w.Helper()
	w.migrationsOver(w.links(), n, loads...)
}

func (w *world) migrationsOver(ls links, n int, loads ...*client) {
	w.Helper()
	from, to := w.A, w.B
	for round := range n {
		r := w.migrate(ls, from, to, "--print-stats")
		w.Log(r)
		for _, c := range loads {
			c.progress()
		}
		w.unharmed()
		w.ordinary(from)
		w.ordinary(to)
		if w.Failed() {
			w.Fatalf("in round %d", round+1)
		}
		from, to = to, from
	}
}

// ordinary demands that nobody on a host goes before others any more, neither the service nor who moved it.
func (w *world) ordinary(h *lab.Host) {
	w.Helper()
	for _, p := range h.Processes() {
		threads, err := filepath.Glob(h.Path(fmt.Sprintf("/proc/%d/task/*/stat", p.PID)))
		w.check(err)
		for _, path := range threads {
			stat, err := os.ReadFile(path)
			if err != nil {
				continue // it has ended
			}
			// proc_pid_stat(5): behind the name, which is in parentheses, the third field is the first.
			const policy = 41 - 3
			fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
			if len(fields) <= policy || fields[policy] != "0" {
				w.Errorf("a thread of %s is no ordinary one: %s", p.Command, stat)
			}
		}
	}
}

func TestMigrate(t *testing.T) {
	for _, family := range []string{"4", "6"} {
		for _, conns := range []int{1, 100} {
			t.Run(fmt.Sprintf("IPv%s, %d connections", family, conns), func(t *testing.T) {
				w := newWorld(t)
				w.serve()
				c := w.echo(family, conns)
				w.migrations(rounds, c)
				w.stopAll(c)
			})
		}
	}
}

// Over ssh nothing is needed on the other side but sshd and the program.
func TestMigrateBySSH(t *testing.T) {
	for _, push := range []bool{false, true} {
		t.Run(fmt.Sprintf("push binary %v", push), func(t *testing.T) {
			w := newWorld(t)
			options, err := w.B.SSHD(w.ctx)
			w.check(err)
			w.empty[w.B] = w.snapshot(w.B)
			w.serve()
			c := w.echo("4", 3)
			args := []string{"migrate", "--netns", "svc", "--to", "ssh://root@" + w.B.IPv4}
			for _, o := range options {
				args = append(args, "--ssh-option", o)
			}
			if push {
				args = append(args, "--push-binary")
			} else {
				args = append(args, "--remote-path", w.nsmigrateBin())
			}
			r := w.ok(w.A, append(args, "--dry-run")...)
			w.says(r, exitOK, "can be migrated")
			w.ok(w.A, args...)
			c.progress()
			w.unharmed()
			w.noneUnfinished()
			w.stopAll(c)
		})
	}
}

// What stands in the way on either host is told at once, and nothing is touched.
func TestMigrateRefused(t *testing.T) {
	w := newWorld(t)
	w.serve("--io-uring")
	c := w.echo("4", 1)
	w.sh(w.B, "ip netns add svc; ip address add %s/24 dev br0", w.svc.IPv4)
	before := map[*lab.Host]lab.Snapshot{w.A: w.snapshot(w.A), w.B: w.snapshot(w.B)}
	w.fails(w.A, exitRefused, []string{
		"io_uring anon_inode", "\non the destination: netns \"svc\": the name is in use", "\non the destination: address " + w.svc.IPv4,
		"/nonexistent: it does not exist",
	}, "migrate", "--netns", "svc", "--to", w.linkTo(w.B).address(), "--ship", "/nonexistent")
	for h, was := range before {
		w.same(h, was)
	}
	c.progress()
	w.sh(w.B, "ip netns delete svc; ip address delete %s/24 dev br0", w.svc.IPv4)
	w.unharmed()
	w.stopAll(c)
}

// However often a service moves, it does not grow: no descriptor, no mapping, no memory, no tracked connection of ours
// stays with it. NSMIGRATE_E2E_SOAK is how many times (make soak).
func TestMigrateSoak(t *testing.T) {
	w := newWorld(t)
	w.serve()
	w.servicePID = w.pid(w.A, "peer", "serve")
	loads := []*client{w.echo("4", 10), w.echo("6", 10)}
	n := soak
	ls := w.links()
	half := n / 4 * 2                    // there and back
	w.migrationsOver(ls, half, loads...) // the service itself warms up: heap that grows, pages that are touched
	before := w.sizes(w.A)
	w.migrationsOver(ls, half, loads...)
	after := w.sizes(w.A)
	t.Logf("after %d migrations %+v, after %d %+v", half, before, 2*half, after)
	if after.files != before.files || after.conntrack > before.conntrack {
		t.Error("it has grown")
	}
	if after.mappings > before.mappings+8 || after.resident > 2*before.resident { // Go's runtime maps and frees at will
		t.Error("its memory has grown")
	}
	w.stopAll(loads...)
}

// sizes is what a service takes up on a host.
type sizes struct{ files, mappings, resident, conntrack int }

func (w *world) sizes(h *lab.Host) sizes {
	w.Helper()
	var s sizes
	out, err := h.Output(w.ctx, "sh", "-c", fmt.Sprintf(
		`echo $(ls /proc/%[1]d/fd | wc -l) $(wc -l </proc/%[1]d/maps) $(awk '/VmRSS/ {print $2}' /proc/%[1]d/status) $(ip netns exec svc cat /proc/sys/net/netfilter/nf_conntrack_count)`,
		w.servicePID))
	w.check(err)
	_, err = fmt.Sscan(out, &s.files, &s.mappings, &s.resident, &s.conntrack)
	w.check(err)
	return s
}
