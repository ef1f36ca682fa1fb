// Package ipset carries the sets of ipset(8) of a network namespace, with their elements, as messages of its
// netlink protocol. A type of set or an attribute that this package has never heard of travels like any other.
//
// Rules of xtables and of tc refer to a set by its number in the namespace, so a set gets the number that it had;
// sets have to be there before such rules are.
package ipset

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/nfnl"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Capture reads the sets of a namespace, in the order of their numbers except that sets of sets are last, and each
// followed by its elements, one to a message. Elements are ordered by value, those of a set of sets as they are in
// it. Where ipset isn't loaded there is nothing, which is no error, and stays so.
func Capture(ctx context.Context, n *ns.NS) ([]rawnl.Message, error) {
	msgs, err := capture(ctx, n)
	if err != nil {
		return nil, fmt.Errorf("capture ipset: %w", err)
	}
	return msgs, nil
}

func capture(ctx context.Context, n *ns.NS) ([]rawnl.Message, error) {
	if _, err := os.Stat("/sys/module/ip_set"); err != nil {
		return nil, nil // a request would load it
	}
	c, err := rawnl.Dial(n, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	version, err := protocol(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("get protocol: %w", err)
	}
	dumped, err := c.Dump(ctx, request(subsystem|cmdList, rawnl.AppendAttr(nil, attrProtocol, []byte{version})))
	if err != nil {
		return nil, fmt.Errorf("list sets: %w", err)
	}
	var msgs []rawnl.Message
	for i := 0; i < len(dumped); {
		// A set takes as many messages as its elements need; the first one has its properties.
		end := i + 1
		for end < len(dumped) && nameOf(dumped[end]) == nameOf(dumped[i]) {
			end++
		}
		index, err := indexOf(ctx, c, version, dumped[i])
		if err != nil {
			return nil, fmt.Errorf("get number of set %q: %w", nameOf(dumped[i]), err)
		}
		msgs = append(msgs, set(version, dumped[i], index))
		msgs = append(msgs, elements(version, dumped[i:end])...)
		i = end
	}
	return msgs, nil
}

// protocol agrees with the kernel on a version.
func protocol(ctx context.Context, c *rawnl.Conn) (byte, error) {
	msgs, err := c.Request(ctx, request(subsystem|cmdProtocol, rawnl.AppendAttr(nil, attrProtocol, []byte{protocolMax})))
	if err != nil {
		return 0, err
	}
	if len(msgs) != 1 {
		return 0, fmt.Errorf("%w: %d answers", rawnl.ErrMalformed, len(msgs))
	}
	newest := byte(nfnl.Number(rawnl.Get(nfnl.Attrs(msgs[0]), attrProtocol)))
	oldest := newest
	if b := rawnl.Get(nfnl.Attrs(msgs[0]), attrProtocolMin); b != nil {
		oldest = byte(nfnl.Number(b))
	}
	if newest < protocolMin || oldest > protocolMax {
		return 0, fmt.Errorf("the kernel speaks versions %d to %d, not %d to %d", oldest, newest, protocolMin, protocolMax)
	}
	return min(newest, protocolMax), nil
}

// indexOf returns the attribute with the number of a set; nil if the kernel doesn't tell.
func indexOf(ctx context.Context, c *rawnl.Conn, version byte, m rawnl.Message) ([]byte, error) {
	if version < protocolMax {
		return nil, nil
	}
	msgs, err := c.Request(ctx, request(subsystem|cmdByName, about(version, rawnl.Get(nfnl.Attrs(m), attrSetname))))
	if errors.Is(err, unix.ENOENT) {
		return nil, nil // gone since
	}
	if err != nil {
		return nil, err
	}
	if len(msgs) != 1 {
		return nil, fmt.Errorf("%w: %d answers", rawnl.ErrMalformed, len(msgs))
	}
	return rawnl.Get(nfnl.Attrs(msgs[0]), attrIndex), nil
}

// set returns the message that makes a set as it was dumped.
func set(version byte, m rawnl.Message, index []byte) rawnl.Message {
	attrs := about(version, rawnl.Get(nfnl.Attrs(m), attrSetname))
	for a := range rawnl.Each(nfnl.Attrs(m)) {
		switch a.Kind() {
		case attrTypename, attrRevision, attrFamily:
			attrs = rawnl.AppendAttr(attrs, a.Type, a.Data)
		case attrData:
			attrs = rawnl.AppendAttr(attrs, a.Type, rawnl.Rewrite(a.Data, func(p rawnl.Attr) (rawnl.Attr, bool) {
				return inOrder(p, dataIP, dataIPTo, dataBitmask), !slices.Contains([]uint16{setElements, setReferences, setMemsize}, p.Kind())
			}))
		}
	}
	if index != nil {
		attrs = rawnl.AppendAttr(attrs, attrIndex|unix.NLA_F_NET_BYTEORDER, index)
	}
	return request(typeSet, attrs)
}

// inOrder returns an attribute of a set or element in network byte order, and marked so. The kernel insists on that
// and leaves the mark of an address out itself, and shows a mask of marks in host order
// (ip_set_get_ipaddr4 in net/netfilter/ipset/ip_set_core.c, ip_set_hash_gen.h). Those that hold an address are named.
func inOrder(a rawnl.Attr, addresses ...uint16) rawnl.Attr {
	switch {
	case slices.Contains(addresses, a.Kind()):
		a.Data = rawnl.Rewrite(a.Data, func(addr rawnl.Attr) (rawnl.Attr, bool) {
			if addr.Kind() == addrV4 || addr.Kind() == addrV6 {
				addr.Type |= unix.NLA_F_NET_BYTEORDER
			}
			return addr, true
		})
	case a.Kind() == dataMarkmask && len(a.Data) == 4 && a.Type&unix.NLA_F_NET_BYTEORDER == 0:
		a.Type |= unix.NLA_F_NET_BYTEORDER
		a.Data = binary.BigEndian.AppendUint32(nil, binary.NativeEndian.Uint32(a.Data))
	}
	return a
}

// elements returns the messages that add the elements of a set.
func elements(version byte, dumped []rawnl.Message) []rawnl.Message {
	var list [][]byte
	size := 0
	for _, m := range dumped {
		for e := range rawnl.Each(rawnl.Get(nfnl.Attrs(m), attrList)) {
			data := rawnl.Rewrite(e.Data, func(a rawnl.Attr) (rawnl.Attr, bool) { return inOrder(a, dataIP, dataIPTo, elemIP2, elemIP2To), true })
			list = append(list, data)
			size += rawnl.Align(len(data))
		}
	}
	if !isList(dumped[0]) {
		slices.SortFunc(list, bytes.Compare)
	}
	head := request(typeElement, about(version, rawnl.Get(nfnl.Attrs(dumped[0]), attrSetname))).Data
	buf := make([]byte, 0, size+len(list)*(len(head)+unix.SizeofNlAttr))
	msgs := make([]rawnl.Message, 0, len(list))
	for _, data := range list {
		start := len(buf)
		buf = append(buf, head...)
		buf = rawnl.AppendAttr(buf, attrData|unix.NLA_F_NESTED, data)
		msgs = append(msgs, rawnl.Message{Type: typeElement, Data: buf[start:len(buf):len(buf)]})
	}
	return msgs
}
