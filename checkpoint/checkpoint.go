package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/criu"
	"github.com/nsmigrate/nsmigrate/netstate"
)

// drainTime is how long a dump waits for a service to accept the connections that wait in its queues. New
// ones are held back meanwhile.
const drainTime = 5 * time.Second

// readTime is how long a dump waits for a service to read the datagrams that it has received.
const readTime = 50 * time.Millisecond

// deliverTime is how long a dump waits for the peers of closed connections to take what is still to be delivered.
const deliverTime = 2 * time.Second

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
	s, err := Open(ctx, spec, opts)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if opts.DryRun {
		return s.Report(), nil
	}
	timeout := opts.Timeout
	if timeout == 0 {
		timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not done within %s", timeout))
	defer cancel()
	if err := s.Prepare(ctx); err != nil {
		return nil, err
	}
	if err := s.freezeAndStage(ctx, store); err != nil {
		return nil, s.rollBack(err, store)
	}
	// The point of no return: the image is whole and durable.
	if err := s.endSource(ctx, store); err != nil {
		return s.Report(), err
	}
	return s.Report(), nil
}

// freezeAndStage freezes the service, makes it mute and writes the image. On success the service is frozen
// still, or runs again if it is to be left running.
func (s *Service) freezeAndStage(ctx context.Context, store Store) error {
	if err := s.Freeze(ctx); err != nil {
		return err
	}
	if s.opts.LeaveRunning {
		if err := s.resumeSnapshot(); err != nil {
			return err
		}
	}
	s.clock.Phase("write image", !s.opts.LeaveRunning)
	return s.stage(ctx, store)
}

// rollBack puts the source back after a failure in the blackout.
func (s *Service) rollBack(cause error, store Store) error {
	failed := s.Resume(cause)
	if err := store.Discard(); err != nil {
		failed.Err = errors.Join(failed.Err, err)
	}
	return failed
}

// endSource kills the source, which is mute, publishes the image, and removes the namespace.
func (s *Service) endSource(ctx context.Context, store Store) error {
	s.clock.Phase("end source", !s.opts.LeaveRunning)
	if !s.opts.LeaveRunning {
		s.inbox.close() // an image outlasts every sender's patience
	}
	if err := s.kill(); err != nil {
		return err
	}
	if err := store.Publish(); err != nil {
		return fmt.Errorf("dump: the service is in the image, but the image could not be given its name: %w", err)
	}
	if s.opts.LeaveRunning {
		s.readStats()
		s.tell("the service runs on: its connections will be closed when this image is restored")
		return nil
	}
	return s.remove(ctx)
}

// resumeSnapshot lets the source run on as soon as its images are complete.
func (s *Service) resumeSnapshot() error {
	if err := errors.Join(s.trees.redirect(true), s.trees.finish()); err != nil {
		return err
	}
	if err := errors.Join(s.lock.Release(), s.lock.ReleaseNew()); err != nil {
		return err
	}
	s.trees.goOn()
	s.giveBack()
	return s.note(nil)
}

// stage completes the image and hands it to the store.
func (s *Service) stage(ctx context.Context, store Store) error {
	m := s.report.Manifest
	if s.opts.LeaveRunning {
		m.Source = SourceRunning
	}
	if err := criu.WriteDumpStats(s.Image(), s.statsSoFar()); err != nil {
		return err
	}
	described, err := Describe(m, interfaces(s.state))
	if err != nil {
		return err
	}
	for name, text := range described {
		if err := os.WriteFile(filepath.Join(s.Image(), name), text, 0o600); err != nil {
			return fmt.Errorf("write description: %w", err)
		}
	}
	digested := s.clock.Beside("digests")
	if err := sealBegun(ctx, s.Image(), m, s.begun, s.opts.Chunk); err != nil {
		return err
	}
	digested()
	for _, e := range m.Entries {
		s.report.Bytes += e.Size
	}
	return store.Stage(ctx, s.Image(), m)
}

// statsSoFar are the statistics that checkpointctl looks for in an image. CRIU writes its own when the image is
// sealed already; these are as seen from outside.
func (s *Service) statsSoFar() criu.DumpStats {
	var stats criu.DumpStats
	for _, p := range s.clock.Phases() {
		us := uint32(p.Duration.Microseconds())
		switch {
		case p.Beside:
			continue
		case p.Name == phaseFreeze:
			stats.FreezingTime = us
		case p.Name == phaseDump:
			stats.MemdumpTime, stats.MemwriteTime = us, us
		case !p.Blackout:
			continue
		}
		stats.FrozenTime += us
	}
	pages, _ := filepath.Glob(filepath.Join(s.Image(), TreesDir, "pages-*.img")) // the pattern is well-formed
	for _, path := range pages {
		if info, err := os.Stat(path); err == nil {
			stats.PagesWritten += uint64(info.Size()) / uint64(os.Getpagesize())
		}
	}
	stats.PagesScanned = stats.PagesWritten
	return stats
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

// Scratch makes a directory for an image under way: below dir, or on tmpfs if there is one, since what is
// written there is written in the blackout.
func Scratch(dir string) (string, error) {
	path, err := os.MkdirTemp(ScratchDir(dir), "nsmigrate-*")
	if err != nil {
		return "", fmt.Errorf("make scratch directory: %w", err)
	}
	return path, nil
}

// ScratchDir is where [Scratch] makes its directories.
func ScratchDir(dir string) string {
	if dir != "" {
		return dir
	}
	for _, candidate := range []string{"/dev/shm", "/run"} {
		var st unix.Statfs_t
		if unix.Statfs(candidate, &st) == nil && st.Type == unix.TMPFS_MAGIC && unix.Access(candidate, unix.W_OK) == nil {
			return candidate
		}
	}
	return os.TempDir()
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
