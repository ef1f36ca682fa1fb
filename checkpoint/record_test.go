package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/lock"
	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
	"github.com/nsmigrate/nsmigrate/checkpoint/proc/proctest"
	"github.com/nsmigrate/nsmigrate/checkpoint/sockets"
	"github.com/nsmigrate/nsmigrate/netstate/ns/nstest"
)

// Another process puts a service back from what was recorded of it: what ran runs, what its user had stopped stays so, its
// datagram socket has its peer, and nothing keeps it mute. It can be done again, also when the peer is gone.
func TestRecordResume(t *testing.T) {
	nstest.NeedRoot(t, "nft")
	n := nstest.New(t)
	peer := filepath.Join(t.TempDir(), "peer")
	addr := &net.UnixAddr{Name: peer, Net: "unixgram"}
	listener, err := net.ListenUnixgram("unixgram", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := net.DialUnix("unixgram", nil, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	socket, err := conn.File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()

	cmd := exec.Command("sh", "-c", "sleep 1000 & sleep 1000 & wait")
	cmd.ExtraFiles = []*os.File{socket} // descriptor 3
	if err := n.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		proc.Default.KillNetNS(n.Inode()) //nolint:errcheck // the test fails anyway
		cmd.Wait()
	})
	pids := awaitTree(t, n.Inode(), 3)
	kill := func(sig unix.Signal, state string, pids ...int) {
		t.Helper()
		for _, pid := range pids {
			if err := unix.Kill(pid, sig); err != nil {
				t.Fatal(err)
			}
			proctest.Await(t, pid, state)
		}
	}
	for _, pid := range pids {
		proctest.Await(t, pid, proctest.Asleep)
	}
	kill(unix.SIGSTOP, proctest.Stopped, pids[1])

	r := &Record{Inode: n.Inode(), Scratch: filepath.Join(t.TempDir(), "scratch")}
	for i, list := range []*[]proc.Ident{&r.Roots, &r.Stopped} {
		id, err := proc.Default.Ident(pids[i])
		if err != nil {
			t.Fatal(err)
		}
		*list = append(*list, id)
	}
	r.Datagrams = []Datagram{{PID: pids[0], FD: 3, Path: peer}}

	for _, peerThere := range []bool{true, false} {
		kill(unix.SIGSTOP, proctest.Stopped, pids[2], pids[0])
		if err := sockets.Redirect(pids[0], 3, ""); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(r.Scratch, 0o700); err != nil {
			t.Fatal(err)
		}
		l, err := lock.Open(n)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(l.Keep(), l.Close()); err != nil {
			t.Fatal(err)
		}
		if !peerThere {
			listener.Close() // which removes its name
		}
		if err := r.Resume(context.Background()); err != nil {
			t.Fatal(err)
		}
		for i, want := range []string{proctest.Asleep, proctest.Stopped, proctest.Asleep} {
			proctest.Await(t, pids[i], want)
		}
		if out := nstest.Run(t, n, "nft list tables"); out != "" {
			t.Errorf("tables: %s", out)
		}
		if _, err := os.Stat(r.Scratch); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the scratch directory: %v", err)
		}
		if _, err := conn.Write([]byte("hello")); (err == nil) != peerThere {
			t.Errorf("the peer is there: %v; a datagram to it: %v", peerThere, err)
		}
	}
}

// awaitTree returns the processes of the only tree in a namespace, the root first, as soon as there are so many.
func awaitTree(t *testing.T, netns uint64, count int) []int {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		trees, err := proc.Default.Trees(netns)
		if err != nil {
			t.Fatal(err)
		}
		var pids []int
		for i := range trees {
			pids = append(pids, trees[i].PIDs()...)
		}
		if len(pids) == count && slices.Equal(names(t, pids), []string{"sh", "sleep", "sleep"}) {
			return pids
		}
		if time.Now().After(deadline) {
			t.Fatalf("processes %v", pids)
		}
	}
}

func names(t *testing.T, pids []int) (list []string) {
	t.Helper()
	for _, pid := range pids {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, string(name[:len(name)-1]))
	}
	return list
}
