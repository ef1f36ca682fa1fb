package sockets

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Redirect connects a datagram socket of a process to the unix socket at a path, or to nothing if the path is
// "". The process does not notice, unless it sends while it is connected to nothing (ENOTCONN).
func Redirect(pid, fd int, path string) error {
	lender, err := OpenLender(pid)
	if err != nil {
		return err
	}
	defer lender.Close()
	own, err := lender.Borrow(fd)
	if err != nil {
		return err
	}
	defer unix.Close(own)
	if path == "" {
		err = disconnect(own)
	} else {
		err = unix.Connect(own, &unix.SockaddrUnix{Name: path})
	}
	if err != nil {
		return fmt.Errorf("connect descriptor %d of process %d to %q: %w", fd, pid, path, err)
	}
	return nil
}

// disconnect dissolves the association of a datagram socket by the family AF_UNSPEC (connect(2)), for which the
// unix package has no address.
func disconnect(fd int) error {
	addr := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&addr)), unsafe.Sizeof(addr))
	if errno != 0 {
		return errno
	}
	return nil
}
