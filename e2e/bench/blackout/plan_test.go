package blackout

import (
	"testing"
	"time"
)

func TestShare(t *testing.T) {
	parts := []part{{takes: time.Minute}, {takes: 2 * time.Minute}, {takes: time.Minute}}
	for _, c := range []struct {
		left  time.Duration
		parts []part
		want  time.Duration
	}{
		{4 * time.Minute, parts, time.Minute},
		{2 * time.Minute, parts, 30 * time.Second},
		{3 * time.Minute, parts[1:], 2 * time.Minute},
		{5 * time.Minute, parts[2:], 5 * time.Minute}, // the last one has all that is left
		{-time.Minute, parts, 1},                      // and no limit is something else
		{time.Minute, []part{{}}, time.Minute},
	} {
		if got := share(c.left, c.parts); got != c.want {
			t.Errorf("of %v for %v: %v, want %v", c.left, c.parts, got, c.want)
		}
	}
}

func TestGoesOn(t *testing.T) {
	for _, c := range []struct {
		rounds, least int
		spent, limit  time.Duration
		want          bool
	}{
		{0, 0, 0, time.Second, true},
		{1, 3, time.Hour, time.Second, true},
		{3, 3, 3 * time.Second, 4 * time.Second, true},
		{3, 3, 3 * time.Second, 4*time.Second - 1, false},
		{99, 3, time.Hour, 0, true},
	} {
		if got := goesOn(c.rounds, c.least, c.spent, c.limit); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func TestFit(t *testing.T) {
	for _, c := range []struct {
		rounds int
		limit  time.Duration
		want   int
	}{{3, 0, 3}, {3, time.Minute, 3}, {3, 2 * time.Second, 2}, {3, 1, 1}} {
		if got := fit(c.rounds, time.Second, c.limit); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}

// Everything there is takes no more time than the benchmark promises, and slow movers are not most of it.
func TestTakes(t *testing.T) {
	var all time.Duration
	for _, s := range scenes(Options{}) {
		all += s.takes()
		if s.takes() > 4*time.Minute {
			t.Errorf("%s takes %v", s.Name, s.takes())
		}
	}
	if all > 20*time.Minute || all < 5*time.Minute {
		t.Errorf("all scenes take %v", all)
	}
}
