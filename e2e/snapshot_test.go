package e2e

import (
	"testing"

	"github.com/nsmigrate/nsmigrate/e2e/lab"
)

// A snapshot leaves the service alone. Its connections went on without it, so it is restored without them.
func TestSnapshot(t *testing.T) {
	w := newWorld(t)
	w.serve()
	c := w.echo("4", 5)
	w.ok(w.A, "dump", "--netns", "svc", "-R", "-e", w.image(w.A))
	c.progress()
	w.unharmed()

	// The host is lost: no packet ends the connections.
	w.lose(w.A)
	w.carry(w.A, w.B)
	r := w.ok(w.B, "restore", "-i", w.image(w.B))
	w.says(r, exitOK, "closed")
	c.died()
	fresh := w.echo("4", 5, "--first-id", "100")
	w.stopAll(fresh)
}

// lose takes a host's service from the world as a power cut does.
func (w *world) lose(h *lab.Host) {
	w.Helper()
	w.sh(h, "ip link del veth-svc; ip netns pids svc | xargs kill -9; ip netns del svc")
}

// Connections can be left out on purpose.
func TestTCPClose(t *testing.T) {
	w := newWorld(t)
	w.serve()
	c := w.echo("4", 5)
	w.dump(w.A, "--tcp-close")
	w.carry(w.A, w.B)
	w.restore(w.B)
	c.died()
	fresh := w.echo("4", 5, "--first-id", "100")
	w.stopAll(fresh)
}

// One image serves many restores, one after the other.
func TestSnapshotTwice(t *testing.T) {
	w := newWorld(t)
	w.serve()
	w.echo("4", 1)
	w.ok(w.A, "dump", "--netns", "svc", "-R", "-e", w.image(w.A))
	w.lose(w.A)
	for _, h := range []*lab.Host{w.A, w.B} {
		if h == w.B {
			w.copyFile(w.image(w.A), w.image(w.B))
		}
		w.restore(h)
		w.stopAll(w.echo("4", 3))
		w.lose(h)
	}
}
