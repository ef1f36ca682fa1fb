package handover

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/nsmigrate/nsmigrate/transfer/journal"
)

// How often a destination is asked.
const (
	askFirst = 100 * time.Millisecond
	askMost  = 5 * time.Second
)

// listenFor is how often it is looked whether a person has decided.
const listenFor = 50 * time.Millisecond

// errDecided says that a person has decided where the service lives.
var errDecided = errors.New("a person has decided where the service lives")

// heed returns a context that ends when a person says where the service lives ([Insist]).
func (s *sender) heed(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	log := s.log
	go func() {
		for ctx.Err() == nil {
			if word := Force(log.Requested()); word.event() != "" {
				cancel(errDecided)
			}
			select {
			case <-time.After(listenFor):
			case <-ctx.Done():
			}
		}
	}()
	return ctx, func() { cancel(nil) }
}

// obey does what a person said, if one did: it is the next thing to happen.
func (s *sender) obey() bool {
	word := Force(s.log.Requested())
	e := word.event()
	if _, ok := find(protocol(), s.role, s.state, e); !ok || s.log.Take(string(word)) != nil {
		return false
	}
	s.learnt = e
	if s.cause == nil {
		s.cause = errDecided
	}
	return true
}

// ask asks the destination what became of the migration until it knows, or a person does, or for as long as is allowed.
// Errors: *InDoubtError.
func (s *sender) ask(ctx context.Context) error {
	s.clock.Phase("ask", true)
	if s.line != nil { // so that the destination notices, too
		l := s.line
		s.line = nil
		go l.hangUp() //nolint:errcheck // it is of no use any more
	}
	doubt := s.doubt()
	if s.opts.Redial == nil {
		doubt.Err = errors.New("there is no way to reach it")
		return doubt
	}
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(s.opts.AskFor, defaultAskFor))
	defer cancel()
	ctx, deaf := s.heed(ctx)
	defer deaf()
	for pause := askFirst; ; pause = min(2*pause, askMost) {
		answer, err := s.query(ctx)
		switch {
		case err == nil:
			doubt.Answer, doubt.Err = answer.Verdict, nil
			if answer.Reason != "" {
				doubt.Err = errors.New(answer.Reason)
			}
		case ctx.Err() == nil || doubt.Answer == "" && doubt.Err == nil:
			doubt.Answer, doubt.Err = "", err
		}
		if err == nil {
			e, again := answer.Verdict.event()
			if e != "" {
				s.learn(e, answer)
				return nil
			}
			if !again {
				return doubt
			}
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			if s.obey() {
				return nil
			}
			return doubt
		}
	}
}

func (s *sender) doubt() *InDoubtError {
	return &InDoubtError{ID: s.id, Since: enteredAt(&s.log.Content, Released)}
}

// inDoubt is the error of a source that can't do what is decided, nor know what is.
func (s *sender) inDoubt(err error) error {
	if doubt, ok := errors.AsType[*InDoubtError](err); ok {
		return doubt
	}
	doubt := s.doubt()
	doubt.Err = err
	return doubt
}

// learn notes what the destination said.
func (s *sender) learn(e event, answer *body) {
	s.learnt = e
	if e == onRunning {
		s.running = answer
	} else if s.cause == nil {
		s.cause = &PeerError{Role: journal.Destination, Reason: answer.Reason}
	}
}

// query asks once.
func (s *sender) query(ctx context.Context) (*body, error) {
	conn, err := s.opts.Redial(ctx)
	if err != nil {
		return nil, err
	}
	l := listen(ctx, conn, journal.Destination)
	defer l.hangUp() //nolint:errcheck // the answer was heard, or another is asked for
	if err := l.send(ctx, s.id, msgQuery, body{ID: s.id}); err != nil {
		return nil, err
	}
	return l.expect(ctx, s.id, msgAnswer)
}

// Answer tells what became of a migration on this host, its destination, as far as it can be known. What a dead
// process has left behind is brought to its end first: then the answer is final. reason is for people.
func Answer(ctx context.Context, dir journal.Dir, id string, o Options) (verdict Verdict, reason string) {
	c, err := dir.Read(id, journal.Destination)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return VerdictUnknown, ""
	case err != nil:
		return VerdictStuck, err.Error()
	case c.Busy:
		return VerdictBusy, ""
	case c.Finished():
		return tombstoneVerdict(c.Tombstone, c.Rebooted()), ""
	}
	j, err := dir.Open(id, journal.Destination)
	switch {
	case errors.Is(err, journal.ErrBusy), errors.Is(err, journal.ErrFinished): // since a moment ago
		return VerdictBusy, ""
	case err != nil:
		return VerdictStuck, err.Error()
	}
	outcome, err := RecoverDestination(ctx, j, reopen(ctx, j, o), "", o)
	if stuck, ok := errors.AsType[*StuckError](err); ok {
		reason = stuck.Err.Error() // the rest of it is for this host's users
	} else if err != nil {
		reason = err.Error()
	}
	switch outcome {
	case Moved:
		return VerdictLive, reason
	case Stayed: // even if not all of it could be removed: it is mute, and never goes live
		return VerdictAborted, reason
	case Gone:
		return VerdictLost, reason
	}
	return VerdictStuck, reason
}

// tombstoneVerdict returns what a tombstone says. A service that went live ended when its host was restarted.
func tombstoneVerdict(t journal.Tombstone, rebooted bool) Verdict {
	switch {
	case t == journal.Live && rebooted, t == journal.Lost:
		return VerdictLost
	case t == journal.Live:
		return VerdictLive
	case t == journal.Aborted:
		return VerdictAborted
	}
	return VerdictUnknown
}

// reopen returns the host of a journal that was left behind.
func reopen(ctx context.Context, j *journal.Journal, o Options) Host {
	if o.Reopen == nil {
		return unopened{err: errors.New("this process can't work on it")}
	}
	host, err := o.Reopen(ctx, j)
	if err != nil {
		return unopened{err: fmt.Errorf("take up what was left behind: %w", err)}
	}
	return host
}
