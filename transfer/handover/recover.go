package handover

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/nsmigrate/nsmigrate/transfer/journal"
)

// Force is a person's word on where the service lives. It is needed only where the hosts can't find out, and it is
// believed: wrongly given, it makes two copies live, or none.
type Force string

// What a person can say.
const (
	ForceNothing Force = ""
	ForceLive    Force = "live"  // on the destination it lives, or shall live
	ForceAbort   Force = "abort" // it does not, and never will
)

// event returns what a person's word means, "" if nothing.
func (f Force) event() event {
	switch f {
	case ForceLive:
		return onForceLive
	case ForceAbort:
		return onForceAbort
	}
	return ""
}

// recovery returns what happened to a journal that was left behind.
func recovery(p *party, f Force) (event, error) {
	if p.log.Rebooted() {
		return onRebooted, nil // then nothing is left to be decided
	}
	e := cmp.Or(f.event(), onOrphaned)
	if _, ok := find(protocol(), p.role, p.state, e); !ok {
		return "", fmt.Errorf("migration %s is %s on its %s, and --force-%s makes no sense of that: recover it without",
			p.id, p.state, p.role, f)
	}
	return e, nil
}

// RecoverSource goes on with a migration that a process of the source left behind, asking the destination where that
// has to decide. It closes the journal. Errors: [*InDoubtError] if the destination can't be asked or doesn't know,
// [*StuckError] if it is known what is to be done but can't be done; both can be tried again.
func RecoverSource(ctx context.Context, j *journal.Journal, service Service, f Force, o Options) (Outcome, error) {
	p, err := takeUp(j, o)
	s := &sender{party: p, service: service}
	s.perform = s.do
	defer s.close()
	if err != nil {
		return Undecided, err
	}
	e, err := recovery(&s.party, f)
	for err == nil {
		s.learnt = ""
		if err = s.on(ctx, e); err != nil || s.learnt == "" {
			break
		}
		e = s.learnt
	}
	outcome := map[State]Outcome{Ended: Moved, Resumed: Stayed, Lost: Gone}[s.state]
	if err != nil && outcome != Undecided {
		err = &StuckError{ID: j.ID, State: s.state, Err: err}
	}
	return outcome, err
}

// RecoverDestination goes on with a migration that a process of the destination left behind: a service that isn't live
// never will be, one that is to be live is brought to life. It closes the journal. Errors: [*StuckError] if that can't
// be done; the outcome is [Undecided] if the service is to live here and doesn't.
func RecoverDestination(ctx context.Context, j *journal.Journal, host Host, f Force, o Options) (Outcome, error) {
	p, err := takeUp(j, o)
	r := &receiver{party: p, host: host}
	r.perform = r.do
	defer r.close()
	if err != nil {
		return Undecided, err
	}
	e, err := recovery(&r.party, f)
	if err != nil {
		return Undecided, err
	}
	err = r.on(ctx, e)
	outcome := map[State]Outcome{Live: Moved, Aborted: Stayed, Lost: Gone}[r.state]
	if r.state == Live && !r.lives {
		outcome = Undecided
	}
	if err != nil {
		err = &StuckError{ID: j.ID, State: r.state, Lives: r.lives, Err: err}
	}
	return outcome, err
}

// unopened is a host that could not be reconstructed from its journal.
type unopened struct{ err error }

func (u unopened) Check(context.Context, *Offer) (*Ready, error)         { return nil, u.err }
func (u unopened) Begin(context.Context, *journal.Journal) error         { return u.err }
func (u unopened) Build(context.Context) error                           { return u.err }
func (u unopened) Store(context.Context, string, int64, io.Reader) error { return u.err }
func (u unopened) Prepare(context.Context, json.RawMessage) error        { return u.err }
func (u unopened) GoLive(context.Context) (json.RawMessage, error)       { return nil, u.err }
func (u unopened) Deliver(context.Context, io.Reader) error              { return u.err }
func (u unopened) Settle(context.Context, func(error)) error             { return u.err }
func (u unopened) Undo(context.Context) error                            { return u.err }
