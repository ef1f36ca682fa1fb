package nftables

import (
	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/nfnl"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Split returns a message as several with one set element each, so that comparisons see which elements
// differ instead of where a list was cut. Any other message comes back alone.
func Split(m rawnl.Message) []rawnl.Message {
	if kindOf(m) != unix.NFT_MSG_NEWSETELEM || len(m.Data) < nfnl.HeaderLen {
		return []rawnl.Message{m}
	}
	list := rawnl.Get(nfnl.Attrs(m), unix.NFTA_SET_ELEM_LIST_ELEMENTS)
	head := append([]byte(nil), m.Data[:nfnl.HeaderLen]...)
	for a := range rawnl.Each(nfnl.Attrs(m)) {
		if a.Kind() != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			head = rawnl.AppendAttr(head, a.Type, a.Data)
		}
	}
	var msgs []rawnl.Message
	for e := range rawnl.Each(list) {
		data := append(make([]byte, 0, len(head)+2*unix.SizeofNlAttr+rawnl.Align(len(e.Data))), head...)
		data, at := openAttr(data, unix.NFTA_SET_ELEM_LIST_ELEMENTS|unix.NLA_F_NESTED)
		data = rawnl.AppendAttr(data, e.Type, e.Data)
		closeAttr(data, at)
		msgs = append(msgs, rawnl.Message{Type: m.Type, Flags: m.Flags, Data: data})
	}
	return msgs
}

// Sequence names the chain that a message adds a rule to, in which the rule's place counts. It is empty for
// all other messages, whose order has no meaning.
func Sequence(m rawnl.Message) string {
	if kindOf(m) != unix.NFT_MSG_NEWRULE {
		return ""
	}
	return nameOf(Normalize(m))
}
