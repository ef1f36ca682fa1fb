package criu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"
)

// Hook is a point at which criu stops and asks whether to go on (criu(8), --action-script).
type Hook string

// The hooks that nsmigrate holds or acts at. Those of the network lock are not delivered to a criu that
// runs inside the target's network namespace.
const (
	PreDump       Hook = "pre-dump"        // nothing is frozen yet
	QueryExtFiles Hook = "query-ext-files" // the tree is frozen, nothing is read yet
	PostDump      Hook = "post-dump"       // frozen, images complete: yes kills the tree without a packet, no resumes it
	PreRestore    Hook = "pre-restore"
	SetupNS       Hook = "setup-namespaces"
	PostRestore   Hook = "post-restore" // everything rebuilt, nothing runs: no kills it without a packet
	PreResume     Hook = "pre-resume"
	PostResume    Hook = "post-resume"
)

// Session is one request that a criu process works on. Its methods are called by one goroutine at a time.
type Session struct {
	proc *Process
	op   string
	held Hook // the hook that criu waits at; "" while it works
	seen []Hook
	pid  int // root of the restored tree in criu's pid namespace
	done bool
	err  error // how the request ended
	buf  []byte
	oob  []byte
}

// ErrVetoed is how a request ends that was refused at a hook.
var ErrVetoed = errors.New("vetoed")

func (p *Process) request(op string, typ rpc.CriuReqType, opts *rpc.CriuOpts) (*Session, error) {
	s := &Session{proc: p, op: op, buf: make([]byte, 1<<16), oob: make([]byte, 64)}
	if err := s.send(&rpc.CriuReq{Type: &typ, Opts: opts}); err != nil {
		return nil, err
	}
	return s, nil
}

// Held returns the hook that criu waits at, "" if it works or has ended.
func (s *Session) Held() Hook { return s.held }

// PID returns the pid of the restored tree's root in criu's pid namespace, known from [SetupNS] or
// [PostRestore] on.
func (s *Session) PID() int { return s.pid }

// Reached reports whether criu came to a hook.
func (s *Session) Reached(h Hook) bool { return slices.Contains(s.seen, h) }

// Done reports whether the request has ended.
func (s *Session) Done() bool { return s.done }

// Advance lets criu run on to a hook and holds it there. When the context ends first, criu is refused at
// whatever hook it comes to next, which rolls it back, and the context's error is returned. An error means
// that the request has ended and criu has put things back, as far as it could.
func (s *Session) Advance(ctx context.Context, to Hook) error {
	for {
		if err := ctx.Err(); err != nil {
			s.Veto()
			return fmt.Errorf("criu %s: %w", s.op, context.Cause(ctx))
		}
		if s.held != "" {
			if err := s.answer(true); err != nil {
				return s.fail(err)
			}
		}
		if err := s.next(); err != nil {
			return err
		}
		if s.done {
			return s.fail(fmt.Errorf("ended before hook %s", to))
		}
		if s.held == to {
			return nil
		}
	}
}

// Finish agrees to every remaining hook and waits for the end of the request. There is no way back from here.
func (s *Session) Finish() error {
	for !s.done {
		if s.held != "" {
			if err := s.answer(true); err != nil {
				return s.fail(err)
			}
		}
		if err := s.next(); err != nil {
			return err
		}
	}
	return s.err
}

// Veto refuses the hook that criu waits at or comes to next and waits for the end: a dump resumes its
// tree, a restore kills what it built. The returned error is nil if criu rolled back as asked. A request
// that had ended before can't be refused; then the error is [ErrEnded].
func (s *Session) Veto() error {
	if s.done {
		return ErrEnded
	}
	if s.proc.gate != nil {
		s.proc.gate.Close() // or it would wait for images that don't come
	}
	for !s.done {
		if s.held != "" {
			if err := s.answer(false); err != nil {
				return s.fail(err)
			}
		}
		if err := s.next(); err != nil && !s.done {
			return err
		}
	}
	var fault *Error
	if s.err == nil {
		return ErrEnded // it came to no hook any more
	}
	if errors.As(s.err, &fault) && fault.Died {
		return s.err
	}
	return nil
}

// ErrEnded means that a request had ended before it could be refused.
var ErrEnded = errors.New("criu had already ended")

// next waits for criu to come to a hook or to the end.
func (s *Session) next() error {
	n, oobn, err := s.receive()
	if err != nil || n == 0 {
		return s.died(err)
	}
	closeRights(s.oob[:oobn])
	var resp rpc.CriuResp
	if err := resp.UnmarshalVT(s.buf[:n]); err != nil {
		return s.fail(fmt.Errorf("malformed answer: %w", err))
	}
	if resp.GetType() == rpc.CriuReqType_NOTIFY {
		s.held = Hook(resp.GetNotify().GetScript())
		s.seen = append(s.seen, s.held)
		if pid := resp.GetNotify().GetPid(); pid != 0 {
			s.pid = int(pid)
		}
		return nil
	}
	s.done, s.held = true, ""
	if resp.GetRestore() != nil && resp.GetRestore().GetPid() > 0 {
		s.pid = int(resp.GetRestore().GetPid())
	}
	if !resp.GetSuccess() {
		<-s.proc.exited // the log is complete when the process has ended
		s.err = s.proc.explain(s.op, unix.Errno(resp.GetCrErrno()), resp.GetCrErrmsg(), false)
		return s.err
	}
	return nil
}

func (s *Session) receive() (n, oobn int, err error) {
	conn, err := s.proc.sock.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	var rerr error
	err = conn.Read(func(fd uintptr) bool {
		n, oobn, _, _, rerr = unix.Recvmsg(int(fd), s.buf, s.oob, unix.MSG_CMSG_CLOEXEC)
		return !errors.Is(rerr, unix.EAGAIN) && !errors.Is(rerr, unix.EINTR)
	})
	return n, oobn, errors.Join(err, rerr)
}

// closeRights closes files that came with a message: criu offers the master of an orphaned pty, which
// nobody here wants.
func closeRights(oob []byte) {
	if len(oob) == 0 {
		return
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for _, m := range msgs {
		fds, _ := unix.ParseUnixRights(&m)
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
}

func (s *Session) answer(yes bool) error {
	typ := rpc.CriuReqType_NOTIFY
	s.held = ""
	return s.send(&rpc.CriuReq{Type: &typ, NotifySuccess: &yes})
}

func (s *Session) send(req *rpc.CriuReq) error {
	b, err := req.MarshalVT()
	if err != nil {
		return fmt.Errorf("criu %s: encode request: %w", s.op, err)
	}
	if _, err := s.proc.sock.Write(b); err != nil {
		return fmt.Errorf("criu %s: send request: %w", s.op, err)
	}
	return nil
}

// died ends the session because criu's socket closed without an answer.
func (s *Session) died(err error) error {
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrClosed) && !errors.Is(err, unix.ECONNRESET) {
		return s.fail(fmt.Errorf("receive answer: %w", err))
	}
	<-s.proc.exited
	s.done, s.held = true, ""
	why := "criu ended without an answer"
	if s.proc.status != nil {
		why = fmt.Sprintf("criu died: %v", s.proc.status)
	}
	s.err = s.proc.explain(s.op, 0, why, true)
	return s.err
}

// fail ends the session because the conversation broke down; closing the socket makes criu roll back.
func (s *Session) fail(err error) error {
	s.proc.Close()
	s.done, s.held = true, ""
	if s.err == nil {
		s.err = fmt.Errorf("criu %s: %w", s.op, err)
	}
	return s.err
}
