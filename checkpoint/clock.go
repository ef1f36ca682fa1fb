package checkpoint

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// Clock times the phases of an operation and tells them to whoever watches. Its phases follow each other; what is done
// beside them, at the same time, is timed with [Clock.Beside], by any goroutine.
type Clock struct {
	start    time.Time
	phases   []Phase
	stopped  bool // no phase is running
	progress Progress

	mu     sync.Mutex
	beside []Phase
}

// NewClock starts a clock; progress may be nil.
func NewClock(progress Progress) *Clock {
	return &Clock{start: time.Now(), progress: progress}
}

// Phase ends the phase before and begins a new one; blackout says that the service is frozen meanwhile.
func (c *Clock) Phase(name string, blackout bool) {
	c.phases, c.stopped = append(c.inOrder(), Phase{Name: name, Start: time.Since(c.start), Blackout: blackout}), false
	if c.progress != nil {
		c.progress.Phase(name)
	}
}

// Stop ends the running phase: what follows is none of the operation's.
func (c *Clock) Stop() { c.phases, c.stopped = c.inOrder(), true }

// Beside times what goes on at the same time as the phases, until the returned function is called.
func (c *Clock) Beside(name string) (end func()) {
	start := time.Since(c.start)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.beside = append(c.beside, Phase{Name: name, Start: start, Duration: time.Since(c.start) - start, Beside: true})
	}
}

// Current returns the name of the running phase.
func (c *Clock) Current() string {
	if len(c.phases) == 0 {
		return ""
	}
	return c.phases[len(c.phases)-1].Name
}

// Phases returns all phases until now, the last of which is running unless the clock was stopped, and between them what has
// ended that was done beside, in the order in which they began.
func (c *Clock) Phases() []Phase {
	list := c.inOrder()
	c.mu.Lock()
	defer c.mu.Unlock()
	list = append(list, c.beside...)
	slices.SortStableFunc(list, func(a, b Phase) int { return cmp.Compare(a.Start, b.Start) })
	return list
}

// inOrder returns the phases that follow each other.
func (c *Clock) inOrder() []Phase {
	list := slices.Clone(c.phases)
	if n := len(list); n > 0 && !c.stopped {
		list[n-1].Duration = time.Since(c.start) - list[n-1].Start
	}
	return list
}

// Blackout returns how long the phases took in which the service was frozen.
func Blackout(phases []Phase) time.Duration {
	var sum time.Duration
	for _, p := range phases {
		if p.Blackout && !p.Beside {
			sum += p.Duration
		}
	}
	return sum
}
