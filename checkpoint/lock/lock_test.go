package lock_test

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/lock"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/ns/nstest"
)

func newNS(t *testing.T) *ns.NS {
	t.Helper()
	nstest.NeedRoot(t)
	n := nstest.New(t)
	in(t, n, "ip", "link", "set", "lo", "up")
	return n
}

func in(t *testing.T, n *ns.NS, args ...string) string {
	t.Helper()
	var out []byte
	err := n.Do(func() (err error) {
		out, err = exec.Command(args[0], args[1:]...).CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("%v: %v: %s", args, err, out)
	}
	return string(out)
}

func openLock(t *testing.T, n *ns.NS) *lock.Lock {
	t.Helper()
	l, err := lock.Open(n)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestHold(t *testing.T) {
	n := newNS(t)
	l := openLock(t, n)
	defer l.Close()
	if err := l.Hold(t.Context()); err != nil {
		t.Fatal(err)
	}
	rules := in(t, n, "nft", "list", "ruleset")
	for _, want := range []string{
		"table inet nsmigrate_lock", "table arp nsmigrate_lock", "flags owner",
		"type filter hook prerouting priority", "type filter hook output priority", "type filter hook forward priority",
		"policy drop", "meta mark 0x0000c114 accept",
	} {
		if !strings.Contains(rules, want) {
			t.Errorf("no %q in\n%s", want, rules)
		}
	}
	if got := ping(n); got == nil {
		t.Error("a packet passed the held lock")
	}
	if err := l.Release(); err != nil {
		t.Fatal(err)
	}
	if rules := in(t, n, "nft", "list", "ruleset"); strings.TrimSpace(rules) != "" {
		t.Errorf("left after release:\n%s", rules)
	}
	if err := ping(n); err != nil {
		t.Errorf("nothing passes the released lock: %v", err)
	}
}

// Where the kernel can't tell of what is dropped, it is dropped nevertheless.
func TestWithoutLog(t *testing.T) {
	for name, hold := range map[string]func(*lock.Lock) error{
		"hold":     func(l *lock.Lock) error { return l.Hold(t.Context()) },
		"keep":     (*lock.Lock).Keep,
		"hold new": func(l *lock.Lock) error { return l.HoldNew(t.Context()) },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNS(t)
			l := openLock(t, n)
			defer l.Close()
			l.WithoutLog()
			l.LogTo(1)
			if err := hold(l); err != nil {
				t.Fatal(err)
			}
			if got := l.Logs(); got != 0 {
				t.Errorf("it tells group %d", got)
			}
			if err := l.HoldDatagrams(t.Context()); err != nil {
				t.Fatal(err)
			}
			if name == "hold new" {
				if err := ping(n); err != nil {
					t.Errorf("datagrams are dropped, for good: %v", err)
				}
				if c := dial(t, n, listen(t, n).Addr().String(), 200*time.Millisecond); c != nil {
					t.Error("a new connection was let in")
				}
			} else if ping(n) == nil {
				t.Error("a packet passed the lock")
			}
			if err := errors.Join(l.Release(), l.ReleaseNew()); err != nil {
				t.Fatal(err)
			}
			if err := ping(n); err != nil {
				t.Errorf("nothing passes the released lock: %v", err)
			}
		})
	}
}

// TestDeath shows that the lock goes with its holder.
func TestDeath(t *testing.T) {
	n := newNS(t)
	l := openLock(t, n)
	if err := l.Hold(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := ping(n); err != nil {
		t.Errorf("the lock outlived its socket: %v", err)
	}
}

func TestHoldNew(t *testing.T) {
	n := newNS(t)
	l := openLock(t, n)
	defer l.Close()
	listener := listen(t, n)
	established := dial(t, n, listener.Addr().String(), time.Second)
	if established == nil {
		t.Fatal("can't connect without a lock")
	}
	if err := l.HoldNew(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c := dial(t, n, listener.Addr().String(), 200*time.Millisecond); c != nil {
		t.Error("a new connection was let in")
	}
	peer, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	if _, err := established.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	peer.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := peer.Read(make([]byte, 1)); err != nil {
		t.Errorf("an established connection was cut: %v", err)
	}
	if err := l.ReleaseNew(); err != nil {
		t.Fatal(err)
	}
	if c := dial(t, n, listener.Addr().String(), 5*time.Second); c == nil {
		t.Error("no new connection after release")
	}
}

// ping sends a datagram over loopback and waits for it.
func ping(n *ns.NS) error {
	var conn *net.UDPConn
	if err := n.Do(func() (err error) {
		conn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		return err
	}); err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.WriteTo([]byte("x"), conn.LocalAddr()); err != nil {
		return err
	}
	conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	_, err := conn.Read(make([]byte, 1))
	return err
}

func listen(t *testing.T, n *ns.NS) net.Listener {
	t.Helper()
	var l net.Listener
	if err := n.Do(func() (err error) {
		l, err = net.Listen("tcp4", "127.0.0.1:0")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func dial(t *testing.T, n *ns.NS, addr string, timeout time.Duration) net.Conn {
	t.Helper()
	tcp, err := net.ResolveTCPAddr("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	fd := -1
	if err := n.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	tv := unix.NsecToTimeval(timeout.Nanoseconds())
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv)
	f := os.NewFile(uintptr(fd), "tcp")
	defer f.Close()
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: tcp.Port, Addr: [4]byte(tcp.IP.To4())}); err != nil {
		return nil
	}
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
