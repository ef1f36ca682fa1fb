package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/nsmigrate/nsmigrate/e2e/lab"
	"github.com/nsmigrate/nsmigrate/e2e/peer/control"
)

// What clients send while the service stands still reaches the live copy, wherever that is: nobody sends anything again,
// and every datagram gets one answer.
func TestHeldPackets(t *testing.T) {
	const wait = "source/running/built/keep=wait:"
	for _, c := range []struct {
		name, fault string
	}{
		{"moved", ""},
		{"stayed", ",source/frozen/prepared/enter-released=error"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			loads := w.idle()
			stop := filepath.Join(w.Dir, "stop")
			cmd := exec.Command(w.faultyBin(), "migrate", "--format", "json", "--netns", w.svc.Name, "--to", w.linkTo(w.B).address())
			cmd.Env = append(lab.Environ(), "NSMIGRATE_FAULT="+wait+stop+c.fault)
			p, said := w.run(w.A, cmd)
			w.check(lab.Eventually(w.limit(), func() error {
				select {
				case <-p.Done():
					t.Fatal(said)
				default:
				}
				_, err := os.Stat(stop)
				return err
			}))
			progress := w.prompt(loads)
			w.check(os.Remove(stop))
			<-p.Done()
			at := w.B
			if c.fault != "" {
				at = w.A
			} else {
				var result struct {
					Held struct{ Packets, Dropped int }
				}
				w.check(json.Unmarshal([]byte(said.String()), &result))
				if result.Held.Packets < len(loads) || result.Held.Dropped > 0 {
					t.Errorf("held: %+v", result.Held)
				}
			}
			w.answered(progress)
			w.unharmed()
			w.nothingAgain(at, loads)
		})
	}
}

// What clients send while a snapshot is taken reaches the service that goes on: nobody sends anything again.
func TestHeldInSnapshot(t *testing.T) {
	w := newWorld(t)
	loads := w.idle()
	w.servicePID = w.pid(w.A, "peer", "serve")
	given, limit := 0, w.limit()
	for limit.Err() == nil { // until a dump is met while the service stands still
		p, said := w.run(w.A, exec.Command(w.nsmigrateBin(), "dump", "--format", "json", "--netns", w.svc.Name, "-R", "-e", w.image(w.A)))
		r := &running{w: w, host: w.A, process: p}
		met := r.await(w.A, dumpMoments[2])
		if met {
			r.signal(syscall.SIGSTOP)
		}
		progress := w.prompt(loads)
		if met {
			r.signal(syscall.SIGCONT)
		}
		<-p.Done()
		w.answered(progress)
		var result struct {
			Held struct{ Given, Dropped int }
		}
		w.check(json.Unmarshal([]byte(said.String()), &result))
		if result.Held.Dropped > 0 {
			t.Errorf("held: %+v", result.Held)
		}
		w.check(os.Remove(w.image(w.A)))
		if given = result.Held.Given; given >= len(loads) {
			break
		}
	}
	if given == 0 {
		t.Error("no packet met a snapshot")
	}
	w.unharmed()
	w.nothingAgain(w.A, loads)
}

// idle starts the service, and clients that send when they are asked to. No timer makes them send anything again.
func (w *world) idle() (loads []*client) {
	w.Helper()
	w.patient()
	w.serve("--udp", ":7000")
	for _, family := range []string{"4", "6"} {
		for _, mode := range []string{"echo", "udp"} {
			loads = append(loads, w.load("--connect", w.svc.Addr(family, 7000), "--mode", mode, "--conns", "1", "--period", "0"))
		}
	}
	return loads
}

// prompt has clients send something, and returns when they have. Each answer is for answered.
func (w *world) prompt(loads []*client) <-chan error {
	w.Helper()
	before := w.sent()
	progress := make(chan error, len(loads))
	go func() {
		defer close(progress)
		var wait sync.WaitGroup
		for _, l := range loads {
			wait.Go(func() {
				r, err := l.Order(w.ctx, control.Progress)
				progress <- errors.Join(err, r.Err())
			})
		}
		wait.Wait()
	}()
	w.check(lab.Eventually(w.limit(), func() error {
		if n := w.sent() - before; n < len(loads) {
			return fmt.Errorf("%d of %d packets were sent", n, len(loads))
		}
		return nil
	}))
	return progress
}

// answered waits until everybody has their answers.
func (w *world) answered(progress <-chan error) {
	w.Helper()
	limit := w.limit().Done()
	for {
		select {
		case err, ok := <-progress:
			if !ok {
				return
			}
			w.check(err)
		case <-limit:
			w.Fatal("somebody waits for an answer")
		}
	}
}

// nothingAgain ends the clients, and demands that every datagram had one answer and that no segment was sent twice.
func (w *world) nothingAgain(at *lab.Host, loads []*client) {
	w.Helper()
	for _, l := range loads {
		if r := l.stop(); r.Lost != 0 {
			w.Errorf("%d datagrams got no answer, or more than one", int64(r.Lost))
		}
	}
	for where, out := range map[string]string{
		"the clients'":  w.output(w.Client, "nstat", "-asz", "TcpRetransSegs"),
		"the service's": w.output(at, "ip", "netns", "exec", w.svc.Name, "nstat", "-asz", "TcpRetransSegs"),
	} {
		if !strings.Contains(strings.Join(strings.Fields(out), " "), "TcpRetransSegs 0") {
			w.Errorf("%s side sent segments again: %s", where, out)
		}
	}
}

// patient keeps the timers of connections between the client and the service from going off in a test, on either side.
func (w *world) patient() {
	w.Helper()
	w.sh(w.Client, `sysctl -qw net.ipv4.tcp_early_retrans=0
		ip route change 10.77.0.0/24 dev eth0 proto kernel scope link src %s rto_min 60s
		ip -6 route change fd77::/64 dev eth0 proto kernel metric 256 rto_min 60s`, lab.ClientIPv4)
	w.sh(w.A, `ip netns exec svc sh -ec 'sysctl -qw net.ipv4.tcp_early_retrans=0
		ip route change 10.77.0.0/24 dev eth0 proto kernel scope link src %s rto_min 60s
		ip -6 route change fd77::/64 dev eth0 proto kernel metric 256 rto_min 60s'`, w.svc.IPv4)
}

// sent counts what the client has sent so far: segments with new data, and datagrams.
func (w *world) sent() (n int) {
	w.Helper()
	for line := range strings.Lines(w.output(w.Client, "nstat", "-asz", "TcpExtTCPOrigDataSent", "UdpOutDatagrams", "Udp6OutDatagrams")) {
		if f := strings.Fields(line); len(f) == 3 {
			count, err := strconv.Atoi(f[1])
			w.check(err)
			n += count
		}
	}
	return n
}
