// Package wire says on the wire where an address is now, and asks whether somebody else has it: gratuitous
// ARP (RFC 5227) and unsolicited neighbour advertisements (RFC 4861) from the live copy, and probes for the
// same addresses before a copy is brought to life.
package wire

import (
	"encoding/binary"
	"net"
	"net/netip"
)

const (
	etherARP  = 0x0806
	etherIPv6 = 0x86dd

	arpRequest = 1
	arpReply   = 2

	icmpv6                = 58
	neighborSolicitation  = 135
	neighborAdvertisement = 136
	flagOverride          = 0x20
	optionTargetLinkAddr  = 2
)

var (
	broadcast   = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	allNodesMAC = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
	allNodes    = netip.MustParseAddr("ff02::1")
)

// announcement is the frame that tells a link where an address is: a gratuitous ARP request, which all
// stacks that know the address take note of, or an unsolicited neighbour advertisement with the override flag.
func announcement(addr netip.Addr, mac net.HardwareAddr) []byte {
	if addr.Is4() {
		return arp(arpRequest, mac, addr, broadcast, make(net.HardwareAddr, 6), addr)
	}
	body := make([]byte, 0, 32)
	body = append(body, neighborAdvertisement, 0, 0, 0, flagOverride, 0, 0, 0)
	body = append(body, addr.AsSlice()...)
	body = append(body, optionTargetLinkAddr, 1)
	body = append(body, mac...)
	return ipv6(mac, allNodesMAC, addr, allNodes, body)
}

// probe is the frame that asks who has an address without claiming it: an ARP probe with the sender's
// address unset (RFC 5227, 2.1.1), or a neighbour solicitation from the unspecified address, as for
// duplicate address detection (RFC 4862, 5.4.2).
func probe(addr netip.Addr, mac net.HardwareAddr) []byte {
	if addr.Is4() {
		return arp(arpRequest, mac, netip.IPv4Unspecified(), broadcast, make(net.HardwareAddr, 6), addr)
	}
	a := addr.As16()
	group := netip.AddrFrom16([16]byte{0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a[13], a[14], a[15]})
	groupMAC := net.HardwareAddr{0x33, 0x33, 0xff, a[13], a[14], a[15]}
	body := make([]byte, 0, 24)
	body = append(body, neighborSolicitation, 0, 0, 0, 0, 0, 0, 0)
	body = append(body, a[:]...)
	return ipv6(mac, groupMAC, netip.IPv6Unspecified(), group, body)
}

// claim reads a frame that says where an address is; ok is false for any other frame.
func claim(frame []byte) (addr netip.Addr, mac net.HardwareAddr, ok bool) {
	if len(frame) < 14 {
		return netip.Addr{}, nil, false
	}
	body := frame[14:]
	switch binary.BigEndian.Uint16(frame[12:]) {
	case etherARP:
		if len(body) < 28 || body[4] != 6 || body[5] != 4 {
			return netip.Addr{}, nil, false
		}
		sender := netip.AddrFrom4([4]byte(body[14:18]))
		return sender, net.HardwareAddr(body[8:14]), !sender.IsUnspecified()
	case etherIPv6:
		const header = 40
		if len(body) < header+24 || body[6] != icmpv6 || body[header] != neighborAdvertisement {
			return netip.Addr{}, nil, false
		}
		return netip.AddrFrom16([16]byte(body[header+8 : header+24])), net.HardwareAddr(frame[6:12]), true
	}
	return netip.Addr{}, nil, false
}

func arp(op uint16, srcMAC net.HardwareAddr, src netip.Addr, dst, targetMAC net.HardwareAddr, target netip.Addr) []byte {
	b := ethernet(srcMAC, dst, etherARP)
	b = append(b, 0, 1, 0x08, 0, 6, 4) // Ethernet, IPv4, their address lengths
	b = binary.BigEndian.AppendUint16(b, op)
	b = append(b, srcMAC...)
	b = append(b, src.AsSlice()...)
	b = append(b, targetMAC...)
	return append(b, target.AsSlice()...)
}

func ipv6(srcMAC, dstMAC net.HardwareAddr, src, dst netip.Addr, icmp []byte) []byte {
	binary.BigEndian.PutUint16(icmp[2:], checksum(src, dst, icmp))
	b := ethernet(srcMAC, dstMAC, etherIPv6)
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(icmp)))
	b = append(b, icmpv6, 255) // the hop limit proves that the sender is on the link (RFC 4861, 7.1)
	b = append(b, src.AsSlice()...)
	b = append(b, dst.AsSlice()...)
	return append(b, icmp...)
}

func ethernet(src, dst net.HardwareAddr, typ uint16) []byte {
	b := make([]byte, 0, 128)
	b = append(b, dst...)
	b = append(b, src...)
	return binary.BigEndian.AppendUint16(b, typ)
}

// checksum is ICMPv6's, with its pseudo-header (RFC 8200, 8.1).
func checksum(src, dst netip.Addr, icmp []byte) uint16 {
	var sum uint32
	add := func(b []byte) {
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		if len(b)%2 == 1 {
			sum += uint32(b[len(b)-1]) << 8
		}
	}
	add(src.AsSlice())
	add(dst.AsSlice())
	sum += uint32(len(icmp)) + icmpv6
	add(icmp)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
