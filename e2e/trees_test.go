package e2e

import (
	"fmt"
	"path/filepath"
	"testing"
)

// However a service was started, it comes with its children, its links inside the tree and its ids.
func TestStartedBy(t *testing.T) {
	const enter = "nsenter --net=/run/netns/svc "
	for name, prefix := range map[string]string{
		"ip netns exec":              inSvc,
		"nsenter":                    enter,
		"unshare mounts":             enter + "unshare --mount ",
		"unshare hostname":           enter + "unshare --uts ",
		"own pid namespace":          "unshare --pid --fork --mount-proc " + enter + "setsid ",
		"unshare waits in namespace": inSvc + "unshare --pid --fork --mount-proc setsid ",
		"a shell and its child":      inSvc + `sh -c '"$@"; exit' sh `,
		"a chain of shells":          inSvc + `sh -c '"$@"; exit' sh sh -c '"$@"; exit' sh `,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.daemon(w.A, prefix+"%s serve --quiet --children 2 --unix %s", w.peerBin(), filepath.Join(w.Dir, "link.sock"))
			w.listening("7000")
			c := w.echo("4", 10)
			before := w.ask(w.svc.Addr("4", 7000))
			w.forgetClosings() // of the question
			w.moves(rounds, c)
			seen := map[int]bool{}
			for range 10 { // either child may answer
				after := w.ask(w.svc.Addr("4", 7000))
				seen[after.PID] = true
				if after.PPID != before.PPID || after.SID != before.SID {
					t.Errorf("parent and session were %d and %d, are %d and %d", before.PPID, before.SID, after.PPID, after.SID)
				}
			}
			if !seen[before.PID] && len(seen) > 1 {
				t.Errorf("child %d has become one of %v", before.PID, seen)
			}
			w.stopAll(c)
		})
	}
}

// A process whose session's leader is outside of its pid namespace, which is how unshare starts it, gets a session
// of its own and goes.
func TestSessionOutside(t *testing.T) {
	w := newWorld(t)
	w.daemon(w.A, "unshare --pid --fork --mount-proc nsenter --net=/run/netns/svc %s serve --quiet", w.peerBin())
	w.listening("7000")
	c := w.echo("4", 3)
	w.moves(rounds, c)
	w.stopAll(c)
}

// A namespace often holds two daemons. They are dumped under one lock: a connection between them lives on.
func TestTwoTrees(t *testing.T) {
	w := newWorld(t)
	w.serve()
	w.serve("--listen", ":7001", "--inner-peer", "127.0.0.1:7000")
	w.serve("--listen", ":7002", "--inner-peer", "[::1]:7001")
	loads := []*client{
		w.echo("4", 5),
		w.load("--connect", w.svc.Addr("6", 7001), "--conns", "5", "--first-id", "100"),
	}
	before := w.ask(w.svc.Addr("4", 7001))
	w.forgetClosings() // of the question
	w.moves(rounds, loads...)
	for _, port := range []int{7001, 7002} {
		after := w.ask(w.svc.Addr("4", port))
		if after.Counts["peer"] <= before.Counts["peer"] {
			t.Errorf("port %d: the connection between the trees made %d exchanges before and %d after", port, before.Counts["peer"], after.Counts["peer"])
		}
	}
	w.stopAll(loads...)
}

// One tree and its namespace, by process id; the namespace has no name on the way there.
func TestByPID(t *testing.T) {
	w := newWorld(t)
	w.serve()
	c := w.echo("4", 5)
	w.ok(w.A, "dump", "--tree", fmt.Sprint(w.pid(w.A, "peer", "serve")), "-e", w.image(w.A))
	w.gone(w.A)
	w.carry(w.A, w.B)
	w.restore(w.B)
	c.progress()
	w.unharmed()
	w.stopAll(c)
}

// An image may be a directory, and the namespace may get another name.
func TestDirectoryAndName(t *testing.T) {
	w := newWorld(t)
	w.serve()
	c := w.echo("4", 5)
	dirA, dirB := filepath.Join(w.A.Dir, "image"), filepath.Join(w.B.Dir, "image")
	w.ok(w.A, "dump", "--netns", "svc", "-D", dirA)
	w.sh(w.Client, "cp -r %s %s && rm -r %s", dirA, dirB, dirA)
	w.same(w.A, w.empty[w.A])
	w.ok(w.B, "restore", "-D", dirB, "--netns", "other", "--pidfile", "/run/other.pid")
	c.progress()
	w.unharmed()
	pids, err := w.B.Output(w.ctx, "ip", "netns", "pids", "other")
	w.check(err)
	pidfile, err := w.B.Output(w.ctx, "cat", "/run/other.pid")
	w.check(err)
	if pids != pidfile {
		t.Errorf("processes in the namespace %q, in the pid file %q", pids, pidfile)
	}
	w.sh(w.B, "rm /run/other.pid")
	w.stopAll(c)
}

// A process id that is taken on the destination is no obstacle: the tree gets a pid namespace of its own,
// from which it can be moved again.
func TestTakenID(t *testing.T) {
	w := newWorld(t)
	w.serve()
	c := w.echo("4", 5)
	pid := w.pid(w.A, "peer", "serve")
	w.dump(w.A)
	w.carry(w.A, w.B)
	w.daemon(w.B, "sh -c 'echo %d > /proc/sys/kernel/ns_last_pid; sleep 600 & wait'", pid-1)
	w.pid(w.B, "sleep", "600")
	other := w.snapshot(w.B)
	delete(other, "file "+w.image(w.B))
	w.restore(w.B)
	c.progress()
	w.ok(w.B, "dump", "--netns", "svc", "-e", filepath.Join(w.B.Dir, "back.nsm"))
	w.sh(w.Client, "mv %s %s; rm %s", filepath.Join(w.B.Dir, "back.nsm"), w.image(w.A), w.image(w.B))
	w.same(w.B, other)
	w.restore(w.A)
	c.progress()
	w.unharmed()
	w.stopAll(c)
	w.sh(w.B, "kill $(ps -C sleep -o pid=)")
	w.same(w.B, w.empty[w.B])
}
