package stream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

const stall = 8 * time.Second

// connect returns both ends of a connection, greeted. It is for synctest.
func connect(t *testing.T, opts Options) (x, y *Conn) {
	t.Helper()
	a, b := net.Pipe()
	x, y = New(a, opts), New(b, opts)
	greeted := make(chan error, 1)
	go func() { greeted <- x.Handshake(t.Context()) }()
	if err := errors.Join(y.Handshake(t.Context()), <-greeted); err != nil {
		t.Fatal(err)
	}
	return x, y
}

// hang up both without a bye, so that nothing of the bubble is left.
func hangUp(conns ...*Conn) {
	for _, c := range conns {
		c.fail(ErrClosed)
	}
	for _, c := range conns {
		<-c.closed
	}
	time.Sleep(2 * stall) // in which the goroutines of the tests take note
}

// raw greets a Conn by hand and returns what it is spoken to through.
func raw(t *testing.T, opts Options) (*Conn, net.Conn) {
	t.Helper()
	a, b := net.Pipe()
	c := New(a, opts)
	greeted := make(chan error, 1)
	go func() { greeted <- c.Handshake(t.Context()) }()
	if _, err := io.ReadFull(b, make([]byte, greetingSize)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Write(greeting(stall)); err != nil {
		t.Fatal(err)
	}
	if err := <-greeted; err != nil {
		t.Fatal(err)
	}
	return c, b
}

// expect fails unless err is want after a time between least and most.
func expect(t *testing.T, err, want error, since time.Time, least, most time.Duration) {
	t.Helper()
	if took := time.Since(since); !errors.Is(err, want) || took < least || took > most {
		t.Errorf("%v after %v, want %v after %v to %v", err, took, want, least, most)
	}
}

// A connection on which both sides have nothing to say lives on.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := connect(t, Options{Stall: stall})
		received := make(chan error, 1)
		go func() {
			_, err := y.Receive(t.Context())
			received <- err
		}()
		time.Sleep(time.Hour)
		if err := x.Send(t.Context(), "hello", nil); err != nil {
			t.Error(err)
		}
		if err := <-received; err != nil {
			t.Error(err)
		}
		if sent := x.Stats().WireSent; sent > 24*4000 {
			t.Errorf("an hour of silence took %d bytes", sent)
		}
		hangUp(x, y)
	})
}

// A side that goes silent is noticed, whether we wait for it or write to it.
func TestStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, peer := raw(t, Options{Stall: stall})
		go io.Copy(io.Discard, peer) //nolint:errcheck // it reads, and says nothing
		start := time.Now()
		_, err := c.Receive(t.Context())
		expect(t, err, ErrStalled, start, stall, stall*3/2)
		hangUp(c)

		c, _ = raw(t, Options{Stall: stall})
		start = time.Now()
		expect(t, c.Send(t.Context(), "hello", nil), ErrStalled, start, stall, stall*3/2)
		hangUp(c)

		c, _ = raw(t, Options{Stall: stall})
		start = time.Now()
		expect(t, c.SendEntry(t.Context(), "zero", -1, zeros{}), ErrStalled, start, stall, stall*3/2)
		hangUp(c)
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// A side that does not read for a long time, but is there, isn't given up; nor is one whose data we don't read.
func TestBusyConsumer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := connect(t, Options{Stall: stall})
		data := bytes.Repeat([]byte{1}, 40<<20)
		sent := make(chan error, 1)
		go func() { sent <- x.SendEntry(t.Context(), "data", -1, bytes.NewReader(data)) }()
		m, err := y.Receive(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		if n, err := io.Copy(io.Discard, m.Entry); err != nil || n != int64(len(data)) {
			t.Errorf("%d bytes, %v", n, err)
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
		hangUp(x, y)
	})
}

// A source that pauses isn't taken for a stall.
func TestSlowSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := connect(t, Options{Stall: stall})
		r, w := io.Pipe()
		sent := make(chan error, 1)
		go func() { sent <- x.SendEntry(t.Context(), "data", -1, r) }()
		go func() {
			w.Write([]byte("begin")) //nolint:errcheck // the other end notices
			time.Sleep(time.Hour)
			w.Write([]byte(" and end")) //nolint:errcheck // the other end notices
			w.Close()
		}()
		m, err := y.Receive(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(m.Entry); err != nil || string(got) != "begin and end" {
			t.Errorf("%q, %v", got, err)
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
		hangUp(x, y)
	})
}

// Who sends a byte now and then to keep us waiting is refused.
func TestSlowLoris(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, frame := range [][]byte{
			forge(0, kindMessage, message("note", `"`+string(bytes.Repeat([]byte{'x'}, 1000))+`"`)),
			forge(0, kindPing, ""),
		} {
			c, peer := raw(t, Options{Stall: stall})
			go io.Copy(io.Discard, peer) //nolint:errcheck // it reads
			go func() {
				for i := range frame {
					if _, err := peer.Write(frame[i : i+1]); err != nil {
						return
					}
					time.Sleep(stall / 2)
				}
			}()
			start := time.Now()
			_, err := c.Receive(t.Context())
			expect(t, err, ErrSlow, start, stall, stall*2)
			hangUp(c)
		}

		a, b := net.Pipe()
		c := New(a, Options{Stall: stall, Greeting: time.Hour})
		go io.Copy(io.Discard, b) //nolint:errcheck // it reads
		go func() {
			for _, next := range greeting(stall) {
				if _, err := b.Write([]byte{next}); err != nil {
					return
				}
				time.Sleep(stall / 2)
			}
		}()
		start := time.Now()
		expect(t, c.Handshake(t.Context()), ErrSlow, start, stall, stall*2)
		hangUp(c)
	})
}

// A slow link that is slow honestly carries a large frame.
func TestSlowLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, peer := raw(t, Options{Stall: stall})
		go io.Copy(io.Discard, peer) //nolint:errcheck // it reads
		frame := forge(0, kindMessage, message("note", `"`+string(bytes.Repeat([]byte{'x'}, 900<<10))+`"`))
		go func() {
			for len(frame) > 0 {
				n := min(len(frame), 16<<10)
				peer.Write(frame[:n]) //nolint:errcheck // the other end notices
				frame = frame[n:]
				time.Sleep(3 * time.Second)
			}
		}()
		if _, err := c.Receive(t.Context()); err != nil {
			t.Error(err)
		}
		hangUp(c)
	})
}

// Pings without end are refused, but not those that pile up while we don't read.
func TestPings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, peer := raw(t, Options{Stall: stall})
		go io.Copy(io.Discard, peer) //nolint:errcheck // it reads
		go func() {
			for i := uint32(0); ; i++ {
				if _, err := peer.Write(forge(i, kindPing, "")); err != nil {
					return
				}
			}
		}()
		if _, err := c.Receive(t.Context()); !errors.Is(err, ErrFlood) {
			t.Error(err)
		}
		hangUp(c)
	})
	synctest.Test(t, func(t *testing.T) {
		c, peer := raw(t, Options{Stall: stall})
		go io.Copy(io.Discard, peer) //nolint:errcheck // it reads
		var late []byte
		for i := range uint32(1000) {
			k, payload := kindPing, ""
			if i < 100 || i == 999 {
				k, payload = kindMessage, message("note", "")
			}
			late = append(late, forge(i, k, payload)...)
		}
		go peer.Write(late) //nolint:errcheck // the other end notices
		time.Sleep(time.Hour)
		for i := range 101 {
			if _, err := c.Receive(t.Context()); err != nil {
				t.Fatal(i, err)
			}
		}
		hangUp(c)
	})
}

// Nobody waits for a greeting forever.
func TestNoGreeting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := net.Pipe()
		c := New(a, Options{Stall: stall, Greeting: time.Minute})
		start := time.Now()
		expect(t, c.Handshake(t.Context()), ErrStalled, start, time.Minute, time.Minute)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}

// The bandwidth is kept to, and used.
func TestBandwidth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, rate := range []int64{10 << 10, 1 << 20, 16 << 20} {
			x, y := connect(t, Options{Bandwidth: rate, Compression: None, Stall: stall})
			size := 10 * rate
			sent := make(chan error, 1)
			start := time.Now()
			go func() { sent <- x.SendEntry(t.Context(), "data", size, io.LimitReader(ones{}, size)) }()
			m, err := y.Receive(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, m.Entry); err != nil {
				t.Error(err)
			}
			if err := <-sent; err != nil {
				t.Error(err)
			}
			if took := time.Since(start); took < 9500*time.Millisecond || took > 10500*time.Millisecond {
				t.Errorf("%d bytes at %d a second took %v", size, rate, took)
			}
			if x.Stats().Throttled == 0 {
				t.Error("nothing was held back")
			}
			hangUp(x, y)
		}
	})
}

type ones struct{}

func (ones) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 1
	}
	return len(p), nil
}

// Close returns in time though the other side neither reads nor closes.
func TestCloseAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := raw(t, Options{Stall: stall})
		start := time.Now()
		if err := c.Close(); err != nil || time.Since(start) > 2*linger {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		if err := c.Send(context.Background(), "late", nil); !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	})
}
