package sprint

import (
	"os"
	"os/exec"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

func policyOf(t *testing.T, tid int) uint32 {
	t.Helper()
	attr, err := unix.SchedGetAttr(tid, 0)
	if err != nil {
		t.Fatal(err)
	}
	return attr.Policy
}

// allowed says whether this test may do what a sprint needs.
func allowed(t *testing.T) bool {
	t.Helper()
	child := start(t)
	return unix.SchedSetAttr(child, &unix.SchedAttr{Policy: unix.SCHED_RR, Priority: priority}, 0) == nil
}

// start returns a process that waits until the test ends.
func start(t *testing.T) (pid int) {
	t.Helper()
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	return cmd.Process.Pid
}

// While it lasts, this process and those that were named go before others, and what this one starts does not. Afterwards
// all are as they were, nice values too.
func TestSprint(t *testing.T) {
	want := uint32(unix.SCHED_RR)
	if !allowed(t) {
		want = unix.SCHED_NORMAL // and nothing else happens
	}
	helper, other := start(t), start(t)
	if err := unix.Setpriority(unix.PRIO_PROCESS, helper, 7); err != nil {
		t.Fatal(err)
	}
	if err := unix.SchedSetAttr(other, &unix.SchedAttr{Policy: unix.SCHED_BATCH}, 0); err != nil {
		t.Fatal(err)
	}

	s := Start(helper, other)
	if got := policyOf(t, helper); got != want {
		t.Errorf("a helper has policy %d, want %d", got, want)
	}
	if got := policyOf(t, os.Getpid()); got != want {
		t.Errorf("this process has policy %d, want %d", got, want)
	}
	if got := policyOf(t, other); got != unix.SCHED_BATCH {
		t.Errorf("a process that wants to be behind others has policy %d", got)
	}
	if got := policyOf(t, start(t)); got != unix.SCHED_NORMAL {
		t.Errorf("what was started meanwhile has policy %d", got)
	}
	s.End()
	s.End()
	if !s.Over() {
		t.Error("it does not end")
	}
	for _, pid := range []int{helper, os.Getpid()} {
		if got := policyOf(t, pid); got != unix.SCHED_NORMAL {
			t.Errorf("process %d has policy %d afterwards", pid, got)
		}
	}
	if nice, err := unix.Getpriority(unix.PRIO_PROCESS, helper); err != nil || 20-nice != 7 { // as the system call returns it
		t.Errorf("the helper's nice value became %d, %v", 20-nice, err)
	}
}

// One that nobody ends does so by itself.
func TestSprintEndsItself(t *testing.T) {
	helper := start(t)
	s := Start(helper)
	for !s.Over() {
		runtime.Gosched()
	}
	if got := policyOf(t, helper); got != unix.SCHED_NORMAL {
		t.Errorf("the helper has policy %d", got)
	}
}

// Nobody has to know whether there is one.
func TestNoSprint(t *testing.T) {
	var s *Sprint
	s.End()
	if !s.Over() {
		t.Error("none lasts")
	}
	Start(1 << 30).End() // of no process
}
