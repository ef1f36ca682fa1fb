package blackout

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"
)

// Options of [Measure].
type Options struct {
	Only     *regexp.Regexp                         // scenes by name
	Movers   *regexp.Regexp                         // by name; nil are all
	Quick    bool                                   // fewer rounds and scenes
	Rounds   int                                    // of small services, and at most of others; 0 leaves each its own
	Tail     int                                    // moves of the scene of that name; 0 leaves it its own
	Budget   time.Duration                          // that all may take: there are fewer rounds where it does not suffice; 0 is no limit
	Progress func(format string, args ...any)       // what goes on
	Done     func(scene string, took time.Duration) // after each scene
}

// Results is everything that was measured.
type Results struct {
	Cells      []Cell        `json:"cells"`
	Tail       *Tail         `json:"tail,omitempty"`
	Throughput []Throughput  `json:"throughput,omitempty"`
	Snapshots  []Snapshot    `json:"snapshots,omitempty"`
	RTT        float64       `json:"rtt,omitempty"` // between the hosts, ms
	Took       time.Duration `json:"took"`
}

// Join adds what was measured at another time.
func (r *Results) Join(other Results) {
	for _, c := range other.Cells {
		mine := r.cell(c.Scene, c.Mover)
		if mine == nil {
			at := len(r.Cells) // behind the others of its scene
			for i := range r.Cells {
				if r.Cells[i].Scene == c.Scene {
					at = i + 1
				}
			}
			r.Cells = slices.Insert(r.Cells, at, c)
			continue
		}
		mine.Runs, mine.Failures = append(mine.Runs, c.Runs...), append(mine.Failures, c.Failures...)
	}
	switch {
	case r.Tail == nil:
		r.Tail = other.Tail
	case other.Tail != nil:
		r.Tail.join(other.Tail)
	}
	r.Throughput, r.Snapshots = append(r.Throughput, other.Throughput...), append(r.Snapshots, other.Snapshots...)
	if r.RTT == 0 {
		r.RTT = other.RTT
	}
	r.Took += other.Took
}

// Takes says about how long [Measure] takes on a machine of two cores that does nothing else.
func Takes(o Options) time.Duration {
	var total time.Duration
	for _, p := range parts(o, nil, nil) {
		total += p.takes
	}
	if o.Budget > 0 {
		total = min(total, o.Budget)
	}
	return total
}

// parts are what was asked for, in order: what has least rounds comes first, the tail last, which has use for all the time there
// is.
func parts(o Options, b *bench, r *Results) []part {
	var all []part
	for _, sc := range scenes(o) {
		all = append(all, part{sc.Name, sc.takes(), func(ctx context.Context, limit time.Duration) error {
			cells, err := b.scene(ctx, sc, limit)
			r.Cells = append(r.Cells, cells...)
			return err
		}})
	}
	if rounds := o.rounds(throughputName, 3); rounds > 0 {
		all = append(all, part{throughputName, time.Duration(rounds) * flows * (iperfAll + time.Second), func(ctx context.Context, limit time.Duration) error {
			r.Throughput = b.throughput(ctx, rounds, limit)
			return ctx.Err()
		}})
	}
	if rounds := o.rounds(snapshotsName, 2); rounds > 0 {
		all = append(all, part{snapshotsName, time.Duration(rounds) * files * fileTakes, func(ctx context.Context, limit time.Duration) error {
			r.Snapshots = b.snapshots(ctx, rounds, limit)
			return ctx.Err()
		}})
	}
	if moves := o.moves(); moves > 0 {
		all = append(all, part{tailName, time.Duration(moves) * tailEach, func(ctx context.Context, limit time.Duration) error {
			t := b.tail(ctx, moves, limit)
			r.Tail = &t
			return ctx.Err()
		}})
	}
	return all
}

// Measure runs all scenes. The failure of one does not hide the figures of the others.
func Measure(ctx context.Context, o Options) (r Results, err error) {
	begin := time.Now()
	if len(parts(o, nil, nil)) == 0 {
		return r, nil
	}
	defer func() { r.Took = time.Since(begin) }()
	w, err := newWorld(ctx)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	o.Done("hosts", time.Since(begin))
	b := &bench{world: w, movers: movers(), installed: map[mover]error{}, progress: o.Progress}
	r.RTT = b.roundTrip(ctx)
	all := parts(o, b, &r)
	for i, p := range all {
		var limit time.Duration
		if o.Budget > 0 {
			limit = share(o.Budget-time.Since(begin), all[i:])
		}
		start := time.Now()
		if failed := p.run(ctx, limit); failed != nil && ctx.Err() == nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", p.name, failed))
		}
		o.Done(p.name, time.Since(start))
		if ctx.Err() != nil {
			return r, ctx.Err()
		}
	}
	return r, err
}

// wants says whether somebody asked for a part.
func (o Options) wants(name string) bool { return o.Only == nil || o.Only.MatchString(name) }

// rounds is how many a part has that is measured at length only.
func (o Options) rounds(name string, rounds int) int {
	switch {
	case o.Quick, !o.wants(name), !o.wantsReference():
		return 0
	case o.Rounds > 0:
		return min(rounds, o.Rounds)
	}
	return rounds
}

// moves is how many the tail has.
func (o Options) moves() int {
	const all, few = 1000, 60
	switch {
	case !o.wants(tailName), !o.wantsReference():
		return 0
	case o.Tail > 0:
		return o.Tail
	case o.Quick:
		return few
	}
	return all
}

func (o Options) wantsReference() bool { return o.Movers == nil || o.Movers.MatchString(reference) }

// reference is the mover that others are compared with, ready to move.
func (b *bench) reference(ctx context.Context) (mover, error) {
	for _, m := range b.movers {
		if m.name() == reference {
			return m, b.install(ctx, m)
		}
	}
	return nil, errors.New("nobody is called " + reference)
}
