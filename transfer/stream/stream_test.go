package stream_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nsmigrate/nsmigrate/transfer/stream"
)

// tcpPair returns both ends of a connection over the loopback interface.
func tcpPair(tb testing.TB) (a, b net.Conn) {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			close(accepted)
			return
		}
		accepted <- conn
	}()
	if a, err = net.Dial("tcp", l.Addr().String()); err != nil {
		tb.Fatal(err)
	}
	b, ok := <-accepted
	if !ok {
		tb.Fatal("nothing was accepted")
	}
	tb.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// duplex is a connection of two pipes.
type duplex struct {
	io.Reader
	io.Writer
	close func() error
}

func (d duplex) Close() error { return d.close() }

// osPipes are pipes as ssh sees them.
func osPipes(tb testing.TB) (a, b io.ReadWriteCloser) {
	tb.Helper()
	ar, bw, err := os.Pipe()
	if err != nil {
		tb.Fatal(err)
	}
	br, aw, err := os.Pipe()
	if err != nil {
		tb.Fatal(err)
	}
	both := func(r, w *os.File) io.ReadWriteCloser {
		return duplex{r, w, func() error { return errors.Join(r.Close(), w.Close()) }}
	}
	return both(ar, aw), both(br, bw)
}

// greet makes connections of both ends.
func greet(tb testing.TB, a, b io.ReadWriteCloser, opts stream.Options) (*stream.Conn, *stream.Conn) {
	tb.Helper()
	opts.Stall = time.Minute // machines that run tests stand still now and then
	x, y := stream.New(a, opts), stream.New(b, opts)
	tb.Cleanup(func() {
		done := make(chan struct{})
		go func() { x.Close(); close(done) }()
		y.Close()
		<-done
	})
	errs := make(chan error, 1)
	go func() { errs <- x.Handshake(context.Background()) }()
	if err := errors.Join(y.Handshake(context.Background()), <-errs); err != nil {
		tb.Fatal(err)
	}
	return x, y
}

// pagesOf returns data like a process's memory: zero pages, text, noise.
func pagesOf(n int) []byte {
	random := rand.New(rand.NewPCG(1, uint64(n)))
	b := make([]byte, n)
	for i := 0; i < n; i += 4096 {
		page := b[i:min(n, i+4096)]
		switch random.IntN(3) {
		case 1:
			copy(page, strings.Repeat("all work and no play ", 200))
		case 2:
			for i := range page {
				page[i] = byte(random.Uint32())
			}
		}
	}
	return b
}

type note struct{ Text string }

// What is sent arrives, whatever it is packed with and whatever carries it.
func TestConversation(t *testing.T) {
	for _, compression := range []stream.Compression{stream.Auto, stream.None, stream.Zstd} {
		for name, pair := range map[string]func(testing.TB) (a, b io.ReadWriteCloser){
			"tcp":   func(tb testing.TB) (io.ReadWriteCloser, io.ReadWriteCloser) { return tcpPair(tb) },
			"pipes": osPipes,
			"sync": func(testing.TB) (io.ReadWriteCloser, io.ReadWriteCloser) {
				a, b := net.Pipe()
				return a, b
			},
		} {
			t.Run(fmt.Sprintf("%s %s", name, compression), func(t *testing.T) {
				a, b := pair(t)
				x, y := greet(t, a, b, stream.Options{Compression: compression})
				sizes := []int{0, 1, 4095, 4096, 4097, 1 << 20, 1<<20 + 1, 5<<20 + 12345}
				sent := make(chan error, 1)
				go func() { sent <- talk(x, sizes) }()
				listen(t, y, sizes)
				if err := <-sent; err != nil {
					t.Fatal(err)
				}
				if err := y.Send(t.Context(), "bye", nil); err != nil {
					t.Fatal(err)
				}
				if m, err := x.Receive(t.Context()); err != nil || m.Type != "bye" || m.Body != nil {
					t.Fatalf("%v, %v", m, err)
				}
				closed := make(chan error, 1)
				go func() { closed <- x.Close() }()
				if _, err := y.Receive(t.Context()); !errors.Is(err, io.EOF) {
					t.Errorf("after the other side's Close: %v", err)
				}
				if err := errors.Join(y.Close(), <-closed); err != nil {
					t.Error(err)
				}
				xs, ys := x.Stats(), y.Stats()
				if xs.RawSent != ys.RawReceived || xs.WireSent != ys.WireReceived || xs.WireSent >= xs.RawSent {
					t.Errorf("sent %+v, received %+v", xs, ys)
				}
			})
		}
	}
}

func talk(x *stream.Conn, sizes []int) error {
	ctx := context.Background()
	for i, n := range sizes {
		if err := x.Send(ctx, "note", note{Text: fmt.Sprint(i)}); err != nil {
			return err
		}
		size := int64(n)
		if i%2 == 0 {
			size = -1
		}
		if err := x.SendEntry(ctx, fmt.Sprintf("dir/%d", i), size, bytes.NewReader(pagesOf(n))); err != nil {
			return err
		}
	}
	return nil
}

func listen(t *testing.T, y *stream.Conn, sizes []int) {
	t.Helper()
	for i, n := range sizes {
		m, err := y.Receive(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var got note
		if err := m.Decode(&got); err != nil || m.Type != "note" || got.Text != fmt.Sprint(i) {
			t.Fatalf("%s %v: %v", m.Type, got, err)
		}
		if m, err = y.Receive(t.Context()); err != nil {
			t.Fatal(err)
		}
		if m.Entry == nil || m.Entry.Name != fmt.Sprintf("dir/%d", i) {
			t.Fatalf("%+v", m)
		}
		var data []byte
		if i%3 == 0 {
			var b bytes.Buffer
			_, err = io.Copy(&b, m.Entry)
			data = b.Bytes()
		} else {
			data, err = io.ReadAll(m.Entry)
		}
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(data, pagesOf(n)) {
			t.Fatalf("entry %d of %d bytes came as %d other bytes", i, n, len(data))
		}
	}
}

// A context that ends ends the call, and the connection, even where Close can't wake what waits in the kernel.
func TestCancel(t *testing.T) {
	stuck := func(testing.TB) (io.ReadWriteCloser, io.ReadWriteCloser) {
		a, b := net.Pipe()
		t.Cleanup(func() { a.Close() })
		return duplex{a, a, func() error { return nil }}, b
	}
	for name, pair := range map[string]func(testing.TB) (a, b io.ReadWriteCloser){"pipes": osPipes, "stuck": stuck} {
		t.Run(name, func(t *testing.T) {
			for what, call := range map[string]func(context.Context, *stream.Conn) error{
				"receive": func(ctx context.Context, x *stream.Conn) error {
					_, err := x.Receive(ctx)
					return err
				},
				"send": func(ctx context.Context, x *stream.Conn) error {
					for {
						if err := x.Send(ctx, "note", strings.Repeat("x", 100<<10)); err != nil {
							return err
						}
					}
				},
				"send entry": func(ctx context.Context, x *stream.Conn) error {
					return x.SendEntry(ctx, "endless", -1, rand.NewChaCha8([32]byte{}))
				},
				"source that hangs": func(ctx context.Context, x *stream.Conn) error {
					r, _ := io.Pipe()
					return x.SendEntry(ctx, "nothing", -1, r)
				},
			} {
				a, b := pair(t)
				x, _ := greet(t, a, b, stream.Options{})
				cause := errors.New("enough")
				ctx, cancel := context.WithCancelCause(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- call(ctx, x) }()
				cancel(cause)
				if err := <-ended; !errors.Is(err, cause) {
					t.Errorf("%s: %v", what, err)
				}
			}
		})
	}
}

// Who takes an entry in can give up too.
func TestCancelEntry(t *testing.T) {
	a, b := tcpPair(t)
	x, y := greet(t, a, b, stream.Options{})
	r, w := io.Pipe()
	defer w.Close()
	go x.SendEntry(context.Background(), "nothing", -1, r) //nolint:errcheck // the other side notices
	ctx, cancel := context.WithCancel(t.Context())
	m, err := y.Receive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() {
		_, err := io.ReadAll(m.Entry)
		read <- err
	}()
	cancel()
	if err := <-read; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// A context that ended before leaves the connection alone: there is still time to say why.
func TestCanceledBefore(t *testing.T) {
	a, b := tcpPair(t)
	x, y := greet(t, a, b, stream.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := x.Send(ctx, "note", nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := x.SendEntry(ctx, "name", 0, strings.NewReader("")); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := x.Receive(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := x.Send(t.Context(), "abort", nil); err != nil {
		t.Error(err)
	}
	if m, err := y.Receive(t.Context()); err != nil || m.Type != "abort" {
		t.Errorf("%v, %v", m, err)
	}
}

// An entry that can't be read to its end is given up, and the connection is good.
func TestSourceFails(t *testing.T) {
	broken := errors.New("disk on fire")
	for name, test := range map[string]struct {
		size int64
		r    io.Reader
		want error
	}{
		"error":   {-1, io.MultiReader(bytes.NewReader(make([]byte, 3<<20)), failing{broken}), broken},
		"early":   {-1, io.MultiReader(strings.NewReader("some"), failing{io.ErrUnexpectedEOF}), io.ErrUnexpectedEOF},
		"shorter": {10, strings.NewReader("short"), nil},
		"longer":  {1, bytes.NewReader(make([]byte, 5<<20)), nil},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := tcpPair(t)
			x, y := greet(t, a, b, stream.Options{})
			sent := make(chan error, 1)
			go func() { sent <- x.SendEntry(t.Context(), "name", test.size, test.r) }()
			m, err := y.Receive(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, m.Entry); !errors.Is(err, stream.ErrCanceled) {
				t.Error(err)
			}
			if err := <-sent; err == nil || test.want != nil && !errors.Is(err, test.want) {
				t.Error(err)
			}
			go func() {
				sent <- errors.Join(x.Send(t.Context(), "abort", nil),
					x.SendEntry(t.Context(), "again", 4, strings.NewReader("good")))
			}()
			if m, err := y.Receive(t.Context()); err != nil || m.Type != "abort" {
				t.Errorf("%v, %v", m, err)
			}
			if m, err = y.Receive(t.Context()); err != nil {
				t.Fatal(err)
			}
			if data, err := io.ReadAll(m.Entry); err != nil || string(data) != "good" {
				t.Errorf("%q, %v", data, err)
			}
			if err := <-sent; err != nil {
				t.Error(err)
			}
		})
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// What was sent before Close arrives, though the side that closes has left something unread.
func TestLastWord(t *testing.T) {
	for range 20 {
		a, b := tcpPair(t)
		x, y := greet(t, a, b, stream.Options{})
		go func() {
			for y.Send(context.Background(), "unread", strings.Repeat("x", 10000)) == nil {
			}
		}()
		if _, err := x.Receive(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := x.Send(t.Context(), "last", nil); err != nil {
			t.Fatal(err)
		}
		closed := make(chan error, 1)
		go func() { closed <- x.Close() }()
		if m, err := y.Receive(t.Context()); err != nil || m.Type != "last" {
			t.Fatalf("%v, %v", m, err)
		}
		if _, err := y.Receive(t.Context()); !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		y.Close()
		if err := <-closed; err != nil {
			t.Fatal(err)
		}
	}
}

// Whose sending fails because the other side is gone still learns why it went.
func TestReasonAfterBrokenPipe(t *testing.T) {
	a, b := osPipes(t)
	x, y := greet(t, a, b, stream.Options{})
	if err := y.Send(t.Context(), "abort", note{"no space"}); err != nil {
		t.Fatal(err)
	}
	b.(duplex).close() //nolint:errcheck // as if it died; y closes it too
	for x.Send(t.Context(), "note", nil) == nil {
	}
	if m, err := x.Receive(t.Context()); err != nil || m.Type != "abort" {
		t.Fatalf("%v, %v", m, err)
	}
	if _, err := x.Receive(t.Context()); !errors.Is(err, stream.ErrTruncated) {
		t.Error(err)
	}
}

// Wrong use is an error, and nothing of it reaches the wire.
func TestMisuse(t *testing.T) {
	a, b := tcpPair(t)
	fresh := stream.New(a, stream.Options{})
	if err := fresh.Send(t.Context(), "early", nil); err == nil {
		t.Error("a message before the handshake")
	}
	x, y := greet(t, a, b, stream.Options{Large: map[string]int{"large": 2 << 20}})
	before := x.Stats().WireSent
	for _, err := range []error{
		x.Handshake(t.Context()),
		x.Send(t.Context(), "two words", nil),
		x.Send(t.Context(), "", nil),
		x.Send(t.Context(), "note", strings.Repeat("x", 1<<20)),
		x.Send(t.Context(), "large", strings.Repeat("x", 2<<20)),
		x.Send(t.Context(), "note", func() {}),
		x.SendEntry(t.Context(), "../up", 0, strings.NewReader("")),
		x.SendEntry(t.Context(), strings.Repeat("x", 1025), 0, strings.NewReader("")),
	} {
		if err == nil {
			t.Error("no error")
		}
	}
	if x.Stats().WireSent != before {
		t.Error("something was sent all the same")
	}
	_ = y
}

// A large message of a type that may be large arrives.
func TestLarge(t *testing.T) {
	a, b := tcpPair(t)
	x, y := greet(t, a, b, stream.Options{Large: map[string]int{"large": 8 << 20}})
	text := strings.Repeat("x", 2<<20)
	for range 3 { // each gives its place to the next
		sent := make(chan error, 1)
		go func() { sent <- x.Send(t.Context(), "large", text) }()
		m, err := y.Receive(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var got string
		if err := m.Decode(&got); err != nil || got != text {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
	}
}

// A second Receive before the entry of the first was read is an error, not a mess.
func TestUnreadEntry(t *testing.T) {
	a, b := tcpPair(t)
	x, y := greet(t, a, b, stream.Options{})
	if err := x.SendEntry(t.Context(), "name", -1, strings.NewReader("data")); err != nil {
		t.Fatal(err)
	}
	m, err := y.Receive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := y.Receive(t.Context()); err == nil {
		t.Error("no error")
	}
	if data, err := io.ReadAll(m.Entry); err != nil || string(data) != "data" {
		t.Errorf("%q, %v", data, err)
	}
}

func BenchmarkEntry(b *testing.B) {
	const size = 64 << 20
	noise := make([]byte, size)
	rand.NewChaCha8([32]byte{}).Read(noise)
	for name, test := range map[string]struct {
		data        []byte
		compression stream.Compression
	}{
		"noise/none": {noise, stream.None},
		"noise/auto": {noise, stream.Auto},
		"noise/zstd": {noise, stream.Zstd},
		"zero/auto":  {make([]byte, size), stream.Auto},
		"pages/none": {pagesOf(size), stream.None},
		"pages/auto": {pagesOf(size), stream.Auto},
		"pages/zstd": {pagesOf(size), stream.Zstd},
	} {
		b.Run(name, func(b *testing.B) {
			p, q := tcpPair(b)
			x, y := greet(b, p, q, stream.Options{Compression: test.compression})
			b.SetBytes(size)
			b.ReportAllocs()
			go func() {
				for x.SendEntry(context.Background(), "pages", size, bytes.NewReader(test.data)) == nil {
				}
			}()
			for b.Loop() {
				m, err := y.Receive(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, m.Entry); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(x.Stats().WireSent)/float64(max(x.Stats().RawSent, 1)), "wire/raw")
		})
	}
}

func BenchmarkMessage(b *testing.B) {
	p, q := tcpPair(b)
	x, y := greet(b, p, q, stream.Options{})
	go func() {
		for {
			m, err := y.Receive(context.Background())
			if err != nil || y.Send(context.Background(), "pong", m.Body) != nil {
				return
			}
		}
	}()
	for b.Loop() {
		if err := x.Send(b.Context(), "ping", note{"hello"}); err != nil {
			b.Fatal(err)
		}
		if _, err := x.Receive(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
