// Package nfnl has what the families of nfnetlink share: the header of their messages, the form of their numbers, and the
// names that their tools give to protocols.
package nfnl

import (
	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// HeaderLen is the size of struct nfgenmsg, which precedes the attributes of every message: family, version, and the
// subsystem's number of resource.
const HeaderLen = 4

// Attrs returns the attributes of a message; none if it is too short for its header.
func Attrs(m rawnl.Message) []byte {
	if len(m.Data) < HeaderLen {
		return nil
	}
	return m.Data[HeaderLen:]
}

// Family returns the address family of a message, one of unix.NFPROTO_*; 0 if it has no header.
func Family(m rawnl.Message) byte {
	if len(m.Data) == 0 {
		return 0
	}
	return m.Data[0]
}

// Number reads an integer of up to 8 bytes in network byte order, the only order that these families use. Of more bytes
// it reads the first 8; no bytes are 0.
func Number(b []byte) uint64 {
	var n uint64
	for _, c := range b[:min(len(b), 8)] {
		n = n<<8 | uint64(c)
	}
	return n
}

// Protocol names a protocol of IP as the tools of netfilter do; "" if they show its number.
func Protocol(number uint64) string {
	switch number {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_ICMP:
		return "icmp"
	case unix.IPPROTO_ICMPV6:
		return "icmpv6"
	case unix.IPPROTO_SCTP:
		return "sctp"
	case unix.IPPROTO_GRE:
		return "gre"
	}
	return ""
}
