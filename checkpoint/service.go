package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nsmigrate/nsmigrate/checkpoint/criu"
	"github.com/nsmigrate/nsmigrate/checkpoint/hold"
	"github.com/nsmigrate/nsmigrate/checkpoint/lock"
	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
	"github.com/nsmigrate/nsmigrate/checkpoint/ptrace"
	"github.com/nsmigrate/nsmigrate/checkpoint/sidecar"
	"github.com/nsmigrate/nsmigrate/checkpoint/sockets"
	"github.com/nsmigrate/nsmigrate/checkpoint/sprint"
	"github.com/nsmigrate/nsmigrate/netstate"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
)

// Service is a service of this host on its way out: [Open], then Prepare and Freeze, and then either Resume or End. Its
// methods are called by one goroutine at a time.
type Service struct {
	target *target
	opts   Options
	clock  *Clock
	report *Report
	criu   string // path of the program

	problems    []Problem       // see [Options].Gather
	state       *netstate.State // of the namespace: at first while the service ran, then when it was frozen
	sessionless []int
	live        []proc.Tree // in the order of the manifest's trees
	breakpoints criu.Breakpoints
	scratch     string  // the image is gathered below it, beside criu's logs
	memory      *Memory // or in it
	lock        *lock.Lock
	inbox       inbox
	trees       trees
	sprint      *sprint.Sprint        // while it stands still
	begun       map[string][]chunkSum // digests of the image's memory
	car         *sidecar.Sidecar
}

// Open looks at a service while it runs, and changes nothing. The error is a [*RefusedError] if it can't be carried.
func Open(ctx context.Context, spec Spec, opts Options) (*Service, error) {
	clock := NewClock(opts.Progress)
	clock.Phase("survey", false)
	if err := RequireRoot("dump"); err != nil {
		return nil, err
	}
	t, err := openTarget(spec)
	if err != nil {
		return nil, err
	}
	s := &Service{target: t, opts: opts, clock: clock, report: &Report{}}
	if err := s.open(ctx); err != nil {
		t.ns.Close()
		return nil, err
	}
	return s, nil
}

func (s *Service) open(ctx context.Context) error {
	var version criu.Version
	var err error
	if s.criu, version, err = FindCRIU(ctx, "dump", s.opts.CRIU); err != nil {
		return err
	}
	if err := s.survey(ctx); err != nil {
		return err
	}
	s.report.Manifest.Host.CRIU = version.String()
	return nil
}

// survey looks at the service while it runs and refuses what can't be carried.
func (s *Service) survey(ctx context.Context) error {
	if _, err := sockets.AwaitDelivered(ctx, s.target.ns, deliverTime); err != nil {
		return fmt.Errorf("dump: %w", err)
	}
	scene, err := Survey(ctx, s.target.ns)
	if err != nil {
		return fmt.Errorf("dump: %w", err)
	}
	if s.state, err = netstate.Capture(ctx, s.target.ns, netstate.CaptureOptions{Logger: s.opts.Logger}); err != nil {
		return fmt.Errorf("dump: %w", err)
	}
	found := Classify(scene, s.target.root)
	problems := found.Problems
	if len(found.Trees) == 0 && len(problems) == 0 {
		problems = append(problems, Problem{Kind: "target", Object: s.target.String(), Reason: "no process lives in it", Remedy: "start the service in it first"})
	}
	problems = append(problems, CheckLoopback(s.state)...)
	problems = append(problems, problemsOf(s.state)...)
	memory, room, err := s.checkRoom(found.Scanned)
	if err != nil {
		return err
	}
	problems = append(problems, room...)
	kept, losses := allow(problems, s.opts.AllowLoss)
	if s.problems = kept; !s.opts.Gather {
		if err := Refuse("dump", kept); err != nil {
			return err
		}
	}
	s.live, s.sessionless = found.Scanned, found.Sessionless
	s.report.Notes = found.Notes
	s.report.Manifest = s.manifest(found.Trees, losses)
	s.report.Manifest.Memory = memory
	if s.report.Manifest.Host.CPU, err = CPUFeatures(); err != nil {
		return fmt.Errorf("dump: %w", err)
	}
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

// Manifest describes the service: until Freeze as it was when it was opened.
func (s *Service) Manifest() *Manifest { return s.report.Manifest }

// Problems are what stands in the way, if [Options].Gather wants to know them before anybody is refused.
func (s *Service) Problems() []Problem { return s.problems }

// State is the network state of the service's namespace: until Freeze as it was when it was opened.
func (s *Service) State() *netstate.State { return s.state }

// Image is the directory that holds the image of a frozen service, without manifest and digests.
func (s *Service) Image() string {
	if s.memory != nil {
		return filepath.Join(s.memory.Path(), "image")
	}
	return filepath.Join(s.scratch, "image")
}

// Prepare does everything that can be done while the service runs. It runs as before if the error is not nil.
func (s *Service) Prepare(ctx context.Context) error {
	s.clock.Phase("prepare", false)
	if err := s.prepare(ctx); err != nil {
		return s.failed(err)
	}
	s.clock.Phase("drain", false)
	if err := s.drain(ctx); err != nil {
		return err
	}
	for _, pid := range s.sessionless {
		if err := ptrace.Setsid(pid); err != nil {
			return s.failed(err)
		}
	}
	runtime.GC() // or what was used so far is collected in the blackout
	return nil
}

func (s *Service) prepare(ctx context.Context) error {
	var err error
	if s.scratch, err = Scratch(s.opts.WorkDir); err != nil {
		return err
	}
	if s.opts.Chunk != nil {
		s.memory = NewMemory(s.scratch)
	}
	if err := criu.Warm(ctx, s.criu); err != nil {
		return err
	}
	criu.WarmAmend()
	s.breakpoints = criu.KeepBreakpoints()
	if s.lock, err = lock.Open(s.target.ns); err != nil {
		return err
	}
	if err := s.inbox.open(ctx, s.target.ns, hold.Uplinks(s.state, nil)); err != nil {
		s.tell("what reaches the service while it stands still has to be sent again: %v", err)
	}
	s.lock.LogTo(s.inbox.group())
	if s.car, err = sidecar.Capture(ctx, sidecar.Holders(s.live), nil); err != nil {
		return err
	}
	s.trees, err = startCRIU(s.criu, s.Image(), filepath.Join(s.scratch, "logs"), s.target.ns, s.report.Manifest.Trees, s.live, s.opts.Pages != nil)
	if err != nil {
		return err
	}
	if s.opts.Record != nil {
		record, err := s.newRecord()
		if err != nil {
			return err
		}
		if err := s.opts.Record(record); err != nil {
			return err
		}
	}
	return s.trees.request(ctx, s.opts, s.car.Count())
}

// drain empties the accept queues: CRIU can't save connections that the service has not accepted.
func (s *Service) drain(ctx context.Context) error {
	if err := s.lock.HoldNew(ctx); err != nil {
		return s.failed(err)
	}
	if s.inbox.group() != 0 && s.lock.Logs() == 0 {
		s.tell("what reaches the service while it stands still has to be sent again: this kernel has no nft_log")
	}
	err := sockets.AwaitDrained(ctx, s.target.ns, drainTime)
	if waiting, ok := errors.AsType[*sockets.NotDrainedError](err); ok {
		return Refuse("dump", []Problem{{
			Kind: "accept queue", Object: waiting.Error(),
			Reason: "CRIU can't save connections that the service has not accepted",
			Remedy: "try again when the service accepts its connections, or end the clients that wait",
		}})
	}
	if err != nil {
		return s.failed(err)
	}
	orphans, err := sockets.AwaitDelivered(ctx, s.target.ns, deliverTime)
	if err != nil {
		return s.failed(err)
	}
	var problems []Problem
	for _, o := range orphans {
		problems = append(problems, orphan(o))
	}
	kept, losses := allow(problems, s.opts.AllowLoss)
	s.report.Manifest.Losses = append(s.report.Manifest.Losses, losses...)
	if err := Refuse("dump", kept); err != nil {
		return err
	}
	return s.drainDatagrams(ctx)
}

// drainDatagrams lets the service read what its sockets have received, which CRIU does not save. What comes meanwhile is
// held. A service that doesn't read is not waited for for long: nobody can do so for it.
func (s *Service) drainDatagrams(ctx context.Context) error {
	if s.lock.Logs() == 0 {
		return nil
	}
	if err := s.lock.HoldDatagrams(ctx); err != nil {
		return s.failed(err)
	}
	if _, err := sockets.AwaitRead(ctx, s.target.ns, readTime); err != nil {
		return s.failed(err)
	}
	return nil
}

// failed is the error of a phase before the freeze: the source ran all the time.
func (s *Service) failed(cause error) error {
	if _, ok := errors.AsType[*RefusedError](cause); ok {
		return cause
	}
	return &FailedError{Phase: s.clock.Current(), Err: cause, Log: KeepLogs(filepath.Join(s.scratch, "logs"), "dump", cause)}
}

// Freeze stops the service, makes it mute and writes its image to [Service.Image]. Afterwards, and also after an error,
// it is frozen, and [Service.Resume] is the way back.
func (s *Service) Freeze(ctx context.Context) error {
	s.sprint = sprint.Start(s.trees.criuPIDs()...)
	s.clock.Phase("stop", true)
	if err := s.trees.stop(); err != nil {
		return err
	}
	s.clock.Phase("lock", true)
	// Locked only now: what came in until the freeze is in the receive queues and wakes the service up at
	// once when it lives again, while a packet that the lock drops costs its sender a retransmission timeout.
	var g errgroup.Group
	g.Go(func() error { return s.lock.Hold(ctx) })
	g.Go(s.trees.saveContexts)
	if err := g.Wait(); err != nil {
		return err
	}
	s.clock.Phase(phaseFreeze, true)
	g = errgroup.Group{}
	g.Go(func() error { return s.note(s.trees.where()) }) // before criu has a thread execute anything
	g.Go(func() error { return s.trees.freeze(ctx) })
	if err := g.Wait(); err != nil {
		return err
	}
	if err := s.trees.redirect(false); err != nil {
		return err
	}
	s.clock.Phase(phaseDump, true)
	if err := s.dumpTrees(ctx); err != nil {
		return err
	}
	s.clock.Phase("finish image", true)
	return s.complete()
}

// note tells where the threads of the stopped service are, or that they run again.
func (s *Service) note(c Contexts) error {
	if s.opts.Contexts == nil {
		return nil
	}
	return s.opts.Contexts(c)
}

// dumpTrees lets criu write its images while the namespace and the socket options are read.
func (s *Service) dumpTrees(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer s.clock.Beside("criu")()
		if s.opts.Pages == nil {
			f := follow(s.Image(), s.opts.Chunk)
			defer func() { s.begun = f.finish() }()
		}
		return s.trees.dump(ctx, s.opts.Pages)
	})
	g.Go(func() error { return s.captureState(ctx) })
	g.Go(func() error {
		for i := range s.live {
			if err := s.report.Manifest.Trees[i].refresh(&s.live[i]); err != nil {
				return err
			}
		}
		if s.opts.Frozen != nil {
			g.Go(func() error { return s.opts.Frozen(ctx) })
		}
		return s.captureSockets(ctx)
	})
	return g.Wait()
}

func (s *Service) captureState(ctx context.Context) error {
	defer s.clock.Beside("network state")()
	state, err := netstate.Capture(ctx, s.target.ns, netstate.CaptureOptions{Prev: s.state, Logger: s.opts.Logger})
	if err != nil {
		return err
	}
	s.state = state
	if s.opts.Captured != nil {
		return s.opts.Captured(ctx, state)
	}
	return nil
}

func (s *Service) captureSockets(ctx context.Context) error {
	defer s.clock.Beside("socket options")()
	car, err := sidecar.Capture(ctx, s.holders(), s.car)
	if err != nil {
		return err
	}
	s.car = car
	return s.writeSockets()
}

// holders are the processes of the frozen trees.
func (s *Service) holders() []sidecar.Holder {
	holders := sidecar.Holders(s.live)
	for i := range holders {
		holders[i].CRIU = s.trees[holders[i].Tree].criu.PID()
	}
	return holders
}

// complete writes the parts of the image that are not CRIU's.
func (s *Service) complete() error {
	for _, t := range s.report.Manifest.Trees {
		if err := criu.Amend(filepath.Join(s.Image(), t.Dir)); err != nil {
			return err
		}
	}
	if s.opts.Captured == nil {
		if err := writeFile(filepath.Join(s.Image(), StateFile), func(f *os.File) error {
			_, err := s.state.WriteTo(f)
			return err
		}); err != nil {
			return fmt.Errorf("write network state: %w", err)
		}
	}
	return nil
}

func (s *Service) writeSockets() error {
	car, err := s.car.Encode()
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(s.Image(), SocketsFile), func(f *os.File) error {
		_, err := f.Write(car)
		return err
	}); err != nil {
		return fmt.Errorf("write socket options: %w", err)
	}
	return nil
}

// Phase begins a phase of the blackout that is the caller's: what is done with the image of the frozen service.
func (s *Service) Phase(name string) { s.clock.Phase(name, true) }

// Gather begins to take what comes for the frozen service, so that [Service.Arrived] has it at hand.
func (s *Service) Gather() { s.inbox.gather() }

// Arrived returns what has come for the frozen service since it was last asked, for another host's [hold.Decode]; nil if
// nothing has. It stays known here until the service is ended: if that never happens, it is for the copy on this host.
func (s *Service) Arrived() []byte {
	b, err := s.inbox.pass()
	if err != nil {
		s.tell("%v", err)
	}
	return b
}

// giveBack lets a service that goes on have what came while it stood still.
func (s *Service) giveBack() {
	if err := s.inbox.giveBack(); err != nil {
		s.tell("what came while the service stood still has to be sent again: %v", err)
	}
}

// Keep keeps the frozen service mute beyond the end of this process.
func (s *Service) Keep() error { return s.lock.Keep() }

// Resume puts a frozen service back as it was. It returns the [*FailedError] that tells what failed, and what could not be
// put back.
func (s *Service) Resume(cause error) *FailedError {
	failed := &FailedError{Phase: s.clock.Current(), Err: cause}
	defer s.sprint.End()
	s.clock.Phase("roll back", true)
	unlock := func() error { return errors.Join(s.lock.Release(), s.lock.ReleaseNew()) }
	lost, stuck := s.trees.putBack(s.car, unlock)
	s.note(nil) //nolint:errcheck // those that are known are not put back where nothing shows that they have to
	if failed.Stuck = stuck; lost != nil {
		failed.Err = errors.Join(failed.Err, lost)
	}
	s.giveBack()
	failed.Log = KeepLogs(filepath.Join(s.scratch, "logs"), "dump", cause)
	return failed
}

// End kills a frozen service without a packet and removes its namespace.
func (s *Service) End(ctx context.Context) error {
	s.sprint.End()
	s.clock.Phase("end", false)
	defer s.clock.Stop()
	s.inbox.close()
	if err := s.kill(); err != nil {
		return err
	}
	return s.remove(ctx)
}

// kill ends the trees, unless they were left running.
func (s *Service) kill() error {
	if !s.opts.LeaveRunning {
		if s.trees.finish() != nil {
			// The image is the service now. A criu that died at this point left a stopped tree behind.
			if err := s.trees.kill(); err != nil {
				return errors.Join(fmt.Errorf("dump: end source: %w", err), s.lock.Keep())
			}
		}
	}
	for _, t := range s.trees {
		t.wakeParent()
	}
	return nil
}

// remove removes the namespace: its name and the host-side links. It ends with its last handle, while the lock is still
// held.
func (s *Service) remove(ctx context.Context) error {
	s.readStats()
	// Not cancelled with the operation, which is past its point of no return.
	err := netstate.RemoveUplinks(context.WithoutCancel(ctx), s.state.Uplinks(), netstate.BuildOptions{})
	if err == nil && s.target.name != "" {
		err = ns.Unbind(s.target.name)
	}
	if err != nil {
		// What is left of the namespace must not answer for the service that is gone.
		return errors.Join(fmt.Errorf("dump: the image is complete, but the source's namespace could not be removed: %w", err), s.lock.Keep())
	}
	return nil
}

func (s *Service) tell(format string, args ...any) {
	s.report.Notes = append(s.report.Notes, fmt.Sprintf(format, args...))
}

func (s *Service) readStats() {
	for _, t := range s.trees {
		stats, err := criu.ReadDumpStats(t.logs)
		if err == nil { // figures for people; the dump is complete without them
			s.report.CRIU = append(s.report.CRIU, CRIUStats(*stats))
		}
	}
}

// Report tells what was done so far.
func (s *Service) Report() *Report {
	s.report.Phases = s.clock.Phases()
	s.report.Frozen = Blackout(s.report.Phases)
	s.report.Held = s.inbox.stats()
	return s.report
}

// Close releases what the service's way out needs. The lock goes last: until then the namespace, if it is to end, is mute.
func (s *Service) Close() {
	defer s.breakpoints.Close() //nolint:errcheck // nothing was written
	s.sprint.End()
	s.trees.close()
	s.target.ns.Close()
	if s.lock != nil {
		s.lock.Close()
		s.giveBack() // of new connections that came before the service would have been frozen
	}
	s.inbox.close()
	if s.memory != nil {
		s.memory.Close() //nolint:errcheck // a directory
	}
	if s.scratch != "" {
		os.RemoveAll(s.scratch)
	}
}

// manifest describes what is about to be dumped.
func (s *Service) manifest(trees []Tree, losses []Loss) *Manifest {
	host, _ := os.Hostname() // for people only
	return &Manifest{
		Format:   Format{Major: FormatMajor},
		ID:       NewID(),
		Created:  time.Now().UTC(),
		Tool:     s.opts.Tool,
		Host:     Host{Name: host, Kernel: s.state.Kernel, Arch: runtime.GOARCH},
		Target:   Target{NetNS: s.target.name, Inode: s.target.ns.Inode()},
		Source:   SourceStopped,
		TCPClose: s.opts.TCPClose,
		Trees:    trees,
		Losses:   losses,
	}
}
