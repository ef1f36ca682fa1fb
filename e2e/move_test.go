package e2e

import (
	"fmt"
	"testing"

	"github.com/nsmigrate/nsmigrate/e2e/lab"
)

// Connections with constant requests go on where the service goes, back and forth.
func TestEcho(t *testing.T) {
	for _, conns := range []int{1, 100, 1000} {
		for _, family := range []string{"4", "6"} {
			t.Run(fmt.Sprintf("%d connections over IPv%s", conns, family), func(t *testing.T) {
				w := newWorld(t)
				w.serve()
				c := w.echo(family, conns)
				w.moves(rounds, c)
				w.stopAll(c)
			})
		}
	}
}

// Both families at once, from the LAN and from beyond the default route.
func TestRoutes(t *testing.T) {
	w := newWorld(t)
	w.serve()
	loads := []*client{
		w.echo("4", 2),
		w.echo("6", 2, "--first-id", "10"),
		w.echo("4", 2, "--first-id", "20", "--local", lab.ClientFarIPv4),
		w.echo("6", 2, "--first-id", "30", "--local", lab.ClientFarIPv6),
	}
	w.moves(rounds, loads...)
	w.stopAll(loads...)
}

// Private mounts, as in a container, and shared ones, as under systemd (every other test), make no difference.
func TestPrivateMounts(t *testing.T) {
	w := newWorld(t, lab.Options{Mounts: lab.MountsPrivate})
	w.serve()
	c := w.echo("4", 10)
	w.moves(2, c)
	w.stopAll(c)
}

// All queues are full when the service is frozen: the client reads and the service reads slower than the
// other writes.
func TestBulk(t *testing.T) {
	for _, family := range []string{"4", "6"} {
		t.Run("IPv"+family, func(t *testing.T) {
			w := newWorld(t)
			w.serve()
			bulk := func(conns, id string, args ...string) *client {
				return w.load(append([]string{
					"--mode", "bulk", "--size", "65536", "--connect", w.svc.Addr(family, 7000),
					"--conns", conns, "--first-id", id,
				}, args...)...)
			}
			loads := []*client{
				bulk("2", "1", "--read-rate", "2000000", "--server-read-rate", "2000000"),
				bulk("1", "10", "--read-rate", "20000000", "--server-read-rate", "1000000"),
				bulk("1", "20", "--read-rate", "1000000", "--server-read-rate", "20000000"),
			}
			w.moves(rounds, loads...)
			w.stopAll(loads...)
		})
	}
}

// Connections that say nothing meanwhile are found alive afterwards.
func TestIdle(t *testing.T) {
	w := newWorld(t)
	w.serve()
	loads := []*client{
		w.load("--connect", w.svc.Addr("4", 7000), "--period", "0", "--conns", "10"),
		w.load("--connect", w.svc.Addr("6", 7000), "--period", "0", "--conns", "10", "--first-id", "20"),
	}
	w.moves(rounds, loads...)
	w.stopAll(loads...)
}

// A connection whose client has ended its direction keeps the other one, and sees no FIN again.
func TestHalfClosedByClient(t *testing.T) {
	for _, family := range []string{"4", "6"} {
		t.Run("IPv"+family, func(t *testing.T) {
			w := newWorld(t)
			w.serve()
			c := w.load("--mode", "half", "--connect", w.svc.Addr(family, 7000), "--conns", "3")
			w.forgetClosings() // the clients' FINs
			w.moves(rounds, c)
			c.stop()
		})
	}
}

// A connection whose service has ended its direction keeps carrying the client's bytes.
func TestHalfClosedByService(t *testing.T) {
	for _, family := range []string{"4", "6"} {
		t.Run("IPv"+family, func(t *testing.T) {
			w := newWorld(t)
			w.serve()
			c := w.load("--mode", "half-server", "--connect", w.svc.Addr(family, 7000))
			// What has arrived is asked for over further connections, whose FINs are in order.
			w.expected = func(c lab.Closing) bool { return !c.RST }
			w.moves(rounds, c)
			c.stop()
		})
	}
}

// Datagrams may get lost while the service moves; afterwards they are answered again.
func TestUDP(t *testing.T) {
	for _, family := range []string{"4", "6"} {
		t.Run("IPv"+family, func(t *testing.T) {
			w := newWorld(t)
			w.serve("--udp", w.svc.Addr(family, 7000))
			c := w.load("--mode", "udp", "--connect", w.svc.Addr(family, 7000), "--conns", "3")
			w.moves(rounds, c)
			r := c.stop()
			t.Logf("%d datagrams answered, %d lost", r.Exchanges, r.Lost)
		})
	}
}

// The service goes on in the new place: it accepts, from old and new clients.
func TestAcceptsAfterwards(t *testing.T) {
	w := newWorld(t)
	w.serve()
	before := w.echo("4", 5)
	w.move(w.A, w.B)
	after := w.echo("4", 5, "--first-id", "100")
	six := w.echo("6", 5, "--first-id", "200")
	before.progress()
	w.unharmed()
	w.stopAll(before, after, six)
}
