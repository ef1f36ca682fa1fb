package main

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/nsmigrate/nsmigrate/e2e/peer/control"
)

type loadFlags struct {
	connect    string
	local      string
	mode       string
	conns      int
	firstID    uint64
	size       int
	period     time.Duration
	readRate   uint64
	serverRate uint64
	path       string
}

// load is a number of connections to the service.
type load struct {
	flags loadFlags
	conns []*conn
	stop  chan struct{}
	wait  sync.WaitGroup

	mu    sync.Mutex
	moved sync.Cond // some connection made progress or died
}

// conn is one connection. The fields below mu belong to load.mu.
type conn struct {
	load  *load
	id    uint64
	net   net.Conn
	kick  chan struct{} // asks an idle connection for an exchange
	began time.Time     // of the wait that may become the longest gap

	exchanges, sent, received, lost uint64
	longest                         time.Duration
	keys                            int  // redis: read back at the end
	ended                           bool // in order
	err                             error
}

func startLoad(args []string) (control.Worker, error) {
	l := &load{stop: make(chan struct{})}
	l.moved.L = &l.mu
	f := &l.flags
	set := flag.NewFlagSet("load", flag.ContinueOnError)
	set.StringVar(&f.connect, "connect", "", "address of the service")
	set.StringVar(&f.local, "local", "", "own address")
	set.StringVar(&f.mode, "mode", "echo", "echo, bulk, half, half-server, udp, redis or fetch")
	set.IntVar(&f.conns, "conns", 1, "number of connections")
	set.Uint64Var(&f.firstID, "first-id", 1, "number of the first connection's streams")
	set.IntVar(&f.size, "size", 64, "bytes of a chunk")
	set.StringVar(&f.path, "path", "/", "fetch: of the file")
	set.DurationVar(&f.period, "period", 10*time.Millisecond, "between the chunks of a connection; 0: only on order")
	set.Uint64Var(&f.readRate, "read-rate", 0, "bulk, fetch: bytes a second to read until the end, so that queues fill")
	set.Uint64Var(&f.serverRate, "server-read-rate", 0, "bulk: bytes a second for the server to read")
	if err := set.Parse(args); err != nil {
		return nil, err
	}
	run := map[string]func(*conn) error{
		"echo": (*conn).echo, "bulk": (*conn).bulk, "half": (*conn).half, "half-server": (*conn).halfServer, "udp": (*conn).udp,
		"redis": (*conn).redis, "fetch": (*conn).fetch,
	}[f.mode]
	if run == nil {
		return nil, fmt.Errorf("unknown mode %q", f.mode)
	}
	for i := range f.conns {
		c, err := l.open(f.firstID + uint64(i))
		if err != nil {
			return nil, err
		}
		l.conns = append(l.conns, c)
	}
	for _, c := range l.conns {
		l.wait.Go(func() { c.finish(run(c)) })
	}
	l.Progress() // the server has accepted and answers
	return l, nil
}

func (l *load) open(id uint64) (*conn, error) {
	network := "tcp"
	if l.flags.mode == "udp" {
		network = "udp"
	}
	nc, err := dialNetwork(network, l.flags.connect, l.flags.local)
	if err != nil {
		return nil, err
	}
	return &conn{load: l, id: id, net: nc, kick: make(chan struct{}, 1)}, nil
}

// dial connects to a service. It may still be starting, and its network too.
func dial(addr, local string) (net.Conn, error) { return dialNetwork("tcp", addr, local) }

func dialNetwork(network, addr, local string) (net.Conn, error) {
	d := net.Dialer{Timeout: time.Minute}
	d.SetMultipathTCP(false)
	if local != "" && network == "tcp" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(local)}
	} else if local != "" {
		d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(local)}
	}
	for deadline := time.Now().Add(d.Timeout); ; time.Sleep(20 * time.Millisecond) {
		conn, err := d.Dial(network, addr)
		starting := errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.EADDRNOTAVAIL)
		if !starting || time.Now().After(deadline) {
			return conn, err
		}
	}
}

func (l *load) stopping() bool {
	select {
	case <-l.stop:
		return true
	default:
		return false
	}
}

// hello opens the conversation of a mode.
func (c *conn) hello(m mode) error {
	f := c.load.flags
	h := hello{mode: m, id: c.id, chunk: uint32(f.size), period: f.period, rate: f.serverRate}
	_, err := c.net.Write(h.bytes())
	return err
}

// begin starts the clock of a gap: from here on an answer is due.
func (c *conn) begin() { c.began = time.Now() }

// got counts received bytes that were right, and ends the gap.
func (c *conn) got(n int) {
	gap := time.Since(c.began)
	c.load.mu.Lock()
	defer c.load.mu.Unlock()
	c.exchanges++
	c.received += uint64(n)
	c.longest = max(c.longest, gap)
	c.load.moved.Broadcast()
}

func (c *conn) put(n int) {
	c.load.mu.Lock()
	defer c.load.mu.Unlock()
	c.sent += uint64(n)
}

func (c *conn) finish(err error) {
	c.load.mu.Lock()
	defer c.load.mu.Unlock()
	c.ended, c.err = err == nil, err
	c.net.Close()
	c.load.moved.Broadcast()
}

// mismatchError is a byte that is not what its stream says.
type mismatchError struct{ at uint64 }

func (e mismatchError) Error() string { return fmt.Sprintf("wrong byte at %d", e.at) }

// due waits until the next exchange is to be made. It is false when the load stops.
func (c *conn) due() bool {
	var period <-chan time.Time
	if p := c.load.flags.period; p > 0 {
		period = time.After(p)
	}
	select {
	case <-period:
		return true
	case <-c.kick:
		return true
	case <-c.load.stop:
		return false
	}
}

func (c *conn) echo() error {
	if err := c.hello(modeEcho); err != nil {
		return err
	}
	buf := make([]byte, c.load.flags.size)
	off := uint64(0)
	for ; c.due(); off += uint64(len(buf)) {
		toServer(c.id).Fill(buf, off)
		c.begin()
		if _, err := c.net.Write(buf); err != nil {
			return err
		}
		c.put(len(buf))
		if _, err := io.ReadFull(c.net, buf); err != nil {
			return err
		}
		if i := toClient(c.id).Check(buf, off); i >= 0 {
			return mismatchError{off + uint64(i)}
		}
		c.got(len(buf))
	}
	return c.end(off)
}

// end ends a connection whose answers have all arrived and compares the totals.
func (c *conn) end(off uint64) error {
	if err := c.net.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	rest, err := io.ReadAll(c.net)
	if err != nil {
		return err
	}
	if string(rest) != string(trailer(off, off)) {
		return fmt.Errorf("server's totals are not %d and %d: % x", off, off, rest)
	}
	return nil
}

func (c *conn) bulk() error {
	if err := c.hello(modeBulk); err != nil {
		return err
	}
	var sent uint64
	written := make(chan error, 1)
	go func() {
		var err error
		sent, err = c.stream()
		if err == nil {
			err = c.net.(*net.TCPConn).CloseWrite()
		}
		written <- err
	}()
	received, tail, err := c.receive(trailerLen)
	if err != nil {
		c.net.Close()
		<-written
		return err
	}
	if err := <-written; err != nil {
		return err
	}
	if !c.load.stopping() {
		return io.EOF
	}
	if string(tail) != string(trailer(sent, received)) {
		return fmt.Errorf("server's totals are not %d and %d: % x", sent, received, tail)
	}
	return nil
}

// stream writes numbered bytes until the load stops, one chunk a period.
func (c *conn) stream() (uint64, error) {
	buf := make([]byte, c.load.flags.size)
	for off := uint64(0); ; off += uint64(len(buf)) {
		if c.load.stopping() {
			return off, nil
		}
		toServer(c.id).Fill(buf, off)
		if _, err := c.net.Write(buf); err != nil {
			return off, err
		}
		c.put(len(buf))
		if c.load.flags.mode == "half-server" {
			c.due()
		}
	}
}

// receive reads and checks the server's stream to its end, of which the last bytes are returned unchecked.
func (c *conn) receive(tail int) (uint64, []byte, error) {
	p := pace{rate: c.load.flags.readRate}
	buf := make([]byte, 0, c.load.flags.size+tail)
	off := uint64(0)
	for {
		c.begin()
		n, err := c.net.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if sure := len(buf) - tail; sure > 0 {
			if i := toClient(c.id).Check(buf[:sure], off); i >= 0 {
				return off, nil, mismatchError{off + uint64(i)}
			}
			c.got(sure)
			off += uint64(sure)
			buf = buf[:copy(buf, buf[sure:])]
			if c.load.stopping() && p.rate > 0 && p.rate != lastRate { // what is left to read shall not take long
				p = pace{rate: lastRate}
			}
			p.wait(sure)
		}
		if errors.Is(err, io.EOF) {
			return off, buf, nil
		}
		if err != nil {
			return off, nil, err
		}
	}
}

// lastRate is the pace of a slow reader when the load stops, in bytes a second.
const lastRate = 100 << 20

// half ends its own direction at once and keeps receiving.
func (c *conn) half() error {
	if err := c.hello(modeHalf); err != nil {
		return err
	}
	if err := c.net.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	go func() {
		<-c.load.stop
		c.net.Close()
	}()
	_, _, err := c.receive(0)
	if c.load.stopping() {
		if wrong, ok := errors.AsType[mismatchError](err); ok {
			return wrong
		}
		return nil
	}
	return cmpErr(err, io.EOF)
}

func cmpErr(err, otherwise error) error {
	if err == nil {
		return otherwise
	}
	return err
}

// halfServer has no direction back: that its bytes arrive is asked for over further connections.
func (c *conn) halfServer() error {
	if err := c.hello(modeHalfServer); err != nil {
		return err
	}
	if _, err := io.ReadAll(c.net); err != nil { // the server's FIN
		return err
	}
	asked := make(chan error, 1)
	go func() { asked <- c.askReceived() }()
	sent, err := c.stream()
	if err == nil {
		err = <-asked
	}
	if err != nil {
		return err
	}
	if err := c.net.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		k, err := c.query()
		if err != nil {
			return err
		}
		if k.Received == sent && k.Problem == "" {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("server has %d of %d bytes: %s", k.Received, sent, k.Problem)
		}
	}
}

// askReceived counts what the server has received as progress until the load stops.
func (c *conn) askReceived() error {
	last := uint64(0)
	for c.begin(); !c.load.stopping(); time.Sleep(10 * time.Millisecond) {
		k, err := c.query()
		if err != nil {
			return err
		}
		if !k.Known || k.Problem != "" {
			return fmt.Errorf("server lost the connection: %s", k.Problem)
		}
		if k.Received > last {
			c.got(int(k.Received - last))
			last = k.Received
			c.begin()
		}
	}
	return nil
}

// query asks the server what it knows of the connection.
func (c *conn) query() (control.Knowledge, error) {
	return query(c.load.flags.connect, c.load.flags.local, c.id)
}

// udp sends numbered datagrams. One without an answer is lost, which is no error.
func (c *conn) udp() error {
	f := c.load.flags
	size := max(f.size, 16)
	answers := make(chan error, 1)
	c.begin()
	go func() { answers <- c.udpAnswers() }()
	buf := make([]byte, size)
	for n := uint64(0); c.due(); n++ {
		binary.BigEndian.PutUint64(buf, n)
		toServer(c.id).Fill(buf[8:], n*uint64(size))
		// A refusal is the ICMP answer to an earlier datagram.
		if _, err := c.net.Write(buf); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
			return err
		}
		c.put(size)
		c.load.mu.Lock()
		c.lost++
		c.load.mu.Unlock()
	}
	c.net.SetReadDeadline(time.Now())
	return <-answers
}

func (c *conn) udpAnswers() error {
	buf := make([]byte, 64<<10)
	for {
		n, err := c.net.Read(buf)
		if c.load.stopping() {
			return nil
		}
		if err != nil {
			return err
		}
		if n < 16 {
			return fmt.Errorf("datagram of %d bytes", n)
		}
		number := binary.BigEndian.Uint64(buf)
		if i := toServer(c.id).Check(buf[8:n], number*uint64(n)); i >= 0 {
			return mismatchError{uint64(i)}
		}
		c.load.mu.Lock()
		c.lost--
		c.load.mu.Unlock()
		c.got(n)
		c.begin()
	}
}

// Progress waits until every living connection has moved on twice: the first may have begun before.
func (l *load) Progress() {
	l.mu.Lock()
	defer l.mu.Unlock()
	want := make([]uint64, len(l.conns))
	for i, c := range l.conns {
		want[i] = c.exchanges + 2
	}
	for i, c := range l.conns {
		for c.err == nil && !c.ended && c.exchanges < want[i] {
			select {
			case c.kick <- struct{}{}:
			default:
			}
			l.moved.Wait()
		}
	}
}

// Stop ends all connections in order.
func (l *load) Stop() {
	close(l.stop)
	l.wait.Wait()
}

// Report tells what was seen so far.
func (l *load) Report() control.Report {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := control.Report{Connections: len(l.conns)}
	for _, c := range l.conns {
		r.Exchanges += c.exchanges
		r.Sent += c.sent
		r.Received += c.received
		r.Lost += c.lost
		r.Keys += c.keys
		r.LongestGap = max(r.LongestGap, float64(c.longest.Microseconds())/1000)
		if c.err == nil {
			r.Alive++
			continue
		}
		countError(&r, c.err)
	}
	return r
}

const maxErrors = 5

func countError(r *control.Report, err error) {
	var wrong mismatchError
	switch {
	case errors.As(err, &wrong):
		r.Mismatches++
	case errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE):
		r.Resets++
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		r.EOFs++
	}
	if len(r.Errors) < maxErrors {
		r.Errors = append(r.Errors, err.Error())
	}
}
