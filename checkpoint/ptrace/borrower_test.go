package ptrace

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/proc/proctest"
)

// borrowerEnv makes this program a process that criu has lent its memory to. With the value "astray" its main thread is in
// code there, and stays.
const borrowerEnv = "NSMIGRATE_TEST_BORROWER"

func init() {
	if how, ok := os.LookupEnv(borrowerEnv); ok {
		runtime.LockOSThread() // to the main thread
		if err := borrow(how == "astray"); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

func borrow(astray bool) error {
	// An endless loop, for amd64 and arm64.
	endless := map[string][]byte{"amd64": {0xeb, 0xfe}, "arm64": {0x00, 0x00, 0x00, 0x14}}[runtime.GOARCH]
	fd, err := unix.MemfdCreate("CRIUMFD", 0)
	if err != nil {
		return err
	}
	page := os.Getpagesize()
	if err := unix.Ftruncate(fd, int64(2*page)); err != nil {
		return err
	}
	mem, err := unix.Mmap(fd, 0, 2*page, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	copy(mem, endless)
	if err := unix.Mprotect(mem[page:], unix.PROT_READ|unix.PROT_WRITE); err != nil { // two mappings in a row
		return err
	}
	fmt.Println("ready")
	if astray {
		code := &mem[0]
		f := &code // a function's value is the address of its code's
		(*(*func())(unsafe.Pointer(&f)))()
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		fmt.Println(lines.Text())
	}
	return lines.Err()
}

// borrower starts a borrower and stops it by a signal.
func borrower(t *testing.T, how string) *proctest.Process {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	// Go's runtime would call a thread out of the endless loop by a signal, whose handler is not criu's code.
	cmd.Env = append(os.Environ(), borrowerEnv+"="+how, "GODEBUG=asyncpreemptoff=1")
	p := proctest.Start(t, cmd)
	p.Says("ready")
	if how == "astray" {
		awaitAstray(t, p.PID)
	}
	p.Stop()
	return p
}

// awaitAstray waits until the main thread of a process is in criu's memory.
func awaitAstray(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		from, to, err := criuMemory(pid)
		if err != nil {
			t.Fatal(err)
		}
		var now registers
		if err := onThread(func() error {
			return errors.Join(interrupt(pid), now.read(pid), unix.PtraceDetach(pid))
		}); err != nil {
			t.Fatal(err)
		}
		if from <= now.pc() && now.pc() < to {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("it is at %#x, not within %#x-%#x", now.pc(), from, to)
		}
	}
}

// lent lists what a process has of criu.
func lent(t *testing.T, pid int) (list []string) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(maps)) {
		if strings.Contains(line, "CRIU") {
			list = append(list, line)
		}
	}
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if link, err := os.Readlink(f); err == nil && strings.Contains(link, "CRIU") {
			list = append(list, f+" "+link)
		}
	}
	return list
}

// What criu lent to a process and did not take back, memory and descriptor, is taken out of it.
func TestRestoreCleansUp(t *testing.T) {
	p := borrower(t, "")
	pid := p.PID
	if n := len(lent(t, pid)); n != 3 {
		t.Fatalf("criu has lent %d things: %q", n, lent(t, pid))
	}
	c, err := Save([]Process{{PID: pid, Threads: []int{pid}}})
	if err != nil {
		t.Fatal(err)
	}
	p.Await(proctest.Stopped)
	if err := c.Restore(func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	if left := lent(t, pid); len(left) > 0 {
		t.Errorf("it still has %q", left)
	}
	p.Await(proctest.Stopped)
	p.GoOn()
	p.Echoes()
}

// A thread that does not come back from criu's code is told of, and that code is left to it.
func TestRestoreAstray(t *testing.T) {
	p := borrower(t, "astray")
	pid := p.PID
	before := lent(t, pid)
	c, err := Save([]Process{{PID: pid, Threads: []int{pid}}})
	if err != nil {
		t.Fatal(err)
	}
	p.Await(proctest.Stopped)
	released := false
	err = c.restore(func() error { released = true; return nil }, 10*time.Millisecond)
	if !errors.Is(err, errNoReturn) || !released {
		t.Errorf("released: %v, error: %v", released, err)
	}
	if after := lent(t, pid); len(after) != len(before) {
		t.Errorf("it has %q of what it had, %q", after, before)
	}
	p.Await("TracerPid:\t0")
	p.Await(proctest.Stopped)
}

// A thread that takes too long is stopped when that is found out: only so can its tracer let it go.
func TestAwaitReturnOutOfTime(t *testing.T) {
	for name, script := range map[string]string{
		"computing": "echo; while :; do :; done", "calling": "echo; while :; do : </dev/null; done",
	} {
		t.Run(name, func(t *testing.T) {
			p := proctest.Start(t, exec.Command("sh", "-c", script))
			pid := p.PID
			p.Says("")
			p.Stop()
			if err := onThread(func() error {
				if err := seizeStopped(pid); err != nil {
					return err
				}
				if err := awaitReturn(pid, 10*time.Millisecond); !errors.Is(err, errNoReturn) {
					t.Errorf("it returned: %v", err)
				}
				return unix.PtraceDetach(pid)
			}); err != nil {
				t.Fatal(err)
			}
			p.Await(proctest.Stopped)
		})
	}
}
