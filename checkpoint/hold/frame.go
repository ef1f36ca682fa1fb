package hold

import (
	"bytes"
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"
)

// Frame is what an uplink received: an Ethernet frame as it was, or could have been, on the wire.
type Frame struct {
	Index int32 // of the uplink inside the namespace
	Data  []byte
}

// Lengths and offsets of headers.
const (
	etherLen = 14
	etherTyp = 12

	ipv4Len     = 20
	ipv4Total   = 2
	ipv4ID      = 4
	ipv4Frag    = 6
	ipv4Proto   = 9
	ipv4Check   = 10
	ipv4Src     = 12
	ipv4NotLast = 0x2000
	ipv4Offset  = 0x1fff

	ipv6Len     = 40
	ipv6Payload = 4
	ipv6Next    = 6
	ipv6Src     = 8

	tcpLen    = 20
	tcpSeq    = 4
	tcpOff    = 12
	tcpFlags  = 13
	tcpCheck  = 16
	tcpFIN    = 0x01
	tcpPSH    = 0x08
	tcpCWR    = 0x80
	udpLen    = 8
	udpCheck  = 6
	icmpCheck = 2
)

// frames returns the frames of a packet that came by the uplink. Segments that the kernel joined, or that a sender on
// the same host never split, are split; a checksum that was left to the hardware is calculated; a packet whose
// checksum is wrong is none.
func (u *Uplink) frames(hardware, packet []byte) []Frame {
	if len(hardware) != etherLen || !u.hears(hardware) {
		return nil
	}
	p, ok := parsePacket(binary.BigEndian.Uint16(hardware[etherTyp:]), slices.Clone(packet))
	if !ok || !p.complete() {
		return nil
	}
	parts := [][]byte{p.data}
	if len(p.data) > u.MTU {
		parts = p.split(u.MTU)
	}
	var frames []Frame
	for _, part := range parts {
		frames = append(frames, Frame{Index: u.Index, Data: append(slices.Clone(hardware), part...)})
	}
	return frames
}

// hears reports whether a frame with this header is addressed to the uplink: to itself or to many.
func (u *Uplink) hears(header []byte) bool {
	return header[0]&1 != 0 || bytes.Equal(header[:6], u.MAC)
}

// fits reports whether the uplink can have received a frame.
func (u *Uplink) fits(f Frame) bool {
	if f.Index != u.Index || len(f.Data) < etherLen || len(f.Data) > etherLen+u.MTU || !u.hears(f.Data) {
		return false
	}
	_, ok := parsePacket(binary.BigEndian.Uint16(f.Data[etherTyp:]), f.Data[etherLen:])
	return ok
}

// packet is an IP packet that is as long as it says.
type packet struct {
	data     []byte
	header   int   // length of the IP header
	protocol uint8 // of what follows
	whole    bool  // what follows begins with the protocol's header and is not cut off
}

func parsePacket(typ uint16, data []byte) (p packet, ok bool) {
	switch {
	case typ == unix.ETH_P_IP && len(data) >= ipv4Len && data[0]>>4 == 4:
		p = packet{data: data, header: int(data[0]&15) * 4, protocol: data[ipv4Proto]}
		p.whole = binary.BigEndian.Uint16(data[ipv4Frag:])&(ipv4NotLast|ipv4Offset) == 0
		ok = p.header >= ipv4Len && p.header <= len(data) && int(binary.BigEndian.Uint16(data[ipv4Total:])) == len(data)
	case typ == unix.ETH_P_IPV6 && len(data) >= ipv6Len && data[0]>>4 == 6:
		p = packet{data: data, header: ipv6Len, protocol: data[ipv6Next], whole: true}
		ok = ipv6Len+int(binary.BigEndian.Uint16(data[ipv6Payload:])) == len(data)
	}
	return p, ok
}

// transport is what follows the IP header.
func (p *packet) transport() []byte { return p.data[p.header:] }

// pseudo is the sum of the pseudo-header.
func (p *packet) pseudo(length int) uint32 {
	addresses := p.data[ipv4Src:ipv4Len]
	if p.header == ipv6Len && p.data[0]>>4 == 6 {
		addresses = p.data[ipv6Src:ipv6Len]
	}
	return sum(addresses, uint32(p.protocol)+uint32(length>>16)+uint32(length&0xffff))
}

// checksum returns where the checksum of what follows the IP header is, and whether it covers a pseudo-header; -1 if it
// has none that we know.
func (p *packet) checksum() (at int, pseudo bool) {
	length := len(p.transport())
	six := p.data[0]>>4 == 6
	switch {
	case !p.whole:
	case p.protocol == unix.IPPROTO_TCP && length >= tcpLen:
		return tcpCheck, true
	case p.protocol == unix.IPPROTO_UDP && length >= udpLen:
		return udpCheck, true
	case p.protocol == unix.IPPROTO_ICMPV6 && six && length >= udpLen:
		return icmpCheck, true
	case p.protocol == unix.IPPROTO_ICMP && !six && length >= udpLen:
		return icmpCheck, false
	}
	return -1, false
}

// complete calculates the checksum of a packet that has only that of its pseudo-header yet, as it has on its way to
// hardware that does the rest, or within a host. It returns false if the checksum is wrong. (A packet with half of its
// checksum is told from one that was damaged by chance once in 65536 times.)
func (p *packet) complete() bool {
	at, covers := p.checksum()
	if at < 0 {
		return true
	}
	b := p.transport()
	var pseudo uint32
	if covers {
		pseudo = p.pseudo(len(b))
	}
	has := binary.BigEndian.Uint16(b[at:])
	switch {
	case p.protocol == unix.IPPROTO_UDP && has == 0 && p.data[0]>>4 == 4: // there is none
		return true
	case fold(sum(b, pseudo)) == 0xffff:
		return true
	case !covers || has != fold(pseudo) || p.protocol == unix.IPPROTO_UDP && int(binary.BigEndian.Uint16(b[4:])) != len(b):
		return false
	}
	p.setChecksum(at, pseudo)
	return true
}

func (p *packet) setChecksum(at int, pseudo uint32) {
	b := p.transport()
	binary.BigEndian.PutUint16(b[at:], 0)
	check := ^fold(sum(b, pseudo))
	if check == 0 && p.protocol == unix.IPPROTO_UDP {
		check = 0xffff
	}
	binary.BigEndian.PutUint16(b[at:], check)
}

// split returns the segments of a TCP packet that is too long for a link; nil if it can't be split. How another
// protocol's packet was split before can't be known.
func (p *packet) split(mtu int) [][]byte {
	b := p.transport()
	if !p.whole || p.protocol != unix.IPPROTO_TCP || len(b) < tcpLen {
		return nil
	}
	header := p.header + int(b[tcpOff]>>4)*4
	size := mtu - header
	if header < p.header+tcpLen || header > len(p.data) || size < 1 {
		return nil
	}
	var parts [][]byte
	seq := binary.BigEndian.Uint32(b[tcpSeq:])
	for at := header; at < len(p.data); at += size {
		end := min(at+size, len(p.data))
		part := packet{header: p.header, protocol: p.protocol, whole: true}
		part.data = append(slices.Clone(p.data[:header]), p.data[at:end]...)
		t := part.transport()
		binary.BigEndian.PutUint32(t[tcpSeq:], seq+uint32(at-header))
		if end < len(p.data) {
			t[tcpFlags] &^= tcpFIN | tcpPSH
		}
		if at > header {
			t[tcpFlags] &^= tcpCWR
		}
		part.setLength(uint16(len(parts)))
		part.setChecksum(tcpCheck, part.pseudo(len(t)))
		parts = append(parts, part.data)
	}
	return parts
}

// setLength has the IP header say how long the packet is, which is the nth of those that it was split into.
func (p *packet) setLength(n uint16) {
	d := p.data
	if d[0]>>4 == 6 {
		binary.BigEndian.PutUint16(d[ipv6Payload:], uint16(len(d)-ipv6Len))
		return
	}
	binary.BigEndian.PutUint16(d[ipv4Total:], uint16(len(d)))
	binary.BigEndian.PutUint16(d[ipv4ID:], binary.BigEndian.Uint16(d[ipv4ID:])+n)
	binary.BigEndian.PutUint16(d[ipv4Check:], 0)
	binary.BigEndian.PutUint16(d[ipv4Check:], ^fold(sum(d[:p.header], 0)))
}

// sum adds 16-bit words (RFC 1071).
func sum(b []byte, s uint32) uint32 {
	for len(b) >= 2 {
		s += uint32(b[0])<<8 | uint32(b[1])
		s = s&0xffff + s>>16
		b = b[2:]
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	return s
}

func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}
