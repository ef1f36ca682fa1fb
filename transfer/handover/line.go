package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/nsmigrate/nsmigrate/transfer/journal"
)

// How long we wait, where nothing else bounds it.
const (
	grace  = 2 * time.Second // for a message to be sent after the user has given up
	relict = time.Second     // for what the other side said before it went away
)

// line is a connection that is listened to all the time, so that the other side can interrupt what we do.
type line struct {
	conn  Conn
	peer  journal.Role
	heard chan heard
	kept  *heard // what was heard before it was its turn
	quit  context.CancelFunc
	done  chan struct{}
}

// heard is what came in: a message, or why no other will come.
type heard struct {
	message *Message
	read    func() error // to be called when the message's entry was read: reports whether it was read to its end
	err     error
}

func listen(ctx context.Context, conn Conn, peer journal.Role) *line {
	ctx, quit := context.WithCancel(context.WithoutCancel(ctx))
	l := &line{conn: conn, peer: peer, heard: make(chan heard), quit: quit, done: make(chan struct{})}
	go l.listen(ctx)
	return l
}

func (l *line) listen(ctx context.Context) {
	defer close(l.done)
	for {
		m, err := l.conn.Receive(ctx)
		h := heard{message: m, err: err}
		read := make(chan struct{})
		if err == nil && m.Entry != nil {
			r := &endReader{r: m.Entry.Reader}
			m.Entry.Reader = r
			h.read = func() error {
				defer close(read)
				return r.check()
			}
		} else {
			close(read)
		}
		select {
		case l.heard <- h:
		case <-ctx.Done():
			return
		}
		if err != nil {
			close(l.heard)
			return
		}
		select {
		case <-read:
		case <-ctx.Done():
			return
		}
	}
}

// endReader knows whether its end was reached.
type endReader struct {
	r   io.Reader
	err error
}

func (e *endReader) Read(p []byte) (int, error) {
	if e.err != nil {
		return 0, e.err
	}
	n, err := e.r.Read(p)
	e.err = err
	return n, err
}

// WriteTo passes on what the connection's reader can do by itself.
func (e *endReader) WriteTo(w io.Writer) (int64, error) {
	if e.err != nil {
		return 0, nil
	}
	n, err := io.Copy(w, e.r)
	if err == nil {
		e.err = io.EOF
	}
	return n, err
}

// check makes sure that all was read and arrived as it was sent.
func (e *endReader) check() error {
	var b [1]byte
	for e.err == nil {
		if n, _ := e.Read(b[:]); n > 0 {
			return errors.New("it was not read to its end")
		}
	}
	if errors.Is(e.err, io.EOF) {
		return nil
	}
	return e.err
}

// hangUp closes the connection; what was sent still arrives.
func (l *line) hangUp() error {
	err := l.conn.Close()
	l.quit()
	<-l.done
	return err
}

// next returns the next message or entry that is one of the given types, "" being an entry. Errors: *PeerError if it
// is an ABORT of the migration id, *ProtocolError if it is anything else, that of the connection, and that of ctx.
func (l *line) next(ctx context.Context, id string, types ...string) (heard, error) {
	if ctx.Err() != nil {
		return heard{}, context.Cause(ctx)
	}
	if l.kept != nil {
		h := *l.kept
		l.kept = nil
		return h, l.judge(h, id, types...)
	}
	select {
	case h := <-l.heard:
		return h, l.judge(h, id, types...)
	case <-ctx.Done():
		return heard{}, context.Cause(ctx)
	}
}

func (l *line) judge(h heard, id string, types ...string) error {
	switch {
	case h.err != nil && !errors.Is(h.err, io.EOF):
		return fmt.Errorf("the %s can't be heard any more: %w", l.peer, h.err)
	case h.message == nil:
		return fmt.Errorf("the %s can't be heard any more: %w", l.peer, errLost)
	case h.message.Entry == nil && h.message.Type == "":
		return &ProtocolError{Reason: "a message without a type"}
	case slices.Contains(types, h.message.Type):
		return nil
	case h.message.Entry != nil:
		return &ProtocolError{Reason: fmt.Sprintf("it sent %.64q, which was not expected", h.message.Entry.Name)}
	case h.message.Type == msgAbort:
		b, err := decode(h.message, id, "") // perhaps it hadn't understood the ID
		if err != nil {
			return err
		}
		return &PeerError{Role: l.peer, Reason: b.Reason, Problems: b.Problems}
	}
	return &ProtocolError{Reason: fmt.Sprintf("message %.64q was not expected", h.message.Type)}
}

// expect returns the body of the next message, which is of the given type.
func (l *line) expect(ctx context.Context, id, typ string) (*body, error) {
	h, err := l.next(ctx, id, typ)
	if err != nil {
		return nil, err
	}
	return decode(h.message, id)
}

// during calls f and gives it up when anything is heard from the other side, which has nothing to say meanwhile but
// that it gives up. In that case the error is what was heard. A message of the given types, which may answer what f has
// just sent, waits for its turn.
func (l *line) during(ctx context.Context, id string, f func(ctx context.Context) error, types ...string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	select {
	case err := <-done:
		return err
	case h := <-l.heard:
		err := l.judge(h, id, types...)
		if err == nil {
			l.kept = &h
			return <-done
		}
		cancel(err)
		<-done
		return err
	}
}

// send sends a message. If ctx ends, it still has a moment: the reason is worth to be heard.
func (l *line) send(ctx context.Context, id, typ string, body any) error {
	ctx, cancel := lingering(ctx)
	defer cancel()
	return l.explain(id, l.conn.Send(ctx, typ, body))
}

// tell sends a message like send, and leaves what is heard meanwhile to the goroutine that listens.
func (l *line) tell(ctx context.Context, typ string, body any) error {
	ctx, cancel := lingering(ctx)
	defer cancel()
	return l.conn.Send(ctx, typ, body)
}

// sendEntry sends an entry. If ctx ends, r fails, the other side is told, and the connection can be used on.
func (l *line) sendEntry(ctx context.Context, id, name string, size int64, r io.Reader) error {
	outer := ctx
	ctx, cancel := lingering(ctx)
	defer cancel()
	err := l.conn.SendEntry(ctx, name, size, readerFunc(func(p []byte) (int, error) {
		if outer.Err() != nil {
			return 0, context.Cause(outer)
		}
		return r.Read(p)
	}))
	if outer.Err() != nil {
		return err
	}
	return l.explain(id, err)
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// lingering returns a context that ends a moment after ctx.
func lingering(ctx context.Context) (context.Context, context.CancelFunc) {
	inner, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-timer.C:
			cancel(context.Cause(ctx))
		case <-inner.Done():
		}
	})
	return inner, func() {
		stop()
		cancel(nil)
	}
}

// explain replaces the error of a connection that broke while we sent by what the other side said before.
func (l *line) explain(id string, err error) error {
	if err == nil {
		return nil
	}
	timer := time.NewTimer(relict)
	defer timer.Stop()
	select {
	case h, ok := <-l.heard:
		if !ok {
			return err
		}
		if said, ok := errors.AsType[*PeerError](l.judge(h, id)); ok {
			return said
		}
		l.kept = &h // it may be worth to be heard in its turn
	case <-timer.C:
	}
	return err
}
