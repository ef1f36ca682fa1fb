package genl

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// headerLen is the size of struct genlmsghdr: command, version, two bytes of nothing.
const headerLen = 4

// conn speaks to one family.
type conn struct {
	n      *ns.NS
	nl     *rawnl.Conn
	id     uint16           // of the family in this kernel
	family uint16           // of the family in this package
	links  map[int32]string // kinds of the namespace's links, by index
}

// message returns a request as a State holds it: with the family's number here instead of the kernel's.
func (c conn) message(command byte, attrs ...[]byte) rawnl.Message {
	return message(c.family, command, attrs...)
}

func message(family uint16, command byte, attrs ...[]byte) rawnl.Message {
	data := []byte{command, 1, 0, 0}
	for _, a := range attrs {
		data = append(data, a...)
	}
	return rawnl.Message{Type: family, Data: data}
}

// dump returns the attributes of each answer to a dump.
func (c conn) dump(ctx context.Context, command byte, attrs ...[]byte) ([][]byte, error) {
	req := c.message(command, attrs...)
	req.Type = c.id
	msgs, err := c.nl.Dump(ctx, req)
	return c.answers(msgs), err
}

// request returns the attributes of each answer to a request.
func (c conn) request(ctx context.Context, command byte, attrs ...[]byte) ([][]byte, error) {
	req := c.message(command, attrs...)
	req.Type = c.id
	msgs, err := c.nl.Request(ctx, req)
	return c.answers(msgs), err
}

func (c conn) answers(msgs []rawnl.Message) [][]byte {
	var list [][]byte
	for _, m := range msgs {
		if m.Type == c.id && len(m.Data) >= headerLen {
			list = append(list, m.Data[headerLen:])
		}
	}
	return list
}

// present returns the ids of the families that the kernel has, by name. Unlike asking for a family by name, it loads
// no module.
func present(ctx context.Context, nl *rawnl.Conn) (map[string]uint16, error) {
	msgs, err := nl.Dump(ctx, rawnl.Message{Type: unix.GENL_ID_CTRL, Data: []byte{unix.CTRL_CMD_GETFAMILY, 1, 0, 0}})
	if err != nil {
		return nil, fmt.Errorf("list generic netlink families: %w", err)
	}
	ids := make(map[string]uint16, len(msgs))
	for _, m := range msgs {
		if name, id, ok := familyOf(m); ok {
			ids[name] = id
		}
	}
	return ids, nil
}

// resolve returns the id of a family, whose module is loaded if need be.
func resolve(ctx context.Context, nl *rawnl.Conn, name string) (uint16, error) {
	req := rawnl.Message{Type: unix.GENL_ID_CTRL, Data: []byte{unix.CTRL_CMD_GETFAMILY, 1, 0, 0}}
	req.Data = rawnl.AppendAttr(req.Data, unix.CTRL_ATTR_FAMILY_NAME, append([]byte(name), 0))
	msgs, err := nl.Request(ctx, req)
	if errors.Is(err, unix.ENOENT) {
		return 0, fmt.Errorf("this kernel has no %s: %w", name, err)
	}
	if err != nil {
		return 0, fmt.Errorf("look up generic netlink family %s: %w", name, err)
	}
	for _, m := range msgs {
		if _, id, ok := familyOf(m); ok {
			return id, nil
		}
	}
	return 0, fmt.Errorf("look up generic netlink family %s: %w: no answer", name, rawnl.ErrMalformed)
}

func familyOf(m rawnl.Message) (name string, id uint16, ok bool) {
	if len(m.Data) < headerLen {
		return "", 0, false
	}
	b := rawnl.Get(m.Data[headerLen:], unix.CTRL_ATTR_FAMILY_ID)
	if len(b) != 2 {
		return "", 0, false
	}
	return rawnl.CString(rawnl.Get(m.Data[headerLen:], unix.CTRL_ATTR_FAMILY_NAME)), binary.NativeEndian.Uint16(b), true
}

// linksOf returns the indexes of the links of a kind, in order.
func (c conn) linksOf(kind string) []uint32 {
	var indexes []uint32
	for index, k := range c.links {
		if k == kind {
			indexes = append(indexes, uint32(index))
		}
	}
	slices.Sort(indexes)
	return indexes
}

func attrsOf(m rawnl.Message) []byte {
	if len(m.Data) < headerLen {
		return nil
	}
	return m.Data[headerLen:]
}

func commandOf(m rawnl.Message) byte {
	if len(m.Data) < headerLen {
		return 0
	}
	return m.Data[0]
}

func attr(kind uint16, data []byte) []byte { return rawnl.AppendAttr(nil, kind, data) }

func nest(kind uint16, attrs ...[]byte) []byte {
	var data []byte
	for _, a := range attrs {
		data = append(data, a...)
	}
	return rawnl.AppendAttr(nil, kind|unix.NLA_F_NESTED, data)
}

func u32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// without returns a run of attributes less those of some kinds.
func without(b []byte, kinds ...uint16) []byte {
	return rawnl.Rewrite(b, func(a rawnl.Attr) (rawnl.Attr, bool) {
		for _, k := range kinds {
			if a.Kind() == k {
				return a, false
			}
		}
		return a, true
	})
}

// only returns the attributes of some kinds in a run.
func only(b []byte, kinds ...uint16) []byte {
	return rawnl.Rewrite(b, func(a rawnl.Attr) (rawnl.Attr, bool) {
		for _, k := range kinds {
			if a.Kind() == k {
				return a, true
			}
		}
		return a, false
	})
}
