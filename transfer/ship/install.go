package ship

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Change is something that is done to this host, as data for a journal. Its JSON has at most 1 MiB.
type Change struct {
	Op string `json:"op"`
	// A directory for staging is made: Hidden in Dir.
	Dir    name   `json:"dir,omitempty"`
	Hidden string `json:"hidden"`
	// Files come into their places.
	Swaps []swap `json:"swaps,omitempty"`
	// Directories that stay get other metadata.
	Metas []metaChange `json:"metas,omitempty"`
}

// What [Change].Op can be.
const (
	opStage   = "stage"
	opInstall = "install"
)

func (c Change) String() string {
	switch c.Op {
	case opStage:
		return fmt.Sprintf("stage files in %s", path.Join(string(c.Dir), c.Hidden))
	case opInstall:
		return fmt.Sprintf("install %d files or directories", len(c.Swaps)+len(c.Metas))
	}
	return fmt.Sprintf("change of kind %q", c.Op)
}

// swap puts one thing into its place and keeps what was there.
type swap struct {
	Path   name      `json:"path"`
	Number int       `json:"number"` // of the names in the hidden directory beside it
	New    *identity `json:"new,omitempty"`
	Old    *identity `json:"old,omitempty"`
}

func (s *swap) newName() string { return (&unit{number: s.Number}).newName() }
func (s *swap) oldName() string { return (&unit{number: s.Number}).oldName() }

type metaChange struct {
	Path name `json:"path"`
	New  Meta `json:"new"`
	Old  Meta `json:"old"`
}

// nameOf is a path as a change has it.
func nameOf(p string) name { return name(p) }

// perRecord keeps a change below the size of a record: names and attributes are long at worst.
const perRecord = 1 << 19

// Install puts what is staged into its place, durably. What it replaces is kept beside it. Where nothing is different from
// before, nothing is done.
func (d *Destination) Install(ctx context.Context) error {
	flush, err := d.Place(ctx)
	if err != nil {
		return err
	}
	return flush(ctx)
}

// Place is [Destination.Install] without the wait for the disk: flush, which is to be called once, makes it durable, and
// may do so while the files are in use. Until then a crash of the host can be undone, and must not be committed.
func (d *Destination) Place(ctx context.Context) (flush func(context.Context) error, err error) {
	sync, err := d.place(ctx)
	if err != nil {
		return nil, fmt.Errorf("install files: %w", err)
	}
	return func(ctx context.Context) error {
		if err := sync(ctx); err != nil {
			return fmt.Errorf("install files: %w", err)
		}
		return nil
	}, nil
}

func (d *Destination) place(ctx context.Context) (sync func(context.Context) error, err error) {
	contents, err := d.unsynced()
	if err != nil {
		return nil, err
	}
	if err := d.verify(ctx); err != nil {
		return nil, err
	}
	units, err := d.toInstall()
	if err != nil {
		return nil, err
	}
	swaps, err := swapsOf(units)
	if err != nil {
		return nil, err
	}
	metas := d.metaChanges()
	for _, c := range split(hiddenPrefix+d.opts.ID, swaps, metas) {
		if err := d.opts.Record(c); err != nil {
			return nil, fmt.Errorf("record a change: %w", err)
		}
	}
	for i := range swaps {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err := d.swap(units[i], &swaps[i]); err != nil {
			return nil, fmt.Errorf("%s: %w", units[i].path, err)
		}
	}
	for i := range metas {
		d.step("changing " + string(metas[i].Path))
		if err := d.root.applyAt(string(metas[i].Path)[1:], &metas[i].New); err != nil {
			return nil, fmt.Errorf("%s: %w", metas[i].Path, err)
		}
	}
	return func(ctx context.Context) error {
		if err := contents(ctx); err != nil {
			return err
		}
		return d.syncPlaces(ctx, units, metas)
	}, nil
}

// few is how many files are synced one by one: all of a file system takes longer if others write to it too.
const few = 64

// unsynced returns what makes durable whatever was staged since that was done last, wherever it is by then.
func (d *Destination) unsynced() (sync func(context.Context) error, err error) {
	list := append(slices.Collect(maps.Keys(d.dirty)), slices.Collect(maps.Keys(d.fresh))...)
	if err := d.finishDirs(); err != nil {
		return nil, err
	}
	if len(list) > few {
		return func(context.Context) error { return d.syncAll() }, nil
	}
	for _, n := range list {
		at, rel := d.at(n)
		fd, err := at.openat2(rel, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			return nil, err
		}
		d.unflushed = append(d.unflushed, os.NewFile(uintptr(fd), rel))
	}
	clear(d.fresh)
	return d.flush, nil
}

// flush makes the files durable that are held open for that.
func (d *Destination) flush(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, f := range d.unflushed {
		g.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return f.Sync()
		})
	}
	return errors.Join(g.Wait(), d.closeUnflushed())
}

func (d *Destination) closeUnflushed() error {
	var errs []error
	for _, f := range d.unflushed {
		errs = append(errs, f.Close())
	}
	d.unflushed = nil
	return errors.Join(errs...)
}

// verify wants the files of this host that serve as those of the source to be as they were compared.
func (d *Destination) verify(ctx context.Context) error {
	var list []*node
	d.tree.each(func(n *node) {
		if n.shared || n.unit != nil && !n.staged && n.old != nil {
			list = append(list, n)
		}
	})
	g, ctx := errgroup.WithContext(ctx)
	workers := runtime.GOMAXPROCS(0)
	for share := range slices.Chunk(list, max(1, (len(list)+workers-1)/workers)) {
		g.Go(func() error {
			for _, n := range share {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				st, err := d.root.stat(n.rel())
				if err == nil && !n.old.still(&st) || err != nil && ignoreGone(err) == nil {
					err = errChanged
				}
				if err != nil {
					return fmt.Errorf("%s: %w", n.path(), err)
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// toInstall lists the units that make a difference, by path.
func (d *Destination) toInstall() ([]*unit, error) {
	d.joinLinks()
	var units []*unit
	d.tree.each(func(n *node) {
		if n.unit != nil && n.staged && n.unit.differs {
			units = append(units, n.unit)
		}
	})
	for _, u := range d.removals {
		if u == nil { // goes with its directory
			continue
		}
		if err := d.hide(u.hidden); err != nil {
			return nil, err
		}
		units = append(units, u)
	}
	slices.SortFunc(units, func(a, b *unit) int { return cmp.Compare(a.path, b.path) })
	return units, nil
}

// joinLinks lets all names of a file come, if one of them comes: they would be of two files else.
func (d *Destination) joinLinks() {
	var pairs [][2]*unit
	d.tree.each(func(n *node) {
		if n.entry == nil || n.entry.Kind != Hardlink {
			return
		}
		link, _ := n.unitOf()
		first, _ := d.lookup(n.entry.Target).unitOf()
		if link != nil && first != nil && link != first {
			pairs = append(pairs, [2]*unit{link, first})
		}
	})
	for again := true; again; {
		again = false
		for _, p := range pairs {
			if p[0].differs != p[1].differs {
				p[0].differs, p[1].differs, again = true, true, true
			}
		}
	}
}

func swapsOf(units []*unit) ([]swap, error) {
	swaps := make([]swap, len(units))
	for i, u := range units {
		swaps[i] = swap{Path: name(u.path), Number: u.number, Old: u.old}
		if u.node == nil {
			continue
		}
		st, err := u.hidden.place.stat(u.newName())
		if err != nil {
			return nil, fmt.Errorf("%s: %w", u.path, err)
		}
		id := st.identity()
		swaps[i].New = &id
	}
	return swaps, nil
}

// metaChanges lists the directories that stay and come to be as on the source, the lower ones first. What is done in
// such a directory changes its time.
func (d *Destination) metaChanges() []metaChange {
	var list []metaChange
	d.tree.each(func(n *node) {
		if !n.mirrors() || !n.inPlace || n.same || n.old == nil {
			return
		}
		h := d.hidden[n.path()]
		if touched := h != nil && h.place != nil; touched || !n.entry.Meta.equal(&n.old.meta) {
			list = append(list, metaChange{Path: name(n.path()), New: n.entry.Meta, Old: n.old.meta})
		}
	})
	slices.Reverse(list)
	return list
}

// split makes changes that fit a record each.
func split(hidden string, swaps []swap, metas []metaChange) []Change {
	var list []Change
	c, size := Change{Op: opInstall, Hidden: hidden}, 0
	add := func(n int) {
		if size += n; size > perRecord {
			list = append(list, c)
			c, size = Change{Op: opInstall, Hidden: hidden}, n
		}
	}
	for _, s := range swaps {
		add(256 + 2*len(s.Path))
		c.Swaps = append(c.Swaps, s)
	}
	for _, m := range metas {
		add(256 + 2*len(m.Path) + m.New.bytes() + m.Old.bytes())
		c.Metas = append(c.Metas, m)
	}
	if len(c.Swaps)+len(c.Metas) > 0 {
		list = append(list, c)
	}
	return list
}

// bytes is about how long metadata is in JSON.
func (m *Meta) bytes() int {
	n := 100
	for _, x := range m.Xattrs {
		n += 50 + 2*len(x.Name) + 2*len(x.Value)
	}
	return n
}

// swap is the installation of one unit.
func (d *Destination) swap(u *unit, s *swap) error {
	dir, err := d.root.sub(path.Dir(u.path)[1:])
	if err != nil {
		return err
	}
	defer dir.Close()
	base := path.Base(u.path)
	st, err := dir.stat(base)
	switch {
	case errors.Is(err, unix.ENOENT) && s.Old == nil:
	case err != nil && !errors.Is(err, unix.ENOENT):
		return err
	case err != nil || s.Old == nil || !st.identity().is(*s.Old):
		return errChanged
	default:
		d.step("moving away " + u.path)
		if err := dir.rename(base, u.hidden.place, u.oldName()); err != nil {
			return err
		}
	}
	if s.New == nil {
		return nil
	}
	d.step("moving in " + u.path)
	return u.hidden.place.rename(u.newName(), dir, base)
}

// syncPlaces makes the renames durable.
func (d *Destination) syncPlaces(ctx context.Context, units []*unit, metas []metaChange) error {
	dirs := make(map[string]bool)
	g, _ := errgroup.WithContext(ctx)
	for _, u := range units {
		if !dirs[u.hidden.dir] {
			dirs[u.hidden.dir] = true
			g.Go(func() error { return u.hidden.place.sync("") })
		}
	}
	for _, m := range metas {
		dirs[string(m.Path)] = true
	}
	for dir := range dirs {
		g.Go(func() error { return d.root.sync(dir[1:]) })
	}
	return g.Wait()
}

// applyAt sets the metadata of a directory.
func (p *place) applyAt(rel string, m *Meta) error {
	h, err := p.handle(rel)
	if err != nil {
		return err
	}
	defer h.Close()
	return h.apply(m, Directory)
}
