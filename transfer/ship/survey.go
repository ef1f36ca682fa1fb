package ship

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint"
)

// Root is a file that travels, or a directory that travels with everything below it.
type Root struct {
	Path string // absolute; its place on the destination, below the root there
	// From is the directory below which Path is found on the source, e.g. "/proc/PID/root"; "" is
	// [SurveyOptions].Root.
	From string
	// Held says that the service has the file open for writing. Other paths were named by the user.
	Held bool
	// Append says that all who have it open can only append to it: what was there stays as it is.
	Append bool
	// Mapped says that a shared mapping writes to it, of which the file's time may say nothing.
	Mapped bool
}

// SurveyOptions of a survey.
type SurveyOptions struct {
	Root   string // the directory that stands for "/"; "" is "/" itself
	Limits Limits // of what is read

	now func() time.Time // set by tests
}

// stamp tells whether a file was changed since.
type stamp struct {
	dev, inode   uint64
	size         uint64
	mtime, ctime Time
	// sure says that any later change gives another stamp. It does not if the last change was a moment ago, by the
	// file system's clock, or if nobody knows that clock.
	sure bool
}

func (a stamp) same(b stamp) bool {
	b.sure = a.sure
	return a.sure && a == b
}

func stampOf(st *info, v volume, now time.Time) stamp {
	s := stamp{
		dev: st.dev(), inode: st.Ino, size: st.Size, mtime: st.mtime(),
		ctime: Time{st.Ctime.Sec, st.Ctime.Nsec},
	}
	// Times come from a clock that ticks at least every 10 ms; some file systems keep full seconds, or two.
	grain := 20 * time.Millisecond
	if s.ctime.Nsec == 0 && s.mtime.Nsec == 0 {
		grain = 2100 * time.Millisecond
	}
	s.sure = !v.remote && now.Sub(time.Unix(s.ctime.Sec, int64(s.ctime.Nsec))) > grain
	return s
}

// seen is one thing that a walk came by.
type seen struct {
	path    string
	base    *place
	st      info
	volume  volume
	stamp   stamp
	implied bool
	root    Root   // its flags
	first   string // another name of the same file that comes before
	now     func() time.Time
}

func (s *seen) rel() string { return s.path[1:] }

// restamp follows a new look at the file.
func (s *seen) restamp() {
	s.stamp = stampOf(&s.st, s.volume, s.now())
	s.stamp.sure = s.stamp.sure && !s.root.Mapped
}

// kind is what is to travel.
func (s *seen) kind() Kind {
	if s.first != "" {
		return Hardlink
	}
	return kindOf(s.st.kind())
}

// listing is a directory as it was read last.
type listing struct {
	stamp stamp
	names []string
}

// walk finds everything that travels.
type walk struct {
	src      *Source
	flags    map[string]Root
	mu       sync.Mutex
	found    []seen
	problems []checkpoint.Problem
	notes    []string
	listings map[string]listing
	over     bool // more entries than the limit
}

// findAll walks the roots. The result is sorted by path.
func (s *Source) findAll(ctx context.Context, roots []Root) (*walk, error) {
	w := &walk{src: s, flags: make(map[string]Root), listings: make(map[string]listing)}
	for _, r := range roots {
		if have, ok := w.flags[r.Path]; ok { // two processes with one file
			r.Held, r.Mapped, r.Append = r.Held || have.Held, r.Mapped || have.Mapped, r.Append && have.Append
			if r.From != have.From {
				w.problem(r.Path, "two trees see different files under this path", "ship it yourself before")
			}
		}
		w.flags[r.Path] = r
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0) + 1)
	visited := make(map[string]bool)
	for _, r := range sortedRoots(w.flags) {
		if visited[r.Path] || w.insideAnother(r) {
			continue
		}
		visited[r.Path] = true
		if err := w.root(gctx, g, r, visited); err != nil {
			return nil, errors.Join(err, g.Wait())
		}
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	w.finish()
	return w, nil
}

func sortedRoots(flags map[string]Root) []Root {
	roots := make([]Root, 0, len(flags))
	for _, r := range flags {
		roots = append(roots, r)
	}
	slices.SortFunc(roots, func(a, b Root) int { return cmp.Compare(a.Path, b.Path) })
	return roots
}

// insideAnother says that a directory travels that r is in. Held files are no directories.
func (w *walk) insideAnother(r Root) bool {
	for dir := path.Dir(r.Path); dir != "/" && dir != "."; dir = path.Dir(dir) {
		if up, ok := w.flags[dir]; ok && !up.Held && up.From == r.From {
			return true
		}
	}
	return false
}

func (w *walk) problem(object, reason, remedy string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.problems = append(w.problems, checkpoint.Problem{Kind: "file", Object: object, Reason: reason, Remedy: remedy})
}

func (w *walk) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.notes = append(w.notes, fmt.Sprintf(format, args...))
}

// root walks one root and adds the directories that lead to it.
func (w *walk) root(ctx context.Context, g *errgroup.Group, r Root, visited map[string]bool) error {
	if err := validPath(r.Path); err != nil || !r.Held && belongsToHost(r.Path) {
		reason := "it belongs to the host, not to a service"
		if err != nil && r.Path != "/" {
			reason = err.Error()
		}
		w.problem(r.Path, reason, "name the service's own files and directories")
		return nil
	}
	base, err := w.src.base(r.From)
	if err != nil {
		return err
	}
	st, err := base.stat(r.Path[1:])
	switch {
	case errors.Is(err, unix.ENOENT) && r.Held:
		return nil // deleted: it travels within the image of the process that holds it
	case errors.Is(err, unix.ENOENT):
		w.problem(r.Path, "it does not exist", "")
		return nil
	case errors.Is(err, unix.ELOOP):
		w.problem(r.Path, "a directory in its path is a symbolic link", w.src.realPath(r))
		return nil
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EACCES), errors.Is(err, unix.ENAMETOOLONG):
		w.problem(r.Path, "it can't be read: "+errors.Unwrap(err).Error(), "")
		return nil
	case err != nil:
		return err
	}
	v, err := w.volume(base, r.Path[1:], &st)
	if err != nil || v.pseudo && r.Held {
		return ignoreGone(err)
	}
	if v.pseudo {
		w.pseudo(r.Path)
		return nil
	}
	for dir := path.Dir(r.Path); dir != "/" && !visited[dir]; dir = path.Dir(dir) {
		visited[dir] = true
		up, err := base.stat(dir[1:])
		if err != nil {
			return ignoreGone(fmt.Errorf("%s: %w", dir, err))
		}
		if err := w.add(seen{path: dir, base: base, st: up, implied: true, root: Root{From: r.From}}); err != nil {
			return err
		}
	}
	if st.kind() == unix.S_IFLNK && !r.Held {
		w.followed(r, base)
	}
	return w.visit(ctx, g, seen{path: r.Path, base: base, st: st, root: r})
}

// full says that there is more than may travel.
func (w *walk) full() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.over
}

// volume returns what a file lies on.
func (w *walk) volume(p *place, rel string, st *info) (volume, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.src.volumes.of(p, rel, st)
}

func (w *walk) pseudo(path string) {
	w.problem(path, "it lies on a file system of the kernel", "name the files beside it one by one")
}

// followed wants what a named symbolic link leads to to travel too: the link alone is most likely not what was meant.
func (w *walk) followed(r Root, base *place) {
	target, err := readlink(base, r.Path[1:])
	if err != nil {
		return // a walk will say so
	}
	if !path.IsAbs(target) {
		target = path.Join(path.Dir(r.Path), target)
	}
	target = path.Clean(target)
	if _, ok := w.flags[target]; ok || w.insideAnother(Root{Path: target, From: r.From}) {
		return
	}
	w.problem(r.Path, fmt.Sprintf("it is a symbolic link to %s, which would not travel with it", target),
		fmt.Sprintf("name %s instead, or both", target))
}

func readlink(p *place, rel string) (string, error) {
	h, err := p.handle(rel)
	if err != nil {
		return "", err
	}
	defer h.Close()
	b := make([]byte, maxPath+1)
	n, err := unix.Readlinkat(h.fd, "", b)
	return string(b[:max(n, 0)]), err
}

// realPath says by which path a root can travel.
func (s *Source) realPath(r Root) string {
	hint := "name it by a path without symbolic links"
	if r.From != "" || s.opts.Root != "" && s.opts.Root != "/" {
		return hint
	}
	if p, err := filepath.EvalSymlinks(r.Path); err == nil {
		hint += ", which is " + p
	}
	return hint
}

// add notes something that travels. It completes what is known of it.
func (w *walk) add(s seen) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.found) >= w.src.opts.Limits.entries() {
		w.over = true
		return nil
	}
	var err error
	if s.volume, err = w.src.volumes.of(s.base, s.rel(), &s.st); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return err
	}
	if f, ok := w.flags[s.path]; ok && f.From == s.root.From && !s.implied {
		s.root = f
	}
	s.now = w.src.opts.now
	s.restamp()
	w.found = append(w.found, s)
	return nil
}

// visit notes what was found, and goes on below if it is a directory.
func (w *walk) visit(ctx context.Context, g *errgroup.Group, s seen) error {
	switch k := kindOf(s.st.kind()); {
	case k == 0 && s.st.kind() == unix.S_IFSOCK && s.root.Path != s.path:
		w.note("%s does not travel: sockets are made by those who listen on them", s.path)
		return nil
	case k == 0:
		w.problem(s.path, "sockets and devices don't travel", "name the files beside it one by one")
		return nil
	case s.root.Held && k != Regular:
		return nil // no longer the file that was held
	}
	if err := w.add(s); err != nil || !s.st.dir() {
		return err
	}
	return w.below(ctx, g, s)
}

// below walks a directory, its subdirectories at the same time if there is a processor for that.
func (w *walk) below(ctx context.Context, g *errgroup.Group, s seen) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	v, err := w.volume(s.base, s.rel(), &s.st)
	if err != nil {
		return ignoreGone(err)
	}
	if v.pseudo {
		w.pseudo(s.path)
		return nil
	}
	dir, err := s.base.sub(s.rel())
	if err != nil {
		return ignoreGone(err)
	}
	defer dir.Close()
	names, err := w.list(dir, s, v)
	if errors.Is(err, unix.EACCES) {
		w.problem(s.path, "it can't be read: "+unix.EACCES.Error(), "")
		return nil
	}
	if err != nil {
		return ignoreGone(fmt.Errorf("list %s: %w", s.path, err))
	}
	for _, name := range names {
		if w.full() {
			return nil
		}
		st, err := dir.stat(name)
		if err != nil {
			if err := ignoreGone(err); err != nil {
				return fmt.Errorf("%s: %w", s.path, err)
			}
			continue
		}
		kid := seen{path: s.path + "/" + name, base: s.base, st: st, root: Root{From: s.root.From}}
		if err := validPath(kid.path); err != nil {
			if hiddenName(name) {
				w.note("%s does not travel: it belongs to a migration that has not ended", kid.path)
			} else {
				w.problem(kid.path, err.Error(), "")
			}
			continue
		}
		if st.dir() && g.TryGo(func() error { return w.visit(ctx, g, kid) }) {
			continue
		}
		if err := w.visit(ctx, g, kid); err != nil {
			return err
		}
	}
	return nil
}

// ignoreGone drops the errors of a file that is there no longer, or that became something else.
func ignoreGone(err error) error {
	for _, known := range []error{unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.ENXIO, errNotRegular} {
		if errors.Is(err, known) {
			return nil
		}
	}
	return err
}

// list reads a directory, unless it is as it was the last time.
func (w *walk) list(dir *place, s seen, v volume) ([]string, error) {
	st, err := dir.stat("")
	if err != nil {
		return nil, err
	}
	now := listing{stamp: stampOf(&st, v, w.src.opts.now())}
	if last, ok := w.src.listings[s.path]; ok && last.stamp.same(now.stamp) {
		now = last
	} else if now.names, err = dir.names(); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.listings[s.path] = now
	return now.names, nil
}

// finish sorts what was found and finds files that have several names.
func (w *walk) finish() {
	slices.SortFunc(w.found, func(a, b seen) int { return cmp.Compare(a.path, b.path) })
	w.found = slices.CompactFunc(w.found, func(a, b seen) bool { return a.path == b.path })
	type file struct{ dev, inode uint64 }
	first := make(map[file]string)
	for i := range w.found {
		s := &w.found[i]
		if !s.st.regular() || s.st.Nlink < 2 {
			continue
		}
		key := file{s.st.dev(), s.st.Ino}
		if name, ok := first[key]; ok {
			s.first = name
		} else {
			first[key] = s.path
		}
	}
	if w.over {
		w.problems = append(w.problems, checkpoint.Problem{
			Kind: "file", Object: "the files to ship", Reason: fmt.Sprintf("they are more than %d", w.src.opts.Limits.entries()),
			Remedy: "name smaller directories, or put the data on storage that both hosts have",
		})
	}
}

// base opens the directory that stands for "/".
func (s *Source) base(from string) (*place, error) {
	if from == "" {
		from = cmp.Or(s.opts.Root, "/")
	}
	if p, ok := s.bases[from]; ok {
		return p, nil
	}
	p, err := openPlace(from)
	if err != nil {
		return nil, err
	}
	s.bases[from] = p
	return p, nil
}

// open opens a regular file that a walk came by, as it is now; false if it is gone or something else.
func (s *seen) open() (*os.File, bool, error) {
	f, err := s.base.read(s.rel())
	if err != nil {
		return nil, false, ignoreGone(err)
	}
	here := &place{int(f.Fd())}
	if s.st, err = here.stat(""); err != nil {
		f.Close()
		return nil, false, err
	}
	s.restamp()
	return f, true, nil
}

// entry describes what a walk came by. The content of a regular file is another matter.
func (s *seen) entry() (Entry, bool, error) {
	e, ok, err := s.base.describe(s.rel(), &s.st)
	if !ok || err != nil {
		return e, false, ignoreGone(err)
	}
	s.restamp()
	e.Path, e.Implied = s.path, s.implied
	if s.first != "" && e.Kind == Regular {
		e = Entry{Path: s.path, Kind: Hardlink, Target: s.first, Inode: e.Inode}
	}
	return e, true, nil
}
