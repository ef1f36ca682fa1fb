package stream

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"time"

	"github.com/klauspost/compress/zstd"
)

// Message is what Receive returns: a message, or the beginning of an entry if Entry isn't nil.
type Message struct {
	Type  string
	Body  json.RawMessage // nil if there is none
	Entry *Entry
}

// Decode reads the body into v. Unknown fields are passed over: a newer side may send more.
func (m *Message) Decode(v any) error {
	if err := json.Unmarshal(m.Body, v); err != nil {
		return fmt.Errorf("message %s: %w: %w", m.Type, ErrProtocol, err)
	}
	return nil
}

// Entry is a named sequence of bytes. It must be read until io.EOF, which comes only if all of it arrived unaltered,
// or another error, before the next Receive.
type Entry struct {
	Name string // a clean relative path, at most 1 KiB
	Size int64  // -1 if the sender didn't know it

	c      *Conn
	ctx    context.Context
	total  int64
	digest hash.Hash
	frame  *inFrame // whose rest is read next
	rest   []byte
	err    error
}

// inFrame is a frame that arrived.
type inFrame struct {
	header  header
	payload []byte // as it came
	data    []byte // of a data frame, unpacked
	digest  digest
	in, buf []byte // memory for the payload and for the data of data frames
	ready   chan struct{}
	err     error // why no other frame follows; or why this one's data is no good
	slot    bool  // goes back to slots
}

// Receive returns the next message or entry. After a bye of the other side it returns io.EOF. If ctx ends, the
// connection is closed; the context also governs the entry that is returned.
func (c *Conn) Receive(ctx context.Context) (*Message, error) {
	m, err := c.receive(ctx)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("receive: %w", err)
	}
	return m, err
}

func (c *Conn) receive(ctx context.Context) (*Message, error) {
	if err := c.usable(ctx); err != nil {
		return nil, err
	}
	if c.current != nil && c.current.err == nil {
		return nil, fmt.Errorf("%s was not read to its end", c.current.Name)
	}
	c.current = nil
	defer c.closeWith(ctx)()
	f, err := c.next()
	if err != nil {
		return nil, err
	}
	defer c.release(f)
	if f.header.kind == kindEntry {
		name := string(f.payload[8:])
		c.current = &Entry{
			Name: name, Size: int64(binary.BigEndian.Uint64(f.payload)),
			c: c, ctx: ctx, digest: sha256.New(),
		}
		return &Message{Entry: c.current}, nil
	}
	typ, body := f.payload[1:1+f.payload[0]], f.payload[1+f.payload[0]:]
	c.rawReceived.Add(int64(len(body)))
	m := &Message{Type: string(typ)}
	if len(body) > 0 {
		m.Body = json.RawMessage(body)
	}
	return m, nil
}

// next returns the next frame. What arrived before the connection failed comes before the failure.
func (c *Conn) next() (*inFrame, error) {
	if c.ended != nil {
		return nil, c.ended
	}
	var f *inFrame
	select {
	case f = <-c.arrived:
	case <-c.done:
		select {
		case f = <-c.arrived:
		default:
			return nil, c.err
		}
	}
	f.wait()
	if f.err != nil {
		c.ended = f.err
		return nil, f.err
	}
	return f, nil
}

// wait until the frame is unpacked.
func (f *inFrame) wait() {
	if f.ready != nil {
		<-f.ready
	}
}

// release gives a frame back to the reader.
func (c *Conn) release(f *inFrame) {
	if len(f.payload) > 1+typeSize+bodySize {
		<-c.bulk
	}
	if !f.slot {
		return
	}
	f.payload, f.slot = nil, false // what was in a message lives on there
	c.slots <- f
}

// Read returns what is unpacked of the entry.
func (e *Entry) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := e.advance(); err != nil {
		return 0, err
	}
	n := copy(p, e.rest)
	e.rest = e.rest[n:]
	return n, nil
}

// WriteTo writes the rest of the entry to w. io.Copy uses it.
func (e *Entry) WriteTo(w io.Writer) (total int64, err error) {
	for {
		switch err := e.advance(); {
		case errors.Is(err, io.EOF):
			return total, nil
		case err != nil:
			return total, err
		}
		n, err := w.Write(e.rest)
		total += int64(n)
		e.rest = e.rest[n:]
		if err != nil {
			return total, err
		}
	}
}

// advance makes sure that there is something to read.
func (e *Entry) advance() error {
	if e.err != nil || len(e.rest) > 0 {
		return e.err
	}
	if e.frame != nil {
		e.c.release(e.frame)
		e.frame = nil
	}
	defer e.c.closeWith(e.ctx)()
	var f *inFrame
	err := context.Cause(e.ctx)
	if err == nil {
		f, err = e.c.next()
	}
	switch {
	case err != nil:
	case f.header.kind == kindData:
		e.total += int64(len(f.data))
		e.digest.Write(f.digest[:])
		e.frame, e.rest = f, f.data
		if e.Size < 0 || e.total <= e.Size {
			e.c.rawReceived.Add(int64(len(f.data)))
			return nil
		}
		err = fmt.Errorf("%w: more than the %d bytes that were announced", ErrProtocol, e.Size)
	case f.header.kind == kindCancel:
		e.err = fmt.Errorf("entry %s: %w", e.Name, ErrCanceled)
		e.c.release(f)
		return e.err
	default: // the end
		err = e.check(f.payload)
		e.c.release(f)
	}
	e.rest = nil
	if errors.Is(err, io.EOF) {
		e.err = io.EOF
		return io.EOF
	}
	e.err = fmt.Errorf("entry %s: %w", e.Name, err)
	e.c.fail(e.err)
	return e.err
}

// check compares the entry with what its end says. It returns io.EOF if all is well.
func (e *Entry) check(end []byte) error {
	size := int64(binary.BigEndian.Uint64(end[sha256.Size:]))
	switch {
	case e.total != size, e.Size >= 0 && e.total != e.Size:
		return fmt.Errorf("%w: %d bytes came of %d", ErrDamaged, e.total, size)
	case !bytes.Equal(e.digest.Sum(nil), end[:sha256.Size]):
		return fmt.Errorf("%w: its digest differs", ErrDamaged)
	}
	return io.EOF
}

// readLoop reads frames until the other side says bye or something is wrong, which it passes on as a last frame.
func (c *Conn) readLoop() {
	defer close(c.readDone)
	for {
		var f *inFrame
		select {
		case f = <-c.slots:
			f.slot = true
		case <-c.done:
			return
		}
		if err := c.readFrame(f); err != nil {
			err = c.because(err)
			c.arrived <- &inFrame{err: err}
			if !errors.Is(err, io.EOF) {
				c.fail(err)
			}
			return
		}
		c.arrived <- f
	}
}

// readFrame reads the next frame that isn't a ping. It returns io.EOF at a bye.
func (c *Conn) readFrame(f *inFrame) error {
	for {
		h, err := c.readHeader()
		if err != nil {
			return err
		}
		switch h.kind {
		case kindPing:
			if err := c.countPing(); err != nil {
				return err
			}
			continue
		case kindBye:
			if c.inside {
				return fmt.Errorf("%w: a bye inside of an entry", ErrProtocol)
			}
			return io.EOF
		}
		if within := h.kind == kindData || h.kind == kindEnd || h.kind == kindCancel; within != c.inside {
			return fmt.Errorf("%w: a frame of kind %d in the wrong place", ErrProtocol, h.kind)
		}
		f.header, f.data, f.ready, f.err = h, nil, nil, nil
		switch h.kind {
		case kindMessage:
			err = c.readMessage(f)
		case kindData:
			err = c.readData(f)
		default:
			c.inside = h.kind == kindEntry
			f.payload = make([]byte, h.length)
			if err = c.readPayload(f); err == nil && h.kind == kindEntry {
				err = checkEntry(f.payload)
			}
		}
		c.begun.Store(0)
		return err
	}
}

func (c *Conn) readHeader() (header, error) {
	_, err := c.in.Peek(1)
	switch {
	case errors.Is(err, io.EOF):
		return header{}, fmt.Errorf("%w: the other side went away without a word", ErrTruncated)
	case err != nil:
		return header{}, err
	}
	c.begin(headerSize)
	var b [headerSize]byte
	if err := c.readFull(b[:]); err != nil {
		return header{}, err
	}
	h, err := parseHeader(b[:])
	switch {
	case err != nil:
		return header{}, err
	case h.sequence != c.expected:
		return header{}, fmt.Errorf("%w: frame %d came where %d was expected", ErrOrder, h.sequence, c.expected)
	}
	c.expected++
	c.allow(headerSize + int(h.length))
	if h.length == 0 {
		c.begun.Store(0)
	}
	return h, nil
}

// countPing allows four times as many pings as there should be, whenever they come: after a time in which we did not
// read, they come all at once.
func (c *Conn) countPing() error {
	c.pings++
	if c.pings > pingReserve+int(4*time.Since(c.birth)/c.quiet) {
		return ErrFlood
	}
	return nil
}

func (c *Conn) readMessage(f *inFrame) error {
	length := int(f.header.length)
	head := make([]byte, 1, 1+typeSize)
	if err := c.readFull(head); err != nil {
		return err
	}
	size := int(head[0])
	if size > typeSize || 1+size > length {
		return fmt.Errorf("%w: a type of %d bytes in a message of %d", ErrProtocol, size, length)
	}
	head = head[:1+size]
	if err := c.readFull(head[1:]); err != nil {
		return err
	}
	typ := string(head[1:])
	if err := checkType(typ); err != nil {
		return err
	}
	body := length - len(head)
	if body > c.limit(typ) {
		return fmt.Errorf("%w: a message %s of %d bytes", ErrTooLarge, typ, body)
	}
	if length > 1+typeSize+bodySize { // one at a time
		begun := c.begun.Swap(0)
		select {
		case c.bulk <- struct{}{}:
		case <-c.done:
			return c.err
		}
		if begun != 0 {
			c.begin(length)
		}
	}
	f.payload = append(make([]byte, 0, len(head)+min(body, bodySize)), head...)
	for len(f.payload) < length { // memory for no more than what came, twice
		start := len(f.payload)
		f.payload = append(f.payload, make([]byte, min(length-start, bodySize))...)
		if err := c.readFull(f.payload[start:]); err != nil {
			return err
		}
	}
	if err := c.checkSum(f); err != nil {
		return err
	}
	if body > 0 && !json.Valid(f.payload[len(head):]) {
		return fmt.Errorf("%w: the body of %s is not JSON", ErrProtocol, typ)
	}
	return nil
}

func checkEntry(payload []byte) error {
	if size := int64(binary.BigEndian.Uint64(payload)); size < -1 {
		return fmt.Errorf("%w: an entry of %d bytes", ErrProtocol, size)
	}
	return checkName(string(payload[8:]))
}

// readData reads a data frame. It is checked, unpacked and digested in the background.
func (c *Conn) readData(f *inFrame) error {
	f.in = atLeast(f.in, int(f.header.length))
	f.payload = f.in[:f.header.length]
	if err := c.readFull(f.payload); err != nil {
		return err
	}
	var decoder *zstd.Decoder
	if f.header.flags == zipped {
		var err error
		if decoder, err = c.decoder(); err != nil {
			return err
		}
	}
	f.ready = make(chan struct{})
	go func() {
		defer close(f.ready)
		f.err = f.unpack(decoder)
	}()
	return nil
}

// unpack makes data of the payload.
func (f *inFrame) unpack(decoder *zstd.Decoder) (err error) {
	n := int(f.header.unpacked)
	f.digest = digestOf(f.payload)
	if f.digest.sum() != f.header.sum {
		return fmt.Errorf("%w: the checksum of a frame differs", ErrDamaged)
	}
	switch f.header.flags {
	case plain:
		f.data = f.payload
		return nil
	case sparse:
		f.buf = atLeast(f.buf, n)
		f.data, err = expand(f.buf[:0], f.payload, n)
	case zipped:
		f.buf = atLeast(f.buf, n)
		f.data, err = decoder.DecodeAll(f.payload, f.buf[:0:n])
		if err != nil {
			return fmt.Errorf("%w: unpack: %w", ErrDamaged, err)
		}
		if len(f.data) != n {
			return fmt.Errorf("%w: %d bytes were unpacked, not %d", ErrDamaged, len(f.data), n)
		}
	}
	f.digest = digestOf(f.data)
	return err
}

// atLeast returns b, or other memory if that is too small.
func atLeast(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, n)
	}
	return b
}

// readPayload fills f.payload and checks it.
func (c *Conn) readPayload(f *inFrame) error {
	if err := c.readFull(f.payload); err != nil {
		return err
	}
	return c.checkSum(f)
}

func (c *Conn) checkSum(f *inFrame) error {
	if crc32.Checksum(f.payload, castagnoli) != f.header.sum {
		return fmt.Errorf("%w: the checksum of a frame differs", ErrDamaged)
	}
	return nil
}

func (c *Conn) readFull(p []byte) error {
	_, err := io.ReadFull(c.in, p)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: inside of a frame", ErrTruncated)
	}
	return err
}
