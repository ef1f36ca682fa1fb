package stream

import (
	"testing"
	"time"
)

// zstd is used when it makes the stream faster, which depends on the link, the data and the cores.
func TestGauge(t *testing.T) {
	const mb = 1e6
	for _, test := range []struct {
		name       string
		link       float64 // bytes a second
		ratio      float64
		zstd       float64 // bytes a second and core
		cores      int
		worthwhile bool
	}{
		{"megabits", 10 * mb, 0.3, 400 * mb, 1, true},
		{"gigabit", 120 * mb, 0.3, 400 * mb, 1, true},
		{"gigabit, slow core", 120 * mb, 0.3, 100 * mb, 1, false},
		{"gigabit, noise", 120 * mb, 1, 900 * mb, 4, false},
		{"ten gigabits, one core", 1200 * mb, 0.3, 400 * mb, 1, false},
		{"ten gigabits, many cores", 1200 * mb, 0.3, 400 * mb, 16, true},
		{"hardly smaller", 120 * mb, 0.95, 400 * mb, 4, false},
		{"buffers that never fill", 1e15, 0.1, 400 * mb, 16, false},
	} {
		g := newGauge(test.cores)
		g.packed(frameSize, int(test.ratio*frameSize), time.Duration(frameSize/test.zstd*float64(time.Second)))
		for range windows {
			g.written(windowBytes, time.Duration(windowBytes/test.link*float64(time.Second)))
		}
		if got := g.pays(); got != test.worthwhile {
			t.Errorf("%s: %v, want %v", test.name, got, test.worthwhile)
		}
	}
}

// Without measurements zstd is tried; when it doesn't pay, it is tried again now and then.
func TestGaugeProbes(t *testing.T) {
	g := newGauge(2)
	if !g.try(frameSize) {
		t.Error("the first frame did not go through zstd")
	}
	g.packed(frameSize, frameSize, time.Millisecond)
	tries := 0
	for range 10 * probeEvery {
		if g.try(frameSize) {
			tries++
		}
	}
	if tries != 10 {
		t.Errorf("%d of %d frames of noise went through zstd", tries, 10*probeEvery)
	}
}

// What a link that nobody has measured takes in a moment is not worth two processes' time.
func TestGaugeSmall(t *testing.T) {
	g := newGauge(2)
	if g.try(small - 1) {
		t.Error("a small frame went through zstd")
	}
	g.written(windowBytes, time.Second)
	if g.try(pageSize - 1) {
		t.Error("less than a page went through zstd")
	}
	if !g.try(small - 1) {
		t.Error("a small frame did not go through zstd, on a slow link")
	}
}

// What the buffers of a slow link swallow at once, and one accident, don't hide what the link is like.
func TestGaugeLink(t *testing.T) {
	g := newGauge(2)
	if got := g.link(); got != presumedRate {
		t.Errorf("an unknown link has %v bytes a second", got)
	}
	for i := range windows {
		took := time.Duration(0) // in a buffer
		switch i {
		case 2:
			took = time.Hour
		case 3, 5:
			took = time.Second
		}
		g.written(windowBytes, took)
	}
	if got := g.link(); got != windowBytes {
		t.Errorf("a link of %d bytes a second was taken for one of %v", windowBytes, got)
	}
}

// A little data that a new encoder took long for does not decide about all that follows.
func TestGaugeColdEncoder(t *testing.T) {
	g := newGauge(2)
	g.packed(16<<10, 8<<10, 5*time.Millisecond)
	if !g.try(frameSize) {
		t.Error("zstd was given up after a few pages")
	}
	g.packed(frameSize, frameSize/5, 3*time.Millisecond)
	if !g.try(frameSize) {
		t.Errorf("zstd of a fifth at %.0f MB/s is not used on a link that wasn't measured", 1e-6/g.cost)
	}
}

// What the stream really makes decides: cores that are busy make zstd slow for everybody.
func TestGaugeFaster(t *testing.T) {
	g := newGauge(2)
	g.packed(frameSize, frameSize/5, time.Millisecond)
	now := time.Unix(0, 0)
	stream := func(frames int, plain, zstd time.Duration) (zipped int) {
		for range frames {
			way := g.try(frameSize)
			now = now.Add(plain)
			if way {
				now = now.Add(zstd - plain)
				zipped++
			}
			g.passed(frameSize, way, now)
		}
		return zipped
	}
	trials := settle + trial
	if n := stream(100, time.Millisecond, 4*time.Millisecond); n > trials+100/probeEvery+1 {
		t.Errorf("%d of 100 frames went through zstd, which was four times slower", n)
	}
	stream(2*trialEvery, 4*time.Millisecond, time.Millisecond) // which is found out with the next trial
	if n := stream(100, 4*time.Millisecond, time.Millisecond); n < 100-trials {
		t.Errorf("%d of 100 frames went through zstd, which was four times faster", n)
	}
}
