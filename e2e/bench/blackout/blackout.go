package blackout

import (
	"context"
	"errors"
	"regexp"
	"time"
)

// Options of [Measure].
type Options struct {
	Only     *regexp.Regexp // scenes by name
	Quick    bool           // fewer rounds and scenes
	Rounds   int            // of each scene, instead of its own number; 0 leaves it
	Progress func(format string, args ...any)
}

// Results is everything that was measured.
type Results struct {
	Cells []Cell        `json:"cells"`
	Took  time.Duration `json:"took"`
}

// Measure runs all scenes.
func Measure(ctx context.Context, o Options) (r Results, err error) {
	begin := time.Now()
	defer func() { r.Took = time.Since(begin) }()
	w, err := newWorld(ctx)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	b := &bench{world: w, movers: movers(), installed: map[mover]error{}, progress: o.Progress}
	for _, sc := range scenes(o) {
		cells, err := b.scene(ctx, sc)
		r.Cells = append(r.Cells, cells...)
		if err != nil {
			return r, err
		}
	}
	return r, nil
}
