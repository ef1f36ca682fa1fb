package checkpoint

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
	"github.com/nsmigrate/nsmigrate/checkpoint/proc/proctest"
	"github.com/nsmigrate/nsmigrate/netstate/ns/nstest"
)

// treeOf is a tree of one process.
func treeOf(t *testing.T, pid int) *tree {
	t.Helper()
	process, err := proc.Default.Read(pid)
	if err != nil {
		t.Fatal(err)
	}
	return &tree{facts: &Tree{HostRoot: pid}, live: &proc.Tree{Processes: []proc.Process{process}}}
}

// A process that may have run since its context was saved keeps the one it has: the saved one is of another program here.
func TestMendRunning(t *testing.T) {
	p := proctest.Start(t, exec.Command("sh", "-c", "echo ready; read line; exec cat"))
	p.Says("ready")
	p.Stop()
	ts := trees{treeOf(t, p.PID)}
	if err := ts.saveContexts(); err != nil {
		t.Fatal(err)
	}
	p.Await(proctest.Stopped)
	if ts[0].contexts == nil {
		t.Fatal("no context was saved")
	}
	p.GoOn()
	p.Say("go on")
	p.Await("Name:\tcat\n")
	p.Stop()
	running := errors.New("it ran")
	if err := ts[0].mendStopped(running, nil); !errors.Is(err, running) {
		t.Errorf("mended with %v, want what was told", err)
	}
	p.GoOn()
	p.Echoes()
}

// A process whose tracer has died, but which has not got round to its stop since, goes on as well: nobody would find it
// stopped later.
func TestPutBackBeforeItStops(t *testing.T) {
	p := proctest.Start(t, exec.Command("cat"))
	p.Echoes()
	runtime.LockOSThread() // the tracer
	defer runtime.UnlockOSThread()
	if err := errors.Join(unix.PtraceSeize(p.PID), unix.PtraceInterrupt(p.PID)); err != nil {
		t.Fatal(err)
	}
	p.Await(proctest.Traced)
	if err := unix.Kill(p.PID, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	orphan := treeOf(t, p.PID)
	orphan.orphan = true
	if lost, stuck := (trees{orphan}).putBack(nil, func() error { return nil }); lost != nil || stuck != nil {
		t.Fatal(lost, stuck)
	}
	if err := unix.PtraceDetach(p.PID); err != nil {
		t.Fatal(err)
	}
	p.Echoes()
}

// The connections of a service that is put back ask their peers how far they are, without the service's doing.
func TestPutBackNudges(t *testing.T) {
	nstest.NeedRoot(t)
	n := newNS(t)
	var client, service *net.TCPConn
	if err := n.Do(func() error {
		listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			return err
		}
		defer listener.Close()
		if client, err = net.DialTCP("tcp", nil, listener.Addr().(*net.TCPAddr)); err != nil {
			return err
		}
		service, err = listener.AcceptTCP()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	file, err := service.File()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("cat")
	cmd.ExtraFiles = []*os.File{file}
	p := proctest.Start(t, cmd)
	service.Close()
	file.Close()
	p.Echoes()
	p.Stop()
	ts := trees{treeOf(t, p.PID)}
	ts[0].stopped = []int{p.PID}
	before := 0
	unlock := func() (err error) {
		before, err = segmentsIn(client)
		return err
	}
	if lost, stuck := ts.putBack(nil, unlock); lost != nil || stuck != nil {
		t.Fatal(lost, stuck)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		now, err := segmentsIn(client)
		if err != nil {
			t.Fatal(err)
		}
		if now > before {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the client has heard nothing")
		}
	}
	p.Echoes()
}

// segmentsIn counts what a connection has received.
func segmentsIn(c *net.TCPConn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var info *unix.TCPInfo
	if cerr := raw.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	}); cerr != nil || err != nil {
		return 0, errors.Join(cerr, err)
	}
	return int(info.Segs_in), nil
}
