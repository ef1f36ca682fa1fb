package transport

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"testing"
)

// counted counts the writes to a connection.
type counted struct {
	net.Conn
	writes int
}

func (c *counted) Write(p []byte) (int, error) {
	c.writes++
	return c.Conn.Write(p)
}

// A large write is many records, and few system calls. All of it arrives with the end of the write, however small.
func TestRecords(t *testing.T) {
	ca := newAuthority(t, "our CA")
	files, _ := ca.issue("server")
	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := net.Pipe() // has no buffer: what is not written does not arrive
	defer ours.Close()
	defer theirs.Close()
	below := &counted{Conn: ours}
	c := client(below, &tls.Config{InsecureSkipVerify: true})
	s := server(theirs, &tls.Config{Certificates: []tls.Certificate{pair}})
	shaken := make(chan error, 1)
	go func() { shaken <- s.Handshake() }()
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-shaken; err != nil {
		t.Fatal(err)
	}
	c.gather()
	s.gather()
	below.writes = 0
	for _, size := range []int{1, 100, 16 << 10, 1 << 20, 3 << 20} {
		want := bytes.Repeat([]byte("page"), size/4+1)[:size]
		got := make(chan []byte, 1)
		go func() {
			b := make([]byte, size)
			n, _ := io.ReadFull(s, b) // what is missing is seen
			got <- b[:n]
		}()
		if n, err := c.Write(want); err != nil || n != size {
			t.Fatalf("%d bytes of %d: %v", n, size, err)
		}
		if b := <-got; !bytes.Equal(b, want) {
			t.Fatalf("%d bytes of %d came, or others", len(b), size)
		}
	}
	if most := 3 + 5 + 13; below.writes > most {
		t.Errorf("%d writes, more than %d", below.writes, most)
	}
	ours.Close()
	if n, err := c.Write(make([]byte, 100)); err == nil || n != 0 {
		t.Errorf("a write to a closed connection: %d bytes, %v", n, err)
	}
}
