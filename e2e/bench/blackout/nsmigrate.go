package blackout

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/nsmigrate/nsmigrate/e2e/lab"
)

// nsmigrate is the program itself, over one of its ways to the other host.
type nsmigrate struct {
	via string // tls, ssh or unix
	to  map[*lab.Host][]string
}

func (m *nsmigrate) name() string { return "nsmigrate " + m.via }

const tlsPort = 8747

func (m *nsmigrate) install(ctx context.Context, w *world) error {
	m.to = map[*lab.Host][]string{}
	if m.via == "ssh" {
		for _, h := range w.Hosts() {
			options, err := h.SSHD(ctx)
			if err != nil {
				return err
			}
			m.to[h] = []string{"--to", "ssh://root@" + h.IPv4, "--remote-path", w.nsmigrate}
			for _, o := range options {
				m.to[h] = append(m.to[h], "--ssh-option", o)
			}
		}
		return nil
	}
	certificates := map[*lab.Host][]string{}
	if m.via == "tls" {
		ca, err := newAuthority(w.Dir)
		if err != nil {
			return err
		}
		for _, h := range w.Hosts() {
			if certificates[h], err = ca.issue(h.Name, h.IPv4); err != nil {
				return err
			}
		}
	}
	for _, h := range w.Hosts() {
		listen, to := fmt.Sprintf("%s:%d", h.IPv4, tlsPort), fmt.Sprintf("tls://%s:%d", h.IPv4, tlsPort)
		if m.via == "unix" {
			listen = "unix:" + filepath.Join(w.Dir, h.Name+".sock")
			to = listen
		}
		args := append([]string{"serve", "--listen", listen, "--allow", "*"}, certificates[h]...)
		if err := serve(ctx, w, h, args); err != nil {
			return err
		}
		m.to[h] = append([]string{"--to", to}, certificates[w.Other(h)]...)
	}
	return nil
}

// serve runs the daemon on a host until the lab ends, and returns when it listens.
func serve(ctx context.Context, w *world, h *lab.Host, args []string) error {
	log, err := os.CreateTemp(w.Dir, "serve-*.log")
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(w.nsmigrate, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if _, err := h.Start(cmd); err != nil {
		return err
	}
	return lab.Eventually(ctx, func() error {
		text, err := os.ReadFile(log.Name())
		if err == nil && !strings.Contains(string(text), "msg=listening") {
			err = fmt.Errorf("%s: nsmigrate serve: %s", h.Name, text)
		}
		return err
	})
}

func (m *nsmigrate) start(ctx context.Context, w *world, s *service) error {
	if err := s.host.AddNetNS(ctx, s.NetNS); err != nil {
		return err
	}
	return w.spawn(ctx, s)
}

func (m *nsmigrate) move(ctx context.Context, w *world, s *service, to *lab.Host) (Trace, error) {
	d, err := m.depart(ctx, w, s, to)
	if err != nil {
		return Trace{}, err
	}
	return d.arrive()
}

// departure is a move that has begun.
type departure struct {
	live   time.Time // when the source heard that the service lives on the other host; zero if it never did
	done   chan struct{}
	output lab.Result
	err    error
}

// depart begins a move, and returns when the service lives on the other host, or never will.
func (m *nsmigrate) depart(ctx context.Context, w *world, s *service, to *lab.Host) (*departure, error) {
	r, events, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	args := append([]string{"migrate", "--format", "json", "--progress-fd", "3", "--netns", s.Name}, m.to[to]...)
	cmd := exec.CommandContext(ctx, w.nsmigrate, args...)
	cmd.ExtraFiles = []*os.File{events}
	d := &departure{done: make(chan struct{})}
	from := s.host
	go func() {
		defer close(d.done)
		d.output, d.err = from.RunCmd(ctx, cmd)
		if d.err == nil && d.output.Code != 0 {
			d.err = fmt.Errorf("%s: %v", from.Name, d.output)
		}
		events.Close()
	}()
	d.live = awaitLive(r)
	go func() { // the program may have more to say until it ends
		<-d.done
		r.Close()
	}()
	return d, nil
}

// awaitLive reads what a migration tells of its progress until the service lives on the other host, and returns when that
// was. It is the zero time if that isn't told.
func awaitLive(events io.Reader) time.Time {
	for lines := bufio.NewScanner(events); lines.Scan(); {
		var e struct {
			Phase string
			Time  time.Time
		}
		if json.Unmarshal(lines.Bytes(), &e) == nil && e.Phase == "end" {
			return e.Time
		}
	}
	return time.Time{}
}

// arrive waits until all of a move is done.
func (d *departure) arrive() (Trace, error) {
	<-d.done
	if d.err != nil {
		return Trace{}, d.err
	}
	return parseReport([]byte(d.output.Stdout))
}

func (m *nsmigrate) stop(ctx context.Context, w *world, s *service) error {
	return w.remove(ctx, s.host, s.NetNS)
}

// report is what the program prints of a migration, as far as it is of interest here. Times are nanoseconds, CRIU's
// microseconds.
type report struct {
	Blackout    time.Duration
	Phases      []reportPhase
	DumpPhases  []reportPhase `json:"dump_phases"`
	Destination struct {
		Phases []reportPhase
		CRIU   []struct {
			Restore int64 `json:"restore_time"`
		} `json:"criu_statistics"`
	}
	CRIU []struct {
		Frozen  int64 `json:"frozen_time"`
		MemDump int64 `json:"memdump_time"`
	} `json:"criu_statistics"`
	Stream struct {
		WireSent int64 `json:"wire_sent"`
	}
}

type reportPhase struct {
	Name            string
	Start, Duration time.Duration
	Blackout        bool
}

// parseReport takes from the program's report what a table wants.
func parseReport(text []byte) (Trace, error) {
	var r report
	if err := json.Unmarshal(text, &r); err != nil {
		return Trace{}, fmt.Errorf("the report of a migration: %w", err)
	}
	t := Trace{Bytes: r.Stream.WireSent}
	for _, p := range r.Phases {
		if p.Blackout {
			t.Phases = append(t.Phases, Phase{p.Name, p.Duration})
		}
	}
	for _, p := range append(r.DumpPhases, r.Destination.Phases...) {
		switch p.Name {
		case "freeze", "criu", "restore trees", "finish trees": // criu's own part of each host's
			t.CRIU.Work += p.Duration
		}
	}
	for _, c := range r.CRIU {
		t.CRIU.Frozen += time.Duration(c.Frozen) * time.Microsecond
		t.CRIU.MemDump += time.Duration(c.MemDump) * time.Microsecond
	}
	for _, p := range r.Destination.Phases {
		switch p.Name {
		case "restore trees":
			t.CRIU.Restore = p.Duration
			fallthrough
		case "socket options", "finish trees", "go live":
			t.There = append(t.There, Phase{p.Name, p.Duration})
		}
	}
	if len(r.Destination.CRIU) > 0 { // more exact than what was waited for
		t.CRIU.Restore = 0
	}
	for _, c := range r.Destination.CRIU {
		t.CRIU.Restore += time.Duration(c.Restore) * time.Microsecond
	}
	return t, nil
}
