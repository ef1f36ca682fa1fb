// Package sockets tells what the sockets of a network namespace are, as sock_diag(7) lists them and as the
// sockets answer themselves when they are borrowed from their process.
package sockets

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// State is a socket's state with TCP's numbers (include/net/tcp_states.h), which UDP and unix sockets use
// too: ESTABLISHED means connected, CLOSE unconnected.
type State uint8

// The states.
const (
	Established State = iota + 1
	SynSent
	SynRecv
	FinWait1
	FinWait2
	TimeWait
	Close
	CloseWait
	LastAck
	Listen
	Closing
	newSynRecv // the kernel's own name for SYN_RECV before there is a full socket
)

// String returns the name that ss(8) prints.
func (s State) String() string {
	names := [...]string{
		Established: "ESTAB", SynSent: "SYN-SENT", SynRecv: "SYN-RECV", FinWait1: "FIN-WAIT-1",
		FinWait2: "FIN-WAIT-2", TimeWait: "TIME-WAIT", Close: "UNCONN", CloseWait: "CLOSE-WAIT",
		LastAck: "LAST-ACK", Listen: "LISTEN", Closing: "CLOSING", newSynRecv: "SYN-RECV",
	}
	if int(s) < len(names) && names[s] != "" {
		return names[s]
	}
	return fmt.Sprintf("state-%d", uint8(s))
}

// Inet is one TCP or UDP socket.
type Inet struct {
	Protocol      int // unix.IPPROTO_TCP or IPPROTO_UDP
	Family        int // unix.AF_INET or AF_INET6
	State         State
	Local, Remote netip.AddrPort
	Interface     uint32 // index of the device it is bound to; 0 is none
	Inode         uint64 // 0 if no descriptor refers to it: not accepted yet, or closed and not done
	// RecvQueue and SendQueue are bytes; of a TCP listener they are the accept queue's length and limit.
	RecvQueue, SendQueue uint32
	ULP                  string // upper layer protocol, e.g. "tls"; "" is none
	MD5                  bool   // segments are signed (RFC 2385)
}

// String returns "tcp ESTAB 10.0.0.1:80 10.0.0.2:40000", the words of ss(8).
func (s Inet) String() string {
	name := "tcp"
	if s.Protocol == unix.IPPROTO_UDP {
		name = "udp"
	}
	if s.State == Listen || s.State == Close {
		return fmt.Sprintf("%s %v %v", name, s.State, s.Local)
	}
	return fmt.Sprintf("%s %v %v %v", name, s.State, s.Local, s.Remote)
}

// LinkLocal reports whether the socket is connected between IPv6 link-local addresses.
func (s Inet) LinkLocal() bool {
	return s.State != Listen && s.State != Close && s.Remote.Addr().Is6() && s.Remote.Addr().IsLinkLocalUnicast()
}

// Unix is one unix socket.
type Unix struct {
	Inode     uint64
	Type      int // unix.SOCK_STREAM ...
	State     State
	Name      string // path; "@..." is abstract; "" is unnamed
	Peer      uint64 // inode of the socket it is connected to, in whatever namespace that is; 0 is none
	RecvQueue uint32 // bytes; of a listener the connections that wait
}

// String returns "unix stream /run/x.sock".
func (u Unix) String() string {
	kind := map[int]string{unix.SOCK_STREAM: "stream", unix.SOCK_DGRAM: "dgram", unix.SOCK_SEQPACKET: "seqpacket"}[u.Type]
	return strings.TrimRight(fmt.Sprintf("unix %s %s", kind, u.Name), " ")
}

const (
	sockDiagByFamily = 20 // SOCK_DIAG_BY_FAMILY, linux/sock_diag.h

	allStates = 0xfff

	// Attributes of linux/inet_diag.h. The upper layer protocol and signatures are told only to those who
	// ask for tcp_info.
	inetDiagInfo    = 2
	inetDiagMD5Sig  = 18
	inetDiagULPInfo = 19
	inetULPInfoName = 1

	// Attributes and what to show of linux/unix_diag.h.
	unixDiagName  = 0
	unixDiagPeer  = 2
	unixDiagRqLen = 4
	unixShow      = 1<<0 | 1<<2 | 1<<4 // name, peer, queue length
)

// Inets lists the TCP and UDP sockets of a namespace, IPv4 and IPv6.
func Inets(ctx context.Context, n *ns.NS) ([]Inet, error) {
	c, err := rawnl.Dial(n, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var list []Inet
	for _, protocol := range []int{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		part, err := inets(ctx, c, protocol, allStates|1<<newSynRecv, 1<<(inetDiagInfo-1))
		if err != nil {
			return nil, err
		}
		list = append(list, part...)
	}
	return list, nil
}

func inets(ctx context.Context, c *rawnl.Conn, protocol int, states uint32, extensions byte) ([]Inet, error) {
	var list []Inet
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		req := make([]byte, 56) // struct inet_diag_req_v2 with an empty socket id
		req[0], req[1], req[2] = family, byte(protocol), extensions
		binary.NativeEndian.PutUint32(req[4:], states)
		msgs, err := c.Dump(ctx, rawnl.Message{Type: sockDiagByFamily, Data: req})
		if err != nil {
			return nil, fmt.Errorf("list sockets of protocol %d: %w", protocol, err)
		}
		for _, m := range msgs {
			s, err := parseInet(protocol, m.Data)
			if err != nil {
				return nil, err
			}
			list = append(list, s)
		}
	}
	return list, nil
}

// parseInet decodes struct inet_diag_msg and its attributes.
func parseInet(protocol int, b []byte) (Inet, error) {
	const size = 72
	if len(b) < size {
		return Inet{}, fmt.Errorf("%w: inet_diag message of %d bytes", rawnl.ErrMalformed, len(b))
	}
	addr := func(b []byte, family byte) netip.Addr {
		if family == unix.AF_INET {
			return netip.AddrFrom4([4]byte(b))
		}
		return netip.AddrFrom16([16]byte(b))
	}
	s := Inet{
		Protocol:  protocol,
		Family:    int(b[0]),
		State:     State(b[1]),
		Local:     netip.AddrPortFrom(addr(b[8:], b[0]), binary.BigEndian.Uint16(b[4:])),
		Remote:    netip.AddrPortFrom(addr(b[24:], b[0]), binary.BigEndian.Uint16(b[6:])),
		Interface: binary.NativeEndian.Uint32(b[40:]),
		RecvQueue: binary.NativeEndian.Uint32(b[56:]),
		SendQueue: binary.NativeEndian.Uint32(b[60:]),
		Inode:     uint64(binary.NativeEndian.Uint32(b[68:])),
	}
	if s.State == newSynRecv {
		s.State = SynRecv
	}
	attrs, err := rawnl.ParseAttrs(b[size:])
	if err != nil {
		return Inet{}, err
	}
	_, s.MD5 = rawnl.Find(attrs, inetDiagMD5Sig)
	if info, ok := rawnl.Find(attrs, inetDiagULPInfo); ok {
		nested, err := rawnl.ParseAttrs(info)
		if err != nil {
			return Inet{}, err
		}
		name, _ := rawnl.Find(nested, inetULPInfoName)
		s.ULP = rawnl.CString(name)
	}
	return s, nil
}

// Unixes lists the unix sockets that were made in a namespace.
func Unixes(ctx context.Context, n *ns.NS) ([]Unix, error) {
	c, err := rawnl.Dial(n, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	req := make([]byte, 24) // struct unix_diag_req
	req[0] = unix.AF_UNIX
	binary.NativeEndian.PutUint32(req[4:], allStates)
	binary.NativeEndian.PutUint32(req[12:], unixShow)
	msgs, err := c.Dump(ctx, rawnl.Message{Type: sockDiagByFamily, Data: req})
	if err != nil {
		return nil, fmt.Errorf("list unix sockets: %w", err)
	}
	list := make([]Unix, 0, len(msgs))
	for _, m := range msgs {
		u, err := parseUnix(m.Data)
		if err != nil {
			return nil, err
		}
		list = append(list, u)
	}
	return list, nil
}

// parseUnix decodes struct unix_diag_msg and its attributes.
func parseUnix(b []byte) (Unix, error) {
	const size = 16
	if len(b) < size {
		return Unix{}, fmt.Errorf("%w: unix_diag message of %d bytes", rawnl.ErrMalformed, len(b))
	}
	attrs, err := rawnl.ParseAttrs(b[size:])
	if err != nil {
		return Unix{}, err
	}
	u := Unix{Type: int(b[1]), State: State(b[2]), Inode: uint64(binary.NativeEndian.Uint32(b[4:]))}
	if name, ok := rawnl.Find(attrs, unixDiagName); ok {
		if len(name) > 0 && name[0] == 0 {
			u.Name = "@" + string(name[1:])
		} else {
			u.Name = rawnl.CString(name)
		}
	}
	if peer, ok := rawnl.Find(attrs, unixDiagPeer); ok {
		u.Peer = uint64(rawnl.Uint32(peer))
	}
	if queue, ok := rawnl.Find(attrs, unixDiagRqLen); ok {
		u.RecvQueue = rawnl.Uint32(queue)
	}
	return u, nil
}
