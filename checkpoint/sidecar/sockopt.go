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

// tcpInfo reads the state of a TCP socket. Of an old kernel the last fields are 0.
func tcpInfo(fd int) (info unix.TCPInfo, err error) {
	b := unsafe.Slice((*byte)(unsafe.Pointer(&info)), unsafe.Sizeof(info))
	_, err = getsockopt(fd, unix.IPPROTO_TCP, unix.TCP_INFO, b)
	return info, err
}
