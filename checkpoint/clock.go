package checkpoint

import "time"

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
	c.end()
	c.phases = append(c.phases, Phase{Name: name, Start: time.Since(c.start), Blackout: blackout})
	if c.progress != nil {
		c.progress.Phase(name)
	}
}

func (c *Clock) end() {
	if n := len(c.phases); n > 0 && c.phases[n-1].Duration == 0 {
		c.phases[n-1].Duration = time.Since(c.start) - c.phases[n-1].Start
	}
}

// Current returns the name of the running phase.
func (c *Clock) Current() string {
	if len(c.phases) == 0 {
		return ""
	}
	return c.phases[len(c.phases)-1].Name
}

// Phases ends the running phase and returns all of them.
func (c *Clock) Phases() []Phase {
	c.end()
	return c.phases
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
