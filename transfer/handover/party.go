package handover

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/transfer/journal"
)

// Defaults of [Options].
const (
	defaultFrozen   = 2 * time.Minute
	defaultAskFor   = 2 * time.Minute
	defaultPatience = 10 * time.Minute
)

// stepState is the step of the journal's records that hold a state.
const stepState = "state"

// StateOf returns the state that a journal has.
func StateOf(c *journal.Content) (State, error) {
	s := Running
	if c.Role == journal.Destination {
		s = Building
	}
	for _, r := range c.Records {
		if r.Step != stepState {
			continue
		}
		if err := json.Unmarshal(r.Data, &s); err != nil {
			return "", fmt.Errorf("journal of migration %s: state %s: %w", c.ID, r.Data, err)
		}
	}
	return s, nil
}

// enteredAt returns when a state was journalled.
func enteredAt(c *journal.Content, s State) time.Time {
	for _, r := range c.Records {
		var is State
		if r.Step == stepState && json.Unmarshal(r.Data, &is) == nil && is == s {
			return r.Time
		}
	}
	return c.Created()
}

// party is one host's part in a migration: it goes by the protocol.
type party struct {
	role  journal.Role
	id    string
	about json.RawMessage // for the journal
	state State
	dir   journal.Dir
	log   *journal.Journal // nil until the host is changed, and when the journal is finished
	line  *line            // nil if there is no connection
	opts  Options
	clock *checkpoint.Clock
	start time.Time
	cause error  // why the migration is over, if it failed
	phase string // in which it failed

	perform func(ctx context.Context, a action) error // the role's own actions
}

func newParty(role journal.Role, dir journal.Dir, o Options) party {
	p := party{role: role, state: Idle, dir: dir, opts: o, clock: o.Clock, start: time.Now()}
	if p.clock == nil {
		p.clock = checkpoint.NewClock(o.Progress)
	}
	return p
}

// takeUp is the part that a journal was left behind of.
func takeUp(j *journal.Journal, o Options) (party, error) {
	p := newParty(j.Role, journal.Dir{}, o)
	p.id, p.about, p.log = j.ID, j.Data, j
	var err error
	p.state, err = StateOf(&j.Content)
	return p, err
}

// on reacts to an event as the protocol says, action by action.
func (p *party) on(ctx context.Context, e event) error {
	actions, ok := find(protocol(), p.role, p.state, e)
	if !ok {
		return &ProtocolError{Reason: fmt.Sprintf("%q can't happen to a %s that is %s", e, p.role, p.state)}
	}
	from := p.state
	for _, a := range actions {
		ctx := ctx
		if p.state.decided() {
			ctx = context.WithoutCancel(ctx)
		}
		err := context.Cause(ctx) // the last moment at which a decision can be stopped is right before it
		if err == nil {
			err = p.at(ctx, Step{p.role, from, string(e), string(a)})
		}
		if err == nil {
			err = p.act(ctx, a)
		}
		switch s, entering := a.enters(); {
		case err != nil && !a.optional():
			return err
		case entering:
			p.state = s
		}
	}
	return nil
}

func (p *party) at(ctx context.Context, s Step) error {
	if p.opts.At == nil {
		return nil
	}
	return p.opts.At(ctx, s)
}

func (p *party) act(ctx context.Context, a action) error {
	if s, ok := a.enters(); ok {
		return p.journal(s)
	}
	if a == finish {
		return p.finish()
	}
	return p.perform(ctx, a)
}

// journal writes a state down.
func (p *party) journal(s State) (err error) {
	switch {
	case !s.journalled():
	case p.log == nil:
		p.log, err = p.dir.Create(p.id, p.role, p.about)
	default:
		err = p.log.Decide(stepState, s, s.sync())
	}
	return err
}

func (p *party) finish() error {
	if err := p.log.Finish(p.state.tombstone(p.role)); err != nil {
		return err
	}
	p.log = nil
	return nil
}

// close lets go of what is held, and leaves an unfinished journal to whoever comes next.
func (p *party) close() {
	if p.line != nil {
		p.line.hangUp() //nolint:errcheck // all that matters was answered
	}
	if p.log != nil {
		p.log.Close() //nolint:errcheck // every record was written before
	}
}

// say sends a message of the migration.
func (p *party) say(ctx context.Context, typ string, b body) error {
	if p.line == nil {
		return errLost
	}
	b.ID = p.id
	return p.line.send(ctx, p.id, typ, b)
}

// fails notes why the migration is over, and returns the error that says so to this host's user.
func (p *party) fails(cause error) *FailedError {
	p.cause, p.phase = cause, p.clock.Current()
	return &FailedError{ID: p.id, Role: p.role, Phase: p.phase, State: p.state, Err: cause}
}

// sayAbort tells the other side why it is over.
func (p *party) sayAbort(ctx context.Context) error {
	if _, ok := errors.AsType[*PeerError](p.cause); ok {
		return nil // it knows
	}
	b := body{Reason: fmt.Sprintf("%s: %v", p.phase, p.cause)}
	if refused, ok := errors.AsType[*checkpoint.RefusedError](p.cause); ok {
		b.Problems = refused.Problems
	}
	return p.say(ctx, msgAbort, b)
}

// next is what the other side says next, within the time that we wait for it. See [line.next].
func (p *party) next(ctx context.Context, types ...string) (heard, error) {
	most := cmp.Or(p.opts.Patience, defaultPatience)
	ctx, cancel := context.WithTimeoutCause(ctx, most, fmt.Errorf("the %s did nothing for %v", other(p.role), most))
	defer cancel()
	return p.line.next(ctx, p.id, types...)
}

// expect is the body of what the other side says next, of the given type.
func (p *party) expect(ctx context.Context, typ string) (*body, error) {
	h, err := p.next(ctx, typ)
	if err != nil {
		return nil, err
	}
	return decode(h.message, p.id)
}

func (p *party) report(o Outcome) *Report {
	phases := p.clock.Phases()
	return &Report{
		ID: p.id, Outcome: o, Phases: phases, Blackout: checkpoint.Blackout(phases), Total: time.Since(p.start),
	}
}
