package ship

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint"
)

// Stage takes what [Source.Send] sends, which is what [Destination.Compare] wanted. It builds the files beside their
// destinations and makes them durable.
func (d *Destination) Stage(ctx context.Context, r io.Reader) error {
	if err := d.stage(ctx, r); err != nil {
		return fmt.Errorf("stage files: %w", err)
	}
	return nil
}

func (d *Destination) stage(ctx context.Context, r io.Reader) error {
	for _, n := range d.entries {
		if u := n.unit; u != nil && d.eager(u) {
			if err := d.stageUnit(ctx, u); err != nil {
				return err
			}
		}
	}
	for _, u := range d.removals {
		if u != nil {
			if err := d.hide(u.hidden); err != nil {
				return err
			}
		}
	}
	if err := d.takeContent(ctx, r); err != nil {
		return err
	}
	for _, n := range d.entries {
		if n.staged && !n.shared && n.entry.Kind != Directory && n.entry.Kind != Hardlink {
			if err := d.finish(n); err != nil {
				return err
			}
		}
	}
	if err := d.finishDirs(); err != nil {
		return err
	}
	return d.syncAll()
}

// stageUnit makes all that comes with a unit, with the content that this host has.
func (d *Destination) stageUnit(ctx context.Context, u *unit) error {
	if u.node.staged {
		return nil
	}
	if err := d.hide(u.hidden); err != nil {
		return err
	}
	var err error
	u.node.each(func(n *node) {
		if err == nil {
			err = d.create(ctx, n)
		}
	})
	return err
}

// hide makes the directory in which the files of some units are staged.
func (d *Destination) hide(h *hidden) error {
	if h.place != nil {
		return nil
	}
	name := hiddenPrefix + d.opts.ID
	c := Change{Op: opStage, Dir: nameOf(h.dir), Hidden: name}
	if n := d.lookup(h.dir); n != nil && n.mirrors() && n.old != nil { // its time travels, and is part of what was there
		c.Metas = []metaChange{{Path: c.Dir, New: n.old.meta, Old: n.old.meta}}
	}
	if err := d.opts.Record(c); err != nil {
		return fmt.Errorf("record a change: %w", err)
	}
	d.step("staging " + h.dir)
	dir, err := d.root.sub(h.dir[1:])
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.mkdir(name); err != nil {
		return fmt.Errorf("make a directory for the files that come to %s: %w", h.dir, err)
	}
	h.place, err = dir.sub(name)
	if err != nil {
		return err
	}
	return h.place.private()
}

// private keeps others out of a directory that was just made, whatever its parent says.
func (p *place) private() error {
	if err := p.applyXattrs(nil); err != nil {
		return err
	}
	return os.NewSyscallError("chmod", unix.Chmod(p.proc(), 0o700))
}

// create stages a node: as far as this host has its content, with that.
func (d *Destination) create(ctx context.Context, n *node) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	u, rel := n.unitOf()
	to, rel := u.hidden.place, path.Join(u.newName(), rel)
	n.staged = true
	err := d.createAt(n, to, rel)
	if err != nil {
		return fmt.Errorf("stage %s: %w", n.path(), err)
	}
	d.touched(n)
	return nil
}

// touched notes that a name in a directory came or went, which changes the directory's time.
func (d *Destination) touched(n *node) {
	if n.up.staged {
		d.dirty[n.up] = true
	}
}

func (d *Destination) createAt(n *node, to *place, rel string) error {
	switch n.entry.Kind {
	case Directory:
		d.dirty[n] = true
		return to.mkdir(rel)
	case Symlink:
		return to.symlink(n.entry.Target, rel)
	case FIFO:
		return to.mkfifo(rel)
	case Hardlink:
		return d.createLink(n, to, rel)
	}
	if n.shareable() && d.root.link(n.rel(), to, rel) == nil { // else it is copied
		n.shared = true
		st, err := to.stat(rel)
		if err == nil && !n.old.still(&st) {
			err = errChanged
		}
		return err
	}
	return d.createFile(n, to, rel)
}

// still says that a file is as it was compared. Its ctime tells nothing: our own links change it.
func (o *old) still(st *info) bool {
	return st.Ino == o.st.Ino && st.Size == o.st.Size && st.mtime() == o.st.mtime()
}

func (d *Destination) createLink(n *node, to *place, rel string) error {
	first := d.lookup(n.entry.Target)
	if first == nil {
		return fmt.Errorf("%w: a hard link to nothing", ErrMalformed)
	}
	if first.unit != nil {
		if err := d.stageUnit(context.Background(), first.unit); err != nil { // one file
			return err
		}
	}
	if err := d.unshare(first); err != nil {
		return err
	}
	from, fromRel := d.at(first)
	err := from.link(fromRel, to, rel)
	if errors.Is(err, unix.EXDEV) {
		return fmt.Errorf("it is a hard link to %s, which is on another file system here", n.entry.Target)
	}
	return err
}

// createFile makes a new file with the content that the old one has in common with it.
func (d *Destination) createFile(n *node, to *place, rel string) error {
	f, err := to.file(rel, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	d.fresh[n] = true
	if err := f.Truncate(n.entry.Size); err != nil {
		return err
	}
	if n.old == nil || len(n.old.match) == 0 {
		return nil
	}
	return n.old.copyTo(d.root, n.rel(), f, n.entry.Data)
}

// errChanged means that a file was not left alone between its comparison and its use.
var errChanged = errors.New("it was changed on this host during the migration")

// copyTo copies what an old file has in common with a new one.
func (o *old) copyTo(root *place, rel string, to *os.File, data []Extent) error {
	from, err := root.read(rel)
	if err != nil {
		return err
	}
	defer from.Close()
	buf := make([]byte, pieceSize)
	for _, m := range o.match {
		for _, run := range within(data, m) {
			if err := copyRun(from, to, run, buf); err != nil {
				return err
			}
		}
	}
	here := &place{int(from.Fd())}
	st, err := here.stat("")
	if err != nil {
		return err
	}
	if !o.still(&st) {
		return errChanged
	}
	return nil
}

// unshare gives a staged file that is the old file a content of its own, before it is changed.
func (d *Destination) unshare(n *node) error {
	if !n.shared {
		return nil
	}
	at, rel := d.at(n)
	if err := at.unlink(rel); err != nil {
		return err
	}
	n.shared = false
	d.touched(n)
	return d.createFile(n, at, rel)
}

// takeContent takes pieces of the files of the index.
func (d *Destination) takeContent(ctx context.Context, r io.Reader) error {
	dec, err := newDecoder(r, d.opts.Limits.metadata())
	if err != nil {
		return err
	}
	var into writer
	defer into.close()
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		rec, err := dec.next()
		if errors.Is(err, io.EOF) {
			return into.close()
		}
		if err != nil {
			return err
		}
		switch rec.kind {
		case recOf:
			if err := into.close(); err != nil {
				return err
			}
			if rec.index >= len(d.entries) || d.entries[rec.index].entry.Kind != Regular {
				return fmt.Errorf("%w: content of entry %d", ErrMalformed, rec.index)
			}
			n := d.entries[rec.index]
			if !n.staged || n.shared {
				return fmt.Errorf("%w: content of %q, which was not wanted", ErrMalformed, n.path())
			}
			if err := into.open(d, n); err != nil {
				return err
			}
		case recData:
			if err := into.write(rec.at, rec.data); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%w: record %q in the content of files", ErrMalformed, rec.kind)
		}
	}
}

// worthFlushing is the size of a file that the disk is busy with for a while.
const worthFlushing = 1 << 20

// writer writes the content of one file after the other.
type writer struct {
	f       *os.File
	n       *node
	discard bool // of a file that is left alone
}

func (w *writer) open(d *Destination, n *node) error {
	at, rel := d.at(n)
	var err error
	w.n = n
	w.f, err = at.file(rel, unix.O_RDWR, 0)
	return err
}

func (w *writer) write(at int64, b []byte) error {
	if w.discard {
		return nil
	}
	if w.f == nil {
		return fmt.Errorf("%w: content of no file", ErrMalformed)
	}
	run := Extent{at, int64(len(b))}
	if parts := within(w.n.entry.Data, run); len(parts) != 1 || parts[0] != run {
		return fmt.Errorf("%w: content of %q where it has none", ErrMalformed, w.n.path())
	}
	_, err := w.f.WriteAt(b, at)
	if failed, ok := errors.AsType[*os.PathError](err); ok { // which knows the file by its name while it is staged
		err = fmt.Errorf("%s %s: %w", failed.Op, w.n.path(), failed.Err)
	}
	return err
}

// close ends a file. It is idempotent.
func (w *writer) close() error {
	f, n := w.f, w.n
	*w = writer{}
	if f == nil {
		return nil
	}
	if n.entry.Size >= worthFlushing {
		// The disk begins now, so that less is left when it is waited for.
		unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE) //nolint:errcheck // a hint
	}
	return f.Close()
}

// finish gives a staged node its metadata.
func (d *Destination) finish(n *node) error {
	at, rel := d.at(n)
	h, err := at.handle(rel)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.apply(&n.entry.Meta, n.entry.Kind); err != nil {
		return fmt.Errorf("%s: %w", n.path(), err)
	}
	return nil
}

// finishDirs does the same for staged directories that something was done to, the lower ones first.
func (d *Destination) finishDirs() error {
	dirs := slices.SortedFunc(maps.Keys(d.dirty), func(a, b *node) int { return cmp.Compare(b.path(), a.path()) })
	for _, n := range dirs {
		if err := d.finish(n); err != nil {
			return err
		}
	}
	clear(d.dirty)
	return nil
}

// syncAll makes all that is staged durable.
func (d *Destination) syncAll() error {
	done := make(map[uint64]bool)
	for _, h := range d.hidden {
		if h.place == nil {
			continue
		}
		st, err := h.place.stat("")
		if err != nil {
			return err
		}
		if done[st.dev()] {
			continue
		}
		done[st.dev()] = true
		if err := h.place.syncAll(); err != nil {
			return err
		}
	}
	clear(d.fresh)
	return nil
}

// Update takes what [Source.Update] sends. It may be called several times.
func (d *Destination) Update(ctx context.Context, r io.Reader) error {
	if err := d.update(ctx, r); err != nil {
		return fmt.Errorf("update files: %w", err)
	}
	return nil
}

func (d *Destination) update(ctx context.Context, r io.Reader) error {
	dec, err := newDecoder(r, d.opts.Limits.metadata())
	if err != nil {
		return err
	}
	u := &updating{dest: d}
	defer u.into.close()
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		rec, err := dec.next()
		if errors.Is(err, io.EOF) {
			return u.done()
		}
		if err != nil {
			return err
		}
		if err := u.take(ctx, &rec); err != nil {
			return err
		}
	}
}

// updating is an update under way.
type updating struct {
	dest *Destination
	node *node // whose content comes
	into writer
}

func (u *updating) take(ctx context.Context, rec *record) error {
	d := u.dest
	if rec.kind == recData {
		return u.into.write(rec.at, rec.data)
	}
	if err := u.done(); err != nil {
		return err
	}
	switch rec.kind {
	case recStorage:
		if len(d.storages) == maxStorages {
			return fmt.Errorf("%w: too many storages", ErrMalformed)
		}
		d.storages = append(d.storages, rec.text)
		return nil
	case recRemoved:
		return d.remove(rec.text)
	case recEntry:
		return u.entry(ctx, rec.entry)
	}
	return fmt.Errorf("%w: record %q in an update", ErrMalformed, rec.kind)
}

// done ends the entry whose content came.
func (u *updating) done() error {
	n := u.node
	u.node = nil
	if err := u.into.close(); err != nil || n == nil {
		return err
	}
	return u.dest.finish(n)
}

// entry takes an entry that is new or changed.
func (u *updating) entry(ctx context.Context, e *Entry) error {
	d := u.dest
	n := d.lookup(e.Path)
	if n != nil && n.same && n.entry.Inode != e.Inode { // no longer the file that both hosts saw
		d.detach(n)
		n = nil
	}
	if n == nil {
		if d.count >= d.opts.Limits.entries() {
			return fmt.Errorf("%w: more than %d entries", ErrMalformed, d.opts.Limits.entries())
		}
		var err error
		if n, err = d.add(e); err != nil {
			return err
		}
		if err := d.arrive(ctx, n); err != nil {
			return err
		}
	} else if err := d.change(ctx, n, e); err != nil {
		return err
	}
	if e.Kind == Regular {
		if n.same || !n.staged {
			u.into.discard = true
			return nil
		}
		if err := u.into.open(d, n); err != nil {
			return err
		}
		if err := trim(u.into.f, e.Size, e.Data); err != nil {
			return fmt.Errorf("%s: %w", e.Path, err)
		}
		d.fresh[n] = true
	}
	if n.staged && e.Kind != Hardlink && e.Kind != Directory {
		u.node = n
	}
	return nil
}

// arrive stages a node that was not known before.
func (d *Destination) arrive(ctx context.Context, n *node) error {
	d.allowed(n)
	unit, _ := n.unitOf()
	if unit == nil {
		delete(d.removals, n.path())
		if err := d.locate(ctx, n); err != nil {
			return err
		}
		unit = n.unit
	}
	if err := checkpoint.Refuse("taking files", d.problems); err != nil {
		return err
	}
	if unit == nil {
		return nil // in place
	}
	unit.differs = true
	if !unit.node.staged {
		return d.stageUnit(ctx, unit) // with the node
	}
	return d.create(ctx, n)
}

// change makes a known node as the source has it now.
func (d *Destination) change(ctx context.Context, n *node, e *Entry) error {
	if n.entry.Kind != e.Kind || n.entry.Implied != e.Implied {
		return fmt.Errorf("%w: %q becomes another thing without being removed", ErrMalformed, e.Path)
	}
	if n.same {
		return nil
	}
	d.adapt(e)
	unit, _ := n.unitOf()
	if unit == nil {
		n.entry = e // a directory in place: its metadata is set at the installation
		return nil
	}
	if err := d.stageUnit(ctx, unit); err != nil {
		return err
	}
	unit.differs = true
	if err := d.unshare(n); err != nil {
		return fmt.Errorf("%s: %w", e.Path, err)
	}
	before := n.entry
	n.entry = e
	if err := d.account(e.bytes() - before.bytes()); err != nil {
		return err
	}
	switch {
	case e.Kind == Directory:
		d.dirty[n] = true
	case e.Kind == Symlink && before.Target != e.Target, e.Kind == Hardlink:
		at, rel := d.at(n)
		if err := at.unlink(rel); err != nil {
			return err
		}
		return d.create(ctx, n)
	}
	return nil
}

// remove takes a node away that the source has no more, with all below it.
func (d *Destination) remove(p string) error {
	n := d.lookup(p)
	if n == nil || n.up == nil {
		return fmt.Errorf("%w: %q is removed and was never there", ErrMalformed, p)
	}
	unit, rel := n.unitOf()
	if n.bound {
		return fmt.Errorf("the source has no %s any more, and something is mounted there on this host", p)
	}
	if unit != nil && n.staged {
		unit.differs = true
		d.touched(n)
		if err := unit.hidden.place.removeAll(path.Join(unit.newName(), rel)); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	if n.up.mirrors() && n.up.inPlace && n.old != nil {
		id := n.old.st.identity()
		for below := range d.removals {
			if strings.HasPrefix(below, p+"/") { // it goes with its directory
				delete(d.removals, below)
			}
		}
		d.removals[p] = d.newUnit(p, nil, &id)
	}
	var err error
	n.each(func(k *node) {
		if k.unit != nil && k.unit != unit && k.staged { // below a directory that stays
			err = errors.Join(err, k.unit.hidden.place.removeAll(k.unit.newName()))
		}
	})
	d.detach(n)
	return err
}

// detach forgets a node and all below it.
func (d *Destination) detach(n *node) {
	n.each(func(k *node) {
		delete(d.dirty, k)
		delete(d.fresh, k)
		k.staged = false
		d.count--
		d.bytes -= k.entry.bytes()
	})
	delete(n.up.kids, n.name)
}
