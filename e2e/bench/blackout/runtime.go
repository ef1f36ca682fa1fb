package blackout

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/e2e/lab"
)

// runtime moves a container with checkpoint and restore of runc or crun, at its best: in a network namespace that is not its
// own and was prepared on the other host, with as few mounts as it takes, images in memory.
type runtime struct {
	*peers
	program string
}

func (m *runtime) name() string { return m.program }

func (m *runtime) install(ctx context.Context, w *world) error {
	if err := m.provide(ctx, w); err != nil {
		return err
	}
	if m.program == "crun" { // built with or without
		version, err := m.command(ctx, m.environ(), m.program, "--version")
		if err != nil {
			return err
		}
		if out, err := version.CombinedOutput(); err != nil || !strings.Contains(string(out), "+CRIU") {
			return errors.Join(errors.New("the distribution's crun is built without CRIU"), err)
		}
	}
	w.atEnd(func() error { return removeCgroups(cgroupPrefix + "*") })
	return os.WriteFile(m.criuConfig(w), []byte(criuConfig), 0o644)
}

func (m *runtime) criuConfig(w *world) string {
	return filepath.Join(w.Dir, "criu-of-"+m.program+".conf")
}

// cgroupPrefix begins the names of the containers' cgroups.
const cgroupPrefix = "nsmigrate-bench-"

func bundleDir(h *lab.Host, s *service) string { return filepath.Join(h.Dir, "bundle-"+s.Name) }

// bundle makes the service's container on a host.
func (m *runtime) bundle(w *world, h *lab.Host, s *service) error {
	type object = map[string]any
	dir := bundleDir(h, s)
	for _, d := range []string{"proc", "dev"} {
		if err := os.MkdirAll(filepath.Join(dir, "rootfs", d), 0o755); err != nil {
			return err
		}
	}
	// What a runtime makes where it creates a container, and the service has open, must be there where it is restored.
	null := filepath.Join(dir, "rootfs", "dev", "null")
	if err := unix.Mknod(null, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		return fmt.Errorf("make %s: %w", null, err)
	}
	config, err := jsonText(object{
		"ociVersion":  "1.0.2",
		"process":     object{"args": w.echoArgs("/echo", s.load), "cwd": "/", "user": object{"uid": 0, "gid": 0}},
		"root":        object{"path": "rootfs"},
		"mounts":      []object{{"destination": "/proc", "type": "proc", "source": "proc"}},
		"annotations": object{"org.criu.config": m.criuConfig(w)},
		"linux": object{
			"cgroupsPath": "/" + cgroupPrefix + h.Name + "-" + s.Name,
			"namespaces":  []object{{"type": "pid"}, {"type": "mount"}, {"type": "network", "path": "/run/netns/" + s.Name}},
		},
	})
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o644), copyFile(w.echo, filepath.Join(dir, "rootfs", "echo")))
}

func (m *runtime) start(ctx context.Context, w *world, s *service) error {
	if err := errors.Join(plainNetNS(ctx, s.host, s.NetNS, ""), m.bundle(w, s.host, s)); err != nil {
		return err
	}
	return m.call(ctx, s.host, "run", "--detach", "--bundle", bundleDir(s.host, s), s.Name)
}

func (m *runtime) call(ctx context.Context, h *lab.Host, args ...string) error {
	log := filepath.Join(h.Dir, m.program+".log")
	cmd, err := m.command(ctx, m.environ(), append([]string{m.program, "--root", "/run/" + m.program, "--log", log}, args...)...)
	if err != nil {
		return err
	}
	err = m.run(ctx, h, cmd, log)
	if rm := os.Remove(log); !errors.Is(rm, os.ErrNotExist) {
		err = errors.Join(err, rm)
	}
	return err
}

func (m *runtime) move(ctx context.Context, w *world, s *service, to *lab.Host) (t Trace, err error) {
	from := s.host
	netns, err := prepareTwin(ctx, s, to)
	if err != nil {
		return t, err
	}
	netns.Close()
	if err := m.bundle(w, to, s); err != nil {
		return t, err
	}
	images, err := imageDirs(w, s)
	defer func() { err = errors.Join(err, removeImageDirs(w, images)) }()
	if err != nil {
		return t, err
	}
	common := []string{"--image-path", images, "--work-path", images, "--tcp-established"}
	err = t.timed("checkpoint", func() error {
		err := m.call(ctx, from, append(append([]string{"checkpoint"}, common...), s.Name)...)
		return explain(err, from.Path(filepath.Join(images, "dump.log")))
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
		err := m.call(ctx, to, append(append([]string{"restore", "--detach", "--bundle", bundleDir(to, s)}, common...), s.Name)...)
		return explain(err, to.Path(filepath.Join(images, "restore.log")))
	})
	if err != nil {
		return t, err
	}
	t.CRIU, err = criuStatistics(from.Path(images), to.Path(images))
	return t, errors.Join(err, w.remove(ctx, from, s.NetNS), os.RemoveAll(bundleDir(from, s)))
}

func (m *runtime) stop(ctx context.Context, w *world, s *service) error {
	err := m.call(ctx, s.host, "delete", "--force", s.Name)
	return errors.Join(err, w.remove(ctx, s.host, s.NetNS), os.RemoveAll(bundleDir(s.host, s)))
}

// imageDirs makes a directory in the memory of both hosts, and returns what both call it.
func imageDirs(w *world, s *service) (string, error) {
	images := "/dev/shm/" + s.Name
	for _, h := range w.Hosts() {
		if err := os.Mkdir(h.Path(images), 0o700); err != nil {
			return images, fmt.Errorf("%s: %w", h.Name, err)
		}
	}
	return images, nil
}

func removeImageDirs(w *world, images string) error {
	return errors.Join(os.RemoveAll(w.A.Path(images)), os.RemoveAll(w.B.Path(images)))
}
