package vm_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/e2e/vm"
)

// TestNetstate runs netstate's tests of moved namespaces where all kinds of links are: those that the machine's
// own kernel lacks are skipped there. NSMIGRATE_VM_RUN is a pattern of tests to run instead.
func TestNetstate(t *testing.T) {
	needVM(t)
	const kinds = "^TestKinds$"
	pattern := os.Getenv("NSMIGRATE_VM_RUN")
	if pattern == "" {
		pattern = kinds
	}
	share := t.TempDir()
	binary := filepath.Join(share, "netstate.test")
	build := exec.Command("go", "test", "-c", "-o", binary, "github.com/nsmigrate/nsmigrate/netstate")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the tests: %v\n%s", err, out)
	}
	// A program is mapped from memory, not from the shared directory, which keeps nothing in memory. The modules
	// are those that nothing loads when they are needed.
	prepare := "cp " + binary + " /tmp/netstate.test; modprobe -a fou fou6 mpls_iptunnel l2tp_eth"
	const fallback = "^(TestKinds|TestFallbackDevices)$/^(fallback|from)"
	var out bytes.Buffer
	err := vm.Do(t.Context(), vm.Config{Share: share}, func(m *vm.Machine) error {
		out.Reset()
		if _, err := m.Shell(t.Context(), prepare); err != nil {
			return err
		}
		run := func(arguments string) error {
			return m.Run(t.Context(), vm.Command{
				// More at a time than there are processors: most of the time they wait for the kernel.
				Args:   append([]string{"/tmp/netstate.test", "-test.v=test2json", "-test.parallel=8"}, strings.Fields(arguments)...),
				Env:    []string{"NSMIGRATE_VM=1", "CI=true"},
				Output: io.MultiWriter(&out, progress{}),
			})
		}
		// Each module of a tunnel puts a fallback device into every namespace that is made, whose parameters
		// take long to read: only their own test has them.
		if _, err := m.Shell(t.Context(), "sysctl -qw net.core.fb_tunnels_only_for_init_net=1"); err != nil {
			return err
		}
		failed := run("-test.run " + pattern + " -test.skip " + fallback)
		if errors.Is(failed, vm.ErrGone) || pattern != kinds {
			return failed
		}
		if _, err := m.Shell(t.Context(), "sysctl -qw net.core.fb_tunnels_only_for_init_net=0; modprobe -a ip_gre ip6_gre ipip ip6_tunnel sit ip_vti ip6_vti"); err != nil {
			return err
		}
		return errors.Join(failed, run("-test.run "+fallback))
	})
	failed := report(t, out.Bytes())
	if exit := new(vm.ExitError); err != nil && (!errors.As(err, &exit) || !failed) {
		t.Errorf("%v\n%s", err, out.String())
	}
}

// progress shows what a long test does, where somebody looks.
type progress struct{}

func (progress) Write(b []byte) (int, error) {
	if testing.Verbose() {
		os.Stdout.Write(bytes.ReplaceAll(b, []byte("\x16"), nil))
	}
	return len(b), nil
}

// report makes a subtest of each test that ran in a guest, and reports whether one failed.
func report(t *testing.T, output []byte) (failed bool) {
	cmd := exec.Command("go", "tool", "test2json")
	cmd.Stdin = bytes.NewReader(output)
	events, err := cmd.Output()
	if err != nil {
		t.Fatalf("test2json: %v", err)
	}
	text := map[string]*strings.Builder{}
	for in := json.NewDecoder(bytes.NewReader(events)); ; {
		var e struct{ Action, Test, Output string }
		if err := in.Decode(&e); err != nil {
			if !errors.Is(err, io.EOF) {
				t.Fatalf("test2json: %v", err)
			}
			return failed
		}
		if e.Test == "" {
			continue
		}
		if text[e.Test] == nil {
			text[e.Test] = &strings.Builder{}
		}
		text[e.Test].WriteString(e.Output)
		switch e.Action {
		case "pass", "fail", "skip":
			failed = failed || e.Action == "fail"
			t.Run(e.Test, func(t *testing.T) {
				t.Log(text[e.Test].String())
				switch e.Action {
				case "fail":
					t.Fail()
				case "skip":
					t.SkipNow()
				}
			})
		}
	}
}
