// Package rawnl speaks netlink in whole messages: dumps as the kernel wrote them, and batches of them
// sent back in few system calls. It knows the framing of netlink(7) and of nfnetlink, and no object kind.
package rawnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// HeaderLen is the size of struct nlmsghdr.
const HeaderLen = unix.SizeofNlMsghdr

// Message is one netlink message without its header's length, sequence and port, which belong to a
// conversation and not to the object. Data starts with the family's fixed header (ifinfomsg, rtmsg,
// nfgenmsg ...), followed by attributes.
type Message struct {
	Type  uint16
	Flags uint16
	Data  []byte
}

// Clone returns a copy that shares no memory with m.
func (m Message) Clone() Message {
	return Message{Type: m.Type, Flags: m.Flags, Data: slices.Clone(m.Data)}
}

// Align rounds a length up to netlink's alignment of 4 bytes.
func Align(n int) int { return (n + 3) &^ 3 }

// Append appends the message in wire form, padded to alignment.
func (m Message) Append(b []byte, seq uint32) []byte {
	n := HeaderLen + len(m.Data)
	b = binary.NativeEndian.AppendUint32(b, uint32(n))
	b = binary.NativeEndian.AppendUint16(b, m.Type)
	b = binary.NativeEndian.AppendUint16(b, m.Flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, m.Data...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// ErrMalformed means that bytes are not well-formed netlink.
var ErrMalformed = errors.New("malformed netlink")

// frame is a message with the conversation's part of its header.
type frame struct {
	Message
	seq  uint32
	port uint32
}

// next splits the first message off b. The message's data aliases b.
func next(b []byte) (frame, []byte, error) {
	if len(b) < HeaderLen {
		return frame{}, nil, fmt.Errorf("%w: header of %d bytes", ErrMalformed, len(b))
	}
	n := int(binary.NativeEndian.Uint32(b))
	if n < HeaderLen || n > len(b) {
		return frame{}, nil, fmt.Errorf("%w: message length %d in %d bytes", ErrMalformed, n, len(b))
	}
	f := frame{
		Message: Message{
			Type:  binary.NativeEndian.Uint16(b[4:]),
			Flags: binary.NativeEndian.Uint16(b[6:]),
			Data:  b[HeaderLen:n:n],
		},
		seq:  binary.NativeEndian.Uint32(b[8:]),
		port: binary.NativeEndian.Uint32(b[12:]),
	}
	return f, b[min(Align(n), len(b)):], nil
}

// Decode splits a run of messages in the exact form that [Message.Append] gives them with sequence 0: the
// sequence, the port and all padding are zero, and nothing is left over. The messages alias b.
func Decode(b []byte) ([]Message, error) {
	count := 0 // first, so that the list of a million messages is allocated once
	for rest := b; len(rest) > 0; count++ {
		var err error
		if _, rest, err = next(rest); err != nil {
			return nil, err
		}
	}
	msgs := make([]Message, 0, count)
	for len(b) > 0 {
		f, rest, err := next(b)
		if err != nil {
			return nil, err
		}
		size := HeaderLen + len(f.Data)
		if f.seq != 0 || f.port != 0 || len(b) < Align(size) {
			return nil, fmt.Errorf("%w: message %d is not in stored form", ErrMalformed, len(msgs))
		}
		for _, pad := range b[size:Align(size)] {
			if pad != 0 {
				return nil, fmt.Errorf("%w: padding of message %d", ErrMalformed, len(msgs))
			}
		}
		msgs = append(msgs, f.Message)
		b = rest
	}
	return msgs, nil
}

// Attr is one attribute. Type keeps the NLA_F_NESTED and NLA_F_NET_BYTEORDER bits as the kernel set them.
type Attr struct {
	Type uint16
	Data []byte
}

// typeMask is NLA_TYPE_MASK of linux/netlink.h: a type without its flag bits.
const typeMask = 0x3fff

// Kind returns the attribute's type without its flag bits.
func (a Attr) Kind() uint16 { return a.Type & typeMask }

// Nested reports whether the attribute is marked as nested. Many kernel dumps omit the mark.
func (a Attr) Nested() bool { return a.Type&unix.NLA_F_NESTED != 0 }

// ParseAttrs splits a run of attributes. The returned data aliases b.
func ParseAttrs(b []byte) ([]Attr, error) {
	if len(b) == 0 {
		return nil, nil
	}
	if err := Check(b); err != nil {
		return nil, err
	}
	attrs := make([]Attr, 0, 8) // as many as a route has, so that most runs need no second allocation
	for a := range Each(b) {
		attrs = append(attrs, a)
	}
	return attrs, nil
}

// Check reports whether a run of attributes is well-formed, so that [Each] and [Get] see all of it. The error is
// [ErrMalformed].
func Check(b []byte) error {
	for len(b) > 0 {
		if len(b) < unix.SizeofNlAttr {
			return fmt.Errorf("%w: attribute header of %d bytes", ErrMalformed, len(b))
		}
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofNlAttr || n > len(b) {
			return fmt.Errorf("%w: attribute length %d in %d bytes", ErrMalformed, n, len(b))
		}
		b = b[min(Align(n), len(b)):]
	}
	return nil
}

// AppendAttr appends one attribute, padded to alignment.
func AppendAttr(b []byte, typ uint16, data []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofNlAttr+len(data)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, data...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// AppendAttrs appends attributes in order.
func AppendAttrs(b []byte, attrs []Attr) []byte {
	for _, a := range attrs {
		b = AppendAttr(b, a.Type, a.Data)
	}
	return b
}

// EncodeAttrs returns the wire form of a run of attributes.
func EncodeAttrs(attrs []Attr) []byte { return AppendAttrs(nil, attrs) }

// Find returns the data of the first attribute of a kind, and whether there is one.
func Find(attrs []Attr, kind uint16) ([]byte, bool) {
	for _, a := range attrs {
		if a.Kind() == kind {
			return a.Data, true
		}
	}
	return nil, false
}

// Without returns the attributes whose kind is not listed, in a new slice.
func Without(attrs []Attr, kinds ...uint16) []Attr {
	return slices.DeleteFunc(slices.Clone(attrs), func(a Attr) bool { return slices.Contains(kinds, a.Kind()) })
}

// Uint32 reads a host-order attribute; 0 if it is shorter than 4 bytes.
func Uint32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

// CString reads a NUL-terminated attribute.
func CString(b []byte) string {
	if i := slices.Index(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
