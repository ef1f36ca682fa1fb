package ship

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nsmigrate/nsmigrate/checkpoint"
)

// SendFunc sends one entry of a connection's stream. The size is -1: not known before the end.
type SendFunc func(ctx context.Context, name string, size int64, r io.Reader) error

// Names of the entries that are sent.
const (
	IndexEntry   = "files/index"   // [Index.Encode]
	DataEntry    = "files/data"    // for [Destination.Stage]
	ChangesEntry = "files/changes" // for [Destination.Update]; may be sent several times
)

// Source is what travels from a host, and what is known of the other host's copy.
type Source struct {
	opts     SurveyOptions
	volumes  *volumes
	bases    map[string]*place
	storages []string
	index    *Index
	tracked  map[string]*tracked
	listings map[string]listing
	notes    []string
}

// tracked is one thing that travels, as the destination was told last. Once content was sent, the sums are those of the
// destination's copy.
type tracked struct {
	Entry
	from   string // as in [Root]
	stamp  stamp
	append bool
	same   bool // both hosts see the very same file

	unnamed bool // nobody knows whether they do
}

// Stats of what was sent.
type Stats struct {
	Entries int   `json:"entries"` // that were new, changed or removed
	Bytes   int64 `json:"bytes"`   // of content
	Read    int64 `json:"read"`    // bytes of content that were read to find what was changed
}

// Survey looks at all that is to travel and reads it once: it takes long, and is for the time while the service runs.
// Problems are what can't travel; there is no Source then.
func Survey(ctx context.Context, roots []Root, opts SurveyOptions) (*Source, []checkpoint.Problem, error) {
	s := &Source{opts: opts, bases: make(map[string]*place), tracked: make(map[string]*tracked)}
	if s.opts.now == nil {
		s.opts.now = time.Now
	}
	problems, err := s.survey(ctx, roots)
	if err != nil || len(problems) > 0 {
		s.Close()
		if err != nil {
			err = fmt.Errorf("survey the files to ship: %w", err)
		}
		return nil, problems, err
	}
	return s, nil, nil
}

func (s *Source) survey(ctx context.Context, roots []Root) ([]checkpoint.Problem, error) {
	var err error
	if s.volumes, err = openVolumes(); err != nil {
		return nil, err
	}
	w, err := s.findAll(ctx, roots)
	if err != nil || len(w.problems) > 0 {
		return w.problems, err
	}
	s.listings, s.notes = w.listings, w.notes
	list := make([]*tracked, len(w.found))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i := range w.found {
		g.Go(func() (err error) {
			list[i], err = read(gctx, &w.found[i])
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	s.index = &Index{}
	kinds := map[string]Kind{"/": Directory}
	for i, t := range list {
		// What vanished is left out, and what can't be without it.
		if t == nil || validPlace(&t.Entry, kinds) != nil {
			continue
		}
		kinds[t.Path] = t.Kind
		s.setStorage(t, w.found[i].volume)
		s.tracked[t.Path] = t
		s.index.Entries = append(s.index.Entries, t.Entry)
	}
	s.index.Storages = s.storages
	return s.tooMuch(), nil
}

// tooMuch compares what travels with the limit.
func (s *Source) tooMuch() []checkpoint.Problem {
	limit, have := s.opts.Limits.Bytes, s.index.Bytes()
	if limit == 0 || have <= limit {
		return nil
	}
	return []checkpoint.Problem{{
		Kind: "file", Object: "the files to ship", Reason: fmt.Sprintf("they have %s, the limit is %s", checkpoint.Size(have), checkpoint.Size(limit)),
		Remedy: "put the data on storage that both hosts have, or raise the limit",
	}}
}

// Index returns what the destination is to be told first.
func (s *Source) Index() *Index { return s.index }

// Notes are what the user should know and is no problem.
func (s *Source) Notes() []string { return s.notes }

// Close frees the directories that are held open.
func (s *Source) Close() error {
	var errs []error
	for _, p := range s.bases {
		errs = append(errs, p.Close())
	}
	s.bases = nil
	return errors.Join(errs...)
}

// read describes what a walk came by, with the sums of all its content; nil if it is gone.
func read(ctx context.Context, n *seen) (*tracked, error) {
	t, f, err := look(n, nil)
	if t == nil || f == nil || err != nil {
		return t, err
	}
	defer f.Close()
	if t.Sums, err = digest(ctx, f, &t.Entry, slices.Collect(t.blocks())); err != nil {
		return nil, fmt.Errorf("read %s: %w", n.path, err)
	}
	return t, nil
}

// look describes what a walk came by; nil if it is gone. With a regular file comes the open file, for its content.
func look(n *seen, old *tracked) (*tracked, *os.File, error) {
	if kind := n.kind(); kind != Regular {
		e, ok, err := n.entry()
		if err != nil {
			return nil, nil, fmt.Errorf("read %s: %w", n.path, err)
		}
		if !ok || e.Kind != kind {
			return nil, nil, nil // it became something else: the next pass will see it
		}
		return track(n, e), nil, nil
	}
	f, ok, err := n.open()
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", n.path, err)
	}
	if !ok {
		return nil, nil, nil
	}
	e := Entry{Path: n.path, Kind: Regular, Held: n.root.Held, Inode: n.st.Ino, Size: int64(n.st.Size)}
	here := &place{int(f.Fd())}
	if e.Meta, err = here.metaOf(&n.st); err == nil {
		e.Data, err = extents(f, e.Size)
	}
	if err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("read %s: %w", n.path, err)
	}
	e.Block = blockSize(e.Size)
	if old != nil {
		e.Block = old.Block
	}
	return track(n, e), f, nil
}

func track(n *seen, e Entry) *tracked {
	return &tracked{Entry: e, from: n.root.From, stamp: n.stamp, append: n.root.Append}
}

// storage returns the number of a volume among those that the destination is told of.
func (s *Source) storage(v volume) int {
	if v.name == "" {
		return 0
	}
	i := slices.Index(s.storages, v.name)
	if i < 0 {
		if i = len(s.storages); i == maxStorages {
			return 0
		}
		s.storages = append(s.storages, v.name)
	}
	return i + 1
}

func (s *Source) setStorage(t *tracked, v volume) {
	t.unnamed = v.unnamed() && !t.Implied
	if t.Implied {
		v.name = ""
	}
	if t.Storage = s.storage(v); t.Storage == 0 {
		t.Inode = 0
	}
}

// Send sends what the destination wants of the index.
func (s *Source) Send(ctx context.Context, wants *Wants, send SendFunc) (Stats, error) {
	var stats Stats
	if err := wants.validate(s.index); err != nil {
		return stats, fmt.Errorf("send files: %w: %w", ErrMalformed, err)
	}
	for _, r := range wants.Same {
		for _, e := range s.index.Entries[r.First : r.First+r.Count] {
			s.tracked[e.Path].same = true
		}
	}
	err := stream(ctx, DataEntry, send, func(ctx context.Context, e *encoder) error {
		for _, want := range wants.Files {
			n, err := s.sendWanted(ctx, e, want)
			if err != nil {
				return err
			}
			stats.Entries++
			stats.Bytes += n
		}
		return nil
	})
	if err != nil {
		return stats, fmt.Errorf("send files: %w", err)
	}
	return stats, nil
}

// sendWanted sends blocks of a file as they are now, which may not be what they were at the survey: the next update
// brings the rest.
func (s *Source) sendWanted(ctx context.Context, enc *encoder, want Want) (int64, error) {
	t := s.tracked[s.index.Entries[want.Index].Path]
	if t == nil || t.Kind != Regular {
		return 0, nil // an update has replaced it
	}
	numbers := slices.Collect(t.blocks())
	base, err := s.base(t.from)
	if err != nil {
		return 0, err
	}
	f, err := base.read(t.Path[1:])
	if err != nil && ignoreGone(err) != nil {
		return 0, err
	}
	if err == nil {
		defer f.Close()
	}
	enc.of(want.Index)
	c := newContentSender(enc, f, &t.Entry)
	for _, run := range want.Blocks {
		i, _ := slices.BinarySearch(numbers, run.First)
		for ; i < len(numbers) && numbers[i] < run.First+run.Count; i++ {
			if ctx.Err() != nil {
				return c.sent, context.Cause(ctx)
			}
			t.Sums[i] = Sum{} // what the destination did not get has no content's sum
			if f == nil {
				continue
			}
			if t.Sums[i], err = c.block(numbers[i]); err != nil {
				return c.sent, fmt.Errorf("%s: %w", t.Path, err)
			}
		}
	}
	return c.sent, nil
}

// Update sends what has changed since the last call, or since [Source.Send]. While the service runs it makes the next
// call shorter; when the service is frozen it brings the destination up to date. What has the times that it had is not
// read again. roots are those of now: files that the service has opened meanwhile are to be among them. The error is a
// [*checkpoint.RefusedError] if something is there now that can't travel.
func (s *Source) Update(ctx context.Context, roots []Root, send SendFunc) (Stats, error) {
	var stats Stats
	w, err := s.findAll(ctx, roots)
	if err == nil {
		err = checkpoint.Refuse("shipping files", w.problems)
	}
	if err != nil {
		return stats, fmt.Errorf("update files: %w", err)
	}
	s.listings = w.listings
	known := len(s.storages)
	c := s.compare(w)
	err = stream(ctx, ChangesEntry, send, func(ctx context.Context, e *encoder) error {
		for _, name := range s.storages[known:] {
			e.storage(name)
		}
		for _, p := range c.removed {
			e.removed(p)
		}
		stats.Entries = len(c.removed)
		return s.sendChanged(ctx, e, c.changed, &stats)
	})
	if err != nil {
		return stats, fmt.Errorf("update files: %w", err)
	}
	return stats, nil
}

// changes is what a walk found to be different.
type changes struct {
	removed []string // without what goes with its directory
	changed []*seen  // sorted; new ones among them
}

// compare decides what is to be looked at again.
func (s *Source) compare(w *walk) changes {
	var c changes
	found := make(map[string]bool, len(w.found))
	removed := make(map[string]bool)
	remove := func(t *tracked) {
		removed[t.Path] = !t.same // of shared files the destination keeps no account
		delete(s.tracked, t.Path)
	}
	for i := range w.found {
		n := &w.found[i]
		found[n.path] = true
		old := s.tracked[n.path]
		if old != nil && !old.becomes(n) {
			remove(old)
			old = nil
		}
		switch {
		case old == nil && s.shared(n):
			s.tracked[n.path] = &tracked{
				Entry: Entry{Path: n.path, Kind: n.kind(), Target: n.first, Inode: n.st.Ino}, from: n.root.From, same: true,
			}
		case old == nil || !old.unchanged(n):
			c.changed = append(c.changed, n)
			s.storage(n.volume) // it is told before the entries
		}
	}
	for p, t := range s.tracked {
		if !found[p] {
			remove(t)
		}
	}
	for p, told := range removed {
		if told && !removed[path.Dir(p)] {
			c.removed = append(c.removed, p)
		}
	}
	slices.Sort(c.removed)
	return c
}

// becomes says that an entry can be updated to what was found, rather than be replaced.
func (t *tracked) becomes(n *seen) bool {
	return t.Kind == n.kind() && t.Implied == n.implied &&
		(t.Kind != Hardlink || t.Target == n.first) && (!t.same || t.Inode == n.st.Ino)
}

func (t *tracked) unchanged(n *seen) bool {
	return t.same || t.Implied || t.from == n.root.From && t.stamp.same(n.stamp) && t.Held == n.root.Held
}

// shared says that a file is new in a directory that both hosts see.
func (s *Source) shared(n *seen) bool {
	up := s.tracked[path.Dir(n.path)]
	return up != nil && up.same && up.Storage > 0 && s.storages[up.Storage-1] == n.volume.name
}

// news is what a second look at a file brought.
type news struct {
	t    *tracked // nil if it is gone
	f    *os.File // of a regular file
	send []int    // indexes of the blocks that the destination lacks
	read int64    // bytes that were read to find them
	err  error
}

// sendChanged looks at several files at a time, and sends one after the other.
func (s *Source) sendChanged(ctx context.Context, enc *encoder, list []*seen, stats *Stats) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make([]chan news, len(list))
	begun, ahead := 0, 2*runtime.GOMAXPROCS(0)
	var failed error
	for i := 0; i < len(list) && (failed == nil || i < begun); i++ {
		for ; failed == nil && begun < min(i+ahead, len(list)); begun++ {
			n, result := list[begun], make(chan news, 1)
			old := s.tracked[n.path]
			results[begun] = result
			go func() { result <- lookAgain(ctx, n, old) }()
		}
		r := <-results[i]
		if failed == nil && r.err == nil && r.t != nil {
			r.err = s.sendOne(ctx, enc, &r, list[i], stats)
		}
		if r.f != nil {
			r.f.Close()
		}
		if failed == nil && r.err != nil {
			failed = r.err
			cancel()
		}
	}
	return failed
}

// lookAgain describes a file as it is now, and finds the blocks that are not as they were.
func lookAgain(ctx context.Context, n *seen, old *tracked) news {
	t, f, err := look(n, old)
	r := news{t: t, f: f, err: err}
	if f == nil || err != nil {
		return r
	}
	counted := &countingReader{f: f}
	if r.send, err = t.differs(ctx, counted, old); err != nil {
		r.err = fmt.Errorf("read %s: %w", t.Path, err)
	}
	r.read = counted.n.Load()
	return r
}

// countingReader counts what is read through it.
type countingReader struct {
	f io.ReaderAt
	n atomic.Int64
}

func (c *countingReader) ReadAt(b []byte, off int64) (int, error) {
	n, err := c.f.ReadAt(b, off)
	c.n.Add(int64(n))
	return n, err
}

// differs computes the sums of the blocks that the destination has too, and returns the indexes of those that are
// different or that it does not have.
func (t *tracked) differs(ctx context.Context, f io.ReaderAt, old *tracked) ([]int, error) {
	numbers := slices.Collect(t.blocks())
	t.Sums = make([]Sum, len(numbers))
	theirs := make(map[int64]Sum)
	if old != nil {
		i := 0
		for b := range old.blocks() {
			theirs[b] = old.Sums[i]
			i++
		}
	}
	skip, err := t.onlyGrew(ctx, f, old, theirs)
	if err != nil {
		return nil, err
	}
	var again []int64
	for i, b := range numbers {
		sum, has := theirs[b]
		if has && b < skip {
			t.Sums[i] = sum
		} else if has {
			again = append(again, b)
		}
	}
	sums, err := digest(ctx, f, &t.Entry, again)
	if err != nil {
		return nil, err
	}
	var send []int
	next := 0
	for i, b := range numbers {
		sum, has := theirs[b]
		if has && b < skip {
			continue
		}
		if has {
			t.Sums[i] = sums[next]
			next++
		}
		if !has || t.Sums[i] != sum {
			send = append(send, i)
		}
	}
	return send, nil
}

// samples is how many blocks are compared before a file counts as one that only grew.
const samples = 8

// onlyGrew returns the number of the first block that can have changed. It is 0 unless all writers can but append: then
// what was there is as it was, or the file was cut off and grew again. Blocks that nobody can foresee, and always the
// last one, which is behind every cut, tell which of the two.
func (t *tracked) onlyGrew(ctx context.Context, f io.ReaderAt, old *tracked, theirs map[int64]Sum) (int64, error) {
	if old == nil || !t.append || !old.append || t.Inode != old.Inode || t.stamp.dev != old.stamp.dev || t.Size < old.Size {
		return 0, nil
	}
	whole := old.Size / old.Block
	before := Extent{0, whole * old.Block}
	if whole <= samples || !slices.Equal(within(t.Data, before), within(old.Data, before)) {
		return 0, nil
	}
	picked := []int64{0, whole - 1}
	for len(picked) < samples {
		picked = append(picked, rand.Int64N(whole))
	}
	slices.Sort(picked)
	picked = slices.DeleteFunc(slices.Compact(picked), func(b int64) bool { _, has := theirs[b]; return !has })
	sums, err := digest(ctx, f, &t.Entry, picked)
	if err != nil {
		return 0, err
	}
	for i, b := range picked {
		if sums[i] != theirs[b] {
			return 0, nil
		}
	}
	return whole, nil
}

// sendOne sends what is new about an entry.
func (s *Source) sendOne(ctx context.Context, enc *encoder, r *news, n *seen, stats *Stats) error {
	t := r.t
	stats.Read += r.read
	if !s.placed(t) {
		return nil // what it needs is gone, and so is it
	}
	s.setStorage(t, n.volume)
	old := s.tracked[t.Path]
	s.tracked[t.Path] = t
	if old != nil && len(r.send) == 0 && old.described(t) {
		return nil
	}
	stats.Entries++
	e := t.Entry
	e.Sums = nil
	enc.entry(&e)
	if len(r.send) == 0 {
		return enc.err
	}
	c := newContentSender(enc, r.f, &t.Entry)
	numbers := slices.Collect(t.blocks())
	for _, i := range r.send {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var err error
		if t.Sums[i], err = c.block(numbers[i]); err != nil {
			return fmt.Errorf("%s: %w", t.Path, err)
		}
	}
	stats.Bytes += c.sent
	return enc.err
}

// placed says that the destination has been told of what an entry needs.
func (s *Source) placed(t *tracked) bool {
	if dir := path.Dir(t.Path); dir != "/" && (s.tracked[dir] == nil || s.tracked[dir].Kind != Directory) {
		return false
	}
	if t.Kind != Hardlink {
		return true
	}
	first := s.tracked[t.Target]
	return first != nil && first.Kind == Regular
}

// described says that o is described by the same words, whatever its content.
func (t *tracked) described(o *tracked) bool {
	return t.Kind == o.Kind && t.Implied == o.Implied && t.Held == o.Held && t.Meta.equal(&o.Meta) && t.Target == o.Target &&
		t.Size == o.Size && slices.Equal(t.Data, o.Data)
}

// contentSender sends blocks of one file.
type contentSender struct {
	enc  *encoder
	f    io.ReaderAt
	e    *Entry
	buf  []byte
	sent int64
}

func newContentSender(enc *encoder, f io.ReaderAt, e *Entry) *contentSender {
	return &contentSender{enc: enc, f: f, e: e, buf: make([]byte, min(e.Block, e.Size))}
}

// block sends what of a block is data, and returns the sum of what it sent.
func (c *contentSender) block(number int64) (Sum, error) {
	off := number * c.e.Block
	b, err := readBlock(c.f, c.buf, off, c.e.Size, c.e.Data)
	if err != nil {
		return Sum{}, err
	}
	for _, part := range within(c.e.Data, Extent{off, int64(len(b))}) {
		for part.Length > 0 {
			n := min(part.Length, maxPiece)
			c.enc.data(part.Offset, b[part.Offset-off:part.Offset-off+n])
			c.sent += n
			part = Extent{part.Offset + n, part.Length - n}
		}
	}
	return sha256.Sum256(b), c.enc.err
}

// stream runs write while send reads what it writes.
func stream(ctx context.Context, name string, send SendFunc, write func(context.Context, *encoder) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		e := newEncoder(w)
		err := write(ctx, e)
		if err == nil {
			err = e.end()
		}
		w.CloseWithError(err) // nil is the end of the file
		done <- err
	}()
	err := send(ctx, name, -1, r)
	if err != nil {
		cancel()
	}
	r.CloseWithError(errNotRead)
	if werr := <-done; werr != nil && !errors.Is(werr, errNotRead) && (err == nil || !errors.Is(werr, context.Canceled)) {
		return werr // the cause of what send met
	} else if err == nil && werr != nil {
		return werr
	}
	return err
}

var errNotRead = errors.New("the stream was not read to its end")
