package sockets

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/ns/nstest"
)

// newNS makes a namespace with lo up. A test that needs privileges is skipped without; not in CI.
func newNS(t *testing.T) *ns.NS {
	t.Helper()
	nstest.NeedRoot(t)
	n := nstest.New(t)
	inside(t, n, func() error { return exec.Command("ip", "link", "set", "lo", "up").Run() })
	return n
}

func inside(t *testing.T, n *ns.NS, fn func() error) {
	t.Helper()
	if err := n.Do(fn); err != nil {
		t.Fatal(err)
	}
}

// open makes a socket inside a namespace, closed at the end of the test.
func open(t *testing.T, n *ns.NS, family, typ, protocol int) (fd int) {
	t.Helper()
	inside(t, n, func() (err error) {
		fd, err = unix.Socket(family, typ|unix.SOCK_CLOEXEC, protocol)
		return err
	})
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func inodeOf(t *testing.T, fd int) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func list(t *testing.T, n *ns.NS) []Inet {
	t.Helper()
	all, err := Inets(context.Background(), n)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// bind binds a socket to a loopback port.
func bind(t *testing.T, fd, family, port int) {
	t.Helper()
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}
	if family == unix.AF_INET6 {
		sa = &unix.SockaddrInet6{Port: port, Addr: netip.IPv6Loopback().As16()}
	}
	if err := unix.Bind(fd, sa); err != nil {
		t.Fatal(err)
	}
}

// Connections of each kind are listed in the words of ss(8), with their queues and inodes.
func TestInets(t *testing.T) {
	n := newNS(t)
	var got, want []string
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		listener := open(t, n, family, unix.SOCK_STREAM, 0)
		bind(t, listener, family, 8080)
		if err := unix.Listen(listener, 5); err != nil {
			t.Fatal(err)
		}
		client := open(t, n, family, unix.SOCK_STREAM, 0)
		bind(t, client, family, 9090)
		sa, err := unix.Getsockname(listener)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Connect(client, sa); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Write(client, []byte("hello")); err != nil {
			t.Fatal(err)
		}
		datagram := open(t, n, family, unix.SOCK_DGRAM, 0)
		bind(t, datagram, family, 53)
		host := "127.0.0.1"
		if family == unix.AF_INET6 {
			host = "[::1]"
		}
		want = append(want,
			fmt.Sprintf("tcp ESTAB %[1]s:8080 %[1]s:9090 5/0 inode 0", host),
			fmt.Sprintf("tcp ESTAB %[1]s:9090 %[1]s:8080 0/0 inode %[2]d", host, inodeOf(t, client)),
			fmt.Sprintf("tcp LISTEN %s:8080 1/5 inode %d", host, inodeOf(t, listener)),
			fmt.Sprintf("udp UNCONN %s:53 0/0 inode %d", host, inodeOf(t, datagram)),
		)
	}
	slices.Sort(want)
	// On a busy machine the bytes and their acknowledgements take a moment, even here.
	for deadline := time.Now().Add(time.Minute); !slices.Equal(got, want) && time.Now().Before(deadline); {
		got = nil
		for _, s := range list(t, n) {
			got = append(got, fmt.Sprintf("%v %d/%d inode %d", s, s.RecvQueue, s.SendQueue, s.Inode))
		}
		slices.Sort(got)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	waiting, embryonic := Waiting(list(t, n))
	if len(waiting) != 2 || len(embryonic) != 0 {
		t.Errorf("waiting %v, embryonic %v", waiting, embryonic)
	}
}

// A key of TCP MD5 is seen.
func TestMD5(t *testing.T) {
	n := newNS(t)
	fd := open(t, n, unix.AF_INET, unix.SOCK_STREAM, 0)
	bind(t, fd, unix.AF_INET, 179)
	var sig [216]byte // struct tcp_md5sig
	sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(&sig))
	sa.Family, sa.Addr = unix.AF_INET, [4]byte{127, 0, 0, 1}
	sig[130] = 6 // tcpm_keylen
	copy(sig[136:], "secret")
	if err := unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_MD5SIG, string(sig[:])); err != nil {
		t.Skipf("TCP MD5: %v", err)
	}
	if err := unix.Listen(fd, 1); err != nil {
		t.Fatal(err)
	}
	if all := list(t, n); len(all) != 1 || !all[0].MD5 {
		t.Errorf("%+v", all)
	}
}

// The accept queue is watched until the service has emptied it, or the time is over.
func TestAwaitDrained(t *testing.T) {
	n := newNS(t)
	ctx := context.Background()
	if err := AwaitDrained(ctx, n, 0); err != nil {
		t.Errorf("without sockets: %v", err)
	}
	var l net.Listener
	var client net.Conn
	inside(t, n, func() (err error) {
		if l, err = net.Listen("tcp4", "127.0.0.1:8080"); err == nil {
			client, err = net.Dial("tcp4", "127.0.0.1:8080")
		}
		return err
	})
	defer l.Close()
	defer client.Close()
	err := AwaitDrained(ctx, n, 10*time.Millisecond)
	var notDrained *NotDrainedError
	if !errors.As(err, &notDrained) || err.Error() != "accept queues are not empty: 127.0.0.1:8080 has 1 unaccepted connections" {
		t.Fatalf("full queue: %v", err)
	}
	go func() {
		time.Sleep(20 * time.Millisecond)
		if c, err := l.Accept(); err == nil {
			defer c.Close()
		}
		l.Accept() // until the listener closes
	}()
	start := time.Now()
	if err := AwaitDrained(ctx, n, 5*time.Second); err != nil {
		t.Errorf("accepted: %v", err)
	}
	if d := time.Since(start); d > time.Second {
		t.Errorf("took %v", d)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := AwaitDrained(cancelled, n, time.Second); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// Datagrams are waited for until they are read.
func TestAwaitRead(t *testing.T) {
	n := newNS(t)
	ctx := context.Background()
	var conn net.PacketConn
	inside(t, n, func() (err error) {
		conn, err = net.ListenPacket("udp4", "127.0.0.1:8080")
		return err
	})
	defer conn.Close()
	await := func(want bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) { // the kernel may deliver it later
			read, err := AwaitRead(ctx, n, 0)
			if err != nil || read != want && time.Now().After(deadline) {
				t.Fatalf("all is read: %v, %v; want %v", read, err, want)
			}
			if read == want {
				return
			}
		}
	}
	await(true)
	if _, err := conn.WriteTo([]byte("x"), conn.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	await(false)
	if _, _, err := conn.ReadFrom(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	await(true)
}

// A half-open connection counts as waiting: its SYN is in, the ACK is not.
func TestEmbryonic(t *testing.T) {
	n := newNS(t)
	inside(t, n, func() error {
		// The answer goes to an address that nobody has.
		for _, c := range []string{
			"link add ve0 type veth peer name ve1", "addr add 192.0.2.1/24 dev ve0", "link set ve0 up", "link set ve1 up",
			"neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev ve0",
		} {
			if err := exec.Command("ip", strings.Fields(c)...).Run(); err != nil {
				return fmt.Errorf("ip %s: %w", c, err)
			}
		}
		return nil
	})
	fd := open(t, n, unix.AF_INET, unix.SOCK_STREAM, 0)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: 8080}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 5); err != nil {
		t.Fatal(err)
	}
	raw := open(t, n, unix.AF_PACKET, unix.SOCK_DGRAM, 0)
	var index int
	var mac net.HardwareAddr
	inside(t, n, func() error {
		sender, err := net.InterfaceByName("ve1")
		if err != nil {
			return err
		}
		receiver, err := net.InterfaceByName("ve0")
		if err != nil {
			return err
		}
		index, mac = sender.Index, receiver.HardwareAddr
		return nil
	})
	to := &unix.SockaddrLinklayer{Protocol: 0x0008, Ifindex: index, Halen: 6}
	copy(to.Addr[:], mac)
	if err := unix.Sendto(raw, syn([4]byte{192, 0, 2, 9}, [4]byte{192, 0, 2, 1}, 4000, 8080), 0, to); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(5 * time.Second)
	for {
		if _, embryonic := Waiting(list(t, n)); len(embryonic) == 1 {
			if got := embryonic[0].String(); got != "tcp SYN-RECV 192.0.2.1:8080 192.0.2.9:4000" {
				t.Errorf("half-open: %s", got)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no half-open connection in %v", list(t, n))
		}
	}
	err := AwaitDrained(context.Background(), n, 0)
	if want := "accept queues are not empty: 1 connections are half-open, e.g. 192.0.2.1:8080 from 192.0.2.9:4000"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// syn builds an IPv4 packet with a SYN.
func syn(from, to [4]byte, sport, dport uint16) []byte {
	b := make([]byte, 40)
	b[0], b[3], b[8], b[9] = 0x45, 40, 64, unix.IPPROTO_TCP
	copy(b[12:], from[:])
	copy(b[16:], to[:])
	b[20], b[21], b[22], b[23] = byte(sport>>8), byte(sport), byte(dport>>8), byte(dport)
	b[32], b[33], b[34] = 5<<4, 2, 0xff
	sum := func(b []byte, s uint32) uint16 {
		for i := 0; i < len(b); i += 2 {
			s += uint32(b[i])<<8 | uint32(b[i+1])
		}
		s = s>>16 + s&0xffff
		s += s >> 16
		return ^uint16(s)
	}
	s := sum(b[:20], 0)
	b[10], b[11] = byte(s>>8), byte(s)
	s = sum(b[12:], unix.IPPROTO_TCP+20) // pseudo header: addresses, protocol, length
	b[36], b[37] = byte(s>>8), byte(s)
	return b
}

func TestOrphans(t *testing.T) {
	addr := netip.MustParseAddrPort("10.0.0.1:80")
	of := func(state State, inode uint64, queue uint32) Inet {
		return Inet{Protocol: unix.IPPROTO_TCP, State: state, Inode: inode, SendQueue: queue, Local: addr, Remote: addr}
	}
	got := Orphans([]Inet{
		of(FinWait1, 0, 100), of(FinWait1, 7, 100), of(FinWait1, 0, 0), of(Established, 0, 5), of(LastAck, 0, 1), of(Closing, 0, 1), of(TimeWait, 0, 0),
	})
	if len(got) != 3 {
		t.Errorf("orphans %v", got)
	}
}

// Peers of unix sockets are found, and what a borrowed socket says of itself is right.
func TestUnixAndInspect(t *testing.T) {
	n := newNS(t)
	path := filepath.Join(t.TempDir(), "sock")
	var l net.Listener
	var client net.Conn
	inside(t, n, func() (err error) {
		if l, err = net.Listen("unix", path); err == nil {
			client, err = net.Dial("unix", path)
		}
		return err
	})
	defer l.Close()
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	fdOf := func(c net.Conn) (fd int) {
		raw, err := c.(*net.UnixConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(f uintptr) { fd = int(f) })
		return fd
	}
	unixes, err := Unixes(context.Background(), n)
	if err != nil {
		t.Fatal(err)
	}
	find := func(inode uint64) Unix {
		i := slices.IndexFunc(unixes, func(u Unix) bool { return u.Inode == inode })
		if i < 0 {
			t.Fatalf("socket %d is not in %+v", inode, unixes)
		}
		return unixes[i]
	}
	a, b := find(inodeOf(t, fdOf(client))), find(inodeOf(t, fdOf(server)))
	if a.Peer != b.Inode || b.Peer != a.Inode || b.Name != path || b.String() != "unix stream "+path || a.State != Established {
		t.Errorf("client %+v, server %+v", a, b)
	}

	lender, err := OpenLender(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer lender.Close()
	borrow := func(fd int) Traits {
		own, err := lender.Borrow(fd)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(own)
		traits, err := Inspect(own)
		if err != nil {
			t.Fatal(err)
		}
		return traits
	}
	if got, want := borrow(fdOf(client)), (Traits{Family: unix.AF_UNIX, Type: unix.SOCK_STREAM, NetNS: n.Inode(), Peer: path}); got != want {
		t.Errorf("unix: %+v, want %+v", got, want)
	}
	mptcp := open(t, n, unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
	if got := borrow(mptcp); got.Protocol != unix.IPPROTO_MPTCP || got.NetNS != n.Inode() || got.String() != "mptcp socket" {
		t.Errorf("mptcp: %+v", got)
	}
	corked := open(t, n, unix.AF_INET6, unix.SOCK_DGRAM, 0)
	if err := unix.SetsockoptInt(corked, unix.IPPROTO_UDP, udpCork, 1); err != nil {
		t.Fatal(err)
	}
	if got := borrow(corked); !got.Corked || got.Unread {
		t.Errorf("udp: %+v", got)
	}
	if _, err := lender.Borrow(1 << 20); !errors.Is(err, unix.EBADF) {
		t.Errorf("no such descriptor: %v", err)
	}
	if _, err := OpenLender(1 << 22); !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.EINVAL) {
		t.Errorf("no such process: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(make([]byte, 72))
	f.Add(append(make([]byte, 16), 8, 0, 2, 0, 1, 2, 3, 4))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parseInet(unix.IPPROTO_TCP, b); err == nil {
			_ = s.String()
		}
		if u, err := parseUnix(b); err == nil {
			_ = u.String()
		}
	})
}
