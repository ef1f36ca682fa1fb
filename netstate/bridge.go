package netstate

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Forwarding entries. They are neighbours of family AF_BRIDGE, of three sorts: entries of a bridge for a port
// (NDA_MASTER is the bridge) or for itself, a vxlan's own entries with a destination, and the extra unicast
// addresses that any device accepts.

// fdbCarried reports whether a forwarding entry has a meaning elsewhere. The multicast addresses that a device
// listens to follow from memberships, which are the kernel's or a socket's.
func fdbCarried(m rawnl.Message) bool {
	n, err := parseNeigh(m)
	if err != nil || n.family() != unix.AF_BRIDGE {
		return false
	}
	for a := range rawnl.Each(n.attrs) {
		switch a.Kind() {
		case unix.NDA_MASTER, unix.NDA_DST, ndaNHID:
			return true
		}
	}
	mac := n.lladdr()
	return len(mac) > 0 && mac[0]&1 == 0
}

// learnedFDB reports whether an entry was learned from traffic and will age out.
func learnedFDB(n *neighMsg) bool {
	return n.state()&(unix.NUD_PERMANENT|unix.NUD_NOARP) == 0 && n.flags()&unix.NTF_EXT_LEARNED == 0
}

func normalizeFDB(m rawnl.Message) rawnl.Message {
	n, err := parseNeigh(m)
	if err != nil {
		return m
	}
	out := n.without(unix.RTM_NEWNEIGH, 0, unix.NDA_CACHEINFO, unix.NDA_LINK_NETNSID, ndaFDBExtAttrs)
	if n.state()&neighLearned != 0 {
		binary.NativeEndian.PutUint16(out.Data[8:], unix.NUD_REACHABLE)
	}
	out.Data[10] &^= unix.NTF_OFFLOADED
	return out
}

// fdbInput turns a dumped entry into a request of the given type. Whose table is meant is a flag in the
// request and an attribute in the dump.
func fdbInput(m rawnl.Message, typ, flags uint16) rawnl.Message {
	n, err := parseNeigh(normalizeFDB(m))
	if err != nil {
		return m
	}
	out := n.without(typ, flags, unix.NDA_MASTER)
	if master := rawnl.Get(n.attrs, unix.NDA_MASTER); master != nil {
		if int32(rawnl.Uint32(master)) == n.index() {
			out.Data[10] |= unix.NTF_SELF
		} else {
			out.Data[10] |= unix.NTF_MASTER
		}
	}
	return out
}

func fdbAdd(m rawnl.Message) rawnl.Message {
	return fdbInput(m, unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_APPEND)
}

func fdbDelete(m rawnl.Message) rawnl.Message { return fdbInput(m, unix.RTM_DELNEIGH, 0) }

// Multicast forwarding entries. A dump has one message for each bridge (struct br_port_msg, MDBA_MDB,
// MDBA_MDB_ENTRY, MDBA_MDB_ENTRY_INFO); a State has one for each entry, nested in the same way.

// splitMDB returns the permanent entries of a dumped message; the others were learned from reports of the
// members, which repeat them.
func splitMDB(m rawnl.Message) []rawnl.Message {
	hdr, attrs, err := split(m, sizeofBridgePortMsg)
	if err != nil {
		return nil
	}
	hdr = slices.Clone(hdr)
	hdr[0] = unix.AF_BRIDGE // a dump leaves it out, a request needs it
	var out []rawnl.Message
	for _, mdb := range only(attrs, mdbaMDB) {
		for entry := range rawnl.Each(mdb.Data) {
			for info := range rawnl.Each(entry.Data) {
				if len(info.Data) < sizeofBridgeMDBEntry || info.Data[4] != mdbPermanent {
					continue
				}
				out = append(out, join(unix.RTM_NEWMDB, 0, hdr, []rawnl.Attr{nest(mdbaMDB, nest(mdbaMDBEntry, info))}))
			}
		}
	}
	return out
}

// mdbEntry returns the struct br_mdb_entry of a split message and the attributes that follow it.
func mdbEntry(m rawnl.Message) (entry []byte, attrs []rawnl.Attr, ok bool) {
	if len(m.Data) < sizeofBridgePortMsg {
		return nil, nil, false
	}
	info := rawnl.Get(rawnl.Get(rawnl.Get(m.Data[sizeofBridgePortMsg:], mdbaMDB), mdbaMDBEntry), mdbaMDBEntryInfo)
	if len(info) < sizeofBridgeMDBEntry {
		return nil, nil, false
	}
	attrs, err := rawnl.ParseAttrs(info[sizeofBridgeMDBEntry:])
	return info[:sizeofBridgeMDBEntry], attrs, err == nil
}

// normalizeMDB removes the timer and the flags, which report on offloading and on sources.
func normalizeMDB(m rawnl.Message) rawnl.Message {
	entry, attrs, ok := mdbEntry(m)
	if !ok {
		return m
	}
	entry = slices.Clone(entry)
	entry[5] = 0
	info := rawnl.Attr{Type: mdbaMDBEntryInfo, Data: rawnl.AppendAttrs(entry, rawnl.Without(attrs, mdbaMDBEattrTimer))}
	return join(unix.RTM_NEWMDB, 0, m.Data[:sizeofBridgePortMsg], []rawnl.Attr{nest(mdbaMDB, nest(mdbaMDBEntry, info))})
}

func mdbInput(m rawnl.Message, typ, flags uint16) rawnl.Message {
	entry, attrs, ok := mdbEntry(normalizeMDB(m))
	if !ok {
		return m
	}
	var set []rawnl.Attr
	source, hasSource := rawnl.Find(attrs, mdbaMDBEattrSource)
	if hasSource {
		set = append(set, rawnl.Attr{Type: mdbeAttrSource, Data: source})
	}
	if typ == unix.RTM_NEWMDB {
		for _, a := range attrs {
			switch {
			case a.Kind() == mdbaMDBEattrRtprot:
				set = append(set, rawnl.Attr{Type: mdbeAttrRtprot, Data: a.Data})
			case a.Kind() == mdbaMDBEattrGroupMode && !hasSource:
				set = append(set, rawnl.Attr{Type: mdbeAttrGroupMode, Data: a.Data})
			case a.Kind() == mdbaMDBEattrSrcList && !hasSource:
				set = append(set, nest(mdbeAttrSrcList, mdbSources(a.Data)...))
			}
		}
	}
	body := []rawnl.Attr{{Type: mdbaSetEntry, Data: entry}}
	if len(set) > 0 {
		body = append(body, nest(mdbaSetEntryAttrs, set...))
	}
	return join(typ, flags, m.Data[:sizeofBridgePortMsg], body)
}

// mdbSources keeps the addresses of a dumped source list; the timers beside them are the kernel's.
func mdbSources(list []byte) []rawnl.Attr {
	var out []rawnl.Attr
	for source := range rawnl.Each(list) {
		out = append(out, nest(source.Kind(), rawnl.Attr{Type: mdbSourceAddress, Data: rawnl.Get(source.Data, mdbSourceAddress)}))
	}
	return out
}

func mdbAdd(m rawnl.Message) rawnl.Message {
	return mdbInput(m, unix.RTM_NEWMDB, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
}

func mdbDelete(m rawnl.Message) rawnl.Message { return mdbInput(m, unix.RTM_DELMDB, 0) }

// VLAN tables. A dump of links of family AF_BRIDGE has in IFLA_AF_SPEC one IFLA_BRIDGE_VLAN_INFO for each VLAN
// of a port or of a bridge itself.

// tidyVLANs reduces a dumped message to the VLAN table; false if it has none.
func tidyVLANs(m rawnl.Message) (rawnl.Message, bool) {
	hdr, attrs, err := split(m, unix.SizeofIfInfomsg)
	if err != nil {
		return m, false
	}
	spec, _ := rawnl.Find(attrs, unix.IFLA_AF_SPEC)
	inner, err := rawnl.ParseAttrs(spec)
	if err != nil {
		return m, false
	}
	inner = only(inner, iflaBridgeVlanInfo, iflaBridgeVlanTunnel)
	if len(inner) == 0 {
		return m, false
	}
	out := join(unix.RTM_NEWLINK, 0, hdr, append(only(attrs, unix.IFLA_IFNAME, unix.IFLA_MASTER), nest(unix.IFLA_AF_SPEC, inner...)))
	clear(out.Data[8:16]) // flags, which belong to the link
	return out, true
}

// vlanInput turns a VLAN table into a request. A bridge's own table is addressed with "self".
func vlanInput(m rawnl.Message, typ uint16) rawnl.Message {
	hdr, attrs, err := split(m, unix.SizeofIfInfomsg)
	if err != nil {
		return m
	}
	spec, _ := rawnl.Find(attrs, unix.IFLA_AF_SPEC)
	inner, err := rawnl.ParseAttrs(spec)
	if err != nil {
		return m
	}
	master, ok := rawnl.Find(attrs, unix.IFLA_MASTER)
	if index := int32(binary.NativeEndian.Uint32(hdr[4:])); !ok || int32(rawnl.Uint32(master)) == index {
		inner = append([]rawnl.Attr{{Type: iflaBridgeFlags, Data: binary.NativeEndian.AppendUint16(nil, bridgeFlagsSelf)}}, inner...)
	}
	return join(typ, 0, hdr, []rawnl.Attr{nest(unix.IFLA_AF_SPEC, inner...)})
}
