package vm_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/e2e/vm"
)

// lane is what the tests in guests share.
type lane struct {
	*vm.Lab
	share string // what is built for the guests, at the same place there
}

// TestVM runs everything that takes another kernel than the machine's, each part in guests of its own. Those of one
// guest, which has one processor, run side by side, as many as the machine has processors.
func TestVM(t *testing.T) {
	needVM(t)
	l := lane{share: t.TempDir()}
	build(t, l.share)
	var err error
	if l.Lab, err = vm.NewLab(t.Context(), t.Logf); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Run("migrate", func(t *testing.T) { testMigrate(t, l) })
	for _, part := range []struct {
		name string
		run  func(*testing.T, lane)
	}{
		{"machine", testMachine},
		{"families", testFamilies},
		{"everything", testEverything},
		{"kinds-a", testKinds("^[a-g]")},
		{"kinds-h", testKinds("^[h-n]")},
		{"kinds-o", testKinds("^[^a-nv-z]")},
		{"kinds-v", testKinds("^[v-z]")},
		{"users", testUsers},
		{"fallback", testFallback},
	} {
		t.Run(part.name, func(t *testing.T) {
			t.Parallel()
			part.run(t, l)
		})
	}
}

// needVM skips a test where no guest can run. In CI that is a failure.
func needVM(t *testing.T) {
	t.Helper()
	err := vm.Needs()
	switch {
	case err == nil:
	case os.Getenv("CI") == "true":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
}

// build builds the programs that run in guests.
func build(t *testing.T, dir string) {
	t.Helper()
	const module = "github.com/nsmigrate/nsmigrate/"
	commands := [][]string{{"build", "-o", filepath.Join(dir, "nsmigrate"), module + "cmd/nsmigrate"}}
	for _, name := range append([]string{"netstate"}, families()...) {
		commands = append(commands, []string{"test", "-c", "-o", filepath.Join(dir, filepath.Base(name)+".test"), module + name})
	}
	for _, args := range commands {
		cmd := exec.CommandContext(t.Context(), "go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// alone runs a test in one guest.
func (l lane) alone(t *testing.T, run func(context.Context, *vm.Machine) error) error {
	t.Helper()
	return l.Do(t.Context(), []vm.Config{{Share: l.share}}, func(ctx context.Context, m []*vm.Machine) error {
		return run(ctx, m[0])
	})
}

// testMachine uses one guest for all that a guest can do. Its kernel panics, which it gets another one for, and then
// something fails, which is final.
func testMachine(t *testing.T, l lane) {
	boots := 0
	file := filepath.Join(l.share, "file")
	err := l.alone(t, func(ctx context.Context, m *vm.Machine) error {
		boots++
		for _, test := range []struct{ script, want string }{
			{"id -u", "0\n"},
			{"cat /proc/1/comm", "init\n"},
			{"modprobe dummy && ip -br link show type dummy | wc -l", "0\n"},
			{"ip link add d0 type dummy; ip link add v0 type vrf table 7; ls /sys/class/net | wc -l", "3\n"},
			{"echo here >" + file + "; cat " + file, "here\n"},
			{"touch /etc/nsmigrate-vm-was-here; rm /etc/passwd; sleep 0.1 & setsid sleep 0.1", ""},
			{"unshare -nmp --fork --mount-proc sh -c 'echo $$'", "1\n"},
		} {
			out, err := m.Shell(ctx, test.script)
			if err != nil {
				return err
			}
			if out != test.want {
				t.Errorf("%s: %q", test.script, out)
			}
		}
		if b, err := os.ReadFile(file); err != nil || string(b) != "here\n" {
			t.Errorf("the shared file: %q %v", b, err)
		}
		if _, err := os.Stat("/etc/nsmigrate-vm-was-here"); err == nil {
			t.Error("the guest wrote into the machine's root")
		}
		_, err := m.Shell(ctx, "exit 3")
		if exit := new(vm.ExitError); !errors.As(err, &exit) || exit.Code != 3 {
			t.Errorf("exit 3: %v", err)
		}
		if boots == 1 {
			_, err = m.Shell(ctx, "echo c >/proc/sysrq-trigger; sleep 600")
			return err
		}
		_, err = m.Shell(ctx, "echo '<0>the end' >/dev/kmsg; exit 7")
		return err
	})
	if exit := new(vm.ExitError); boots < 2 || !errors.As(err, &exit) || exit.Code != 7 || !strings.Contains(err.Error(), "the end") {
		t.Errorf("%d boots: %v", boots, err)
	}
}
