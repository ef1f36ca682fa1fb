package checkpoint

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/ns/nstest"
)

// The test binary serves as the service: the variable names what it opens before it says that it is ready.
const serviceEnv = "NSMIGRATE_TEST_SERVICE"

// TestService is no test: it is the service that the other tests start.
func TestService(t *testing.T) {
	kind := os.Getenv(serviceEnv)
	if kind == "" {
		t.Skip("only a helper of other tests")
	}
	open, ok := services()[kind]
	if !ok {
		t.Fatalf("no service %q", kind)
	}
	keep, err := open()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin) // until the test closes it
	_ = keep
	os.Exit(0)
}

func services() map[string]func() (any, error) {
	return map[string]func() (any, error){
		"tcp":   func() (any, error) { return listen("tcp4", "127.0.0.1:8080", false) },
		"mptcp": func() (any, error) { return listen("tcp4", "127.0.0.1:8080", true) },
		"udp":   func() (any, error) { return net.ListenPacket("udp", "127.0.0.1:5353") },
		"cork": func() (any, error) {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
			if err != nil {
				return nil, err
			}
			return fd, unix.SetsockoptInt(fd, unix.IPPROTO_UDP, 1 /* UDP_CORK */, 1)
		},
		"io_uring": func() (any, error) {
			params := make([]byte, 120)
			fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 4, uintptr(pointer(params)), 0)
			if errno != 0 {
				return nil, errno
			}
			return fd, nil
		},
		"packet": func() (any, error) { return unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0) },
		"tun":    func() (any, error) { return os.OpenFile("/dev/net/tun", os.O_RDWR, 0) },
		"log":    func() (any, error) { return net.Dial("unixgram", os.Getenv("LOG_SOCKET")) },
		"stream": func() (any, error) { return net.Dial("unix", os.Getenv("LOG_SOCKET")) },
		"file":   func() (any, error) { return os.OpenFile(os.Getenv("DATA_FILE"), os.O_RDWR, 0) },
		"hold":   func() (any, error) { return holdFiles(os.Getenv("HOLD_DIR")) },
		"wait":   func() (any, error) { return nil, nil },
	}
}

func listen(network, addr string, mptcp bool) (net.Listener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(mptcp)
	return lc.Listen(context.Background(), network, addr)
}

// newNS makes a namespace with lo up.
func newNS(tb testing.TB) *ns.NS {
	tb.Helper()
	nstest.NeedRoot(tb)
	n := nstest.New(tb)
	if err := n.Do(exec.Command("ip", "link", "set", "lo", "up").Run); err != nil {
		tb.Fatal(err)
	}
	return n
}

// serve starts a service inside a namespace, by way of a wrapper such as unshare(1) if one is given, and
// waits until it is ready.
func serve(t *testing.T, n *ns.NS, kind string, env []string, wrapper ...string) *exec.Cmd {
	t.Helper()
	args := append(slices.Clone(wrapper), os.Args[0], "-test.run=^TestService$")
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(append(os.Environ(), serviceEnv+"="+kind), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // the service ends with its input
		in.Close()
		cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("service %s says %q, %v", kind, line, err)
	}
	return cmd
}

func survey(t *testing.T, n *ns.NS) *Scene {
	t.Helper()
	s, err := Survey(context.Background(), n)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// anonymous replaces what differs from run to run.
func anonymous(s string, pids ...int) string {
	for i, pid := range pids {
		s = strings.ReplaceAll(s, fmt.Sprint(pid), fmt.Sprintf("P%d", i))
	}
	return s
}

// What real processes with real sockets are refused for, to the word.
func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	stream, err := net.Listen("unix", filepath.Join(dir, "stream"))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	dgram, err := net.ListenPacket("unixgram", filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer dgram.Close()

	for _, tt := range []struct {
		kind string
		env  string
		want string // "" is no problem
	}{
		{kind: "tcp"},
		{kind: "udp"},
		{kind: "packet"},
		{kind: "stream", env: "LOG_SOCKET=" + stream.Addr().String()},
		{
			kind: "mptcp",
			want: "mptcp mptcp LISTEN 127.0.0.1:8080, descriptor FD of process P0 (checkpoint.test): CRIU can't carry MPTCP\n" +
				"  hint: use TCP instead; for a Go program start it with GODEBUG=multipathtcp=0",
		},
		{
			kind: "cork",
			want: "socket udp socket, descriptor FD of process P0 (checkpoint.test): it holds a datagram back (UDP_CORK), which would be lost\n" +
				"  hint: try again in a moment",
		},
		{
			kind: "io_uring",
			want: "io_uring anon_inode:[io_uring], descriptor FD of process P0 (checkpoint.test): CRIU can't carry requests that the kernel works on\n" +
				"  hint: turn io_uring off in the service, or for all with sysctl kernel.io_uring_disabled=2",
		},
		{
			kind: "tun",
			want: "device /dev/net/tun, descriptor FD of process P0 (checkpoint.test): the tunnel's file can't be attached again\n" +
				"  hint: stop the tunnel's program before the dump and start it after the restore",
		},
		{kind: "log", env: "LOG_SOCKET=" + dgram.LocalAddr().String()},
	} {
		t.Run(tt.kind, func(t *testing.T) {
			n := newNS(t)
			cmd := serve(t, n, tt.kind, []string{tt.env})
			found := Classify(survey(t, n), 0)
			var got []string
			for _, p := range found.Problems {
				got = append(got, anonymous(p.String(), cmd.Process.Pid))
			}
			text := descriptor.ReplaceAllString(strings.Join(got, "\n"), "descriptor FD ")
			if text != tt.want {
				t.Errorf("problems\n%s\nwant\n%s", text, tt.want)
			}
			if len(found.Trees) != 1 || found.Trees[0].HostRoot != cmd.Process.Pid {
				t.Errorf("trees %+v", found.Trees)
			}
		})
	}
}

// The outside ends of a service's files are found.
func TestExternals(t *testing.T) {
	n := newNS(t)
	dir := t.TempDir()
	stream, err := net.Listen("unix", filepath.Join(dir, "stream"))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		conn, _ := stream.Accept()
		accepted <- conn
	}()
	cmd := serve(t, n, "stream", []string{"LOG_SOCKET=" + stream.Addr().String()})
	conn := <-accepted
	defer conn.Close()
	found := Classify(survey(t, n), 0)
	if len(found.Trees) != 1 || len(found.Problems) > 0 {
		t.Fatalf("%+v", found)
	}
	kinds := make(map[string]int)
	for _, e := range found.Trees[0].Externals {
		kinds[e.Kind]++
		if e.Kind == "socket" && e.Path != stream.Addr().String() {
			t.Errorf("external %+v", e)
		}
		for _, fd := range e.FDs {
			if fd.PID != cmd.Process.Pid {
				t.Errorf("external %+v", e)
			}
		}
	}
	if kinds["pipe"] < 2 || kinds["socket"] != 1 { // standard input and output; standard error is /dev/null
		t.Errorf("externals %+v", found.Trees[0].Externals)
	}
}

// Where a tree lives follows from how it was started.
func TestMountNS(t *testing.T) {
	for _, tt := range []struct {
		name    string
		wrapper []string
		want    MountNS
		pidns   bool
		refused string
	}{
		{"host", nil, MountHost, false, ""},
		{"private", []string{"unshare", "--mount"}, MountPrivate, false, ""},
		{"as ip netns exec", []string{"unshare", "--mount", "sh", "-c", `umount -l /sys; mount -t sysfs none /sys; exec "$@"`, "sh"}, MountNetns, false, ""},
		{"pid namespace", []string{"unshare", "--pid", "--fork", "setsid"}, MountHost, true, ""},
		{"own", []string{"unshare", "--pid", "--fork", "--mount", "--mount-proc", "setsid"}, MountOwn, true, ""},
		{"no session", []string{"unshare", "--pid", "--fork"}, MountHost, true, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNS(t)
			serve(t, n, "wait", nil, tt.wrapper...)
			found := Classify(survey(t, n), 0)
			if len(found.Trees) != 1 {
				t.Fatalf("%d trees: %+v", len(found.Trees), found)
			}
			tree := found.Trees[0]
			if tree.MountNS != tt.want || tree.PIDNS != tt.pidns {
				t.Errorf("mount namespace %s, pid namespace %v", tree.MountNS, tree.PIDNS)
			}
			notes := 0
			if tt.pidns {
				notes = 1 + len(found.Sessionless)
			}
			if want := strings.HasPrefix(tt.name, "no session"); want != (len(found.Sessionless) == 1) {
				t.Errorf("processes without a session: %v", found.Sessionless)
			}
			if tt.pidns && (tree.Root != 1 || len(found.Notes) != notes) {
				t.Errorf("root %d, notes %q", tree.Root, found.Notes)
			}
			var reasons []string
			for _, p := range found.Problems {
				reasons = append(reasons, p.Reason)
			}
			if got := strings.Join(reasons, "; "); got != tt.refused {
				t.Errorf("refused: %s", got)
			}
		})
	}
}

// An outside file of another mount namespace is external, one of the tree's own is checked by its size.
func TestFiles(t *testing.T) {
	n := newNS(t)
	name := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(name, []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := serve(t, n, "file", []string{"DATA_FILE=" + name})
	found := Classify(survey(t, n), 0)
	if !slices.Contains(found.Trees[0].Files, File{name, 5}) {
		t.Errorf("files %+v", found.Trees[0].Files)
	}
	trees, err := proc.Default.Trees(n.Inode())
	if err != nil || len(trees) != 1 || trees[0].Root().PID != cmd.Process.Pid {
		t.Fatalf("%+v, %v", trees, err)
	}

	other := newNS(t)
	in, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	second := exec.Command("unshare", "--mount", "sleep", "1000")
	second.Stdin = in
	second.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := other.Do(second.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { second.Process.Kill(); second.Wait() })
	for { // until unshare has become sleep
		p, err := proc.Default.Read(second.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		if p.Comm == "sleep" {
			break
		}
	}
	found = Classify(survey(t, other), 0)
	var paths []string
	for _, e := range found.Trees[0].Externals {
		if e.FDs[0].FD < 3 { // tests may inherit more
			paths = append(paths, e.Kind+" "+e.Path)
		}
	}
	if want := []string{"file " + name, "file /dev/null"}; !slices.Equal(paths, want) {
		t.Errorf("externals %q, want %q", paths, want)
	}
}

var descriptor = regexp.MustCompile(`descriptor \d+ `)

func pointer(b []byte) unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(b)) }
