package checkpoint

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/criu"
	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
	"github.com/nsmigrate/nsmigrate/checkpoint/ptrace"
	"github.com/nsmigrate/nsmigrate/checkpoint/sidecar"
	"github.com/nsmigrate/nsmigrate/checkpoint/sockets"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
)

// trees are the process trees of a target while they are dumped, each by a criu of its own, all in step.
type trees []*tree

type tree struct {
	index     int
	facts     *Tree
	live      *proc.Tree
	criu      *criu.Process
	session   *criu.Session
	logs      string // criu's work directory
	files     []*os.File
	pages     *criu.PageServer   // nil if the memory goes into the image
	keeper    *ptrace.FileKeeper // of criu's files, from before the freeze
	contexts  *ptrace.Contexts   // of the stopped threads
	stopped   []int              // processes, as the host sees them, that a SIGSTOP of ours keeps from running
	parentRan bool               // the root's parent was not stopped itself before
	orphan    bool               // its criu has died with the process that started it
}

// startCRIU starts a criu for every tree, in the place that the tree needs, with its images below dir and
// its log below logs. serve says that the memory is not to be among the images.
func startCRIU(path, dir, logs string, n *ns.NS, facts []Tree, live []proc.Tree, serve bool) (trees, error) {
	var ts trees
	for i := range facts {
		t := &tree{index: i, facts: &facts[i], live: &live[i]}
		ts = append(ts, t)
		if err := t.start(path, dir, logs, n, serve); err != nil {
			ts.close()
			return nil, err
		}
	}
	return ts, nil
}

func (t *tree) start(path, dir, logs string, n *ns.NS, serve bool) error {
	images, err := t.makeDir(filepath.Join(dir, t.facts.Dir))
	if err != nil {
		return err
	}
	t.logs = filepath.Join(logs, filepath.Base(t.facts.Dir))
	work, err := t.makeDir(t.logs)
	if err != nil {
		return err
	}
	place := criu.Place{Net: n.File()}
	if t.facts.MountNS == MountNetns || t.facts.MountNS == MountPrivate {
		if place.Mount, err = t.open(fmt.Sprintf("/proc/%d/ns/mnt", t.facts.HostRoot)); err != nil {
			return err
		}
	}
	if t.facts.inner() {
		if place.PID, err = t.open(fmt.Sprintf("/proc/%d/ns/pid", t.facts.HostRoot)); err != nil {
			return err
		}
	}
	if serve {
		if t.pages, err = criu.NewPageServer(images.Name()); err != nil {
			return err
		}
	}
	t.criu, err = criu.Start(criu.Config{Path: path, Place: place, Images: images, Work: work, Pages: t.pages})
	return err
}

// spareFiles are what criu opens besides the sockets of a tree: its own, and what a process sends it at a time (CR_SCM_MAX_FD).
const spareFiles = 1024

// inner says that the tree lives in a pid namespace whose init is not part of it (nsmigrate makes such on
// restore): only a criu inside that namespace can dump it.
func (t *Tree) inner() bool { return !t.PIDNS && t.Root != t.HostRoot }

func (t *tree) makeDir(path string) (*os.File, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	return t.open(path)
}

func (t *tree) open(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err == nil {
		t.files = append(t.files, f)
	}
	return f, err
}

// request has every criu take up its dump and stop before it touches anything. What criu wants to know of the kernel
// it finds out here, over the loopback device if it must, so nothing may be held back yet.
// count says how many sockets each tree has: criu keeps all of them open.
func (ts trees) request(ctx context.Context, opts Options, count map[int]int) error {
	return ts.each(func(t *tree) error {
		o := criu.DumpOptions{
			PID:          t.facts.HostRoot,
			LeaveRunning: opts.LeaveRunning,
			TCPClose:     opts.TCPClose,
			ShellJob:     t.facts.ShellJob,
		}
		if t.facts.inner() {
			o.PID = t.facts.Root
		}
		for _, e := range t.facts.Externals {
			if e.Kind != "pipe" && e.Kind != KindDatagram { // CRIU needs no leave to save one end of a pipe
				o.External = append(o.External, e.Key)
			}
		}
		if t.facts.MountNS == MountOwn {
			o.External = append(o.External, "mnt[]")
			o.SkipMounts = t.facts.SkipMounts
		}
		var err error
		if t.session, err = t.criu.Dump(o); err != nil {
			return err
		}
		if err = t.session.Advance(ctx, criu.PreDump); err != nil {
			return err
		}
		t.joinTime(o.PID)
		t.keeper, err = ptrace.KeepFiles(t.criu.PID(), count[t.index]+spareFiles)
		return err
	})
}

// joinTime has criu enter the time namespace of the tree, whose root it calls pid: restored services have one of their own.
// It could read the clocks of another one from a child alone, for which the service would wait a millisecond longer. That is
// what it does if this fails.
func (t *tree) joinTime(pid int) {
	theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/time", t.facts.HostRoot))
	if err != nil {
		return
	}
	if own, err := os.Readlink("/proc/self/ns/time"); err == nil && own != theirs {
		ptrace.JoinTime(t.criu.PID(), pid) //nolint:errcheck // see above
	}
}

// freeze freezes every tree and stops there: nothing of them has been read yet.
func (ts trees) freeze(ctx context.Context) error {
	return ts.each(func(t *tree) error { return t.session.Advance(ctx, criu.QueryExtFiles) })
}

// criuPIDs lists the processes that dump the trees.
func (ts trees) criuPIDs() (pids []int) {
	for _, t := range ts {
		pids = append(pids, t.criu.PID())
	}
	return pids
}

// redirect takes the datagram sockets of frozen trees off their peers outside, or connects them again.
func (ts trees) redirect(connected bool) error {
	var errs []error
	for _, t := range ts {
		for _, e := range t.facts.Externals {
			if e.Kind != KindDatagram {
				continue
			}
			path := ""
			if connected {
				path = e.Path
			}
			errs = append(errs, sockets.Redirect(t.pid(e.FDs[0].PID), e.FDs[0].FD, path))
		}
	}
	return errors.Join(errs...)
}

// pid returns what the host calls a process that its own pid namespace calls own.
func (t *tree) pid(own int) int {
	for _, p := range t.live.Processes {
		if proc.Own(p.NSpid) == own {
			return p.PID
		}
	}
	return 0
}

// dump lets every criu write its images and holds the trees frozen. pages takes the memory, if it is not to be among
// the images.
func (ts trees) dump(ctx context.Context, pages criu.PageSink) error {
	return ts.each(func(t *tree) error {
		if t.pages == nil {
			return t.session.Advance(ctx, criu.PostDump)
		}
		// A criu whose memory nobody takes stops, and one that stops sends no more of it.
		serving, stop := context.WithCancel(ctx)
		defer stop()
		served := make(chan error, 1)
		go func() {
			served <- t.pages.Serve(serving, func(ctx context.Context, name string, size int64, r io.Reader) error {
				return pages(ctx, path.Join(t.facts.Dir, name), size, r)
			})
		}()
		err := t.session.Advance(ctx, criu.PostDump)
		if err != nil {
			stop()
		}
		failed := <-served
		if ctx.Err() == nil && failed != nil && !errors.Is(failed, context.Canceled) && !criu.HungUp(failed) {
			return failed // criu, which was not served any more, may know of no reason
		}
		return cmp.Or(err, failed)
	})
}

// finish lets every criu end its request: the trees are killed without a packet, or resumed if the dump
// leaves them running.
func (ts trees) finish() error {
	return ts.each(func(t *tree) error {
		if err := t.session.Finish(); err != nil {
			return err
		}
		return t.letGo()
	})
}

// kill ends trees that a criu which died could not end. They are stopped, and their connections are in repair mode
// still, so that no packet leaves. criu had all their files, which go too: an open socket keeps its device from being
// removed.
func (ts trees) kill() error {
	var errs []error
	for _, t := range ts {
		for _, p := range t.live.Processes {
			if err := unix.Kill(p.PID, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) && !p.Zombie() {
				errs = append(errs, fmt.Errorf("kill process %d: %w", p.PID, err))
			}
		}
		errs = append(errs, t.letGo())
	}
	return errors.Join(errs...)
}

// letGo closes the files that criu had when it ended.
func (t *tree) letGo() error {
	if t.keeper == nil {
		return nil
	}
	return t.keeper.Close()
}

// putBack has frozen trees go on as they were, and unlocks their network. lost says whose peer outside is gone, which the
// service finds out as if nothing had happened.
func (ts trees) putBack(car *sidecar.Sidecar, unlock func() error) (lost, stuck error) {
	lost = ts.redirect(true)
	// Mute until then: what it sends at once would be lost with its acknowledgements otherwise.
	stuck = errors.Join(ts.resume(car), unlock())
	stuck = errors.Join(stuck, ts.nudge())
	ts.goOn()
	return lost, stuck
}

// nudge has the connections of stopped trees ask their peers how far they are: what those said met the lock, and a timer
// that went off there is the longer until the next time.
func (ts trees) nudge() error {
	var errs []error
	for _, t := range ts {
		for _, pid := range t.stopped {
			if states, err := proc.Default.Running(pid); err != nil || len(states) > 0 {
				continue // gone, or it could find a connection in repair mode, where reads fail
			}
			if err := sockets.Nudge(pid); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// resume rolls every dump back: the trees are as they were, but still stopped. The network must still be locked; it
// may be unlocked afterwards.
func (ts trees) resume(car *sidecar.Sidecar) error {
	var errs []error
	for _, t := range ts {
		if err := t.resume(car); err != nil {
			errs = append(errs, fmt.Errorf("tree of process %d: %w", t.facts.HostRoot, err))
		}
	}
	return errors.Join(errs...)
}

func (t *tree) resume(car *sidecar.Sidecar) error {
	if t.orphan {
		// All of them are to go on, also those that don't look stopped: one that its tracer lets go by dying stops only when
		// it gets to a processor.
		t.stopped = t.ours()
		if t.contexts != nil && (trees{t}).awaitStopped() != nil {
			t.contexts = nil // somebody has let it go on
		}
		return t.mendStopped(nil, car)
	}
	if t.session == nil {
		return nil
	}
	err := t.session.Veto()
	var fault *criu.Error
	if errors.As(err, &fault) && fault.Died || errors.Is(err, criu.ErrEnded) {
		// It died, now or before, and could not put anything back.
		err = t.mend(car)
	}
	return err
}

// close ends every criu and its files.
func (ts trees) close() {
	for _, t := range ts {
		if t.criu != nil {
			t.criu.Close()
		}
		if t.pages != nil {
			t.pages.Close() //nolint:errcheck // a socket
		}
		t.letGo() //nolint:errcheck // it ends with this process
		for _, f := range t.files {
			f.Close()
		}
	}
}

// each runs fn for all trees at once. A failure doesn't stop the others: each is at a known point afterwards.
func (ts trees) each(fn func(*tree) error) error {
	var g errgroup.Group
	for _, t := range ts {
		g.Go(func() error { return fn(t) })
	}
	return g.Wait()
}
