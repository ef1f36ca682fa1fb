package conntrack

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/nfnl"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Life of an entry whose own the kernel didn't show, in seconds: the kernel's defaults for established TCP
// connections and for UDP streams.
const (
	tcpLife   = 5 * 24 * 60 * 60
	otherLife = 120
)

// Plan turns a capture into the messages that create the same entries: masters first, then the connections
// that follow from them (data connections of FTP and the like), then expectations.
//
// An entry is created with the reply tuple it would have without translation, and with translations to
// exactly the address and port that the captured reply shows; also where only the port differs, as after a
// redirect. The status keeps what userspace may set (seen reply, assured, fixed timeout); translation and
// expectation come with the rest.
//
// Both directions of a TCP connection get IP_CT_TCP_FLAG_BE_LIBERAL for the rest of their life. The kernel
// doesn't show where the window is and learns it from the first packet it sees. After a move that packet is
// likely a retransmission of data that the other side already has: its acknowledgement would lie beyond the
// window learnt, count as invalid, and not be translated or accepted. The flags that speak of window
// positions which are lost (the highest acknowledgement, a challenge acknowledgement) are cleared.
//
// Labels are kept only where a rule uses labels, so rules have to be there first. An expected connection
// whose master isn't among the messages becomes one without a master. The error is [rawnl.ErrMalformed] if
// the messages can't be a capture.
func Plan(msgs []rawnl.Message) ([]rawnl.Message, error) {
	for _, m := range msgs {
		if err := Validate(m); err != nil {
			return nil, fmt.Errorf("plan conntrack: %w", err)
		}
	}
	var plan []rawnl.Message
	for _, m := range mastersFirst(msgs, msgs) {
		plan = append(plan, create(m))
	}
	return append(plan, expectations(msgs)...), nil
}

// expectations returns the requests for the expectations among the messages of a capture.
func expectations(msgs []rawnl.Message) []rawnl.Message {
	var plan []rawnl.Message
	for _, m := range msgs {
		if m.Type != typeExpect {
			continue
		}
		// The kernel gives a new expectation its helper's timeout; the second message sets what was left.
		m = inMastersZone(carried(m), msgs)
		m.Flags = unix.NLM_F_CREATE
		plan = append(plan, m)
		if rawnl.Get(nfnl.Attrs(m), expectTimeout) != nil {
			plan = append(plan, rawnl.Message{Type: m.Type, Data: m.Data})
		}
	}
	return plan
}

// inMastersZone returns an expectation with the zone of its master, which the kernel asks for and doesn't
// show (ctnetlink_exp_dump_expect). Of masters with the same tuple in several zones it is the first that
// has a helper.
func inMastersZone(expect rawnl.Message, msgs []rawnl.Message) rawnl.Message {
	b := nfnl.Attrs(expect)
	if rawnl.Get(b, expectZone) != nil {
		return expect
	}
	master := rawnl.Get(b, expectMaster)
	for _, m := range msgs {
		entry := nfnl.Attrs(m)
		if m.Type != typeEntry || !bytes.Equal(rawnl.Get(entry, ctaTupleOrig), master) || rawnl.Get(entry, ctaHelp) == nil {
			continue
		}
		if zone := rawnl.Get(entry, ctaZone); zone != nil {
			return request(expect.Type, nfnl.Family(expect), rawnl.AppendAttr(slices.Clone(b), expectZone, zone))
		}
		break
	}
	return expect
}

// mastersFirst returns the entries among some messages of a capture in an order in which every master precedes those
// that name it. An entry that names a master which isn't in the capture is returned without it.
func mastersFirst(some, all []rawnl.Message) []rawnl.Message {
	var ordered, waiting []rawnl.Message
	pending := map[string]bool{} // tuples that an entry of the messages has yet to get
	for _, m := range some {
		switch {
		case m.Type != typeEntry:
		case rawnl.Get(nfnl.Attrs(m), ctaTupleMaster) != nil:
			waiting = append(waiting, m)
			pending[string(rawnl.Get(nfnl.Attrs(m), ctaTupleOrig))] = true
		default:
			ordered = append(ordered, m)
		}
	}
	if len(waiting) == 0 {
		return ordered
	}
	known := map[string]bool{}
	for _, m := range all {
		if tuple := rawnl.Get(nfnl.Attrs(m), ctaTupleOrig); m.Type == typeEntry && !pending[string(tuple)] {
			known[string(tuple)] = true
		}
	}
	for len(waiting) > 0 {
		var still []rawnl.Message
		for _, m := range waiting {
			if known[string(rawnl.Get(nfnl.Attrs(m), ctaTupleMaster))] {
				ordered = append(ordered, m)
				known[string(rawnl.Get(nfnl.Attrs(m), ctaTupleOrig))] = true
			} else {
				still = append(still, m)
			}
		}
		if len(still) == len(waiting) {
			for _, m := range still {
				ordered = append(ordered, request(m.Type, nfnl.Family(m), rawnl.EncodeAttrs(without(nfnl.Attrs(m), ctaTupleMaster))))
			}
			break
		}
		waiting = still
	}
	return ordered
}

func without(b []byte, kinds ...uint16) []rawnl.Attr {
	var attrs []rawnl.Attr
	for a := range rawnl.Each(b) {
		attrs = append(attrs, a)
	}
	return rawnl.Without(attrs, kinds...)
}

// create returns the message that creates a captured entry.
func create(m rawnl.Message) rawnl.Message {
	b := nfnl.Attrs(carried(m))
	orig, reply := rawnl.Get(b, ctaTupleOrig), rawnl.Get(b, ctaTupleReply)
	plain := plainReply(orig, reply)
	out := rawnl.Rewrite(b, func(a rawnl.Attr) (rawnl.Attr, bool) {
		switch a.Kind() {
		case ctaTupleReply:
			a.Data = plain
		case ctaStatus:
			a.Data = binary.BigEndian.AppendUint32(nil, uint32(nfnl.Number(a.Data))&^statusNotOurs|statusConfirmed)
		case ctaProtoinfo:
			a.Data = liberal(a.Data)
		case ctaNATSrc, ctaNATDst:
			return a, false
		}
		return a, true
	})
	if from := source(reply); !from.equal(source(plain)) {
		out = appendNAT(out, ctaNATDst, from)
	}
	if to := destination(reply); !to.equal(destination(plain)) {
		out = appendNAT(out, ctaNATSrc, to)
	}
	if rawnl.Get(b, ctaTimeout) == nil {
		out = appendOffloaded(out, orig)
	}
	plan := request(m.Type, nfnl.Family(m), out)
	plan.Flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	return plan
}

// liberal changes a TCP connection's flags as [Plan] describes, and sets the mask that says which flags
// are meant: the kernel shows none.
func liberal(protoinfo []byte) []byte {
	return rawnl.Rewrite(protoinfo, func(a rawnl.Attr) (rawnl.Attr, bool) {
		if a.Kind() != protoinfoTCP {
			return a, true
		}
		a.Data = rawnl.Rewrite(a.Data, func(f rawnl.Attr) (rawnl.Attr, bool) {
			if (f.Kind() == tcpFlagsOrig || f.Kind() == tcpFlagsReply) && len(f.Data) == 2 {
				f.Data = []byte{f.Data[0]&^(tcpFlagMaxACKSet|tcpFlagChallenged) | tcpFlagBeLiberal, 0xff}
			}
			return f, true
		})
		return a, true
	})
}

// appendOffloaded appends what the kernel keeps from showing of an entry that a flowtable handles: its
// life and, for TCP, its state, which is established while it is there (ctnetlink_dump_info).
func appendOffloaded(b, orig []byte) []byte {
	life := uint32(otherLife)
	if nfnl.Number(rawnl.Get(rawnl.Get(orig, tupleProto), protoNum)) == unix.IPPROTO_TCP {
		life = tcpLife
	}
	if life == tcpLife && rawnl.Get(b, ctaProtoinfo) == nil {
		flags := []byte{tcpFlagBeLiberal, 0xff}
		tcp := rawnl.AppendAttr(nil, tcpState, []byte{tcpEstablished})
		tcp = rawnl.AppendAttr(tcp, tcpFlagsOrig, flags)
		tcp = rawnl.AppendAttr(tcp, tcpFlagsReply, flags)
		info := rawnl.AppendAttr(nil, protoinfoTCP|unix.NLA_F_NESTED, tcp)
		b = rawnl.AppendAttr(b, ctaProtoinfo|unix.NLA_F_NESTED, info)
	}
	return rawnl.AppendAttr(b, ctaTimeout, binary.BigEndian.AppendUint32(nil, life))
}

// reconcile returns what to delete and what to create so that the entries of a plan exist where others
// already do. An entry that stands in the way is deleted, unless it is the planned one already: translation,
// helper and master of an existing entry can't be changed (ctnetlink_change_conntrack).
func reconcile(plan, existing []rawnl.Message) (deletes, creates []rawnl.Message) {
	have := make(map[string]rawnl.Message, len(existing))
	for _, m := range existing {
		if m.Type == typeEntry {
			have[string(key(m))] = m
		}
	}
	for _, m := range plan {
		there, taken := have[string(key(m))]
		if m.Type == typeEntry && taken {
			if bytes.Equal(Normalize(create(there)).Data, Normalize(m).Data) {
				continue
			}
			deletes = append(deletes, remove(m))
		}
		creates = append(creates, m)
	}
	return deletes, creates
}
