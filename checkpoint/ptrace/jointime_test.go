package ptrace_test

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/proc/proctest"
	"github.com/nsmigrate/nsmigrate/checkpoint/ptrace"
	"github.com/nsmigrate/nsmigrate/netstate/ns/nstest"
)

// A process enters another's time namespace and goes on as if nothing had been.
func TestJoinTime(t *testing.T) {
	nstest.NeedRoot(t)
	start := func(flags uintptr) *proctest.Process {
		cmd := exec.Command("cat")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: flags}
		return proctest.Start(t, cmd)
	}
	clock := func(p *proctest.Process) string {
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/time", p.PID))
		if err != nil {
			t.Fatal(err)
		}
		return link
	}
	other := start(unix.CLONE_NEWTIME) // which it is in when it has executed cat
	p := start(0)
	if clock(p) == clock(other) {
		t.Fatal("there is one time namespace only")
	}
	if err := ptrace.JoinTime(p.PID, other.PID); err != nil {
		t.Fatal(err)
	}
	if clock(p) != clock(other) {
		t.Error("it is still in its old time namespace")
	}
	p.Echoes()
	if err := ptrace.JoinTime(p.PID, 1<<22+1); err == nil {
		t.Error("it entered the time namespace of nobody")
	}
	p.Echoes()
}
