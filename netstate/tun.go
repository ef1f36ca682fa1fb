package netstate

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Tun describes a tun or tap device. Such devices have no netlink request to create them: that is done by
// ioctl on /dev/net/tun (see tuntap.rst of the kernel).
type Tun struct {
	Name       string
	Index      int32
	Flags      uint16 // IFF_TUN or IFF_TAP, with IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE
	Owner      uint32 // uid that may attach, or ^0
	Group      uint32 // gid that may attach, or ^0
	persistent bool
}

// tunOf reads the IFLA_TUN_* attributes of a link.
func tunOf(l *link) Tun {
	t := Tun{Name: l.name, Index: l.index, Owner: tunOwnerNone, Group: tunOwnerNone, Flags: unix.IFF_NO_PI}
	for _, a := range l.data {
		if a.Kind() == unix.IFLA_TUN_OWNER {
			t.Owner = rawnl.Uint32(a.Data)
		}
		if a.Kind() == unix.IFLA_TUN_GROUP {
			t.Group = rawnl.Uint32(a.Data)
		}
		if len(a.Data) != 1 {
			continue
		}
		v := a.Data[0]
		switch a.Kind() {
		case unix.IFLA_TUN_TYPE:
			t.Flags |= uint16(v) // IFF_TUN is 1, IFF_TAP is 2
		case unix.IFLA_TUN_PI:
			if v != 0 {
				t.Flags &^= unix.IFF_NO_PI
			}
		case unix.IFLA_TUN_VNET_HDR:
			if v != 0 {
				t.Flags |= unix.IFF_VNET_HDR
			}
		case unix.IFLA_TUN_MULTI_QUEUE:
			if v != 0 {
				t.Flags |= unix.IFF_MULTI_QUEUE
			}
		case unix.IFLA_TUN_PERSIST:
			t.persistent = v != 0
		}
	}
	return t
}

// create makes the device in the namespace of the calling thread.
func (t Tun) create() error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/net/tun: %w", err)
	}
	defer unix.Close(fd)
	// TUNSETIFINDEX must come before the device exists; it takes a pointer, as TUNSETIFF does.
	index := t.Index
	if err := ioctlPtr(fd, unix.TUNSETIFINDEX, unsafe.Pointer(&index)); err != nil {
		return fmt.Errorf("set the index: %w", err)
	}
	var req [40]byte // struct ifreq
	copy(req[:unix.IFNAMSIZ-1], t.Name)
	binary.NativeEndian.PutUint16(req[unix.IFNAMSIZ:], t.Flags)
	if err := ioctlPtr(fd, unix.TUNSETIFF, unsafe.Pointer(&req)); err != nil {
		return fmt.Errorf("create: %w", err)
	}
	if t.Owner != tunOwnerNone {
		if err := unix.IoctlSetInt(fd, unix.TUNSETOWNER, int(t.Owner)); err != nil {
			return fmt.Errorf("set the owner: %w", err)
		}
	}
	if t.Group != tunOwnerNone {
		if err := unix.IoctlSetInt(fd, unix.TUNSETGROUP, int(t.Group)); err != nil {
			return fmt.Errorf("set the group: %w", err)
		}
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("make persistent: %w", err)
	}
	return nil
}

func ioctlPtr(fd int, req uint, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(req), uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}
