package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/e2e/peer/control"
	"github.com/nsmigrate/nsmigrate/e2e/peer/seq"
)

func paramsPointer(p *[120]byte) uintptr { return uintptr(unsafe.Pointer(p)) }

// links are the connections inside a tree: over each runs a numbered exchange all the time.
type links map[string]*link

// link is one of them, or a timer, whose exchange is to wait for a tick.
type link struct {
	exchange func(n uint64) error

	mu    sync.Mutex
	moved sync.Cond // count or err changed
	count uint64
	err   error
}

func newLink(exchange func(n uint64) error) *link {
	l := &link{exchange: exchange}
	l.moved.L = &l.mu
	go l.run()
	return l
}

const (
	linkPause    = 10 * time.Millisecond
	linkPatience = 5 * time.Second
)

func (l *link) run() {
	for n := uint64(0); ; n++ {
		err := l.exchange(n)
		l.mu.Lock()
		l.count, l.err = n+1, err
		l.moved.Broadcast()
		l.mu.Unlock()
		if err != nil {
			return
		}
		time.Sleep(linkPause)
	}
}

// next waits for an exchange that begins after the call. A link that stands still is an error.
func (l *link) next() (uint64, error) {
	late := false
	alarm := time.AfterFunc(linkPatience, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		late = true
		l.moved.Broadcast()
	})
	defer alarm.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	for want := l.count + 2; l.count < want && l.err == nil; {
		if late {
			return l.count, fmt.Errorf("stands still after %d exchanges", l.count)
		}
		l.moved.Wait()
	}
	return l.count, l.err
}

func (ls links) exchange() control.Inner {
	sid, _ := unix.Getsid(0)
	in := control.Inner{PID: os.Getpid(), PPID: os.Getppid(), SID: sid, Counts: map[string]uint64{}}
	for name, l := range ls {
		count, err := l.next()
		in.Counts[name] = count
		if err != nil {
			in.Errors = append(in.Errors, name+": "+err.Error())
		}
	}
	return in
}

// newLinks makes the links of a process with itself.
func newLinks(f serveFlags) (links, error) {
	near, far, err := socketPair()
	if err != nil {
		return nil, err
	}
	go reflect(far, far)
	r1, w1, err1 := os.Pipe()
	r2, w2, err2 := os.Pipe()
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	go reflect(r1, w2)
	if f.unixPath != "" {
		if err := reflectUnix(f.unixPath); err != nil {
			return nil, err
		}
	}
	return connectLinks(f, near, r2, w1)
}

// connectLinks makes the links whose far ends reflect: a socket pair, two pipes, a unix socket with a name, a
// connection to another peer; and a timer.
func connectLinks(f serveFlags, pair io.ReadWriter, in io.Reader, out io.Writer) (links, error) {
	ls := links{
		"pair": newLink(exchangeOver(pair, pair)),
		"pipe": newLink(exchangeOver(in, out)),
	}
	if f.unixPath != "" {
		conn, err := net.Dial("unix", f.unixPath)
		if err != nil {
			return nil, err
		}
		ls["unix"] = newLink(exchangeOver(conn, conn))
	}
	if f.innerPeer != "" {
		conn, err := dial(f.innerPeer, "")
		if err != nil {
			return nil, err
		}
		h := hello{mode: modeEcho, id: uint64(os.Getpid()), chunk: 256}
		if _, err := conn.Write(h.bytes()); err != nil {
			return nil, err
		}
		ls["peer"] = newLink(echoOver(conn, h))
	}
	tick, err := timer()
	if err != nil {
		return nil, err
	}
	ls["timerfd"] = newLink(tick)
	return ls, nil
}

// exchangeOver sends a numbered message and awaits the same back.
func exchangeOver(in io.Reader, out io.Writer) func(uint64) error {
	message, answer := make([]byte, 64), make([]byte, 64)
	return func(n uint64) error {
		seq.Stream(1).Fill(message, n*uint64(len(message)))
		if _, err := out.Write(message); err != nil {
			return err
		}
		if _, err := io.ReadFull(in, answer); err != nil {
			return err
		}
		if i := seq.Stream(1).Check(answer, n*uint64(len(answer))); i >= 0 {
			return fmt.Errorf("exchange %d: wrong byte %d", n, i)
		}
		return nil
	}
}

// echoOver is one exchange of a connection in echo mode.
func echoOver(conn net.Conn, h hello) func(uint64) error {
	buf := make([]byte, h.chunk)
	return func(n uint64) error {
		off := n * uint64(h.chunk)
		toServer(h.id).Fill(buf, off)
		if _, err := conn.Write(buf); err != nil {
			return err
		}
		if _, err := io.ReadFull(conn, buf); err != nil {
			return err
		}
		if i := toClient(h.id).Check(buf, off); i >= 0 {
			return fmt.Errorf("wrong byte at %d", off+uint64(i))
		}
		return nil
	}
}

func reflect(in io.Reader, out io.Writer) {
	buf := make([]byte, 4096)
	for {
		n, err := in.Read(buf)
		if n > 0 {
			if _, werr := out.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func reflectUnix(path string) error {
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go reflect(conn, conn)
		}
	}()
	return nil
}

func socketPair() (near, far *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "pair"), os.NewFile(uintptr(fds[1]), "pair"), nil
}

// timer waits for expirations of a timerfd.
func timer() (func(uint64) error, error) {
	const tick = 20 * time.Millisecond
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("timerfd: %w", err)
	}
	spec := unix.ItimerSpec{Interval: unix.NsecToTimespec(int64(tick)), Value: unix.NsecToTimespec(int64(tick))}
	if err := unix.TimerfdSettime(fd, 0, &spec, nil); err != nil {
		return nil, fmt.Errorf("timerfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), "timerfd")
	return func(uint64) error {
		var b [8]byte
		if _, err := f.Read(b[:]); err != nil {
			return err
		}
		if binary.NativeEndian.Uint64(b[:]) == 0 {
			return errors.New("no expiration")
		}
		return nil
	}, nil
}

const workerName = "serve-worker"

// serveChildren starts processes that accept from the inherited listeners, and reflects their links.
func serveChildren(f serveFlags, listeners []net.Listener) error {
	if f.unixPath != "" {
		if err := reflectUnix(f.unixPath); err != nil {
			return err
		}
	}
	ended := make(chan error)
	for range f.children {
		near, far, err := socketPair()
		r1, w1, err1 := os.Pipe()
		r2, w2, err2 := os.Pipe()
		if err := errors.Join(err, err1, err2); err != nil {
			return err
		}
		child := exec.Command("/proc/self/exe", append([]string{workerName}, os.Args[2:]...)...)
		child.Stdout, child.Stderr = os.Stdout, os.Stderr
		child.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		child.ExtraFiles = []*os.File{far, r2, w1}
		for _, l := range listeners {
			file, err := l.(*net.TCPListener).File()
			if err != nil {
				return err
			}
			child.ExtraFiles = append(child.ExtraFiles, file)
		}
		if err := child.Start(); err != nil {
			return err
		}
		for _, file := range child.ExtraFiles {
			file.Close()
		}
		go reflect(near, near)
		go reflect(r1, w2)
		go func() { ended <- child.Wait() }()
	}
	return fmt.Errorf("child ended: %w", <-ended)
}

// work is a child of serveChildren.
func work(args []string) error {
	f, err := parseServe(args)
	if err != nil {
		return err
	}
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	inherited := func(i int) *os.File {
		unix.CloseOnExec(3 + i)
		unix.SetNonblock(3+i, true)
		return os.NewFile(uintptr(3+i), "inherited")
	}
	links, err := connectLinks(f, inherited(0), inherited(1), inherited(2))
	if err != nil {
		return err
	}
	var listeners []net.Listener
	for i := range strings.Split(f.listen, ",") {
		file := inherited(3 + i)
		l, err := net.FileListener(file)
		if err != nil {
			return err
		}
		file.Close()
		listeners = append(listeners, l)
	}
	f.udp = "" // the parent's alone would be no use: it accepts nothing
	return newServer(f, links).run(listeners)
}
