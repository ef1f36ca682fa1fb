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
type rawCRIU struct{}

func (m *rawCRIU) name() string { return alone }

func (m *rawCRIU) install(context.Context, *world) error { return nil }

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
	if err != nil {
		return t, err
	}
	common := []string{"-D", images, "-v1", "--tcp-established", "--network-lock", "nftables"}
	err = t.timed("dump", func() error {
		_, err := from.Output(ctx, append([]string{
			w.criu, "dump", "-t", fmt.Sprint(pid), "--external", fmt.Sprintf("net[%d]:%s", ns.Ino, netnsKey),
		}, common...)...)
		return err
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
		cmd := exec.CommandContext(ctx, w.criu, append([]string{"restore", "-d", "--inherit-fd", "fd[3]:" + netnsKey}, common...)...)
		cmd.ExtraFiles = []*os.File{netns}
		r, err := to.RunCmd(ctx, cmd)
		if err == nil && r.Code != 0 {
			err = fmt.Errorf("%s: %v", to.Name, r)
		}
		return err
	})
	if err != nil {
		return t, err
	}
	t.CRIU, err = criuStatistics(from.Path(images), to.Path(images))
	return t, errors.Join(err, removeImageDirs(w, images), w.remove(ctx, from, s.NetNS))
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
	if err := plainNetNS(ctx, to, s.NetNS, address); err != nil {
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
