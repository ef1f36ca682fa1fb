package netstate_test

import (
	"encoding/binary"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// TestLosses makes one of each object that is not carried.
func TestLosses(t *testing.T) {
	needRoot(t)
	for _, c := range []struct{ name, script, want string }{
		{"rate estimator", "ip link add e0 type ifb; tc qdisc add dev e0 root handle 7: estimator 1sec 8sec tbf rate 1mbit burst 10k latency 1s", "qdisc tbf 7: dev e0 root: the kernel does not tell"},
		{"multicast address of a bridge", "ip link add br0 type bridge; ip maddr add 01:00:5e:00:00:77 dev br0", "multicast address 01:00:5e:00:00:77 dev br0"},
		{"default qdiscs", "ip link add e0 type ifb; ip link set e0 up; ip link set lo up", ""},
		{"xfrm state", "ip xfrm state allocspi src 10.0.0.1 dst 10.0.0.2 proto esp min 0x100 max 0x200", "xfrm state src 10.0.0.1 dst 10.0.0.2 proto esp"},
	} {
		t.Run(c.name, func(t *testing.T) {
			host, source := newNS(t), newNS(t)
			sh(t, source, c.script)
			losses := capture(t, source, host).Losses()
			switch {
			case c.want == "" && len(losses) > 0:
				t.Errorf("unexpected losses %v", losses)
			case c.want != "" && (len(losses) != 1 || !strings.HasPrefix(losses[0].String(), c.want)):
				t.Errorf("losses %v, want one that begins %q", losses, c.want)
			}
		})
	}
}

// TestLossHiddenRoutes: the kernel shows neither a route that is larger than a netlink message nor those behind it.
func TestLossHiddenRoutes(t *testing.T) {
	needRoot(t)
	host, source := newNS(t), newNS(t)
	sh(t, source, `ip link set lo up; ip link add e0 type ifb; ip link set e0 up; ip addr add 2001:db8::1/64 dev e0 nodad
		ip nexthop add id 7 via 2001:db8::7 dev e0; ip nexthop add id 8 group 7; ip -6 route add 2001:db8:2::/48 nhid 8
		ip -6 route add 2001:db8:3::/48 nexthop via 2001:db8::7 nexthop via 2001:db8::8; ip -6 route add unreachable default table 7`)
	checkLost(t, source, host)
	sh(t, source, `seq 2000 3400 | sed 's/.*/route append 2001:db8:1::\/64 via 2001:db8::& dev e0/' | ip -6 -batch -`)
	checkLost(t, source, host, "route IPv6 routes")
}

// TestLossTap opens a tap device that ends with the file.
func TestLossTap(t *testing.T) {
	needRoot(t)
	host, source := newNS(t), newNS(t)
	err := source.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		t.Cleanup(func() { unix.Close(fd) })
		ifr, err := unix.NewIfreq("tap0")
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	})
	if err != nil {
		t.Fatal(err)
	}
	losses := capture(t, source, host).Losses()
	if len(losses) != 1 || !strings.HasPrefix(losses[0].String(), "link tap0 (tun): it is not persistent") {
		t.Errorf("losses %v", losses)
	}
}

// TestLossBPF attaches the smallest program to a link and to the namespace.
func TestLossBPF(t *testing.T) {
	needRoot(t)
	host, source := newNS(t), newNS(t)
	sh(t, source, "ip link add e0 index 9 type ifb")
	attachBPF(t, source, loadBPF(t, unix.BPF_PROG_TYPE_SCHED_CLS, 0), 9, unix.BPF_TCX_EGRESS)
	attachBPF(t, source, loadBPF(t, unix.BPF_PROG_TYPE_SK_LOOKUP, unix.BPF_SK_LOOKUP), source.Fd(), unix.BPF_SK_LOOKUP)
	checkLost(t, source, host, "bpf tcx egress dev e0", "bpf socket lookup")
}

// TestLossBPFNetkit attaches programs to pairs of netkit devices, inside and to the host: those of both ends are told
// at the primary one.
func TestLossBPFNetkit(t *testing.T) {
	needRoot(t)
	if why := lack(t, "netkit"); why != "" {
		t.Skip(why)
	}
	const primary, peer = 54, 55 // enum bpf_attach_type
	host, source := arrange(t, `
		ip link add ka index 1007 type netkit
		host ip link add kb index 1009 type netkit; host ip link set nk0 name eth0; host ip link set eth0 netns $HOST_TARGET`)
	prog := loadBPF(t, unix.BPF_PROG_TYPE_SCHED_CLS, 0)
	attachBPF(t, source, prog, 1007, primary)
	attachBPF(t, source, prog, 1007, peer)
	attachBPF(t, host, prog, 1009, primary)
	attachBPF(t, host, prog, 1009, peer)
	checkLost(t, source, host, "bpf netkit dev ka", "bpf netkit peer of dev ka", "bpf netkit dev eth0")
}

// checkLost compares what is lost with what a capture says.
func checkLost(t *testing.T, n, host *ns.NS, want ...string) {
	t.Helper()
	var got []string
	for _, l := range capture(t, n, host).Losses() {
		got = append(got, l.Kind+" "+l.Object)
	}
	if !slices.Equal(got, want) {
		t.Errorf("losses %q, want %q", got, want)
	}
}

// attachBPF attaches a program to an interface index or a descriptor in a namespace (BPF_LINK_CREATE of bpf(2)).
func attachBPF(t *testing.T, n *ns.NS, prog, target int, attachType uint32) {
	t.Helper()
	var attr [32]byte // union bpf_attr
	binary.NativeEndian.PutUint32(attr[0:], uint32(prog))
	binary.NativeEndian.PutUint32(attr[4:], uint32(target))
	binary.NativeEndian.PutUint32(attr[8:], attachType)
	err := n.Do(func() error {
		fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_LINK_CREATE, uintptr(unsafe.Pointer(&attr)), uintptr(len(attr)))
		if errno != 0 {
			return errno
		}
		t.Cleanup(func() { unix.Close(int(fd)) })
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestTemporaryAddress moves a namespace with a temporary address, with the user's leave: the address is kept, the
// kernel makes no other one beside it, and goes on to make them.
func TestTemporaryAddress(t *testing.T) {
	needRoot(t)
	host, source := newNS(t), newNS(t)
	sh(t, source, `
		ip link add e0 type veth peer name e1; ip link set e1 up; echo 2 >/proc/sys/net/ipv6/conf/e0/use_tempaddr; ip link set e0 up
		ip addr add fd01::1/64 dev e0 mngtmpaddr nodad valid_lft 5000 preferred_lft 3000
		until ip -6 addr show dev e0 temporary -tentative | grep -q fd01; do sleep 0.02; done`)
	settleDown(t, source, host)
	want := reread(t, capture(t, source, host))
	losses := want.Losses()
	if len(losses) != 1 || losses[0].Kind != "address" || !strings.Contains(losses[0].Reason, "temporary") {
		t.Fatalf("losses %v", losses)
	}
	target := newNS(t)
	opts := netstate.BuildOptions{Host: host}
	if err := netstate.Build(t.Context(), target, want, opts); err != nil {
		t.Fatal(err)
	}
	if err := netstate.Connect(t.Context(), target, want, opts); err != nil {
		t.Fatal(err)
	}
	settleDown(t, target, host)
	const list = "ip -6 -o addr show dev e0 | tr -s ' ' | cut -d' ' -f4 | sort; cat /proc/sys/net/ipv6/conf/e0/use_tempaddr"
	if before, after := sh(t, source, list), sh(t, target, list); before != after {
		t.Errorf("addresses\n%s\n%s", before, after)
	}
	checkLines(t, lines(netstate.Diff(want, capture(t, target, host))),
		"- address inet6 "+strings.Fields(losses[0].Object)[1], "+ address inet6 "+strings.Fields(losses[0].Object)[1])
}

// TestLossMulticastRoutes makes a route as a routing daemon does: by a socket of the IGMP protocol.
func TestLossMulticastRoutes(t *testing.T) {
	needRoot(t)
	host, source := newNS(t), newNS(t)
	sh(t, source, "ip link add e0 index 9 type veth peer name e1; ip link set e0 up; ip link set e1 up; ip addr add 10.0.0.1/24 dev e0")
	const mrtInit, mrtAddVIF, mrtAddMFC, useIndex = 200, 202, 204, 8 // linux/mroute.h
	err := source.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_IGMP)
		if err != nil {
			return err
		}
		t.Cleanup(func() { unix.Close(fd) })
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, mrtInit, 1); err != nil {
			return err
		}
		vif := make([]byte, 16) // struct vifctl: number, flags, threshold, rate, interface, remote
		vif[2], vif[3] = useIndex, 1
		binary.NativeEndian.PutUint32(vif[8:], 9)
		if err := unix.SetsockoptString(fd, unix.IPPROTO_IP, mrtAddVIF, string(vif)); err != nil {
			return err
		}
		mfc := make([]byte, 60) // struct mfcctl: origin, group, parent, 32 thresholds, counters
		copy(mfc, []byte{10, 0, 0, 7, 239, 1, 1, 1})
		return unix.SetsockoptString(fd, unix.IPPROTO_IP, mrtAddMFC, string(mfc))
	})
	if err != nil {
		t.Fatal(err)
	}
	losses := capture(t, source, host).Losses()
	if len(losses) != 1 || !strings.HasPrefix(losses[0].String(), "route IPv4 multicast routes: 1 of them") {
		t.Errorf("losses %v", losses)
	}
}

// loadBPF loads the smallest program of a type.
func loadBPF(t *testing.T, progType, attachType uint32) int {
	t.Helper()
	// r0 = 0; exit
	code := []byte{0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0}
	license := []byte("GPL\x00")
	var attr [128]byte // union bpf_attr of BPF_PROG_LOAD
	binary.NativeEndian.PutUint32(attr[0:], progType)
	binary.NativeEndian.PutUint32(attr[4:], 2)
	binary.NativeEndian.PutUint64(attr[8:], uint64(uintptr(unsafe.Pointer(&code[0]))))
	binary.NativeEndian.PutUint64(attr[16:], uint64(uintptr(unsafe.Pointer(&license[0]))))
	binary.NativeEndian.PutUint32(attr[68:], attachType)
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&attr)), uintptr(len(attr)))
	runtime.KeepAlive(code)
	runtime.KeepAlive(license)
	if errno != 0 {
		t.Skipf("this kernel loads no BPF program of type %d: %v", progType, errno)
	}
	t.Cleanup(func() { unix.Close(int(fd)) })
	return int(fd)
}

// TestLossBPFRoute makes a route and a nexthop object whose packets a BPF program handles.
func TestLossBPFRoute(t *testing.T) {
	needRoot(t)
	host, source := newNS(t), newNS(t)
	sh(t, source, "ip link add e0 index 9 type veth peer name e1; ip link set e0 up; ip link set e1 up; ip addr add 10.0.0.1/24 dev e0; ip route add 198.51.100.0/24 via 10.0.0.9")
	u32 := func(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
	// LWT_BPF_OUT: a program's descriptor and a name.
	program := rawnl.EncodeAttrs([]rawnl.Attr{{Type: 1, Data: u32(uint32(loadBPF(t, unix.BPF_PROG_TYPE_LWT_OUT, 0)))}, {Type: 2, Data: []byte("x\x00")}})
	encap := rawnl.EncodeAttrs([]rawnl.Attr{{Type: 2 | unix.NLA_F_NESTED, Data: program}})
	route := []byte{unix.AF_INET, 24, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, unix.RT_SCOPE_LINK, unix.RTN_UNICAST, 0, 0, 0, 0}
	request := rawnl.Message{Type: unix.RTM_NEWROUTE, Flags: unix.NLM_F_CREATE, Data: rawnl.AppendAttrs(route, []rawnl.Attr{
		{Type: unix.RTA_DST, Data: []byte{192, 0, 2, 0}},
		{Type: unix.RTA_OIF, Data: u32(9)},
		{Type: unix.RTA_ENCAP_TYPE, Data: []byte{unix.LWTUNNEL_ENCAP_BPF, 0}},
		{Type: unix.RTA_ENCAP | unix.NLA_F_NESTED, Data: encap},
	})}
	nl, err := rawnl.Dial(source, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	if err := nl.Apply(t.Context(), []rawnl.Message{request}); err != nil {
		t.Fatal(err)
	}
	s := reread(t, capture(t, source, host)) // a state with such a route could not be read
	losses := s.Losses()
	if len(losses) != 1 || !strings.HasPrefix(losses[0].String(), "route 192.0.2.0/24") {
		t.Errorf("losses %v", losses)
	}
	target := newNS(t)
	if err := netstate.Build(t.Context(), target, s, netstate.BuildOptions{Host: host}); err != nil {
		t.Fatal(err)
	}
	if got := sh(t, target, "ip route"); strings.Contains(got, "192.0.2.0") || !strings.Contains(got, "198.51.100.0") {
		t.Errorf("routes\n%s", got)
	}
}
