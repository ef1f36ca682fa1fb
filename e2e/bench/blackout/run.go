// Package blackout measures how long the clients of a service wait while it moves from one host to another, with nsmigrate
// and with other tools, side by side. It sees what a user sees: it builds and drives programs, and a client notes when
// answers come. All of it happens inside hosts of the lab.
package blackout

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/e2e/bench/openloop"
	"github.com/nsmigrate/nsmigrate/e2e/lab"
)

// Scene is a workload that all movers are measured with, in turn.
type Scene struct {
	Workload
	Rounds int // at most
	Least  int // also if there is no time
	Turns  []turn
}

// Cell is a mover with a workload.
type Cell struct {
	Scene string   `json:"scene"`
	Mover string   `json:"mover"`
	Load  Workload `json:"workload"`
	Runs  []Run    `json:"runs"`

	Failures []string `json:"failures,omitempty"` // of moves that did not come to an end, and why; after some there are no more
}

// Run is one move.
type Run struct {
	openloop.Seen
	Trace
	RST int `json:"rst"`
}

// bench is what all scenes share.
type bench struct {
	*world
	movers    []mover
	installed map[mover]error
	progress  func(format string, args ...any)
	last      time.Time // when a mover was last at work
}

// settle is how long nothing happens before a move with other tools. A processor's debug registers, which CRIU uses, are set
// up slowly by the first who does within a second, as it is where hosts are moved to and from once in a while. (nsmigrate sets
// them up before the service stands still, so that it is no matter for it who did so last.)
const settle = 1100 * time.Millisecond

// warm is how long a client is watched before a move.
const warm = 200 * time.Millisecond

// row is a mover in a scene.
type row struct {
	Cell
	mover
	every   int
	service *service // while it lives
}

// scene measures all movers, round by round: what the machine does meanwhile happens to all of them. It ends early where it
// would take longer than a limit, which is 0 for none.
func (b *bench) scene(ctx context.Context, sc Scene, limit time.Duration) ([]Cell, error) {
	begin := time.Now()
	var rows []*row
	for _, m := range b.movers {
		for _, t := range sc.Turns {
			if t.mover == m.name() {
				rows = append(rows, &row{mover: m, every: t.every, Cell: Cell{Scene: sc.Name, Mover: t.mover, Load: sc.Workload}})
			}
		}
	}
	if err := prefault(sc.MemoryMB); err != nil {
		return nil, err
	}
	for round := range sc.Rounds {
		if !goesOn(round, sc.Least, time.Since(begin), limit) {
			break
		}
		for _, r := range rows {
			if round%r.every != 0 {
				continue
			}
			b.progress("%s: round %d of %d: %s", sc.Name, round+1, sc.Rounds, r.Mover)
			b.round(ctx, r)
		}
	}
	cells := make([]Cell, len(rows))
	for i, r := range rows {
		b.end(ctx, r)
		cells[i] = r.Cell
	}
	return cells, ctx.Err()
}

// round moves a service once more. One that lost something on the way begins anew, and one that takes up much makes room for
// the next.
func (b *bench) round(ctx context.Context, r *row) {
	const bearable = 3 // failures
	if len(r.Failures) == bearable || ctx.Err() != nil {
		return
	}
	if err := b.install(ctx, r.mover); err != nil {
		r.Failures = []string{err.Error()}
		return
	}
	var run Run
	err := b.begin(ctx, r)
	if err == nil {
		run, err = b.run(ctx, r.mover, r.service)
	}
	switch {
	case ctx.Err() != nil:
		return
	case err != nil:
		r.Failures = append(r.Failures, err.Error())
	default:
		r.Runs = append(r.Runs, run)
	}
	if err != nil || run.Alive < r.Load.Connections || r.Load.heavy() {
		b.end(ctx, r)
	}
}

// install makes a mover ready, once.
func (b *bench) install(ctx context.Context, m mover) error {
	err, ok := b.installed[m]
	if !ok {
		err = m.install(ctx, b.world)
		b.installed[m] = err
	}
	if err != nil {
		return fmt.Errorf("install: %w", err)
	}
	return nil
}

// enough says whether there is memory for a service with so many MB: at the worst itself, and its images on both hosts.
func enough(megabytes int) error {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return err
	}
	available, err := strconv.Atoi(strings.TrimSuffix(lab.StatusField(text, "MemAvailable"), " kB"))
	if err != nil {
		return fmt.Errorf("how much memory is available: %w", err)
	}
	const copies = 3
	if need := megabytes * copies; need > available>>10 {
		return fmt.Errorf("%d MB of memory are needed, %d are available", need, available>>10)
	}
	return nil
}

// prefault touches as much memory as a move of a service with so many MB takes. Where this machine is a virtual one, its host may
// have taken pages away that were not used lately: who comes first would pay for all.
func prefault(megabytes int) error {
	const times = 2 // the service over there, and its images
	if megabytes == 0 || enough(megabytes) != nil {
		return nil
	}
	b, err := unix.Mmap(-1, 0, times*megabytes<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("touch memory: %w", err)
	}
	return unix.Munmap(b)
}

// begin brings up a service and its client, which is left paused, unless they live already.
func (b *bench) begin(ctx context.Context, r *row) error {
	if r.service != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	soon, stop := context.WithTimeout(ctx, 30*time.Second) // what the last one had takes a while to be free
	defer stop()
	if err := lab.Eventually(soon, func() error { return enough(r.Load.MemoryMB) }); err != nil {
		return err
	}
	s := b.newService(r.Load)
	r.service = s
	for _, step := range []func() error{
		func() error { return r.start(ctx, b.world, s) },
		func() error { return b.listening(ctx, s) },
		func() error { return addRoutes(ctx, s.host, s) },
		func() error { return b.connect(ctx, s) },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("start: %w", err)
		}
	}
	_, err := s.client.Order(ctx, openloop.Pause)
	return err
}

// end removes a service and its client. What can't be removed goes with the lab.
func (b *bench) end(ctx context.Context, r *row) {
	if r.service == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
	defer cancel()
	err := errors.Join(
		r.stop(ctx, b.world, r.service), r.service.disconnect(ctx),
		b.remove(ctx, b.Other(r.service.host), r.service.NetNS)) // of a move that did not come to an end
	if err != nil {
		b.progress("%s: %v", r.Mover, err)
	}
	r.service = nil
}

// run moves a service to the other host under its client's eyes.
func (b *bench) run(ctx context.Context, m mover, s *service) (r Run, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if err := b.ownPIDs(ctx); err != nil {
		return r, err
	}
	if _, ours := m.(*nsmigrate); !ours {
		pause(ctx, time.Until(b.last.Add(settle-warm)))
	}
	if _, err := s.client.Order(ctx, openloop.Resume); err != nil {
		return r, err
	}
	// Every connection works, and has met the service where it is.
	if r.Seen, err = s.client.Order(ctx, openloop.Report); err != nil {
		return r, err
	}
	if r.Alive < s.load.Connections {
		return r, fmt.Errorf("%d of %d connections work before the move: %s", r.Alive, s.load.Connections, r.Seen.Error)
	}
	pause(ctx, warm)
	wire, err := b.Client.Watch("eth0")
	if err != nil {
		return r, err
	}
	defer wire.Close()
	if _, err := s.client.Order(ctx, openloop.Reset); err != nil {
		return r, err
	}
	to := b.Other(s.host)
	r.Trace, err = m.move(ctx, b.world, s, to)
	b.last = time.Now()
	if err != nil {
		return r, err
	}
	s.host = to
	s.moves++
	if r.Seen, err = s.client.Order(ctx, openloop.Report); err != nil {
		return r, err
	}
	r.RST = resets(wire, s)
	_, err = s.client.Order(ctx, openloop.Pause)
	return r, err
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// resets counts the RSTs of a service's connections that a wire has seen. If there were more than it can keep, these are fewer
// than there were.
func resets(wire *lab.Wire, s *service) int {
	closings, _ := wire.Closings() // whatever it has
	n := 0
	for _, c := range closings {
		if c.RST && (c.Src.Addr().String() == s.IPv4 || c.Dst.Addr().String() == s.IPv4) {
			n++
		}
	}
	return n
}

// addRoutes gives a service's namespace the routes of its workload.
func addRoutes(ctx context.Context, h *lab.Host, s *service) error {
	if s.load.Routes == 0 {
		return nil
	}
	return h.Script(ctx, fmt.Sprintf(
		`seq 0 %d | awk '{printf "route add 100.%%d.%%d.%%d/32 via %s\n", $1/65536, $1/256%%256, $1%%256}' | ip -n %s -batch -`,
		s.load.Routes-1, lab.GatewayIPv4, s.Name))
}
