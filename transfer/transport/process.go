package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	partingTime = 3 * time.Second // for a process to end when both its pipes are closed
	reasonTime  = 2 * time.Second // for a process to end, and so to say why, when one of its pipes broke
	pipeSize    = 1 << 20
	tailSize    = 32 << 10 // bytes of standard error that are kept
)

// ProcessError says why ssh, or the command that leads to the other side, ended.
type ProcessError struct {
	What   string // such as "ssh to host"
	Why    string // a line for people
	Hint   string // may be empty
	Stderr string // the last of what it printed
	Err    error  // of the process, such as *exec.ExitError; nil if it ended well
}

func (e *ProcessError) Error() string { return e.What + ": " + e.Why }

func (e *ProcessError) Unwrap() error { return e.Err }

// Remedy says what the user can do.
func (e *ProcessError) Remedy() string { return e.Hint }

type processOptions struct {
	stderr  io.Writer
	explain func(status int, stderr string, err error) *ProcessError
}

// process is a connection to the standard input and output of a process.
type process struct {
	in      *os.File // its standard input
	out     *os.File // its standard output
	cmd     *exec.Cmd
	stderr  *tail
	explain func(status int, stderr string, err error) *ProcessError
	ended   chan struct{} // closed when it has ended with err
	err     error
	closing sync.Once
}

// shell runs a command that leaves the signals of a terminal to us: when Ctrl-C is pressed we have things to put back,
// and need the connection for that.
func shell(command string) []string {
	return []string{"/bin/sh", "-c", `trap "" HUP INT QUIT TERM; ` + command}
}

// wrapped is shell for a program with its arguments.
func wrapped(program string, args []string) []string {
	return append([]string{"/bin/sh", "-c", `trap "" HUP INT QUIT TERM; exec "$0" "$@"`, program}, args...)
}

func startProcess(ctx context.Context, argv []string, o processOptions) (*process, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	childIn, in, err := pipe()
	if err != nil {
		return nil, err
	}
	defer childIn.Close()
	out, childOut, err := pipe()
	if err != nil {
		in.Close()
		return nil, err
	}
	defer childOut.Close()
	p := &process{in: in, out: out, stderr: &tail{tee: o.stderr}, explain: o.explain, ended: make(chan struct{})}
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = childIn, childOut, p.stderr
	p.cmd.WaitDelay = time.Second // ssh may leave a master behind that holds its standard error
	if err := p.cmd.Start(); err != nil {
		in.Close()
		out.Close()
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		if errors.Is(p.err, exec.ErrWaitDelay) {
			p.err = nil
		}
		close(p.ended)
	}()
	return p, nil
}

// pipe returns a pipe that holds much, if the system lets it.
func pipe() (r, w *os.File, err error) {
	if r, w, err = os.Pipe(); err != nil {
		return nil, nil, err
	}
	if raw, rawErr := w.SyscallConn(); rawErr == nil {
		raw.Control(func(fd uintptr) { //nolint:errcheck // less is only slower
			unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize) //nolint:errcheck // less is only slower
		})
	}
	return r, w, nil
}

// Read reads what the process prints. Where a bare io.EOF would come of a process that failed, it says why.
func (p *process) Read(b []byte) (int, error) {
	n, err := p.out.Read(b)
	if errors.Is(err, io.EOF) {
		if reason := p.reason(); reason != nil {
			err = reason
		}
	}
	return n, err
}

func (p *process) Write(b []byte) (int, error) {
	n, err := p.in.Write(b)
	if errors.Is(err, unix.EPIPE) {
		if reason := p.reason(); reason != nil {
			err = reason
		}
	}
	return n, err
}

// reason waits for the process and returns why it failed, or nil.
func (p *process) reason() error {
	timer := time.NewTimer(reasonTime)
	defer timer.Stop()
	select {
	case <-p.ended:
	case <-timer.C:
		return nil
	}
	if e := p.explain(p.cmd.ProcessState.ExitCode(), p.stderr.String(), p.err); e != nil {
		return e
	}
	return nil
}

// CloseWrite closes the process's standard input.
func (p *process) CloseWrite() error { return p.in.Close() }

// Close closes both pipes, gives the process a moment to end, and kills it then.
func (p *process) Close() error {
	p.closing.Do(func() {
		p.in.Close()
		p.out.Close()
		timer := time.NewTimer(partingTime)
		defer timer.Stop()
		select {
		case <-p.ended:
		case <-timer.C:
			p.cmd.Process.Kill() //nolint:errcheck // it may have ended
			<-p.ended
		}
	})
	return nil
}

// tail keeps the last of what is written to it.
type tail struct {
	tee io.Writer // may be nil
	mu  sync.Mutex
	b   []byte
}

func (t *tail) Write(p []byte) (int, error) {
	if t.tee != nil {
		t.tee.Write(p) //nolint:errcheck // it is for information only
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if len(t.b) > tailSize {
		t.b = bytes.Clone(t.b[len(t.b)-tailSize:])
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.b)
}

// lastLine returns the last line that says something.
func lastLine(text string) string {
	lines := strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' })
	for _, line := range slices.Backward(lines) {
		if line := strings.TrimSpace(printable(line)); line != "" {
			return line
		}
	}
	return ""
}

// explainExec is for commands that we know nothing of.
func explainExec(status int, stderr string, err error) *ProcessError {
	if err == nil {
		return nil
	}
	e := &ProcessError{What: "the command", Why: fmt.Sprintf("it ended with %v", err), Stderr: stderr, Err: err}
	if line := lastLine(stderr); line != "" {
		e.Why += ": " + line
	}
	switch status {
	case 127:
		e.Hint = "see whether the program of exec: is there"
	case 126:
		e.Hint = "see whether the program of exec: may be run"
	}
	return e
}
