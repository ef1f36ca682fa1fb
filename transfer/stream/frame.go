package stream

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math"
	"strings"
	"time"

	"github.com/zeebo/xxh3"
)

// The version of the protocol that this package speaks.
const (
	Major = 3
	Minor = 0
)

const (
	magic        = "nsmwire\n"
	greetingSize = len(magic) + 12
	headerSize   = 24

	frameSize = 1 << 20 // most bytes of an entry in a data frame, packed or not
	nameSize  = 1 << 10 // longest name of an entry
	typeSize  = 64      // longest type of a message
	bodySize  = 1 << 20 // largest body of a message, if its type has no limit of its own
	largest   = 64 << 20
	endSize   = 32 + 8

	pageSize = 4 << 10
	mapSize  = frameSize / pageSize / 8
)

type kind byte

const (
	kindMessage kind = 1 + iota
	kindEntry
	kindData
	kindEnd
	kindCancel
	kindPing
	kindBye
)

// How a data frame is packed.
const (
	plain  byte = 0
	zipped byte = 1
	sparse byte = 2
)

// digest of the data of a frame.
type digest [16]byte

func digestOf(data []byte) digest { return xxh3.Hash128(data).Bytes() }

// sum is the checksum of a data frame whose payload has the digest.
func (d digest) sum() uint32 { return binary.BigEndian.Uint32(d[12:]) }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// header of a frame.
type header struct {
	kind     kind
	flags    byte
	sequence uint32
	length   uint32
	unpacked uint32
	sum      uint32 // of the payload
}

// put writes the header to the first bytes of b.
func (h header) put(b []byte) {
	b[0], b[1], b[2], b[3] = byte(h.kind), h.flags, 0, 0
	binary.BigEndian.PutUint32(b[4:], h.sequence)
	binary.BigEndian.PutUint32(b[8:], h.length)
	binary.BigEndian.PutUint32(b[12:], h.unpacked)
	binary.BigEndian.PutUint32(b[16:], h.sum)
	binary.BigEndian.PutUint32(b[20:], crc32.Checksum(b[:20], castagnoli))
}

// parseHeader reads a header and checks all that can be known from it alone.
func parseHeader(b []byte) (header, error) {
	if crc32.Checksum(b[:20], castagnoli) != binary.BigEndian.Uint32(b[20:]) {
		return header{}, fmt.Errorf("%w: the checksum of a frame's header differs", ErrDamaged)
	}
	h := header{
		kind:     kind(b[0]),
		flags:    b[1],
		sequence: binary.BigEndian.Uint32(b[4:]),
		length:   binary.BigEndian.Uint32(b[8:]),
		unpacked: binary.BigEndian.Uint32(b[12:]),
		sum:      binary.BigEndian.Uint32(b[16:]),
	}
	if b[2] != 0 || b[3] != 0 {
		return h, fmt.Errorf("%w: reserved bytes of a frame's header are set", ErrProtocol)
	}
	return h, h.check()
}

func (h header) check() error {
	least, most := uint32(0), uint32(0)
	switch h.kind {
	case kindMessage:
		least, most = 2, 1+typeSize+largest
	case kindEntry:
		least, most = 8+1, 8+nameSize
	case kindData:
		least, most = 1, frameSize
	case kindEnd:
		least, most = endSize, endSize
	case kindCancel, kindPing, kindBye:
	default:
		return fmt.Errorf("%w: a frame of unknown kind %d", ErrProtocol, h.kind)
	}
	switch {
	case h.length > most, h.unpacked > most:
		return fmt.Errorf("%w: a frame of kind %d and %d bytes, %d unpacked", ErrTooLarge, h.kind, h.length, h.unpacked)
	case h.length < least, h.unpacked < least:
		return fmt.Errorf("%w: a frame of kind %d and only %d bytes", ErrProtocol, h.kind, h.length)
	case h.flags != plain && (h.kind != kindData || h.flags > sparse):
		return fmt.Errorf("%w: a frame of kind %d with flags %#x", ErrProtocol, h.kind, h.flags)
	case h.flags == plain && h.length != h.unpacked:
		return fmt.Errorf("%w: a plain frame of %d bytes that would be %d unpacked", ErrProtocol, h.length, h.unpacked)
	}
	return nil
}

// A greeting's silence is believed within these bounds, so that nobody makes us ping without end.
const (
	leastStall = 100 * time.Millisecond
	mostStall  = time.Hour
)

func greeting(stall time.Duration) []byte {
	b := append(make([]byte, 0, greetingSize), magic...)
	b = binary.BigEndian.AppendUint16(b, Major)
	b = binary.BigEndian.AppendUint16(b, Minor)
	b = binary.BigEndian.AppendUint32(b, uint32(min(stall.Milliseconds(), math.MaxUint32)))
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// parseGreeting returns the version of the other side and its patience.
func parseGreeting(b []byte) (Version, time.Duration, error) {
	if string(b[:len(magic)]) != magic {
		return Version{}, 0, &GreetingError{Got: b}
	}
	v := Version{Major: binary.BigEndian.Uint16(b[8:]), Minor: binary.BigEndian.Uint16(b[10:])}
	if v.Major != Major { // whatever follows in its greeting
		return v, 0, &VersionError{Ours: Version{Major, Minor}, Theirs: v}
	}
	if crc32.Checksum(b[:16], castagnoli) != binary.BigEndian.Uint32(b[16:]) {
		return v, 0, fmt.Errorf("%w: the checksum of the greeting differs", ErrDamaged)
	}
	stall := time.Duration(binary.BigEndian.Uint32(b[12:])) * time.Millisecond
	return v, min(max(stall, leastStall), mostStall), nil
}

// checkName accepts clean relative paths.
func checkName(name string) error {
	if len(name) > nameSize || !fs.ValidPath(name) || name == "." || strings.ContainsRune(name, 0) {
		return fmt.Errorf("%w: %.100q can't name an entry", ErrProtocol, name)
	}
	return nil
}

// checkType accepts short words.
func checkType(typ string) error {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
	if typ == "" || len(typ) > typeSize || strings.Trim(typ, letters) != "" {
		return fmt.Errorf("%w: %.100q can't be the type of a message", ErrProtocol, typ)
	}
	return nil
}
