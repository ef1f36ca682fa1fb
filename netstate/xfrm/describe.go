package xfrm

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Describe renders a message as one line in the words of `ip xfrm`. Keys are not shown. It takes any message and is
// meant for people.
func Describe(m rawnl.Message) string {
	if n := HeaderLen(m.Type); n == 0 || len(m.Data) < n {
		return fmt.Sprintf("xfrm message %#x", m.Type)
	}
	switch m.Type {
	case typeState:
		return describeState(m)
	case typePolicy:
		return describePolicy(m)
	case typeDefault:
		words := func(b byte) string {
			switch b {
			case 1:
				return "block"
			case accept:
				return "accept"
			}
			return fmt.Sprint(b)
		}
		return fmt.Sprintf("policy setdefault in %s fwd %s out %s", words(m.Data[0]), words(m.Data[1]), words(m.Data[2]))
	}
	parts := []string{"policy set"}
	for a := range rawnl.Each(attrsOf(m)) {
		parts = append(parts, fmt.Sprintf("hthresh%d %v", a.Kind(), a.Data))
	}
	return strings.Join(parts, " ")
}

func describeState(m rawnl.Message) string {
	b := m.Data
	family := binary.NativeEndian.Uint16(b[stateFamily:])
	modes := []string{"transport", "tunnel", "ro", "in_trigger", "beet"}
	mode := fmt.Sprint(b[stateMode])
	if int(b[stateMode]) < len(modes) {
		mode = modes[b[stateMode]]
	}
	parts := []string{fmt.Sprintf("state src %s dst %s proto %s spi %#08x reqid %d mode %s", addrText(b[stateSrc:], family),
		addrText(b[stateDst:], family), protoName(b[stateProto]), binary.BigEndian.Uint32(b[stateSPI:]), u32at(b, stateReqID), mode)}
	for a := range rawnl.Each(attrsOf(m)) {
		words := map[uint16]string{attrAuth: "auth", attrCrypt: "enc", attrComp: "comp", attrAEAD: "aead", attrAuthTrunc: "auth-trunc"}
		if word, ok := words[a.Kind()]; ok {
			parts = append(parts, fmt.Sprintf("%s %s (%d bits)", word, rawnl.CString(a.Data), 8*len(keyOf(a))))
			continue
		}
		if text := describeAttr(a); text != "" {
			parts = append(parts, text)
		}
	}
	return strings.Join(parts, " ")
}

func describePolicy(m rawnl.Message) string {
	b := m.Data
	family := binary.NativeEndian.Uint16(b[selectorFamily:])
	dirs := []string{"in", "out", "fwd", "socket in", "socket out"}
	dir := fmt.Sprint(b[policyDir])
	if int(b[policyDir]) < len(dirs) {
		dir = dirs[b[policyDir]]
	}
	parts := []string{fmt.Sprintf("policy src %s/%d dst %s/%d", addrText(b[selectorSrc:], family), b[selectorSrcPrefix],
		addrText(b[selectorDst:], family), b[selectorDstPrefix])}
	if proto := b[selectorProto]; proto != 0 {
		parts = append(parts, "proto "+protoName(proto))
	}
	parts = append(parts, "dir "+dir)
	if b[policyAction] != 0 {
		parts = append(parts, "action block")
	}
	parts = append(parts, fmt.Sprintf("priority %d index %d", u32at(b, policyPriority), u32at(b, policyIndex)))
	for a := range rawnl.Each(attrsOf(m)) {
		if text := describeAttr(a); text != "" {
			parts = append(parts, text)
		}
	}
	return strings.Join(parts, " ")
}

func describeAttr(a rawnl.Attr) string {
	switch a.Kind() {
	case attrMark:
		if len(a.Data) >= 8 {
			return fmt.Sprintf("mark %#x/%#x", u32at(a.Data, 0), u32at(a.Data, 4))
		}
	case attrIfID:
		return fmt.Sprintf("if_id %#x", rawnl.Uint32(a.Data))
	case attrSetMark:
		return fmt.Sprintf("output-mark %#x", rawnl.Uint32(a.Data))
	case attrEncap:
		if len(a.Data) >= 6 {
			return fmt.Sprintf("encap type %d sport %d dport %d", binary.NativeEndian.Uint16(a.Data), binary.BigEndian.Uint16(a.Data[2:]), binary.BigEndian.Uint16(a.Data[4:]))
		}
	case attrReplayESN, attrReplay, attrLifetime, attrType:
		return ""
	case attrTmpl:
		return fmt.Sprintf("tmpl %x", a.Data)
	}
	return fmt.Sprintf("attr%d %x", a.Kind(), a.Data)
}

func addrText(b []byte, family uint16) string {
	n := 4
	if family == unix.AF_INET6 {
		n = 16
	}
	a, _ := netip.AddrFromSlice(b[:n])
	return a.String()
}

func protoName(proto byte) string {
	switch proto {
	case unix.IPPROTO_ESP:
		return "esp"
	case unix.IPPROTO_AH:
		return "ah"
	case unix.IPPROTO_COMP:
		return "comp"
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	}
	return fmt.Sprint(proto)
}
