package stream

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"
)

// Send sends a message. A nil body is none; others are sent as JSON. Send returns when the connection below has taken
// all of it, which doesn't mean that it arrived.
func (c *Conn) Send(ctx context.Context, typ string, body any) error {
	if err := c.send(ctx, typ, body); err != nil {
		return fmt.Errorf("send %s: %w", typ, err)
	}
	return nil
}

func (c *Conn) send(ctx context.Context, typ string, body any) error {
	if err := checkType(typ); err != nil {
		return err
	}
	var b []byte
	if body != nil {
		var err error
		if b, err = json.Marshal(body); err != nil {
			return err
		}
	}
	if limit := c.limit(typ); len(b) > limit {
		return fmt.Errorf("a body of %d bytes: at most %d are allowed", len(b), limit)
	}
	if err := c.usable(ctx); err != nil {
		return err
	}
	defer c.closeWith(ctx)()
	payload := make([]byte, 0, 1+len(typ)+len(b))
	payload = append(payload, byte(len(typ)))
	payload = append(payload, typ...)
	payload = append(payload, b...)
	if err := c.put(c.control(kindMessage, payload)); err != nil {
		return err
	}
	c.rawSent.Add(int64(len(b)))
	return nil
}

// limit of a body.
func (c *Conn) limit(typ string) int {
	if n, ok := c.opts.Large[typ]; ok {
		return min(n, largest)
	}
	return bodySize
}

// usable says whether something can be sent.
func (c *Conn) usable(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !c.greeted.Load() {
		return errors.New("there was no handshake")
	}
	return nil
}

func (c *Conn) control(k kind, payload []byte) *outFrame {
	return &outFrame{
		kind: k, unpacked: len(payload),
		wire: append(make([]byte, headerSize, headerSize+len(payload)), payload...),
		done: make(chan struct{}),
	}
}

// put passes a frame on and waits until it was written, if it has a channel for that.
func (c *Conn) put(f *outFrame) error {
	select {
	case <-c.mute:
		return c.muteErr
	default:
	}
	select {
	case c.out <- f:
	case <-c.mute:
		return c.muteErr
	}
	if f.done == nil {
		return nil
	}
	select {
	case <-f.done:
		return nil
	case <-c.mute:
		return c.muteErr
	}
}

// SendEntry sends what r yields under a name. size is its length, or -1 if that is not known. If r fails or has
// another length, the other side is told (ErrCanceled) and the connection can be used on. After an error, a last
// read from r may be under way still. When SendEntry returns, r was read, but the last of it may not be written yet: the
// next Send waits for that.
func (c *Conn) SendEntry(ctx context.Context, name string, size int64, r io.Reader) error {
	if err := c.sendEntry(ctx, name, size, r); err != nil {
		return fmt.Errorf("send %s: %w", name, err)
	}
	return nil
}

func (c *Conn) sendEntry(ctx context.Context, name string, size int64, r io.Reader) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := c.usable(ctx); err != nil {
		return err
	}
	defer c.closeWith(ctx)()
	head := binary.BigEndian.AppendUint64(nil, uint64(max(size, -1)))
	if err := c.put(async(c.control(kindEntry, append(head, name...)))); err != nil {
		return err
	}
	total, err := c.sendData(r, size)
	if source, ok := errors.AsType[*sourceError](err); ok {
		if err := c.put(c.control(kindCancel, nil)); err != nil {
			return err
		}
		return source.err
	}
	if err != nil {
		return err
	}
	// The digest is filled in when all the data before has been digested. Whatever fails from now on is told by the next
	// call, so that a small entry does not wait for the connection below.
	return c.put(async(c.control(kindEnd, binary.BigEndian.AppendUint64(make([]byte, sha256.Size), uint64(total)))))
}

// async makes a frame one that nobody waits for.
func async(f *outFrame) *outFrame {
	f.done = nil
	return f
}

// sourceError is a failure of what an entry is read from.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return e.err.Error() }

func (e *sourceError) Unwrap() error { return e.err }

// filling is a frame with data of an entry, and why there is no more: io.EOF, an error, or nil if there is.
type filling struct {
	frame *outFrame
	err   error
}

// sendData sends the data of an entry and returns its size.
func (c *Conn) sendData(r io.Reader, size int64) (total int64, err error) {
	filled := make(chan filling, 1)
	quit := make(chan struct{})
	defer close(quit)
	if b, ok := r.(*bytes.Reader); ok && b.Len() < c.chunk { // one frame holds it, and no read hangs
		c.fill(r, filled, c.mute)
	} else {
		go c.fill(r, filled, quit)
	}
	for {
		var next filling
		select {
		case next = <-filled:
		case <-c.mute:
			return 0, c.muteErr
		}
		f, err := next.frame, next.err
		total += int64(f.n)
		switch {
		case err != nil && !errors.Is(err, io.EOF):
		case size >= 0 && total > size, size >= 0 && err != nil && total < size:
			err = fmt.Errorf("it has not the %d bytes that were announced", size)
		case f.n == 0:
			c.free <- f
			return total, nil
		default:
			c.rawSent.Add(int64(f.n))
			if packErr := c.packer.pack(f); packErr != nil {
				return 0, packErr
			}
			if putErr := c.put(f); putErr != nil {
				return 0, putErr
			}
			if err != nil {
				return total, nil
			}
			continue
		}
		c.free <- f
		return 0, &sourceError{err}
	}
}

// fill reads r into frames until its end, an error, or quit.
func (c *Conn) fill(r io.Reader, filled chan<- filling, quit <-chan struct{}) {
	for {
		var f *outFrame
		select {
		case f = <-c.free:
		case <-quit:
			return
		}
		f.makeRoom()
		n, err := readFull(r, f.room()[:c.chunk])
		f.n = n
		select {
		case filled <- filling{f, err}:
		case <-quit:
			c.free <- f
			return
		}
		if err != nil {
			return
		}
	}
}

// readFull is io.ReadFull with the reader's own errors.
func readFull(r io.Reader, p []byte) (n int, err error) {
	for empty := 0; n < len(p) && err == nil; {
		var m int
		m, err = r.Read(p[n:])
		n += m
		if empty++; m > 0 {
			empty = 0
		}
		if empty == 100 {
			err = io.ErrNoProgress
		}
	}
	return n, err
}

// writeLoop writes frames in order, small ones together while others follow, and pings while there are none.
func (c *Conn) writeLoop() {
	timer := time.NewTimer(c.quiet)
	defer timer.Stop()
	digest := sha256.New()
	for {
		var f *outFrame
		select {
		case f = <-c.out:
		default:
			if err := c.flush(); err != nil {
				c.silence(err)
				return
			}
			select {
			case f = <-c.out:
			case <-timer.C:
				f = c.ping()
			case <-c.mute:
				return
			}
		}
		switch f.kind {
		case kindEntry:
			digest.Reset()
		case kindData:
			if err := c.await(f, timer); err != nil {
				c.silence(err)
				return
			}
			digest.Write(f.digest[:])
		case kindEnd:
			digest.Sum(f.wire[:headerSize])
		}
		start := time.Now()
		err := c.writeFrame(f)
		if f.done != nil {
			c.awaited = append(c.awaited, f.done)
		}
		if err == nil && (len(c.gathered) == 0 || f.kind == kindBye) {
			err = c.flush()
		}
		if err != nil {
			c.silence(err)
			return
		}
		if f.kind == kindData && len(f.wire) > smallFrame {
			c.packer.gauge.written(len(f.wire), time.Since(start))
		}
		if f.kind == kindData && f.n == frameSize {
			c.packer.gauge.passed(f.n, f.tried, time.Now())
		}
		if f.reuse {
			c.free <- f
		}
		if f.kind == kindBye {
			return
		}
		timer.Reset(c.quiet)
	}
}

// flush writes what was gathered, and tells whoever waits for that.
func (c *Conn) flush() error {
	if len(c.gathered) > 0 {
		b := c.gathered
		c.gathered = c.gathered[:0]
		if err := c.write(b); err != nil {
			return err
		}
	}
	for _, done := range c.awaited {
		close(done)
	}
	c.awaited = c.awaited[:0]
	return nil
}

func (c *Conn) ping() *outFrame { return async(c.control(kindPing, nil)) }

// await waits until f is packed.
func (c *Conn) await(f *outFrame, timer *time.Timer) error {
	select {
	case <-f.ready:
		return nil
	default:
	}
	if err := c.flush(); err != nil {
		return err
	}
	for {
		select {
		case <-f.ready:
			return nil
		case <-timer.C:
			if err := errors.Join(c.writeFrame(c.ping()), c.flush()); err != nil {
				return err
			}
			timer.Reset(c.quiet)
		case <-c.mute:
			return c.muteErr
		}
	}
}

func (c *Conn) writeFrame(f *outFrame) error {
	payload := f.wire[headerSize:]
	if f.kind != kindData {
		f.sum = crc32.Checksum(payload, castagnoli)
	}
	header{
		kind: f.kind, flags: f.flags, sequence: c.sequence,
		length: uint32(len(payload)), unpacked: uint32(f.unpacked), sum: f.sum,
	}.put(f.wire)
	c.sequence++
	if c.limiter == nil && len(f.wire) <= smallFrame && len(c.gathered)+len(f.wire) <= cap(c.gathered) {
		c.gathered = append(c.gathered, f.wire...)
		return nil
	}
	if err := c.flush(); err != nil {
		return err
	}
	if c.limiter == nil || f.kind == kindPing {
		return c.write(f.wire)
	}
	for rest := f.wire; len(rest) > 0; {
		piece := rest[:min(len(rest), c.burst())]
		rest = rest[len(piece):]
		if err := c.throttle(len(piece)); err != nil {
			return err
		}
		if err := c.write(piece); err != nil {
			return err
		}
	}
	return nil
}

// throttle waits until n bytes may be written.
func (c *Conn) throttle(n int) error {
	wait := c.limiter.ReserveN(time.Now(), n).Delay()
	if wait == 0 {
		return nil
	}
	c.throttled.Add(int64(wait))
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-c.mute:
		return c.muteErr
	}
}

// write writes all of b at once.
func (c *Conn) write(b []byte) error {
	start := time.Now()
	c.writing.Store(true)
	n, err := c.rw.Write(b)
	c.writing.Store(false)
	c.wrote.Add(1)
	c.writeTime.Add(int64(time.Since(start)))
	c.wireSent.Add(int64(n))
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	return err
}
