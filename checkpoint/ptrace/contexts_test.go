package ptrace

import (
	"encoding/json"
	"errors"
	"os/exec"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/proc/proctest"
)

// stopped starts a process that answers a line with the same line, and stops it by a signal.
func stopped(t *testing.T) *proctest.Process {
	t.Helper()
	p := proctest.Start(t, exec.Command("cat"))
	p.Echoes() // it is in its own code, not in that of the dynamic linker
	p.Stop()
	return p
}

// A thread that another tracer sent elsewhere, with other signals blocked and a foreign instruction in its text, goes on
// where it was.
func TestRestore(t *testing.T) {
	p := stopped(t)
	pid := p.PID
	c, err := Save([]Process{{PID: pid, Threads: []int{pid}}})
	if err != nil {
		t.Fatal(err)
	}
	p.Await(proctest.Stopped)
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
	p.Await(proctest.Stopped)
	released := false
	if err := c.Restore(func() error { released = true; return nil }); err != nil {
		t.Fatal(err)
	}
	if !released {
		t.Error("nothing was released")
	}
	p.Await(proctest.Stopped)
	p.Await("SigBlk:\t0000000000000000")
	again, err := Save([]Process{{PID: pid, Threads: []int{pid}}})
	if err != nil {
		t.Fatal(err)
	}
	if was, is := c.processes[0], again.processes[0]; was.Text != is.Text || was.Threads[0].Registers != is.Threads[0].Registers {
		t.Errorf("it was\n%+v and is\n%+v", was, is)
	}
	p.GoOn()
	p.Echoes()
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
	p := stopped(t)
	pid := p.PID
	c, err := Save([]Process{{PID: pid, Threads: []int{pid}}})
	if err != nil {
		t.Fatal(err)
	}
	p.Await(proctest.Stopped)
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
	p.Await(proctest.Stopped)
	if err := passOn(t, c).Restore(func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	p.Await(proctest.Stopped)
	p.Await("SigBlk:\t0000000000000000")
	again, err := Save([]Process{{PID: pid, Threads: []int{pid}}})
	if err != nil {
		t.Fatal(err)
	}
	if was, is := c.processes[0], again.processes[0]; was.Text != is.Text || was.Threads[0].Registers != is.Threads[0].Registers {
		t.Errorf("it was\n%+v and is\n%+v", was, is)
	}
	p.GoOn()
	p.Echoes()
}

// A thread that ran since its context was saved, as it is another program's by now, is left alone by another process.
func TestRestoreStale(t *testing.T) {
	p := proctest.Start(t, exec.Command("sh", "-c", "echo ready; read line; exec cat"))
	p.Says("ready")
	p.Stop()
	c, err := Save([]Process{{PID: p.PID, Threads: []int{p.PID}}})
	if err != nil {
		t.Fatal(err)
	}
	p.Await(proctest.Stopped)
	p.GoOn()
	p.Say("go on")
	p.Await("Name:\tcat")
	p.Echoes()
	p.Stop()
	if err := passOn(t, c).Restore(func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	p.Await(proctest.Stopped)
	p.GoOn()
	p.Echoes()
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
	standing, gone, running := stopped(t), stopped(t), stopped(t)
	running.Signal(unix.SIGCONT, proctest.Asleep)
	var all []Process
	for _, p := range []*proctest.Process{standing, gone, running} {
		all = append(all, Process{PID: p.PID, Threads: []int{p.PID}})
	}
	c, err := Save(all)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(c.processes[2].Threads); n != 0 {
		t.Errorf("the context of a running process was saved")
	}
	standing.Await(proctest.Stopped)
	gone.End()
	broken := errors.New("broken")
	if err := c.Restore(func() error { return broken }); !errors.Is(err, broken) || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v, want what the release said", err)
	}
	standing.Await(proctest.Stopped)
	standing.Await("TracerPid:\t0")
	running.Await("TracerPid:\t0")
}
