package sidecar

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/sockets"
)

// class is a set of kinds of sockets.
type class uint

const (
	tcpIdle class = 1 << iota // TCP that listens or was never connected
	tcpConn                   // TCP with a peer
	udp
	raw // other internet sockets: raw, ping
	local

	tcp  = tcpIdle | tcpConn
	inet = tcp | udp | raw
	all  = inet | local
)

// kind says how an option's value is laid out for getsockopt(2).
type kind int

const (
	num32 kind = iota // int
	num64             // unsigned long
	text              // string
	blob              // bytes; empty is the default
)

// option is a socket option that lasts, that CRIU 4.2 does not carry and that can be set from outside.
type option struct {
	name   string // as in tcp(7), ip(7), ipv6(7), udp(7), socket(7); it names the value in the file
	level  int
	number int
	kind   kind
	on     class
	family int // unix.AF_INET or AF_INET6; 0 is both
}

// options is in the order of setting. What is missing here on purpose:
//
//   - options that CRIU carries: NODELAY, CORK, buffers, MARK, PRIORITY, TOS, TTL, LINGER, BINDTODEVICE ...
//   - TCP_QUICKACK, which does not last, and TCP_REPAIR*, which are CRIU's tools;
//   - multicast memberships, classic and eBPF filters, keys of TCP_MD5SIG and TCP-AO: the kernel does not
//     tell a socket's;
//   - SO_INCOMING_CPU: it follows the traffic.
func options() []option {
	const (
		ip   = unix.IPPROTO_IP
		ip6  = unix.IPPROTO_IPV6
		sol  = unix.SOL_SOCKET
		tcpL = unix.IPPROTO_TCP
		udpL = unix.IPPROTO_UDP
		v4   = unix.AF_INET
		v6   = unix.AF_INET6
	)
	return []option{
		// The congestion control comes first: setting it resets what belongs to it.
		{"TCP_CONGESTION", tcpL, unix.TCP_CONGESTION, text, tcp, 0},
		{"TCP_USER_TIMEOUT", tcpL, unix.TCP_USER_TIMEOUT, num32, tcp, 0},
		{"TCP_NOTSENT_LOWAT", tcpL, unix.TCP_NOTSENT_LOWAT, num32, tcp, 0},
		{"TCP_SYNCNT", tcpL, unix.TCP_SYNCNT, num32, tcp, 0},
		{"TCP_LINGER2", tcpL, unix.TCP_LINGER2, num32, tcp, 0},
		// CRIU carries these only while SO_KEEPALIVE is on.
		{"TCP_KEEPIDLE", tcpL, unix.TCP_KEEPIDLE, num32, tcp, 0},
		{"TCP_KEEPINTVL", tcpL, unix.TCP_KEEPINTVL, num32, tcp, 0},
		{"TCP_KEEPCNT", tcpL, unix.TCP_KEEPCNT, num32, tcp, 0},
		{"TCP_INQ", tcpL, unix.TCP_INQ, num32, tcp, 0},
		{"TCP_THIN_LINEAR_TIMEOUTS", tcpL, unix.TCP_THIN_LINEAR_TIMEOUTS, num32, tcp, 0},
		{"TCP_TX_DELAY", tcpL, unix.TCP_TX_DELAY, num32, tcp, 0},
		{"TCP_RTO_MAX_MS", tcpL, unix.TCP_RTO_MAX_MS, num32, tcp, 0},
		{"TCP_RTO_MIN_US", tcpL, unix.TCP_RTO_MIN_US, num32, tcp, 0},
		{"TCP_DELACK_MAX_US", tcpL, unix.TCP_DELACK_MAX_US, num32, tcp, 0},
		// Of a listener these are what accepted connections inherit. A connection's own TCP_MAXSEG is in
		// the segment size that CRIU does carry (see Sidecar.Apply for how it takes effect).
		{"TCP_DEFER_ACCEPT", tcpL, unix.TCP_DEFER_ACCEPT, num32, tcpIdle, 0},
		{"TCP_MAXSEG", tcpL, unix.TCP_MAXSEG, num32, tcpIdle, 0},
		{"TCP_FASTOPEN", tcpL, unix.TCP_FASTOPEN, num32, tcpIdle, 0},
		{"TCP_FASTOPEN_CONNECT", tcpL, unix.TCP_FASTOPEN_CONNECT, num32, tcpIdle, 0},
		{"TCP_FASTOPEN_NO_COOKIE", tcpL, unix.TCP_FASTOPEN_NO_COOKIE, num32, tcpIdle, 0},
		{"TCP_SAVE_SYN", tcpL, unix.TCP_SAVE_SYN, num32, tcpIdle, 0},
		{"TCP_WINDOW_CLAMP", tcpL, unix.TCP_WINDOW_CLAMP, num32, tcp, 0},

		{"IP_MTU_DISCOVER", ip, unix.IP_MTU_DISCOVER, num32, inet, 0}, // of an IPv6 socket: for mapped addresses
		{"IP_RECVERR", ip, unix.IP_RECVERR, num32, inet, 0},
		{"IP_MINTTL", ip, unix.IP_MINTTL, num32, inet, 0},
		{"IP_TOS", ip, unix.IP_TOS, num32, inet, v6}, // for mapped addresses; CRIU carries it for IPv4 sockets
		{"IP_TTL", ip, unix.IP_TTL, num32, inet, v6},
		{"IP_TRANSPARENT", ip, unix.IP_TRANSPARENT, num32, inet, v4},
		{"IP_BIND_ADDRESS_NO_PORT", ip, unix.IP_BIND_ADDRESS_NO_PORT, num32, inet, 0},
		{"IP_LOCAL_PORT_RANGE", ip, unix.IP_LOCAL_PORT_RANGE, num32, inet, 0},
		{"IP_RECVTTL", ip, unix.IP_RECVTTL, num32, udp | raw, 0},
		{"IP_RECVTOS", ip, unix.IP_RECVTOS, num32, udp | raw, 0},
		{"IP_RECVORIGDSTADDR", ip, unix.IP_RECVORIGDSTADDR, num32, udp | raw, 0},
		{"IP_RECVFRAGSIZE", ip, unix.IP_RECVFRAGSIZE, num32, udp | raw, 0},
		{"IP_UNICAST_IF", ip, unix.IP_UNICAST_IF, num32, udp | raw, 0},
		{"IP_MULTICAST_TTL", ip, unix.IP_MULTICAST_TTL, num32, udp | raw, 0},
		{"IP_MULTICAST_LOOP", ip, unix.IP_MULTICAST_LOOP, num32, udp | raw, 0},
		{"IP_MULTICAST_ALL", ip, unix.IP_MULTICAST_ALL, num32, udp | raw, 0},
		{"IP_MULTICAST_IF", ip, unix.IP_MULTICAST_IF, num32, udp | raw, 0}, // an address; set by index it reads 0

		{"IPV6_MTU_DISCOVER", ip6, unix.IPV6_MTU_DISCOVER, num32, inet, v6},
		{"IPV6_RECVERR", ip6, unix.IPV6_RECVERR, num32, inet, v6},
		{"IPV6_MINHOPCOUNT", ip6, unix.IPV6_MINHOPCOUNT, num32, inet, v6},
		{"IPV6_UNICAST_HOPS", ip6, unix.IPV6_UNICAST_HOPS, num32, inet, v6},
		{"IPV6_TCLASS", ip6, unix.IPV6_TCLASS, num32, inet, v6},
		{"IPV6_TRANSPARENT", ip6, unix.IPV6_TRANSPARENT, num32, inet, v6},
		{"IPV6_AUTOFLOWLABEL", ip6, unix.IPV6_AUTOFLOWLABEL, num32, inet, v6},
		{"IPV6_ADDR_PREFERENCES", ip6, unix.IPV6_ADDR_PREFERENCES, num32, inet, v6},
		{"IPV6_DONTFRAG", ip6, unix.IPV6_DONTFRAG, num32, udp | raw, v6},
		{"IPV6_RECVHOPLIMIT", ip6, unix.IPV6_RECVHOPLIMIT, num32, udp | raw, v6},
		{"IPV6_RECVTCLASS", ip6, unix.IPV6_RECVTCLASS, num32, udp | raw, v6},
		{"IPV6_RECVORIGDSTADDR", ip6, unix.IPV6_RECVORIGDSTADDR, num32, udp | raw, v6},
		{"IPV6_MULTICAST_HOPS", ip6, unix.IPV6_MULTICAST_HOPS, num32, udp | raw, v6},
		{"IPV6_MULTICAST_LOOP", ip6, unix.IPV6_MULTICAST_LOOP, num32, udp | raw, v6},
		{"IPV6_MULTICAST_IF", ip6, unix.IPV6_MULTICAST_IF, num32, udp | raw, v6},
		{"IPV6_MULTICAST_ALL", ip6, unix.IPV6_MULTICAST_ALL, num32, udp | raw, v6},
		{"IPV6_UNICAST_IF", ip6, unix.IPV6_UNICAST_IF, num32, udp | raw, v6},

		{"UDP_SEGMENT", udpL, unix.UDP_SEGMENT, num32, udp, 0},
		{"UDP_GRO", udpL, unix.UDP_GRO, num32, udp, 0},
		{"UDP_NO_CHECK6_TX", udpL, unix.UDP_NO_CHECK6_TX, num32, udp, v6},
		{"UDP_NO_CHECK6_RX", udpL, unix.UDP_NO_CHECK6_RX, num32, udp, v6},

		// CRIU leaves 1 on every restored connection; a service that binds its port again would find it.
		{"SO_REUSEPORT", sol, unix.SO_REUSEPORT, num32, inet, 0},
		{"SO_PRIORITY", sol, unix.SO_PRIORITY, num32, inet, 0}, // behind IP_TOS, which sets it too
		{"SO_REUSEADDR", sol, unix.SO_REUSEADDR, num32, inet, 0},
		{"SO_TIMESTAMP", sol, unix.SO_TIMESTAMP, num32, all, 0},
		{"SO_TIMESTAMPNS", sol, unix.SO_TIMESTAMPNS, num32, all, 0},
		{"SO_TIMESTAMP_NEW", sol, unix.SO_TIMESTAMP_NEW, num32, all, 0},
		{"SO_TIMESTAMPNS_NEW", sol, unix.SO_TIMESTAMPNS_NEW, num32, all, 0},
		{"SO_TIMESTAMPING", sol, unix.SO_TIMESTAMPING, num32, inet, 0},
		{"SO_BUSY_POLL", sol, unix.SO_BUSY_POLL, num32, inet, 0},
		{"SO_PREFER_BUSY_POLL", sol, unix.SO_PREFER_BUSY_POLL, num32, inet, 0},
		{"SO_MAX_PACING_RATE", sol, unix.SO_MAX_PACING_RATE, num64, inet, 0},
		{"SO_ZEROCOPY", sol, unix.SO_ZEROCOPY, num32, tcp | udp, 0},
		{"SO_TXREHASH", sol, unix.SO_TXREHASH, num32, tcp, 0},
		{"SO_RXQ_OVFL", sol, unix.SO_RXQ_OVFL, num32, udp | raw | local, 0},
		{"SO_SELECT_ERR_QUEUE", sol, unix.SO_SELECT_ERR_QUEUE, num32, inet, 0},
		{"SO_RCVMARK", sol, unix.SO_RCVMARK, num32, udp | raw, 0},
		{"SO_PEEK_OFF", sol, unix.SO_PEEK_OFF, num32, udp | local, 0},
		{"SO_PASSPIDFD", sol, unix.SO_PASSPIDFD, num32, local, 0},

		// Last: on a connection it makes the kernel compute the segment size anew, from everything above.
		{"IP_OPTIONS", ip, unix.IP_OPTIONS, blob, inet, 0},
	}
}

// classOf tells what a socket is to the table; 0 is a socket that no option concerns.
func classOf(s *Socket) class {
	switch {
	case s.Family == unix.AF_UNIX:
		return local
	case s.Family != unix.AF_INET && s.Family != unix.AF_INET6:
		return 0
	case s.Type == unix.SOCK_STREAM && s.Protocol == unix.IPPROTO_TCP:
		if s.State == sockets.Listen || s.State == sockets.Close {
			return tcpIdle
		}
		return tcpConn
	case s.Type == unix.SOCK_STREAM:
		return 0 // MPTCP and the like, which are refused
	case s.Type == unix.SOCK_DGRAM && s.Protocol == unix.IPPROTO_UDP:
		return udp
	}
	return raw
}

// applies reports whether a socket of a class and family has the option.
func (o *option) applies(c class, family int) bool {
	return o.on&c != 0 && (o.family == 0 || o.family == family)
}

// forceReuse is the value of SO_REUSEADDR while a socket is in repair mode (SK_FORCE_REUSE of the kernel).
// It is not the service's: CRIU sets that one itself when it leaves the mode.
const forceReuse = 2

func (o *option) isReuseAddr() bool {
	return o.level == unix.SOL_SOCKET && o.number == unix.SO_REUSEADDR
}

// each reports whether a restored connection's value has to be looked at even if the kernel's default is wanted: CRIU, or the
// connection itself, gives it another one.
func (o *option) each() bool {
	switch o.level {
	case unix.SOL_SOCKET:
		return o.isReuseAddr() || o.number == unix.SO_REUSEPORT || o.number == unix.SO_PRIORITY // which IP_TOS sets
	case unix.IPPROTO_TCP:
		return o.number == unix.TCP_WINDOW_CLAMP
	}
	return o.kind == blob
}

// size is how much room a value needs.
func (o *option) size() int { return [...]int{num32: 4, num64: 8, text: 16, blob: 40}[o.kind] }

// decode turns the kernel's bytes into a value.
func (o *option) decode(b []byte) (Value, bool) {
	switch {
	case o.kind == num32 && len(b) == 4:
		return Value{Num: int64(int32(binary.NativeEndian.Uint32(b)))}, true
	case o.kind == num64 && len(b) == 8:
		return Value{Num: int64(binary.NativeEndian.Uint64(b))}, true
	case o.kind == text:
		for i, c := range b {
			if c == 0 {
				return Value{Text: string(b[:i])}, i > 0
			}
		}
		return Value{Text: string(b)}, len(b) > 0
	case o.kind == blob && len(b) > 0:
		return Value{Text: hex.EncodeToString(b)}, true
	}
	return Value{}, false
}

// encode turns a value into bytes for the kernel.
func (o *option) encode(v Value) ([]byte, error) {
	switch o.kind {
	case num32:
		if v.Text == "" && (v.Num == int64(int32(v.Num)) || v.Num == int64(uint32(v.Num))) {
			return binary.NativeEndian.AppendUint32(nil, uint32(v.Num)), nil
		}
	case num64:
		if v.Text == "" {
			return binary.NativeEndian.AppendUint64(nil, uint64(v.Num)), nil
		}
	case text:
		if v.Text != "" && len(v.Text) < o.size() {
			return []byte(v.Text), nil
		}
	case blob:
		if b, err := hex.DecodeString(v.Text); err == nil && len(b) > 0 && len(b) <= o.size() {
			return b, nil
		}
	}
	return nil, fmt.Errorf("%w: %s can't be %v", ErrInvalid, o.name, v)
}
