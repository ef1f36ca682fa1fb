package ipset

import (
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/nfnl"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Plan turns a capture into the messages that make the same sets, with the same numbers, where there are none: all
// sets first, then the elements in as few messages as hold them. The kernel gives a new set the lowest number that
// is free, so the gaps are taken by sets that are destroyed in the end. The error is [rawnl.ErrMalformed] if the
// messages can't be a capture.
func Plan(msgs []rawnl.Message) ([]rawnl.Message, error) {
	for _, m := range msgs {
		if err := Validate(m); err != nil {
			return nil, fmt.Errorf("plan ipset: %w", err)
		}
	}
	plan := sets(msgs)
	var destroys []rawnl.Message
	for _, m := range plan {
		if name := rawnl.Get(nfnl.Attrs(m), attrSetname); isPlaceholder(m) {
			protocol := rawnl.Get(nfnl.Attrs(m), attrProtocol)[0]
			destroys = append(destroys, request(subsystem|cmdDestroy, about(protocol, name)))
		}
	}
	return slices.Concat(plan, additions(msgs), destroys), nil
}

// sets returns the messages that make the sets, in the order of their numbers.
func sets(msgs []rawnl.Message) []rawnl.Message {
	var list []rawnl.Message
	for _, m := range msgs {
		if m.Type == typeSet {
			list = append(list, m)
		}
	}
	slices.SortStableFunc(list, func(a, b rawnl.Message) int { return index(a, 0) - index(b, 0) })
	var plan []rawnl.Message
	for _, m := range list {
		for i := len(plan); i < index(m, i); i++ {
			plan = append(plan, placeholder(m, i))
		}
		made := request(typeSet, rawnl.Rewrite(nfnl.Attrs(m), func(a rawnl.Attr) (rawnl.Attr, bool) { return a, a.Kind() != attrIndex }))
		made.Flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
		plan = append(plan, made)
	}
	return plan
}

// index returns the number of a set, or the given one if the set has none.
func index(m rawnl.Message, none int) int {
	if b := rawnl.Get(nfnl.Attrs(m), attrIndex); b != nil {
		return int(nfnl.Number(b))
	}
	return none
}

const placeholderPrefix = "nsmigrate-gap-"

func isPlaceholder(m rawnl.Message) bool {
	name := nameOf(m)
	return len(name) > len(placeholderPrefix) && name[:len(placeholderPrefix)] == placeholderPrefix
}

// placeholder returns a message that makes a set like m, as small as its type allows.
func placeholder(m rawnl.Message, n int) rawnl.Message {
	attrs := rawnl.Rewrite(nfnl.Attrs(m), func(a rawnl.Attr) (rawnl.Attr, bool) {
		switch a.Kind() {
		case attrSetname:
			a.Data = append([]byte(placeholderPrefix+fmt.Sprint(n)), 0)
		case attrData:
			a.Data = rawnl.Rewrite(a.Data, func(p rawnl.Attr) (rawnl.Attr, bool) { return p, p.Kind() != setHashsize })
		case attrIndex:
			return a, false
		}
		return a, true
	})
	made := request(typeSet, attrs)
	made.Flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	return made
}

// listMax bounds the list of elements in one message: an attribute's length has 16 bits.
const listMax = 60_000

// additions returns the messages that add the elements: those that follow each other and are of one set together.
func additions(msgs []rawnl.Message) []rawnl.Message {
	var plan []rawnl.Message
	for i := 0; i < len(msgs); {
		m := msgs[i]
		if m.Type != typeElement {
			i++
			continue
		}
		var list []byte
		line := uint32(0)
		for ; i < len(msgs) && msgs[i].Type == typeElement && nameOf(msgs[i]) == nameOf(m); i++ {
			data := rawnl.Get(nfnl.Attrs(msgs[i]), attrData)
			if line > 0 && len(list)+len(data)+unix.SizeofNlAttr > listMax {
				break
			}
			// The kernel wants a line number with every element of a list, to tell which one it refused.
			line++
			data = rawnl.AppendAttr(slices.Clone(data), attrLine|unix.NLA_F_NET_BYTEORDER, binary.BigEndian.AppendUint32(nil, line))
			list = rawnl.AppendAttr(list, attrData|unix.NLA_F_NESTED, data)
		}
		attrs := about(rawnl.Get(nfnl.Attrs(m), attrProtocol)[0], rawnl.Get(nfnl.Attrs(m), attrSetname))
		attrs = rawnl.AppendAttr(attrs, attrLine|unix.NLA_F_NET_BYTEORDER, make([]byte, 4))
		plan = append(plan, request(typeElement, rawnl.AppendAttr(attrs, attrList|unix.NLA_F_NESTED, list)))
	}
	return plan
}
