package netstate

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// split separates the fixed header of a message from its attributes.
func split(m rawnl.Message, header int) (hdr []byte, attrs []rawnl.Attr, err error) {
	if len(m.Data) < header {
		return nil, nil, errShort
	}
	attrs, err = rawnl.ParseAttrs(m.Data[header:])
	return m.Data[:header], attrs, err
}

// join is the inverse of split; it copies the header.
func join(typ, flags uint16, hdr []byte, attrs []rawnl.Attr) rawnl.Message {
	return rawnl.Message{Type: typ, Flags: flags, Data: rawnl.AppendAttrs(slices.Clone(hdr), attrs)}
}

// Sizes of the fixed headers.
const (
	sizeofRuleHdr   = 12 // struct fib_rule_hdr
	sizeofNdMsg     = 12 // struct ndmsg
	sizeofNhMsg     = 8  // struct nhmsg
	sizeofAddrLabel = 12 // struct ifaddrlblmsg
)

// Rules. struct fib_rule_hdr: family, dst_len, src_len, tos, table, 2 reserved, action, flags.

func normalizeRule(m rawnl.Message) rawnl.Message {
	hdr, attrs, err := split(m, sizeofRuleHdr)
	if err != nil {
		return m
	}
	out := join(unix.RTM_NEWRULE, 0, hdr, attrs)
	// Whether a named device exists, or a goto has its target, is the kernel's finding.
	flags := binary.NativeEndian.Uint32(hdr[8:])
	binary.NativeEndian.PutUint32(out.Data[8:], flags&(fibRulePermanent|fibRuleInvert|fibRuleFindSaddr))
	return out
}

func ruleAdd(m rawnl.Message) rawnl.Message {
	m = ruleWithPriority(m)
	m.Flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	return m
}

func ruleDelete(m rawnl.Message) rawnl.Message {
	m = ruleWithPriority(m)
	m.Type = unix.RTM_DELRULE
	return m
}

// ruleWithPriority says of a dumped rule that its preference is 0, which a dump leaves out: else the kernel chooses one.
func ruleWithPriority(m rawnl.Message) rawnl.Message {
	m = normalizeRule(m)
	if len(m.Data) >= sizeofRuleHdr && rawnl.Get(m.Data[sizeofRuleHdr:], unix.FRA_PRIORITY) == nil {
		m.Data = rawnl.AppendAttr(slices.Clone(m.Data), unix.FRA_PRIORITY, make([]byte, 4))
	}
	return m
}

// Nexthops. struct nhmsg: family, scope, protocol, reserved, flags.

func normalizeNexthop(m rawnl.Message) rawnl.Message {
	hdr, attrs, err := split(m, sizeofNhMsg)
	if err != nil {
		return m
	}
	attrs = rawnl.Without(attrs, nhaOpFlags) // of a request for statistics
	for i, a := range attrs {
		if a.Kind() == nhaResGroup {
			if inner, err := rawnl.ParseAttrs(a.Data); err == nil {
				attrs[i].Data = rawnl.EncodeAttrs(rawnl.Without(inner, nhaResGroupUnbalancedTime))
			}
		}
	}
	out := join(unix.RTM_NEWNEXTHOP, 0, hdr, attrs)
	flags := binary.NativeEndian.Uint32(hdr[4:])
	binary.NativeEndian.PutUint32(out.Data[4:], flags&unix.RTNH_F_ONLINK)
	out.Data[1] = 0 // the scope is derived from the gateway and refused on input
	return out
}

func nexthopAdd(m rawnl.Message) rawnl.Message {
	hdr, attrs, err := split(normalizeNexthop(m), sizeofNhMsg)
	if err != nil {
		return m
	}
	for i, a := range attrs {
		if a.Kind() == unix.NHA_ENCAP {
			attrs[i].Type |= unix.NLA_F_NESTED // required, and not set in a dump
		}
	}
	return join(unix.RTM_NEWNEXTHOP, unix.NLM_F_CREATE|unix.NLM_F_EXCL, hdr, attrs)
}

func nexthopDelete(m rawnl.Message) rawnl.Message {
	hdr, attrs, err := split(m, sizeofNhMsg)
	if err != nil {
		return m
	}
	return join(unix.RTM_DELNEXTHOP, 0, append([]byte{unix.AF_UNSPEC}, make([]byte, len(hdr)-1)...), only(attrs, unix.NHA_ID))
}

// isGroup reports whether a nexthop refers to others, which must exist before it.
func isGroup(m rawnl.Message) bool {
	_, attrs, err := split(m, sizeofNhMsg)
	if err != nil {
		return false
	}
	_, ok := rawnl.Find(attrs, unix.NHA_GROUP)
	return ok
}

// Neighbours. struct ndmsg: family, 3 of padding, ifindex, state, flags, type.

// neighMsg is a checked RTM_NEWNEIGH message. It aliases the message.
type neighMsg struct{ hdr, attrs []byte }

func parseNeigh(m rawnl.Message) (neighMsg, error) {
	if len(m.Data) < sizeofNdMsg {
		return neighMsg{}, errShort
	}
	n := neighMsg{hdr: m.Data[:sizeofNdMsg], attrs: m.Data[sizeofNdMsg:]}
	return n, rawnl.Check(n.attrs)
}

// without returns the message with another type and flags and without the attributes of some kinds.
func (n *neighMsg) without(typ, flags uint16, kinds ...uint16) rawnl.Message {
	data := append(make([]byte, 0, len(n.hdr)+len(n.attrs)), n.hdr...)
	for a := range rawnl.Each(n.attrs) {
		if !slices.Contains(kinds, a.Kind()) {
			data = rawnl.AppendAttr(data, a.Type, a.Data)
		}
	}
	return rawnl.Message{Type: typ, Flags: flags, Data: data}
}

func (n *neighMsg) family() uint8   { return n.hdr[0] }
func (n *neighMsg) index() int32    { return int32(binary.NativeEndian.Uint32(n.hdr[4:])) }
func (n *neighMsg) state() uint16   { return binary.NativeEndian.Uint16(n.hdr[8:]) }
func (n *neighMsg) flags() uint8    { return n.hdr[10] }
func (n *neighMsg) lladdr() []byte  { return rawnl.Get(n.attrs, unix.NDA_LLADDR) }
func (n *neighMsg) proxy() bool     { return n.flags()&unix.NTF_PROXY != 0 }
func (n *neighMsg) permanent() bool { return n.state()&unix.NUD_PERMANENT != 0 }

const neighLearned = unix.NUD_REACHABLE | unix.NUD_STALE | unix.NUD_DELAY | unix.NUD_PROBE

// carried reports whether a neighbour entry means anything elsewhere. Entries of state noarp are the
// kernel's own (multicast, broadcast); failed and incomplete ones are questions without an answer.
func (n *neighMsg) carried() bool {
	return n.proxy() || n.state()&(unix.NUD_PERMANENT|neighLearned) != 0
}

// tidyNeigh removes from a dumped entry when it was used, confirmed and updated, which is another time in every dump.
func tidyNeigh(m rawnl.Message) rawnl.Message {
	if len(m.Data) < sizeofNdMsg || rawnl.Get(m.Data[sizeofNdMsg:], unix.NDA_CACHEINFO) == nil {
		return m
	}
	attrs := rawnl.Rewrite(m.Data[sizeofNdMsg:], func(a rawnl.Attr) (rawnl.Attr, bool) {
		return a, a.Kind() != unix.NDA_CACHEINFO && a.Kind() != unix.NDA_PROBES
	})
	return rawnl.Message{Type: m.Type, Data: append(slices.Clone(m.Data[:sizeofNdMsg]), attrs...)}
}

// normalizeNeigh makes all states in which a learned entry is usable one: stale, which means that the
// entry is used at once and confirmed in the background.
func normalizeNeigh(m rawnl.Message) rawnl.Message {
	n, err := parseNeigh(m)
	if err != nil {
		return m
	}
	out := n.without(unix.RTM_NEWNEIGH, 0, unix.NDA_CACHEINFO, unix.NDA_PROBES)
	if n.state()&neighLearned != 0 {
		binary.NativeEndian.PutUint16(out.Data[8:], unix.NUD_STALE)
	}
	out.Data[10] &^= unix.NTF_OFFLOADED
	out.Data[11] = 0 // the type follows from the address
	return out
}

// neighAdd turns a dumped entry into a request. The dump of a proxy entry does not tell its state; ip(8) makes them
// permanent, without which the loss of a carrier removes them.
func neighAdd(m rawnl.Message) rawnl.Message {
	m = normalizeNeigh(m)
	m.Flags = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	if n, err := parseNeigh(m); err == nil && n.proxy() {
		binary.NativeEndian.PutUint16(m.Data[8:], unix.NUD_PERMANENT)
	}
	return m
}

func neighDelete(m rawnl.Message) rawnl.Message {
	hdr, attrs, err := split(m, sizeofNdMsg)
	if err != nil {
		return m
	}
	out := join(unix.RTM_DELNEIGH, 0, hdr, only(attrs, unix.NDA_DST))
	out.Data[10] &= unix.NTF_PROXY
	out.Data[8], out.Data[9], out.Data[11] = 0, 0, 0 // the state and the type, of which a strict kernel wants none
	return out
}

// Address labels. struct ifaddrlblmsg: family, reserved, prefixlen, flags, index, seq.

func normalizeAddrLabel(m rawnl.Message) rawnl.Message {
	hdr, attrs, err := split(m, sizeofAddrLabel)
	if err != nil {
		return m
	}
	out := join(unix.RTM_NEWADDRLABEL, 0, hdr, attrs)
	clear(out.Data[8:12]) // counts changes
	return out
}

func addrLabelAdd(m rawnl.Message) rawnl.Message {
	m = normalizeAddrLabel(m)
	m.Flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	return m
}

func addrLabelDelete(m rawnl.Message) rawnl.Message {
	m = normalizeAddrLabel(m)
	m.Type = unix.RTM_DELADDRLABEL
	return m
}
