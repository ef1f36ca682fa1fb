package hold_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/hold"
	"github.com/nsmigrate/nsmigrate/checkpoint/lock"
	"github.com/nsmigrate/nsmigrate/netstate"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/ns/nstest"
)

// scene is a host with a service's namespace behind a link, of which the lock is ready.
type scene struct {
	*testing.T
	host, svc *ns.NS
	uplinks   []hold.Uplink
	holder    *hold.Holder
	lock      *lock.Lock
}

func newScene(t *testing.T) *scene {
	t.Helper()
	nstest.NeedRoot(t)
	s := &scene{T: t, host: nstest.New(t), svc: nstest.New(t)}
	add := exec.Command("ip", "link", "add", "veth-svc", "address", "02:00:00:00:00:01", "type", "veth",
		"peer", "name", "eth0", "address", "02:00:00:00:00:02", "netns", "/proc/self/fd/3")
	add.ExtraFiles = []*os.File{s.svc.File()}
	s.run(s.host, add)
	// No timer of a client's connection goes off while the test runs, and nobody asks for addresses of links.
	s.sh(s.host, `sysctl -qw net.ipv4.tcp_early_retrans=0 net.ipv6.conf.all.dad_transmits=0 net.ipv6.conf.default.accept_dad=0
		ip link set veth-svc up; ip address add 192.0.2.1/24 dev veth-svc; ip address add 2001:db8::1/64 dev veth-svc nodad
		ip route change 192.0.2.0/24 dev veth-svc rto_min 60s
		for a in 192.0.2.2 2001:db8::2; do ip neigh add $a dev veth-svc lladdr 02:00:00:00:00:02 nud permanent; done`)
	s.sh(s.svc, `ip link set lo up; ip link set eth0 up
		ip address add 192.0.2.2/24 dev eth0; ip address add 2001:db8::2/64 dev eth0 nodad
		for a in 192.0.2.1 2001:db8::1; do ip neigh add $a dev eth0 lladdr 02:00:00:00:00:01 nud permanent; done`)
	state, err := netstate.Capture(t.Context(), s.svc, netstate.CaptureOptions{Host: s.host})
	s.check(err)
	s.uplinks = hold.Uplinks(state, nil)
	if len(s.uplinks) != 1 || s.uplinks[0].Peer != "veth-svc" || s.uplinks[0].MTU != 1500 {
		t.Fatalf("uplinks %+v", s.uplinks)
	}
	s.holder, err = hold.Open(t.Context(), s.svc, s.uplinks)
	s.check(err)
	t.Cleanup(func() { s.holder.Close() })
	s.lock, err = lock.Open(s.svc)
	s.check(err)
	t.Cleanup(func() { s.lock.Close() })
	s.lock.LogTo(s.holder.Group())
	return s
}

func (s *scene) check(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *scene) run(n *ns.NS, cmd *exec.Cmd) {
	s.Helper()
	s.check(n.Do(func() error {
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w: %s", cmd.Args, err, out)
		}
		return nil
	}))
}

func (s *scene) sh(n *ns.NS, script string) {
	s.Helper()
	s.run(n, exec.Command("sh", "-ec", script))
}

// take waits until something is held, and returns it.
func (s *scene) take() []hold.Frame {
	s.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		frames, err := s.holder.Take()
		s.check(err)
		if len(frames) > 0 {
			return frames
		}
		if time.Now().After(deadline) {
			s.Fatal("nothing is held")
		}
	}
}

// datagrams waits for n of them, among what the kernels say to each other.
func (s *scene) datagrams(n int) (frames []hold.Frame) {
	s.Helper()
	for len(frames) < n {
		for _, f := range s.take() {
			if f.Data[14]>>4 == 4 && f.Data[14+9] == unix.IPPROTO_UDP || f.Data[14]>>4 == 6 && f.Data[14+6] == unix.IPPROTO_UDP {
				frames = append(frames, f)
			}
		}
	}
	return frames
}

// give gives frames to the service, on their way over the wire.
func (s *scene) give(frames []hold.Frame) int {
	s.Helper()
	frames, err := hold.Decode(strings.NewReader(string(hold.Encode(frames))))
	s.check(err)
	var given int
	s.check(s.host.Do(func() (err error) {
		given, err = hold.Give(s.uplinks, frames)
		return err
	}))
	return given
}

func (s *scene) udp(n *ns.NS, local string) *net.UDPConn {
	s.Helper()
	var conn *net.UDPConn
	s.check(n.Do(func() error {
		addr, err := net.ResolveUDPAddr("udp", local)
		if err == nil {
			conn, err = net.ListenUDP("udp", addr)
		}
		return err
	}))
	s.Cleanup(func() { conn.Close() })
	return conn
}

func (s *scene) send(from, to *net.UDPConn, text string) {
	s.Helper()
	_, err := from.WriteTo([]byte(text), to.LocalAddr())
	s.check(err)
}

// locked returns sockets of a service and of a client that reach each other, but for the lock.
func (s *scene) locked() (service, client *net.UDPConn) {
	s.Helper()
	service, client = s.udp(s.svc, "192.0.2.2:53"), s.udp(s.host, "192.0.2.1:0")
	s.reach(client, service)
	s.check(s.lock.Hold(s.Context()))
	return service, client
}

// received returns the next n datagrams that a socket gets, and what else it has got by then.
func (s *scene) received(conn *net.UDPConn, n int) (texts []string) {
	s.Helper()
	buf := make([]byte, 1<<16)
	for {
		conn.SetReadDeadline(time.Now().Add(time.Minute))
		if len(texts) >= n {
			conn.SetReadDeadline(time.Now().Add(time.Millisecond))
		}
		m, err := conn.Read(buf)
		if err != nil && len(texts) >= n {
			return texts
		}
		s.check(err)
		texts = append(texts, string(buf[:m]))
	}
}

// reach waits until datagrams get through: a link that came up just now needs a moment.
func (s *scene) reach(from, to *net.UDPConn) {
	s.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		s.send(from, to, "ready?")
		to.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		_, err := to.Read(make([]byte, 10))
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			s.Fatal(err)
		}
	}
}

// Each datagram arrives once: before the lock, or when it is given back, whatever the lock did meanwhile.
func TestDatagrams(t *testing.T) {
	for _, family := range []struct{ client, service string }{{"192.0.2.1:0", "192.0.2.2:53"}, {"[2001:db8::1]:0", "[2001:db8::2]:53"}} {
		t.Run(family.service, func(t *testing.T) {
			s := newScene(t)
			service, client := s.udp(s.svc, family.service), s.udp(s.host, family.client)
			s.reach(client, service)
			s.send(client, service, "before")
			if got := s.received(service, 1); got[len(got)-1] != "before" {
				t.Fatalf("the service received %q", got)
			}
			s.check(s.lock.Hold(t.Context()))
			s.send(client, service, "held")
			s.send(client, service, "")
			s.check(s.lock.Keep()) // a second filter beside the first
			s.send(client, service, "kept")
			loop := s.udp(s.svc, "127.0.0.1:0")
			loop.WriteTo([]byte("inside"), loop.LocalAddr()) // dropped, by whom it came from as well
			frames := s.datagrams(3)
			s.check(s.lock.Release())
			s.send(client, service, "after")
			if got := s.received(service, 1); !slices.Equal(got, []string{"after"}) {
				t.Fatalf("the service received %q", got)
			}
			if n := s.give(frames); n != 3 {
				t.Errorf("%d frames were given", n)
			}
			if got := s.received(service, 3); !slices.Equal(got, []string{"held", "", "kept"}) {
				t.Errorf("the service received %q", got)
			}
			if got := s.holder.Stats(); got.Packets < 3 || got.Bytes == 0 || got.Dropped != 0 {
				t.Errorf("%+v", got)
			}
		})
	}
}

// A connection's data arrives without the client's sending it again, however large the segments were that its host
// did not split; and so does the beginning of a connection.
func TestConnections(t *testing.T) {
	s := newScene(t)
	var listener net.Listener
	s.check(s.svc.Do(func() (err error) {
		listener, err = net.Listen("tcp", "192.0.2.2:80")
		return err
	}))
	defer listener.Close()
	client := s.dial()
	service, err := listener.Accept()
	s.check(err)
	defer service.Close()
	s.check(s.lock.HoldNew(t.Context()))
	late := make(chan net.Conn)
	go func() { late <- s.dial() }()
	frames := s.take()
	s.check(s.lock.Hold(t.Context()))
	sent := strings.Repeat("0123456789", 1200) // less than the window at the beginning
	_, err = client.Write([]byte(sent))
	s.check(err)
	for size := 0; size < len(sent); { // headers count, too: each frame has some
		more := s.take()
		for _, f := range more {
			size += max(0, len(f.Data)-14-20-32)
		}
		frames = append(frames, more...)
	}
	s.check(s.lock.Release())
	s.check(s.lock.ReleaseNew())
	if n := s.give(frames); n != len(frames) {
		t.Errorf("%d of %d frames were given", n, len(frames))
	}
	service.SetReadDeadline(time.Now().Add(time.Minute))
	got := make([]byte, len(sent))
	for n := 0; n < len(got); {
		m, err := service.Read(got[n:])
		s.check(err)
		n += m
	}
	if string(got) != sent {
		t.Error("the service received something else")
	}
	if n := retransmissions(t, client); n != 0 {
		t.Errorf("the client sent %d segments again", n)
	}
	if newcomer := <-late; newcomer != nil {
		newcomer.Close() // its host may have been too slow for the timer of the first packet, which can't be put off
	}
	client.Close()
}

// dial connects from the host; nil if it doesn't succeed.
func (s *scene) dial() net.Conn {
	var conn net.Conn
	err := s.host.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp", "192.0.2.2:80", time.Minute)
		return err
	})
	if err != nil {
		s.Error(err)
		return nil
	}
	return conn
}

func retransmissions(t *testing.T, c net.Conn) int {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info *unix.TCPInfo
	if cerr := raw.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	}); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return int(info.Total_retrans)
}

// Datagrams can be held before the service is frozen, while connections go on.
func TestDatagramsFirst(t *testing.T) {
	s := newScene(t)
	var listener net.Listener
	s.check(s.svc.Do(func() (err error) {
		listener, err = net.Listen("tcp", "192.0.2.2:80")
		return err
	}))
	defer listener.Close()
	client := s.dial()
	defer client.Close()
	service, err := listener.Accept()
	s.check(err)
	defer service.Close()
	read, sender := s.udp(s.svc, "192.0.2.2:53"), s.udp(s.host, "192.0.2.1:0")
	s.reach(sender, read)
	s.check(s.lock.HoldNew(t.Context()))
	s.check(s.lock.HoldDatagrams(t.Context()))
	s.send(sender, read, "held")
	loop := s.udp(s.svc, "127.0.0.1:0")
	s.reach(loop, loop)
	_, err = client.Write([]byte("x"))
	s.check(err)
	service.SetReadDeadline(time.Now().Add(time.Minute))
	_, err = service.Read(make([]byte, 1))
	s.check(err)
	frames := s.datagrams(1)
	s.check(s.lock.Hold(t.Context()))
	s.check(s.lock.ReleaseNew())
	s.check(s.lock.Release())
	s.give(frames)
	if got := s.received(read, 1); got[len(got)-1] != "held" {
		t.Errorf("the service received %q", got)
	}
}

// What address translation inside the namespace does to a packet, it does when the packet is given back.
func TestTranslated(t *testing.T) {
	s := newScene(t)
	s.sh(s.svc, `nft 'add table ip t; add chain ip t pre { type nat hook prerouting priority dstnat; }
		add rule ip t pre udp dport 53 redirect to :5353'`)
	service, client := s.udp(s.svc, "192.0.2.2:5353"), s.udp(s.host, "192.0.2.1:0")
	s.reach(client, service)
	s.check(s.lock.Hold(t.Context()))
	_, err := client.WriteTo([]byte("x"), &net.UDPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 53})
	s.check(err)
	frames := s.datagrams(1)
	s.check(s.lock.Release())
	s.give(frames)
	service.SetReadDeadline(time.Now().Add(time.Minute))
	_, from, err := service.ReadFrom(make([]byte, 10))
	s.check(err)
	_, err = service.WriteTo([]byte("y"), from)
	s.check(err)
	client.SetReadDeadline(time.Now().Add(time.Minute))
	if _, from, err = client.ReadFrom(make([]byte, 10)); err != nil || from.String() != "192.0.2.2:53" {
		t.Errorf("an answer from %v: %v", from, err)
	}
}

// What there is no room for is counted.
func TestFull(t *testing.T) {
	s := newScene(t)
	service, client := s.locked()
	const n = 20000
	text := strings.Repeat("x", 1400)
	for range n {
		s.send(client, service, text)
	}
	held := len(s.take())
	if held == n {
		t.Fatal("all of them are held")
	}
	for deadline := time.Now().Add(time.Minute); s.holder.Stats().Dropped == 0; { // it is told of with the next that is kept
		s.send(client, service, "one more")
		held += len(s.take())
		if time.Now().After(deadline) {
			t.Fatalf("%+v after %d of %d", s.holder.Stats(), held, n)
		}
	}
}

// An uplink that has lost its end on the host costs its own packets only, and somebody is told.
func TestGiveWithoutLink(t *testing.T) {
	s := newScene(t)
	service, client := s.locked()
	s.send(client, service, "held")
	frames := s.datagrams(1)
	s.check(s.lock.Release())
	lost := s.uplinks[0]
	lost.Index, lost.Peer = lost.Index+1, "veth-lost"
	other := hold.Frame{Index: lost.Index, Data: frames[0].Data}
	s.check(s.host.Do(func() error {
		given, err := hold.Give([]hold.Uplink{lost, s.uplinks[0]}, append([]hold.Frame{other}, frames...))
		if given != 1 || err == nil || !strings.Contains(err.Error(), "veth-lost") {
			t.Errorf("%d frames were given: %v", given, err)
		}
		if given, err := hold.Give([]hold.Uplink{lost}, nil); given != 0 || err != nil {
			t.Errorf("of no frames, %d were given: %v", given, err)
		}
		return nil
	}))
	if got := s.received(service, 1); !slices.Equal(got, []string{"held"}) {
		t.Errorf("the service received %q", got)
	}
}

// Two of them don't take each other's packets.
func TestGroupsAreTheirOwn(t *testing.T) {
	s := newScene(t)
	other, err := hold.Open(t.Context(), s.svc, s.uplinks)
	s.check(err)
	defer other.Close()
	if other.Group() == s.holder.Group() {
		t.Error("the same group twice")
	}
}
