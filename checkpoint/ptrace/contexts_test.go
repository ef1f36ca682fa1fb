package ptrace

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"reflect"
	"runtime"
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
		astray := context{TID: pid, Blocked: 1<<(unix.SIGCONT-1) | 1<<(unix.SIGTERM-1)}
		if err := astray.Registers.read(pid); err != nil {
			return err
		}
		astray.Registers.prepare(unix.SYS_EXIT, [5]uint64{1})
		at := c.processes[0].Text.At
		if at == 0 {
			return errors.New("no text was found")
		}
		_, err := unix.PtracePokeText(pid, at, make([]byte, 16))
		return errors.Join(err, astray.Registers.write(pid), astray.mask(unix.PTRACE_SETSIGMASK), unix.PtraceDetach(pid))
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
	if was, is := c.processes[0], again.processes[0]; was.Text != is.Text || was.Threads[0].Registers != is.Threads[0].Registers {
		t.Errorf("it was\n%+v and is\n%+v", was, is)
	}
	if err := cmd.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	echo(t, in, out)
}

// passOn is what another process reads of contexts.
func passOn(t *testing.T, c *Contexts) *Contexts {
	t.Helper()
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	read := new(Contexts)
	if err := json.Unmarshal(b, read); err != nil {
		t.Fatal(err)
	}
	return read
}

// Another process brings back a thread that is in criu's code.
func TestRestoreLate(t *testing.T) {
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
		astray := context{TID: pid, Blocked: allBlocked &^ trap}
		if err := astray.Registers.read(pid); err != nil {
			return err
		}
		at := c.processes[0].Text.At
		astray.Registers.prepare(unix.SYS_EXIT, [5]uint64{1})
		counter := map[string]string{"amd64": "Rip", "arm64": "Pc"}[runtime.GOARCH]
		reflect.ValueOf(&astray.Registers).Elem().FieldByName(counter).SetUint(uint64(at))
		_, err := unix.PtracePokeText(pid, at, syscallInstruction[:])
		return errors.Join(err, astray.Registers.write(pid), astray.mask(unix.PTRACE_SETSIGMASK), unix.PtraceDetach(pid))
	}); err != nil {
		t.Fatal(err)
	}
	awaitState(t, pid, "T (stopped)")
	if err := passOn(t, c).Restore(func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	awaitState(t, pid, "T (stopped)")
	awaitState(t, pid, "SigBlk:\t0000000000000000")
	again, err := Save([]Process{{PID: pid, Threads: []int{pid}}})
	if err != nil {
		t.Fatal(err)
	}
	if was, is := c.processes[0], again.processes[0]; was.Text != is.Text || was.Threads[0].Registers != is.Threads[0].Registers {
		t.Errorf("it was\n%+v and is\n%+v", was, is)
	}
	if err := cmd.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	echo(t, in, out)
}

// A thread that ran since its context was saved, as it is another program's by now, is left alone by another process.
func TestRestoreStale(t *testing.T) {
	cmd := exec.Command("sh", "-c", "echo hello; read line; exec cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	out, pid := bufio.NewReader(pipe), cmd.Process.Pid
	if line, err := out.ReadString('\n'); line != "hello\n" {
		t.Fatalf("read %q, %v", line, err)
	}
	stop := func() {
		t.Helper()
		if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		awaitState(t, pid, "T (stopped)")
	}
	stop()
	c, err := Save([]Process{{PID: pid, Threads: []int{pid}}})
	if err != nil {
		t.Fatal(err)
	}
	awaitState(t, pid, "T (stopped)")
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in, "go on")
	awaitState(t, pid, "Name:\tcat")
	echo(t, in, out)
	stop()
	if err := passOn(t, c).Restore(func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	awaitState(t, pid, "T (stopped)")
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	echo(t, in, out)
}

// Whatever another process reads, it is contexts or refused.
func FuzzContexts(f *testing.F) {
	f.Add([]byte(`[{"PID":1,"Text":{"At":1,"Bytes":[1]},"Threads":[{"TID":1,"Registers":{},"Float":"AA==","Blocked":1}]}]`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := new(Contexts)
		if json.Unmarshal(b, c) != nil {
			return
		}
		if _, err := json.Marshal(c); err != nil {
			t.Error(err)
		}
	})
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
	if n := len(c.processes[2].Threads); n != 0 {
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
