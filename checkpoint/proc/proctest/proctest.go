// Package proctest helps tests that stop processes, trace them, and see that they go on.
package proctest

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a process may take for anything on a busy machine.
const patience = time.Minute

// States, as /proc/PID/status has them.
const (
	Asleep  = "State:\tS (sleeping)"
	Stopped = "State:\tT (stopped)"
	Traced  = "State:\tt (tracing stop)"
)

// Process is a child that ends with the test.
type Process struct {
	*exec.Cmd
	PID int

	t   testing.TB
	in  io.Writer
	out *bufio.Reader
}

// Start starts a process, whose input and output are the test's.
func Start(t testing.TB, cmd *exec.Cmd) *Process {
	t.Helper()
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
	p := &Process{Cmd: cmd, PID: cmd.Process.Pid, t: t, in: in, out: bufio.NewReader(out)}
	t.Cleanup(p.End)
	return p
}

// End kills the process. It may be repeated.
func (p *Process) End() {
	p.Process.Kill() //nolint:errcheck // it has ended
	p.Wait()         //nolint:errcheck // it was killed
}

// Say writes a line to the process.
func (p *Process) Say(line string) {
	p.t.Helper()
	if _, err := fmt.Fprintln(p.in, line); err != nil {
		p.t.Fatal(err)
	}
}

// Says demands that the next line of the process is a certain one.
func (p *Process) Says(want string) {
	p.t.Helper()
	silent := time.AfterFunc(patience, func() { p.Process.Kill() })
	defer silent.Stop()
	if line, err := p.out.ReadString('\n'); line != want+"\n" {
		p.t.Fatalf("process %d says %q, %v; want %q", p.PID, line, err, want)
	}
}

// Echoes demands that the process answers a line with the same line, as cat(1) does.
func (p *Process) Echoes() {
	p.t.Helper()
	p.Say("hello")
	p.Says("hello")
}

// Signal sends a signal to the process, and waits until its status has a text.
func (p *Process) Signal(sig unix.Signal, status string) {
	p.t.Helper()
	if err := unix.Kill(p.PID, sig); err != nil {
		p.t.Fatal(err)
	}
	p.Await(status)
}

// Stop stops the process by a signal.
func (p *Process) Stop() { p.t.Helper(); p.Signal(unix.SIGSTOP, Stopped) }

// GoOn ends a stop.
func (p *Process) GoOn() {
	p.t.Helper()
	if err := unix.Kill(p.PID, unix.SIGCONT); err != nil {
		p.t.Fatal(err)
	}
}

// Await waits until the status of the process has a text.
func (p *Process) Await(status string) { p.t.Helper(); Await(p.t, p.PID, status) }

// Await waits until the status of a process, in /proc/PID/status, has a text.
func Await(t testing.TB, pid int, status string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), status) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not %q:\n%s", status, b)
		}
	}
}
