package transport

import (
	"bufio"
	"crypto/tls"
	"net"
	"sync"
)

// recordsSize is how many bytes of TLS records, which have 16 KiB at most, go to the kernel or come from it at once.
const recordsSize = 256 << 10

// records is a connection below TLS. crypto/tls has a system call for each record, and the kernel a packet: of memory that
// is on its way these cost as much as its encryption.
type records struct {
	net.Conn
	in *bufio.Reader // nil until the handshake is done

	mu      sync.Mutex
	out     []byte
	holding bool // more records follow at once
}

// client and server are those of crypto/tls.
func client(raw net.Conn, c *tls.Config) *tlsConn {
	r := &records{Conn: raw}
	return &tlsConn{Conn: tls.Client(r, c), below: r}
}

func server(raw net.Conn, c *tls.Config) *tlsConn {
	r := &records{Conn: raw}
	return &tlsConn{Conn: tls.Server(r, c), below: r}
}

// tlsConn is a TLS connection that passes on the records of a write together.
type tlsConn struct {
	*tls.Conn
	below *records
}

// gather begins to do so. It is for a connection whose handshake is done, and before anybody reads from it.
func (c *tlsConn) gather() {
	c.below.in = bufio.NewReaderSize(c.below.Conn, recordsSize)
}

// Write is that of a [net.Conn].
func (c *tlsConn) Write(p []byte) (int, error) {
	c.below.hold(true)
	n, err := c.Conn.Write(p)
	if rest := c.below.hold(false); err == nil {
		err = rest
	}
	if err != nil {
		return 0, err
	}
	return n, nil
}

// Read is for crypto/tls, as Write is.
func (r *records) Read(p []byte) (int, error) {
	if r.in == nil {
		return r.Conn.Read(p)
	}
	return r.in.Read(p)
}

func (r *records) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.out = append(r.out, p...)
	if r.holding && len(r.out) < recordsSize {
		return len(p), nil
	}
	if err := r.flush(); err != nil {
		return 0, err
	}
	return len(p), nil
}

// hold says whether more follows at once. If nothing does, what was gathered is written.
func (r *records) hold(more bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.holding = more; more {
		return nil
	}
	return r.flush()
}

func (r *records) flush() error {
	if len(r.out) == 0 {
		return nil
	}
	_, err := r.Conn.Write(r.out)
	r.out = r.out[:0]
	return err
}
