// Package agent lets a host run commands in a guest, over one byte stream. [Serve] is the guest's end,
// [Client] the host's. Both ends are built from the same tree, so there are no versions.
package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// Command is a program to run in the guest, as root.
type Command struct {
	Args   []string
	Env    []string  // added to the guest's few variables
	Dir    string    // "" is /
	Output io.Writer `json:"-"` // gets standard output and error as they come; nil discards
}

// ExitError says that a command ran and failed.
type ExitError struct{ Code int }

func (e *ExitError) Error() string { return fmt.Sprintf("exit code %d", e.Code) }

// request starts a command, or kills the one with this number.
type request struct {
	ID      int
	Command *Command `json:",omitempty"`
}

// reply is a piece of a command's output or its end. The first one, with the number 0, says that the guest is
// there.
type reply struct {
	ID    int
	Data  []byte `json:",omitempty"`
	Ended bool   `json:",omitempty"`
	Code  int    `json:",omitempty"`
	Error string `json:",omitempty"` // why the command did not even start
}

// server is the guest's end.
type server struct {
	mu  sync.Mutex
	out *json.Encoder
}

// Serve runs what the host asks for, until the stream ends.
func Serve(stream io.ReadWriter) error {
	s := &server{out: json.NewEncoder(stream)}
	s.send(reply{})
	running := map[int]context.CancelFunc{}
	for in := json.NewDecoder(stream); ; {
		var r request
		if err := in.Decode(&r); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if r.Command == nil {
			if kill := running[r.ID]; kill != nil {
				kill()
			}
			continue
		}
		ctx, kill := context.WithCancel(context.Background())
		running[r.ID] = kill
		go func() {
			defer kill()
			s.run(ctx, r.ID, r.Command)
		}()
	}
}

func (s *server) send(r reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.out.Encode(r) // the host is gone: Serve sees it too
}

// stream sends what a command writes.
type stream struct {
	s  *server
	id int
}

func (w stream) Write(b []byte) (int, error) {
	w.s.send(reply{ID: w.id, Data: b})
	return len(b), nil
}

func (s *server) run(ctx context.Context, id int, c *Command) {
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	cmd.Dir = c.Dir
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
	cmd.Env = append(cmd.Environ(), c.Env...)
	cmd.Stdout = stream{s, id}
	cmd.Stderr = cmd.Stdout
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // a daemon that the command left may keep its output open
	err := cmd.Run()
	r := reply{ID: id, Ended: true}
	if cmd.ProcessState != nil {
		r.Code = cmd.ProcessState.ExitCode() // -1 if killed by a signal
	} else if err != nil {
		r.Error = err.Error()
	}
	s.send(r)
}

// Client is the host's end.
type Client struct {
	ready chan struct{} // closed when the guest is there
	ended chan struct{} // closed when the stream has ended

	mu    sync.Mutex
	out   *json.Encoder
	last  int
	calls map[int]*call
}

// call is a command that runs.
type call struct {
	output io.Writer
	end    chan reply // gets the last reply
}

// ErrGone says that the guest ended while something was expected of it.
var ErrGone = errors.New("the guest is gone")

// NewClient returns the host's end of a stream, which the caller closes when it is done.
func NewClient(stream io.ReadWriter) *Client {
	c := &Client{ready: make(chan struct{}), ended: make(chan struct{}), out: json.NewEncoder(stream), calls: map[int]*call{}}
	go c.receive(json.NewDecoder(stream))
	return c
}

func (c *Client) receive(in *json.Decoder) {
	defer close(c.ended)
	for {
		var r reply
		if in.Decode(&r) != nil {
			return
		}
		if r.ID == 0 {
			close(c.ready)
			continue
		}
		c.mu.Lock()
		call := c.calls[r.ID]
		if r.Ended {
			delete(c.calls, r.ID)
		}
		c.mu.Unlock()
		switch {
		case call == nil:
		case r.Ended:
			call.end <- r
		default:
			_, _ = call.output.Write(r.Data)
		}
	}
}

// Ready waits until the guest is there.
func (c *Client) Ready(ctx context.Context) error {
	select {
	case <-c.ready:
		return nil
	case <-c.ended:
		return ErrGone
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Run runs a command to its end. An end of the context kills it and its children. The error of a command that
// failed is an *[ExitError].
func (c *Client) Run(ctx context.Context, command Command) error {
	this := &call{output: command.Output, end: make(chan reply, 1)}
	if this.output == nil {
		this.output = io.Discard
	}
	c.mu.Lock()
	c.last++
	id := c.last
	c.calls[id] = this
	err := c.out.Encode(request{ID: id, Command: &command})
	c.mu.Unlock()
	if err != nil {
		return ErrGone
	}
	select {
	case r := <-this.end:
		switch {
		case r.Error != "":
			return errors.New(r.Error)
		case r.Code != 0:
			return &ExitError{Code: r.Code}
		}
		return nil
	case <-c.ended:
		return ErrGone
	case <-ctx.Done():
		return errors.Join(ctx.Err(), c.kill(id, this))
	}
}

// kill ends a command and waits for a moment until it is over, so that its output is not written to any more.
func (c *Client) kill(id int, this *call) error {
	c.mu.Lock()
	err := c.out.Encode(request{ID: id})
	c.mu.Unlock()
	if err != nil {
		return ErrGone
	}
	select {
	case <-this.end:
		return nil
	case <-c.ended:
		return ErrGone
	case <-time.After(10 * time.Second):
		return errors.New("the command can't be killed")
	}
}
