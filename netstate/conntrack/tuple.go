package conntrack

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/nfnl"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// addrs returns the two addresses of a tuple; invalid ones where it has none.
func addrs(tuple []byte) (src, dst netip.Addr) {
	for a := range rawnl.Each(rawnl.Get(tuple, tupleIP)) {
		addr, _ := netip.AddrFromSlice(a.Data)
		switch a.Kind() {
		case ipV4Src, ipV6Src:
			src = addr
		case ipV4Dst, ipV6Dst:
			dst = addr
		}
	}
	return src, dst
}

// plainReply returns the reply tuple that a connection would have without address translation: that of
// the captured reply with the original's addresses, ports and ICMP id, source and destination swapped.
func plainReply(orig, reply []byte) []byte {
	ip, proto := rawnl.Get(orig, tupleIP), rawnl.Get(orig, tupleProto)
	take := func(a rawnl.Attr, from []byte, kind uint16) rawnl.Attr {
		if data := rawnl.Get(from, kind); data != nil {
			a.Data = data
		}
		return a
	}
	return rawnl.Rewrite(reply, func(a rawnl.Attr) (rawnl.Attr, bool) {
		switch a.Kind() {
		case tupleIP:
			a.Data = rawnl.Rewrite(a.Data, func(f rawnl.Attr) (rawnl.Attr, bool) {
				switch f.Kind() {
				case ipV4Src, ipV6Src: // each destination follows its source
					return take(f, ip, f.Kind()+1), true
				case ipV4Dst, ipV6Dst:
					return take(f, ip, f.Kind()-1), true
				}
				return f, true
			})
		case tupleProto:
			a.Data = rawnl.Rewrite(a.Data, func(f rawnl.Attr) (rawnl.Attr, bool) {
				switch f.Kind() {
				case protoSrcPort:
					return take(f, proto, protoDstPort), true
				case protoDstPort:
					return take(f, proto, protoSrcPort), true
				case protoICMPID, protoICMPv6ID:
					return take(f, proto, f.Kind()), true
				}
				return f, true
			})
		}
		return a, true
	})
}

// end is one end of a connection as NAT sees it: an address, and a port or an ICMP id if the protocol has
// one.
type end struct {
	addr []byte
	port []byte
}

func (e end) equal(o end) bool { return bytes.Equal(e.addr, o.addr) && bytes.Equal(e.port, o.port) }

// source returns the end that sends a tuple's packets.
func source(tuple []byte) end {
	ip, proto := rawnl.Get(tuple, tupleIP), rawnl.Get(tuple, tupleProto)
	return end{first(ip, ipV4Src, ipV6Src), first(proto, protoSrcPort)}
}

// destination returns the end that receives them. An ICMP id belongs to it: masquerading a ping changes
// the id that its answers have.
func destination(tuple []byte) end {
	ip, proto := rawnl.Get(tuple, tupleIP), rawnl.Get(tuple, tupleProto)
	return end{first(ip, ipV4Dst, ipV6Dst), first(proto, protoDstPort, protoICMPID, protoICMPv6ID)}
}

func first(b []byte, kinds ...uint16) []byte {
	for _, k := range kinds {
		if data := rawnl.Get(b, k); data != nil {
			return data
		}
	}
	return nil
}

// appendNAT appends a translation to exactly one address and port. The port is given even where only the
// address changes: the kernel would else be free to pick one (nf_nat_l4proto_unique_tuple).
func appendNAT(b []byte, kind uint16, to end) []byte {
	lo, hi := uint16(natV4Min), uint16(natV4Max)
	if len(to.addr) == 16 {
		lo, hi = natV6Min, natV6Max
	}
	nat := rawnl.AppendAttr(nil, lo, to.addr)
	nat = rawnl.AppendAttr(nat, hi, to.addr)
	if to.port != nil {
		ports := rawnl.AppendAttr(nil, natPortMin, to.port)
		ports = rawnl.AppendAttr(ports, natPortMax, to.port)
		nat = rawnl.AppendAttr(nat, natProto|unix.NLA_F_NESTED, ports)
	}
	return rawnl.AppendAttr(b, kind|unix.NLA_F_NESTED, nat)
}

// describeTuple renders a tuple as `conntrack -L` does.
func describeTuple(tuple []byte) string {
	src, dst := addrs(tuple)
	var s strings.Builder
	s.WriteString(fmt.Sprintf("src=%s dst=%s", src, dst))
	proto := rawnl.Get(tuple, tupleProto)
	for _, f := range []struct {
		kind  uint16
		label string
	}{
		{protoSrcPort, "sport"},
		{protoDstPort, "dport"},
		{protoICMPType, "type"},
		{protoICMPCode, "code"},
		{protoICMPID, "id"},
		{protoICMPv6Typ, "type"},
		{protoICMPv6Cod, "code"},
		{protoICMPv6ID, "id"},
	} {
		if v := rawnl.Get(proto, f.kind); v != nil {
			s.WriteString(fmt.Sprintf(" %s=%d", f.label, nfnl.Number(v)))
		}
	}
	if zone := rawnl.Get(tuple, tupleZone); zone != nil {
		s.WriteString(fmt.Sprintf(" zone=%d", nfnl.Number(zone)))
	}
	return s.String()
}
