package netstate_test

import (
	"encoding/binary"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestLosses makes one of each object that is not carried.
func TestLosses(t *testing.T) {
	needRoot(t)
	for _, c := range []struct{ name, script, want string }{
		{"rate estimator", "ip link add e0 type ifb; tc qdisc add dev e0 root handle 7: estimator 1sec 8sec tbf rate 1mbit burst 10k latency 1s", "qdisc tbf 7: dev e0 root: the kernel does not tell"},
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
	load := func(progType, attachType uint32) int {
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
	attach := func(prog, target int, attachType uint32) {
		var attr [32]byte // union bpf_attr of BPF_LINK_CREATE
		binary.NativeEndian.PutUint32(attr[0:], uint32(prog))
		binary.NativeEndian.PutUint32(attr[4:], uint32(target))
		binary.NativeEndian.PutUint32(attr[8:], attachType)
		err := source.Do(func() error {
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
	attach(load(unix.BPF_PROG_TYPE_SCHED_CLS, 0), 9, unix.BPF_TCX_EGRESS)
	attach(load(unix.BPF_PROG_TYPE_SK_LOOKUP, unix.BPF_SK_LOOKUP), source.Fd(), unix.BPF_SK_LOOKUP)
	var got []string
	for _, l := range capture(t, source, host).Losses() {
		got = append(got, l.Kind+" "+l.Object)
	}
	if want := []string{"bpf tcx egress dev e0", "bpf socket lookup"}; !slices.Equal(got, want) {
		t.Errorf("losses %q, want %q", got, want)
	}
}
