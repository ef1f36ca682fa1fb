package sidecar

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/sockets"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/ns/nstest"
)

// newNS makes a namespace with lo up, and runs further ip(8) commands in it.
func newNS(tb testing.TB, commands ...string) *ns.NS {
	tb.Helper()
	nstest.NeedRoot(tb)
	n := nstest.New(tb)
	err := n.Do(func() error {
		for _, c := range append([]string{"link set lo up"}, commands...) {
			if out, err := exec.Command("ip", strings.Fields(c)...).CombinedOutput(); err != nil {
				return fmt.Errorf("ip %s: %w: %s", c, err, out)
			}
		}
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return n
}

// open makes a socket inside a namespace, closed at the end of the test.
func open(tb testing.TB, n *ns.NS, family, typ, protocol int) int {
	tb.Helper()
	var fd int
	err := n.Do(func() (err error) {
		fd, err = unix.Socket(family, typ|unix.SOCK_CLOEXEC, protocol)
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { unix.Close(fd) })
	return fd
}

func self() []Holder { return []Holder{{PID: os.Getpid(), NSPID: os.Getpid()}} }

func capture(tb testing.TB, fds ...int) *Sidecar {
	tb.Helper()
	car, err := Capture(context.Background(), self(), nil)
	if err != nil {
		tb.Fatal(err)
	}
	car.Sockets = slices.DeleteFunc(car.Sockets, func(s Socket) bool { return !slices.Contains(fds, s.FD) })
	if len(car.Sockets) != len(fds) {
		tb.Fatalf("captured %d sockets of %d: %+v", len(car.Sockets), len(fds), car.Sockets)
	}
	return car
}

func setInt(tb testing.TB, fd, level, opt, value int) {
	tb.Helper()
	if err := unix.SetsockoptInt(fd, level, opt, value); err != nil {
		tb.Fatalf("set option %d of level %d to %d: %v", opt, level, value, err)
	}
}

func getInt(tb testing.TB, fd, level, opt int) int {
	tb.Helper()
	v, err := unix.GetsockoptInt(fd, level, opt)
	if err != nil {
		tb.Fatalf("get option %d of level %d: %v", opt, level, err)
	}
	return v
}

// What is captured from a socket with all options set comes back on a new socket of the same kind, by way
// of the file form.
func TestRoundTrip(t *testing.T) {
	n := newNS(t)
	for _, tt := range []struct {
		name                  string
		family, typ, protocol int
		set                   map[string]int // by name; numbers only
		congestion            string
	}{
		{
			"tcp4", unix.AF_INET, unix.SOCK_STREAM, 0,
			map[string]int{
				"TCP_USER_TIMEOUT": 30000, "TCP_NOTSENT_LOWAT": 16384, "TCP_SYNCNT": 3, "TCP_LINGER2": 7,
				"TCP_DEFER_ACCEPT": 15, "TCP_WINDOW_CLAMP": 40000, "TCP_MAXSEG": 1000, "TCP_INQ": 1,
				"TCP_KEEPIDLE": 17, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_THIN_LINEAR_TIMEOUTS": 1,
				"IP_MTU_DISCOVER": unix.IP_PMTUDISC_DONT, "IP_RECVERR": 1, "IP_MINTTL": 250,
				"IP_TRANSPARENT": 1, "IP_BIND_ADDRESS_NO_PORT": 1,
				"SO_TIMESTAMPNS": 1, "SO_BUSY_POLL": 50, "SO_MAX_PACING_RATE": 1 << 20, "SO_ZEROCOPY": 1,
				"SO_REUSEADDR": 1, "SO_REUSEPORT": 1,
			},
			"reno",
		},
		{
			"tcp6", unix.AF_INET6, unix.SOCK_STREAM, 0,
			map[string]int{
				"TCP_USER_TIMEOUT": 30000, "IPV6_MTU_DISCOVER": unix.IPV6_PMTUDISC_DONT, "IPV6_RECVERR": 1,
				"IPV6_MINHOPCOUNT": 250, "IPV6_TCLASS": 0x20, "IPV6_UNICAST_HOPS": 33, "IPV6_TRANSPARENT": 1,
				"IPV6_AUTOFLOWLABEL": 0,
			},
			"reno",
		},
		{
			"udp4", unix.AF_INET, unix.SOCK_DGRAM, 0,
			map[string]int{
				"IP_MULTICAST_TTL": 9, "IP_MULTICAST_LOOP": 0, "IP_MULTICAST_ALL": 0, "IP_RECVTTL": 1,
				"IP_RECVTOS": 1, "UDP_GRO": 1, "UDP_SEGMENT": 1200, "SO_RXQ_OVFL": 1, "SO_TIMESTAMP": 1,
				"SO_PEEK_OFF": 0, "IP_LOCAL_PORT_RANGE": 30000<<16 | 20000,
			},
			"",
		},
		{
			"udp6", unix.AF_INET6, unix.SOCK_DGRAM, 0,
			map[string]int{
				"IPV6_MULTICAST_HOPS": 9, "IPV6_MULTICAST_LOOP": 0, "IPV6_RECVHOPLIMIT": 1, "IPV6_DONTFRAG": 1,
				"UDP_NO_CHECK6_TX": 1, "SO_MAX_PACING_RATE": 5 << 30,
			},
			"",
		},
		{"unix", unix.AF_UNIX, unix.SOCK_STREAM, 0, map[string]int{"SO_TIMESTAMP": 1, "SO_PEEK_OFF": 0}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table := make(map[string]option)
			for _, o := range options() {
				table[o.name] = o
			}
			from := open(t, n, tt.family, tt.typ, tt.protocol)
			for name, v := range tt.set {
				o, ok := table[name]
				if !ok {
					t.Fatalf("%s is not in the table", name)
				}
				b, err := o.encode(Value{Num: int64(v)})
				if err != nil {
					t.Fatal(err)
				}
				if err := setsockopt(from, o.level, o.number, b); err != nil {
					t.Fatalf("set %s: %v", name, err)
				}
			}
			if tt.congestion != "" {
				if err := unix.SetsockoptString(from, unix.IPPROTO_TCP, unix.TCP_CONGESTION, tt.congestion); err != nil {
					t.Fatal(err)
				}
			}
			car := capture(t, from)
			want := car.Profiles[car.Sockets[0].Profile]
			for name, v := range tt.set {
				if got, ok := want[name]; !ok || got.Num != int64(v) {
					t.Errorf("%s is %v after it was set to %d", name, got, v)
				}
			}
			b, err := car.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if car, err = Decode(b); err != nil {
				t.Fatal(err)
			}

			to := open(t, n, tt.family, tt.typ, tt.protocol)
			car.Sockets[0].FD = to
			found, err := car.Apply(context.Background(), 0, func(pid int) int { return pid }, nil)
			if err != nil || len(found.Notes) > 0 {
				t.Fatalf("apply: %v, %v", err, found.Notes)
			}
			again := capture(t, to)
			if got := again.Profiles[again.Sockets[0].Profile]; !reflect.DeepEqual(got, want) {
				for name := range want {
					if got[name] != want[name] {
						t.Errorf("%s = %v, want %v", name, got[name], want[name])
					}
				}
			}
		})
	}
}

// repaired makes a connection without a packet, as CRIU does: connected in repair mode, with the peer's
// segment size put in afterwards.
func repaired(t *testing.T, n *ns.NS, addr string, mss uint32) int {
	t.Helper()
	ap, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	family := unix.AF_INET6
	var sa unix.Sockaddr = &unix.SockaddrInet6{Port: ap.Port, Addr: [16]byte(ap.IP.To16())}
	if ip4 := ap.IP.To4(); ip4 != nil {
		family = unix.AF_INET
		sa = &unix.SockaddrInet4{Port: ap.Port, Addr: [4]byte(ip4)}
	}
	fd := open(t, n, family, unix.SOCK_STREAM, 0)
	setInt(t, fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1)
	setInt(t, fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 1<<29)
	if err := unix.Connect(fd, sa); err != nil {
		t.Fatal(err)
	}
	opt := [2]uint32{2 /* TCPOPT_MSS */, mss} // struct tcp_repair_opt
	if err := setsockopt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_OPTIONS, unsafe.Slice((*byte)(unsafe.Pointer(&opt)), 8)); err != nil {
		t.Fatal(err)
	}
	return fd
}

// A restored connection sends segments of the default size until Apply.
func TestSegmentSize(t *testing.T) {
	n := newNS(t, "link add ve0 type veth peer name ve1", "addr add 192.0.2.1/24 dev ve0", "link set ve1 up", "link set ve0 up",
		"-6 addr add 2001:db8::1/64 dev ve0 nodad")
	for _, tt := range []struct {
		name, addr string
		peer       uint32 // the size that the peer announced
		broken     uint32 // the size before Apply
		want       uint32 // after; the timestamps that repair mode begins with take 12 bytes
	}{
		{"ipv4", "192.0.2.9:80", 1460, 524, 1448},
		{"ipv4 with a smaller peer", "192.0.2.9:80", 1000, 524, 988},
		{"ipv6", "[2001:db8::9]:80", 1440, 1208, 1428},
		{"loopback ipv4", "127.0.0.1:80", 65495, 524, 65483},
		{"loopback ipv6", "[::1]:80", 65475, 1208, 65463},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fd := repaired(t, n, tt.addr, tt.peer)
			before, err := tcpInfo(fd)
			if err != nil {
				t.Fatal(err)
			}
			if before.Snd_mss != tt.broken {
				t.Errorf("segment size before is %d, not %d: the defect has changed", before.Snd_mss, tt.broken)
			}
			car := capture(t, fd)
			profile := car.Profiles[car.Sockets[0].Profile]
			if v, ok := profile["SO_REUSEADDR"]; ok {
				t.Errorf("SO_REUSEADDR %v of a socket in repair mode is captured", v)
			}
			profile["SO_REUSEADDR"] = Value{Num: 0}
			profile["TCP_WINDOW_CLAMP"] = Value{Num: 65535}
			car.Sockets[0].MSS = int(tt.want)
			found, err := car.Apply(context.Background(), 0, func(pid int) int { return pid }, nil)
			if err != nil || len(found.Notes) > 0 {
				t.Fatalf("apply: %v, %v", err, found.Notes)
			}
			after, err := tcpInfo(fd)
			if err != nil {
				t.Fatal(err)
			}
			if after.Snd_mss != tt.want {
				t.Errorf("segment size is %d, want %d", after.Snd_mss, tt.want)
			}
			if v := getInt(t, fd, unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP); v != 65535 {
				t.Errorf("window clamp is %d", v)
			}
			if v := getInt(t, fd, unix.SOL_SOCKET, unix.SO_REUSEADDR); v != forceReuse {
				t.Errorf("SO_REUSEADDR of a socket in repair mode is %d", v)
			}
			var options [40]byte
			if n, err := getsockopt(fd, unix.IPPROTO_IP, unix.IP_OPTIONS, options[:]); err != nil || n != 0 {
				t.Errorf("IP_OPTIONS: %d bytes, %v", n, err)
			}
		})
	}
}

// IP options of a connection come back with the segment size reduced by them.
func TestIPOptions(t *testing.T) {
	n := newNS(t, "link add ve0 type veth peer name ve1", "addr add 192.0.2.1/24 dev ve0", "link set ve1 up", "link set ve0 up")
	from := repaired(t, n, "192.0.2.9:80", 1460)
	nops := []byte{1, 1, 1, 1}
	if err := setsockopt(from, unix.IPPROTO_IP, unix.IP_OPTIONS, nops); err != nil {
		t.Fatal(err)
	}
	car := capture(t, from)
	to := repaired(t, n, "192.0.2.10:80", 1460)
	car.Sockets[0].FD = to
	found, err := car.Apply(context.Background(), 0, func(pid int) int { return pid }, nil)
	if err != nil || len(found.Notes) > 0 {
		t.Fatalf("apply: %v, %v", err, found.Notes)
	}
	var got [40]byte
	if n, err := getsockopt(to, unix.IPPROTO_IP, unix.IP_OPTIONS, got[:]); err != nil || !slices.Equal(got[:n], nops) {
		t.Errorf("IP_OPTIONS %v, %v", got[:n], err)
	}
	if info, _ := tcpInfo(to); info.Snd_mss != 1444 {
		t.Errorf("segment size %d, want 1444", info.Snd_mss)
	}
}

// A socket of two descriptors is captured once; what can't be put back is told and stops nothing.
func TestNotes(t *testing.T) {
	n := newNS(t)
	fd := open(t, n, unix.AF_INET, unix.SOCK_STREAM, 0)
	second, err := unix.Dup(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(second)
	car, err := Capture(context.Background(), self(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var found []Socket
	for _, s := range car.Sockets {
		if s.FD == fd || s.FD == second {
			found = append(found, s)
		}
	}
	if len(found) != 1 || found[0].State != sockets.Close {
		t.Fatalf("captured %+v", found)
	}
	p := Profile{"TCP_CONGESTION": {Text: "nosuch"}, "TCP_USER_TIMEOUT": {Num: 1234}, "TCP_FUTURE": {Num: 1}}
	s := found[0]
	gone := s
	gone.FD = 1 << 20
	s.Profile, gone.Profile = 0, 0
	car = &Sidecar{Version: Version, Profiles: []Profile{p}, Sockets: []Socket{gone, gone, s}}
	outcome, err := car.Apply(context.Background(), 0, func(pid int) int { return pid }, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, n := range outcome.Notes {
		got = append(got, n.String())
	}
	want := []string{
		fmt.Sprintf("socket options of process %d, descriptor %d and 1 more sockets: bad file descriptor", s.PID, gone.FD),
		fmt.Sprintf("TCP_CONGESTION=nosuch of process %d, descriptor %d: no such file or directory", s.PID, s.FD),
	}
	if !slices.Equal(got, want) {
		t.Errorf("notes\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if v := getInt(t, fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT); v != 1234 {
		t.Errorf("TCP_USER_TIMEOUT is %d", v)
	}
}

// Of connections that are alike the first is looked at whole and the others where they may differ; those with something for
// their peers are told.
func TestAlike(t *testing.T) {
	n := newNS(t, "link set lo up")
	listener := open(t, n, unix.AF_INET, unix.SOCK_STREAM, 0)
	addr := &unix.SockaddrInet4{Port: 7000, Addr: [4]byte{127, 0, 0, 1}}
	if err := errors.Join(unix.Bind(listener, addr), unix.Listen(listener, 16)); err != nil {
		t.Fatal(err)
	}
	connect := func() int {
		fd := open(t, n, unix.AF_INET, unix.SOCK_STREAM, 0)
		if err := unix.Connect(fd, addr); err != nil {
			t.Fatal(err)
		}
		return fd
	}
	from := connect()
	setInt(t, from, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 4321)
	car := capture(t, from)
	model := car.Sockets[0]
	car.Sockets = nil
	for range 4 {
		model.FD = connect()
		car.Sockets = append(car.Sockets, model)
	}
	setInt(t, car.Sockets[1].FD, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	setInt(t, car.Sockets[2].FD, unix.SOL_SOCKET, unix.SO_PRIORITY, 5)
	setInt(t, car.Sockets[3].FD, unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP, 5000)
	full := car.Sockets[2].FD
	if err := unix.SetNonblock(full, true); err != nil {
		t.Fatal(err)
	}
	for err := error(nil); err == nil; { // nobody reads
		_, err = unix.Write(full, make([]byte, 1<<16))
	}
	found, err := car.Apply(context.Background(), 0, func(pid int) int { return pid }, func(family int) (int, error) {
		return unix.Dup(open(t, n, family, unix.SOCK_STREAM, 0))
	})
	if err != nil || len(found.Notes) > 0 {
		t.Fatalf("apply: %v, %v", err, found.Notes)
	}
	want := car.Profiles[model.Profile]
	for i, k := range car.Sockets {
		again := capture(t, k.FD)
		if got := again.Profiles[again.Sockets[0].Profile]; !reflect.DeepEqual(got, want) {
			t.Errorf("connection %d has %v, want %v", i, got, want)
		}
	}
	if len(found.Waiting) != 1 || !slices.Equal(found.Waiting[model.PID], []int{full}) {
		t.Errorf("waiting: %v, want descriptor %d", found.Waiting, full)
	}
}

// A second capture takes over what the first one has.
func TestCaptureAgain(t *testing.T) {
	n := newNS(t)
	fd := open(t, n, unix.AF_INET, unix.SOCK_STREAM, 0)
	first := capture(t, fd)
	setInt(t, fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 99) // not seen: the socket is known
	late := open(t, n, unix.AF_INET, unix.SOCK_STREAM, 0)
	setInt(t, late, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 7)
	car, err := Capture(context.Background(), self(), first)
	if err != nil {
		t.Fatal(err)
	}
	timeout := make(map[int]int64)
	for _, s := range car.Sockets {
		timeout[s.FD] = car.Profiles[s.Profile]["TCP_USER_TIMEOUT"].Num
	}
	if timeout[fd] != 0 || timeout[late] != 7 {
		t.Errorf("timeouts %v", timeout)
	}
	if err := car.Validate(); err != nil {
		t.Error(err)
	}
}

func BenchmarkThousand(b *testing.B) {
	n := newNS(b)
	const count = 1000
	for range count {
		open(b, n, unix.AF_INET, unix.SOCK_STREAM, 0)
	}
	car, err := Capture(context.Background(), self(), nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("capture", func(b *testing.B) {
		for b.Loop() {
			if _, err := Capture(context.Background(), self(), nil); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("capture again", func(b *testing.B) {
		for b.Loop() {
			if _, err := Capture(context.Background(), self(), car); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("apply", func(b *testing.B) {
		for b.Loop() {
			if found, err := car.Apply(context.Background(), 0, func(pid int) int { return pid }, nil); err != nil || len(found.Notes) > 0 {
				b.Fatal(found, err)
			}
		}
	})
	b.Run("decode", func(b *testing.B) {
		file, _ := car.Encode()
		b.SetBytes(int64(len(file)))
		for b.Loop() {
			if _, err := Decode(file); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"version":1,"profiles":[{"TCP_CONGESTION":"bbr","TCP_USER_TIMEOUT":3000,"SO_MAX_PACING_RATE":-1,"IP_OPTIONS":"01010101"}],"sockets":[{"tree":0,"pid":7,"fd":3,"inode":9,"family":2,"type":1,"protocol":6,"state":1,"mss":1448,"profile":0}]}`))
	f.Add([]byte(`{"version":2}`))
	f.Add([]byte(`{"version":1,"profiles":[{"X":""}],"sockets":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		car, err := Decode(b)
		if (err == nil) == (car == nil) {
			t.Fatalf("%v, %v", car, err)
		}
		if err != nil {
			return
		}
		out, err := car.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := Decode(out)
		if err != nil {
			t.Fatalf("own output: %v", err)
		}
		if out2, _ := again.Encode(); string(out2) != string(out) {
			t.Fatalf("%s\n%s", out, out2)
		}
	})
}

// A connection that was restored as closed takes its options, and no word about its segment size.
func TestClosed(t *testing.T) {
	n := newNS(t, "link add ve0 type veth peer name ve1", "addr add 192.0.2.1/24 dev ve0", "link set ve1 up", "link set ve0 up")
	from := repaired(t, n, "192.0.2.9:80", 1460)
	setInt(t, from, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 4321)
	car := capture(t, from)
	car.Sockets[0].MSS = 1448
	to := open(t, n, unix.AF_INET, unix.SOCK_STREAM, 0)
	car.Sockets[0].FD = to
	found, err := car.Apply(context.Background(), 0, func(pid int) int { return pid }, nil)
	if err != nil || len(found.Notes) > 0 {
		t.Fatalf("apply: %v, %v", err, found.Notes)
	}
	if v := getInt(t, to, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT); v != 4321 {
		t.Errorf("TCP_USER_TIMEOUT is %d", v)
	}
}
