package transport

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/nsmigrate/nsmigrate/checkpoint"
)

// Handler serves one connection. It must speak first. The connection is closed when it returns. Its context ends when
// the server has been asked to stop and [Limits.Grace] is over.
type Handler func(ctx context.Context, conn io.ReadWriteCloser, peer *Peer) error

// ServerOptions of a server.
type ServerOptions struct {
	TLS       Files    // for TCP; all but CRL must be given
	Allow     []string // names that may come by TCP: "*" is any that the CA knows, "*.example.org" has one label more
	AllowFile string   // more of them, one a line
	Limits    Limits
	Handler   Handler
	Log       *slog.Logger // nil: nothing is logged
}

// Limits of a server. What is 0 is the default.
type Limits struct {
	Migrations  int           // at the same time; 4
	PerPeer     int           // connections of one name at the same time, and handshakes of one address; 8
	Connections int           // at the same time, from everybody; 128
	Handshake   time.Duration // that a TLS handshake may take; 10 s
	Size        int64         // bytes that one connection may bring; unlimited
	Bandwidth   int64         // bytes a second that all connections may bring together; unlimited
	Grace       time.Duration // for what is running when the server is asked to stop; unlimited
}

func (l Limits) withDefaults() Limits {
	l.Migrations = cmp.Or(l.Migrations, 4)
	l.PerPeer = cmp.Or(l.PerPeer, 8)
	l.Connections = cmp.Or(l.Connections, 128)
	l.Handshake = cmp.Or(l.Handshake, 10*time.Second)
	return l
}

// Peer is who is at the other end of a connection.
type Peer struct {
	Name  string   // on the list; of a unix socket: "uid 0"
	Names []string // all names of the certificate; nil for a unix socket
	Addr  string   // for people and logs

	server   *Server
	admitted bool
}

// Admit asks for one of the places for migrations. It is given back when the handler returns. The error is a
// [*checkpoint.RefusedError], which the other side is to be told. Connections that only ask something need no place.
func (p *Peer) Admit() error {
	if p.admitted {
		return nil
	}
	select {
	case p.server.places <- struct{}{}:
		p.admitted = true
		return nil
	default:
		return checkpoint.Refuse("receive", []checkpoint.Problem{{
			Kind: "daemon", Object: "`nsmigrate serve`",
			Reason: count(cap(p.server.places), "migration is", "migrations are") + " running, which is the limit",
			Remedy: "try again later, or raise its limit (--max-migrations)",
		}})
	}
}

// Server accepts connections of other hosts.
type Server struct {
	opts    ServerOptions
	limits  Limits
	log     *slog.Logger
	places  chan struct{}
	slots   chan struct{}
	limiter *rate.Limiter

	mu          sync.Mutex
	credentials *credentials
	allowed     names
	byName      map[string]int // connections
	byAddress   map[string]int // handshakes
}

// NewServer reads the certificates and lists. A server without ServerOptions.TLS can serve unix sockets only.
func NewServer(o ServerOptions) (*Server, error) {
	l := o.Limits.withDefaults()
	s := &Server{
		opts: o, limits: l, log: o.Log,
		places: make(chan struct{}, l.Migrations), slots: make(chan struct{}, l.Connections),
		byName: make(map[string]int), byAddress: make(map[string]int),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if l.Bandwidth > 0 {
		s.limiter = rate.NewLimiter(rate.Limit(l.Bandwidth), int(max(l.Bandwidth/20, 4<<10)))
	}
	if err := s.Reload(); err != nil {
		return nil, err
	}
	return s, nil
}

// Reload reads the certificates and lists again. They count for connections that come from now on. If there is
// anything wrong with them, all stays as it was.
func (s *Server) Reload() error {
	if s.opts.TLS == (Files{}) {
		return nil
	}
	if s.opts.TLS.CA == "" {
		return &hintedError{
			err:  errors.New("the CA that clients' certificates come from is missing"),
			hint: "give it with --tls-ca; the system's CAs would let in whoever has a certificate",
		}
	}
	c, err := s.opts.TLS.load(time.Now())
	if err != nil {
		return err
	}
	allowed, err := loadNames(s.opts.Allow, s.opts.AllowFile)
	if err != nil {
		return err
	}
	if len(allowed) == 0 {
		return &hintedError{
			err:  errors.New("nobody may come: the list of names is empty"),
			hint: "give names of certificates with --allow or --allow-file; * is any that the CA knows",
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.credentials, s.allowed = c, allowed
	return nil
}

// Serve accepts connections until ctx ends. Then it closes the listeners and waits for the handlers that are running.
func (s *Server) Serve(ctx context.Context, listeners ...net.Listener) error {
	for _, l := range listeners {
		if _, local := l.(*net.UnixListener); !local && s.opts.TLS == (Files{}) {
			return &hintedError{
				err:  fmt.Errorf("listen on %s: certificates are missing", l.Addr()),
				hint: "give --tls-ca, --tls-cert and --tls-key; there is no TCP without TLS",
			}
		}
	}
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	var accepting, handling sync.WaitGroup
	for _, l := range listeners {
		stop := context.AfterFunc(ctx, func() { l.Close() })
		defer stop()
		accepting.Go(func() { s.accept(ctx, work, l, &handling) })
		s.log.Info("listening", "address", l.Addr().String())
	}
	<-ctx.Done()
	accepting.Wait()
	if n := len(s.slots); n > 0 {
		s.log.Info("stopping; what is running may finish", "connections", n)
	}
	if s.limits.Grace > 0 {
		timer := time.AfterFunc(s.limits.Grace, func() { cancel(errors.New("the server is stopping and its patience is over")) })
		defer timer.Stop()
	}
	handling.Wait()
	s.log.Info("stopped")
	return nil
}

// accept passes connections on until the listener is closed.
func (s *Server) accept(ctx, work context.Context, l net.Listener, handling *sync.WaitGroup) {
	delay := time.Duration(0)
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			delay = 0
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return
		default: // too many files, or the connection is gone already
			delay = min(max(2*delay, 5*time.Millisecond), time.Second)
			s.log.Warn("can't accept a connection", "address", l.Addr().String(), "error", err)
			timer := time.NewTimer(delay)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
			}
			continue
		}
		select {
		case s.slots <- struct{}{}:
		default:
			s.log.Warn("too many connections, one is sent away", "peer", address(conn), "limit", cap(s.slots))
			conn.Close()
			continue
		}
		handling.Go(func() {
			defer func() { <-s.slots }()
			defer conn.Close()
			if err := s.serve(ctx, work, conn); err != nil {
				s.log.Warn("connection ended", "peer", address(conn), "error", err)
			}
		})
	}
}

// serve is the life of a connection.
func (s *Server) serve(ctx, work context.Context, raw net.Conn) error {
	conn, peer, err := s.identify(ctx, raw)
	if refused, ok := errors.AsType[*RefusedError](err); ok {
		send(conn, refused)
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	if !s.enter(s.byName, peer.Name) {
		err := &RefusedError{Reason: Busy, Text: fmt.Sprintf("%s has %s, which is the limit", peer.Name, count(s.limits.PerPeer, "connection", "connections"))}
		send(conn, err)
		return err
	}
	defer s.leave(s.byName, peer.Name)
	defer func() {
		if peer.admitted {
			<-s.places
		}
	}()
	s.log.Info("connected", "peer", peer.Addr, "name", peer.Name)
	start := time.Now()
	limited := &limitedConn{halfCloser: conn, limiter: s.limiter, left: s.limits.Size, size: s.limits.Size, quit: make(chan struct{})}
	defer limited.Close()
	if err := s.opts.Handler(work, limited, peer); err != nil {
		return err
	}
	s.log.Info("done", "peer", peer.Addr, "name", peer.Name, "time", time.Since(start).Round(time.Millisecond))
	return nil
}

// halfCloser is what all our connections are.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// identify finds out who is there. A *RefusedError comes with the connection to tell it on.
func (s *Server) identify(ctx context.Context, raw net.Conn) (halfCloser, *Peer, error) {
	peer := &Peer{Addr: address(raw), server: s}
	if local, ok := raw.(*net.UnixConn); ok {
		uid, err := checkPeer(local)
		if err != nil {
			return local, nil, &RefusedError{Reason: NotAllowed, Text: err.Error()}
		}
		peer.Name = "uid " + strconv.Itoa(int(uid))
		return local, peer, goingAway(ctx)
	}
	host, _, err := net.SplitHostPort(peer.Addr)
	if err != nil {
		host = peer.Addr
	}
	if !s.enter(s.byAddress, host) {
		return nil, nil, fmt.Errorf("%s of one address at the same time, which is the limit", count(s.limits.PerPeer, "handshake", "handshakes"))
	}
	conn, err := s.handshake(ctx, raw)
	s.leave(s.byAddress, host)
	if err != nil {
		return nil, nil, fmt.Errorf("handshake: %w", explainTLS(err, s.opts.TLS))
	}
	state := conn.ConnectionState()
	leaf := state.PeerCertificates[0]
	s.mu.Lock()
	c, allowed := s.credentials, s.allowed
	s.mu.Unlock()
	if err := c.checkRevoked(state); err != nil {
		revoked := &RefusedError{Reason: Revoked, Text: fmt.Sprintf("the certificate of %s", nameOf(leaf))}
		if e, ok := errors.AsType[*CertificateError](err); ok {
			revoked.Text += " " + e.Problem
		}
		return conn, nil, revoked
	}
	peer.Names = namesOf(leaf)
	name, ok := allowed.find(leaf)
	if !ok {
		return conn, nil, &RefusedError{Reason: NotAllowed, Text: fmt.Sprintf("nobody called %s may come", cmp.Or(nameOf(leaf), "nothing"))}
	}
	peer.Name = name
	return conn, peer, goingAway(ctx)
}

// goingAway refuses who comes while we stop.
func goingAway(ctx context.Context) error {
	if ctx.Err() != nil {
		return &RefusedError{Reason: GoingAway, Text: "the server is stopping"}
	}
	return nil
}

func (s *Server) handshake(ctx context.Context, raw net.Conn) (*tlsConn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.limits.Handshake, fmt.Errorf("it took longer than %v", s.limits.Handshake))
	defer cancel()
	s.mu.Lock()
	config := s.credentials.config()
	config.ClientCAs = s.credentials.roots
	s.mu.Unlock()
	config.ClientAuth = tls.RequireAndVerifyClientCert
	conn := server(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	conn.gather()
	return conn, nil
}

// enter counts one more of a key, if there may be one more.
func (s *Server) enter(counts map[string]int, key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if counts[key] >= s.limits.PerPeer {
		return false
	}
	counts[key]++
	return true
}

func (s *Server) leave(counts map[string]int, key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if counts[key]--; counts[key] == 0 {
		delete(counts, key)
	}
}

// send tells the other side that it is refused, and waits a moment for it to take note: closed with something unread,
// the connection would be reset, and take the refusal with it.
func send(conn halfCloser, refused *RefusedError) {
	conn.SetDeadline(time.Now().Add(time.Second)) //nolint:errcheck // then it is closed without
	if _, err := conn.Write(refused.marshal()); err != nil {
		return
	}
	conn.CloseWrite()                                 //nolint:errcheck // it is closed anyway
	io.Copy(io.Discard, io.LimitReader(conn, 64<<10)) //nolint:errcheck // it is closed anyway
	conn.Close()
}

// address of the other end, for logs.
func address(conn net.Conn) string {
	if a := conn.RemoteAddr(); a != nil && a.String() != "" && a.String() != "@" {
		return a.String()
	}
	return conn.LocalAddr().String()
}

// LimitError says that a connection brought more than it may.
type LimitError struct{ Size int64 }

func (e *LimitError) Error() string {
	return fmt.Sprintf("the other side sent more than %d bytes", e.Size)
}

// Remedy says what the user can do.
func (e *LimitError) Remedy() string { return "raise the limit of `nsmigrate serve` (--max-size)" }

// limitedConn is a connection that brings so many bytes at most, and no more of them a second than all together may.
type limitedConn struct {
	halfCloser
	limiter *rate.Limiter // nil: none
	size    int64         // 0: any
	left    int64
	quit    chan struct{}
	closing sync.Once
}

func (c *limitedConn) Read(p []byte) (int, error) {
	if c.limiter != nil { // small pieces, so that nobody waits long
		p = p[:min(len(p), c.limiter.Burst())]
	}
	n, err := c.halfCloser.Read(p)
	if c.size > 0 {
		if c.left -= int64(n); c.left < 0 {
			return 0, &LimitError{Size: c.size}
		}
	}
	if c.limiter != nil && n > 0 {
		timer := time.NewTimer(c.limiter.ReserveN(time.Now(), n).Delay())
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-c.quit:
		}
	}
	return n, err
}

func (c *limitedConn) Close() error {
	c.closing.Do(func() { close(c.quit) })
	return c.halfCloser.Close()
}

// count names a number of things.
func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
