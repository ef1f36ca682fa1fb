package netstate

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Tables of identifiers that a device keeps beside its link: the options of a bridge's VLANs and the VNI filter
// of a vxlan. Their messages have the same header (struct br_vlan_msg, struct tunnel_msg: family, flags, 2
// reserved, ifindex) and one attribute for each identifier or range of them.

const sizeofTableMsg = 8

func tableIndex(m rawnl.Message) int32 {
	if len(m.Data) < sizeofTableMsg {
		return 0
	}
	return int32(binary.NativeEndian.Uint32(m.Data[4:]))
}

// tidyTable applies a function to each entry of a dumped table and keeps those for which it is true; the result
// is false if none is left.
func tidyTable(m rawnl.Message, tidy func(entry *rawnl.Attr) bool) (rawnl.Message, bool) {
	hdr, attrs, err := split(m, sizeofTableMsg)
	if err != nil {
		return m, false
	}
	var entries []rawnl.Attr
	for _, a := range attrs {
		a.Type |= unix.NLA_F_NESTED
		if tidy(&a) {
			entries = append(entries, a)
		}
	}
	return join(m.Type, 0, hdr, entries), len(entries) > 0
}

// tidyVLANOptions keeps the options of VLANs that are not as they are in a new VLAN. Whether the VLANs are there
// is the matter of [KindBridgeVLAN].
func tidyVLANOptions(m rawnl.Message) (rawnl.Message, bool) {
	return tidyTable(m, func(entry *rawnl.Attr) bool {
		attrs, err := rawnl.ParseAttrs(entry.Data)
		if err != nil {
			return false
		}
		ids, usual := []uint16{vlandbInfo, vlandbRange}, usualVLAN
		if entry.Kind() == vlandbGlobalOptions {
			ids, usual = []uint16{vlandbGlobalID, vlandbGlobalRange}, usualGlobalVLAN
		}
		options := slices.DeleteFunc(slices.Clone(attrs), func(a rawnl.Attr) bool {
			values, settable := usual[a.Kind()]
			value, _ := number(a.Data, false)
			return !settable || slices.Contains(values, value)
		})
		list := append(only(attrs, ids...), options...)
		if entry.Kind() == vlandbEntry {
			for i, a := range list {
				if a.Kind() == vlandbInfo && len(a.Data) == 4 { // struct bridge_vlan_info: flags, id
					list[i].Data = binary.NativeEndian.AppendUint16(nil, bridgeVLANInfoOnlyOptions)
					list[i].Data = append(list[i].Data, a.Data[2:]...)
				}
			}
		}
		entry.Data = rawnl.EncodeAttrs(list)
		return len(options) > 0
	})
}

// usualVLAN has the settable options of a port's VLAN and their values in a new one: forwarding, multicast
// routers found by queries, no limit of groups, no suppression of neighbour discovery.
var usualVLAN = map[uint16][]uint64{
	vlandbState: {3}, vlandbMcastRouter: {1}, vlandbMcastMaxGroups: {0}, vlandbNeighSuppress: {0},
}

// usualGlobalVLAN has the settable options that a VLAN has in a bridge as a whole, with their values in a new one.
// Times are in hundredths of a second, one of them rounded to the kernel's ticks.
var usualGlobalVLAN = map[uint16][]uint64{
	3:  {1},          // BRIDGE_VLANDB_GOPTS_MCAST_SNOOPING
	4:  {2},          // MCAST_IGMP_VERSION
	5:  {1},          // MCAST_MLD_VERSION
	6:  {2},          // MCAST_LAST_MEMBER_CNT
	7:  {2},          // MCAST_STARTUP_QUERY_CNT
	8:  {100},        // MCAST_LAST_MEMBER_INTVL
	10: {26000},      // MCAST_MEMBERSHIP_INTVL
	11: {25500},      // MCAST_QUERIER_INTVL
	12: {12500},      // MCAST_QUERY_INTVL
	13: {1000},       // MCAST_QUERY_RESPONSE_INTVL
	14: {3124, 3125}, // MCAST_STARTUP_QUERY_INTVL
	15: {0},          // MCAST_QUERIER
	18: {0},          // MSTI
}

// tidyVNIs removes the statistics from a VNI filter.
func tidyVNIs(m rawnl.Message) (rawnl.Message, bool) {
	return tidyTable(m, func(entry *rawnl.Attr) bool {
		attrs, err := rawnl.ParseAttrs(entry.Data)
		entry.Data = rawnl.EncodeAttrs(rawnl.Without(attrs, vxlanVNIFilterEntryStats))
		return err == nil
	})
}

// tables returns the operations that state the tables of a kind again. The tidied dump is the request.
func (p *planner) tables(kind Kind) []Op {
	return slices.DeleteFunc(p.replay(kind, func(m rawnl.Message) rawnl.Message { return m }), func(op Op) bool {
		return p.byIdx[tableIndex(op.Object)] == nil
	})
}
