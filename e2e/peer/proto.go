package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"github.com/nsmigrate/nsmigrate/e2e/peer/seq"
)

// A connection begins with a hello that says what it is for.
type mode byte

const (
	modeEcho       mode = 'e' // request and response, a chunk each
	modeBulk       mode = 'b' // both directions as fast as they go
	modeHalf       mode = 'h' // the client ends its direction, the server keeps sending
	modeHalfServer mode = 's' // the server ends its direction, the client keeps sending
	modeQuery      mode = 'q' // asks what the server knows of a connection
	modeInner      mode = 'i' // asks for an exchange over each of the links inside the tree
)

type hello struct {
	mode   mode
	id     uint64
	chunk  uint32        // bytes
	period time.Duration // between the server's chunks
	rate   uint64        // bytes a second that the server reads; 0 is no limit
}

const (
	magic    = "nspeer01"
	helloLen = len(magic) + 1 + 8 + 4 + 8 + 8
)

func (h hello) bytes() []byte {
	b := append([]byte(magic), byte(h.mode))
	b = binary.BigEndian.AppendUint64(b, h.id)
	b = binary.BigEndian.AppendUint32(b, h.chunk)
	b = binary.BigEndian.AppendUint64(b, uint64(h.period))
	return binary.BigEndian.AppendUint64(b, h.rate)
}

func readHello(r io.Reader) (hello, error) {
	b := make([]byte, helloLen)
	if _, err := io.ReadFull(r, b); err != nil {
		return hello{}, err
	}
	if string(b[:len(magic)]) != magic {
		return hello{}, fmt.Errorf("not a peer: %q", b)
	}
	b = b[len(magic):]
	h := hello{
		mode:   mode(b[0]),
		id:     binary.BigEndian.Uint64(b[1:]),
		chunk:  binary.BigEndian.Uint32(b[9:]),
		period: time.Duration(binary.BigEndian.Uint64(b[13:])),
		rate:   binary.BigEndian.Uint64(b[21:]),
	}
	if h.chunk == 0 || h.chunk > 1<<20 {
		return hello{}, fmt.Errorf("chunk of %d bytes", h.chunk)
	}
	return h, nil
}

// The two directions of a connection are two streams.
func toServer(id uint64) seq.Stream { return seq.Stream(2 * id) }
func toClient(id uint64) seq.Stream { return seq.Stream(2*id + 1) }

// A server that was told the end of a connection's other direction ends its own with a trailer of totals, so
// that a loss at the very end is noticed too.
const trailerLen = 8 + 8 + 8

func trailer(received, sent uint64) []byte {
	b := binary.BigEndian.AppendUint64([]byte("nspeerTT"), received)
	return binary.BigEndian.AppendUint64(b, sent)
}

// pace limits a loop to a number of bytes a second; 0 is no limit.
type pace struct {
	rate  uint64
	begun time.Time
	bytes uint64
}

func (p *pace) wait(n int) {
	if p.rate == 0 {
		return
	}
	if p.begun.IsZero() {
		p.begun = time.Now()
	}
	p.bytes += uint64(n)
	time.Sleep(time.Until(p.begun.Add(time.Duration(p.bytes * uint64(time.Second) / p.rate))))
}
