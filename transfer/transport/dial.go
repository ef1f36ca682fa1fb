package transport

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"
)

// Options of Dial. Each transport uses its own. As JSON they hold no secrets, only where these are.
type Options struct {
	SSH SSHOptions `json:"ssh,omitzero"`
	TLS Files      `json:"tls,omitzero"`
	// Stderr is told what ssh or the command prints there, as it comes. nil: only errors tell it.
	Stderr io.Writer `json:"-"`
}

// Dial reaches the other side. When it returns, whoever is there has begun to speak. ctx bounds Dial alone, not the
// connection. Errors have a Remedy where one is known: *AddressError, *ProcessError, *CertificateError,
// *RefusedError, *ArchitectureError and others.
func Dial(ctx context.Context, a Address, o Options) (io.ReadWriteCloser, error) {
	conn, err := dial(ctx, a, o)
	if err == nil {
		conn, err = await(ctx, conn)
	}
	if err != nil && ctx.Err() != nil { // of which the error is a consequence
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", a, explainTLS(err, o.TLS))
	}
	return conn, nil
}

func dial(ctx context.Context, a Address, o Options) (io.ReadWriteCloser, error) {
	switch a.Scheme {
	case SSH:
		return dialSSH(ctx, a, o)
	case TLS:
		return dialTLS(ctx, a, o.TLS)
	case Exec:
		return startProcess(ctx, shell(a.Command), processOptions{stderr: o.Stderr, explain: explainExec})
	case Unix:
		return dialUnix(ctx, a.Path)
	}
	return nil, &AddressError{Text: a.String(), Err: errors.New("it is empty")}
}

func dialUnix(ctx context.Context, path string) (io.ReadWriteCloser, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return nil, &hintedError{err: err, hint: "see whether `nsmigrate serve` runs there and listens on that socket"}
	case err != nil:
		return nil, err
	}
	if _, err := checkPeer(conn.(*net.UnixConn)); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// PeerError says that a unix socket's other end belongs to somebody who has no business here.
type PeerError struct{ UID uint32 }

func (e *PeerError) Error() string {
	return fmt.Sprintf("the other end of the socket is a process of user id %d, neither root nor ours", e.UID)
}

// checkPeer returns the user at the other end, if it is root or ourselves.
func checkPeer(conn *net.UnixConn) (uint32, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, credErr); err != nil {
		return 0, fmt.Errorf("who is at the other end: %w", err)
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return cred.Uid, &PeerError{UID: cred.Uid}
	}
	return cred.Uid, nil
}

const (
	denyMagic = "nsmdeny\n"
	denySize  = len(denyMagic) + 3
	denyText  = 1 << 10
)

// Refusal is why a server sends a client away.
type Refusal byte

// The reasons.
const (
	NotAllowed Refusal = 1 + iota // the client's name is not on the list
	Busy                          // a limit is reached; later it may not be
	GoingAway                     // the server is shutting down
	Revoked                       // the client's certificate was revoked, or the server can't tell
)

// RefusedError says that the other side does not want us.
type RefusedError struct {
	Reason Refusal
	Text   string
}

func (e *RefusedError) Error() string { return "the other side refused: " + e.Text }

// Temporary says whether it may be otherwise later.
func (e *RefusedError) Temporary() bool { return e.Reason != NotAllowed && e.Reason != Revoked }

// Remedy says what the user can do.
func (e *RefusedError) Remedy() string {
	switch e.Reason {
	case NotAllowed:
		return "put this host's name on the list of `nsmigrate serve` over there (--allow, --allow-file), and let it reload (SIGHUP)"
	case Revoked:
		return "get another certificate from the CA, or see to the list of revoked ones over there (--tls-crl)"
	case Busy:
		return "try again later, or raise the limits of `nsmigrate serve` over there"
	}
	return "try again when it is back"
}

func (e *RefusedError) marshal() []byte {
	text := e.Text[:min(len(e.Text), denyText)]
	b := append([]byte(denyMagic), byte(e.Reason))
	b = binary.BigEndian.AppendUint16(b, uint16(len(text)))
	return append(b, text...)
}

// await waits until the other side speaks, and for its refusal if that is what it says.
func await(ctx context.Context, conn io.ReadWriteCloser) (io.ReadWriteCloser, error) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	r := bufio.NewReaderSize(conn, denySize)
	err := readRefusal(r)
	if !stop() {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &begun{ReadWriteCloser: conn, head: r}, nil
}

// readRefusal looks at what comes first. All that isn't a refusal is left to be read.
func readRefusal(r *bufio.Reader) error {
	for n := 1; n <= len(denyMagic); n++ {
		head, err := r.Peek(n)
		switch {
		case len(head) == n && head[n-1] != denyMagic[n-1]:
			return nil
		case errors.Is(err, io.EOF) && n == 1:
			return errSilent
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
	b := make([]byte, denySize)
	if _, err := io.ReadFull(r, b); err != nil {
		return fmt.Errorf("read the other side's refusal: %w", err)
	}
	text := make([]byte, min(binary.BigEndian.Uint16(b[denySize-2:]), denyText))
	if _, err := io.ReadFull(r, text); err != nil {
		return fmt.Errorf("read the other side's refusal: %w", err)
	}
	return &RefusedError{Reason: Refusal(b[denySize-3]), Text: printable(string(text))}
}

var errSilent error = &hintedError{
	err:  errors.New("the other side closed the connection before it said anything"),
	hint: "see whether it is nsmigrate that is reached there, and what its log says",
}

// printable keeps another host from playing with our terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
}

// begun is a connection of which the first bytes were read ahead.
type begun struct {
	io.ReadWriteCloser
	head *bufio.Reader
}

func (b *begun) Read(p []byte) (int, error) {
	if b.head == nil {
		return b.ReadWriteCloser.Read(p)
	}
	n, err := b.head.Read(p[:min(len(p), max(b.head.Buffered(), 1))])
	if b.head.Buffered() == 0 {
		b.head = nil
	}
	return n, err
}

// CloseWrite ends our direction alone.
func (b *begun) CloseWrite() error {
	if half, ok := b.ReadWriteCloser.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// hintedError adds to an error what the user can do about it.
type hintedError struct {
	err  error
	hint string
}

func (e *hintedError) Error() string { return e.err.Error() }

func (e *hintedError) Unwrap() error { return e.err }

// Remedy says what the user can do.
func (e *hintedError) Remedy() string { return e.hint }
