package criu_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/nsmigrate/nsmigrate/checkpoint/criu"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
)

// needCRIU skips where the test can't run; under CI that is a failure.
func needCRIU(t *testing.T) string {
	t.Helper()
	path, err := criu.Find("")
	if err == nil && os.Geteuid() == 0 {
		return path
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("root and criu are needed: uid %d, %v", os.Geteuid(), err)
	}
	t.Skipf("root and criu are needed: uid %d, %v", os.Geteuid(), err)
	return ""
}

func newNS(t *testing.T) *ns.NS {
	t.Helper()
	n, err := ns.Create()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	// Without a cache of kernel features on tmpfs criu probes TCP_REPAIR through the loopback device.
	if err := n.Do(func() error { return exec.Command("ip", "link", "set", "lo", "up").Run() }); err != nil {
		t.Fatal(err)
	}
	return n
}

func openDir(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// sleeper starts a process inside the namespace that does nothing.
func sleeper(t *testing.T, n *ns.NS) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := n.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd
}

func start(t *testing.T, path string, n *ns.NS, images string) *criu.Process {
	t.Helper()
	p, err := criu.Start(criu.Config{
		Path:   path,
		Place:  criu.Place{Net: n.File()},
		Images: openDir(t, images),
		Work:   openDir(t, t.TempDir()),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func TestDumpVetoThenFinishThenRestore(t *testing.T) {
	path := needCRIU(t)
	src := newNS(t)
	service := sleeper(t, src)

	s, err := start(t, path, src, t.TempDir()).Dump(criu.DumpOptions{PID: service.Process.Pid})
	if err != nil {
		t.Fatal(err)
	}
	for _, hook := range []criu.Hook{criu.QueryExtFiles, criu.PostDump} {
		if err := s.Advance(t.Context(), hook); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Veto(); err != nil {
		t.Fatalf("veto: %v", err)
	}
	if err := service.Process.Signal(syscall.Signal(0)); err != nil {
		t.Fatalf("the vetoed dump ended the source: %v", err)
	}

	images := t.TempDir()
	s, err = start(t, path, src, images).Dump(criu.DumpOptions{PID: service.Process.Pid})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Advance(t.Context(), criu.PostDump); err != nil {
		t.Fatal(err)
	}
	if err := s.Finish(); err != nil {
		t.Fatal(err)
	}
	service.Wait() // reaped: its pid is free

	dst := newNS(t)
	r, err := start(t, path, dst, images).Restore(criu.RestoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Advance(t.Context(), criu.PostRestore); err != nil {
		t.Fatal(err)
	}
	if got := r.PID(); got != service.Process.Pid {
		t.Errorf("restored as pid %d, want %d", got, service.Process.Pid)
	}
	if err := r.Finish(); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(r.PID(), syscall.SIGKILL)
	got, err := ns.OfPID(r.PID())
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if got.Inode() != dst.Inode() {
		t.Errorf("restored into %v, want %v", got, dst)
	}
	if _, err := os.Stat(filepath.Join(images, "stats-dump")); err == nil {
		t.Error("criu wrote its statistics into the images")
	}
}

func TestDumpOfNothing(t *testing.T) {
	path := needCRIU(t)
	s, err := start(t, path, newNS(t), t.TempDir()).Dump(criu.DumpOptions{PID: 1 << 22})
	if err != nil {
		t.Fatal(err)
	}
	err = s.Advance(t.Context(), criu.PostDump)
	if _, ok := errors.AsType[*criu.Error](err); !ok {
		t.Fatalf("dump of a missing process: %v", err)
	}
	t.Log(err)
}
