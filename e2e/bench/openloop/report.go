// Package openloop is the client of the blackout benchmark. It sends a message over each connection at fixed times,
// whether earlier ones were answered or not, as users do who don't know of each other, and notes how long the answers
// stayed away.
//
// It runs as a process of its own inside a host of the lab, steered by lines on its standard input.
package openloop

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

// Orders, each answered by a Report.
const (
	Reset  = "reset"  // forget what was seen, and begin anew
	Report = "report" // once every connection that lives has had an answer to a message sent after the order
	Pause  = "pause"  // send nothing until Resume
	Resume = "resume"
)

// Options of a client.
type Options struct {
	Address     string        // of the service, without a port
	Port        int           // of its first process
	Ports       int           // of how many processes; connections are spread over them
	Connections int           // in all
	Rate        int           // messages a second, of all connections but the first
	Size        int           // bytes of a message
	Limit       time.Duration // for an answer; a connection without one by then counts as dead
	Each        bool          // tell of each connection
}

// Tick is the shortest time between two messages of a connection.
const Tick = time.Millisecond

// period is the time between two messages of a connection that is not the first.
func (o Options) period() time.Duration {
	if o.Connections < 2 {
		return Tick
	}
	spread := time.Duration(o.Connections-1) * time.Second / time.Duration(o.Rate)
	return max(Tick, spread.Round(Tick))
}

// Seen is what the client saw since it was told to begin anew.
type Seen struct {
	Alive      int     `json:"alive"`
	Reset      int     `json:"reset"`        // by a RST
	Ended      int     `json:"ended"`        // by a FIN, or otherwise
	Silent     int     `json:"silent"`       // without an answer within the limit
	Wrong      int     `json:"wrong"`        // with an answer that is not the message
	GapMS      float64 `json:"gap_ms"`       // longest interval without an answer on the first connection, less its period
	WorstGapMS float64 `json:"worst_gap_ms"` // the same of the connection where it is longest
	WaitMS     float64 `json:"wait_ms"`      // longest time from when a message was due to its answer, of all
	LateMS     float64 `json:"late_ms"`      // by how much the client itself was late at most
	Answers    int64   `json:"answers"`
	Error      string  `json:"error,omitempty"`

	Each []SeenOne `json:"each,omitempty"` // connection, if that was asked for
}

// SeenOne is the longest interval without an answer on a connection.
type SeenOne struct {
	GapMS float64   `json:"gap_ms"` // less the connection's period
	End   time.Time `json:"end"`    // when the answer came
}

// Client steers one from outside.
type Client struct {
	orders io.WriteCloser
	seen   *bufio.Reader
	output *os.File
}

// Attach prepares the command of a client. It is started afterwards.
func Attach(cmd *exec.Cmd) (*Client, error) {
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout = w
	return &Client{orders: in, seen: bufio.NewReader(r), output: w}, nil
}

// Ready waits until all connections stand.
func (c *Client) Ready(ctx context.Context) error {
	c.output.Close() // the command has it now
	_, err := c.read(ctx, "connect")
	return err
}

// Order sends an order and waits for its answer.
func (c *Client) Order(ctx context.Context, order string) (Seen, error) {
	if _, err := fmt.Fprintln(c.orders, order); err != nil {
		return Seen{}, fmt.Errorf("client: %s: %w", order, err)
	}
	return c.read(ctx, order)
}

// Close ends the client and its connections.
func (c *Client) Close() error { return c.orders.Close() }

func (c *Client) read(ctx context.Context, order string) (seen Seen, err error) {
	done := make(chan error, 1)
	go func() {
		line, err := c.seen.ReadBytes('\n')
		if err == nil {
			err = json.Unmarshal(line, &seen)
		}
		done <- err
	}()
	select {
	case err = <-done:
	case <-ctx.Done():
		return Seen{}, fmt.Errorf("client: %s: %w", order, ctx.Err())
	}
	if err != nil {
		return seen, fmt.Errorf("client: %s: %w", order, err)
	}
	return seen, nil
}
