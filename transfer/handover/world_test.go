package handover_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/transfer/handover"
	"github.com/nsmigrate/nsmigrate/transfer/journal"
	"github.com/nsmigrate/nsmigrate/transfer/stream"
)

// copyState is what a copy of the service does.
type copyState string

const (
	none    copyState = "none"
	partial copyState = "partial" // mute
	stopped copyState = "stopped" // and mute
	runs    copyState = "runs"
)

// world is two hosts with at most a copy of one service on each, and what was done to them.
type world struct {
	asked sync.WaitGroup // until the questions are answered

	t *testing.T

	mu     sync.Mutex
	copies map[journal.Role]copyState
	kept   bool                  // the source's copy stays frozen when its process ends
	served bool                  // the destination's copy has run
	booted map[journal.Role]bool // the host was restarted
	story  map[journal.Role][]string

	dirs        map[journal.Role]journal.Dir
	fail        map[string]error // by "role method": what fails, once
	stubborn    map[string]error // what always fails
	problems    map[journal.Role][]checkpoint.Problem
	unreachable error // why the destination can't be dialled
	dryRun      bool
	at          func(s handover.Step) error
	then        map[string]func() // by action: what happens then, once
	seen        map[handover.Step]bool
}

func newWorld(t *testing.T) *world {
	t.Helper()
	path, err := os.MkdirTemp(memoryDir(), "handover")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(path) })
	w := &world{
		t:        t,
		copies:   map[journal.Role]copyState{journal.Source: runs, journal.Destination: none},
		story:    map[journal.Role][]string{},
		dirs:     map[journal.Role]journal.Dir{},
		fail:     map[string]error{},
		stubborn: map[string]error{},
		problems: map[journal.Role][]checkpoint.Problem{},
		then:     map[string]func(){},
		seen:     map[handover.Step]bool{},
		booted:   map[journal.Role]bool{},
	}
	for role := range w.copies {
		w.dirs[role] = journal.Dir{Path: filepath.Join(path, string(role)), Boot: "boot-1"}
	}
	return w
}

// memoryDir is where files cost no write to a disk, if there is such a place: the tests make thousands.
func memoryDir() string {
	const shm = "/dev/shm"
	if info, err := os.Stat(shm); err == nil && info.IsDir() {
		return shm
	}
	return ""
}

// tell adds a line to a host's story.
func (w *world) tell(role journal.Role, format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.story[role] = append(w.story[role], fmt.Sprintf(format, args...))
}

// set changes a copy, and checks what must hold at any moment.
func (w *world) set(role journal.Role, s copyState) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.served && (role == journal.Source && s == runs || role == journal.Destination && s != runs && !w.booted[role]) {
		w.t.Errorf("after the service went live on the destination: the %s's copy is %s", role, s)
	}
	w.copies[role] = s
	if w.copies[journal.Source] == runs && w.copies[journal.Destination] == runs {
		w.t.Error("two copies run")
	}
	if w.copies[journal.Source] == none && w.copies[journal.Destination] != runs && len(w.booted) == 0 {
		w.t.Errorf("no copy is left, the destination's is %s", w.copies[journal.Destination])
	}
	w.served = w.served || w.copies[journal.Destination] == runs
}

func (w *world) copy(role journal.Role) copyState {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.copies[role]
}

// did tells of a call, and returns how it is to fail.
func (w *world) did(role journal.Role, method string) error {
	w.mu.Lock()
	key := string(role) + " " + method
	err := w.stubborn[key]
	for k, e := range w.fail {
		if strings.HasPrefix(key, k) {
			err = e
			delete(w.fail, k)
		}
	}
	w.mu.Unlock()
	if err != nil {
		w.tell(role, "%s fails: %v", method, err)
		return err
	}
	w.tell(role, "%s", method)
	return nil
}

// crash is what the kernel does when the process of a host ends.
func (w *world) crash(role journal.Role) {
	w.tell(role, "the process is killed")
	if role == journal.Source && !w.kept && w.copy(role) == stopped {
		w.set(role, runs)
	}
}

// restart is what is left of a host that is restarted: the files.
func (w *world) restart(role journal.Role) {
	w.tell(role, "the host is restarted")
	w.mu.Lock()
	w.booted[role] = true
	d := w.dirs[role]
	d.Boot = "boot-2"
	w.dirs[role] = d
	w.mu.Unlock()
	w.set(role, none)
}

// dir is a host's state directory.
func (w *world) dir(role journal.Role) journal.Dir {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dirs[role]
}

func (w *world) options(role journal.Role) handover.Options {
	o := handover.Options{At: func(_ context.Context, s handover.Step) error {
		w.tell(role, "- %s", s.Action)
		w.mu.Lock()
		w.seen[s] = true
		then := w.then[s.Action]
		delete(w.then, s.Action)
		w.mu.Unlock()
		if then != nil {
			then()
		}
		if w.at == nil {
			return nil
		}
		return w.at(s)
	}}
	if role == journal.Destination {
		o.Reopen = func(context.Context, *journal.Journal) (handover.Host, error) { return &fakeHost{w}, nil }
	} else {
		o.DryRun = w.dryRun
		o.Redial = func(ctx context.Context) (handover.Conn, error) {
			if w.unreachable != nil {
				return nil, w.unreachable
			}
			return w.dial(ctx), nil
		}
	}
	return o
}

// when has something happen right before an action, once.
func (w *world) when(action string, f func()) { w.then[action] = f }

// dial connects the source to a process of the destination.
func (w *world) dial(ctx context.Context) handover.Conn {
	here, there := pipe(w, journal.Source)
	w.asked.Go(func() { w.receive(context.WithoutCancel(ctx), there) }) //nolint:errcheck // the answer is what counts
	return here
}

func (w *world) receive(ctx context.Context, conn handover.Conn) (*handover.Report, error) {
	return handover.Receive(ctx, conn, w.dir(journal.Destination), &fakeHost{w}, w.options(journal.Destination))
}

type fakeService struct{ w *world }

func (s *fakeService) Offer(context.Context) (*handover.Offer, error) {
	if err := s.w.did(journal.Source, "Offer"); err != nil {
		return nil, err
	}
	return &handover.Offer{
		Manifest:    json.RawMessage(`{"what":"a service"}`),
		Attachments: []handover.Attachment{{Name: "netns/state", Size: 5, Open: open("state")}},
		Problems:    s.w.problems[journal.Source],
		About:       json.RawMessage(`{"netns":"svc"}`),
	}, nil
}

func open(s string) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(s)), nil }
}

func (s *fakeService) Begin(_ context.Context, j *journal.Journal) error {
	if err := s.w.did(journal.Source, "Begin"); err != nil {
		return err
	}
	return j.Note("guard", 1234)
}

func (s *fakeService) Precopy(ctx context.Context, wants json.RawMessage, send handover.SendEntry) error {
	if err := s.w.did(journal.Source, "Precopy "+string(wants)); err != nil {
		return err
	}
	return send(ctx, "files/big", -1, strings.NewReader("what changes rarely"))
}

func (s *fakeService) Freeze(ctx context.Context, send handover.SendEntry) (json.RawMessage, error) {
	s.w.set(journal.Source, stopped)
	if err := s.w.did(journal.Source, "Freeze"); err != nil {
		return nil, err
	}
	if err := send(ctx, "checkpoint/pages.img", -1, strings.NewReader("memory")); err != nil {
		return nil, err
	}
	return json.RawMessage(`{"images":1}`), nil
}

func (s *fakeService) Keep(context.Context) error {
	if err := s.w.did(journal.Source, "Keep"); err != nil {
		return err
	}
	s.w.kept = true
	return nil
}

func (s *fakeService) Held(context.Context) []byte {
	s.w.did(journal.Source, "Held") //nolint:errcheck // it can't fail
	return []byte("packets")
}

func (s *fakeService) Resume(context.Context) error {
	if err := s.w.did(journal.Source, "Resume"); err != nil {
		return err
	}
	if s.w.copy(journal.Source) == none {
		return errors.New("there is no copy")
	}
	s.w.set(journal.Source, runs)
	return nil
}

func (s *fakeService) End(context.Context) error {
	if err := s.w.did(journal.Source, "End"); err != nil {
		return err
	}
	s.w.set(journal.Source, none)
	return nil
}

type fakeHost struct{ w *world }

func (h *fakeHost) Check(_ context.Context, o *handover.Offer) (*handover.Ready, error) {
	if err := h.w.did(journal.Destination, "Check "+string(o.Manifest)); err != nil {
		return nil, err
	}
	return &handover.Ready{
		Problems: h.w.problems[journal.Destination], Wants: json.RawMessage(`["files/big"]`),
	}, nil
}

func (h *fakeHost) Begin(_ context.Context, j *journal.Journal) error {
	if err := h.w.did(journal.Destination, "Begin"); err != nil {
		return err
	}
	return j.Note("guard", 5678)
}

func (h *fakeHost) Build(context.Context) error {
	h.w.set(journal.Destination, partial)
	return h.w.did(journal.Destination, "Build")
}

func (h *fakeHost) Store(_ context.Context, name string, size int64, r io.Reader) error {
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	return h.w.did(journal.Destination, fmt.Sprintf("Store %s %d %q", name, size, data))
}

func (h *fakeHost) Prepare(_ context.Context, final json.RawMessage) error {
	if err := h.w.did(journal.Destination, "Prepare "+string(final)); err != nil {
		return err
	}
	h.w.set(journal.Destination, stopped)
	return nil
}

func (h *fakeHost) GoLive(context.Context) (json.RawMessage, error) {
	if h.w.copy(journal.Destination) == none {
		return nil, errors.New("there is no copy")
	}
	if err := h.w.did(journal.Destination, "GoLive"); err != nil {
		return nil, err
	}
	h.w.set(journal.Destination, runs)
	return json.RawMessage(`{"announced":3}`), nil
}

func (h *fakeHost) Deliver(_ context.Context, r io.Reader) error {
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if h.w.copy(journal.Destination) != runs {
		h.w.t.Error("packets are delivered to a service that does not live")
	}
	return h.w.did(journal.Destination, fmt.Sprintf("Deliver %q", data))
}

func (h *fakeHost) Settle(_ context.Context, tell func(error)) error {
	err := h.w.did(journal.Destination, "Settle")
	tell(err)
	return err
}

func (h *fakeHost) Undo(context.Context) error {
	if err := h.w.did(journal.Destination, "Undo"); err != nil {
		return err
	}
	h.w.set(journal.Destination, none)
	return nil
}

var (
	_ handover.Service = (*fakeService)(nil)
	_ handover.Host    = (*fakeHost)(nil)
)

// memory is an end of a connection in memory.
type memory struct {
	w      *world
	role   journal.Role // who has this end
	in     <-chan *handover.Message
	out    chan<- *handover.Message
	broken chan struct{} // closed when nothing comes through any more, in either direction
	once   *sync.Once
	closed chan struct{} // closed when this end was
	gone   <-chan struct{}
	end    sync.Once
}

// pipe returns the two ends of a connection; the first one is that of the given role.
func pipe(w *world, role journal.Role) (here, there *memory) {
	a, b := make(chan *handover.Message, 1000), make(chan *handover.Message, 1000)
	broken, once := make(chan struct{}), new(sync.Once)
	other := journal.Source
	if role == journal.Source {
		other = journal.Destination
	}
	here = &memory{w: w, role: role, in: a, out: b, broken: broken, once: once, closed: make(chan struct{})}
	there = &memory{w: w, role: other, in: b, out: a, broken: broken, once: once, closed: make(chan struct{})}
	here.gone, there.gone = there.closed, here.closed
	return here, there
}

var errCut = errors.New("the cable is cut")

// cut loses everything on the way.
func (m *memory) cut() { m.once.Do(func() { close(m.broken) }) }

func (m *memory) put(ctx context.Context, message *handover.Message) error {
	select {
	case <-m.broken:
		return errCut
	case <-m.closed:
		return errors.New("closed")
	case <-m.gone:
		return errors.New("the other end is closed")
	case <-ctx.Done():
		m.cut()
		return context.Cause(ctx)
	default:
	}
	select {
	case m.out <- message:
		return nil
	case <-m.broken:
		return errCut
	}
}

func (m *memory) Send(ctx context.Context, typ string, body any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	m.w.tell(m.role, "> %s", typ)
	return m.put(ctx, &handover.Message{Type: typ, Body: raw})
}

func (m *memory) SendEntry(ctx context.Context, name string, size int64, r io.Reader) error {
	data, err := io.ReadAll(r)
	var content io.Reader = bytes.NewReader(data)
	if err != nil {
		content = io.MultiReader(content, failing{stream.ErrCanceled})
	}
	m.w.tell(m.role, "> entry %s", name)
	return errors.Join(err, m.put(ctx, &handover.Message{Entry: &handover.Entry{Name: name, Size: size, Reader: content}}))
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// Receive takes a moment, another one on each host, so that never two things happen at the same time: the stories are
// the same each time.
func (m *memory) Receive(ctx context.Context) (*handover.Message, error) {
	time.Sleep(m.latency())
	select {
	case <-m.broken:
		return nil, errCut
	default:
	}
	select {
	case message := <-m.in:
		return message, nil
	default:
	}
	select {
	case message := <-m.in:
		time.Sleep(m.latency())
		return message, nil
	case <-m.broken:
		return nil, errCut
	case <-m.closed:
		return nil, errors.New("closed")
	case <-m.gone:
		time.Sleep(m.latency())
		select {
		case message := <-m.in:
			return message, nil
		default:
			return nil, io.EOF
		}
	case <-ctx.Done():
		select {
		case <-m.closed: // what was sent still arrives
		default:
			m.cut()
		}
		return nil, context.Cause(ctx)
	}
}

func (m *memory) latency() time.Duration {
	if m.role == journal.Source {
		return 1000 * time.Microsecond
	}
	return 1007 * time.Microsecond
}

func (m *memory) Close() error {
	m.end.Do(func() { close(m.closed) })
	return nil
}

// told returns a host's story.
func (w *world) told(role journal.Role) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.story[role], "\n") + "\n"
}
