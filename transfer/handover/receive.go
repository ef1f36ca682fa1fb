package handover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/transfer/journal"
	"github.com/nsmigrate/nsmigrate/transfer/stream"
)

const (
	liveFor = 10 * time.Second // how long it is tried to go live, before a person is needed
	liveTry = 50 * time.Millisecond
	byeFor  = 10 * time.Second // how long the source's BYE is awaited
)

// Receive takes a service over from the source at the other end of conn, which it closes; or it answers a source that
// asks what became of a migration, and then the report has [Report.Answered]. Until the service goes live, ctx can
// stop it.
//
// Errors: [*checkpoint.RefusedError] if something stands in the way and nothing was changed; [*FailedError] if it
// began and failed, which says whether anything is left of it; [*StuckError] if the service is to live here and could
// not be brought to life.
func Receive(ctx context.Context, conn Conn, dir journal.Dir, host Host, o Options) (*Report, error) {
	r := &receiver{party: newParty(journal.Destination, dir, o), host: host}
	r.perform = r.do
	r.line = listen(ctx, conn, journal.Source)
	defer r.close()
	r.clock.Phase("preflight", false)
	first, err := r.next(ctx, msgOffer, msgQuery)
	if err == nil && first.message.Type == msgQuery {
		return r.answer(ctx, first.message)
	}
	if err == nil {
		err = r.takeOver(ctx, first.message)
	}
	if err != nil {
		return r.concede(context.WithoutCancel(ctx), err)
	}
	return r.result, nil
}

// receiver is the destination's part.
type receiver struct {
	party
	host   Host
	offer  *Offer
	ready  *Ready
	entry  heard           // the one to be stored
	final  json.RawMessage // of the service
	live   json.RawMessage // the report of having gone live
	lives  bool            // it has
	result *Report
}

// takeOver is the story of a migration that goes well, from the offer on.
func (r *receiver) takeOver(ctx context.Context, offer *Message) (err error) {
	if r.offer, err = decodeOffer(offer); err != nil {
		return err
	}
	r.id, r.about = r.offer.ID, r.offer.About
	if err := r.on(ctx, onOffer); err != nil {
		return err
	}
	h, err := r.next(ctx, msgBuild, msgBye)
	if err != nil {
		return err
	}
	if _, err := decode(h.message, r.id); err != nil {
		return err
	}
	if h.message.Type == msgBye {
		r.result = r.report(Checked)
		return nil
	}

	r.clock.Phase("build", false)
	if err := r.on(ctx, onBuild); err != nil {
		return err
	}
	r.clock.Phase("receive", false)
	if err := r.storeEntries(ctx); err != nil {
		return err
	}
	r.clock.Phase("restore", true)
	if err := r.on(ctx, onPrepare); err != nil {
		return err
	}

	r.clock.Phase("handover", true)
	if _, err := r.expect(ctx, msgReleased); err != nil {
		return err
	}
	if err := r.on(ctx, onReleased); err != nil {
		return err
	}
	if err := r.on(ctx, onBye); err != nil {
		return err
	}
	r.result = r.report(Moved)
	return nil
}

// storeEntries stores what the source sends until it has sent all.
func (r *receiver) storeEntries(ctx context.Context) error {
	for {
		h, err := r.next(ctx, "", msgPrepare)
		if err != nil {
			return err
		}
		if h.message.Entry == nil {
			b, err := decode(h.message, r.id)
			if err != nil {
				return err
			}
			r.final = b.Final
			return nil
		}
		r.entry = h
		if err := r.on(ctx, onEntry); err != nil {
			return err
		}
	}
}

// do performs an action of the destination.
func (r *receiver) do(ctx context.Context, a action) error {
	switch a {
	case doCheck:
		return r.check(ctx)
	case sendReady:
		return r.say(ctx, msgReady, body{Wants: r.ready.Wants})
	case doBegin:
		return r.host.Begin(ctx, r.log)
	case doBuild:
		return r.line.during(ctx, r.id, r.host.Build)
	case sendBuilt:
		return r.say(ctx, msgBuilt, body{})
	case doStore:
		return r.store(ctx, r.entry)
	case doPrepare:
		return r.line.during(ctx, r.id, func(ctx context.Context) error { return r.host.Prepare(ctx, r.final) })
	case sendPrepared:
		return r.say(ctx, msgPrepared, body{})
	case doGoLive:
		return r.goLive(ctx)
	case sendRunning:
		return r.say(ctx, msgRunning, body{Report: r.live, Phases: r.clock.Phases()})
	case doSettle:
		return r.settle(ctx)
	case doUndo:
		return r.host.Undo(ctx)
	case sendAbort:
		return r.sayAbort(ctx)
	}
	return fmt.Errorf("a destination doesn't know how to %q", a)
}

// check takes the attachments of the offer and looks whether it can be accepted.
func (r *receiver) check(ctx context.Context) error {
	for _, a := range r.offer.Attachments {
		h, err := r.next(ctx, "")
		if err != nil {
			return err
		}
		if e := h.message.Entry; e.Name != a.Name || e.Size != a.Size {
			return &ProtocolError{Reason: fmt.Sprintf("it sent %.64q instead of %.64q", e.Name, a.Name)}
		}
		if err := r.store(ctx, h); err != nil {
			return err
		}
	}
	err := r.line.during(ctx, r.id, func(ctx context.Context) (err error) {
		r.ready, err = r.host.Check(ctx, r.offer)
		return err
	})
	if err != nil {
		return err
	}
	return checkpoint.Refuse("migrate", r.ready.Problems)
}

func (r *receiver) store(ctx context.Context, h heard) error {
	e := h.message.Entry
	if !fs.ValidPath(e.Name) || e.Name == "." {
		return &ProtocolError{Reason: fmt.Sprintf("%.64q can't name a piece of a service", e.Name)}
	}
	if err := r.host.Store(ctx, e.Name, e.Size, e.Reader); err != nil {
		if errors.Is(err, stream.ErrCanceled) { // because the source fails: it says why
			h.read() //nolint:errcheck // known
			if _, said := r.next(ctx); said != nil {
				return said
			}
		}
		return fmt.Errorf("store %s: %w", e.Name, err)
	}
	if err := h.read(); err != nil {
		return fmt.Errorf("store %s: %w", e.Name, err)
	}
	return nil
}

// goLive brings the service to life. There is no way back, so a failure is a reason to try again.
func (r *receiver) goLive(ctx context.Context) (err error) {
	r.clock.Phase("go live", true)
	giveUp := time.After(liveFor)
	for pause := liveTry; ; pause *= 2 {
		if r.live, err = r.host.GoLive(ctx); err == nil {
			r.lives = true
			return nil
		}
		select {
		case <-time.After(pause):
		case <-giveUp:
			return err
		}
	}
}

// settle does what has time until the service is live, and hears meanwhile what the source has to say still.
func (r *receiver) settle(ctx context.Context) error {
	r.clock.Phase("settle", false)
	tell := func(trouble error) { r.saySettled(ctx, trouble) }
	if r.line == nil {
		return r.host.Settle(ctx, tell)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.hearOut(ctx)
	}()
	err := r.host.Settle(ctx, tell)
	<-done
	return err
}

// hearOut takes what reached the service on the source, until the source says that it knows of the live copy. It has
// a moment for that: else it asks, and the tombstone answers.
func (r *receiver) hearOut(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, byeFor)
	defer cancel()
	for {
		h, err := r.line.next(ctx, r.id, "", msgBye)
		if err != nil || h.message.Entry == nil || h.message.Entry.Name != heldEntry {
			return
		}
		// What can't be delivered is sent again by its sender, but the rest of what is said follows it.
		r.host.Deliver(ctx, h.message.Entry) //nolint:errcheck // see above
		if h.read() != nil {
			return
		}
	}
}

// saySettled tells a source that still listens whether its user should see to anything here. [receiver.hearOut] listens
// meanwhile.
func (r *receiver) saySettled(ctx context.Context, trouble error) {
	if r.line == nil {
		return
	}
	b := body{ID: r.id}
	if trouble != nil {
		b.Reason = trouble.Error() + recoverHint(r.id) + " (there)"
	}
	r.line.tell(ctx, msgSettled, b) //nolint:errcheck // or it is told here alone
}

// concede takes a failed migration back, as far as it still can be taken back.
func (r *receiver) concede(ctx context.Context, cause error) (*Report, error) {
	failed := r.fails(cause)
	switch r.state {
	case Idle, Agreed:
		refused, ok := errors.AsType[*checkpoint.RefusedError](cause)
		if ok {
			r.say(ctx, msgProblems, body{Problems: refused.Problems}) //nolint:errcheck // the source notices anyway
			return nil, refused
		}
		r.sayAbort(ctx) //nolint:errcheck // the source notices anyway
		return nil, failed
	case Building, Prepared:
		r.clock.Phase("undo", false)
		failed.State, failed.Stuck = Aborted, r.on(ctx, onFailed)
		return nil, failed
	}
	stuck := &StuckError{ID: r.id, State: r.state, Lives: r.lives, Err: cause}
	if !r.lives {
		return nil, stuck
	}
	result := r.report(Moved)
	result.Leftover = stuck
	return result, nil
}

// answer tells a source what became of a migration.
func (r *receiver) answer(ctx context.Context, question *Message) (*Report, error) {
	var b body
	if err := json.Unmarshal(question.Body, &b); err != nil || !journal.ValidID(b.ID) {
		return nil, &ProtocolError{Reason: "a question that names no migration"}
	}
	r.id = b.ID
	verdict, reason := Answer(ctx, r.dir, b.ID, r.opts)
	if err := r.say(ctx, msgAnswer, body{Verdict: verdict, Reason: reason}); err != nil {
		return nil, err
	}
	report := r.report(Undecided)
	report.Answered = verdict
	return report, nil
}
