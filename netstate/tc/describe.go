package tc

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/bits"
	"strings"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Describe renders a message as one line that starts like those of `tc`. Options are shown in hex: each kind has
// its own. name gives the names of devices. It takes any message and is meant for people.
func Describe(m rawnl.Message, name func(index int32) string) string {
	if m.Type == typeAction {
		return "action " + describeAction(actionOf(m))
	}
	return strings.Join(append([]string{nameOf(m, name)}, describeOptions(m)...), " ")
}

// nameOf renders what identifies a qdisc, class, filter or chain.
func nameOf(m rawnl.Message, name func(index int32) string) string {
	nouns := map[uint16]string{typeQdisc: "qdisc", typeClass: "class", typeFilter: "filter", typeChain: "chain"}
	noun, ok := nouns[m.Type]
	if !ok {
		return fmt.Sprintf("traffic control message %d", m.Type)
	}
	h := header(m)
	parts := []string{noun}
	if kind := kindOf(m); kind != "" && m.Type != typeFilter {
		parts = append(parts, kind)
	}
	if m.Type == typeQdisc || m.Type == typeClass {
		parts = append(parts, handleText(h.handle))
	}
	if h.index == blockMagic {
		parts = append(parts, fmt.Sprintf("block %d", h.parent))
	} else {
		parts = append(parts, "dev "+name(h.index), parentText(h.parent))
	}
	for _, block := range []struct {
		kind uint16
		word string
	}{{tcaIngressBlock, "ingress_block"}, {tcaEgressBlock, "egress_block"}} {
		if b := rawnl.Get(attrsOf(m), block.kind); b != nil {
			parts = append(parts, fmt.Sprintf("%s %d", block.word, rawnl.Uint32(b)))
		}
	}
	if m.Type == typeFilter {
		proto := bits.ReverseBytes16(uint16(h.info))
		if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
			proto = uint16(h.info)
		}
		parts = append(parts, fmt.Sprintf("protocol %#04x pref %d %s", proto, h.info>>16, kindOf(m)))
	}
	if m.Type == typeFilter || m.Type == typeChain {
		parts = append(parts, fmt.Sprintf("chain %d", chainOf(m)))
	}
	if m.Type == typeFilter {
		parts = append(parts, fmt.Sprintf("handle %#x", h.handle))
	}
	return strings.Join(parts, " ")
}

func describeOptions(m rawnl.Message) []string {
	options := rawnl.Get(attrsOf(m), tcaOptions)
	where := classifierOf(kindOf(m))
	if m.Type != typeFilter || where.actions == 0 {
		if len(options) == 0 {
			return nil
		}
		return []string{hex.EncodeToString(options)}
	}
	var parts []string
	for a := range rawnl.Each(options) {
		if a.Kind() != where.actions {
			parts = append(parts, fmt.Sprintf("%d=%s", a.Kind(), hex.EncodeToString(a.Data)))
			continue
		}
		for act := range rawnl.Each(a.Data) {
			parts = append(parts, "action "+describeAction(act.Data))
		}
	}
	return parts
}

func describeAction(act []byte) string {
	kind, options := rawnl.CString(rawnl.Get(act, actKind)), rawnl.Get(act, actOptions)
	g, _ := generalOf(kind, options)
	return fmt.Sprintf("%s index %d %s", kind, g.index, hex.EncodeToString(options))
}

// handleText renders a handle as tc does, in hexadecimal.
func handleText(h uint32) string {
	if h&0xffff == 0 {
		return fmt.Sprintf("%x:", h>>16)
	}
	return fmt.Sprintf("%x:%x", h>>16, h&0xffff)
}

func parentText(h uint32) string {
	switch h {
	case root:
		return "root"
	case ingress:
		return "parent ffff:fff1"
	case clsIngress:
		return "ingress"
	case clsEgress:
		return "egress"
	}
	return "parent " + handleText(h)
}
