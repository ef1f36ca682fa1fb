package blackout

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nsmigrate/nsmigrate/e2e/bench/openloop"
	"github.com/nsmigrate/nsmigrate/e2e/lab"
)

// tailName is what a pattern of scenes finds it by.
const tailName = "tail"

// Tail is what clients see of very many moves while they never stop sending. Several services take turns: one moves while
// what the last ones left behind is cleared away. All times are milliseconds.
type Tail struct {
	Services    int        `json:"services"`
	Connections int        `json:"connections"` // of each
	Rate        int        `json:"rate"`        // messages a second of each
	Moves       []TailMove `json:"moves"`
	RST         int        `json:"rst"`
	Failures    []string   `json:"failures,omitempty"` // moves that did not come to an end, and why
}

// TailMove is one of them.
type TailMove struct {
	Blackout float64   `json:"blackout"`        // that the service stood still, by its own account
	Gaps     []float64 `json:"gaps"`            // longest without an answer on each connection, around the move
	First    []float64 `json:"first,omitempty"` // from when it began to be live until the answer that ended the gap
	Between  float64   `json:"between"`         // longest gap of all connections between the last move and this one
	Late     float64   `json:"late"`            // by how much the client itself was late at most
	Lost     int       `json:"lost,omitempty"`  // connections
	Phases   []Phase   `json:"phases,omitempty"`
	There    []Phase   `json:"there,omitempty"`
}

// patience is how much longer than the service stands still its clients are to wait at most, in milliseconds.
const patience = 20

const (
	tailLanes       = 4
	tailConnections = 10
	tailRate        = 1000 // of all connections but the first, which has a thousand too
	tailLeast       = 20   // moves, also if there is no time
	tailEach        = 250 * time.Millisecond
)

// tail moves services so many times, as far as there is time for that.
func (b *bench) tail(ctx context.Context, moves int, limit time.Duration) Tail {
	t := tail{
		bench: b, moves: moves, limit: limit, begin: time.Now(),
		Tail: Tail{Services: tailLanes, Connections: tailConnections, Rate: tailRate + 1000},
	}
	if err := t.run(ctx); err != nil {
		t.Failures = append(t.Failures, err.Error())
	}
	return t.Tail
}

type tail struct {
	*bench
	begin time.Time
	limit time.Duration
	moves int

	mu sync.Mutex // held by whose turn it is, and guards what follows
	Tail
	begun int // moves
	wire  *lab.Wire
}

func (t *tail) run(ctx context.Context) error {
	found, err := t.reference(ctx)
	if err != nil {
		return err
	}
	if t.wire, err = t.Client.Watch("eth0"); err != nil {
		return err
	}
	defer t.wire.Close()
	var lanes sync.WaitGroup
	for range t.Services {
		lanes.Go(func() { t.lane(ctx, found.(*nsmigrate)) })
	}
	lanes.Wait()
	return ctx.Err()
}

// lane moves one service, until there are enough moves.
func (t *tail) lane(ctx context.Context, m *nsmigrate) {
	r := &row{mover: m, Cell: Cell{Load: Workload{Name: tailName, Connections: t.Connections, Rate: tailRate}}}
	for t.next(ctx, m, r) {
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.finish(ctx, r)
}

// finish ends a service, whose connections are reset then.
func (t *tail) finish(ctx context.Context, r *row) {
	if r.service != nil {
		t.RST += resets(t.wire, r.service)
	}
	t.end(ctx, r)
}

// next moves the service of a lane once more. It has its turn until the service lives on the other host and has answered there.
func (t *tail) next(ctx context.Context, m *nsmigrate, r *row) bool {
	const bearable = 3 // failures
	t.mu.Lock()
	if ctx.Err() != nil || t.begun == t.moves || len(t.Failures) == bearable ||
		!goesOn(t.begun, tailLeast, time.Since(t.begin), t.limit) {
		t.mu.Unlock()
		return false
	}
	t.begun++
	t.progress("%s: %d of %d", tailName, t.begun, t.moves)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	d, seen, move, err := t.leave(ctx, m, r)
	t.mu.Unlock()
	var trace Trace
	if d != nil {
		var failed error
		trace, failed = d.arrive()
		err = errors.Join(err, failed)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		t.Failures = append(t.Failures, err.Error())
		t.finish(ctx, r)
		return true
	}
	move.tell(seen, trace, d.live)
	t.Moves = append(t.Moves, move)
	if move.Lost > 0 {
		t.finish(ctx, r)
	}
	return true
}

// leave has the service go, and returns when it has answered from where it is now, or never will.
func (t *tail) leave(ctx context.Context, m *nsmigrate, r *row) (d *departure, seen openloop.Seen, move TailMove, err error) {
	if r.service == nil {
		if err = t.bench.begin(ctx, r); err != nil {
			return nil, seen, move, err
		}
		if _, err = r.service.client.Order(ctx, openloop.Resume); err != nil {
			return nil, seen, move, err
		}
	}
	s := r.service
	if err = t.ownPIDs(ctx); err != nil {
		return nil, seen, move, err
	}
	before, err := s.client.Order(ctx, openloop.Report)
	if err != nil {
		return nil, seen, move, err
	}
	if before.Alive < t.Connections {
		return nil, seen, move, fmt.Errorf("%d of %d connections work before the move: %s", before.Alive, t.Connections, before.Error)
	}
	move.Between = before.WorstGapMS
	if _, err = s.client.Order(ctx, openloop.Reset); err != nil {
		return nil, seen, move, err
	}
	to := t.Other(s.host)
	if d, err = m.depart(ctx, t.world, s, to); err != nil {
		return nil, seen, move, err
	}
	if d.live.IsZero() {
		return d, seen, move, errors.New("nobody told when the service was live")
	}
	s.host = to
	if seen, err = s.client.Order(ctx, openloop.Report); err == nil {
		_, err = s.client.Order(ctx, openloop.Reset)
	}
	return d, seen, move, err
}

// tell takes over what the client saw, and what the program told of a move that the source heard to be over at a time.
func (m *TailMove) tell(seen openloop.Seen, trace Trace, heard time.Time) {
	m.Blackout, m.Late, m.Lost = milliseconds(trace.blackout()), seen.LateMS, len(seen.Each)-seen.Alive
	live := heard
	for _, p := range trace.There {
		if p.Name == "go live" {
			live = heard.Add(-p.Took)
		}
	}
	worst := 0.
	for _, c := range seen.Each {
		m.Gaps = append(m.Gaps, c.GapMS)
		worst = max(worst, c.GapMS)
		if c.End.After(live) {
			m.First = append(m.First, milliseconds(c.End.Sub(live)))
		}
	}
	if worst > m.Blackout+patience {
		m.Phases, m.There = trace.Phases, trace.There
	}
}

// join adds what was measured at another time.
func (t *Tail) join(other *Tail) {
	t.Moves = append(t.Moves, other.Moves...)
	t.RST += other.RST
	t.Failures = append(t.Failures, other.Failures...)
}

func (t *Tail) of(values func(TailMove) []float64) sample {
	var all []float64
	for _, m := range t.Moves {
		all = append(all, values(m)...)
	}
	return sampleOf(all)
}

func (t *Tail) blackouts() sample {
	return t.of(func(m TailMove) []float64 { return []float64{m.Blackout} })
}
func (t *Tail) gaps() sample   { return t.of(func(m TailMove) []float64 { return m.Gaps }) }
func (t *Tail) firsts() sample { return t.of(func(m TailMove) []float64 { return m.First }) }

// beyond is by how much each client waited longer than the service stood still.
func (t *Tail) beyond() sample {
	return t.of(func(m TailMove) []float64 {
		var all []float64
		for _, gap := range m.Gaps {
			all = append(all, gap-m.Blackout)
		}
		return all
	})
}

func (t *Tail) between() sample {
	return t.of(func(m TailMove) []float64 { return []float64{m.Between} })
}

// impatient is how many clients waited longer than they are to, and how many connections were lost.
func (t *Tail) impatient() (late, lost int) {
	for _, b := range t.beyond() {
		if b > patience {
			late++
		}
	}
	for _, m := range t.Moves {
		lost += m.Lost
	}
	return late, lost
}

// table tells all of it.
func (t *Tail) table() table {
	x := table{head: []string{"ms", "p50", "p90", "p99", "p99.9", "max"}}
	if t == nil || len(t.Moves) == 0 {
		return x
	}
	for _, r := range []struct {
		name   string
		values sample
	}{
		{"the service stood still", t.blackouts()},
		{"longest wait of each client around a move", t.gaps()},
		{"that is longer than the service stood still by", t.beyond()},
		{"from when it was live to each client's first answer", t.firsts()},
		{"longest wait between two moves of its service, while others move", t.between()},
	} {
		row := []string{r.name}
		for _, part := range []float64{0.5, 0.9, 0.99, 0.999, 1} {
			row = append(row, number(r.values.at(part)))
		}
		x.rows = append(x.rows, row)
	}
	return x
}

// summary says how it went in a sentence.
func (t *Tail) summary() string {
	if t == nil {
		return ""
	}
	late, lost := t.impatient()
	fate := "no connection was lost"
	if lost > 0 {
		fate = fmt.Sprintf("%d connections were lost", lost)
	}
	text := fmt.Sprintf(
		"%s moves of services with %d connections each, that had %s messages a second all the time: of %s waits, one of each client and move, %s were over %d ms longer than the service stood still; %s; %d RST.",
		thousands(len(t.Moves)), t.Connections, thousands(t.Rate), thousands(len(t.gaps())), thousands(late), patience, fate, t.RST)
	if n := len(t.Failures); n > 0 {
		text += fmt.Sprintf(" %d moves failed.", n)
	}
	return text
}

// exceptions explains the moves after which somebody waited too long, the worst of them first.
func (t *Tail) exceptions() []string {
	const most = 10
	moves := slices.DeleteFunc(slices.Clone(t.Moves), func(m TailMove) bool { return m.Phases == nil })
	slices.SortStableFunc(moves, func(a, b TailMove) int {
		return int(slices.Max(b.Gaps) - b.Blackout - slices.Max(a.Gaps) + a.Blackout)
	})
	var lines []string
	for _, m := range moves[:min(most, len(moves))] {
		gaps := make([]string, len(m.Gaps))
		for i, g := range m.Gaps {
			gaps[i] = number(g)
		}
		lines = append(lines, fmt.Sprintf("stood still for %s: %s (on the other host: %s); clients waited %s; the client itself was late by %s at most",
			number(m.Blackout), phasesText(m.Phases), phasesText(m.There), strings.Join(gaps, " "), number(m.Late)))
	}
	return lines
}
