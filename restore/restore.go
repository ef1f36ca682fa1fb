package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/checkpoint/criu"
	"github.com/nsmigrate/nsmigrate/checkpoint/lock"
	"github.com/nsmigrate/nsmigrate/checkpoint/sockets"
	"github.com/nsmigrate/nsmigrate/netstate"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/restore/wire"
)

// defaultTimeout bounds a restore until the service is live.
const defaultTimeout = 2 * time.Minute

// Run brings the service in an image to life on this host. dir is the image, whose entries were verified
// against m.
//
// Whatever fails before the service is live leaves nothing on the host. Errors:
// [*checkpoint.RefusedError] if nothing was built, [*Error] if something was and is removed again, and any
// other error from before that.
func Run(ctx context.Context, dir string, m *checkpoint.Manifest, opts Options) (*Report, error) {
	clock := checkpoint.NewClock(opts.Progress)
	clock.Phase("preflight", false)
	img, err := open(dir, m)
	if err != nil {
		return nil, err
	}
	r := &restoring{image: img, opts: opts, clock: clock, report: &Report{NetNS: opts.NetNS}}
	if r.report.NetNS == "" {
		r.report.NetNS = m.Target.NetNS
	}
	r.report.TCPClose = opts.TCPClose || m.TCPClose || m.Source == checkpoint.SourceRunning
	if err := r.preflight(ctx); err != nil {
		return nil, err
	}
	if opts.DryRun {
		return r.finished(), nil
	}

	timeout := opts.Timeout
	if timeout == 0 {
		timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not done within %s", timeout))
	defer cancel()
	defer r.close()
	if err := r.bringToLife(ctx); err != nil {
		return nil, r.takeBack(err)
	}
	r.undo.keep()
	return r.finished(), r.settle(context.WithoutCancel(ctx))
}

// restoring is one restore under way.
type restoring struct {
	*image
	opts   Options
	clock  *checkpoint.Clock
	report *Report
	undo   undo

	criuPath string
	newPIDs  []bool // by tree: it needs a pid namespace of its own
	scratch  string
	ns       *ns.NS
	lock     *lock.Lock
	trees    []*tree
	announce *wire.Announcer
}

// bringToLife goes through the phases from an empty host to the live service.
func (r *restoring) bringToLife(ctx context.Context) error {
	r.clock.Phase("build namespace", false)
	if err := r.buildNamespace(ctx); err != nil {
		return err
	}
	r.clock.Phase("prepare trees", false)
	if err := r.prepareTrees(ctx); err != nil {
		return err
	}
	if err := r.lock.Hold(ctx); err != nil {
		return err
	}
	r.clock.Phase("restore trees", false)
	for _, t := range r.trees {
		if err := t.restore(ctx); err != nil {
			return err
		}
	}
	r.clock.Phase("socket options", false)
	if err := r.putBackOptions(ctx); err != nil {
		return err
	}
	if err := r.writePIDFile(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx) // the last moment at which there is a way back without a packet
	}
	r.clock.Phase("go live", false)
	return r.goLive(ctx)
}

// buildNamespace makes the namespace, cut off from the outside.
func (r *restoring) buildNamespace(ctx context.Context) error {
	var err error
	if r.scratch, err = checkpoint.Scratch(""); err != nil {
		return err
	}
	if r.ns, err = ns.Create(); err != nil {
		return err
	}
	inode := r.ns.Inode()
	r.undo.push("end what is left in the namespace", func() error { return killAll(inode) })
	if r.report.NetNS != "" {
		name := r.report.NetNS
		if err := r.ns.Bind(name); err != nil {
			return err
		}
		r.undo.push("remove the namespace's name", func() error { return ns.Unbind(name) })
	}
	if r.lock, err = lock.Open(r.ns); err != nil {
		return err
	}
	return netstate.Build(ctx, r.ns, r.state, r.buildOptions())
}

func (r *restoring) buildOptions() netstate.BuildOptions {
	return netstate.BuildOptions{
		Uplinks: r.opts.Uplinks,
		Note: func(c netstate.HostChange) error {
			r.undo.push("undo "+c.String(), func() error { return netstate.UndoHostChange(context.Background(), c) })
			return nil
		},
	}
}

// prepareTrees starts a criu for every tree in the surroundings it needs.
func (r *restoring) prepareTrees(ctx context.Context) error {
	stdio := r.opts.Stdio
	for i := range r.manifest.Trees {
		t := &tree{index: i, facts: &r.manifest.Trees[i], newPID: r.newPIDs[i]}
		r.trees = append(r.trees, t)
		r.undo.push("end a restored tree", t.kill)
		if err := t.prepare(r.criuPath, r.dir, r.scratch, r.report.NetNS, r.ns, stdio); err != nil {
			return err
		}
		if err := t.request(ctx, r.report.TCPClose); err != nil {
			return err
		}
	}
	var addrs []wire.Address
	for _, a := range r.state.Addresses() {
		addrs = append(addrs, wire.Address{Device: a.Device, Addr: a.Prefix.Addr()})
	}
	var err error
	r.announce, err = wire.NewAnnouncer(r.ns, addrs)
	return err
}

// putBackOptions sets what CRIU lost on the sockets. What can't be set is told, not fatal.
func (r *restoring) putBackOptions(ctx context.Context) error {
	for _, t := range r.trees {
		pids, err := t.pids(r.ns.Inode())
		if err != nil {
			return err
		}
		t.hostPID = pids
		r.report.PIDs = append(r.report.PIDs, pids[t.facts.Root])
		notes, err := r.car.Apply(ctx, t.index, func(pid int) int { return pids[pid] })
		if err != nil {
			return err
		}
		for _, n := range notes {
			r.note("%s", n)
		}
		for _, e := range t.facts.Externals {
			if e.Kind != checkpoint.KindDatagram {
				continue
			}
			if err := sockets.Redirect(pids[e.FDs[0].PID], e.FDs[0].FD, e.Path); err != nil {
				r.note("%v", err)
			}
		}
	}
	return nil
}

// writePIDFile writes the pid file while a failure to do so can still be undone.
func (r *restoring) writePIDFile() error {
	if r.opts.PIDFile == "" {
		return nil
	}
	path, err := filepath.Abs(r.opts.PIDFile)
	if err != nil {
		return err
	}
	r.undo.push("remove the pid file", func() error {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	})
	var b strings.Builder
	for _, pid := range r.report.PIDs {
		fmt.Fprintln(&b, pid)
	}
	return renameio.WriteFile(path, []byte(b.String()), 0o644)
}

// goLive lets the service be heard and run: the filter goes before the trees do, so that what CRIU's last
// steps send gets out, and a peer that waits learns at once that the connection goes on.
func (r *restoring) goLive(ctx context.Context) error {
	if r.opts.Wait {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("become the parent of the service: %w", err)
		}
	}
	if err := netstate.Connect(ctx, r.ns, r.state, r.buildOptions()); err != nil {
		return err
	}
	if err := r.lock.Release(); err != nil {
		return err
	}
	if err := r.announce.Send(); err != nil {
		return err
	}
	for _, t := range r.trees {
		if err := t.release(r.opts.Stdio); err != nil {
			return err
		}
	}
	return nil
}

// settle does what can wait until the service is live.
func (r *restoring) settle(ctx context.Context) error {
	r.clock.Phase("settle", false)
	r.report.Total = r.sinceStart()
	for _, t := range r.trees {
		stats, err := criu.ReadRestoreStats(filepath.Join(r.scratch, fmt.Sprint(t.index+1)))
		if err == nil { // figures for people
			r.report.CRIU = append(r.report.CRIU, CRIUStats(*stats))
		}
		r.report.waiters = append(r.report.waiters, t.waiter(r.report.PIDs[t.index]))
	}
	if r.report.TCPClose && r.manifest.Source == checkpoint.SourceRunning && len(r.trees) > 0 {
		r.note("the image is a snapshot of a service that ran on: its established connections were closed")
	}
	return r.announce.Repeat(ctx)
}

// sinceStart is the time until the service was live.
func (r *restoring) sinceStart() time.Duration {
	var sum time.Duration
	for _, p := range r.clock.Phases() {
		if p.Name != "settle" {
			sum += p.Duration
		}
	}
	return sum
}

// takeBack removes everything that was built.
func (r *restoring) takeBack(cause error) error {
	failed := &Error{Phase: r.clock.Current(), Err: cause}
	r.clock.Phase("take back", false)
	// Mute until the last socket is gone.
	if r.lock != nil {
		failed.Leftover = r.lock.Hold(context.Background())
	}
	failed.Leftover = errors.Join(failed.Leftover, r.undo.run())
	failed.Log = checkpoint.KeepLogs(r.scratch, "restore", cause)
	return failed
}

func (r *restoring) note(format string, args ...any) {
	r.report.Notes = append(r.report.Notes, fmt.Sprintf(format, args...))
}

func (r *restoring) finished() *Report {
	r.report.Phases = r.clock.Phases()
	return r.report
}

// close releases what the restore holds.
func (r *restoring) close() {
	for _, t := range r.trees {
		t.close()
	}
	if r.announce != nil {
		r.announce.Close()
	}
	if r.lock != nil {
		r.lock.Close()
	}
	if r.ns != nil {
		r.ns.Close()
	}
	if r.scratch != "" {
		os.RemoveAll(r.scratch)
	}
}
