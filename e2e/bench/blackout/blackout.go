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
	Quick    bool                                   // fewer rounds and scenes
	Rounds   int                                    // of each scene, instead of its own number; 0 leaves it
	Progress func(format string, args ...any)       // what goes on
	Done     func(scene string, took time.Duration) // after each scene
}

// Results is everything that was measured.
type Results struct {
	Cells []Cell        `json:"cells"`
	Took  time.Duration `json:"took"`
}

// Takes says about how long [Measure] takes on a machine of two cores that does nothing else.
func Takes(o Options) time.Duration {
	var total time.Duration
	for _, s := range scenes(o) {
		movers := s.Movers
		if movers == nil {
			movers = []string{"nsmigrate tls", "nsmigrate ssh", "nsmigrate unix", alone, "runc", "podman"}
		}
		for _, m := range movers {
			one := 2 * time.Second
			if m == "podman" {
				one = 4 * time.Second
			}
			one += time.Duration(s.Connections)*time.Millisecond + time.Duration(s.MemoryMB)*6*time.Millisecond + time.Duration(s.Idle)*10*time.Millisecond
			total += time.Duration(s.Rounds) * one
		}
	}
	return total
}

// Measure runs all scenes.
func Measure(ctx context.Context, o Options) (r Results, err error) {
	chosen := scenes(o)
	if len(chosen) == 0 {
		return r, nil
	}
	begin := time.Now()
	defer func() { r.Took = time.Since(begin) }()
	w, err := newWorld(ctx)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	b := &bench{world: w, movers: movers(), installed: map[mover]error{}, progress: o.Progress}
	for _, sc := range chosen {
		start := time.Now()
		cells, err := b.scene(ctx, sc)
		o.Done(sc.Name, time.Since(start))
		r.Cells = append(r.Cells, cells...)
		if err != nil {
			return r, err
		}
	}
	return r, nil
}
