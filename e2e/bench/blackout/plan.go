package blackout

import (
	"context"
	"fmt"
	"regexp"
	"time"
)

// part is something that is measured, and about how long that takes on a machine of two cores that does nothing else.
type part struct {
	name  string
	takes time.Duration
	run   func(ctx context.Context, limit time.Duration) error // 0 is no limit
}

// share is how much of the time that is left the first of some parts may take: as much of it as of what all of them take. What
// one does not need is there for those after it.
func share(left time.Duration, parts []part) time.Duration {
	var all time.Duration
	for _, p := range parts {
		all += p.takes
	}
	if all == 0 {
		return max(1, left)
	}
	return max(1, time.Duration(float64(left)*float64(parts[0].takes)/float64(all)))
}

// goesOn says whether there is another round after some that took a time together.
func goesOn(rounds, least int, spent, limit time.Duration) bool {
	if rounds < least || limit == 0 {
		return true
	}
	return spent+spent/time.Duration(max(1, rounds)) <= limit
}

// fit is how many of some rounds that take a time each there are within a limit, one at least. A limit of 0 is none.
func fit(rounds int, each, limit time.Duration) int {
	if limit == 0 {
		return rounds
	}
	return max(1, min(rounds, int(limit/each)))
}

// takes is about how long all rounds of a scene take.
func (s Scene) takes() time.Duration {
	const (
		connection = 600 * time.Microsecond
		megabyte   = 4 * time.Millisecond
		process    = 8 * time.Millisecond
		route      = 20 * time.Microsecond
	)
	extra := time.Duration(s.Connections)*connection + time.Duration(s.MemoryMB)*megabyte +
		time.Duration(s.Idle)*process + time.Duration(s.Routes)*route
	var total time.Duration
	for _, t := range s.Turns {
		one := 1500 * time.Millisecond
		switch t.mover {
		case "nsmigrate tls", "nsmigrate ssh", "nsmigrate unix":
			one = 1200 * time.Millisecond
		case "podman":
			one = 2500 * time.Millisecond
		}
		rounds := (s.Rounds + t.every - 1) / t.every
		total += time.Duration(rounds) * (one + extra)
	}
	return total
}

// roundTrip is how long a packet takes from one host to the other and back, in milliseconds: the median, or 0 if that can't be
// told.
func (b *bench) roundTrip(ctx context.Context) float64 {
	out, err := b.A.Output(ctx, "ping", "-c", "21", "-i", "0.01", b.B.IPv4)
	if err != nil {
		return 0
	}
	return parsePing(out)
}

var pingTime = regexp.MustCompile(`time=([0-9.]+) ms`)

func parsePing(text string) float64 {
	var times []float64
	for _, m := range pingTime.FindAllStringSubmatch(text, -1) {
		var ms float64
		if _, err := fmt.Sscan(m[1], &ms); err == nil {
			times = append(times, ms)
		}
	}
	if len(times) == 0 {
		return 0
	}
	return sampleOf(times).median()
}
