package sockets

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Lender is a process whose descriptors can be borrowed (pidfd_getfd(2)). The process does not notice.
type Lender struct {
	pidfd int
	pid   int
}

// OpenLender opens a process by its id in this process's pid namespace. The error is unix.ESRCH if there
// is none.
func OpenLender(pid int) (*Lender, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return &Lender{pidfd: fd, pid: pid}, nil
}

// Borrow returns a descriptor of our own for the same open file; the caller closes it. The error is
// unix.EBADF if the process has no such descriptor.
func (l *Lender) Borrow(fd int) (int, error) {
	own, err := unix.PidfdGetfd(l.pidfd, fd, 0)
	if err != nil {
		return -1, fmt.Errorf("borrow descriptor %d of process %d: %w", fd, l.pid, err)
	}
	return own, nil
}

// Close releases the process.
func (l *Lender) Close() error { return unix.Close(l.pidfd) }

// Traits are what only the socket itself tells.
type Traits struct {
	Family, Type, Protocol int    // unix.AF_INET, SOCK_STREAM, IPPROTO_TCP ...
	NetNS                  uint64 // inode of the namespace that it was made in
	ULP                    string // TCP's upper layer protocol, e.g. "tls"; "" is none
	Corked                 bool   // a UDP socket that holds data back
	Unread                 bool   // there is something to read
	Peer                   string // address that a unix socket is connected to; "@..." is abstract, "" unnamed or none
}

const (
	udpCork = 1 // UDP_CORK, linux/udp.h
)

// String names the kind of socket, "mptcp socket".
func (t Traits) String() string {
	kind := fmt.Sprintf("family %d", t.Family)
	switch t.Family {
	case unix.AF_INET, unix.AF_INET6:
		kind = fmt.Sprintf("protocol %d", t.Protocol)
		for name, protocol := range map[string]int{
			"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "mptcp": unix.IPPROTO_MPTCP,
			"sctp": unix.IPPROTO_SCTP, "dccp": unix.IPPROTO_DCCP, "icmp": unix.IPPROTO_ICMP,
		} {
			if t.Protocol == protocol {
				kind = name
			}
		}
	case unix.AF_UNIX:
		kind = "unix"
	case unix.AF_NETLINK:
		kind = "netlink"
	case unix.AF_PACKET:
		kind = "packet"
	case unix.AF_VSOCK:
		kind = "vsock"
	case unix.AF_XDP:
		kind = "xdp"
	case unix.AF_ALG:
		kind = "alg"
	}
	return kind + " socket"
}

// Inspect asks a borrowed socket.
func Inspect(fd int) (Traits, error) {
	var t Traits
	for _, q := range []struct {
		name int
		into *int
	}{{unix.SO_DOMAIN, &t.Family}, {unix.SO_TYPE, &t.Type}, {unix.SO_PROTOCOL, &t.Protocol}} {
		v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, q.name)
		if err != nil {
			return t, fmt.Errorf("inspect socket: %w", err)
		}
		*q.into = v
	}
	var err error
	if t.NetNS, err = netNSOf(fd); err != nil {
		return t, err
	}
	switch {
	case t.Family == unix.AF_UNIX:
		if sa, err := unix.Getpeername(fd); err == nil {
			if u, ok := sa.(*unix.SockaddrUnix); ok {
				t.Peer = u.Name
			}
		}
	case t.Protocol == unix.IPPROTO_TCP && t.Type == unix.SOCK_STREAM:
		name, err := unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_ULP)
		if err == nil {
			t.ULP = name
		}
	case t.Protocol == unix.IPPROTO_UDP && t.Type == unix.SOCK_DGRAM:
		v, err := unix.GetsockoptInt(fd, unix.IPPROTO_UDP, udpCork)
		t.Corked = err == nil && v != 0
	}
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(poll, 0); err == nil && n == 1 {
		t.Unread = poll[0].Revents&unix.POLLIN != 0
	}
	return t, nil
}

// netNSOf returns the namespace of a socket (SIOCGSKNS of socket(7)); 0 if the kernel does not tell.
func netNSOf(fd int) (uint64, error) {
	nsfd, err := unix.IoctlRetInt(fd, unix.SIOCGSKNS)
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("ask socket for its network namespace: %w", err)
	}
	defer unix.Close(nsfd)
	var st unix.Stat_t
	if err := unix.Fstat(nsfd, &st); err != nil {
		return 0, fmt.Errorf("ask socket for its network namespace: %w", err)
	}
	return st.Ino, nil
}
