package main

import (
	"bufio"
	"encoding/json"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/e2e/peer/control"
)

// newService runs a service in this process and returns its address.
func newService(t *testing.T, args ...string) string {
	t.Helper()
	f, err := parseServe(append([]string{"--quiet", "--listen", "127.0.0.1:0"}, args...))
	if err != nil {
		t.Fatal(err)
	}
	listeners, err := f.listenTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listeners[0].Close() })
	ls, err := newLinks(f)
	if err != nil {
		t.Fatal(err)
	}
	go newServer(f, ls).run(listeners)
	return listeners[0].Addr().String()
}

// orders runs a load through a list of orders and returns the reports, the first one being that of the start.
func orders(t *testing.T, list []string, args ...string) []control.Report {
	t.Helper()
	w, err := startLoad(args)
	if err != nil {
		t.Fatal(err)
	}
	r, out := io.Pipe()
	served := make(chan error, 1)
	go func() {
		served <- control.Serve(w, strings.NewReader(strings.Join(list, "\n")), out)
		out.Close()
	}()
	var reports []control.Report
	for lines := bufio.NewScanner(r); lines.Scan(); {
		var report control.Report
		if err := json.Unmarshal(lines.Bytes(), &report); err != nil {
			t.Fatal(err)
		}
		reports = append(reports, report)
	}
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	return reports
}

func TestModes(t *testing.T) {
	for _, args := range [][]string{
		{"--mode", "echo", "--conns", "20"},
		{"--mode", "echo", "--period", "0"},
		{"--mode", "bulk", "--size", "65536", "--read-rate", "20000000", "--server-read-rate", "20000000"},
		{"--mode", "half"},
		{"--mode", "half-server"},
	} {
		t.Run(strings.Join(args[1:], " "), func(t *testing.T) {
			addr := newService(t)
			reports := orders(t, []string{control.Progress, control.Status, control.Stop}, append(args, "--connect", addr)...)
			for i, r := range reports {
				if err := r.Err(); err != nil {
					t.Errorf("report %d: %v", i, err)
				}
			}
			if reports[1].Exchanges < reports[0].Exchanges+uint64(2*reports[0].Connections) {
				t.Errorf("no progress from %+v to %+v", reports[0], reports[1])
			}
		})
	}
}

// A server that alters, loses or resets a connection's bytes is found out.
func TestFaults(t *testing.T) {
	faults := map[string]struct {
		serve func(c *net.TCPConn, answer []byte)
		want  func(r control.Report) bool
	}{
		"changed": {
			func(c *net.TCPConn, b []byte) { b[5] ^= 1; c.Write(b) },
			func(r control.Report) bool { return r.Mismatches == 1 },
		},
		"lost": {
			func(c *net.TCPConn, b []byte) { c.Write(append(b[:5], b[6:]...)); c.Write([]byte{0}) },
			func(r control.Report) bool { return r.Mismatches == 1 },
		},
		"ended": {
			func(c *net.TCPConn, _ []byte) { c.Close() },
			func(r control.Report) bool { return r.EOFs == 1 },
		},
		"reset": {
			func(c *net.TCPConn, _ []byte) { c.SetLinger(0); c.Close() },
			func(r control.Report) bool { return r.Resets == 1 },
		},
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				nc, err := l.Accept()
				if err != nil {
					return
				}
				c := nc.(*net.TCPConn)
				h, err := readHello(c)
				if err != nil {
					return
				}
				request := make([]byte, h.chunk)
				io.ReadFull(c, request)
				answer := make([]byte, h.chunk)
				toClient(h.id).Fill(answer, 0)
				fault.serve(c, answer)
			}()
			r := orders(t, []string{control.Stop}, "--mode", "echo", "--connect", l.Addr().String())[0]
			if !fault.want(r) || r.Err() == nil {
				t.Errorf("report: %+v", r)
			}
		})
	}
}

// The totals at the end give away bytes that never arrived.
func TestTotals(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		nc, err := l.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		h, err := readHello(nc)
		if err != nil {
			return
		}
		c := &served{conn: nc}
		for off := range uint64(2) {
			io.ReadFull(nc, make([]byte, h.chunk))
			c.send(h, off*uint64(h.chunk))
		}
		io.Copy(io.Discard, nc)
		nc.Write(trailer(uint64(h.chunk), 2*uint64(h.chunk)))
	}()
	reports := orders(t, []string{control.Stop}, "--period", "0", "--connect", l.Addr().String())
	if err := reports[1].Err(); reports[0].Err() != nil || err == nil || !strings.Contains(err.Error(), "totals") {
		t.Errorf("reports: %+v", reports)
	}
}

// A process exchanges over its own links when it is asked to.
func TestInner(t *testing.T) {
	addr := newService(t, "--unix", t.TempDir()+"/link.sock")
	inner, err := askFor[control.Inner](addr, "", hello{mode: modeInner, chunk: 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"pair", "pipe", "unix", "timerfd"} {
		if inner.Counts[name] < 2 {
			t.Errorf("%s: %d exchanges", name, inner.Counts[name])
		}
	}
	if len(inner.Errors) > 0 {
		t.Error(inner.Errors)
	}
}
