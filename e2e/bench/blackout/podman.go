package blackout

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/nsmigrate/nsmigrate/e2e/lab"
)

// podman moves a container with podman's export and import of checkpoints, not compressed, which is the quickest. The
// network is a namespace that was prepared, as with the others. Its storage is in the hosts' memory.
type podman struct{ *peers }

func (m *podman) name() string { return "podman" }

// podmanImage is what an image of nothing but the service is called.
const podmanImage = "localhost/nsmigrate-bench-echo"

// podmanDir is where podman keeps all on a host.
const podmanDir = "/run/podman-of-bench"

func (m *podman) install(ctx context.Context, w *world) error {
	if err := m.provide(ctx, w); err != nil {
		return err
	}
	w.atEnd(func() error { return removeCgroups("libpod_parent") })
	files, err := m.config()
	if err != nil {
		return err
	}
	if err := ownStorage(ctx, w); err != nil {
		return err
	}
	tar := filepath.Join(w.Dir, "image.tar")
	for i, h := range w.Hosts() {
		for name, text := range files {
			path := h.Path(filepath.Join(podmanDir, name))
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				return err
			}
		}
		if i == 0 { // the others get the same, by the same identity
			rootfs := filepath.Join(w.Dir, "rootfs.tar")
			err := h.Script(ctx, fmt.Sprintf("tar -C %s -cf %s echo", filepath.Dir(w.echo), rootfs))
			if err == nil {
				err = m.podman(ctx, h, "import", rootfs, podmanImage)
			}
			if err == nil {
				err = m.podman(ctx, h, "save", "-o", tar, podmanImage)
			}
			if err != nil {
				return err
			}
			continue
		}
		if err := m.podman(ctx, h, "load", "-i", tar); err != nil {
			return err
		}
	}
	return nil
}

// config are podman's files of configuration, by name below [podmanDir].
func (m *podman) config() (map[string]string, error) {
	programs := map[string]string{}
	for _, name := range []string{"runc", "conmon"} {
		var err error
		if programs[name], err = m.path(name); err != nil {
			return nil, err
		}
	}
	return map[string]string{
		".config/containers/policy.json": `{"default": [{"type": "insecureAcceptAnything"}]}`,
		"storage.conf": fmt.Sprintf("[storage]\ndriver = \"overlay\"\ngraphroot = \"%[1]s/graph\"\nrunroot = \"%[1]s/run\"\n",
			podmanDir),
		"criu.conf": criuConfig,
		"containers.conf": fmt.Sprintf(`[containers]
seccomp_profile = "unconfined"
log_driver = "none"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
conmon_path = [%q]
tmp_dir = "%[3]s/tmp"
static_dir = "%[3]s/static"
volume_path = "%[3]s/volumes"
[engine.runtimes]
runc = [%[2]q]
[network]
network_config_dir = "%[3]s/networks"
`, programs["conmon"], programs["runc"], podmanDir),
	}, nil
}

func (m *podman) podman(ctx context.Context, h *lab.Host, args ...string) error {
	env := m.environ("HOME="+podmanDir, "CONTAINERS_CONF="+podmanDir+"/containers.conf", "CONTAINERS_STORAGE_CONF="+podmanDir+"/storage.conf")
	log, err := os.CreateTemp(h.Dir, "podman-*.log")
	if err != nil {
		return err
	}
	defer os.Remove(log.Name())
	defer log.Close()
	cmd, err := m.command(ctx, env, append([]string{"podman"}, args...)...)
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = log, log // conmon, which stays, has streams of its own
	return m.run(ctx, h, cmd, log.Name())
}

func (m *podman) start(ctx context.Context, w *world, s *service) error {
	if err := plainNetNS(ctx, s.host, s.NetNS, ""); err != nil {
		return err
	}
	return m.podman(ctx, s.host, append([]string{
		"run", "--detach", "--name", s.Name, "--network", "ns:/run/netns/" + s.Name, "--ulimit", "host",
		"--annotation", "org.criu.config=" + podmanDir + "/criu.conf", podmanImage,
	}, w.echoArgs("/echo", s.load)...)...)
}

func (m *podman) move(ctx context.Context, w *world, s *service, to *lab.Host) (t Trace, err error) {
	from := s.host
	netns, err := prepareTwin(ctx, s, to)
	if err != nil {
		return t, err
	}
	netns.Close()
	images, err := imageDirs(w, s)
	defer func() { err = errors.Join(err, removeImageDirs(w, images)) }()
	if err != nil {
		return t, err
	}
	archive := filepath.Join(images, "checkpoint.tar")
	err = t.timed("checkpoint", func() error {
		return m.podman(ctx, from, "container", "checkpoint", "--tcp-established", "--compress", "none", "--export", archive, s.Name)
	})
	if err != nil {
		return t, err
	}
	err = t.timed("copy", func() error {
		t.Bytes, err = copyInto(from.Path(archive), to.Path(archive))
		return err
	})
	if err != nil {
		return t, err
	}
	err = t.timed("restore", func() error {
		return m.podman(ctx, to, "container", "restore", "--tcp-established", "--import", archive)
	})
	if err != nil {
		return t, err
	}
	return t, errors.Join(
		m.podman(ctx, from, "rm", "--force", s.Name), w.remove(ctx, from, s.NetNS))
}

func (m *podman) stop(ctx context.Context, w *world, s *service) error {
	return errors.Join(m.podman(ctx, s.host, "rm", "--force", "--time", "0", s.Name), w.remove(ctx, s.host, s.NetNS))
}

// systemStorage is where podman keeps a cache, whatever its configuration says.
const systemStorage = "/var/lib/containers"

// ownStorage gives every host one of its own; that of the machine is hidden behind it.
func ownStorage(ctx context.Context, w *world) error {
	err := os.Mkdir(systemStorage, 0o700)
	if err == nil {
		w.atEnd(func() error { return os.Remove(systemStorage) })
	} else if !errors.Is(err, os.ErrExist) {
		return err
	}
	for _, h := range w.Hosts() {
		if err := h.Script(ctx, "mount -t tmpfs tmpfs "+systemStorage); err != nil {
			return err
		}
	}
	return nil
}
