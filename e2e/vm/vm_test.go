package vm_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nsmigrate/nsmigrate/e2e/vm"
)

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

// TestMachine uses one guest for all that a guest can do, and then lets its kernel panic.
func TestMachine(t *testing.T) {
	needVM(t)
	ctx, share := t.Context(), t.TempDir()
	boots := 0
	err := vm.Do(ctx, vm.Config{Share: share}, func(m *vm.Machine) error {
		boots++
		start := time.Now()
		for _, test := range []struct{ script, want string }{
			{"id -u", "0\n"},
			{"cat /proc/1/comm", "init\n"},
			{"modprobe dummy && ip -br link show type dummy | wc -l", "0\n"},
			{"ip link add d0 type dummy; ip link add v0 type vrf table 7; ls /sys/class/net | wc -l", "3\n"},
			{"cd " + share + "; echo here >file; cat file", "here\n"},
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
		if b, err := os.ReadFile(filepath.Join(share, "file")); err != nil || string(b) != "here\n" {
			t.Errorf("the shared file: %q %v", b, err)
		}
		if _, err := os.Stat("/etc/nsmigrate-vm-was-here"); err == nil {
			t.Error("the guest wrote into the machine's root")
		}
		_, err := m.Shell(ctx, "exit 3")
		if exit := new(vm.ExitError); !errors.As(err, &exit) || exit.Code != 3 {
			t.Errorf("exit 3: %v", err)
		}
		t.Logf("commands took %v", time.Since(start))
		if boots < 2 {
			_, err := m.Shell(ctx, "echo c >/proc/sysrq-trigger; sleep 60")
			if !errors.Is(err, vm.ErrGone) || !strings.Contains(err.Error(), "panic") {
				t.Errorf("a panic: %v", err)
			}
			return err
		}
		return nil
	})
	if err != nil || boots != 2 {
		t.Errorf("%d boots: %v", boots, err)
	}
}

// TestCable connects two guests, as two hosts with a kernel each.
func TestCable(t *testing.T) {
	needVM(t)
	err := connect(t.Context())
	for attempt := 1; attempt < 3 && errors.Is(err, vm.ErrGone); attempt++ {
		err = connect(t.Context())
	}
	if err != nil {
		t.Error(err)
	}
}

func connect(ctx context.Context) error {
	a, b, err := vm.Cable()
	if err != nil {
		return err
	}
	first, err := vm.Boot(ctx, vm.Config{CPUs: 1, Memory: 1024, NICs: []vm.NIC{{MAC: "02:11:00:00:00:0a", Cable: a}}})
	if err != nil {
		return errors.Join(err, b.Close())
	}
	defer first.Close()
	second, err := vm.Boot(ctx, vm.Config{CPUs: 1, Memory: 1024, NICs: []vm.NIC{{MAC: "02:11:00:00:00:0b", Cable: b}}})
	if err != nil {
		return err
	}
	defer second.Close()
	if _, err := first.Shell(ctx, "ip addr add 10.99.0.1/24 dev eth0; ip link set eth0 up"); err != nil {
		return err
	}
	_, err = second.Shell(ctx, "ip addr add 10.99.0.2/24 dev eth0; ip link set eth0 up; ping -c 3 -i 0.2 -W 10 10.99.0.1")
	return err
}
