package checkpoint

import (
	"slices"
	"time"
)

// Clock times the phases of an operation and tells them to whoever watches.
type Clock struct {
	start    time.Time
	phases   []Phase
	progress Progress
}

// NewClock starts a clock; progress may be nil.
func NewClock(progress Progress) *Clock {
	return &Clock{start: time.Now(), progress: progress}
}

// Phase ends the phase before and begins a new one; blackout says that the service is frozen meanwhile.
func (c *Clock) Phase(name string, blackout bool) {
	c.phases = append(c.Phases(), Phase{Name: name, Start: time.Since(c.start), Blackout: blackout})
	if c.progress != nil {
		c.progress.Phase(name)
	}
}

// Current returns the name of the running phase.
func (c *Clock) Current() string {
	if len(c.phases) == 0 {
		return ""
	}
	return c.phases[len(c.phases)-1].Name
}

// Phases returns all phases until now; the last one is running.
func (c *Clock) Phases() []Phase {
	list := slices.Clone(c.phases)
	if n := len(list); n > 0 {
		list[n-1].Duration = time.Since(c.start) - list[n-1].Start
	}
	return list
}

// Blackout returns how long the phases took in which the service was frozen.
func Blackout(phases []Phase) time.Duration {
	var sum time.Duration
	for _, p := range phases {
		if p.Blackout {
			sum += p.Duration
		}
	}
	return sum
}
