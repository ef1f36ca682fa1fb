package checkpoint

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
)

// A process that may have run since its context was saved keeps the one it has: the saved one is of another program here.
func TestMendRunning(t *testing.T) {
	cmd := exec.Command("sh", "-c", "echo; read line; exec cat")
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
	r, pid := bufio.NewReader(out), cmd.Process.Pid
	if _, err := r.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	signal := func(sig unix.Signal, state string) {
		t.Helper()
		if err := unix.Kill(pid, sig); err != nil {
			t.Fatal(err)
		}
		awaitStatusLine(t, pid, state)
	}
	signal(unix.SIGSTOP, "State:\tT (stopped)")
	process, err := proc.Default.Read(pid)
	if err != nil {
		t.Fatal(err)
	}
	ts := trees{{facts: &Tree{HostRoot: pid}, live: &proc.Tree{Processes: []proc.Process{process}}}}
	if err := ts.saveContexts(); err != nil {
		t.Fatal(err)
	}
	awaitStatusLine(t, pid, "State:\tT (stopped)")
	if ts[0].contexts == nil {
		t.Fatal("no context was saved")
	}
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in, "go on")
	awaitStatusLine(t, pid, "Name:\tcat")
	signal(unix.SIGSTOP, "State:\tT (stopped)")
	running := errors.New("it ran")
	if err := ts[0].mendStopped(running, nil); !errors.Is(err, running) {
		t.Errorf("mended with %v, want what was told", err)
	}
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in, "hello")
	if line, err := r.ReadString('\n'); line != "hello\n" {
		t.Errorf("read %q, %v", line, err)
	}
}

func awaitStatusLine(t *testing.T, pid int, want string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), want+"\n") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not %q:\n%s", want, b)
		}
	}
}
