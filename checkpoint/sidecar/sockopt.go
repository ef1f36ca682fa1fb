package sidecar

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// getsockopt reads an option into buf and returns how long it is. x/sys has no such call for any bytes.
func getsockopt(fd, level, name int, buf []byte) (int, error) {
	n := uint32(len(buf))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(unsafe.Pointer(&n)), 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// setsockopt sets an option to b, which may be empty.
func setsockopt(fd, level, name int, b []byte) error {
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// tcpState reads the state and the sender's segment size of a TCP socket: the first byte and the u32 at 16
// of struct tcp_info (linux/tcp.h).
func tcpState(fd int) (state uint8, mss uint32, err error) {
	var info [20]byte
	if _, err := getsockopt(fd, unix.IPPROTO_TCP, unix.TCP_INFO, info[:]); err != nil {
		return 0, 0, err
	}
	return info[0], *(*uint32)(unsafe.Pointer(&info[16])), nil
}
