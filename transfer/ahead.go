package transfer

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint"
)

// Ahead packs the large files of an image while it is made: CRIU leaves a core idle, and what is in that one's cache is
// packed and digested at once. See [PackOptions].
type Ahead struct {
	encoder *zstd.Encoder
	spool   *os.File    // frames, in memory
	spare   chan []byte // for frames

	mu    sync.Mutex
	end   int64 // of what is in the spool
	files map[string]map[int]piece
}

// piece is where the frame of a chunk is in the spool. One of no bytes isn't there: its chunk did not shrink.
type piece struct {
	at   int64
	size int
}

// worthwhile is how much smaller a chunk must become to be worth a reader's time to unpack it.
const worthwhile = frameSize / 16 * 15

// NewAhead returns one that has packed nothing yet.
func NewAhead() (*Ahead, error) {
	encoder, err := newEncoder()
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("nsmigrate-frames", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("pack image: %w", os.NewSyscallError("memfd_create", err))
	}
	return &Ahead{
		encoder: encoder,
		spool:   os.NewFile(uintptr(fd), "nsmigrate-frames"),
		spare:   make(chan []byte, 16),
		files:   make(map[string]map[int]piece),
	}, nil
}

// Close gives the memory back.
func (a *Ahead) Close() error { return a.spool.Close() }

// Chunk is a [checkpoint.ChunkFunc].
func (a *Ahead) Chunk(name string, index int, data []byte) (kept bool) {
	if index == 0 && len(data) < frameSize {
		return false // small files share frames
	}
	var out []byte
	select {
	case out = <-a.spare:
	default:
	}
	out = a.encoder.EncodeAll(data, out[:0])
	p := a.keep(out)
	select {
	case a.spare <- out:
	default:
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.files[name] == nil {
		a.files[name] = make(map[int]piece)
	}
	a.files[name][index] = p
	return p.size > 0
}

// keep puts a frame into the spool, unless it is not worth it or there is no room.
func (a *Ahead) keep(frame []byte) piece {
	if len(frame) > worthwhile {
		return piece{}
	}
	a.mu.Lock()
	p := piece{at: a.end, size: len(frame)}
	a.end += int64(len(frame))
	a.mu.Unlock()
	if _, err := a.spool.WriteAt(frame, p.at); err != nil {
		return piece{}
	}
	return p
}

// has says whether the file of an entry is packed.
func (a *Ahead) has(e *checkpoint.Entry) bool {
	if a == nil {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.files[e.Name]) > 0
}

// load returns the frame of a chunk of so many bytes of a file.
func (a *Ahead) load(f *os.File, name string, index, size int, out []byte) ([]byte, error) {
	a.mu.Lock()
	p, ok := a.files[name][index]
	a.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("chunk %d was not digested", index)
	}
	if p.size > 0 {
		out = append(out[:0], make([]byte, p.size)...)
		_, err := a.spool.ReadAt(out, p.at)
		return out, err
	}
	return storedFrame(out, io.NewSectionReader(f, int64(index)*frameSize, int64(size)), size)
}

// packed writes the frames of an entry's file.
func (p *pump) packed(w *frameWriter, f *os.File, e *checkpoint.Entry) error {
	var frames sync.WaitGroup
	defer frames.Wait() // they read the file
	for index, left := 0, e.Size; left > 0; index++ {
		if p.ctx.Err() != nil {
			return context.Cause(p.ctx)
		}
		size := int(min(left, frameSize))
		frames.Add(1)
		err := w.loaded(func(out []byte) ([]byte, error) {
			defer frames.Done()
			out, err := p.ahead.load(f, e.Name, index, size, out)
			if err != nil {
				err = fmt.Errorf("%s: %w", e.Name, err)
			}
			return out, err
		})
		if err != nil {
			frames.Done()
			return err
		}
		left -= int64(size)
		p.done += int64(size)
		if p.progress != nil {
			p.progress(p.done)
		}
	}
	return nil
}

// rawBlock is the most that a block holds (RFC 8878, section 3.1.1.2.4).
const rawBlock = 128 << 10

// storedFrame reads n bytes into a zstd frame that is not compressed (RFC 8878, section 3.1.1).
func storedFrame(out []byte, r io.Reader, n int) ([]byte, error) {
	out = append(out[:0], zstdMagic...)
	out = append(out, 0xa0) // a single segment, and a size of 4 bytes
	out = binary.LittleEndian.AppendUint32(out, uint32(n))
	for n > 0 {
		size := min(n, rawBlock)
		n -= size
		header := uint32(size) << 3 // raw
		if n == 0 {
			header |= 1 // the last
		}
		out = append(out, byte(header), byte(header>>8), byte(header>>16))
		start := len(out)
		out = append(out, make([]byte, size)...)
		if _, err := io.ReadFull(r, out[start:]); err != nil {
			return nil, err
		}
	}
	return out, nil
}
