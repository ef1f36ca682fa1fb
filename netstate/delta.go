package netstate

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"reflect"
	"slices"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// The binary form of a Delta is framed like that of a State, with another magic number and version. A section of
// JSON replaces the State's; a section of messages is a script that makes the new list out of the old one:
//
//	offset  size  section of messages
//	0       4     number of messages of the old list, little-endian
//	4       4     CRC-32C of the new list, little-endian: of its messages as they are stored
//	8             steps to the end of the section
//
// A step begins with an unsigned varint, of which the two lowest bits are the verb and the others a number n:
//
//	0  copy    the next n messages of the old list are in the new one too
//	1  skip    the next n messages of the old list are not
//	2  patch   the next message of the old list keeps its first n bytes, and its last ones: as many as the varint
//	           says that follows. Between them are new bytes: a varint with their number, and they themselves
//	3  insert  n bytes follow the 2 bytes of the message's type and the 2 bytes of its flags
//
// The steps go through the whole old list once. n is not zero in copy and skip.
const (
	deltaMagic   = "NSMDELTA"
	stepCopy     = 0
	stepSkip     = 1
	stepPatch    = 2
	stepInsert   = 3
	editsHeadLen = 8
)

// Delta is what must be changed in one State to make it another, to the byte. The zero value changes nothing.
type Delta struct {
	sections []section // of ascending kinds
}

type section struct {
	kind uint16
	body []byte
}

// Empty reports whether the two States are the same.
func (d *Delta) Empty() bool { return len(d.sections) == 0 }

// Difference returns what must be changed in old to make it next. Where next was captured with old as
// [CaptureOptions].Prev, what did not change costs nothing. Both States are only read; the Delta shares no memory
// with them.
func Difference(old, next *State) (*Delta, error) {
	d := &Delta{}
	old, next = old.orFresh(), next.orFresh()
	for _, k := range slices.Sorted(slices.Values(kinds())) {
		if a, b := old.Messages[k], next.Messages[k]; !same(a, b) {
			d.sections = append(d.sections, section{uint16(k), edits(a, b)})
		}
	}
	for _, part := range []struct {
		kind      uint16
		old, next any
	}{{sectionMeta, old.meta(), next.meta()}, {sectionSysc, old.Sysctls, next.Sysctls}, {sectionTable, old.Tables, next.Tables}} {
		if reflect.DeepEqual(part.old, part.next) {
			continue
		}
		body, err := json.Marshal(part.next)
		if err != nil {
			return nil, fmt.Errorf("difference of network states: %w", err)
		}
		d.sections = append(d.sections, section{part.kind, body})
	}
	return d, nil
}

// orFresh returns the State, or that of a fresh namespace for nil.
func (s *State) orFresh() *State {
	if s == nil {
		return &State{}
	}
	return s
}

// edits returns the script that makes b out of a.
func edits(a, b []rawnl.Message) []byte {
	body := binary.LittleEndian.AppendUint32(nil, uint32(len(a)))
	body = binary.LittleEndian.AppendUint32(body, checksum(b))
	var verb, run uint64
	flush := func() {
		if run > 0 {
			body = binary.AppendUvarint(body, run<<2|verb)
		}
		run = 0
	}
	count := func(v uint64) {
		if v != verb {
			flush()
		}
		verb, run = v, run+1
	}
	for i, j := range align(a, b) {
		switch {
		case j < 0:
			count(stepSkip)
		case i >= 0 && equal(a[i], b[j]):
			count(stepCopy)
		case i >= 0 && a[i].Type == b[j].Type && a[i].Flags == b[j].Flags:
			flush()
			body = appendPatch(body, a[i].Data, b[j].Data)
		default:
			if i >= 0 {
				count(stepSkip)
			}
			flush()
			body = binary.AppendUvarint(body, uint64(len(b[j].Data))<<2|stepInsert)
			body = binary.LittleEndian.AppendUint16(body, b[j].Type)
			body = binary.LittleEndian.AppendUint16(body, b[j].Flags)
			body = append(body, b[j].Data...)
		}
	}
	flush()
	return body
}

func appendPatch(body, from, to []byte) []byte {
	shorter := min(len(from), len(to))
	head := 0
	for head < shorter && from[head] == to[head] {
		head++
	}
	tail := 0
	for tail < shorter-head && from[len(from)-1-tail] == to[len(to)-1-tail] {
		tail++
	}
	body = binary.AppendUvarint(body, uint64(head)<<2|stepPatch)
	body = binary.AppendUvarint(body, uint64(tail))
	body = binary.AppendUvarint(body, uint64(len(to)-head-tail))
	return append(body, to[head:len(to)-tail]...)
}

// checksum returns the CRC-32C of messages as they are stored.
func checksum(msgs []rawnl.Message) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	var sum uint32
	var buf []byte
	for _, m := range msgs {
		buf = m.Append(buf[:0], 0)
		sum = crc32.Update(sum, table, buf)
	}
	return sum
}

// Apply returns the State that the Delta makes of old, which is not changed and shares its memory with the new one.
// The error is [ErrMalformed] or [ErrVersion] if the Delta was made for another State, or if what it makes can't be
// a State: then [ReadState] would refuse it too.
func (d *Delta) Apply(old *State) (*State, error) {
	next := *old.orFresh()
	if next.Messages = maps.Clone(next.Messages); next.Messages == nil {
		next.Messages = map[Kind][]rawnl.Message{}
	}
	whole := false // what concerns more than one message has to be looked at again
	for _, s := range d.sections {
		if s.kind >= sectionMeta {
			whole = true
			if err := next.setSection(s.kind, s.body); err != nil {
				return nil, err
			}
			continue
		}
		k := Kind(s.kind)
		if !slices.Contains(kinds(), k) {
			return nil, fmt.Errorf("%w: section %d", ErrVersion, s.kind)
		}
		whole = whole || k == KindLink
		msgs, err := patched(k, next.Messages[k], s.body)
		if err != nil {
			return nil, fmt.Errorf("%w: difference of %s: %w", ErrMalformed, k.plural(), err)
		}
		if next.Messages[k] = msgs; len(msgs) == 0 {
			delete(next.Messages, k)
		}
	}
	if whole {
		if next.Kernel == "" {
			return nil, fmt.Errorf("%w: no kernel release", ErrMalformed)
		}
		if err := next.validateRest(); err != nil {
			return nil, err
		}
	}
	return &next, nil
}

var (
	errCut   = errors.New("truncated step")
	errOther = errors.New("it was made for another state")
)

// patched follows a script. Every message that isn't one of the old ones is validated.
func patched(k Kind, old []rawnl.Message, body []byte) ([]rawnl.Message, error) {
	if len(body) < editsHeadLen {
		return nil, errCut
	}
	sum := binary.LittleEndian.Uint32(body[4:])
	if uint64(binary.LittleEndian.Uint32(body)) != uint64(len(old)) {
		return nil, errOther
	}
	r := script{body: body[editsHeadLen:]}
	var list []rawnl.Message
	for len(r.body) > 0 {
		n := r.number()
		verb := n & 3
		n >>= 2
		var m rawnl.Message
		switch verb {
		case stepCopy, stepSkip:
			if r.err != nil {
				return nil, r.err
			}
			if n == 0 || n > uint64(len(old)) {
				return nil, errOther
			}
			if verb == stepCopy {
				list = append(list, old[:n]...)
			}
			old = old[n:]
			continue
		case stepPatch:
			if len(old) == 0 {
				return nil, errOther
			}
			m, old = old[0], old[1:]
			tail := r.number()
			middle := r.bytes(r.number())
			if size := uint64(len(m.Data)); n > size || tail > size-n {
				return nil, errOther
			}
			m.Data = slices.Concat(m.Data[:n], middle, m.Data[uint64(len(m.Data))-tail:])
		case stepInsert:
			head := r.bytes(4)
			m.Data = r.bytes(n)
			if r.err == nil {
				m.Type, m.Flags = binary.LittleEndian.Uint16(head), binary.LittleEndian.Uint16(head[2:])
			}
		}
		if r.err != nil {
			return nil, r.err
		}
		if err := validateMessage(k, m); err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	if len(old) > 0 || checksum(list) != sum {
		return nil, errOther
	}
	return list, nil
}

// script is read from the front; after an error it reads zeros.
type script struct {
	body []byte
	err  error
}

func (s *script) number() uint64 {
	v, n := binary.Uvarint(s.body)
	if n <= 0 {
		s.body, s.err = nil, errCut
		return 0
	}
	s.body = s.body[n:]
	return v
}

func (s *script) bytes(n uint64) []byte {
	if n > uint64(len(s.body)) {
		s.body, s.err = nil, errCut
		return nil
	}
	b := s.body[:n:n]
	s.body = s.body[n:]
	return b
}

// WriteTo writes the Delta's binary form.
func (d *Delta) WriteTo(w io.Writer) (int64, error) {
	cw := &countingWriter{w: bufio.NewWriter(w)}
	cw.write(header(deltaMagic))
	for _, s := range d.sections {
		cw.section(s.kind, len(s.body))
		cw.write(s.body)
	}
	cw.end()
	if cw.err != nil {
		return cw.n, fmt.Errorf("write difference of network states: %w", cw.err)
	}
	return cw.n, nil
}

// ReadDelta reads a Delta's binary form to the end of r. The error is [ErrMalformed] or [ErrVersion] if the bytes are
// at fault; what the sections hold is looked at in [Delta.Apply]. Memory grows with the bytes that arrive.
func ReadDelta(r io.Reader) (*Delta, error) {
	d := &Delta{}
	if err := readSections(r, deltaMagic, func(kind uint16, body []byte) error {
		d.sections = append(d.sections, section{kind, body})
		return nil
	}); err != nil {
		return nil, err
	}
	return d, nil
}

// share makes the State hold the other's messages where they are equal, so that comparing them costs nothing any more
// and they are in memory once.
func (s *State) share(other *State) {
	for k, msgs := range s.Messages {
		if o := other.Messages[k]; same(msgs, o) {
			s.Messages[k] = o
		}
	}
}

func (s *State) meta() meta { return meta{Kernel: s.Kernel, Uplinks: s.uplinks, Losses: s.losses} }
