package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/checkpoint/criu"
	"github.com/nsmigrate/nsmigrate/checkpoint/hold"
	"github.com/nsmigrate/nsmigrate/checkpoint/lock"
	"github.com/nsmigrate/nsmigrate/checkpoint/sidecar"
	"github.com/nsmigrate/nsmigrate/checkpoint/sockets"
	"github.com/nsmigrate/nsmigrate/checkpoint/sprint"
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
	state, err := ReadState(dir)
	if err != nil {
		return nil, err
	}
	r, err := Plan(ctx, m, state, opts)
	if err != nil {
		return nil, err
	}
	if opts.DryRun {
		return r.Report(), nil
	}
	timeout := opts.Timeout
	if timeout == 0 {
		timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not done within %s", timeout))
	defer cancel()
	defer r.Close()
	if err := r.bringToLife(ctx, dir, m, state); err != nil {
		return nil, r.Undo(err)
	}
	return r.Report(), r.Settle(context.WithoutCancel(ctx))
}

// bringToLife goes through the phases from an empty host to the live service.
func (r *Restoration) bringToLife(ctx context.Context, dir string, m *checkpoint.Manifest, state *netstate.State) error {
	if err := r.Build(ctx, dir); err != nil {
		return err
	}
	if err := r.Restore(ctx, dir, m, state); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	r.record.Live = true
	if err := r.note(); err != nil {
		return err
	}
	return r.GoLive(ctx)
}

// Plan looks at everything that stands in the way of a restore, and changes nothing. m and state describe the
// service; of a live migration, whose service runs still, they are not the last word: see [Restoration.Restore].
// The error is a [*checkpoint.RefusedError] that names all that stands in the way.
func Plan(ctx context.Context, m *checkpoint.Manifest, state *netstate.State, opts Options) (*Restoration, error) {
	r := &Restoration{manifest: m, state: state, opts: opts, clock: checkpoint.NewClock(opts.Progress), report: &Report{NetNS: opts.NetNS}}
	r.clock.Phase("preflight", false)
	if r.report.NetNS == "" {
		r.report.NetNS = m.Target.NetNS
	}
	r.report.TCPClose = opts.TCPClose || m.TCPClose || m.Source == checkpoint.SourceRunning
	if err := r.preflight(ctx); err != nil {
		return nil, err
	}
	return r, nil
}

// Restoration is one restore under way: [Plan], then Build, Restore and GoLive, or Undo at any moment before that.
type Restoration struct {
	manifest *checkpoint.Manifest
	state    *netstate.State
	car      *sidecar.Sidecar
	opts     Options
	clock    *checkpoint.Clock
	report   *Report
	record   Record // what was changed on this host

	criuPath string
	newPIDs  []bool // by tree: it needs a pid namespace of its own
	scratch  string
	ns       *ns.NS
	lock     *lock.Lock
	trees    []*tree
	waiting  map[int][]int // connections that have something for their peers: descriptors by process, as this host sees it
	announce *wire.Announcer

	breakpoints criu.Breakpoints
	sprint      *sprint.Sprint // while the service stands still
}

// Build makes what the service will live in, while it may still run elsewhere: the namespace, cut off from the outside
// and under its name, and a criu for every tree, which waits for the images in dir.
func (r *Restoration) Build(ctx context.Context, dir string) error {
	r.clock.Phase("build namespace", false)
	if err := r.buildNamespace(ctx); err != nil {
		return err
	}
	r.clock.Phase("prepare trees", false)
	r.breakpoints = criu.KeepBreakpoints()
	if err := r.prepareTrees(dir); err != nil {
		return err
	}
	runtime.GC() // or what was used so far is collected while the service stands still
	return nil
}

func (r *Restoration) buildNamespace(ctx context.Context) error {
	var err error
	if r.scratch, err = checkpoint.Scratch(""); err != nil {
		return err
	}
	r.record = Record{Scratch: r.scratch}
	if err := r.note(); err != nil {
		return err
	}
	if r.ns, err = ns.Create(); err != nil {
		return err
	}
	r.record = Record{Scratch: r.scratch, NetNS: r.report.NetNS, Inode: r.ns.Inode()}
	if r.record.NetNS == "" { // whoever has to take it back must be able to find it
		r.record.NetNS, r.record.Temporary = "nsmigrate-"+r.manifest.ID[:12], true
	}
	if err := r.note(); err != nil {
		return err
	}
	if err := r.ns.Bind(r.record.NetNS); err != nil {
		return err
	}
	if r.lock, err = lock.Open(r.ns); err != nil {
		return err
	}
	if err := netstate.Build(ctx, r.ns, r.state, r.buildOptions()); err != nil {
		return err
	}
	return r.checkBuilt(ctx)
}

// checkBuilt refuses a namespace of which this host's kernel, another than the source's, passed over something.
func (r *Restoration) checkBuilt(ctx context.Context) error {
	ignored, err := netstate.Ignored(ctx, r.ns, r.state, r.buildOptions())
	if err != nil {
		return err
	}
	var problems []checkpoint.Problem
	for _, l := range ignored {
		problems = append(problems, checkpoint.Problem{Kind: l.Kind, Object: l.Object, Reason: l.Reason, Remedy: l.Remedy, Loss: true})
	}
	kept, losses := checkpoint.Allow(problems, r.opts.AllowLoss)
	for _, l := range losses {
		r.tell("%s, and you allowed it", l)
	}
	return checkpoint.Refuse("restore", kept)
}

func (r *Restoration) buildOptions() netstate.BuildOptions {
	return netstate.BuildOptions{Uplinks: r.opts.Uplinks, Note: func(c netstate.HostChange) error {
		r.record.Links = append(r.record.Links, c)
		return r.note()
	}}
}

// prepareTrees starts a criu for every tree in the surroundings it needs.
func (r *Restoration) prepareTrees(dir string) error {
	for i := range r.manifest.Trees {
		t := &tree{index: i, facts: &r.manifest.Trees[i], newPID: r.newPIDs[i]}
		r.trees = append(r.trees, t)
		if err := t.prepare(r.criuPath, dir, r.scratch, r.report.NetNS, r.ns); err != nil {
			return err
		}
		if slices.ContainsFunc(t.facts.Externals, func(e checkpoint.External) bool { return r.opts.brought(e.Path) }) {
			continue // criu gets its files when it starts, and one is not here yet
		}
		if err := t.start(r.opts.Stdio, r.report.TCPClose); err != nil {
			return err
		}
	}
	return nil
}

// awaitFiles makes the criu of every tree wait, with the files in its hands that are here by now.
func (r *Restoration) awaitFiles() error {
	for _, t := range r.trees {
		if t.criu == nil {
			if err := t.start(r.opts.Stdio, r.report.TCPClose); err != nil {
				return err
			}
		} else if err := t.seek(); err != nil {
			return err
		}
	}
	return nil
}

// Restore rebuilds the service from the image in dir, of which m and state are the last word. When it returns the
// service is complete, but every process of it is stopped and the namespace is mute, beyond the end of this process:
// it stays so until [Restoration.GoLive] or [Restoration.Undo].
func (r *Restoration) Restore(ctx context.Context, dir string, m *checkpoint.Manifest, state *netstate.State) error {
	r.clock.Phase("update", false)
	if err := r.update(ctx, dir, m, state); err != nil {
		return err
	}
	if r.sprint.Over() {
		r.Hurry()
	}
	var opening errgroup.Group // beside criu, which uses one core
	opening.Go(func() error { return r.openImage(dir) })
	defer opening.Wait() //nolint:errcheck // waited for below, unless something else has failed before
	r.clock.Phase("ask criu", false)
	for _, t := range r.trees {
		if err := t.begin(ctx); err != nil {
			return err
		}
	}
	if err := r.lock.Keep(); err != nil {
		return err
	}
	r.clock.Phase("restore trees", false)
	for _, t := range r.trees {
		if err := t.restore(ctx); err != nil {
			return err
		}
	}
	r.clock.Phase("socket options", false)
	if err := opening.Wait(); err != nil {
		return err
	}
	if err := r.putBackOptions(ctx); err != nil {
		return err
	}
	if err := r.writePIDFile(); err != nil {
		return err
	}
	r.clock.Phase("finish trees", false)
	if err := r.prepareToLive(); err != nil {
		return err
	}
	return r.finishTrees()
}

// patient is how many bytes of memory a service has whose criu takes so long to read them that others should not wait for
// its processes: those would stay before them until they are complete.
const patient = 64 << 20

// Hurry says that the service stands still from now on: the restore goes before other processes of this host for a moment.
func (r *Restoration) Hurry() {
	r.sprint.End()
	var pids []int
	for _, t := range r.trees {
		if t.criu != nil && r.manifest.Memory < patient {
			pids = append(pids, t.criu.PID())
		}
	}
	r.sprint = sprint.Start(pids...)
}

// update takes over what changed at a service that ran on while its surroundings were built here.
func (r *Restoration) update(ctx context.Context, dir string, m *checkpoint.Manifest, state *netstate.State) error {
	newTrees := false
	if m != r.manifest {
		planned, pids := r.manifest, r.newPIDs
		r.manifest = m
		if err := checkpoint.Refuse("restore", r.checkPIDs()); err != nil {
			return err
		}
		same := func(a, b checkpoint.Tree) bool { return a.SameSurroundings(&b) }
		newTrees = !slices.Equal(pids, r.newPIDs) || !slices.EqualFunc(planned.Trees, m.Trees, same)
	}
	newNamespace, err := r.updateNamespace(ctx, state)
	if err != nil {
		return err
	}
	if newTrees || newNamespace {
		if err := r.endTrees(); err != nil {
			return err
		}
	}
	if newNamespace {
		if err := r.rebuildNamespace(ctx); err != nil {
			return err
		}
	}
	if newTrees || newNamespace {
		if err := r.prepareTrees(dir); err != nil {
			return err
		}
	}
	for i, t := range r.trees {
		t.facts = &m.Trees[i]
	}
	return r.awaitFiles()
}

// updateNamespace brings the namespace to a state. It may have to be built anew for that, which takes the service longer.
func (r *Restoration) updateNamespace(ctx context.Context, state *netstate.State) (anew bool, err error) {
	built := r.state
	if r.state = state; state == built {
		return false, nil
	}
	err = netstate.Update(ctx, r.ns, built, state, r.buildOptions())
	if errors.Is(err, netstate.ErrRebuild) {
		r.tell("the service stood still for longer: %v", err)
		return true, nil
	}
	return false, err
}

// endTrees takes back what prepareTrees did.
func (r *Restoration) endTrees() error {
	for _, t := range r.trees {
		if err := t.kill(); err != nil {
			return err
		}
		t.close()
	}
	r.trees = nil
	return nil
}

// rebuildNamespace begins anew with what buildNamespace made.
func (r *Restoration) rebuildNamespace(ctx context.Context) error {
	err := errors.Join(r.record.Undo(ctx), r.lock.Close(), r.ns.Close())
	r.lock, r.ns = nil, nil // should what follows fail, they are not there to be undone
	if err != nil {
		return err
	}
	return r.buildNamespace(ctx)
}

// prepareToLive does what must be done before the trees are whole but belongs to their life.
func (r *Restoration) prepareToLive() error {
	if r.opts.Wait {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("become the parent of the service: %w", err)
		}
	}
	var err error
	r.announce, err = wire.NewAnnouncer(r.ns, wireAddresses(r.state))
	return err
}

// finishTrees lets every criu complete its tree and end. The processes are stopped, as they were when they were dumped.
func (r *Restoration) finishTrees() error {
	for _, t := range r.trees {
		r.record.Processes = append(r.record.Processes, t.hosts()...)
	}
	if err := r.note(); err != nil {
		return err
	}
	for _, t := range r.trees {
		if err := t.finish(r.opts.Stdio); err != nil {
			return err
		}
	}
	return nil
}

// putBackOptions sets what CRIU lost on the sockets. What can't be set is told, not fatal.
func (r *Restoration) putBackOptions(ctx context.Context) error {
	r.waiting = make(map[int][]int)
	for _, t := range r.trees {
		pids, err := t.pids(r.ns.Inode())
		if err != nil {
			return err
		}
		t.hostPID = pids
		r.report.PIDs = append(r.report.PIDs, pids[t.facts.Root])
		found, err := r.car.Apply(ctx, t.index, func(pid int) int { return pids[pid] }, r.freshTCP)
		if err != nil {
			return err
		}
		for _, n := range found.Notes {
			r.tell("%s", n)
		}
		for pid, fds := range found.Waiting {
			r.waiting[pids[pid]] = fds
		}
		for _, e := range t.facts.Externals {
			if e.Kind != checkpoint.KindDatagram {
				continue
			}
			if err := sockets.Redirect(pids[e.FDs[0].PID], e.FDs[0].FD, e.Path); err != nil {
				r.tell("%v", err)
			}
		}
	}
	return nil
}

// freshTCP makes a TCP socket in the service's namespace.
func (r *Restoration) freshTCP(family int) (fd int, err error) {
	err = r.ns.Do(func() error {
		fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		return err
	})
	return fd, err
}

// writePIDFile writes the pid file while a failure to do so can still be undone.
func (r *Restoration) writePIDFile() error {
	if r.opts.PIDFile == "" {
		return nil
	}
	path, err := filepath.Abs(r.opts.PIDFile)
	if err != nil {
		return err
	}
	r.record.PIDFile = path
	if err := r.note(); err != nil {
		return err
	}
	var b strings.Builder
	for _, pid := range r.report.PIDs {
		fmt.Fprintln(&b, pid)
	}
	return renameio.WriteFile(path, []byte(b.String()), 0o644)
}

// GoLive lets the service be heard and run. From its first step on there is no way back; should it fail, or we die,
// it may be done again ([Record.GoLive]).
func (r *Restoration) GoLive(ctx context.Context) error {
	defer r.sprint.End()
	r.clock.Phase("go live", false)
	// Unlocked first: nothing that comes in as soon as the links are up finds the lock.
	if err := r.lock.Release(); err != nil {
		return err
	}
	if err := netstate.Connect(ctx, r.ns, r.state, r.buildOptions()); err != nil {
		return err
	}
	announced := r.clock.Beside("announce")
	if err := r.announce.Send(); err != nil {
		return err
	}
	announced()
	return r.record.goOn(func(pid int) error { return sockets.NudgeSome(pid, r.waiting[pid]) })
}

// Deliver gives the live service what reached it on the host that it came from, while it stood still.
func (r *Restoration) Deliver(frames []hold.Frame) error {
	_, err := hold.Give(hold.Uplinks(r.state, r.opts.Uplinks), frames)
	return err
}

// Settle does what can wait until the service is live.
func (r *Restoration) Settle(ctx context.Context) error {
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
		r.tell("the image is a snapshot of a service that ran on: its established connections were closed")
	}
	return errors.Join(r.announce.Repeat(ctx), r.record.Settle())
}

// sinceStart is the time until the service was live.
func (r *Restoration) sinceStart() time.Duration {
	var sum time.Duration
	for _, p := range r.clock.Phases() {
		if p.Name != "settle" && !p.Beside {
			sum += p.Duration
		}
	}
	return sum
}

// Undo removes everything that was built. It returns the [*Error] that tells what failed, and what could not be removed.
func (r *Restoration) Undo(cause error) error {
	r.sprint.End()
	failed := &Error{Phase: r.clock.Current(), Err: cause}
	r.clock.Phase("take back", false)
	var errs []error
	if r.lock != nil {
		errs = append(errs, r.lock.Keep()) // mute until the last socket is gone
	}
	for _, t := range slices.Backward(r.trees) {
		errs = append(errs, t.kill())
	}
	failed.Log = checkpoint.KeepLogs(r.scratch, "restore", cause)
	if r.record.Live { // no more: whoever finds what is left of it is not to let it live
		r.record.Live = false
		errs = append(errs, r.note())
	}
	errs = append(errs, r.record.Undo(context.Background()))
	failed.Leftover = errors.Join(errs...)
	return failed
}

// note records what is on the host, or is about to be.
func (r *Restoration) note() error {
	if r.opts.Record == nil {
		return nil
	}
	return r.opts.Record(&r.record)
}

func (r *Restoration) tell(format string, args ...any) {
	r.report.Notes = append(r.report.Notes, fmt.Sprintf(format, args...))
}

// Report tells what was done so far.
func (r *Restoration) Report() *Report {
	r.report.Phases = r.clock.Phases()
	return r.report
}

// Close releases what the restore holds. The service, if it is live, lives on.
func (r *Restoration) Close() {
	defer r.breakpoints.Close() //nolint:errcheck // nothing was written
	r.sprint.End()
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
