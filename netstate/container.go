package netstate

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// The binary form of a State. Integers of the frame are little-endian, netlink messages are in the byte
// order of the host that made them, which the header names.
//
//	offset  size  header
//	0       8     magic "NSMSTATE"
//	8       2     major version: a reader refuses another one
//	10      2     minor version: a reader refuses a larger one, because nothing may be lost in silence
//	12      1     byte order of the messages: 1 little-endian, 2 big-endian
//	13      3     zero
//
//	offset  size  section, any number of times, kinds strictly ascending
//	0       2     kind: a Kind holds netlink messages, 0x100 and above hold JSON
//	2       2     zero
//	4       4     length n of the body, not zero
//	8       n     body: netlink messages with their headers (sequence and port zero, padding zero), or JSON
//
//	8 bytes of 0xff end the file. There is one encoding of a State and only that is read.
const (
	magic        = "NSMSTATE"
	formatMajor  = 1
	formatMinor  = 0
	headerLen    = 16
	sectionLen   = 8
	sectionMeta  = 0x100 // JSON: kernel release, uplinks, losses
	sectionSysc  = 0x101 // JSON: sysctls
	sectionTable = 0x102 // JSON: rulesets of legacy iptables
	sectionEnd   = 0xffff
)

// maxState bounds the size of a State that is read.
const maxState = 1 << 30

// meta is the JSON section for what has no netlink form.
type meta struct {
	Kernel  string   `json:"kernel"`
	Uplinks []Uplink `json:"uplinks,omitempty"`
	Losses  []Loss   `json:"losses,omitempty"`
}

var (
	// ErrMalformed means that bytes are no State, or not a State's canonical encoding.
	ErrMalformed = errors.New("malformed network state")
	// ErrVersion means that a State was written by a newer version of the format, or by a host with the
	// other byte order.
	ErrVersion = errors.New("network state format not supported")
)

// byteOrder returns the header's code for this host's byte order.
func byteOrder() byte {
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		return 1
	}
	return 2
}

// WriteTo writes the State's binary form.
func (s *State) WriteTo(w io.Writer) (int64, error) {
	cw := &countingWriter{w: bufio.NewWriterSize(w, 1<<16)}
	cw.write(header(magic))
	for _, k := range slices.Sorted(maps.Keys(s.Messages)) {
		n := 0
		for _, m := range s.Messages[k] {
			n += rawnl.HeaderLen + rawnl.Align(len(m.Data))
		}
		if n == 0 {
			continue
		}
		cw.section(uint16(k), n)
		var buf []byte
		for _, m := range s.Messages[k] {
			buf = m.Append(buf[:0], 0)
			cw.write(buf)
		}
	}
	cw.json(sectionMeta, s.meta())
	if len(s.Sysctls) > 0 {
		cw.json(sectionSysc, s.Sysctls)
	}
	if len(s.Tables) > 0 {
		cw.json(sectionTable, s.Tables)
	}
	cw.end()
	if cw.err != nil {
		return cw.n, fmt.Errorf("write network state: %w", cw.err)
	}
	return cw.n, nil
}

// header returns the header of a file with a magic number.
func header(magic string) []byte {
	head := append([]byte(magic), 0, 0, 0, 0, byteOrder(), 0, 0, 0)
	binary.LittleEndian.PutUint16(head[8:], formatMajor)
	binary.LittleEndian.PutUint16(head[10:], formatMinor)
	return head
}

// countingWriter keeps the first error, so that a sequence of writes is checked once.
type countingWriter struct {
	w   *bufio.Writer
	n   int64
	err error
}

func (c *countingWriter) write(b []byte) {
	if c.err != nil {
		return
	}
	n, err := c.w.Write(b)
	c.n += int64(n)
	c.err = err
}

func (c *countingWriter) section(kind uint16, length int) {
	if length > maxState {
		c.err = fmt.Errorf("section %d of %d bytes is too large", kind, length)
		return
	}
	b := binary.LittleEndian.AppendUint16(nil, kind)
	b = append(b, 0, 0)
	c.write(binary.LittleEndian.AppendUint32(b, uint32(length)))
}

// end writes the mark of the end and all that is buffered.
func (c *countingWriter) end() {
	c.write(bytes.Repeat([]byte{0xff}, sectionLen))
	if c.err == nil {
		c.err = c.w.Flush()
	}
}

func (c *countingWriter) json(kind uint16, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		c.err = err
		return
	}
	c.section(kind, len(b))
	c.write(b)
}

// ReadState reads a State's binary form to the end of r and validates it. The error is [ErrMalformed] or
// [ErrVersion] if the bytes are at fault. Memory grows with the bytes that arrive, not with what lengths in
// them claim.
func ReadState(r io.Reader) (*State, error) {
	s := &State{Messages: map[Kind][]rawnl.Message{}}
	if err := readSections(r, magic, s.setSection); err != nil {
		return nil, err
	}
	if s.Kernel == "" {
		return nil, fmt.Errorf("%w: no kernel release", ErrMalformed)
	}
	if err := s.Validate(); err != nil {
		return nil, err
	}
	return s, nil
}

// readSections reads a file with a magic number to its end and passes on its sections.
func readSections(r io.Reader, magic string, set func(kind uint16, body []byte) error) error {
	br := bufio.NewReaderSize(io.LimitReader(r, maxState), 1<<16)
	if err := readHeader(br, magic); err != nil {
		return err
	}
	for last := uint16(0); ; {
		kind, body, err := readSection(br)
		if err != nil {
			return err
		}
		if kind == sectionEnd {
			break
		}
		if kind <= last {
			return fmt.Errorf("%w: section %d after section %d", ErrMalformed, kind, last)
		}
		last = kind
		if err := set(kind, body); err != nil {
			return err
		}
	}
	if _, err := br.ReadByte(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: data after the end", ErrMalformed)
	}
	return nil
}

func readHeader(r io.Reader, magic string) error {
	head := make([]byte, headerLen)
	if _, err := io.ReadFull(r, head); err != nil {
		return readError(err)
	}
	major, minor := binary.LittleEndian.Uint16(head[8:]), binary.LittleEndian.Uint16(head[10:])
	switch {
	case string(head[:8]) != magic:
		return fmt.Errorf("%w: no magic number", ErrMalformed)
	case major != formatMajor || minor > formatMinor:
		return fmt.Errorf("%w: version %d.%d, this nsmigrate reads %d.%d", ErrVersion, major, minor, formatMajor, formatMinor)
	case head[12] != byteOrder() && (head[12] == 1 || head[12] == 2):
		return fmt.Errorf("%w: captured on a host with another byte order", ErrVersion)
	case head[12] != byteOrder() || !bytes.Equal(head[13:], []byte{0, 0, 0}):
		return fmt.Errorf("%w: header", ErrMalformed)
	}
	return nil
}

func readSection(r io.Reader) (kind uint16, body []byte, err error) {
	head := make([]byte, sectionLen)
	if _, err := io.ReadFull(r, head); err != nil {
		return 0, nil, readError(err)
	}
	kind = binary.LittleEndian.Uint16(head)
	length := binary.LittleEndian.Uint32(head[4:])
	if kind == sectionEnd {
		if !bytes.Equal(head, bytes.Repeat([]byte{0xff}, sectionLen)) {
			return 0, nil, fmt.Errorf("%w: end mark", ErrMalformed)
		}
		return kind, nil, nil
	}
	if head[2] != 0 || head[3] != 0 || length == 0 || length > maxState {
		return 0, nil, fmt.Errorf("%w: head of section %d", ErrMalformed, kind)
	}
	for uint32(len(body)) < length {
		// Doubled as bytes arrive, but never beyond the length: a large state is held once.
		step := int(min(max(uint32(len(body)), 1<<16), length-uint32(len(body))))
		body = slices.Grow(body, step)
		n, err := io.ReadFull(r, body[len(body):len(body)+step])
		body = body[:len(body)+n]
		if err != nil {
			return 0, nil, readError(err)
		}
	}
	return kind, body, nil
}

func readError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: truncated", ErrMalformed)
	}
	return fmt.Errorf("read network state: %w", err)
}

func (s *State) setSection(kind uint16, body []byte) error {
	switch kind {
	case sectionMeta:
		var m meta
		if err := readJSON(body, &m); err != nil {
			return err
		}
		s.Kernel, s.uplinks, s.losses = m.Kernel, m.Uplinks, m.Losses
		return nil
	case sectionSysc:
		s.Sysctls = nil // it may be another State's, and would be overwritten
		return readJSON(body, &s.Sysctls)
	case sectionTable:
		s.Tables = nil
		return readJSON(body, &s.Tables)
	}
	if !slices.Contains(kinds(), Kind(kind)) {
		return fmt.Errorf("%w: section %d", ErrVersion, kind)
	}
	msgs, err := rawnl.Decode(body)
	if err != nil {
		return fmt.Errorf("%w: section %s: %w", ErrMalformed, Kind(kind), err)
	}
	s.Messages[Kind(kind)] = msgs
	return nil
}

// readJSON decodes a section and insists that it is what would be written for its value.
func readJSON(body []byte, v any) error {
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	again, err := json.Marshal(v)
	if err != nil || !bytes.Equal(again, body) {
		return fmt.Errorf("%w: JSON is not in canonical form", ErrMalformed)
	}
	return nil
}
