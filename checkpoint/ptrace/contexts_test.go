package ptrace

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stopped starts a process that answers a line with the same line, and stops it by a signal.
func stopped(t *testing.T) (*exec.Cmd, io.Writer, *bufio.Reader) {
	t.Helper()
	cmd := exec.Command("cat")
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
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	r := bufio.NewReader(out)
	echo(t, in, r) // it is in its own code, not in that of the dynamic linker
	if err := cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	awaitState(t, cmd.Process.Pid, "T (stopped)")
	return cmd, in, r
}

func echo(t *testing.T, in io.Writer, out *bufio.Reader) {
	t.Helper()
	fmt.Fprintln(in, "hello")
	if line, err := out.ReadString('\n'); line != "hello\n" {
		t.Fatalf("read %q, %v", line, err)
	}
}

func awaitState(t *testing.T, pid int, want string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), want) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not %q:\n%s", want, b)
		}
	}
}

// A thread that another tracer sent elsewhere, with other signals blocked and a foreign instruction in its text, goes on
// where it was.
func TestRestore(t *testing.T) {
	cmd, in, out := stopped(t)
	pid := cmd.Process.Pid
	c, err := Save([]Process{{PID: pid, Threads: []int{pid}}})
	if err != nil {
		t.Fatal(err)
	}
	awaitState(t, pid, "T (stopped)")
	if err := onThread(func() error {
		if err := seizeStopped(pid); err != nil {
			return err
		}
		astray := context{tid: pid, blocked: 1<<(unix.SIGCONT-1) | 1<<(unix.SIGTERM-1)}
		if err := astray.registers.read(pid); err != nil {
			return err
		}
		astray.registers.prepare(unix.SYS_EXIT, [5]uint64{1})
		at := c.processes[0].text.at
		if at == 0 {
			return errors.New("no text was found")
		}
		_, err := unix.PtracePokeText(pid, at, make([]byte, 16))
		return errors.Join(err, astray.registers.write(pid), astray.mask(unix.PTRACE_SETSIGMASK), unix.PtraceDetach(pid))
	}); err != nil {
		t.Fatal(err)
	}
	awaitState(t, pid, "T (stopped)")
	released := false
	if err := c.Restore(func() error { released = true; return nil }); err != nil {
		t.Fatal(err)
	}
	if !released {
		t.Error("nothing was released")
	}
	awaitState(t, pid, "T (stopped)")
	awaitState(t, pid, "SigBlk:\t0000000000000000")
	again, err := Save([]Process{{PID: pid, Threads: []int{pid}}})
	if err != nil {
		t.Fatal(err)
	}
	if was, is := c.processes[0], again.processes[0]; was.text != is.text || was.threads[0].registers != is.threads[0].registers {
		t.Errorf("it was\n%+v and is\n%+v", was, is)
	}
	if err := cmd.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	echo(t, in, out)
}

// What has ended meanwhile needs nothing; what runs is left alone.
func TestRestoreGone(t *testing.T) {
	cmd, _, _ := stopped(t)
	gone, _, _ := stopped(t)
	running, _, _ := stopped(t)
	if err := running.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	awaitState(t, running.Process.Pid, "S (sleeping)")
	var all []Process
	for _, c := range []*exec.Cmd{cmd, gone, running} {
		all = append(all, Process{PID: c.Process.Pid, Threads: []int{c.Process.Pid}})
	}
	c, err := Save(all)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(c.processes[2].threads); n != 0 {
		t.Errorf("the context of a running process was saved")
	}
	awaitState(t, cmd.Process.Pid, "T (stopped)")
	gone.Process.Kill()
	gone.Wait()
	broken := errors.New("broken")
	if err := c.Restore(func() error { return broken }); !errors.Is(err, broken) || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v, want what the release said", err)
	}
	awaitState(t, cmd.Process.Pid, "T (stopped)")
	awaitState(t, cmd.Process.Pid, "TracerPid:\t0")
	awaitState(t, running.Process.Pid, "TracerPid:\t0")
}
