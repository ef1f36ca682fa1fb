package ptrace_test

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/ptrace"
)

// A process enters another's time namespace and goes on as if nothing had been.
func TestJoinTime(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("root is needed")
		}
		t.Skip("root is needed")
	}
	start := func(flags uintptr) (pid int, say func() string) {
		cmd := exec.Command("sh", "-c", "read a; echo $a; read b")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: flags}
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			in.Close()
			cmd.Wait() //nolint:errcheck // read fails
		})
		return cmd.Process.Pid, func() string {
			fmt.Fprintln(in, "hello")
			b := make([]byte, 100)
			n, _ := out.Read(b)
			return string(b[:n])
		}
	}
	clock := func(pid int) string {
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/time", pid))
		if err != nil {
			t.Fatal(err)
		}
		return link
	}
	other, _ := start(unix.CLONE_NEWTIME) // which it is in when it has executed sh
	pid, say := start(0)
	if clock(pid) == clock(other) {
		t.Fatal("there is one time namespace only")
	}
	if err := ptrace.JoinTime(pid, other); err != nil {
		t.Fatal(err)
	}
	if clock(pid) != clock(other) {
		t.Error("it is still in its old time namespace")
	}
	if got := say(); got != "hello\n" {
		t.Errorf("afterwards the process said %q", got)
	}
	if err := ptrace.JoinTime(pid, 1<<22+1); err == nil {
		t.Error("it entered the time namespace of nobody")
	}
}
