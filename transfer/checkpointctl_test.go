package transfer_test

import (
	"encoding/json"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/transfer"
)

// checkpointctl is the outside reader that an archive must suit, in the newest version that can be built.
const checkpointctl = "github.com/checkpoint-restore/checkpointctl@v1.4.0"

// unable skips a test where something is missing; under CI that is a failure.
func unable(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// dumped returns a directory with CRIU's images of a process.
func dumped(t *testing.T, at string) {
	t.Helper()
	path, err := exec.LookPath("criu")
	if err != nil {
		path = "/usr/local/lib/nsmigrate/criu/bin/criu"
	}
	if _, err := os.Stat(path); err != nil || os.Geteuid() != 0 {
		unable(t, "root and criu are needed: uid %d, %v", os.Geteuid(), err)
	}
	if err := os.MkdirAll(at, 0o700); err != nil {
		t.Fatal(err)
	}
	service := exec.Command("sleep", "1000")
	service.Dir = "/"
	service.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := service.Start(); err != nil {
		t.Fatal(err)
	}
	defer service.Wait()
	defer service.Process.Kill()
	time.Sleep(100 * time.Millisecond) // past its exec
	out, err := exec.Command(path, "dump", "--leave-running", "--network-lock", "skip", "--images-dir", at,
		"--work-dir", filepath.Dir(at), "--tree", jsonOf(t, service.Process.Pid)).CombinedOutput()
	if err != nil {
		t.Fatalf("criu dump: %v\n%s", err, out)
	}
}

func jsonOf(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestCheckpointctl lets the unmodified checkpointctl show an archive.
func TestCheckpointctl(t *testing.T) {
	bin := t.TempDir()
	install := exec.Command("go", "install", checkpointctl)
	install.Env = append(os.Environ(), "GOBIN="+bin, "GOFLAGS=", "GOWORK=off")
	if out, err := install.CombinedOutput(); err != nil {
		unable(t, "go install %s: %v\n%s", checkpointctl, err, out)
	}
	run := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(filepath.Join(bin, "checkpointctl"), args...).CombinedOutput()
		if err != nil {
			t.Fatalf("checkpointctl %s: %v\n%s", args, err, out)
		}
		return string(out)
	}

	dir := t.TempDir()
	dumped(t, filepath.Join(dir, checkpoint.TreesDir))
	m := &checkpoint.Manifest{
		ID:      checkpoint.NewID(),
		Created: time.Date(2026, 8, 23, 12, 0, 0, 0, time.UTC),
		Source:  checkpoint.SourceRunning,
		Target:  checkpoint.Target{NetNS: "svc"},
		Trees: []checkpoint.Tree{{
			Dir: checkpoint.TreesDir, Root: 7, HostRoot: 7, MountNS: checkpoint.MountHost,
			Command: []string{"sleep", "1000"}, Cwd: "/",
		}},
	}
	files, err := checkpoint.Describe(m, []checkpoint.Interface{{
		Name: "eth0", MAC: "02:00:00:00:00:01", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24")},
	}})
	if err != nil {
		t.Fatal(err)
	}
	files[checkpoint.StateFile] = []byte("state")
	files[checkpoint.SocketsFile] = []byte("{}")
	for name, data := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := checkpoint.Seal(t.Context(), dir, m); err != nil {
		t.Fatal(err)
	}

	compressions(t, func(t *testing.T, c transfer.Compression) {
		archive := filepath.Join(t.TempDir(), "svc.nsm")
		if err := transfer.PackFile(t.Context(), archive, dir, m, transfer.PackOptions{Compression: c}); err != nil {
			t.Fatal(err)
		}
		shown := run("show", archive)
		for _, want := range []string{"svc", "sleep 1000", m.ID[:12], "nsmigrate", "2026-08-23T12:00:00Z"} {
			if !strings.Contains(shown, want) {
				t.Errorf("show misses %q:\n%s", want, shown)
			}
		}
		if tree := run("inspect", "--ps-tree-cmd", "--files", "--sockets", archive); !strings.Contains(tree, "sleep 1000") {
			t.Errorf("inspect misses the command line:\n%s", tree)
		}
		run("inspect", "--all", archive)
		var list []struct {
			Name    string `json:"container_name"`
			Runtime string `json:"runtime"`
			Tree    struct {
				Command string `json:"command"`
			} `json:"process_tree"`
		}
		out := run("inspect", "--format", "json", "--ps-tree", archive)
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			t.Fatalf("%v:\n%s", err, out)
		}
		if len(list) != 1 || list[0].Name != "svc" || list[0].Runtime != "nsmigrate" || list[0].Tree.Command != "sleep" {
			t.Errorf("inspect --format json: %+v\n%s", list, out)
		}
	})
}
