package ship

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"
)

// Undo takes changes back, the last one first: what was under a name before is under it again, and nothing is left of
// what was staged. root is [Options].Root. Changes that were not made, or that were undone before, do no harm. Undo
// goes on past what it can't undo and says so: what was replaced is never removed then.
func Undo(ctx context.Context, root string, changes []Change) error {
	return undo(ctx, root, changes, func(string) {})
}

func undo(ctx context.Context, root string, changes []Change, step func(string)) error {
	r, err := openRecovery("undo", root, changes, step)
	if err != nil {
		return err
	}
	defer r.root.Close()
	slices.Reverse(r.changes)
	err = r.each(func(c *Change) error {
		if c.Op == opStage {
			// What was replaced must have left it.
			return r.drop(c, func(name string) bool { return path.Ext(name) == newSuffix })
		}
		return r.undoSwaps(ctx, c)
	})
	// All that was done in a directory changed its time.
	return errors.Join(err, r.each(func(c *Change) error {
		var errs []error
		for _, m := range c.Metas {
			r.step("giving metadata back to " + string(m.Path))
			if err := r.root.applyAt(string(m.Path)[1:], &m.Old); ignoreGone(err) != nil {
				errs = append(errs, fmt.Errorf("%s: %w", m.Path, err))
			}
		}
		return errors.Join(errs...)
	}))
}

// Commit makes changes final: what was replaced is removed. It may be called again.
func Commit(ctx context.Context, root string, changes []Change) error {
	return commit(ctx, root, changes, func(string) {})
}

func commit(ctx context.Context, root string, changes []Change, step func(string)) error {
	r, err := openRecovery("commit", root, changes, step)
	if err != nil {
		return err
	}
	defer r.root.Close()
	if err := r.each(func(c *Change) error { return r.checkInstalled(ctx, c) }); err != nil {
		return err
	}
	times := make(map[name]Time) // of directories that are as on the source
	for _, c := range changes {
		for _, m := range c.Metas {
			times[m.Path] = m.New.MTime
		}
	}
	return r.each(func(c *Change) error {
		if c.Op != opStage {
			return nil
		}
		dir, err := r.root.handle(string(c.Dir)[1:])
		if err != nil {
			return ignoreGone(err)
		}
		defer dir.Close()
		before, err := dir.stat("")
		if err != nil {
			return err
		}
		if err := r.drop(c, func(string) bool { return true }); err != nil {
			return err
		}
		if t, ok := times[c.Dir]; ok && t == before.mtime() {
			return dir.setTime(t)
		}
		return nil
	})
}

// recovery is an undo or a commit under way.
type recovery struct {
	verb    string
	root    *place
	changes []Change
	step    func(string) // told of each step, by tests
}

func openRecovery(verb, root string, changes []Change, step func(string)) (*recovery, error) {
	p, err := openPlace(cmp.Or(root, "/"))
	if err != nil {
		return nil, fmt.Errorf("%s changes of files: %w", verb, err)
	}
	return &recovery{verb: verb, root: p, changes: slices.Clone(changes), step: step}, nil
}

func (r *recovery) each(fn func(*Change) error) error {
	var errs []error
	for i := range r.changes {
		c := &r.changes[i]
		err := c.validate()
		if err == nil {
			err = fn(c)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %s: %w", r.verb, c, err))
		}
	}
	return errors.Join(errs...)
}

// validate keeps a damaged journal from doing harm.
func (c *Change) validate() error {
	if !hiddenName(c.Hidden) {
		return fmt.Errorf("%q is no name of ours", c.Hidden)
	}
	if c.Op != opStage && c.Op != opInstall {
		return errors.New("this nsmigrate does not know it")
	}
	if c.Op == opStage && c.Dir != "/" {
		if err := validPath(string(c.Dir)); err != nil {
			return err
		}
	}
	for _, s := range c.Swaps {
		if err := validPath(string(s.Path)); err != nil {
			return err
		}
		if s.Number < 0 || s.New == nil && s.Old == nil {
			return errors.New("a swap of nothing")
		}
	}
	for _, m := range c.Metas {
		if err := validPath(string(m.Path)); err != nil {
			return err
		}
	}
	return nil
}

// openHidden opens the directory beside a path; nil if there is none, or if it is not ours.
func openHidden(p *place, dir, hidden string) (*place, error) {
	h, err := p.sub(path.Join(dir, hidden)[1:])
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	st, err := h.stat("")
	if err != nil || int(st.Uid) != os.Geteuid() {
		h.Close()
		return nil, err
	}
	return h, nil
}

func (r *recovery) undoSwaps(ctx context.Context, c *Change) error {
	var errs []error
	for i := range slices.Backward(c.Swaps) {
		if ctx.Err() != nil {
			return errors.Join(append(errs, context.Cause(ctx))...)
		}
		if err := r.undoSwap(c.Hidden, &c.Swaps[i]); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", c.Swaps[i].Path, err))
		}
	}
	return errors.Join(errs...)
}

// undoSwap decides by what it finds how far the installation came.
func (r *recovery) undoSwap(hidden string, s *swap) error {
	dir, base := path.Split(string(s.Path))
	dir = path.Clean(dir)
	h, err := openHidden(r.root, dir, hidden)
	if h == nil || err != nil {
		return err // all is undone, as the directory goes last
	}
	defer h.Close()
	up, err := r.root.sub(dir[1:])
	if err != nil {
		return err
	}
	defer up.Close()
	here, err := find(up, base)
	if err != nil {
		return err
	}
	kept, err := find(h, s.oldName())
	if err != nil {
		return err
	}
	if here != nil && s.New != nil && here.is(*s.New) {
		r.step("taking out " + string(s.Path))
		if err := up.rename(base, h, s.newName()); err != nil {
			return err
		}
		here = nil
	}
	if kept == nil {
		return nil // it never left its place, or is back, or there was nothing
	}
	if here != nil {
		return fmt.Errorf("somebody has put another file there; what was there before the migration is %s",
			path.Join(dir, hidden, s.oldName()))
	}
	r.step("putting back " + string(s.Path))
	return h.rename(s.oldName(), up, base)
}

// find identifies what has a name; nil if nothing has.
func find(p *place, base string) (*identity, error) {
	st, err := p.stat(base)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	id := st.identity()
	return &id, nil
}

// drop removes from a directory for staging what may go, and then the directory.
func (r *recovery) drop(c *Change, may func(name string) bool) error {
	h, err := openHidden(r.root, string(c.Dir), c.Hidden)
	if h == nil || err != nil {
		return err
	}
	defer h.Close()
	names, err := h.names()
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range names {
		r.step("removing " + n)
		if may(n) {
			errs = append(errs, h.removeAll(n))
		} else {
			errs = append(errs, fmt.Errorf("%s is kept", path.Join(string(c.Dir), c.Hidden, n)))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	up, err := r.root.sub(string(c.Dir)[1:])
	if err != nil {
		return err
	}
	defer up.Close()
	r.step("removing " + c.Hidden)
	if err := up.rmdir(c.Hidden); err != nil {
		return err
	}
	return up.sync("")
}

// checkInstalled refuses to remove what was replaced if its successor never came.
func (r *recovery) checkInstalled(ctx context.Context, c *Change) error {
	for i := range c.Swaps {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		s := &c.Swaps[i]
		if s.New == nil {
			continue
		}
		dir := path.Dir(string(s.Path))
		h, err := openHidden(r.root, dir, c.Hidden)
		if err != nil {
			return err
		}
		if h == nil {
			continue // committed before
		}
		staged, err := find(h, s.newName())
		h.Close()
		if err != nil {
			return err
		}
		if staged != nil {
			return fmt.Errorf("%s was not installed", s.Path)
		}
	}
	return nil
}
