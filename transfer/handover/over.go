package handover

import (
	"context"
	"io"

	"github.com/nsmigrate/nsmigrate/transfer/stream"
)

// Over is a [Conn] over a stream whose handshake is done. Its options should allow [LargeMessages].
func Over(c *stream.Conn) Conn { return overStream{c} }

type overStream struct{ c *stream.Conn }

func (o overStream) Send(ctx context.Context, typ string, body any) error {
	return o.c.Send(ctx, typ, body)
}

func (o overStream) SendEntry(ctx context.Context, name string, size int64, r io.Reader) error {
	return o.c.SendEntry(ctx, name, size, r)
}

func (o overStream) Receive(ctx context.Context) (*Message, error) {
	m, err := o.c.Receive(ctx)
	if err != nil {
		return nil, err
	}
	if m.Entry != nil {
		return &Message{Entry: &Entry{Name: m.Entry.Name, Size: m.Entry.Size, Reader: m.Entry}}, nil
	}
	return &Message{Type: m.Type, Body: m.Body}, nil
}

func (o overStream) Close() error { return o.c.Close() }
