package transport

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/nsmigrate/nsmigrate/transfer/stream"
)

// serveStream answers one message and takes one entry.
func serveStream(ctx context.Context, conn io.ReadWriteCloser, _ *Peer) (err error) {
	c := stream.New(conn, stream.Options{Stall: time.Minute})
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := c.Handshake(ctx); err != nil {
		return err
	}
	for {
		m, err := c.Receive(ctx)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case m.Entry == nil:
			err = c.Send(ctx, m.Type, m.Body)
		default:
			_, err = io.Copy(io.Discard, m.Entry)
		}
		if err != nil {
			return err
		}
	}
}

// The stream goes over what Dial and a server make.
func TestStream(t *testing.T) {
	ca := newAuthority(t, "our CA")
	files, _ := ca.issue("server")
	client, _ := ca.issue("client")
	s := start(t, ServerOptions{TLS: files, Allow: []string{"client"}, Handler: serveStream})
	conn, err := Dial(t.Context(), s.address, Options{TLS: client})
	if err != nil {
		t.Fatal(err)
	}
	c := stream.New(conn, stream.Options{Stall: time.Minute})
	if err := c.Handshake(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := c.SendEntry(t.Context(), "data", -1, bytes.NewReader(make([]byte, 3<<20))); err != nil {
			t.Fatal(err)
		}
		if err := c.Send(t.Context(), "hello", 7); err != nil {
			t.Fatal(err)
		}
		if m, err := c.Receive(t.Context()); err != nil || m.Type != "hello" || string(m.Body) != "7" {
			t.Fatalf("%v, %v", m, err)
		}
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	s.log.await(t, "msg=done")
}

func BenchmarkTLS(b *testing.B) {
	ca := newAuthority(b, "our CA")
	files, _ := ca.issue("server")
	client, _ := ca.issue("client")
	s := start(b, ServerOptions{TLS: files, Allow: []string{"client"}, Handler: serveStream})
	conn, err := Dial(b.Context(), s.address, Options{TLS: client})
	if err != nil {
		b.Fatal(err)
	}
	c := stream.New(conn, stream.Options{Stall: time.Minute, Compression: stream.None})
	if err := c.Handshake(b.Context()); err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	data := bytes.Repeat([]byte{1}, 64<<20)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if err := c.SendEntry(b.Context(), "data", -1, bytes.NewReader(data)); err != nil {
			b.Fatal(err)
		}
	}
}
