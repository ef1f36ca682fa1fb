package netstate

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// infinity is INFINITY_LIFE_TIME of the kernel's address lifetimes.
const infinity = 0xffffffff

// addressMsg is a decoded RTM_NEWADDR message. Its slices alias the message.
type addressMsg struct {
	family, bits, scope uint8
	index               int32
	flags               uint32
	attrs               []rawnl.Attr
}

func parseAddress(m rawnl.Message) (addressMsg, error) {
	if len(m.Data) < unix.SizeofIfAddrmsg {
		return addressMsg{}, errShort
	}
	attrs, err := rawnl.ParseAttrs(m.Data[unix.SizeofIfAddrmsg:])
	if err != nil {
		return addressMsg{}, err
	}
	a := addressMsg{
		family: m.Data[0],
		bits:   m.Data[1],
		flags:  uint32(m.Data[2]),
		scope:  m.Data[3],
		index:  int32(binary.NativeEndian.Uint32(m.Data[4:])),
		attrs:  attrs,
	}
	if b, ok := rawnl.Find(attrs, unix.IFA_FLAGS); ok {
		a.flags = rawnl.Uint32(b)
	}
	return a, nil
}

// local returns the address itself and, for a point-to-point address, the other end.
func (a *addressMsg) local() (addr, peer netip.Addr) {
	remote, _ := rawnl.Find(a.attrs, unix.IFA_ADDRESS)
	own, ok := rawnl.Find(a.attrs, unix.IFA_LOCAL)
	if !ok {
		own = remote
	}
	addr, _ = netip.AddrFromSlice(own)
	if p, ok := netip.AddrFromSlice(remote); ok && p != addr {
		peer = p
	}
	return addr, peer
}

func decodeAddress(m rawnl.Message, names linkNames) (Address, bool) {
	a, err := parseAddress(m)
	if err != nil {
		return Address{}, false
	}
	addr, peer := a.local()
	if !addr.IsValid() {
		return Address{}, false
	}
	return Address{
		Device: names.of(a.index),
		Prefix: netip.PrefixFrom(addr, int(a.bits)),
		Peer:   peer,
		Scope:  a.scope,
		Flags:  a.flags,
	}, true
}

// encode builds the message with other flags and attributes. The flags go into the attribute alone: the
// header's field holds 8 bits of them.
func (a *addressMsg) encode(typ uint16, index int32, flags uint32, attrs []rawnl.Attr) rawnl.Message {
	b := []byte{a.family, a.bits, 0, a.scope}
	b = binary.NativeEndian.AppendUint32(b, uint32(index))
	if typ == unix.RTM_NEWADDR {
		attrs = append(slices.Clone(attrs), u32Attr(unix.IFA_FLAGS, flags))
	}
	return rawnl.Message{Type: typ, Data: rawnl.AppendAttrs(b, attrs)}
}

// addressInput are the flags that a request can set; the kernel derives the others.
const addressInput = unix.IFA_F_NODAD | unix.IFA_F_HOMEADDRESS | unix.IFA_F_MANAGETEMPADDR |
	unix.IFA_F_NOPREFIXROUTE | unix.IFA_F_MCAUTOJOIN

// addressAdd turns a dumped address into a request. The extra flags are set in addition to its own.
func addressAdd(a *addressMsg, extra uint32) rawnl.Message {
	m := a.encode(unix.RTM_NEWADDR, a.index, a.flags&addressInput|extra,
		rawnl.Without(a.attrs, unix.IFA_FLAGS, unix.IFA_TARGET_NETNSID))
	m.Flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	return m
}

// addressSettle clears the extra flags of [addressAdd] from an IPv6 address that is in place. No duplicate
// address detection follows: that starts only for tentative addresses.
func addressSettle(a *addressMsg) rawnl.Message {
	m := addressAdd(a, 0)
	m.Flags = unix.NLM_F_REPLACE
	return m
}

func addressDelete(a *addressMsg) rawnl.Message {
	return a.encode(unix.RTM_DELADDR, a.index, 0, only(a.attrs, unix.IFA_LOCAL, unix.IFA_ADDRESS, unix.IFA_LABEL))
}

// normalizeAddress removes what changes by itself: lifetimes count down (that they are finite is kept), and
// tentative, deprecated and the like follow from time and from other machines.
func normalizeAddress(m rawnl.Message) rawnl.Message {
	a, err := parseAddress(m)
	if err != nil {
		return m
	}
	attrs := rawnl.Without(a.attrs, unix.IFA_FLAGS, unix.IFA_CACHEINFO)
	if b, ok := rawnl.Find(a.attrs, unix.IFA_CACHEINFO); ok && len(b) >= 8 {
		for i, v := range []uint32{rawnl.Uint32(b), rawnl.Uint32(b[4:])} {
			if v != infinity {
				attrs = append(attrs, u32Attr(uint16(lifetimeMark+i), 0))
			}
		}
	}
	const volatile = unix.IFA_F_TENTATIVE | unix.IFA_F_OPTIMISTIC | unix.IFA_F_DADFAILED | unix.IFA_F_DEPRECATED |
		unix.IFA_F_STABLE_PRIVACY
	return a.encode(unix.RTM_NEWADDR, a.index, a.flags&^volatile, attrs)
}
