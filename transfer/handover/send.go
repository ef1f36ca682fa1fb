package handover

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/transfer/journal"
)

// Send hands a service over to the destination at the other end of conn, which it closes. Until the source has
// released the service, ctx can stop it.
//
// Errors: [*checkpoint.RefusedError] if something stands in the way, on whichever host, and nothing was changed;
// [*FailedError] if it began and failed, which says whether the service runs as before; [*InDoubtError] if it is
// frozen and mute because it is not known what the destination did. A report comes without an error: the service has
// moved (or DryRun was asked for), though the frozen copy may not be removed entirely, see [Report.Leftover].
func Send(ctx context.Context, conn Conn, dir journal.Dir, service Service, o Options) (*Report, error) {
	s := &sender{party: newParty(journal.Source, dir, o), service: service}
	s.perform = s.do
	s.id = journal.NewID()
	s.line = listen(ctx, conn, journal.Destination)
	defer s.close()
	if err := s.handOver(ctx); err != nil {
		return s.concede(context.WithoutCancel(ctx), err)
	}
	if s.opts.DryRun {
		r := s.report(Checked)
		r.Wants = s.wants
		return r, nil
	}
	r, err := s.conclude(context.WithoutCancel(ctx), onRunning)
	if err == nil {
		r.PeerTrouble = s.awaitSettled(ctx)
	}
	return r, err
}

// settledFor is how long a source waits to hear whether all went well on the destination once the service was live.
const settledFor = 30 * time.Second

// awaitSettled returns what the user should see to on the destination, where the service lives, "" if nothing is known.
func (s *sender) awaitSettled(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, settledFor)
	defer cancel()
	b, err := s.line.expect(ctx, s.id, msgSettled)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Sprintf("the service lives, but what belongs to that is not done within %v", settledFor)
	case err != nil:
		return ""
	}
	return b.Reason
}

// sender is the source's part.
type sender struct {
	party
	service Service
	offer   *Offer
	wants   json.RawMessage // of the destination
	final   json.RawMessage // of the service
	running *body           // what the destination said when it was live
	learnt  event           // what came of asking

	tooLong context.CancelCauseFunc // when the service stood still for too long
	watch   *time.Timer             // which tells that; nil until it stands still
}

// handOver is the story of a migration that goes well, until the service lives on the destination.
func (s *sender) handOver(ctx context.Context) error {
	ctx, s.tooLong = context.WithCancelCause(ctx)
	defer s.tooLong(nil)
	defer s.stopWatch()

	s.clock.Phase("preflight", false)
	if err := s.on(ctx, onBegin); err != nil {
		return err
	}
	if err := s.awaitReady(ctx); err != nil || s.opts.DryRun {
		return err
	}

	s.clock.Phase("build", false)
	if err := s.on(ctx, onReady); err != nil {
		return err
	}
	if _, err := s.expect(ctx, msgBuilt); err != nil {
		return err
	}

	s.clock.Phase("precopy", false)
	if err := s.on(ctx, onBuilt); err != nil { // with the phase "freeze" in it
		return err
	}
	s.clock.Phase("restore", true)
	if _, err := s.expect(ctx, msgPrepared); err != nil {
		return err
	}

	s.clock.Phase("handover", true)
	s.stopWatch()
	if err := s.on(ctx, onPrepared); err != nil {
		return err
	}
	return s.awaitRunning(context.WithoutCancel(ctx))
}

// awaitReady waits for what the destination says of the offer.
func (s *sender) awaitReady(ctx context.Context) error {
	theirs, err := s.hearReady(ctx)
	if err != nil && len(s.offer.Problems) == 0 { // else what is known is enough to stop
		return err
	}
	if err := checkpoint.Refuse("migrate", slices.Concat(s.offer.Problems, theirs)); err != nil {
		return err
	}
	if s.opts.DryRun {
		return s.say(ctx, msgBye, body{})
	}
	return nil
}

// hearReady returns what stands in the way on the destination.
func (s *sender) hearReady(ctx context.Context) ([]checkpoint.Problem, error) {
	h, err := s.next(ctx, msgReady, msgProblems)
	if err != nil {
		return nil, err
	}
	b, err := decode(h.message, s.id)
	if err != nil {
		return nil, err
	}
	s.wants = b.Wants
	if h.message.Type == msgProblems && len(b.Problems) == 0 {
		return nil, &ProtocolError{Reason: "it refused without a reason"}
	}
	for i := range b.Problems {
		b.Problems[i].Host = string(journal.Destination)
	}
	return b.Problems, nil
}

func (s *sender) awaitRunning(ctx context.Context) (err error) {
	most := cmp.Or(s.opts.AskFor, defaultAskFor)
	ctx, cancel := context.WithTimeoutCause(ctx, most, fmt.Errorf("the service is not live within %v", most))
	defer cancel()
	ctx, deaf := s.heed(ctx)
	defer deaf()
	s.running, err = s.expect(ctx, msgRunning)
	return err
}

// do performs an action of the source.
func (s *sender) do(ctx context.Context, a action) (err error) {
	switch a {
	case doOffer:
		return s.makeOffer(ctx)
	case sendOffer:
		return s.sendOffer(ctx)
	case doBegin:
		return s.service.Begin(ctx, s.log)
	case sendBuild:
		return s.say(ctx, msgBuild, body{})
	case doPrecopy:
		return s.line.during(ctx, s.id, func(ctx context.Context) error {
			return s.service.Precopy(ctx, s.wants, s.sendEntry)
		})
	case doFreeze:
		return s.freeze(ctx)
	case sendPrepare:
		return s.say(ctx, msgPrepare, body{Final: s.final})
	case doKeep:
		return s.service.Keep(ctx)
	case sendReleased:
		if err := s.say(ctx, msgReleased, body{}); err != nil {
			return err
		}
		s.sendHeld(ctx)
		return nil
	case doAsk:
		return s.ask(ctx)
	case doEnd:
		s.clock.Phase("end", false)
		return s.service.End(ctx)
	case sendBye:
		s.sendHeld(ctx)
		return s.say(ctx, msgBye, body{})
	case doResume:
		return s.service.Resume(ctx)
	case sendAbort:
		return s.sayAbort(ctx)
	}
	return fmt.Errorf("a source doesn't know how to %q", a)
}

// sendHeld passes on what reached the service since it stood still. If it gets lost, its senders send it again.
func (s *sender) sendHeld(ctx context.Context) {
	held := s.service.Held(ctx)
	if len(held) == 0 || s.line == nil {
		return
	}
	s.sendEntry(ctx, heldEntry, int64(len(held)), bytes.NewReader(held)) //nolint:errcheck // see above
}

func (s *sender) makeOffer(ctx context.Context) (err error) {
	if s.offer, err = s.service.Offer(ctx); err != nil {
		return err
	}
	s.offer.ID = s.id
	s.offer.DryRun = s.opts.DryRun || len(s.offer.Problems) > 0
	s.about = s.offer.About
	return nil
}

func (s *sender) sendOffer(ctx context.Context) error {
	if err := s.line.send(ctx, s.id, msgOffer, s.offer); err != nil {
		return err
	}
	return s.line.during(ctx, s.id, func(ctx context.Context) error {
		for _, a := range s.offer.Attachments {
			if err := s.sendAttachment(ctx, a); err != nil {
				return err
			}
		}
		return nil
	}, msgReady, msgProblems)
}

func (s *sender) sendAttachment(ctx context.Context, a Attachment) error {
	r, err := a.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	return s.line.sendEntry(ctx, s.id, a.Name, a.Size, r)
}

// freeze makes the service stand still, from now on for a bounded time.
func (s *sender) freeze(ctx context.Context) error {
	most := cmp.Or(s.opts.Frozen, defaultFrozen)
	s.watch = time.AfterFunc(most, func() {
		s.tooLong(fmt.Errorf("the service stood still for %v", most))
	})
	s.clock.Phase("freeze", true)
	return s.line.during(ctx, s.id, func(ctx context.Context) (err error) {
		s.final, err = s.service.Freeze(ctx, s.sendEntry)
		return err
	})
}

func (s *sender) stopWatch() {
	if s.watch != nil {
		s.watch.Stop()
	}
}

// concede takes a failed migration back, as far as it still can be taken back.
func (s *sender) concede(ctx context.Context, cause error) (*Report, error) {
	failed := s.fails(cause)
	switch s.state {
	case Idle, Offered:
		s.sayAbort(ctx) //nolint:errcheck // the other side notices anyway
		if refused, ok := errors.AsType[*checkpoint.RefusedError](cause); ok {
			return nil, refused
		}
		return nil, failed
	case Running, Frozen:
		s.clock.Phase("resume", s.state == Frozen)
		failed.State, failed.Stuck = Resumed, s.on(ctx, onFailed)
		return nil, failed
	}
	if _, said := errors.AsType[*PeerError](cause); said { // which is as good as an answer
		return s.conclude(ctx, onAborted)
	}
	return s.conclude(ctx, onFailed)
}

// conclude brings a service that was released to where it lives.
func (s *sender) conclude(ctx context.Context, e event) (*Report, error) {
	for {
		s.learnt = ""
		err := s.on(ctx, e)
		switch {
		case s.state == Ended:
			r := s.report(Moved)
			if s.running != nil {
				r.PeerPhases, r.PeerReport = s.running.Phases, s.running.Report
			}
			if err != nil {
				r.Leftover = &StuckError{ID: s.id, State: s.state, Err: err}
			}
			return r, nil
		case s.state == Resumed:
			return nil, &FailedError{
				ID: s.id, Role: s.role, Phase: s.phase, State: s.state, Err: s.cause, Stuck: err,
			}
		case err != nil:
			return nil, s.inDoubt(err)
		}
		e = s.learnt
	}
}

func (s *sender) sendEntry(ctx context.Context, name string, size int64, r io.Reader) error {
	return s.line.sendEntry(ctx, s.id, name, size, r)
}
