package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/criu"
	"github.com/nsmigrate/nsmigrate/checkpoint/lock"
	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
	"github.com/nsmigrate/nsmigrate/checkpoint/sidecar"
	"github.com/nsmigrate/nsmigrate/checkpoint/sockets"
	"github.com/nsmigrate/nsmigrate/netstate"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
)

// drainTime is how long a dump waits for a service to accept the connections that wait in its queues. New
// ones are held back meanwhile.
const drainTime = 5 * time.Second

// Names of phases that are looked up again.
const (
	phaseFreeze = "freeze"
	phaseDump   = "dump"
)

// defaultTimeout bounds a dump up to the point of no return.
const defaultTimeout = 2 * time.Minute

// Dump writes a service down and, unless the options say otherwise, removes it: in the end there is the image
// in the store and nothing of the service left on the host.
//
// Whatever fails before the service is killed puts it back as it was, connections alive. Errors:
// [*RefusedError] if nothing was touched, [*FailedError] if the service was frozen for a while, and any
// other error from before the freeze.
func Dump(ctx context.Context, spec Spec, store Store, opts Options) (*Report, error) {
	clock := NewClock(opts.Progress)
	clock.Phase("survey", false)
	if err := RequireRoot("dump"); err != nil {
		return nil, err
	}
	t, err := openTarget(spec)
	if err != nil {
		return nil, err
	}
	defer t.ns.Close()
	d := &dump{target: t, opts: opts, clock: clock, report: &Report{}}
	var version criu.Version
	if d.criu, version, err = FindCRIU(ctx, "dump", opts.CRIU); err != nil {
		return nil, err
	}
	if err := d.survey(ctx); err != nil {
		return nil, err
	}
	d.report.Manifest.Host.CRIU = version.String()
	if opts.DryRun {
		return d.finished(), nil
	}

	timeout := opts.Timeout
	if timeout == 0 {
		timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not done within %s", timeout))
	defer cancel()
	defer d.close()

	clock.Phase("prepare", false)
	if err := d.prepare(ctx); err != nil {
		return nil, d.failed(err)
	}
	clock.Phase("drain", false)
	if err := d.drain(ctx); err != nil {
		return nil, err
	}
	for _, pid := range d.sessionless {
		if err := proc.Setsid(pid); err != nil {
			return nil, d.failed(err)
		}
	}
	if err := d.freezeAndWrite(ctx, store); err != nil {
		return nil, d.rollBack(err, store)
	}

	// The point of no return: the image is whole and durable.
	clock.Phase("end source", !opts.LeaveRunning)
	if err := d.endSource(store); err != nil {
		return d.finished(), err
	}
	return d.finished(), nil
}

// dump is one dump under way.
type dump struct {
	target *target
	opts   Options
	clock  *Clock
	report *Report
	criu   string // path of the program

	state       *netstate.State // of the namespace, while the service ran
	sessionless []int
	live        []proc.Tree // in the order of the manifest's trees
	scratch     string      // the image is gathered below it, beside criu's logs
	lock        *lock.Lock
	trees       trees
	car         *sidecar.Sidecar
}

// survey looks at the service while it runs and refuses what can't be carried.
func (d *dump) survey(ctx context.Context) error {
	scene, err := Survey(ctx, d.target.ns)
	if err != nil {
		return fmt.Errorf("dump: %w", err)
	}
	if d.state, err = netstate.Capture(ctx, d.target.ns, netstate.CaptureOptions{Logger: d.opts.Logger}); err != nil {
		return fmt.Errorf("dump: %w", err)
	}
	found := Classify(scene, d.target.root)
	problems := found.Problems
	if len(found.Trees) == 0 && len(problems) == 0 {
		problems = append(problems, Problem{Kind: "target", Object: d.target.String(), Reason: "no process lives in it", Remedy: "start the service in it first"})
	}
	problems = append(problems, CheckLoopback(d.state)...)
	problems = append(problems, problemsOf(d.state)...)
	kept, losses := allow(problems, d.opts.AllowLoss)
	if err := Refuse("dump", kept); err != nil {
		return err
	}
	d.live, d.sessionless = found.Scanned, found.Sessionless
	d.report.Notes = found.Notes
	d.report.Manifest = d.manifest(found.Trees, losses)
	binaries, err := ReadBinaries(ctx, found.Scanned)
	if err != nil {
		return fmt.Errorf("dump: %w", err)
	}
	for i := range found.Trees {
		found.Trees[i].Dir = treeDir(i)
		found.Trees[i].Binaries = binaries[i]
	}
	return nil
}

// problemsOf lists what a namespace has and its state does not hold.
func problemsOf(state *netstate.State) []Problem {
	var problems []Problem
	for _, l := range state.Losses() {
		problems = append(problems, Problem{Kind: l.Kind, Object: l.Object, Reason: l.Reason, Remedy: l.Remedy, Loss: true})
	}
	return problems
}

// allow divides problems into those that stand and the losses that the user accepts.
func allow(problems []Problem, kinds []string) (stand []Problem, losses []Loss) {
	for _, p := range problems {
		if p.Loss && slices.Contains(kinds, p.Kind) {
			losses = append(losses, Loss{Kind: p.Kind, Object: p.Object, Reason: p.Reason, Remedy: p.Remedy})
			continue
		}
		if p.Loss {
			hint := fmt.Sprintf("--allow-loss %s goes on without it", p.Kind)
			if p.Remedy != "" {
				hint = p.Remedy + "; " + hint
			}
			p.Remedy = hint
		}
		stand = append(stand, p)
	}
	return stand, losses
}

// treeDir is where the CRIU images of a tree stand: checkpointctl looks for the first one's in the upper place.
func treeDir(index int) string {
	if index == 0 {
		return TreesDir
	}
	return fmt.Sprintf("%s/tree-%d", TreesDir, index+1)
}

func (d *dump) image() string { return filepath.Join(d.scratch, "image") }

// prepare does everything that can be done while the service runs.
func (d *dump) prepare(ctx context.Context) error {
	var err error
	if d.scratch, err = Scratch(d.opts.WorkDir); err != nil {
		return err
	}
	if err := criu.Warm(ctx, d.criu); err != nil {
		return err
	}
	if d.lock, err = lock.Open(d.target.ns); err != nil {
		return err
	}
	if d.car, err = sidecar.Capture(ctx, sidecar.Holders(d.live), nil); err != nil {
		return err
	}
	d.trees, err = startCRIU(d.criu, d.image(), filepath.Join(d.scratch, "logs"), d.target.ns, d.report.Manifest.Trees, d.live)
	if err != nil {
		return err
	}
	return d.trees.request(ctx, d.opts)
}

// drain empties the accept queues: CRIU can't save connections that the service has not accepted.
func (d *dump) drain(ctx context.Context) error {
	if err := d.lock.HoldNew(ctx); err != nil {
		return d.failed(err)
	}
	err := sockets.AwaitDrained(ctx, d.target.ns, drainTime)
	if waiting, ok := errors.AsType[*sockets.NotDrainedError](err); ok {
		return Refuse("dump", []Problem{{
			Kind: "accept queue", Object: waiting.Error(),
			Reason: "CRIU can't save connections that the service has not accepted",
			Remedy: "try again when the service accepts its connections, or end the clients that wait",
		}})
	}
	if err != nil {
		return d.failed(err)
	}
	return nil
}

// failed is the error of a phase before the freeze: the source ran all the time.
func (d *dump) failed(cause error) error {
	return &FailedError{Phase: d.clock.Current(), Err: cause, Log: KeepLogs(filepath.Join(d.scratch, "logs"), "dump", cause)}
}

// freezeAndWrite freezes the service, makes it mute and writes the image. On success the service is frozen
// still, or runs again if it is to be left running.
func (d *dump) freezeAndWrite(ctx context.Context, store Store) error {
	d.clock.Phase(phaseFreeze, true)
	if err := d.trees.stop(); err != nil {
		return err
	}
	// Locked only now: what came in until the freeze is in the receive queues and wakes the service up at
	// once when it lives again, while a packet that the lock drops costs its sender a retransmission timeout.
	if err := d.lock.Hold(ctx); err != nil {
		return err
	}
	if err := d.trees.freeze(ctx); err != nil {
		return err
	}
	if err := d.trees.redirect(false); err != nil {
		return err
	}
	d.clock.Phase(phaseDump, true)
	state, err := d.dumpTrees(ctx)
	if err != nil {
		return err
	}
	if d.opts.LeaveRunning {
		if err := d.resumeSnapshot(); err != nil {
			return err
		}
	}
	d.clock.Phase("write image", !d.opts.LeaveRunning)
	return d.write(ctx, state, store)
}

// dumpTrees lets criu write its images while the namespace and the socket options are read.
func (d *dump) dumpTrees(ctx context.Context) (*netstate.State, error) {
	var state *netstate.State
	var car *sidecar.Sidecar
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.trees.dump(gctx) })
	g.Go(func() (err error) {
		state, err = netstate.Capture(gctx, d.target.ns, netstate.CaptureOptions{Prev: d.state, Logger: d.opts.Logger})
		return err
	})
	g.Go(func() (err error) {
		for i := range d.live {
			if err := d.report.Manifest.Trees[i].refresh(&d.live[i]); err != nil {
				return err
			}
		}
		car, err = sidecar.Capture(gctx, sidecar.Holders(d.live), d.car)
		return err
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	d.car = car
	return state, nil
}

// resumeSnapshot lets the source run on as soon as its images are complete.
func (d *dump) resumeSnapshot() error {
	if err := errors.Join(d.trees.redirect(true), d.trees.finish()); err != nil {
		return err
	}
	if err := errors.Join(d.lock.Release(), d.lock.ReleaseNew()); err != nil {
		return err
	}
	d.trees.goOn()
	return nil
}

// write completes the image and stages it.
func (d *dump) write(ctx context.Context, state *netstate.State, store Store) error {
	m := d.report.Manifest
	if d.opts.LeaveRunning {
		m.Source = SourceRunning
	}
	for _, t := range m.Trees {
		if err := criu.Amend(filepath.Join(d.image(), t.Dir)); err != nil {
			return err
		}
	}
	if err := writeFile(filepath.Join(d.image(), StateFile), func(f *os.File) error {
		_, err := state.WriteTo(f)
		return err
	}); err != nil {
		return fmt.Errorf("write network state: %w", err)
	}
	car, err := d.car.Encode()
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(d.image(), SocketsFile), func(f *os.File) error {
		_, err := f.Write(car)
		return err
	}); err != nil {
		return fmt.Errorf("write socket options: %w", err)
	}
	if err := criu.WriteDumpStats(d.image(), d.statsSoFar()); err != nil {
		return err
	}
	described, err := Describe(m, interfaces(state))
	if err != nil {
		return err
	}
	for name, text := range described {
		if err := os.WriteFile(filepath.Join(d.image(), name), text, 0o600); err != nil {
			return fmt.Errorf("write description: %w", err)
		}
	}
	if err := Seal(ctx, d.image(), m); err != nil {
		return err
	}
	for _, e := range m.Entries {
		d.report.Bytes += e.Size
	}
	return store.Stage(ctx, d.image(), m)
}

// statsSoFar are the statistics that checkpointctl looks for in an image. CRIU writes its own when the image is
// sealed already; these are as seen from outside.
func (d *dump) statsSoFar() criu.DumpStats {
	var s criu.DumpStats
	for _, p := range d.clock.Phases() {
		us := uint32(p.Duration.Microseconds())
		switch {
		case p.Name == phaseFreeze:
			s.FreezingTime = us
		case p.Name == phaseDump:
			s.MemdumpTime, s.MemwriteTime = us, us
		case !p.Blackout:
			continue
		}
		s.FrozenTime += us
	}
	pages, _ := filepath.Glob(filepath.Join(d.image(), TreesDir, "pages-*.img")) // the pattern is well-formed
	for _, path := range pages {
		if info, err := os.Stat(path); err == nil {
			s.PagesWritten += uint64(info.Size()) / uint64(os.Getpagesize())
		}
	}
	s.PagesScanned = s.PagesWritten
	return s
}

// interfaces lists the devices that have addresses.
func interfaces(state *netstate.State) []Interface {
	var list []Interface
	for _, a := range state.Addresses() {
		i := slices.IndexFunc(list, func(known Interface) bool { return known.Name == a.Device })
		if i < 0 {
			i = len(list)
			list = append(list, Interface{Name: a.Device, MAC: state.MAC(a.Device).String()})
		}
		list[i].Prefixes = append(list[i].Prefixes, a.Prefix)
	}
	return list
}

func writeFile(path string, write func(*os.File) error) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}

// rollBack puts the source back after a failure in the blackout.
func (d *dump) rollBack(cause error, store Store) error {
	failed := &FailedError{Phase: d.clock.Current(), Err: cause}
	d.clock.Phase("roll back", true)
	if err := d.trees.redirect(true); err != nil {
		failed.Err = errors.Join(failed.Err, err) // the peer is gone: the service finds out as if nothing had happened
	}
	failed.Stuck = errors.Join(
		d.trees.resume(d.car), // mute: what it sends at once would be lost with its acknowledgements otherwise
		d.lock.Release(),
		d.lock.ReleaseNew(),
	)
	d.trees.goOn()
	if err := store.Discard(); err != nil {
		failed.Err = errors.Join(failed.Err, err)
	}
	failed.Log = KeepLogs(filepath.Join(d.scratch, "logs"), "dump", cause)
	return failed
}

// endSource kills the source, which is mute, publishes the image, and removes the namespace.
func (d *dump) endSource(store Store) error {
	if !d.opts.LeaveRunning {
		if d.trees.finish() != nil {
			// The image is the service now. A criu that died at this point left a stopped tree behind.
			if err := d.trees.kill(); err != nil {
				return errors.Join(fmt.Errorf("dump: end source: %w", err), d.lock.Keep())
			}
		}
	}
	for _, t := range d.trees {
		t.wakeParent()
	}
	if err := store.Publish(); err != nil {
		return fmt.Errorf("dump: the service is in the image, but the image could not be given its name: %w", err)
	}
	d.readStats()
	if d.opts.LeaveRunning {
		d.note("the service runs on: its connections will be closed when this image is restored")
		return nil
	}
	if err := d.removeNamespace(); err != nil {
		// What is left of the namespace must not answer for the service that is gone.
		return errors.Join(fmt.Errorf("dump: the image is complete, but the source's namespace could not be removed: %w", err), d.lock.Keep())
	}
	return nil
}

// removeNamespace removes the name and the host-side links; the namespace ends with its last handle, while
// the lock is still held.
func (d *dump) removeNamespace() error {
	// Not cancelled with the operation, which is past its point of no return.
	if err := netstate.RemoveUplinks(context.Background(), d.state, netstate.BuildOptions{}); err != nil {
		return err
	}
	if d.target.name == "" {
		return nil
	}
	return ns.Unbind(d.target.name)
}

func (d *dump) note(format string, args ...any) {
	d.report.Notes = append(d.report.Notes, fmt.Sprintf(format, args...))
}

func (d *dump) readStats() {
	for _, t := range d.trees {
		stats, err := criu.ReadDumpStats(t.logs)
		if err == nil { // figures for people; the dump is complete without them
			d.report.CRIU = append(d.report.CRIU, CRIUStats(*stats))
		}
	}
}

// finished completes the report.
func (d *dump) finished() *Report {
	d.report.Phases = d.clock.Phases()
	d.report.Frozen = Blackout(d.report.Phases)
	return d.report
}

// close releases what the dump holds. The lock goes last: until then the namespace, if it is to end, is mute.
func (d *dump) close() {
	d.trees.close()
	d.target.ns.Close()
	if d.lock != nil {
		d.lock.Close()
	}
	if d.scratch != "" {
		os.RemoveAll(d.scratch)
	}
}

// manifest describes what is about to be dumped.
func (d *dump) manifest(trees []Tree, losses []Loss) *Manifest {
	host, _ := os.Hostname() // for people only
	return &Manifest{
		Format:   Format{Major: FormatMajor},
		ID:       NewID(),
		Created:  time.Now().UTC(),
		Tool:     d.opts.Tool,
		Host:     Host{Name: host, Kernel: d.state.Kernel, Arch: runtime.GOARCH},
		Target:   Target{NetNS: d.target.name, Inode: d.target.ns.Inode()},
		Source:   SourceStopped,
		TCPClose: d.opts.TCPClose,
		Trees:    trees,
		Losses:   losses,
	}
}

// Scratch makes a directory for an image under way: below dir, or on tmpfs if there is one, since what is
// written there is written in the blackout.
func Scratch(dir string) (string, error) {
	if dir == "" {
		dir = os.TempDir()
		for _, candidate := range []string{"/dev/shm", "/run"} {
			var st unix.Statfs_t
			if unix.Statfs(candidate, &st) == nil && st.Type == unix.TMPFS_MAGIC && unix.Access(candidate, unix.W_OK) == nil {
				dir = candidate
				break
			}
		}
	}
	path, err := os.MkdirTemp(dir, "nsmigrate-*")
	if err != nil {
		return "", fmt.Errorf("make scratch directory: %w", err)
	}
	return path, nil
}

// KeepLogs saves criu's logs of an operation from its scratch directory and returns where they are. It returns ""
// if criu is not the cause of the failure, or if they can't be kept: the cause itself is quoted in the error.
func KeepLogs(from, op string, cause error) string {
	if _, ok := errors.AsType[*criu.Error](cause); !ok {
		return ""
	}
	dir, err := os.MkdirTemp("", "nsmigrate-"+op+"-*")
	if err != nil {
		return ""
	}
	err = filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() != criu.LogFile {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name := fmt.Sprintf("%s-%s", filepath.Base(filepath.Dir(path)), criu.LogFile)
		return os.WriteFile(filepath.Join(dir, name), b, 0o600)
	})
	if names, rerr := os.ReadDir(dir); err != nil || rerr != nil || len(names) == 0 { // it may have died without a word
		os.RemoveAll(dir)
		return ""
	}
	return dir
}
