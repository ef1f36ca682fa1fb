package migrate

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"path"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/netstate"
	"github.com/nsmigrate/nsmigrate/transfer/frozen"
	"github.com/nsmigrate/nsmigrate/transfer/handover"
	"github.com/nsmigrate/nsmigrate/transfer/journal"
)

// Source is the service of a migration on the host where it lives. It implements [handover.Service].
type Source struct {
	Spec     checkpoint.Spec
	Options  checkpoint.Options
	Wish     Wish
	Files    Files               // "" is auto
	Ship     []string            // what travels along besides: absolute paths of files, and of directories with all below them
	Progress checkpoint.Progress // told how much of the files is sent; may be nil
	About    any                 // for the journals and for people
	Guard    StartGuard

	service *checkpoint.Service
	offered *netstate.State
	cargo   *cargo // nil if no files travel
	turn    inTurn // of what [Source.Freeze] sends
	journal *journal.Journal
	guard   Guard
	frozen  bool
}

// Offer implements [handover.Service].
func (s *Source) Offer(ctx context.Context) (*handover.Offer, error) {
	o := s.Options
	o.Record = func(r *checkpoint.Record) error { return frozen.Save(s.journal, r) }
	o.Contexts = func(c checkpoint.Contexts) error { return frozen.SaveContexts(s.journal, c) }
	o.Frozen, o.Captured = s.sendFinal, s.sendDelta
	o.Pages = s.turn.send
	o.Gather = true
	var err error
	if s.service, err = checkpoint.Open(ctx, s.Spec, o); err != nil {
		return nil, err
	}
	manifest, err := json.Marshal(offer{Service: s.service.Manifest(), Wish: s.Wish})
	if err != nil {
		return nil, err
	}
	s.offered = s.service.State()
	var state bytes.Buffer
	if _, err := s.offered.WriteTo(&state); err != nil {
		return nil, err
	}
	about, err := json.Marshal(s.About)
	if err != nil {
		return nil, err
	}
	offer := &handover.Offer{Manifest: manifest, About: about, Problems: s.service.Problems(), Attachments: []handover.Attachment{{
		Name: checkpoint.StateFile,
		Size: int64(state.Len()),
		Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(state.Bytes())), nil },
	}}}
	return offer, s.offerFiles(ctx, offer)
}

// offerFiles adds the files that travel along to an offer.
func (s *Source) offerFiles(ctx context.Context, o *handover.Offer) error {
	if s.Files == FilesNone && len(s.Ship) == 0 {
		return nil
	}
	s.cargo = &cargo{service: s.service, auto: s.Files != FilesNone, named: s.Ship, progress: s.Progress}
	problems, err := s.cargo.survey(ctx)
	if err == nil && len(problems) == 0 {
		o.Attachments = append(o.Attachments, s.cargo.attachment())
	}
	o.Problems = append(o.Problems, problems...)
	return err
}

// Begin implements [handover.Service].
func (s *Source) Begin(_ context.Context, j *journal.Journal) error {
	s.journal = j
	var err error
	s.guard, err = s.Guard.start(j)
	return err
}

// Precopy implements [handover.Service].
func (s *Source) Precopy(ctx context.Context, wants json.RawMessage, send handover.SendEntry) error {
	if s.cargo != nil {
		files, err := s.cargo.wanted(wants)
		if err != nil {
			return err
		}
		if err := s.cargo.refuseShared(s.journal.ID); err != nil {
			return err
		}
		if err := s.cargo.send(ctx, files, send); err != nil {
			return err
		}
	}
	return s.service.Prepare(ctx)
}

// Freeze implements [handover.Service].
func (s *Source) Freeze(ctx context.Context, send handover.SendEntry) (json.RawMessage, error) {
	s.frozen, s.turn.next = true, send
	dirs := []string{path.Dir(checkpoint.SocketsFile)}
	for _, t := range s.service.Manifest().Trees {
		dirs = append(dirs, t.Dir)
	}
	e := sendEarly(ctx, s.service.Image(), dirs, s.turn.send)
	err := s.service.Freeze(ctx)
	s.service.Phase("send image")
	before, sending := e.finish()
	if err := cmp.Or(err, sending); err != nil {
		return nil, err
	}
	if err := sendImage(ctx, s.service.Image(), before, s.turn.send); err != nil {
		return nil, err
	}
	s.service.Phase("hand over")
	s.service.Gather() // while the other host restores
	return json.Marshal(s.service.Manifest())
}

// sendFinal sends what is new about the files when nobody in the service writes to them any more, while CRIU reads the
// service.
func (s *Source) sendFinal(ctx context.Context) error {
	if s.cargo == nil {
		return nil
	}
	return s.cargo.finish(ctx, s.turn.send)
}

// sendDelta sends what became of the network state since it was offered.
func (s *Source) sendDelta(ctx context.Context, state *netstate.State) error {
	d, err := netstate.Difference(s.offered, state)
	if err != nil {
		return err
	}
	var delta bytes.Buffer
	if _, err := d.WriteTo(&delta); err != nil {
		return err
	}
	return s.turn.send(ctx, deltaFile, int64(delta.Len()), &delta)
}

// Keep implements [handover.Service].
func (s *Source) Keep(context.Context) error { return s.service.Keep() }

// Held implements [handover.Service].
func (s *Source) Held(context.Context) []byte {
	if s.service == nil {
		return nil // it was kept by the process that died
	}
	return s.service.Arrived()
}

// errGivenUp is why a service is resumed; the handover knows the cause.
var errGivenUp = errors.New("the migration was given up")

// Resume implements [handover.Service].
func (s *Source) Resume(ctx context.Context) error {
	if s.service == nil {
		return s.recorded(ctx, (*checkpoint.Record).Resume)
	}
	if !s.frozen {
		s.service.Close()
		return nil
	}
	return s.service.Resume(errGivenUp).Stuck
}

// End implements [handover.Service].
func (s *Source) End(ctx context.Context) error {
	if s.service == nil {
		return s.recorded(ctx, (*checkpoint.Record).End)
	}
	return s.service.End(ctx)
}

// recorded does what is left to be done after a process that died.
func (s *Source) recorded(ctx context.Context, do func(*checkpoint.Record, context.Context) error) error {
	if s.journal.Rebooted() {
		return nil // nothing is left
	}
	r, err := frozen.Load(&s.journal.Content)
	if err != nil || r == nil {
		return err
	}
	if err := do(r, ctx); err != nil && !errors.Is(err, checkpoint.ErrGone) {
		return err
	}
	return nil
}

// Report tells what CRIU and the phases of the dump took.
func (s *Source) Report() *checkpoint.Report {
	if s.service == nil {
		return nil
	}
	return s.service.Report()
}

// FilesReport tells which files travelled along, nil if none were to. wants is what the destination wanted, of a
// migration that was only tried.
func (s *Source) FilesReport(wants json.RawMessage) (*FilesReport, error) {
	if s.cargo == nil {
		return nil, nil
	}
	if wants != nil {
		if _, err := s.cargo.wanted(wants); err != nil {
			return nil, err
		}
	}
	return &s.cargo.report, nil
}

// Close releases what the migration needs of this host. A service in doubt stays frozen and mute.
func (s *Source) Close() {
	s.dismiss()
	if s.cargo != nil {
		s.cargo.close()
	}
	if s.service != nil {
		s.service.Close()
	}
}

func (s *Source) dismiss() {
	if s.guard != nil {
		s.guard.Dismiss()
		s.guard = nil
	}
}

// ReopenSource is the source of a migration whose process has died.
func ReopenSource(j *journal.Journal) *Source { return &Source{journal: j} }
