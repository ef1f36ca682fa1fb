package ipset

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/nfnl"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Describe renders a message as one line in the words of `ipset save`. It takes any message and is meant for people.
func Describe(m rawnl.Message) string {
	data := rawnl.Get(nfnl.Attrs(m), attrData)
	switch m.Type {
	case typeSet:
		return describeSet(m, data)
	case typeElement:
		if list := rawnl.Get(nfnl.Attrs(m), attrList); list != nil {
			n := 0
			for range rawnl.Each(list) {
				n++
			}
			return fmt.Sprintf("add %s: %d elements", nameOf(m), n)
		}
		return "add " + nameOf(m) + " " + describeElement(data)
	case subsystem | cmdDestroy:
		return "destroy " + nameOf(m)
	case subsystem | cmdFlush:
		return "flush " + nameOf(m)
	case subsystem | cmdDelete:
		return "del " + strings.TrimPrefix(Describe(rawnl.Message{Type: typeElement, Data: m.Data}), "add ")
	}
	return fmt.Sprintf("ipset message %#x", m.Type)
}

func describeSet(m rawnl.Message, data []byte) string {
	parts := []string{"create", nameOf(m), rawnl.CString(rawnl.Get(nfnl.Attrs(m), attrTypename))}
	switch nfnl.Number(rawnl.Get(nfnl.Attrs(m), attrFamily)) {
	case unix.NFPROTO_IPV4:
		parts = append(parts, "family inet")
	case unix.NFPROTO_IPV6:
		parts = append(parts, "family inet6")
	}
	for a := range rawnl.Each(data) {
		words := map[uint16]string{
			dataIP: "from", dataIPTo: "to", dataCIDR: "cidr", dataPort: "from", dataPortTo: "to", dataTimeout: "timeout", dataFlags: "flags",
			setHashsize: "hashsize", setMaxelem: "maxelem", setNetmask: "netmask", setSize: "size",
		}
		word, ok := words[a.Kind()]
		switch {
		case a.Kind() == setInitval:
			continue
		case !ok:
			word = fmt.Sprintf("attr%d", a.Kind())
		}
		value := fmt.Sprint(nfnl.Number(a.Data))
		if a.Kind() == dataIP || a.Kind() == dataIPTo {
			value = addrText(a.Data)
		}
		parts = append(parts, word, value)
	}
	return strings.Join(parts, " ")
}

func describeElement(data []byte) string {
	var values, options []string
	last := func(suffix string) {
		if len(values) > 0 {
			values[len(values)-1] += suffix
		}
	}
	proto := ""
	if b := rawnl.Get(data, dataProto); b != nil {
		number := nfnl.Number(b)
		proto = cmp.Or(nfnl.Protocol(number), fmt.Sprint(number)) + ":"
	}
	for a := range rawnl.Each(data) {
		switch n := nfnl.Number(a.Data); a.Kind() {
		case dataIP, elemIP2:
			values = append(values, addrText(a.Data))
		case dataIPTo, dataPortTo:
			text := fmt.Sprint(n)
			if a.Kind() == dataIPTo {
				text = addrText(a.Data)
			}
			last("-" + text)
		case dataCIDR, elemCIDR2:
			last(fmt.Sprintf("/%d", n))
		case dataPort:
			values = append(values, fmt.Sprintf("%s%d", proto, n))
		case dataMark:
			values = append(values, fmt.Sprintf("%#x", n))
		case elemEther:
			values = append(values, net.HardwareAddr(a.Data).String())
		case elemName, elemIface:
			values = append(values, rawnl.CString(a.Data))
		case dataTimeout:
			options = append(options, fmt.Sprintf("timeout %d", n))
		case elemPackets:
			options = append(options, fmt.Sprintf("packets %d", n))
		case elemBytes:
			options = append(options, fmt.Sprintf("bytes %d", n))
		case elemComment:
			options = append(options, fmt.Sprintf("comment %q", rawnl.CString(a.Data)))
		case dataFlags:
			if n&flagNomatch != 0 {
				options = append(options, "nomatch")
			}
			if n&^flagNomatch != 0 {
				options = append(options, fmt.Sprintf("flags %#x", n&^flagNomatch))
			}
		case dataProto:
		default:
			options = append(options, fmt.Sprintf("attr%d %x", a.Kind(), a.Data))
		}
	}
	return strings.Join(append([]string{strings.Join(values, ",")}, options...), " ")
}

// addrText renders an address, which is an attribute inside an attribute.
func addrText(b []byte) string {
	for _, kind := range []uint16{addrV4, addrV6} {
		if a, ok := netip.AddrFromSlice(rawnl.Get(b, kind)); ok {
			return a.String()
		}
	}
	return "?"
}

// Normalize returns a message without what may differ between two equal sets, for comparison: the number of a set and
// the revision of its type; the size and depth of its table and the seed of its hash; the life that is left to an element
// and the packets that it counted.
func Normalize(m rawnl.Message) rawnl.Message {
	if len(m.Data) < nfnl.HeaderLen {
		return m.Clone()
	}
	drop := []uint16{setInitval, setHashsize, setBucketsize}
	if m.Type == typeElement {
		drop = []uint16{elemBytes, elemPackets}
	}
	return request(m.Type, rawnl.Rewrite(nfnl.Attrs(m), func(a rawnl.Attr) (rawnl.Attr, bool) {
		if a.Kind() == attrData {
			a.Data = rawnl.Rewrite(a.Data, func(p rawnl.Attr) (rawnl.Attr, bool) {
				passing := m.Type == typeElement && p.Kind() == dataTimeout && nfnl.Number(p.Data) != 0
				return p, !passing && !slices.Contains(drop, p.Kind())
			})
		}
		return a, a.Kind() != attrIndex && a.Kind() != attrRevision
	}))
}
