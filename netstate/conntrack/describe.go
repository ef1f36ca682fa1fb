package conntrack

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/nsmigrate/nsmigrate/netstate/nfnl"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Describe renders a message as one line in the words of `conntrack -L`. It takes any message and is meant
// for people.
func Describe(m rawnl.Message) string {
	b := nfnl.Attrs(m)
	switch m.Type {
	case typeExpect:
		s := "expectation " + protoName(rawnl.Get(b, expectTuple)) + " " + describeTuple(rawnl.Get(b, expectTuple)) +
			" master " + describeTuple(rawnl.Get(b, expectMaster))
		if helper := rawnl.Get(b, expectHelper); helper != nil {
			s += " helper=" + rawnl.CString(helper)
		}
		return s
	case typeEntry, typeEntry | requestDelete:
		return "conntrack " + describeEntry(b)
	}
	return fmt.Sprintf("conntrack message %#x", m.Type)
}

func describeEntry(b []byte) string {
	orig, reply := rawnl.Get(b, ctaTupleOrig), rawnl.Get(b, ctaTupleReply)
	parts := []string{protoName(orig)}
	if state := rawnl.Get(rawnl.Get(rawnl.Get(b, ctaProtoinfo), protoinfoTCP), tcpState); state != nil {
		parts = append(parts, tcpStateName(nfnl.Number(state)))
	}
	parts = append(parts, describeTuple(orig))
	if reply != nil {
		parts = append(parts, "reply", describeTuple(reply))
	}
	for _, nat := range []struct {
		kind uint16
		name string
	}{{ctaNATDst, "dnat"}, {ctaNATSrc, "snat"}} {
		if data := rawnl.Get(b, nat.kind); data != nil {
			addr, _ := netip.AddrFromSlice(first(data, natV4Min, natV6Min))
			to := addr.String()
			if port := rawnl.Get(rawnl.Get(data, natProto), natPortMin); port != nil {
				to = netip.AddrPortFrom(addr, uint16(nfnl.Number(port))).String()
			}
			parts = append(parts, nat.name+"="+to)
		}
	}
	if status := statusNames(nfnl.Number(rawnl.Get(b, ctaStatus))); status != "" {
		parts = append(parts, "["+status+"]")
	}
	if mark := rawnl.Get(b, ctaMark); nfnl.Number(mark) != 0 {
		parts = append(parts, fmt.Sprintf("mark=%d", nfnl.Number(mark)))
	}
	if zone := rawnl.Get(b, ctaZone); zone != nil {
		parts = append(parts, fmt.Sprintf("zone=%d", nfnl.Number(zone)))
	}
	if labels := rawnl.Get(b, ctaLabels); labels != nil {
		parts = append(parts, "labels=0x"+hex.EncodeToString(labels))
	}
	if helper := rawnl.Get(rawnl.Get(b, ctaHelp), helpName); helper != nil {
		parts = append(parts, "helper="+rawnl.CString(helper))
	}
	if master := rawnl.Get(b, ctaTupleMaster); master != nil {
		parts = append(parts, "master", describeTuple(master))
	}
	return strings.Join(parts, " ")
}

func protoName(tuple []byte) string {
	number := nfnl.Number(rawnl.Get(rawnl.Get(tuple, tupleProto), protoNum))
	return cmp.Or(nfnl.Protocol(number), fmt.Sprintf("proto-%d", number))
}

func tcpStateName(state uint64) string {
	names := []string{"NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "CLOSE", "SYN_SENT2"}
	if state < uint64(len(names)) {
		return names[state]
	}
	return fmt.Sprintf("state-%d", state)
}

func statusNames(status uint64) string {
	var names []string
	for _, s := range []struct {
		bit  uint64
		name string
	}{
		{statusExpected, "EXPECTED"},
		{statusSeenReply, "SEEN_REPLY"},
		{statusAssured, "ASSURED"},
		{statusSrcNAT, "SRC_NAT"},
		{statusDstNAT, "DST_NAT"},
		{statusSeqAdjust, "SEQ_ADJUST"},
		{statusFixedTime, "FIXED_TIMEOUT"},
		{statusHelper, "HELPER"},
		{statusOffload, "OFFLOAD"},
	} {
		if status&s.bit != 0 {
			names = append(names, s.name)
		}
	}
	return strings.Join(names, ",")
}

// Normalize returns a message without what may differ between two equal entries, for comparison: the life
// that is left, the marks that translation was looked for and that a flowtable handles the entry, and of
// TCP's flags those that [Plan] changes and that say whether data is underway.
func Normalize(m rawnl.Message) rawnl.Message {
	if len(m.Data) < nfnl.HeaderLen {
		return m.Clone()
	}
	if m.Type == typeExpect {
		return request(m.Type, nfnl.Family(m), rawnl.EncodeAttrs(without(nfnl.Attrs(carried(m)), expectTimeout)))
	}
	data := rawnl.Rewrite(nfnl.Attrs(carried(m)), func(a rawnl.Attr) (rawnl.Attr, bool) {
		switch a.Kind() {
		case ctaTimeout:
			return a, false
		case ctaStatus:
			const volatile = statusSrcNATDone | statusDstNATDone | statusOffload | statusHWOffload
			a.Data = binary.BigEndian.AppendUint32(nil, uint32(nfnl.Number(a.Data))&^volatile)
		case ctaProtoinfo:
			a.Data = rawnl.Rewrite(a.Data, func(p rawnl.Attr) (rawnl.Attr, bool) {
				if p.Kind() == protoinfoTCP {
					p.Data = rawnl.Rewrite(p.Data, normalTCP)
				}
				return p, true
			})
		}
		return a, true
	})
	return request(m.Type, nfnl.Family(m), data)
}

func normalTCP(a rawnl.Attr) (rawnl.Attr, bool) {
	if (a.Kind() == tcpFlagsOrig || a.Kind() == tcpFlagsReply) && len(a.Data) == 2 {
		const volatile = tcpFlagBeLiberal | tcpFlagUnacked | tcpFlagMaxACKSet | tcpFlagChallenged
		a.Data = []byte{a.Data[0] &^ volatile, 0}
	}
	return a, true
}

// Filter returns the messages that have one of the addresses in a tuple: as source or destination, before
// or after translation, of the connection or, for an expectation, of its master.
func Filter(msgs []rawnl.Message, addresses []netip.Addr) []rawnl.Message {
	wanted := make(map[netip.Addr]bool, len(addresses))
	for _, a := range addresses {
		wanted[a.Unmap().WithZone("")] = true
	}
	return slices.DeleteFunc(slices.Clone(msgs), func(m rawnl.Message) bool {
		tuples := []uint16{ctaTupleOrig, ctaTupleReply}
		if m.Type == typeExpect {
			tuples = []uint16{expectMaster, expectTuple}
		}
		for _, kind := range tuples {
			if src, dst := addrs(rawnl.Get(nfnl.Attrs(m), kind)); wanted[src] || wanted[dst] {
				return false
			}
		}
		return true
	})
}
