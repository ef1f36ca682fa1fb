// Package control is how a test steers a load: orders as lines on the load's standard input, one report as a
// line of JSON for each on its standard output.
package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

// Orders. The answer to each is a Report.
const (
	Status   = "status"   // at once
	Progress = "progress" // when every living connection has exchanged new data since the order
	Stop     = "stop"     // after the connections were ended in order and their totals compared
)

// Report is what a load has seen. Counts are of the whole time, over all connections.
type Report struct {
	Connections int      `json:"connections"`
	Alive       int      `json:"alive"`
	Exchanges   uint64   `json:"exchanges"` // request and response; in a stream: chunks received
	Sent        uint64   `json:"sent"`      // bytes
	Received    uint64   `json:"received"`  // bytes, all of them checked
	LongestGap  float64  `json:"longest_gap_ms"`
	Resets      int      `json:"resets"`
	EOFs        int      `json:"eofs"`       // connections that the other side ended
	Mismatches  int      `json:"mismatches"` // connections with a lost, doubled or changed byte
	Lost        uint64   `json:"lost"`       // datagrams without an answer
	Keys        int      `json:"keys"`       // redis: keys whose value was read back and compared at the end
	Errors      []string `json:"errors,omitempty"`
}

// Err says what is wrong with the connections, or nil.
func (r Report) Err() error {
	if r.Alive == r.Connections && r.Mismatches == 0 && len(r.Errors) == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d connections alive, %d resets, %d EOFs, %d with wrong bytes: %s",
		r.Alive, r.Connections, r.Resets, r.EOFs, r.Mismatches, strings.Join(r.Errors, "; "))
}

// Knowledge is what a service knows of a connection.
type Knowledge struct {
	Known    bool              `json:"known"`
	Received uint64            `json:"received"`
	Sent     uint64            `json:"sent"`
	Problem  string            `json:"problem,omitempty"`
	Options  map[string]string `json:"options"` // of its socket
}

// Inner is how a service's process did when it was asked to use all links inside its tree.
type Inner struct {
	PID    int               `json:"pid"`
	PPID   int               `json:"ppid"`
	SID    int               `json:"sid"`
	Counts map[string]uint64 `json:"counts"` // exchanges by link since its begin
	Errors []string          `json:"errors,omitempty"`
}

// Client steers one load.
type Client struct {
	orders  io.WriteCloser
	reports *bufio.Reader
	output  *os.File // the command's end
}

// Attach prepares a command's streams for a Client. The command is started afterwards, and sends its first
// report when its connections stand.
func Attach(cmd *exec.Cmd) (*Client, error) {
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	// Not StdoutPipe, which the command's end would close before the last report is read.
	reports, output, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout = output
	return &Client{orders: in, reports: bufio.NewReader(reports), output: output}, nil
}

// Ready waits for the first report.
func (c *Client) Ready(ctx context.Context) (Report, error) {
	c.output.Close() // the command has it now
	return c.read(ctx, "start")
}

// Order sends an order and waits for its report.
func (c *Client) Order(ctx context.Context, order string) (Report, error) {
	if _, err := fmt.Fprintln(c.orders, order); err != nil {
		return Report{}, fmt.Errorf("load: %s: %w", order, err)
	}
	return c.read(ctx, order)
}

func (c *Client) read(ctx context.Context, order string) (Report, error) {
	type answer struct {
		Report
		err error
	}
	got := make(chan answer, 1)
	go func() {
		var a answer
		line, err := c.reports.ReadBytes('\n')
		if err == nil {
			err = json.Unmarshal(line, &a.Report)
		}
		a.err = err
		got <- a
	}()
	select {
	case a := <-got:
		if a.err != nil {
			return a.Report, fmt.Errorf("load: %s: %w", order, a.err)
		}
		return a.Report, nil
	case <-ctx.Done():
		return Report{}, fmt.Errorf("load: %s: %w", order, context.Cause(ctx))
	}
}

// Worker is the load's side.
type Worker interface {
	Report() Report
	Progress() // waits for new data
	Stop()     // ends in order
}

// Serve reports that the worker is ready and carries out orders until Stop or the end of the input.
func Serve(w Worker, in io.Reader, out io.Writer) error {
	reports := json.NewEncoder(out)
	if err := reports.Encode(w.Report()); err != nil {
		return err
	}
	orders := bufio.NewScanner(in)
	for orders.Scan() {
		order := orders.Text()
		switch order {
		case Status:
		case Progress:
			w.Progress()
		case Stop:
			w.Stop()
		default:
			return fmt.Errorf("unknown order %q", order)
		}
		if err := reports.Encode(w.Report()); err != nil {
			return err
		}
		if order == Stop {
			return nil
		}
	}
	return errors.Join(orders.Err(), io.ErrUnexpectedEOF)
}
