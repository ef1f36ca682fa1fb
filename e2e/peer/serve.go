package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/e2e/peer/control"
)

type serveFlags struct {
	listen    string
	udp       string
	children  int
	unixPath  string
	innerPeer string
	options   optionFlags
	reuseport bool
	mptcp     bool
	noAccept  bool
	ioURing   bool
	quiet     bool
	log       string
	data      string
	mapped    string
}

func parseServe(args []string) (serveFlags, error) {
	var f serveFlags
	set := flag.NewFlagSet("serve", flag.ContinueOnError)
	set.StringVar(&f.listen, "listen", ":7000", "comma-separated TCP addresses")
	set.StringVar(&f.udp, "udp", "", "UDP address to echo on")
	set.IntVar(&f.children, "children", 0, "processes that accept from the inherited listeners; 0: this one does")
	set.StringVar(&f.unixPath, "unix", "", "path of a unix socket for a link inside the tree")
	set.StringVar(&f.innerPeer, "inner-peer", "", "TCP address of another peer in the namespace to keep a connection to")
	set.Var(&f.options, "sockopt", "NAME=VALUE to set on listeners and connections, repeatable")
	set.BoolVar(&f.reuseport, "reuseport", false, "set SO_REUSEPORT before bind")
	set.BoolVar(&f.mptcp, "mptcp", false, "listen on MPTCP sockets")
	set.BoolVar(&f.noAccept, "no-accept", false, "leave connections in the accept queue")
	set.BoolVar(&f.ioURing, "io-uring", false, "hold an io_uring instance")
	set.StringVar(&f.log, "log", "", "file that gets a line for each exchange; \"-\": standard output")
	set.StringVar(&f.data, "data", "", "file that says how many exchanges there were")
	set.StringVar(&f.mapped, "mapped", "", "file that says so too, and is written through memory")
	set.BoolVar(&f.quiet, "quiet", false, "say nothing")
	return f, set.Parse(args)
}

// serve is the service: this process, or children that share its listeners.
func serve(args []string) error {
	f, err := parseServe(args)
	if err != nil {
		return err
	}
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	if f.ioURing {
		if err := holdIOURing(); err != nil {
			return err
		}
	}
	listeners, err := f.listenTCP()
	if err != nil {
		return err
	}
	if !f.quiet {
		fmt.Println("listening on", f.listen)
	}
	if f.children > 0 {
		return serveChildren(f, listeners)
	}
	links, err := newLinks(f)
	if err != nil {
		return err
	}
	s := newServer(f, links)
	if s.books, err = f.openBooks(); err != nil {
		return err
	}
	return s.run(listeners)
}

func (f serveFlags) listenTCP() ([]net.Listener, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		raw.Control(func(fd uintptr) {
			if f.reuseport {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
			}
			err = errors.Join(err, f.options.apply(int(fd)))
		})
		return err
	}}
	config.SetMultipathTCP(f.mptcp)
	var listeners []net.Listener
	for addr := range strings.SplitSeq(f.listen, ",") {
		l, err := config.Listen(context.Background(), "tcp", addr)
		if err != nil {
			return nil, err
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}

// server holds the connections of one process.
type server struct {
	flags serveFlags
	links links
	books *books

	mu    sync.Mutex
	conns map[uint64]*served
}

// served is what the server knows of a connection.
type served struct {
	conn  net.Conn
	books *books

	mu       sync.Mutex
	received uint64
	sent     uint64
	problem  string
}

func (s *served) add(received, sent int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.received += uint64(received)
	s.sent += uint64(sent)
}

func newServer(f serveFlags, l links) *server {
	return &server{flags: f, links: l, conns: map[uint64]*served{}}
}

func (s *server) run(listeners []net.Listener) error {
	fatal := make(chan error)
	if s.flags.udp != "" {
		pc, err := net.ListenPacket("udp", s.flags.udp)
		if err != nil {
			return err
		}
		go func() { fatal <- echoUDP(pc) }()
	}
	for _, l := range listeners {
		if !s.flags.noAccept {
			go func() { fatal <- s.accept(l) }()
		}
	}
	return <-fatal
}

func (s *server) accept(l net.Listener) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go s.serveConn(conn)
	}
}

func (s *server) serveConn(conn net.Conn) {
	defer conn.Close()
	if err := s.setOptions(conn); err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		return
	}
	h, err := readHello(conn)
	if err != nil {
		return
	}
	if h.mode == modeQuery || h.mode == modeInner {
		s.answer(conn, h)
		return
	}
	c := &served{conn: conn, books: s.books}
	s.mu.Lock()
	s.conns[h.id] = c
	s.mu.Unlock()
	err = c.carry(h)
	if err != nil && !s.flags.quiet {
		fmt.Fprintf(os.Stderr, "peer: connection %d: %v\n", h.id, err)
	}
	if err != nil {
		c.mu.Lock()
		c.problem = err.Error()
		c.mu.Unlock()
	}
}

func (s *server) setOptions(conn net.Conn) error {
	if len(s.flags.options) == 0 {
		return nil
	}
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) { err = s.flags.options.apply(int(fd)) })
	return errors.Join(cerr, err)
}

// carry serves a connection of one of the modes that carry streams.
func (c *served) carry(h hello) error {
	switch h.mode {
	case modeEcho:
		return c.echo(h)
	case modeBulk:
		return c.bulk(h)
	case modeHalf:
		if _, err := c.receive(h, &pace{}); err != nil {
			return err
		}
		for off := uint64(0); ; off += uint64(h.chunk) {
			if err := c.send(h, off); err != nil {
				return err
			}
			time.Sleep(h.period)
		}
	case modeHalfServer:
		if err := c.conn.(*net.TCPConn).CloseWrite(); err != nil {
			return err
		}
		_, err := c.receive(h, &pace{rate: h.rate})
		return err
	default:
		return fmt.Errorf("unknown mode %q", h.mode)
	}
}

func (c *served) echo(h hello) error {
	buf := make([]byte, h.chunk)
	for off := uint64(0); ; off += uint64(h.chunk) {
		if _, err := io.ReadFull(c.conn, buf); errors.Is(err, io.EOF) {
			_, err = c.conn.Write(trailer(off, off))
			return err
		} else if err != nil {
			return err
		}
		if i := toServer(h.id).Check(buf, off); i >= 0 {
			return fmt.Errorf("wrong byte at %d", off+uint64(i))
		}
		c.add(len(buf), 0)
		if err := c.books.enter(); err != nil {
			return err
		}
		if err := c.send(h, off); err != nil {
			return err
		}
	}
}

// send writes the chunk that begins at an offset.
func (c *served) send(h hello, off uint64) error {
	buf := make([]byte, h.chunk)
	toClient(h.id).Fill(buf, off)
	n, err := c.conn.Write(buf)
	c.add(0, n)
	return err
}

// receive reads and checks the client's stream to its end.
func (c *served) receive(h hello, p *pace) (uint64, error) {
	buf := make([]byte, h.chunk)
	for off := uint64(0); ; {
		n, err := c.conn.Read(buf)
		if i := toServer(h.id).Check(buf[:n], off); i >= 0 {
			return off, fmt.Errorf("wrong byte at %d", off+uint64(i))
		}
		off += uint64(n)
		c.add(n, 0)
		if errors.Is(err, io.EOF) {
			return off, nil
		}
		if err != nil {
			return off, err
		}
		p.wait(n)
	}
}

func (c *served) bulk(h hello) error {
	var received uint64
	ended := make(chan error, 1)
	go func() {
		var err error
		received, err = c.receive(h, &pace{rate: h.rate})
		ended <- err
	}()
	for sent := uint64(0); ; sent += uint64(h.chunk) {
		select {
		case err := <-ended:
			if err != nil {
				return err
			}
			_, err = c.conn.Write(trailer(received, sent))
			return err
		default:
			if err := c.send(h, sent); err != nil {
				return err
			}
		}
	}
}

// answer replies to a query, or to a request for an inner exchange.
func (s *server) answer(conn net.Conn, h hello) {
	reply := json.NewEncoder(conn)
	if h.mode == modeInner {
		reply.Encode(s.links.exchange())
		return
	}
	s.mu.Lock()
	c := s.conns[h.id]
	s.mu.Unlock()
	if c == nil {
		reply.Encode(control.Knowledge{})
		return
	}
	options := readOptions(c.conn)
	c.mu.Lock()
	defer c.mu.Unlock()
	reply.Encode(control.Knowledge{Known: true, Received: c.received, Sent: c.sent, Problem: c.problem, Options: options})
}

func echoUDP(pc net.PacketConn) error {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			return err
		}
		if _, err := pc.WriteTo(buf[:n], from); err != nil {
			return err
		}
	}
}

// holdIOURing opens an io_uring instance and keeps it for the process's life.
func holdIOURing() error {
	var params [120]byte // struct io_uring_params
	_, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 4, paramsPointer(&params), 0)
	if errno != 0 {
		return fmt.Errorf("io_uring_setup: %w", errno)
	}
	return nil
}
