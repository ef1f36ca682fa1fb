package stream

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/time/rate"
)

// Options of a connection. The zero value is useful.
type Options struct {
	// Bandwidth is how many bytes a second go to the wire at most. 0 is as many as fit.
	Bandwidth int64
	// Compression of entries.
	Compression Compression
	// Stall is how long nothing may be heard before the connection counts as broken. 0 is 10 s. Each side pings four
	// times as often as the less patient one asks for.
	Stall time.Duration
	// Greeting is how long the other side may take to say that it is there, if the context of Handshake doesn't end
	// before. 0 is Stall.
	Greeting time.Duration
	// Large are the bounds, in bytes, of the bodies of messages that may be larger than 1 MiB, by type. No bound is
	// above 64 MiB.
	Large map[string]int
}

// smallFrame is the size up to which frames are copied together, to be written at once.
const smallFrame = 16 << 10

const (
	defaultStall = 10 * time.Second
	patience     = 5       // ticks of silence, each a quarter of Stall, that are a stall
	slowest      = 4 << 10 // bytes a second at which a frame must arrive at least
	linger       = time.Second
	pingReserve  = 64 // pings that may come at once
)

// Stats of a connection so far.
type Stats struct {
	RawSent      int64         `json:"raw_sent"` // bytes of bodies and entries
	RawReceived  int64         `json:"raw_received"`
	WireSent     int64         `json:"wire_sent"` // bytes on the wire
	WireReceived int64         `json:"wire_received"`
	Writing      time.Duration `json:"writing"`   // in which the connection below took bytes
	Throttled    time.Duration `json:"throttled"` // in which Options.Bandwidth held bytes back
}

// Ratio returns how many bytes were sent for each one on the wire; 0 if there were none.
func (s Stats) Ratio() float64 {
	if s.WireSent == 0 {
		return 0
	}
	return float64(s.RawSent) / float64(s.WireSent)
}

// Conn is a connection. One goroutine at a time may use Send and SendEntry, and one Receive and the entry that it
// returned; both at the same time. Who only sends and never receives may miss why the other side gave up.
//
// If the context of a call ends, the connection is closed: a stream that was left in the middle is of no use. Close
// must be called in any case.
type Conn struct {
	rw    io.ReadWriteCloser
	opts  Options
	in    *bufio.Reader
	peer  Version
	quiet time.Duration // after which we ping
	birth time.Time

	// Towards the wire: Send and SendEntry -> out -> writeLoop.
	out      chan *outFrame
	free     chan *outFrame // for data
	chunk    int            // bytes of data in a frame
	packer   *packer
	limiter  *rate.Limiter
	sequence uint32
	gathered []byte          // small frames that are written together
	awaited  []chan struct{} // closed when they are
	mute     chan struct{}   // closed when nothing can be written any more, because of muteErr
	muteOnce sync.Once
	muteErr  error

	// From the wire: readLoop -> arrived -> Receive.
	arrived  chan *inFrame
	slots    chan *inFrame
	bulk     chan struct{} // held by a body that is large
	expected uint32
	inside   bool // between the head and the end of an entry
	pings    int
	readDone chan struct{}
	decoder  func() (*zstd.Decoder, error)
	current  *Entry // that Receive returned last
	ended    error  // what Receive says from now on

	done    chan struct{} // closed when the connection has failed or was closed, because of err
	once    sync.Once
	err     error
	closed  chan struct{} // closed when rw.Close has returned closeErr
	rwErr   error
	started atomic.Bool
	greeted atomic.Bool

	// For the watchdog.
	ticks    atomic.Int64
	heard    atomic.Int64 // changes with every read that brought something
	reading  atomic.Bool
	wrote    atomic.Int64
	writing  atomic.Bool
	begun    atomic.Int64 // 1 + the tick in which the frame that is being read began, or 0
	deadline atomic.Int64 // ticks that it may take

	rawSent, rawReceived, wireSent, wireReceived, writeTime, throttled atomic.Int64
}

// New returns a connection over rw, which it closes. Nothing happens before Handshake. Closing rw should end reads
// and writes that are under way; where it doesn't (pipes that are not in the poller's care), calls on the Conn return
// all the same, and what hangs is left behind.
func New(rw io.ReadWriteCloser, o Options) *Conn {
	o.Stall = max(cmp.Or(o.Stall, defaultStall), leastStall)
	o.Greeting = cmp.Or(o.Greeting, o.Stall)
	frames := min(max(2*runtime.GOMAXPROCS(0), 4), 16)
	c := &Conn{
		rw:       rw,
		opts:     o,
		out:      make(chan *outFrame, frames),
		free:     make(chan *outFrame, frames),
		chunk:    frameSize,
		gathered: make([]byte, 0, 4*smallFrame),
		packer:   newPacker(o.Compression),
		mute:     make(chan struct{}),
		arrived:  make(chan *inFrame, frames+1), // and how it ended
		slots:    make(chan *inFrame, frames),
		bulk:     make(chan struct{}, 1),
		readDone: make(chan struct{}),
		decoder: sync.OnceValues(func() (*zstd.Decoder, error) {
			return zstd.NewReader(nil, zstd.WithDecoderMaxMemory(frameSize), zstd.WithDecoderMaxWindow(frameSize),
				zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderConcurrency(frames))
		}),
		done:   make(chan struct{}),
		closed: make(chan struct{}),
	}
	c.in = bufio.NewReaderSize(meter{c}, pageSize)
	for range frames {
		c.slots <- &inFrame{}
		c.free <- &outFrame{}
	}
	if o.Bandwidth > 0 {
		// Four frames a second, so that the other side never waits long for the end of one.
		c.chunk = int(min(max(o.Bandwidth/4, pageSize), frameSize)) / pageSize * pageSize
		c.limiter = rate.NewLimiter(rate.Limit(o.Bandwidth), c.burst())
	}
	return c
}

// burst is how many bytes may be written at once if the bandwidth is limited.
func (c *Conn) burst() int { return int(min(max(c.opts.Bandwidth/20, pageSize), frameSize)) }

// Handshake greets the other side and waits for its greeting. Its errors are *VersionError, *GreetingError,
// ErrDamaged, ErrStalled, ErrSlow and those of ctx and the connection.
func (c *Conn) Handshake(ctx context.Context) error {
	if err := c.handshake(ctx); err != nil {
		c.fail(err)
		return fmt.Errorf("greet the other side: %w", err)
	}
	return nil
}

func (c *Conn) handshake(ctx context.Context) error {
	if !c.started.CompareAndSwap(false, true) {
		return errors.New("greeted already")
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.opts.Greeting, stalled(c.opts.Greeting, "the greeting was awaited"))
	defer cancel()
	defer c.closeWith(ctx)()
	go c.watch()
	written := make(chan error, 1)
	go func() { written <- c.write(greeting(c.opts.Stall)) }()

	type answer struct {
		version Version
		stall   time.Duration
		err     error
	}
	answered := make(chan answer, 1)
	go func() {
		var a answer
		a.version, a.stall, a.err = c.readGreeting()
		answered <- a
	}()
	// If our greeting couldn't be written, what the other side said before it went away tells more.
	var a answer
	select {
	case a = <-answered:
	case <-c.done:
		return c.err
	}
	if a.err != nil {
		return c.because(a.err)
	}
	select {
	case err := <-written:
		if err != nil {
			return c.because(err)
		}
	case <-c.done:
		return c.err
	}
	c.peer = Version{Major: Major, Minor: min(Minor, a.version.Minor)}
	c.quiet = min(c.opts.Stall, a.stall) / 4
	c.birth = time.Now()
	c.greeted.Store(true)
	c.packer.warm()
	go c.writeLoop()
	go c.readLoop()
	return nil
}

// readGreeting reads no more than what is needed to know that it isn't one.
func (c *Conn) readGreeting() (Version, time.Duration, error) {
	b := make([]byte, 0, greetingSize)
	for len(b) < greetingSize {
		next, err := c.in.ReadByte()
		if len(b) == 0 {
			c.begin(greetingSize)
		}
		if err == nil {
			b = append(b, next)
		}
		if err != nil || len(b) <= len(magic) && b[len(b)-1] != magic[len(b)-1] {
			if len(b) >= len(magic) {
				return Version{}, 0, fmt.Errorf("%w: in the greeting", ErrTruncated)
			}
			if err != nil && !errors.Is(err, io.EOF) {
				return Version{}, 0, err
			}
			rest, _ := c.in.Peek(min(c.in.Buffered(), 256))
			return Version{}, 0, &GreetingError{Got: append(b, rest...)}
		}
	}
	c.begun.Store(0)
	return parseGreeting(b)
}

// Version is what both sides speak. It is known when Handshake has returned.
func (c *Conn) Version() Version { return c.peer }

// Stats may be called at any time.
func (c *Conn) Stats() Stats {
	return Stats{
		RawSent: c.rawSent.Load(), RawReceived: c.rawReceived.Load(),
		WireSent: c.wireSent.Load(), WireReceived: c.wireReceived.Load(),
		Writing: time.Duration(c.writeTime.Load()), Throttled: time.Duration(c.throttled.Load()),
	}
}

// closeWith closes the connection if ctx ends before the returned function is called.
func (c *Conn) closeWith(ctx context.Context) (stop func()) {
	end := context.AfterFunc(ctx, func() { c.fail(context.Cause(ctx)) })
	return func() { end() }
}

// fail ends the connection because of err, if it hasn't ended before.
func (c *Conn) fail(err error) {
	c.once.Do(func() {
		c.err = err
		close(c.done)
		c.silence(err)
		go func() {
			c.rwErr = c.rw.Close()
			close(c.closed)
		}()
	})
}

// because returns err, or what ended the connection before, of which err is a consequence.
func (c *Conn) because(err error) error {
	select {
	case <-c.done:
		return c.err
	default:
		return err
	}
}

// silence says that nothing can be written any more. Reading goes on: perhaps the other side said why.
func (c *Conn) silence(err error) {
	c.muteOnce.Do(func() {
		c.muteErr = err
		close(c.mute)
	})
}

// Close says bye, waits a moment for the other side to take note, and closes the connection below. What was sent is
// not lost by it. The error is that of the connection's Close.
func (c *Conn) Close() error {
	if c.started.CompareAndSwap(false, true) || !c.greeted.Load() { // never greeted
		c.fail(ErrClosed)
		<-c.closed
		return c.rwErr
	}
	timer := time.NewTimer(linger)
	defer timer.Stop()
	c.sayBye(timer.C)
	c.fail(ErrClosed)
	select {
	case <-c.closed:
		return c.rwErr
	case <-time.After(c.opts.Stall):
		return fmt.Errorf("close: %w: the connection below does not close", ErrStalled)
	}
}

// sayBye ends our direction. A socket that is closed while something unread lies in it makes the kernel send a reset,
// which takes away what the other side hasn't read yet: so the other's end is awaited.
func (c *Conn) sayBye(timeout <-chan time.Time) {
	f := c.control(kindBye, nil)
	select {
	case c.out <- f:
	case <-c.mute:
		return
	case <-timeout:
		return
	}
	written := f.done
	for {
		select {
		case <-written:
			written = nil
			if half, ok := c.rw.(interface{ CloseWrite() error }); ok {
				half.CloseWrite() //nolint:errcheck // it is closed in a moment anyway
			}
		case in := <-c.arrived: // nobody wants it any more
			in.wait()
			c.release(in)
		case <-c.readDone:
			if written == nil {
				return
			}
			select {
			case <-written:
			case <-c.mute:
			case <-timeout:
			}
			return
		case <-c.done:
			return
		case <-timeout:
			return
		}
	}
}

// watch finds out that nothing moves any more. It counts ticks instead of asking the clock: after a moment in which
// all of us stood still, what arrived meanwhile gets its chance.
func (c *Conn) watch() {
	ticker := time.NewTicker(c.opts.Stall / 4)
	defer ticker.Stop()
	var heard, wrote int64
	var silent, deaf, blocked int
	count := func(n *int, still bool) bool {
		*n++
		if !still {
			*n = 0
		}
		return *n >= patience
	}
	for {
		select {
		case <-c.done:
			return
		case <-ticker.C:
		}
		now := c.ticks.Add(1)
		h, w := c.heard.Load(), c.wrote.Load()
		still := h == heard
		noneHeard := count(&silent, still)
		notRead := count(&deaf, still && c.reading.Load())
		notWritten := count(&blocked, w == wrote && c.writing.Load())
		heard, wrote = h, w
		begun := c.begun.Load()
		switch {
		case !c.greeted.Load() && begun == 0: // the greeting has its own time
		case notRead:
			c.fail(stalled(c.opts.Stall, "reading"))
		case notWritten && noneHeard:
			c.fail(stalled(c.opts.Stall, "writing"))
		case begun != 0 && c.reading.Load() && now-begun > c.deadline.Load():
			c.fail(ErrSlow)
		}
	}
}

// begin starts the time in which n bytes must arrive.
func (c *Conn) begin(n int) {
	c.begun.Store(1 + c.ticks.Load())
	c.allow(n)
}

func (c *Conn) allow(n int) {
	tick := c.opts.Stall / 4
	c.deadline.Store(patience + int64(time.Duration(n)*time.Second/slowest/tick))
}

// meter reads from the connection below and lets the watchdog and the statistics know.
type meter struct{ c *Conn }

func (m meter) Read(p []byte) (int, error) {
	m.c.reading.Store(true)
	n, err := m.c.rw.Read(p)
	m.c.reading.Store(false)
	if n > 0 {
		m.c.heard.Add(1)
		m.c.wireReceived.Add(int64(n))
	}
	return n, err
}
