package e2e

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/nsmigrate/nsmigrate/e2e/lab"
)

// link is the way to a host that a migration takes: a socket that every host can reach, behind which `nsmigrate receive`
// runs on the host, once for each connection. It belongs to neither host, so that it can be cut while both go on.
type link struct {
	w       *world
	to      *lab.Host
	path    string
	program string
	env     []string // of the program that receives first, beside its own

	soon *time.Timer // when it is mended

	mu      sync.Mutex
	cut     bool
	lines   []*line
	mangle  func([]byte)  // what happens to bytes; may be nil
	mangled bool          // it happens to those that the source sends, else to the destination's
	stuck   chan struct{} // while nothing moves, either way; closed when it does again
}

// line is one connection over a link.
type line struct {
	conn    net.Conn
	in      io.WriteCloser
	out     io.Closer
	receive *lab.Process
}

// linkTo opens the way to a host.
func (w *world) linkTo(h *lab.Host) *link {
	w.Helper()
	l := &link{w: w, to: h, program: w.nsmigrateBin(), path: filepath.Join(w.Dir, "to-"+h.Name)}
	listener, err := net.Listen("unix", l.path)
	w.check(err)
	w.Cleanup(func() {
		listener.Close()
		l.sever()
		l.flow()
		if text, err := os.ReadFile(l.path + ".log"); err == nil && w.Failed() {
			w.Logf("what was said by those who received on %s:\n%s", h.Name, text)
		}
	})
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			if err := l.connect(conn); err != nil {
				conn.Close()
			}
		}
	}()
	return l
}

// use has another program receive, with additions to its environment for the next connection alone: whoever asks later
// what became of it asks one that makes no trouble.
func (l *link) use(program string, env ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.program, l.env = program, env
}

// address is what --to takes.
func (l *link) address() string { return "unix:" + l.path }

func (l *link) connect(conn net.Conn) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut {
		return errors.New("the link is cut")
	}
	cmd := exec.Command(l.program, "receive", "--stdio")
	cmd.Env = append(lab.Environ(), l.env...)
	l.env = nil
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(l.path+".log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stderr = log
	p, err := l.to.Start(cmd)
	if err != nil {
		return err
	}
	n := &line{conn: conn, in: in, out: out, receive: p}
	l.lines = append(l.lines, n)
	go func() {
		io.Copy(writer{l, in, true}, conn) //nolint:errcheck // either side may end
		in.Close()
	}()
	go func() {
		io.Copy(writer{l, conn, false}, out) //nolint:errcheck // either side may end
		conn.Close()
	}()
	return nil
}

type writer struct {
	l          *link
	w          io.Writer
	fromSource bool
}

func (w writer) Write(b []byte) (int, error) {
	w.l.mu.Lock()
	if w.l.mangle != nil && w.fromSource == w.l.mangled {
		w.l.mangle(b)
		w.l.mangle = nil
	}
	stuck := w.l.stuck
	w.l.mu.Unlock()
	if stuck != nil {
		<-stuck
	}
	return w.w.Write(b)
}

// stall has nothing move any more, either way, while both sides keep their connection.
func (l *link) stall() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stuck = make(chan struct{})
}

// flow ends a stall.
func (l *link) flow() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stuck != nil {
		close(l.stuck)
		l.stuck = nil
	}
}

// count is how many connections there were since the link was last cut.
func (l *link) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.lines)
}

// receiver waits for the connection that comes after n others since the link was last cut, and returns who receives on it.
func (l *link) receiver(n int) *lab.Process {
	l.w.Helper()
	l.w.check(lab.Eventually(l.w.limit(), func() error {
		if l.count() <= n {
			return errors.New("nobody connects")
		}
		return nil
	}))
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lines[n].receive
}

// sever cuts the link until mend: what runs loses its connection, and nothing new gets through.
func (l *link) sever() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = true
	for _, n := range l.lines {
		n.conn.Close()
		n.in.Close()
		n.out.Close()
	}
	l.lines = nil
}

// mend lets connections through again.
func (l *link) mend() {
	if l.soon != nil {
		l.soon.Stop()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut, l.mangle = false, nil
}

// mendSoon mends it after a while, for a source that has to ask.
func (l *link) mendSoon() {
	l.soon = time.AfterFunc(300*time.Millisecond, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.cut = false
	})
}

// alter has something happen to the next bytes that a side sends.
func (l *link) alter(fromSource bool, how func([]byte)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mangle, l.mangled = how, fromSource
}
