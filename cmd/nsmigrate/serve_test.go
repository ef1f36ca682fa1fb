package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/transfer/transport"
)

func TestParseRemote(t *testing.T) {
	ssh := transport.SSHOptions{RemotePath: "nsmigrate", Interactive: hasTerminal()}
	pushed := ssh
	pushed.PushBinary = true
	pushed.Args = []string{"-o", "ProxyJump=gate", "-o", "Port=22"}
	for args, want := range map[string]remote{
		"--to ssh://root@new:2222": {transport.Address{Scheme: transport.SSH, User: "root", Host: "new", Port: 2222}, transport.Options{SSH: ssh}},
		"--to ssh://new --push-binary --ssh-option ProxyJump=gate --ssh-option Port=22": {
			transport.Address{Scheme: transport.SSH, Host: "new"}, transport.Options{SSH: pushed},
		},
		"--to tls://new --tls-ca /ca --tls-cert /cert --tls-key /key --tls-crl /crl": {
			transport.Address{Scheme: transport.TLS, Host: "new", Port: transport.DefaultPort},
			transport.Options{SSH: ssh, TLS: transport.Files{CA: "/ca", Cert: "/cert", Key: "/key", CRL: "/crl"}},
		},
		"--to unix:/run/socket": {transport.Address{Scheme: transport.Unix, Path: "/run/socket"}, transport.Options{SSH: ssh}},
	} {
		got, err := parsed(t, remoteFlags(), parseRemote, args)
		if err != nil || !reflect.DeepEqual(*got, want) {
			t.Errorf("%s: %+v, %v; want %+v", args, got, err, want)
		}
	}
	for args, want := range map[string]string{
		"":                                    "where to is missing",
		"--to new":                            "is no address",
		"--to ssh://new --tls-ca ca":          "--tls-ca is for tls:// addresses",
		"--to tls://new --push-binary":        "--push-binary is for ssh:// addresses",
		"--to unix:/a --remote-path x":        "--remote-path is for ssh:// addresses",
		"--to ssh://new --remote-path=":       "--remote-path is empty",
		"--to ssh://new --ssh-option=-oX":     "is no option",
		"--to tls://new --tls-ca ca":          "a certificate of this host is missing",
		"--to tls://new --tls-cert= --tls-ca": "flag needs an argument",
	} {
		if got, err := parsed(t, remoteFlags(), parseRemote, args); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, %v; want %q", args, got, err, want)
		}
	}
	// Whoever recovers may do it from elsewhere.
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	got, err := parsed(t, remoteFlags(), parseRemote, "--to tls://new --tls-cert my.pem --tls-key my.key")
	if err != nil || got.opts.TLS.Cert != filepath.Join(dir, "my.pem") {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{
		"": 0, "1": 1, "1500": 1500, "1k": 1000, "1K": 1000, "100M": 100e6, "2.5G": 2.5e9, "3t": 3e12,
		"0": -1, "-1": -1, "k": -1, "1kk": -1, "1 M": -1, "1e3": -1, "0x10": -1, "inf": -1, "NaN": -1, "1_0": -1,
		"0.1": -1, "99999999999T": -1, "1Mbit": -1,
	} {
		got, err := parseSize(text)
		if (err != nil) != (want < 0) || err == nil && got != want {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
}

func TestParseServe(t *testing.T) {
	got, err := parsed(t, serveFlags(), parseServe, "--listen a:1 --listen unix:/b --allow x --allow y --allow-file /z "+
		"--max-migrations 1 --max-connections 2 --max-per-peer 3 --max-size 1G --bandwidth 5M --handshake-timeout 1s --grace 2s "+
		"--tls-ca /ca --tls-cert /cert --tls-key /key --tls-crl /crl")
	want := serveRequest{
		listen: []string{"a:1", "unix:/b"},
		opts: transport.ServerOptions{
			TLS:   transport.Files{CA: "/ca", Cert: "/cert", Key: "/key", CRL: "/crl"},
			Allow: []string{"x", "y"}, AllowFile: "/z",
			Limits: transport.Limits{
				Migrations: 1, Connections: 2, PerPeer: 3, Size: 1e9, Bandwidth: 5e6, Handshake: time.Second, Grace: 2 * time.Second,
			},
		},
	}
	if err != nil || !reflect.DeepEqual(*got, want) {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if got, err := parsed(t, serveFlags(), parseServe, ""); err != nil || !reflect.DeepEqual(got.listen, []string{":8747"}) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, args := range []string{
		"--max-migrations 0", "--max-connections -1", "--max-per-peer 0", "--handshake-timeout 0s", "--grace -1s",
		"--max-size x", "--bandwidth 0", "--tls-ca=",
	} {
		if got, err := parsed(t, serveFlags(), parseServe, args); err == nil || statusOf(err) != statusUsage {
			t.Errorf("%s: %+v, %v", args, got, err)
		}
	}
}

// lines is what a daemon logs.
type lines struct {
	mu     sync.Mutex
	b      bytes.Buffer
	writes chan struct{}
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.writes <- struct{}{}:
	default:
	}
	return l.b.Write(p)
}

func (l *lines) await(t *testing.T, want string) {
	t.Helper()
	for {
		l.mu.Lock()
		got := l.b.String()
		l.mu.Unlock()
		if strings.Contains(got, want) {
			return
		}
		select {
		case <-l.writes:
		case <-time.After(time.Minute):
			t.Fatalf("the log does not say %q: %s", want, got)
		}
	}
}

// The daemon serves, reads its lists again at SIGHUP, and ends at SIGTERM when what is running has ended.
func TestServe(t *testing.T) {
	const hello = "nsmwire\n"
	log := &lines{writes: make(chan struct{}, 1)}
	u := newUI(strings.NewReader(""), io.Discard, log)
	ctx, s := catchSignals(context.Background(), u)
	defer s.stop()
	cmd := serveCommand(u, s, []cli.Flag{&cli.StringFlag{Name: "greet"}}, func(c *cli.Context) (transport.Handler, error) {
		text := c.String("greet")
		return func(_ context.Context, conn io.ReadWriteCloser, _ *transport.Peer) error {
			if _, err := io.WriteString(conn, text); err != nil {
				return err
			}
			_, err := io.Copy(conn, conn)
			return err
		}, nil
	})
	u.finish(cmd)
	app := &cli.App{Commands: []*cli.Command{cmd}, Writer: io.Discard, ErrWriter: io.Discard, ExitErrHandler: func(*cli.Context, error) {}}
	socket := filepath.Join(t.TempDir(), "socket")
	ended := make(chan error, 1)
	go func() {
		ended <- app.RunContext(ctx, []string{"nsmigrate", "serve", "--listen", "unix:" + socket, "--greet", hello})
	}()
	log.await(t, "msg=listening")

	conn, err := transport.Dial(t.Context(), transport.Address{Scheme: transport.Unix, Path: socket}, transport.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := unix.Kill(os.Getpid(), unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	log.await(t, "were read again")
	if err := unix.Kill(os.Getpid(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	log.await(t, "what is running may finish")
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); err != nil || string(got) != hello {
		t.Errorf("%q, %v", got, err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// What the unit file starts is understood.
func TestServeUnit(t *testing.T) {
	text, err := os.ReadFile("../../transfer/transport/systemd/nsmigrate.service")
	if err != nil {
		t.Fatal(err)
	}
	_, command, ok := strings.Cut(strings.ReplaceAll(string(text), "\\\n", " "), "\nExecStart=/usr/local/bin/nsmigrate serve ")
	if !ok {
		t.Fatal("ExecStart= does not run nsmigrate serve")
	}
	command, _, _ = strings.Cut(command, "\n")
	got, err := parsed(t, serveFlags(), parseServe, command)
	if err != nil {
		t.Fatal(err)
	}
	if got.opts.TLS.CA == "" || got.opts.TLS.Cert == "" || got.opts.TLS.Key == "" || got.opts.AllowFile == "" {
		t.Errorf("%+v", got)
	}
}
