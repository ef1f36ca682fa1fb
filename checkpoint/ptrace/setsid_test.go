package ptrace_test

import (
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
	"github.com/nsmigrate/nsmigrate/checkpoint/ptrace"
)

// Processes in a system call and in a computation get a session and go on.
func TestSetsid(t *testing.T) {
	for name, command := range map[string][]string{
		"asleep":    {"sleep", "1000"},
		"computing": {"sh", "-c", "while :; do :; done"},
		"reading":   {"cat"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(command[0], command[1:]...)
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { cmd.Process.Kill(); cmd.Wait() }()
			if err := ptrace.Setsid(cmd.Process.Pid); err != nil {
				t.Fatal(err)
			}
			p, err := proc.Default.Read(cmd.Process.Pid)
			if err != nil {
				t.Fatal(err)
			}
			if got := proc.Own(p.NSsid); got != cmd.Process.Pid {
				t.Errorf("session %d, want %d", got, cmd.Process.Pid)
			}
			if p.Tracer != 0 || !strings.ContainsRune("SR", rune(p.State)) {
				t.Errorf("left in state %c, traced by %d", p.State, p.Tracer)
			}
			if err := cmd.Process.Signal(syscall.Signal(0)); err != nil {
				t.Error(err)
			}
			if err := ptrace.Setsid(cmd.Process.Pid); err == nil || !strings.Contains(err.Error(), "operation not permitted") {
				t.Errorf("a second session: %v", err)
			}
		})
	}
}
