package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nsmigrate/nsmigrate/transfer/handover"
	"github.com/nsmigrate/nsmigrate/transfer/stream"
	"github.com/nsmigrate/nsmigrate/transfer/transport"
)

// link is the way to the other host. The source's journal keeps it, so that whoever recovers can ask there.
type link struct {
	To      string            `json:"to"` // [transport.Address] as text
	Options transport.Options `json:"options"`
}

// about is what the journals of both hosts say of a migration.
type about struct {
	Service string `json:"service"` // what is moved, as the user named it
	From    string `json:"from"`    // name of the source host
	Link    link   `json:"link"`
	PID     int    `json:"pid"` // of the process on the source
}

func aboutOf(data json.RawMessage) (about, error) {
	var a about
	if err := json.Unmarshal(data, &a); err != nil {
		return a, fmt.Errorf("the journal doesn't say what was moved: %w", err)
	}
	return a, nil
}

// dial connects to the other host.
func (l link) dial(ctx context.Context, o stream.Options) (*stream.Conn, error) {
	a, err := transport.Parse(l.To)
	if err != nil {
		return nil, err
	}
	rw, err := transport.Dial(ctx, a, l.Options)
	if err != nil {
		return nil, err
	}
	o.Large = handover.LargeMessages()
	conn := stream.New(rw, o)
	if err := conn.Handshake(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("greet %s: %w", l.To, err), conn.Close())
	}
	return conn, nil
}

// redial is dial for asking, when nobody may be there who could type a password.
func (l link) redial(ctx context.Context) (handover.Conn, error) {
	l.Options.SSH.Interactive = false
	conn, err := l.dial(ctx, stream.Options{})
	if err != nil {
		return nil, err
	}
	return handover.Over(conn), nil
}
