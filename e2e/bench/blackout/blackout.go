package blackout

import (
	"context"
	"errors"
	"regexp"
	"time"
)

// Options of [Measure].
type Options struct {
	Only     *regexp.Regexp                         // scenes by name
	Movers   *regexp.Regexp                         // by name; nil are all
	Quick    bool                                   // fewer rounds and scenes
	Rounds   int                                    // of small services, and at most of others; 0 leaves each its own
	Progress func(format string, args ...any)       // what goes on
	Done     func(scene string, took time.Duration) // after each scene
}

// Results is everything that was measured.
type Results struct {
	Cells      []Cell        `json:"cells"`
	Throughput []Throughput  `json:"throughput,omitempty"`
	Snapshots  []Snapshot    `json:"snapshots,omitempty"`
	Took       time.Duration `json:"took"`
}

// Takes says about how long [Measure] takes on a machine of two cores that does nothing else.
func Takes(o Options) time.Duration {
	var total time.Duration
	for _, s := range scenes(o) {
		names := s.Movers
		if names == nil {
			for _, m := range movers() {
				names = append(names, m.name())
			}
		}
		for _, m := range names {
			if o.Movers != nil && !o.Movers.MatchString(m) {
				continue
			}
			one := 1700 * time.Millisecond
			if m == "podman" {
				one = 3 * time.Second
			}
			one += time.Duration(s.Connections)*time.Millisecond + time.Duration(s.MemoryMB)*4*time.Millisecond + time.Duration(s.Idle)*10*time.Millisecond
			total += time.Duration(s.Rounds) * one
		}
	}
	const flows, files = 4, 4
	total += time.Duration(o.rounds(throughputName, 2)) * flows * (iperfAll + time.Second)
	return total + time.Duration(o.rounds(snapshotsName, 2))*files*6*time.Second
}

// Measure runs all scenes.
func Measure(ctx context.Context, o Options) (r Results, err error) {
	chosen := scenes(o)
	if len(chosen) == 0 && o.rounds(throughputName, 1) == 0 && o.rounds(snapshotsName, 1) == 0 {
		return r, nil
	}
	begin := time.Now()
	defer func() { r.Took = time.Since(begin) }()
	w, err := newWorld(ctx)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	b := &bench{world: w, movers: movers(), only: o.Movers, installed: map[mover]error{}, progress: o.Progress}
	for _, sc := range chosen {
		start := time.Now()
		cells, err := b.scene(ctx, sc)
		o.Done(sc.Name, time.Since(start))
		r.Cells = append(r.Cells, cells...)
		if err != nil {
			return r, err
		}
	}
	if rounds := o.rounds(throughputName, 2); rounds > 0 {
		start := time.Now()
		r.Throughput = b.throughput(ctx, rounds)
		o.Done(throughputName, time.Since(start))
	}
	if rounds := o.rounds(snapshotsName, 2); rounds > 0 {
		start := time.Now()
		r.Snapshots = b.snapshots(ctx, rounds)
		o.Done(snapshotsName, time.Since(start))
	}
	return r, ctx.Err()
}

// rounds is how many a part has that is measured at length only.
func (o Options) rounds(name string, rounds int) int {
	switch {
	case o.Quick, o.Only != nil && !o.Only.MatchString(name):
		return 0
	case o.Rounds > 0:
		return min(rounds, o.Rounds)
	}
	return rounds
}

// reference is the mover that others are compared with, ready to move.
func (b *bench) reference(ctx context.Context) (mover, error) {
	for _, m := range b.movers {
		if m.name() == reference {
			return m, b.install(ctx, m)
		}
	}
	return nil, errors.New("nobody is called " + reference)
}
