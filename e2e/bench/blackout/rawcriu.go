package blackout

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/e2e/lab"
)

// rawCRIU is CRIU by hand, at its best: images in memory, copied from memory to memory without a network in between, into
// a namespace that was built and plugged in before. It is not safe: nobody looks whether the other host can take the
// service, and if anything fails the service is gone.
type rawCRIU struct {
	// ownLock mutes the namespaces with a table of our own, by a script that CRIU calls, instead of CRIU's way.
	ownLock bool
}

func (m *rawCRIU) name() string {
	if m.ownLock {
		return "criu, own lock"
	}
	return alone
}

func (m *rawCRIU) install(_ context.Context, w *world) error {
	if !m.ownLock {
		return nil
	}
	return errors.Join(
		os.WriteFile(lockFile(w), []byte(lockTable), 0o644),
		os.WriteFile(lockScript(w), fmt.Appendf(nil, lockHooks, lockFile(w)), 0o755))
}

func lockFile(w *world) string   { return filepath.Join(w.Dir, "lock.nft") }
func lockScript(w *world) string { return filepath.Join(w.Dir, "lock.sh") }

// lockTable drops everything but what CRIU itself sends.
const lockTable = `table inet bench {
	chain in { type filter hook input priority -300; meta mark != 0xc114 drop; }
	chain out { type filter hook output priority -300; meta mark != 0xc114 drop; }
}
`

// lockHooks is told by its environment what for and where it is called.
const lockHooks = `#!/bin/sh
case $CRTOOLS_SCRIPT_ACTION in
network-lock) exec nsenter --net=$BENCH_NETNS nft -f %s ;;
network-unlock) exec nsenter --net=$BENCH_NETNS nft delete table inet bench ;;
esac
`

func (m *rawCRIU) start(ctx context.Context, w *world, s *service) error {
	if err := plainNetNS(ctx, s.host, s.NetNS, ""); err != nil {
		return err
	}
	return w.spawn(ctx, s)
}

func (m *rawCRIU) stop(ctx context.Context, w *world, s *service) error {
	return w.remove(ctx, s.host, s.NetNS)
}

// netnsKey is how dump and restore call the namespace between each other.
const netnsKey = "svc"

func (m *rawCRIU) move(ctx context.Context, w *world, s *service, to *lab.Host) (t Trace, err error) {
	from := s.host
	netns, err := prepareTwin(ctx, s, to)
	if err != nil {
		return t, err
	}
	defer netns.Close()
	pid, err := rootPID(from, s)
	if err != nil {
		return t, err
	}
	var ns unix.Stat_t
	if err := unix.Stat(from.Path("/run/netns/"+s.Name), &ns); err != nil {
		return t, err
	}
	images, err := imageDirs(w, s)
	defer func() { err = errors.Join(err, removeImageDirs(w, images)) }()
	if err != nil {
		return t, err
	}
	common := []string{"-D", images, "-v1", "--tcp-established", "--network-lock", "nftables"}
	if m.ownLock {
		common[len(common)-1] = "skip"
		common = append(common, "--action-script", lockScript(w))
		// Over there it stands from the beginning.
		err := to.Script(ctx, fmt.Sprintf("nsenter --net=/run/netns/%s nft -f %s", s.Name, lockFile(w)))
		if err != nil {
			return t, err
		}
	}
	run := func(h *lab.Host, args []string, files ...*os.File) error {
		cmd := exec.CommandContext(ctx, w.criu, append(args, common...)...)
		cmd.Env = append(lab.Environ(), "BENCH_NETNS=/run/netns/"+s.Name)
		cmd.ExtraFiles = files
		r, err := h.RunCmd(ctx, cmd)
		if err == nil && r.Code != 0 {
			err = fmt.Errorf("%s: %v", h.Name, r)
		}
		return err
	}
	err = t.timed("dump", func() error {
		return run(from, []string{"dump", "-t", fmt.Sprint(pid), "--external", fmt.Sprintf("net[%d]:%s", ns.Ino, netnsKey)})
	})
	if err != nil {
		return t, err
	}
	err = t.timed("copy", func() error {
		t.Bytes, err = copyDir(from.Path(images), to.Path(images))
		return err
	})
	if err != nil {
		return t, err
	}
	err = t.timed("restore", func() error {
		return run(to, []string{"restore", "-d", "--inherit-fd", "fd[3]:" + netnsKey}, netns)
	})
	if err != nil {
		return t, err
	}
	t.CRIU, err = criuStatistics(from.Path(images), to.Path(images))
	return t, errors.Join(err, w.remove(ctx, from, s.NetNS))
}

// timed runs a part of the blackout.
func (t *Trace) timed(name string, part func() error) error {
	start := time.Now()
	err := part()
	t.Phases = append(t.Phases, Phase{name, time.Since(start)})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// prepareTwin builds the service's namespace on the other host, plugged in but silent, and opens it.
func prepareTwin(ctx context.Context, s *service, to *lab.Host) (*os.File, error) {
	address, err := hardwareAddress(ctx, s.host, s.NetNS)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(plainNetNS(ctx, to, s.NetNS, address), addRoutes(ctx, to, s)); err != nil {
		return nil, err
	}
	return os.Open(to.Path("/run/netns/" + s.Name))
}

// copyDir copies the files of a directory that has no others below it, and returns how many bytes that were.
func copyDir(from, to string) (int64, error) {
	files, err := os.ReadDir(from)
	if err != nil {
		return 0, err
	}
	var total int64
	for _, f := range files {
		n, err := copyInto(filepath.Join(from, f.Name()), filepath.Join(to, f.Name()))
		if err != nil {
			return total, err
		}
		total += n
	}
	return total, nil
}

func copyInto(from, to string) (int64, error) {
	in, err := os.Open(from)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(out, in)
	return n, errors.Join(err, out.Close())
}
