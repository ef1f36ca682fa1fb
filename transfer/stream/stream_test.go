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
