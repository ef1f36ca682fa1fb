package transfer

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
)

// frameSize is how much of a tar goes into one zstd frame. Frames are independent of each other, so that all
// cores compress and decompress; larger ones compress no better, because the fastest level looks no farther.
const frameSize = 1 << 20

// frame is one on its way: in becomes out.
type frame struct {
	in, out []byte
	err     error
	ready   chan struct{}
	load    func(out []byte) ([]byte, error) // makes out, instead of the usual work; may be nil
}

// conveyor takes frames from one goroutine through many workers to another goroutine, in order. Their number is
// fixed, and so is the memory.
type conveyor struct {
	free  chan *frame // for the producer
	work  chan *frame
	order chan *frame // for the consumer, who waits for each to be ready
}

func newConveyor(work func(*frame)) *conveyor {
	workers := runtime.GOMAXPROCS(0)
	frames := 2 * workers
	c := &conveyor{
		free:  make(chan *frame, frames),
		work:  make(chan *frame, frames),
		order: make(chan *frame, frames),
	}
	for range frames {
		c.free <- &frame{ready: make(chan struct{}, 1)}
	}
	for range workers {
		go func() {
			for f := range c.work {
				work(f)
				f.ready <- struct{}{}
			}
		}()
	}
	return c
}

// put passes a filled frame on. It never blocks.
func (c *conveyor) put(f *frame) {
	c.order <- f
	c.work <- f
}

// end says that nothing more is put.
func (c *conveyor) end() {
	close(c.work)
	close(c.order)
}

// each calls use with all frames in order, up to the first error, and hands them back to the producer.
func (c *conveyor) each(use func(*frame) error) error {
	var err error
	for f := range c.order {
		<-f.ready
		if err == nil {
			err = use(f)
		}
		f.in, f.load, f.err = f.in[:0], nil, nil
		c.free <- f
	}
	return err
}

// newEncoder makes one that makes frames as frameReader accepts them.
func newEncoder() (*zstd.Encoder, error) {
	return zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithSingleSegment(true),
		zstd.WithWindowSize(frameSize), zstd.WithEncoderCRC(false))
}

// compress runs produce with a writer that compresses to w.
func compress(w io.Writer, produce func(io.Writer) error) error {
	enc, err := newEncoder()
	if err != nil {
		return err
	}
	fw := &frameWriter{conveyor: newConveyor(func(f *frame) {
		if f.load != nil {
			f.out, f.err = f.load(f.out[:0])
			return
		}
		f.out = enc.EncodeAll(f.in, f.out[:0])
	})}
	written := make(chan error, 1)
	go func() {
		written <- fw.each(func(f *frame) error {
			err := f.err
			if err == nil {
				_, err = w.Write(f.out)
			}
			if err != nil {
				fw.failed.Store(true)
			}
			return err
		})
	}()
	err = produce(fw)
	if err == nil {
		fw.flush()
	}
	fw.end()
	return cmp.Or(<-written, err)
}

var errWriteFailed = errors.New("an earlier write failed")

// frameWriter cuts what is written to it into frames.
type frameWriter struct {
	*conveyor
	next   *frame
	failed atomic.Bool
}

func (w *frameWriter) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		if w.failed.Load() {
			return 0, errWriteFailed
		}
		if w.next == nil {
			w.next = <-w.free
		}
		n := min(len(p), frameSize-len(w.next.in))
		w.next.in = append(w.next.in, p[:n]...)
		p = p[n:]
		if len(w.next.in) == frameSize {
			w.flush()
		}
	}
	return total, nil
}

func (w *frameWriter) flush() {
	if w.next != nil {
		w.put(w.next)
		w.next = nil
	}
}

// loaded has a worker make a whole frame of its own.
func (w *frameWriter) loaded(load func(out []byte) ([]byte, error)) error {
	w.flush()
	if w.failed.Load() {
		return errWriteFailed
	}
	f := <-w.free
	f.load = load
	w.put(f)
	return nil
}

// frameReader decompresses what compress wrote. It accepts no other frames than such, which bounds its memory.
type frameReader struct {
	*conveyor
	r    *bufio.Reader
	quit chan struct{}
	end  error // why there are no more frames, valid when order is closed

	current *frame
	rest    []byte // of the current frame
	err     error
}

func newFrameReader(r io.Reader) (*frameReader, error) {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(frameSize), zstd.WithDecoderConcurrency(0))
	if err != nil {
		return nil, err
	}
	fr := &frameReader{
		conveyor: newConveyor(func(f *frame) { f.out, f.err = dec.DecodeAll(f.in, f.out[:0]) }),
		r:        bufio.NewReaderSize(r, frameSize),
		quit:     make(chan struct{}),
	}
	go fr.feed()
	return fr, nil
}

// feed reads frames until the end, an error, or Close.
func (r *frameReader) feed() {
	defer r.conveyor.end()
	for {
		select {
		case <-r.quit:
			r.end = io.ErrClosedPipe
			return
		case f := <-r.free:
			f.in, r.end = readFrame(r.r, f.in[:0])
			if r.end != nil {
				return
			}
			r.put(f)
		}
	}
}

// Read returns the content of the frames, and io.EOF behind the last one.
func (r *frameReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		if r.current != nil {
			r.free <- r.current
			r.current = nil
		}
		f, ok := <-r.order
		if !ok {
			r.err = r.end
			continue
		}
		<-f.ready
		r.current, r.rest, r.err = f, f.out, f.err
		if f.err != nil {
			r.rest = nil
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// Close ends the reading, at once or after a read that is under way.
func (r *frameReader) Close() error {
	close(r.quit)
	for f := range r.order {
		<-f.ready
	}
	return nil
}

var errFrame = errors.New("not a frame of an image's archive")

// readFrame appends one zstd frame to b, or returns io.EOF if there is none. It understands so much of RFC 8878,
// section 3.1.1, as it takes to find the end.
func readFrame(r *bufio.Reader, b []byte) ([]byte, error) {
	head, err := r.Peek(zstd.HeaderMaxSize)
	if len(head) == 0 {
		return nil, err
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	var h zstd.Header
	if err := h.Decode(head); err != nil {
		return nil, err
	}
	if h.Skippable || h.DictionaryID != 0 || h.HasCheckSum || !h.HasFCS || h.FrameContentSize > frameSize {
		return nil, errFrame
	}
	if b, err = take(r, b, h.HeaderSize); err != nil {
		return nil, err
	}
	for last := false; !last; {
		if b, err = take(r, b, 3); err != nil {
			return nil, err
		}
		block := binary.LittleEndian.Uint32(append([]byte{0}, b[len(b)-3:]...)) >> 8
		last = block&1 != 0
		size := int(block >> 3)
		switch block >> 1 & 3 {
		case 1: // one byte, repeated
			size = 1
		case 3:
			return nil, fmt.Errorf("%w: reserved block type", errFrame)
		}
		if len(b)+size > 2*frameSize {
			return nil, fmt.Errorf("%w: too long", errFrame)
		}
		if b, err = take(r, b, size); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// take appends n bytes of r to b.
func take(r io.Reader, b []byte, n int) ([]byte, error) {
	start := len(b)
	b = append(b, make([]byte, n)...)
	_, err := io.ReadFull(r, b[start:])
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return b, err
}
