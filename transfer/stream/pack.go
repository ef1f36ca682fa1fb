package stream

import (
	"bytes"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
)

// Compression of the data of entries.
type Compression string

// The zero value is Auto.
const (
	Auto Compression = ""     // zstd whenever it makes the stream faster; zero pages never travel
	None Compression = "none" // nothing but that zero pages don't travel
	Zstd Compression = "zstd" // whatever becomes smaller
)

// worthwhile is how much smaller data must become to be worth the other side's time to unpack it.
const worthwhile = 15.0 / 16

// headroom of a buffer: for the header and the map of pages, so that a frame is one piece of memory however it is
// packed.
const headroom = headerSize + mapSize

// outFrame is a frame on its way out. Of a data frame, buf holds headroom and data.
type outFrame struct {
	kind     kind
	flags    byte
	unpacked int
	wire     []byte        // room for the header, and the payload
	ready    chan struct{} // when wire can be read; nil: it can
	done     chan struct{} // closed when it was written; nil: nobody wants to know
	buf      []byte
	spare    []byte // what zstd writes to
	n        int    // bytes of data in buf
	tried    bool   // it went through zstd
	digest   digest
	sum      uint32 // of the payload of a data frame, when it is ready
	reuse    bool
}

// makeRoom prepares f for data.
func (f *outFrame) makeRoom() {
	if f.buf == nil {
		*f = outFrame{kind: kindData, buf: make([]byte, headroom+frameSize), ready: make(chan struct{}, 1), reuse: true}
	}
}

// room is where data is read to.
func (f *outFrame) room() []byte { return f.buf[headroom:] }

func (f *outFrame) data() []byte { return f.buf[headroom : headroom+f.n] }

// packer digests data frames, decides how they are packed, and does it.
type packer struct {
	mode    Compression
	encoder func() (*zstd.Encoder, error)
	gauge   *gauge
	workers chan struct{} // one for each that works: more of them than cores would measure each other
}

func newPacker(mode Compression) *packer {
	workers := runtime.GOMAXPROCS(0)
	return &packer{
		mode: mode, gauge: newGauge(workers), workers: make(chan struct{}, workers),
		encoder: sync.OnceValues(func() (*zstd.Encoder, error) {
			return zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false),
				zstd.WithSingleSegment(true), zstd.WithWindowSize(frameSize), zstd.WithLowerEncoderMem(true),
				zstd.WithEncoderConcurrency(workers))
		}),
	}
}

// warm makes the encoders, which takes a moment, in the background: there is time when a connection begins.
func (p *packer) warm() {
	if p.mode == None {
		return
	}
	go func() {
		encoder, err := p.encoder()
		if err != nil {
			return // pack will say so
		}
		var all sync.WaitGroup
		for range cap(p.workers) {
			all.Go(func() { encoder.EncodeAll(make([]byte, windowBytes), nil) })
		}
		all.Wait()
	}()
}

// pack makes f ready, in the background.
func (p *packer) pack(f *outFrame) error {
	var encoder *zstd.Encoder
	if p.mode != None {
		var err error
		if encoder, err = p.encoder(); err != nil {
			return err
		}
	}
	go func() {
		p.workers <- struct{}{}
		defer func() {
			<-p.workers
			f.ready <- struct{}{}
		}()
		f.unpacked, f.tried = f.n, false
		f.digest = digestOf(f.data())
		bitmap, used := pages(f.data())
		if used > 0 && (p.mode == Zstd || p.mode == Auto && p.gauge.try(f.n)) {
			f.tried = true
			start := time.Now()
			f.spare = encoder.EncodeAll(f.data(), append(f.spare[:0], make([]byte, headerSize)...))
			size := len(f.spare) - headerSize
			p.gauge.packed(f.n, size, time.Since(start))
			if float64(size) < worthwhile*float64(f.n) {
				f.flags, f.wire = zipped, f.spare
				f.sum = digestOf(f.wire[headerSize:]).sum()
				return
			}
		}
		f.store(bitmap, used)
	}()
	return nil
}

// pages returns which pages of data aren't zero, and their number. The last page may be a part of one.
func pages(data []byte) (bitmap [mapSize]byte, used int) {
	var zero [pageSize]byte
	for i := 0; i*pageSize < len(data); i++ {
		page := data[i*pageSize : min(len(data), (i+1)*pageSize)]
		if !bytes.Equal(page, zero[:len(page)]) {
			bitmap[i/8] |= 1 << (i % 8)
			used++
		}
	}
	return bitmap, used
}

// store makes a frame of data as it is, or of its pages that aren't zero, which it moves together.
func (f *outFrame) store(bitmap [mapSize]byte, used int) {
	total := (f.n + pageSize - 1) / pageSize
	if used == total {
		f.flags, f.wire = plain, f.buf[headroom-headerSize:headroom+f.n]
		f.sum = f.digest.sum()
		return
	}
	data, end := f.data(), 0
	for i := range total {
		if bitmap[i/8]&(1<<(i%8)) != 0 {
			end += copy(data[end:], data[i*pageSize:min(f.n, (i+1)*pageSize)])
		}
	}
	length := (total + 7) / 8
	copy(f.buf[headroom-length:], bitmap[:length])
	f.flags, f.wire = sparse, f.buf[headroom-length-headerSize:headroom+end]
	f.sum = digestOf(f.wire[headerSize:]).sum()
}

// expand undoes store: it appends data of n bytes to dst, which has room for them.
func expand(dst, payload []byte, n int) ([]byte, error) {
	total := (n + pageSize - 1) / pageSize
	length := (total + 7) / 8
	if len(payload) < length {
		return nil, fmt.Errorf("%w: a map of pages that ends too early", ErrProtocol)
	}
	bitmap, rest := payload[:length], payload[length:]
	if total%8 != 0 && bitmap[length-1]>>(total%8) != 0 {
		return nil, fmt.Errorf("%w: a map of pages that are not there", ErrProtocol)
	}
	for i := range total {
		size := min(pageSize, n-i*pageSize)
		if bitmap[i/8]&(1<<(i%8)) == 0 {
			dst = dst[:len(dst)+size]
			clear(dst[len(dst)-size:])
			continue
		}
		if len(rest) < size {
			return nil, fmt.Errorf("%w: a page is missing", ErrProtocol)
		}
		dst = append(dst, rest[:size]...)
		rest = rest[size:]
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("%w: more pages than the map says", ErrProtocol)
	}
	return dst, nil
}

const (
	presumedRate = 125e6     // bytes a second of a link that wasn't measured: a gigabit
	small        = 128 << 10 // bytes of a frame
	windowBytes  = 256 << 10
	windows      = 8
	probeEvery   = 32  // frames; what the data is like changes
	settle       = 3   // frames until what is in the buffers is gone that was packed otherwise
	trial        = 5   // frames that tell how fast the stream is
	trialEvery   = 512 // frames; what else the cores have to do changes
	pause        = 100 * time.Millisecond
	gain         = 1.1  // how much faster the stream must become
	smoothing    = 0.25 // weight of a new measurement
)

// gauge weighs what zstd costs against what the link gains.
type gauge struct {
	mu      sync.Mutex
	workers float64
	ratio   float64 // of zstd
	cost    float64 // seconds a byte takes one worker
	tried   int     // bytes that went through zstd: less than a frame say little, and a new encoder is slow
	since   int     // frames since zstd was tried

	speed [2]float64 // bytes a second that the stream made without zstd and with it; 0 is not known
	left  int        // frames until it is found out anew
	run   run

	rates  []float64 // bytes a second on the wire in the last windows
	bytes  int       // in this window
	waited time.Duration
}

// run is frames that were packed in the same way, one after the other.
type run struct {
	zstd       bool
	frames     int
	bytes      int // in those that count
	begin, end time.Time
}

func newGauge(workers int) *gauge { return &gauge{workers: float64(workers)} }

// try says whether the next frame, of n bytes, shall go through zstd: because that pays, or to learn whether it would. As
// long as nothing is known of the link, a frame that a gigabit a second takes in a millisecond is not worth the two
// processes' time.
func (g *gauge) try(n int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if n < pageSize || n < small && len(g.rates) == 0 {
		return false
	}
	g.since++
	if g.tried < frameSize || g.since >= probeEvery || g.pays() && g.faster() {
		g.since = 0
		return true
	}
	return false
}

// faster compares what the stream made with zstd and without: the cores that zstd would need may have something else to
// do, such as to receive this stream.
func (g *gauge) faster() bool {
	switch {
	case g.speed[1] == 0:
		return true
	case g.speed[0] == 0:
		return false
	}
	if g.left--; g.left <= 0 {
		g.left = trialEvery
		g.speed = [2]float64{}
		return true
	}
	return g.speed[1] > gain*g.speed[0]
}

// passed takes note of a full frame that was written, at the given time.
func (g *gauge) passed(n int, zstd bool, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := &g.run
	if zstd != r.zstd || now.Sub(r.end) > pause {
		*r = run{zstd: zstd}
	}
	r.end = now
	if r.frames++; r.frames <= settle {
		r.begin = now
		return
	}
	if r.bytes += n; r.frames < settle+trial {
		return
	}
	way := 0
	if zstd {
		way = 1
	}
	if g.speed[way] == 0 {
		g.left = trialEvery
	}
	g.speed[way] = float64(r.bytes) / max(now.Sub(r.begin).Seconds(), 1e-9)
	*r = run{zstd: zstd, frames: settle, begin: now, end: now}
}

// pays compares the rates of the stream with and without zstd: the slower of packing and of the link decides.
func (g *gauge) pays() bool {
	link := g.link()
	return min(g.workers/g.cost, link/g.ratio) > gain*link
}

// link returns the rate of the link. That of most windows is the buffers': the slow ones tell of the link. The
// slowest of all may be an accident.
func (g *gauge) link() float64 {
	switch len(g.rates) {
	case 0:
		return presumedRate
	case 1:
		return g.rates[0]
	}
	sorted := slices.Sorted(slices.Values(g.rates))
	return sorted[1]
}

// packed takes note of a use of zstd.
func (g *gauge) packed(from, to int, took time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	ratio, cost := float64(to)/float64(from), max(took.Seconds(), 1e-9)/float64(from)
	weight := smoothing * float64(from) / frameSize
	if g.tried < frameSize { // the mean of all so far
		weight = float64(from) / float64(g.tried+from)
	}
	g.tried += from
	g.ratio += weight * (ratio - g.ratio)
	g.cost += weight * (cost - g.cost)
}

// written takes note of how long the link took to accept data.
func (g *gauge) written(n int, took time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.bytes += n
	g.waited += took
	if g.bytes < windowBytes {
		return
	}
	rate := math.Inf(1)
	if g.waited > 0 {
		rate = float64(g.bytes) / g.waited.Seconds()
	}
	if len(g.rates) == windows {
		g.rates = g.rates[1:]
	}
	g.rates = append(g.rates, rate)
	g.bytes, g.waited = 0, 0
}
