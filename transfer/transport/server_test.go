package transport

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nsmigrate/nsmigrate/checkpoint"
)

// hello is how a side that is reached begins.
const hello = "nsmwire\nhello"

// echo says hello, and then the same as the other side.
func echo(_ context.Context, conn io.ReadWriteCloser, _ *Peer) error {
	if _, err := io.WriteString(conn, hello); err != nil {
		return err
	}
	_, err := io.Copy(conn, conn)
	return err
}

// journal is what a server logged.
type journal struct {
	mu     sync.Mutex
	b      bytes.Buffer
	writes chan struct{}
}

func newJournal() *journal { return &journal{writes: make(chan struct{}, 1)} }

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	select {
	case j.writes <- struct{}{}:
	default:
	}
	return j.b.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

// await waits until the server has logged something.
func (j *journal) await(t *testing.T, want string) {
	t.Helper()
	for !strings.Contains(j.String(), want) {
		select {
		case <-j.writes:
		case <-time.After(time.Minute):
			t.Fatalf("the log does not say %q: %s", want, j)
		}
	}
}

type testServer struct {
	*Server
	address Address
	log     *journal
	stop    context.CancelFunc
	done    chan error
}

// start runs a server on the loopback interface until the end of the test.
func start(t testing.TB, o ServerOptions) *testServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := startOn(t, o, l)
	s.address = Address{Scheme: TLS, Host: "127.0.0.1", Port: uint16(l.Addr().(*net.TCPAddr).Port)}
	return s
}

func startOn(t testing.TB, o ServerOptions, l net.Listener) *testServer {
	t.Helper()
	s := &testServer{log: newJournal(), done: make(chan error, 1)}
	if o.Handler == nil {
		o.Handler = echo
	}
	if o.Limits.Handshake == 0 {
		o.Limits.Handshake = time.Minute // machines that run tests stand still now and then
	}
	o.Log = slog.New(slog.NewTextHandler(s.log, nil))
	var err error
	if s.Server, err = NewServer(o); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	go func() { s.done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-s.done; err != nil {
			t.Error(err)
		}
	})
	return s
}

// talk checks that a connection carries what it should.
func talk(t *testing.T, conn io.ReadWriteCloser) {
	t.Helper()
	if _, err := io.WriteString(conn, " and more"); err != nil {
		t.Fatal(err)
	}
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); err != nil || string(got) != hello+" and more" {
		t.Fatalf("%q, %v", got, err)
	}
}

// refuse checks that there is no connection, what the error says, and that it says what to do.
func refuse(t *testing.T, a Address, f Files, want string) error {
	t.Helper()
	conn, err := Dial(t.Context(), a, Options{TLS: f})
	if err == nil {
		conn.Close()
		t.Error("a connection")
		return nil
	}
	if !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %q", err, want)
	}
	var hint interface{ Remedy() string }
	if !errors.As(err, &hint) || hint.Remedy() == "" {
		t.Errorf("nothing is said of what to do: %v", err)
	}
	return err
}

// Both sides look at the other's certificate, and each error says whose is wrong and why.
func TestCertificates(t *testing.T) {
	ca, other := newAuthority(t, "our CA"), newAuthority(t, "another CA")
	node1, node1Serial := ca.issue("node-1")
	node2, node2Serial := ca.issue("node-2")
	with := func(f Files, crl string) Files {
		f.CRL = crl
		return f
	}
	only := func(f Files, _ any) Files { return f }
	trusting := func(f Files, ca string) Files {
		f.CA = ca
		return f
	}
	tomorrow, yesterday := time.Now().Add(24*time.Hour), time.Now().Add(-24*time.Hour)
	for _, test := range []struct {
		name           string
		client, server Files
		want, log      string
	}{
		{name: "good", client: node1, server: node2},
		{name: "good, none is revoked", client: with(node1, ca.revoke(tomorrow, node1Serial)), server: with(node2, ca.revoke(tomorrow, node2Serial))},
		{
			name: "server of another CA", client: node1, server: trusting(only(other.issue("node-2")), ca.file),
			want: "the other side's certificate (node-2, 127.0.0.1) is not from a CA that is trusted here: it is from CN=another CA",
			log:  "is not accepted by the other side",
		},
		{
			name: "server of another name", client: node1, server: only(ca.issue("node-2", elsewhere)),
			want: `the other side's certificate (node-2) is not for "127.0.0.1"`,
		},
		{
			name: "server that is revoked", client: with(node1, ca.revoke(tomorrow, node2Serial)), server: node2,
			want: "the other side's certificate (node-2, 127.0.0.1) was revoked on 2",
		},
		{
			name: "list of another CA", client: with(node1, other.revoke(tomorrow)), server: node2,
			want: "has no list of its CA that is in force",
		},
		{
			name: "old list", client: with(node1, ca.revoke(yesterday)), server: node2,
			want: "has no list of its CA that is in force",
		},
		{
			name: "server with a client's certificate", client: node1, server: only(ca.issue("node-2", clientOnly)),
			want: "the other side's certificate (node-2, 127.0.0.1) is not meant for this",
		},
		{
			name: "client of another CA", client: trusting(only(other.issue("node-1")), ca.file), server: node2,
			want: "is not from a CA that the other side trusts", log: "is not from a CA that is trusted here: it is from CN=another CA",
		},
		{
			name: "client that is revoked", client: node1, server: with(node2, ca.revoke(tomorrow, node1Serial)),
			want: "the other side refused: the certificate of node-1, 127.0.0.1 was revoked on 2", log: "was revoked on",
		},
		{
			name: "client with a server's certificate", client: only(ca.issue("node-1", serverOnly)), server: node2,
			want: "is not accepted by the other side", log: "is not meant for this",
		},
		{
			name: "client that nobody knows", client: only(ca.issue("node-9")), server: node2,
			want: "the other side refused: nobody called node-9, 127.0.0.1 may come", log: "node-9",
		},
		{name: "client with a URI", client: only(ca.issue("", spiffe)), server: node2},
		{name: "client that is expired", client: only(ca.issue("node-1", expired)), server: node2, want: "this side's certificate (node-1, 127.0.0.1) expired on 2"},
		{name: "client from the future", client: only(ca.issue("node-1", early)), server: node2, want: "this side's certificate (node-1, 127.0.0.1) is not valid before 2"},
		{name: "client without a certificate", client: Files{CA: ca.file}, server: node2, want: "a certificate of our own and its key are needed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := start(t, ServerOptions{TLS: test.server, Allow: []string{"node-1", "node-2", "spiffe://example.org/node/7"}})
			if test.want == "" {
				conn, err := Dial(t.Context(), s.address, Options{TLS: test.client})
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				talk(t, conn)
				return
			}
			refuse(t, s.address, test.client, test.want)
			s.log.await(t, test.log)
		})
	}
}

// What a clock or a client of another make sees is told as well.
func TestForeignClients(t *testing.T) {
	ca := newAuthority(t, "our CA")
	server, _ := ca.issue("server")
	s := start(t, ServerOptions{TLS: server, Allow: []string{"*"}})
	client, _ := ca.issue("client")
	c, err := client.load(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	stale, _ := ca.issue("stale", expired)
	old, err := tls.LoadX509KeyPair(stale.Cert, stale.Key)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		change func(*tls.Config)
		want   string
	}{
		{"TLS 1.2", func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }, "the other side does not speak TLS 1.3"},
		{"no certificate", func(c *tls.Config) { c.Certificates = nil }, "this side's certificate (CERT) is missing"},
		{"expired", func(c *tls.Config) { c.Certificates = []tls.Certificate{old} }, "this side's certificate (CERT) has expired, says the other side"},
	} {
		config := c.config()
		config.RootCAs, config.ServerName = c.roots, "server"
		test.change(config)
		conn, err := tls.Dial("tcp", s.address.hostPort(), config)
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
			conn.Close()
		}
		if err = explainTLS(err, Files{Cert: "CERT"}); err == nil || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

// A client meets servers of another make.
func TestForeignServers(t *testing.T) {
	ca := newAuthority(t, "our CA")
	files, _ := ca.issue("server")
	stale, _ := ca.issue("server", expired)
	for _, test := range map[string]struct {
		files  Files
		change func(*tls.Config)
		want   string
	}{
		"TLS 1.2": {files, func(c *tls.Config) { c.MinVersion, c.MaxVersion = 0, tls.VersionTLS12 }, "the other side does not speak TLS 1.3"},
		"expired": {stale, func(*tls.Config) {}, "the other side's certificate (server, 127.0.0.1) expired on 2"},
		"no TLS":  {files, nil, "the other side does not speak TLS"},
	} {
		pair, err := tls.LoadX509KeyPair(test.files.Cert, test.files.Key)
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			if test.change == nil {
				io.WriteString(conn, "220 mail.example ESMTP\r\n") //nolint:errcheck // the client notices
				io.Copy(io.Discard, io.LimitReader(conn, 1<<10))   //nolint:errcheck // until the client goes
				return
			}
			config := &tls.Config{Certificates: []tls.Certificate{pair}} //nolint:gosec // that is the point
			test.change(config)
			tls.Server(conn, config).Handshake() //nolint:errcheck // the client notices
		}()
		refuse(t, Address{Scheme: TLS, Host: "127.0.0.1", Port: uint16(l.Addr().(*net.TCPAddr).Port)}, files, test.want)
	}
	refuse(t, Address{Scheme: TLS, Host: "127.0.0.1", Port: 1}, files, "connection refused")
}

// Who does not finish a handshake is sent away, and is told apart from who does not begin one.
func TestSlowHandshake(t *testing.T) {
	ca := newAuthority(t, "our CA")
	files, _ := ca.issue("server")
	s := start(t, ServerOptions{TLS: files, Allow: []string{"*"}, Limits: Limits{Handshake: 50 * time.Millisecond, PerPeer: 2}})
	for _, begin := range []string{"", "\x16\x03\x01"} {
		conn, err := net.Dial("tcp", s.address.hostPort())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, begin) //nolint:errcheck // then it is closed already
		if _, err := io.ReadAll(conn); err != nil {
			t.Error(err)
		}
	}
	s.log.await(t, "took longer than 50ms")
}

// gate is a handler that says hello and waits.
type gate struct {
	entered chan *Peer
	leave   chan struct{}
}

func newGate() *gate { return &gate{entered: make(chan *Peer, 100), leave: make(chan struct{})} }

func (g *gate) handle(_ context.Context, conn io.ReadWriteCloser, peer *Peer) error {
	g.entered <- peer
	io.WriteString(conn, hello) //nolint:errcheck // the other side notices
	<-g.leave
	return nil
}

// One name, one address, all together: none takes more than its part.
func TestLimits(t *testing.T) {
	ca := newAuthority(t, "our CA")
	files, _ := ca.issue("server")
	one, _ := ca.issue("one")
	two, _ := ca.issue("two")
	g := newGate()
	s := start(t, ServerOptions{
		TLS: files, Allow: []string{"*"}, Handler: g.handle,
		Limits: Limits{Migrations: 1, PerPeer: 2, Connections: 4},
	})
	defer close(g.leave)
	enter := func(f Files) *Peer {
		conn, err := Dial(t.Context(), s.address, Options{TLS: f})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return <-g.entered
	}
	first := enter(one)
	second := enter(one)
	if first.Name != "one" || len(first.Names) != 2 {
		t.Errorf("%+v", first)
	}
	err := refuse(t, s.address, one, "one has 2 connections, which is the limit")
	if refused, ok := errors.AsType[*RefusedError](err); !ok || refused.Reason != Busy || !refused.Temporary() {
		t.Error(err)
	}
	third := enter(two)
	enter(two)
	if conn, err := Dial(t.Context(), s.address, Options{TLS: two}); err == nil {
		conn.Close()
		t.Error("a fifth of four connections")
	}

	if err := errors.Join(first.Admit(), first.Admit()); err != nil {
		t.Error(err)
	}
	for _, peer := range []*Peer{second, third} {
		if refused, ok := errors.AsType[*checkpoint.RefusedError](peer.Admit()); !ok || refused.Problems[0].Reason != "1 migration is running, which is the limit" {
			t.Errorf("a second migration of one: %v", refused)
		}
	}
}

// Handshakes of one address are bounded: a host that begins many and ends none takes not all the places.
func TestManyHandshakes(t *testing.T) {
	ca := newAuthority(t, "our CA")
	files, _ := ca.issue("server")
	s := start(t, ServerOptions{TLS: files, Allow: []string{"*"}, Limits: Limits{Handshake: time.Minute, PerPeer: 3}})
	var idle []net.Conn
	for range 3 {
		conn, err := net.Dial("tcp", s.address.hostPort())
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, conn)
	}
	for { // one of the connections is the fourth, which is closed at once
		conn, err := net.Dial("tcp", s.address.hostPort())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.ReadAll(conn); err == nil {
			break
		}
	}
	for _, conn := range idle {
		conn.Close()
	}
	s.log.await(t, "3 handshakes of one address")
}

// The place of a migration is free again when its handler has returned.
func TestPlaces(t *testing.T) {
	ca := newAuthority(t, "our CA")
	files, _ := ca.issue("server")
	client, _ := ca.issue("client")
	s := start(t, ServerOptions{TLS: files, Allow: []string{"client"}, Limits: Limits{Migrations: 1}, Handler: func(_ context.Context, conn io.ReadWriteCloser, p *Peer) error {
		if err := p.Admit(); err != nil {
			return err
		}
		return echo(context.Background(), conn, p)
	}})
	for i := 0; i < 5; {
		conn, err := Dial(t.Context(), s.address, Options{TLS: client})
		if errors.Is(err, errSilent) { // the one before is not through the door
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		talk(t, conn)
		conn.Close()
		i++
	}
}

// A connection brings no more than it may, and not faster than it may.
func TestSizeAndBandwidth(t *testing.T) {
	ca := newAuthority(t, "our CA")
	files, _ := ca.issue("server")
	client, _ := ca.issue("client")
	failed := make(chan error, 1)
	s := start(t, ServerOptions{
		TLS: files, Allow: []string{"client"}, Limits: Limits{Size: 1000, Bandwidth: 1 << 20},
		Handler: func(_ context.Context, conn io.ReadWriteCloser, p *Peer) error {
			io.WriteString(conn, hello) //nolint:errcheck // the other side notices
			n, err := io.Copy(io.Discard, conn)
			failed <- fmt.Errorf("after %d bytes: %w", n, err)
			return err
		},
	})
	conn, err := Dial(t.Context(), s.address, Options{TLS: client})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.Write(make([]byte, 1001)) //nolint:errcheck // the server decides
	if limit, ok := errors.AsType[*LimitError](<-failed); !ok || limit.Size != 1000 {
		t.Error("no limit")
	}
}

// New certificates and lists are read while the server runs; what is wrong changes nothing.
func TestReload(t *testing.T) {
	ca := newAuthority(t, "our CA")
	files, _ := ca.issue("server")
	one, _ := ca.issue("one.nodes.example")
	two, twoSerial := ca.issue("two")
	list := filepath.Join(t.TempDir(), "names")
	write := func(text string) {
		if err := os.WriteFile(list, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("# nodes\n*.nodes.example # all of them\n")
	files.CRL = ca.revoke(time.Now().Add(time.Hour))
	s := start(t, ServerOptions{TLS: files, AllowFile: list})
	accept := func(f Files) {
		t.Helper()
		conn, err := Dial(t.Context(), s.address, Options{TLS: f})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		talk(t, conn)
	}
	accept(one)
	refuse(t, s.address, two, "may come")

	write("two")
	if err := s.Reload(); err != nil {
		t.Fatal(err)
	}
	accept(two)
	refuse(t, s.address, one, "may come")

	write("# nobody")
	if err := s.Reload(); err == nil {
		t.Error("an empty list")
	}
	accept(two)

	write("*")
	newer := ca.revoke(time.Now().Add(time.Hour), twoSerial)
	if err := os.Rename(newer, files.CRL); err != nil {
		t.Fatal(err)
	}
	if err := s.Reload(); err != nil {
		t.Fatal(err)
	}
	accept(one)
	refuse(t, s.address, two, "was revoked on 2")

	if err := os.WriteFile(files.Cert, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Reload(); err == nil {
		t.Error("nonsense for a certificate")
	}
	accept(one)
}

// A server that stops lets finish what is running, for as long as its patience lasts.
func TestStop(t *testing.T) {
	ca := newAuthority(t, "our CA")
	files, _ := ca.issue("server")
	client, _ := ca.issue("client")
	g := newGate()
	s := start(t, ServerOptions{TLS: files, Allow: []string{"client"}, Handler: g.handle})
	conn, err := Dial(t.Context(), s.address, Options{TLS: client})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	<-g.entered
	s.stop()
	for { // until the listener is closed
		late, err := net.Dial("tcp", s.address.hostPort())
		if err != nil {
			break
		}
		late.Close()
	}
	select {
	case err := <-s.done:
		t.Fatal("the server did not wait:", err)
	default:
	}
	close(g.leave)
	if err := <-s.done; err != nil {
		t.Error(err)
	}
	s.done <- nil

	impatient := start(t, ServerOptions{
		TLS: files, Allow: []string{"client"}, Limits: Limits{Grace: time.Millisecond},
		Handler: func(ctx context.Context, conn io.ReadWriteCloser, _ *Peer) error {
			io.WriteString(conn, hello) //nolint:errcheck // the other side notices
			<-ctx.Done()
			return context.Cause(ctx)
		},
	})
	conn, err = Dial(t.Context(), impatient.address, Options{TLS: client})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	impatient.stop()
	if err := <-impatient.done; err != nil {
		t.Error(err)
	}
	impatient.done <- nil
	impatient.log.await(t, "patience is over")
}

// A server needs its certificates, a CA of its own and names, and says what is wrong with them.
func TestNewServer(t *testing.T) {
	ca, other := newAuthority(t, "our CA"), newAuthority(t, "other")
	files, _ := ca.issue("server")
	foreign, _ := other.issue("server")
	change := func(f func(*Files)) Files {
		changed := files
		f(&changed)
		return changed
	}
	for want, o := range map[string]ServerOptions{
		"the CA that clients' certificates come from is missing": {TLS: change(func(f *Files) { f.CA = "" }), Allow: []string{"*"}},
		"a certificate of our own and its key are needed":        {TLS: change(func(f *Files) { f.Key = "" }), Allow: []string{"*"}},
		"private key does not match public key":                  {TLS: change(func(f *Files) { f.Key = foreign.Key }), Allow: []string{"*"}},
		"the list of names is empty":                             {TLS: files},
		"there is none in " + files.Key:                          {TLS: change(func(f *Files) { f.CA = f.Key }), Allow: []string{"*"}},
		"revoked certificates: " + files.Key:                     {TLS: change(func(f *Files) { f.CRL = f.Key }), Allow: []string{"*"}},
		"no such file":                                           {TLS: files, AllowFile: filepath.Join(t.TempDir(), "none")},
	} {
		if _, err := NewServer(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	s, err := NewServer(ServerOptions{Handler: echo})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := s.Serve(t.Context(), l); err == nil {
		t.Error("TCP without TLS")
	}
}

// Secrets stay out of the log and of errors.
func TestNoSecrets(t *testing.T) {
	ca := newAuthority(t, "our CA")
	files, _ := ca.issue("server")
	client, _ := ca.issue("client")
	s := start(t, ServerOptions{TLS: files, Allow: []string{"client"}})
	conn, err := Dial(t.Context(), s.address, Options{TLS: client})
	if err != nil {
		t.Fatal(err)
	}
	talk(t, conn)
	conn.Close()
	for _, want := range []string{"msg=connected", "name=client", "msg=done"} {
		s.log.await(t, want)
	}
	key, err := os.ReadFile(files.Key)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(key)) {
		if strings.Contains(s.log.String(), strings.TrimSpace(line)) {
			t.Error("the key is in the log")
		}
	}
	if strings.Contains(s.log.String(), "and more") {
		t.Error("what was carried is in the log")
	}
}

func TestUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	a := Address{Scheme: Unix, Path: path}
	refuse(t, a, Files{}, "no such file")
	listeners, err := Listen(t.Context(), []string{"unix:" + path})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), []string{"unix:" + path}); err == nil {
		t.Error("a socket twice")
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	s := startOn(t, ServerOptions{}, listeners[0])
	conn, err := Dial(t.Context(), a, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	talk(t, conn)
	s.log.await(t, fmt.Sprintf(`name="uid %d"`, os.Geteuid()))
}

// A socket that a server left behind when it died does not stand in the way of the next.
func TestAbandonedSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	refuse(t, Address{Scheme: Unix, Path: path}, Files{}, "connection refused")
	listeners, err := Listen(t.Context(), []string{"unix:" + path})
	if err != nil {
		t.Fatal(err)
	}
	listeners[0].Close()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), []string{"unix:" + path}); err == nil {
		t.Error("a file was taken for a socket")
	}
}

func TestMatches(t *testing.T) {
	for _, test := range []struct {
		allowed, name string
		want          bool
	}{
		{"node", "node", true},
		{"Node.Example", "node.example", true},
		{"node", "node.example", false},
		{"*", "anything", true},
		{"*", "spiffe://example.org/node", true},
		{"*.example", "node.example", true},
		{"*.example", "a.b.example", false},
		{"*.example", "example", false},
		{"*.example", ".example", false},
		{"spiffe://example.org/node", "spiffe://example.org/node", true},
		{"spiffe://example.org/node", "spiffe://example.org/Node", false},
		{"*.org/node", "spiffe://example.org/node", false},
	} {
		if got := matches(test.allowed, test.name); got != test.want {
			t.Errorf("%s, %s: %v", test.allowed, test.name, got)
		}
	}
}

// What a server says first is bounded, and can't play with a terminal.
func TestRefusals(t *testing.T) {
	long := (&RefusedError{Reason: Busy, Text: "\x1b[2J" + strings.Repeat("x", 5000)}).marshal()
	path := filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, test := range []struct{ said, want string }{
		{string(long), "the other side refused:  [2Jxxx"},
		{string(long[:20]), "read the other side's refusal"},
		{string(long[:9]), "read the other side's refusal"},
		{"", "closed the connection before it said anything"},
		{"nsmd", ""},
		{"nsmwire\n", ""},
		{"x", ""},
	} {
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, test.said) //nolint:errcheck // the client notices
			conn.Close()
		}()
		conn, err := Dial(t.Context(), Address{Scheme: Unix, Path: path}, Options{})
		if test.want != "" {
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%.20q: %v", test.said, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%.20q: %v", test.said, err)
			continue
		}
		if got, err := io.ReadAll(conn); err != nil || string(got) != test.said {
			t.Errorf("%q instead of %q, %v", got, test.said, err)
		}
		conn.Close()
	}
}

// A server that says nothing does not hold Dial up for longer than its context.
func TestDialSilence(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		conn, err := l.Accept()
		cancel(cause)
		if err == nil {
			io.Copy(io.Discard, conn) //nolint:errcheck // until the client goes
		}
	}()
	if _, err := Dial(ctx, Address{Scheme: Unix, Path: path}, Options{}); !errors.Is(err, cause) {
		t.Error(err)
	}
}
