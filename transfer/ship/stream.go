package ship

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// The format of what travels, see the package's documentation.
const magic = "nsmship1"

const (
	recStorage = 'S'
	recEntry   = 'E'
	recRemoved = 'R'
	recOf      = 'I'
	recData    = 'D'
	recEnd     = 'Z'
)

// ErrMalformed means that the other host sent what is no index and no content of files.
var ErrMalformed = errors.New("malformed")

const pieceSize = 256 << 10 // bytes of content that are moved at a time: what stays in a core's cache

// maxPiece is the most that is taken in one piece.
const maxPiece = 1 << 20

// encoder writes a stream. The first error stays.
type encoder struct {
	w   *bufio.Writer
	buf []byte
	err error
}

func newEncoder(w io.Writer) *encoder {
	e := &encoder{w: bufio.NewWriterSize(w, pieceSize)}
	_, e.err = e.w.WriteString(magic)
	return e
}

func (e *encoder) record(kind byte, parts ...[]byte) {
	if e.err != nil {
		return
	}
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	head := binary.AppendUvarint([]byte{kind}, uint64(n))
	_, e.err = e.w.Write(head)
	for _, p := range parts {
		if e.err == nil {
			_, e.err = e.w.Write(p)
		}
	}
}

func (e *encoder) storage(s string)    { e.record(recStorage, []byte(s)) }
func (e *encoder) removed(path string) { e.record(recRemoved, []byte(path)) }
func (e *encoder) of(i int)            { e.record(recOf, binary.AppendUvarint(nil, uint64(i))) }
func (e *encoder) data(at int64, b []byte) {
	e.record(recData, binary.AppendUvarint(nil, uint64(at)), b)
}

func (e *encoder) entry(x *Entry) {
	e.buf = appendEntry(e.buf[:0], x)
	e.record(recEntry, e.buf)
}

func (e *encoder) end() error {
	e.record(recEnd)
	if e.err == nil {
		e.err = e.w.Flush()
	}
	return e.err
}

const (
	flagImplied = 1 << iota
	flagHeld
)

func appendEntry(b []byte, e *Entry) []byte {
	uv := func(v uint64) { b = binary.AppendUvarint(b, v) }
	text := func(s string) { uv(uint64(len(s))); b = append(b, s...) }
	b = append(b, byte(e.Kind))
	text(e.Path)
	flags := uint64(0)
	if e.Implied {
		flags |= flagImplied
	}
	if e.Held {
		flags |= flagHeld
	}
	uv(flags)
	uv(uint64(e.Mode))
	uv(uint64(e.UID))
	uv(uint64(e.GID))
	b = binary.AppendVarint(b, e.MTime.Sec)
	uv(uint64(e.MTime.Nsec))
	uv(uint64(len(e.Xattrs)))
	for _, x := range e.Xattrs {
		text(x.Name)
		text(string(x.Value))
	}
	text(e.Target)
	uv(uint64(e.Storage))
	uv(e.Inode)
	uv(uint64(e.Size))
	uv(uint64(e.Block))
	uv(uint64(len(e.Data)))
	end := int64(0)
	for _, d := range e.Data {
		uv(uint64(d.Offset - end))
		uv(uint64(d.Length))
		end = d.end()
	}
	uv(uint64(len(e.Sums)))
	for i := range e.Sums {
		b = append(b, e.Sums[i][:]...)
	}
	return b
}

// Encode writes an index.
func (x *Index) Encode(w io.Writer) error {
	e := newEncoder(w)
	for _, s := range x.Storages {
		e.storage(s)
	}
	for i := range x.Entries {
		e.entry(&x.Entries[i])
	}
	if err := e.end(); err != nil {
		return fmt.Errorf("write the index of files: %w", err)
	}
	return nil
}

// decoder reads a stream. It takes nothing from it on trust.
type decoder struct {
	r      *bufio.Reader
	budget int64 // bytes of entries and names that may still come
	buf    []byte
}

// record is one that was read; its byte slice is valid until the next one.
type record struct {
	kind  byte
	entry *Entry // of recEntry
	text  string // of recStorage, recRemoved
	index int    // of recOf
	at    int64  // of recData
	data  []byte
}

func newDecoder(r io.Reader, budget int64) (*decoder, error) {
	d := &decoder{r: bufio.NewReaderSize(r, pieceSize), budget: budget}
	head := make([]byte, len(magic))
	if _, err := io.ReadFull(d.r, head); err != nil {
		return nil, truncated(err)
	}
	if string(head) != magic {
		return nil, fmt.Errorf("%w: it begins with %q", ErrMalformed, head)
	}
	return d, nil
}

// truncated says that the end came early, unless reading itself failed.
func truncated(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it ends early", ErrMalformed)
	}
	return err
}

// next returns the next record; after the last one, io.EOF.
func (d *decoder) next() (record, error) {
	kind, err := d.r.ReadByte()
	if err != nil {
		return record{}, truncated(err)
	}
	n, err := binary.ReadUvarint(d.r)
	if err != nil {
		return record{}, truncated(err)
	}
	if kind == recData {
		if n > maxPiece+binary.MaxVarintLen64 {
			return record{}, fmt.Errorf("%w: a piece of %d bytes", ErrMalformed, n)
		}
	} else if n > uint64(max(d.budget, 0)) {
		return record{}, fmt.Errorf("%w: the list of files is too long for this host", ErrMalformed)
	} else {
		d.budget -= int64(n) + entryCost
	}
	if err := d.read(int(n)); err != nil {
		return record{}, truncated(err)
	}
	return d.parse(kind)
}

// read fills buf with n bytes. Memory is taken only for what comes.
func (d *decoder) read(n int) error {
	d.buf = d.buf[:0]
	for len(d.buf) < n {
		step := min(n-len(d.buf), 1<<20)
		have := len(d.buf)
		d.buf = append(d.buf, make([]byte, step)...)
		if _, err := io.ReadFull(d.r, d.buf[have:]); err != nil {
			return err
		}
	}
	return nil
}

func (d *decoder) parse(kind byte) (record, error) {
	rec := record{kind: kind}
	c := &cursor{b: d.buf, budget: &d.budget}
	var err error
	switch kind {
	case recStorage:
		rec.text = string(d.buf)
	case recRemoved:
		rec.text = string(d.buf)
		err = validPath(rec.text)
	case recEntry:
		rec.entry, err = c.entry()
	case recOf:
		rec.index = int(c.uint(math.MaxInt32))
		err = c.done()
	case recData:
		rec.at = int64(c.uint(maxSize))
		rec.data = c.b
		if c.bad || len(rec.data) == 0 || len(rec.data) > maxPiece {
			err = errors.New("malformed piece")
		}
	case recEnd:
		if len(d.buf) > 0 {
			err = errors.New("data in the last record")
		} else if _, rerr := d.r.ReadByte(); rerr == nil {
			err = errors.New("data after the last record")
		} else {
			return rec, rerr
		}
	default:
		err = fmt.Errorf("unknown record %q", kind)
	}
	if err != nil {
		return record{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return rec, nil
}

// entryCost is about what an entry without any list takes in memory beyond its record.
const entryCost = 200

// cursor reads the fields of a record.
type cursor struct {
	b      []byte
	bad    bool
	budget *int64
}

func (c *cursor) uint(limit uint64) uint64 {
	v, n := binary.Uvarint(c.b)
	if n <= 0 || v > limit {
		c.bad, c.b = true, nil
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *cursor) int() int64 {
	v, n := binary.Varint(c.b)
	if n <= 0 {
		c.bad, c.b = true, nil
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *cursor) bytes(n uint64) []byte {
	if n > uint64(len(c.b)) {
		c.bad, c.b = true, nil
		return nil
	}
	b := c.b[:n]
	c.b = c.b[n:]
	return b
}

func (c *cursor) text() string { return string(c.bytes(c.uint(math.MaxInt32))) }

// count reads how many things of at least size bytes follow, each of which takes cost bytes of memory.
func (c *cursor) count(size int, cost int64) int {
	n := c.uint(uint64(len(c.b) / size))
	if int64(n)*cost > max(*c.budget, 0) {
		c.bad, c.b = true, nil
		return 0
	}
	*c.budget -= int64(n) * cost
	return int(n)
}

func (c *cursor) done() error {
	if c.bad || len(c.b) > 0 {
		return errors.New("fields don't fit their record")
	}
	return nil
}

func (c *cursor) entry() (*Entry, error) {
	e := new(Entry)
	e.Kind = Kind(c.uint(math.MaxUint8))
	e.Path = c.text()
	flags := c.uint(flagImplied | flagHeld)
	e.Implied, e.Held = flags&flagImplied != 0, flags&flagHeld != 0
	e.Mode = uint32(c.uint(math.MaxUint32))
	e.UID = uint32(c.uint(math.MaxUint32))
	e.GID = uint32(c.uint(math.MaxUint32))
	e.MTime.Sec = c.int()
	e.MTime.Nsec = uint32(c.uint(math.MaxUint32))
	if n := c.count(2, 64); n > 0 {
		e.Xattrs = make([]Xattr, n)
		for i := range e.Xattrs {
			e.Xattrs[i].Name = c.text()
			e.Xattrs[i].Value = append([]byte{}, c.bytes(c.uint(math.MaxInt32))...)
		}
	}
	e.Target = c.text()
	e.Storage = int(c.uint(maxStorages))
	e.Inode = c.uint(math.MaxUint64)
	e.Size = int64(c.uint(math.MaxInt64))
	e.Block = int64(c.uint(math.MaxInt64))
	if n := c.count(2, 16); n > 0 {
		e.Data = make([]Extent, n)
		end := int64(0)
		for i := range e.Data {
			gap, length := int64(c.uint(maxSize)), int64(c.uint(maxSize))
			e.Data[i] = Extent{end + gap, length}
			if end = e.Data[i].end(); end > maxSize {
				c.bad = true
				break
			}
		}
	}
	if n := c.count(len(Sum{}), 0); n > 0 {
		e.Sums = make([]Sum, n)
		for i := range e.Sums {
			copy(e.Sums[i][:], c.bytes(uint64(len(Sum{}))))
		}
	}
	if err := c.done(); err != nil {
		return nil, err
	}
	if err := e.validate(); err != nil {
		return nil, err
	}
	return e, nil
}

// Limits bound what is taken from the other host. Zero fields stand for defaults.
type Limits struct {
	Entries  int   // 1 Mi
	Metadata int64 // bytes of the index in memory, about; 512 MiB
	Bytes    int64 // of content; 0 is what fits on the disk
}

func (l Limits) entries() int {
	if l.Entries == 0 {
		return 1 << 20
	}
	return l.Entries
}

func (l Limits) metadata() int64 {
	if l.Metadata == 0 {
		return 512 << 20
	}
	return l.Metadata
}

// ReadIndex reads and validates an index from another host. Errors wrap [ErrMalformed], unless they are those of r.
func ReadIndex(r io.Reader, limits Limits) (*Index, error) {
	x, err := readIndex(r, limits)
	if err != nil {
		return nil, fmt.Errorf("read the index of files: %w", err)
	}
	return x, nil
}

func readIndex(r io.Reader, limits Limits) (*Index, error) {
	d, err := newDecoder(r, limits.metadata())
	if err != nil {
		return nil, err
	}
	x := new(Index)
	for {
		rec, err := d.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		switch {
		case rec.kind == recStorage && len(x.Entries) == 0 && len(x.Storages) < maxStorages:
			x.Storages = append(x.Storages, rec.text)
		case rec.kind == recEntry && len(x.Entries) < limits.entries():
			x.Entries = append(x.Entries, *rec.entry)
		case rec.kind == recEntry:
			return nil, fmt.Errorf("%w: more than %d entries", ErrMalformed, limits.entries())
		default:
			return nil, fmt.Errorf("%w: record %q in an index", ErrMalformed, rec.kind)
		}
	}
	if err := x.validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return x, nil
}
