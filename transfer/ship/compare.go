package ship

import (
	"context"
	"errors"
	"fmt"
	"path"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint"
)

// Compare finds what this host lacks of an index, and what stands in the way. It changes nothing, and reads every file
// that both have.
func (d *Destination) Compare(ctx context.Context, x *Index) (*Wants, []checkpoint.Problem, error) {
	w, err := d.compare(ctx, x)
	if err != nil {
		return nil, nil, fmt.Errorf("compare files: %w", err)
	}
	return w, d.problems, nil
}

func (d *Destination) compare(ctx context.Context, x *Index) (*Wants, error) {
	d.storages = slices.Clone(x.Storages)
	for i := range x.Entries {
		e := x.Entries[i]
		n, err := d.add(&e)
		if err != nil {
			return nil, err
		}
		d.entries = append(d.entries, n)
		d.allowed(n)
	}
	if len(d.problems) > 0 {
		return nil, nil
	}
	for _, n := range d.tree.sorted() {
		if err := d.locate(ctx, n); err != nil {
			return nil, err
		}
	}
	if err := d.compareContents(ctx); err != nil {
		return nil, err
	}
	d.compareLinks()
	for _, n := range d.entries {
		if u, _ := n.unitOf(); u != nil && (n.old == nil || !n.old.equal) {
			u.differs = true
		}
	}
	d.compared = true
	w := d.wants()
	if limit := d.opts.Limits.Bytes; limit > 0 && x.Bytes() > limit {
		d.problem("the files to ship", fmt.Sprintf("they have %s, this host takes %s", checkpoint.Size(x.Bytes()), checkpoint.Size(limit)),
			"put the data on storage that both hosts have, or raise the limit")
	}
	return w, d.checkSpace()
}

// allowed refuses what may not come here.
func (d *Destination) allowed(n *node) {
	p := n.path()
	if n.mirrors() && belongsToHost(p) {
		d.problem(p, "it belongs to the host, not to a service", "name the service's own files and directories")
	}
	inside := func(dir string) bool { return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/") }
	if len(d.opts.Within) > 0 && !n.entry.Implied && !slices.ContainsFunc(d.opts.Within, inside) {
		d.problem(p, "this host takes no files there", "it takes them below "+strings.Join(d.opts.Within, ", "))
	}
}

// locate decides how a node comes into its place, whose directory is there and stays.
func (d *Destination) locate(ctx context.Context, n *node) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	p := n.path()
	st, err := d.root.stat(n.rel())
	if errors.Is(err, unix.ENOENT) {
		return d.vacant(n)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	v, err := d.volumes.of(d.root, n.rel(), &st)
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	switch {
	case v.pseudo:
		d.problem(p, "a file system of the kernel is here", "")
		return nil
	case d.isSame(n, &st, v):
		return d.markSame(ctx, n)
	case n.entry.Implied && st.dir():
		n.inPlace = true
		return d.locateKids(ctx, n)
	case n.entry.Implied && st.kind() == unix.S_IFLNK:
		d.problem(p, "it is a symbolic link here and a directory on the source", "give both hosts the same layout of directories")
		return nil
	case n.entry.Implied:
		d.problem(p, "it is no directory here", "move it away")
		return nil
	case n.entry.Kind == Directory && st.dir():
		return d.locateDir(ctx, n, &st)
	case st.mountRoot():
		d.problem(p, "something is mounted here", "unmount it")
		return nil
	case st.fixed():
		d.problem(p, "it is protected here from being changed", "chattr -i -a "+p)
		return nil
	}
	if st.dir() { // in the way of a file
		scan := &scan{dest: d, mount: st.mount, movable: true}
		if err := scan.dir(ctx, nil, n.rel(), &st); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		if !scan.movable {
			d.problem(p, fmt.Sprintf("it is a directory here and a %v on the source, and can't be moved away", n.entry.Kind), "move it away")
			return nil
		}
	}
	if err := d.remember(n, &st); err != nil {
		return err
	}
	id := st.identity()
	d.newUnit(p, n, &id)
	return nil
}

func (d *Destination) locateKids(ctx context.Context, n *node) error {
	for _, k := range n.sorted() {
		if err := d.locate(ctx, k); err != nil {
			return err
		}
	}
	return nil
}

// vacant gives a free name to a node.
func (d *Destination) vacant(n *node) error {
	up := path.Dir(n.path())
	st, err := d.root.stat(up[1:])
	if err != nil {
		return fmt.Errorf("%s: %w", up, err)
	}
	v, err := d.volumes.of(d.root, up[1:], &st)
	if err != nil {
		return fmt.Errorf("%s: %w", up, err)
	}
	if v.pseudo {
		d.problem(n.path(), "it would come onto a file system of the kernel", "")
		return nil
	}
	d.newUnit(n.path(), n, nil)
	return nil
}

// isSame says that the source's file is this host's.
func (d *Destination) isSame(n *node, st *info, v volume) bool {
	e := n.entry
	return e.Storage > 0 && e.Storage <= len(d.storages) && d.storages[e.Storage-1] == v.name && e.Inode == st.Ino &&
		(kindOf(st.kind()) == e.Kind || e.Kind == Hardlink && st.regular())
}

// markSame leaves a shared file alone, and what is in a shared directory on the same storage.
func (d *Destination) markSame(ctx context.Context, n *node) error {
	n.same, n.inPlace = true, n.entry.Kind == Directory
	for _, k := range n.sorted() {
		if k.entry.Storage == n.entry.Storage || k.entry.Kind == Hardlink {
			if err := d.markSame(ctx, k); err != nil {
				return err
			}
		} else if err := d.locate(ctx, k); err != nil {
			return err
		}
	}
	return nil
}

// remember notes what is under a node's name.
func (d *Destination) remember(n *node, st *info) error {
	e, ok, err := d.root.describe(n.rel(), st)
	if err != nil {
		return fmt.Errorf("%s: %w", n.path(), err)
	}
	if !ok {
		return nil
	}
	n.old = &old{st: *st, meta: e.Meta, link: e.Target}
	if !slices.ContainsFunc(n.entry.Xattrs, func(x Xattr) bool { return x.Name == selinux }) {
		n.old.meta.Xattrs = slices.DeleteFunc(e.Xattrs, func(x Xattr) bool { return x.Name == selinux })
	}
	if n.entry.Kind == e.Kind && e.Kind != Regular {
		n.old.equal = n.entry.Meta.equal(&n.old.meta) && n.entry.Target == e.Target
	}
	return nil
}

// locateDir decides whether a directory that is there can be replaced as a whole, which takes one rename whatever is in
// it. It can't if something is mounted in it or on it.
func (d *Destination) locateDir(ctx context.Context, n *node, st *info) error {
	scan := &scan{dest: d, mount: st.mount, movable: !st.mountRoot() && !st.fixed()}
	v, err := d.volumes.of(d.root, n.rel(), st)
	if err != nil {
		return err
	}
	if err := scan.dir(ctx, n, n.rel(), st); err != nil {
		return fmt.Errorf("%s: %w", n.path(), err)
	}
	n.bound = !scan.movable
	if scan.movable && !v.layered && !d.opts.stay {
		id := st.identity()
		u := d.newUnit(n.path(), n, &id)
		u.differs = len(scan.extra) > 0
		for _, x := range scan.extra {
			d.removals[x.path] = nil // goes with the directory
		}
		return nil
	}
	n.each(func(k *node) {
		if k != n {
			k.old = nil // found again, one by one
		}
	})
	n.inPlace = true
	if err := d.locateKids(ctx, n); err != nil {
		return err
	}
	for _, x := range scan.extra {
		if path.Dir(x.path) != n.path() {
			continue // found again below
		}
		if x.st.mountRoot() || x.st.fixed() {
			d.problem(x.path, "it is mounted or protected here, and the source does not have it", "unmount or remove it")
			continue
		}
		id := x.st.identity()
		d.removals[x.path] = d.newUnit(x.path, nil, &id)
	}
	return nil
}

// scan looks at all that is in a directory that is to come to be as on the source.
type scan struct {
	dest    *Destination
	mount   uint64
	movable bool
	extra   []extra // what the source does not have, without what is below it
}

type extra struct {
	path string
	st   info
}

// dir scans a directory. n is nil in one that the source does not have.
func (s *scan) dir(ctx context.Context, n *node, rel string, st *info) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if n != nil {
		if err := s.dest.remember(n, st); err != nil {
			return err
		}
	}
	h, err := s.dest.root.sub(rel)
	if err != nil {
		return err
	}
	defer h.Close()
	names, err := h.names()
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		if err := s.one(ctx, h, n, rel, name); err != nil {
			return err
		}
	}
	return nil
}

func (s *scan) one(ctx context.Context, dir *place, n *node, rel, name string) error {
	st, err := dir.stat(name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	rel = path.Join(rel, name)
	if name == hiddenPrefix+s.dest.opts.ID {
		return nil // our own
	}
	if hiddenName(name) {
		s.dest.problem("/"+rel, "a migration that has not ended keeps files here", "finish or undo it with: nsmigrate recover")
		return nil
	}
	if st.mount != s.mount || st.mountRoot() || st.fixed() {
		s.movable = false
	}
	var kid *node
	if n != nil {
		if kid = n.kids[name]; kid == nil {
			s.extra = append(s.extra, extra{"/" + rel, st})
		}
	}
	if st.dir() && (kid == nil || kid.entry.Kind == Directory) {
		if st.mount != s.mount {
			return nil // not to be moved, and so not to be looked into now
		}
		return s.dir(ctx, kid, rel, &st)
	}
	if kid == nil {
		return nil
	}
	if st.dir() { // in the way of a file
		return s.dir(ctx, nil, rel, &st)
	}
	return s.dest.remember(kid, &st)
}

// compareContents reads the regular files that both hosts have.
func (d *Destination) compareContents(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, n := range d.entries {
		if n.entry.Kind == Regular && !n.same && n.old != nil && n.old.st.regular() {
			g.Go(func() error {
				if err := n.old.compare(ctx, d.root, n); err != nil {
					return fmt.Errorf("read %s: %w", n.path(), err)
				}
				return nil
			})
		}
	}
	return g.Wait()
}

// compare finds which of the source's blocks an old file has in the same place.
func (o *old) compare(ctx context.Context, root *place, n *node) error {
	e := n.entry
	f, err := root.read(n.rel())
	if err != nil {
		if ignoreGone(err) == nil {
			o.st = info{} // somebody has removed it
			return nil
		}
		return err
	}
	defer f.Close()
	here := Entry{Size: e.Size, Block: e.Block}
	if here.Data, err = extents(f, min(e.Size, int64(o.st.Size))); err != nil {
		return err
	}
	var both []int64
	var index []int
	i := 0
	for b := range e.blocks() {
		if min((b+1)*e.Block, e.Size) <= int64(o.st.Size) && i < len(e.Sums) {
			both, index = append(both, b), append(index, i)
		}
		i++
	}
	sums, err := digest(ctx, f, &here, both)
	if err != nil {
		return err
	}
	matched := 0
	for i, b := range both {
		if sums[i] != e.Sums[index[i]] {
			continue
		}
		matched++
		run := Extent{b * e.Block, min(e.Block, e.Size-b*e.Block)}
		if k := len(o.match); k > 0 && o.match[k-1].end() == run.Offset {
			o.match[k-1].Length += run.Length
		} else {
			o.match = append(o.match, run)
		}
	}
	// What is a hole on the source must read as zeros here.
	whole := matched == i && int64(o.st.Size) == e.Size && holesInside(here.Data, e)
	o.equal = whole && e.Meta.equal(&o.meta)
	return nil
}

// holesInside says that the data of a file lies in blocks that have been compared.
func holesInside(data []Extent, e *Entry) bool {
	compared := make([]Extent, 0, len(e.Data))
	for b := range e.blocks() {
		run := Extent{b * e.Block, e.Block}
		if k := len(compared); k > 0 && compared[k-1].end() == run.Offset {
			compared[k-1].Length += run.Length
		} else {
			compared = append(compared, run)
		}
	}
	return !slices.ContainsFunc(data, func(x Extent) bool { return len(without(x, compared)) > 0 })
}

// compareLinks finds which further names of files are further names of the same files here.
func (d *Destination) compareLinks() {
	for _, n := range d.entries {
		if n.entry.Kind != Hardlink || n.old == nil {
			continue
		}
		first := d.lookup(n.entry.Target)
		n.old.equal = first.old != nil && first.old.equal && first.old.st.Ino == n.old.st.Ino && first.old.st.dev() == n.old.st.dev()
	}
}

// examples is how many paths are shown of what goes.
const examples = 10

func (d *Destination) wants() *Wants {
	w := new(Wants)
	for i, n := range d.entries {
		switch {
		case n.same:
			if k := len(w.Same); k > 0 && w.Same[k-1].First+w.Same[k-1].Count == int64(i) {
				w.Same[k-1].Count++
			} else {
				w.Same = append(w.Same, Run{int64(i), 1})
			}
			continue
		case n.old != nil && !n.old.equal && n.entry.Kind == Regular:
			w.Replaced++
		}
		if n.entry.Kind != Regular {
			continue
		}
		want := Want{Index: i}
		for b := range n.entry.blocks() {
			run := Extent{b * n.entry.Block, min(n.entry.Block, n.entry.Size-b*n.entry.Block)}
			if n.old == nil || len(without(run, n.old.match)) > 0 {
				want.add(b)
			}
		}
		for _, r := range want.Blocks {
			for _, part := range within(n.entry.Data, Extent{r.First * n.entry.Block, r.Count * n.entry.Block}) {
				w.Bytes = plus(w.Bytes, part.Length)
			}
		}
		if len(want.Blocks) > 0 {
			w.Files = append(w.Files, want)
		}
	}
	w.Removed = len(d.removals)
	for p := range d.removals {
		w.Examples = append(w.Examples, strings.ToValidUTF8(p, "?"))
	}
	slices.Sort(w.Examples)
	w.Examples = w.Examples[:min(len(w.Examples), examples)]
	return w
}

// need is what is to be staged on one file system.
type need struct {
	where string // some directory on it
	bytes int64
	files int64
}

// checkSpace compares what is to be staged with what is free.
func (d *Destination) checkSpace() error {
	needs := make(map[uint64]*need)
	for _, n := range d.entries {
		u, _ := n.unitOf()
		if u == nil || !d.eager(u) {
			continue
		}
		st, err := d.root.stat(u.hidden.dir[1:])
		if err != nil {
			return fmt.Errorf("%s: %w", u.hidden.dir, err)
		}
		fs := needs[st.dev()]
		if fs == nil {
			fs = &need{where: u.hidden.dir}
			needs[st.dev()] = fs
		}
		if n.entry.Kind == Hardlink || n.shareable() {
			continue
		}
		fs.files++
		fs.bytes = plus(fs.bytes, n.entry.bytes())
	}
	for _, fs := range needs {
		if err := d.checkFree(fs); err != nil {
			return err
		}
	}
	return nil
}

func (d *Destination) checkFree(fs *need) error {
	h, err := d.root.sub(fs.where[1:])
	if err != nil {
		return err
	}
	defer h.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(h.fd, &st); err != nil {
		return fmt.Errorf("ask for the free space of %s: %w", fs.where, err)
	}
	free := int64(st.Bavail) * st.Bsize
	if fs.bytes > free {
		d.problem(fs.where, fmt.Sprintf("its file system has %s free, and the files to ship need %s until the migration is over",
			checkpoint.Size(free), checkpoint.Size(fs.bytes)), "make room there, or put the data on storage that both hosts have")
	}
	if st.Files > 0 && fs.files > int64(st.Ffree) {
		d.problem(fs.where, fmt.Sprintf("its file system has room for %d more files, %d are to come", st.Ffree, fs.files), "make room there")
	}
	return nil
}

// eager says that a unit is staged before anything in it has changed: because it is different here, or because to do it
// in the blackout would take too long.
func (d *Destination) eager(u *unit) bool {
	e := u.node.entry
	return u.differs || e.Kind == Directory || e.Held || u.node.pinned || e.Kind == Hardlink
}

// shareable says that the old file can serve under one more name: it is the same, and not likely to change.
func (n *node) shareable() bool {
	return n.entry.Kind == Regular && n.old != nil && n.old.equal && !n.entry.Held && !n.pinned
}
