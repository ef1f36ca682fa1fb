package criu_test

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nsmigrate/nsmigrate/checkpoint/criu"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
)

// TestMain lets the test's own program be the service that is dumped.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "be-service" {
		if err := beService(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// beService holds a connection to itself with data in a queue, unix sockets, and files below dir, one of them
// deleted. It says when it is ready by a file and never returns without an error.
func beService(dir string) error {
	l, err := net.Listen("tcp", "127.0.0.1:7000")
	if err != nil {
		return err
	}
	client, err := net.Dial("tcp", "127.0.0.1:7000")
	if err != nil {
		return err
	}
	server, err := l.Accept()
	if err != nil {
		return err
	}
	if _, err := client.Write([]byte("hello")); err != nil {
		return err
	}
	u, err := net.Listen("unix", "@nsmigrate-test")
	if err != nil {
		return err
	}
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	for _, s := range []string{"one", "three"} {
		if _, err := syscall.Write(pair[0], []byte(s)); err != nil {
			return err
		}
	}
	kept, err := os.Create(filepath.Join(dir, "kept"))
	if err != nil {
		return err
	}
	if _, err := kept.WriteString("four"); err != nil {
		return err
	}
	deleted, err := os.Create(filepath.Join(dir, "deleted"))
	if err != nil {
		return err
	}
	if err := os.Remove(deleted.Name()); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "ready"), nil, 0o600); err != nil {
		return err
	}
	time.Sleep(time.Hour)
	return fmt.Errorf("%v %v %v %v %v: nobody ended it", client, server, u, kept, deleted)
}

// service starts a service inside the namespace.
func service(t *testing.T, n *ns.NS, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], "be-service", dir)
	cmd.Dir = "/"
	cmd.Env = []string{"GODEBUG=multipathtcp=0"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := n.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for range 500 {
		if _, err := os.Stat(filepath.Join(dir, "ready")); err == nil {
			return cmd
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the service did not get ready")
	return nil
}

// snapshot saves a tree that goes on running and returns the directories of its images and of its statistics.
func snapshot(t *testing.T, path string, n *ns.NS, pid int) (images, work string) {
	t.Helper()
	images, work = t.TempDir(), t.TempDir()
	p, err := criu.Start(criu.Config{
		Path:   path,
		Place:  criu.Place{Net: n.File()},
		Images: openDir(t, images),
		Work:   openDir(t, work),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	s, err := p.Dump(criu.DumpOptions{PID: pid, LeaveRunning: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Advance(t.Context(), criu.PostDump); err != nil {
		t.Fatal(err)
	}
	if err := s.Finish(); err != nil {
		t.Fatal(err)
	}
	return images, work
}

func TestImages(t *testing.T) {
	path := needCRIU(t)
	n := newNS(t)
	files := t.TempDir()
	cmd := service(t, n, files)
	images, work := snapshot(t, path, n, cmd.Process.Pid)

	t.Run("inspect", func(t *testing.T) { testInspect(t, images, cmd, files) })
	t.Run("ids", func(t *testing.T) {
		ids, err := criu.IDs(images)
		if err != nil {
			t.Fatal(err)
		}
		list, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		var want []int
		for _, e := range list {
			var id int
			fmt.Sscan(e.Name(), &id)
			want = append(want, id)
		}
		slices.Sort(want)
		if !slices.Equal(ids, want) {
			t.Errorf("ids %v, want %v", ids, want)
		}
	})
	t.Run("files", func(t *testing.T) {
		got, err := criu.Files(images)
		if err != nil {
			t.Fatal(err)
		}
		if want := (criu.File{Path: filepath.Join(files, "kept"), Size: 4}); !slices.Contains(got, want) {
			t.Errorf("%v misses %v", got, want)
		}
		info, err := os.Stat(os.Args[0])
		if err != nil {
			t.Fatal(err)
		}
		if want := (criu.File{Path: os.Args[0], Size: info.Size()}); !slices.Contains(got, want) {
			t.Errorf("%v misses the program %v", got, want)
		}
		for _, f := range got {
			if strings.Contains(f.Path, "deleted") {
				t.Errorf("%v has a deleted file", got)
			}
		}
	})
	t.Run("stats", func(t *testing.T) {
		stats, err := criu.ReadDumpStats(work)
		if err != nil {
			t.Fatal(err)
		}
		if stats.FrozenTime == 0 || stats.PagesWritten == 0 || stats.PagesScanned < stats.PagesWritten {
			t.Errorf("statistics %+v", stats)
		}
		dir := t.TempDir()
		if err := criu.WriteDumpStats(dir, *stats); err != nil {
			t.Fatal(err)
		}
		if again, err := criu.ReadDumpStats(dir); err != nil || *again != *stats {
			t.Errorf("written and read: %+v, %v", again, err)
		}
	})
	t.Run("cut", func(t *testing.T) { testCut(t, images) })
}

func testInspect(t *testing.T, images string, cmd *exec.Cmd, files string) {
	v, err := criu.InspectTree(images)
	if err != nil {
		t.Fatal(err)
	}
	if len(v.Tasks) != 1 {
		t.Fatalf("tasks %+v", v.Tasks)
	}
	task := v.Tasks[0]
	if task.PID != cmd.Process.Pid || task.SID != task.PID || task.State != "running" || task.Comm != "criu.test" {
		t.Errorf("task %+v", task)
	}
	if want := []string{os.Args[0], "be-service", files}; !slices.Equal(task.Cmdline, want) {
		t.Errorf("command line %q, want %q", task.Cmdline, want)
	}
	if task.Memory == 0 || task.Memory != v.Memory {
		t.Errorf("memory %d of %d", task.Memory, v.Memory)
	}
	var got []string
	for _, s := range v.Sockets {
		for _, h := range s.Holders {
			if h.PID != cmd.Process.Pid || h.FD < 3 {
				t.Errorf("holder %+v of %+v", h, s)
			}
		}
		if len(s.Holders) != 1 {
			t.Errorf("holders of %+v", s)
		}
		remote := s.Remote
		if strings.HasSuffix(s.Local, ":7000") && s.State == "ESTAB" {
			remote = "client"
		}
		local := s.Local
		if strings.HasSuffix(s.Remote, ":7000") {
			local = "client"
		}
		got = append(got, fmt.Sprintf("%s %s %s %s %s %d %d", s.Protocol, s.Type, s.State, local, remote, s.Recv, s.Send))
	}
	slices.Sort(got)
	want := []string{
		"tcp stream ESTAB 127.0.0.1:7000 client 5 0",
		"tcp stream ESTAB client 127.0.0.1:7000 0 0",
		"tcp stream LISTEN 127.0.0.1:7000 0.0.0.0:0 0 0",
		"unix dgram ESTAB * * 0 0",
		"unix dgram ESTAB * * 8 0",
		"unix stream LISTEN @nsmigrate-test  0 0",
	}
	if !slices.Equal(got, want) {
		t.Errorf("sockets\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// testCut wants an error, and no panic, of an image that was cut short anywhere or has a huge message.
func testCut(t *testing.T, images string) {
	for _, name := range []string{"pstree.img", "files.img"} {
		path := filepath.Join(images, name)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		ends := map[int]bool{8: true} // where a message ends nothing is amiss
		for at := 8; at < len(data); {
			at += 4 + int(binary.LittleEndian.Uint32(data[at:]))
			ends[at] = true
		}
		for n := range data {
			if ends[n] {
				continue
			}
			if err := os.WriteFile(path, data[:n], 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := criu.InspectTree(images); err == nil {
				t.Errorf("%s: %d of %d bytes accepted", name, n, len(data))
			}
		}
		huge := slices.Clone(data)
		binary.LittleEndian.PutUint32(huge[8:], 1<<31)
		if err := os.WriteFile(path, huge, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := criu.InspectTree(images); err == nil || !strings.Contains(err.Error(), "a message of 2147483648 bytes") {
			t.Errorf("%s: %v", name, err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
