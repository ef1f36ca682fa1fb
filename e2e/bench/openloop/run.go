package openloop

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

// client is a process that does nothing but this. One thread waits for everything: what a scheduler of goroutines adds
// would be measured with the service.
type client struct {
	Options
	begin time.Time
	poll  int
	timer int
	fds   []int
	conns []*conn
	turn  int // the next connection to look at, of all but the first
	seen  Seen

	paused  bool
	waiting bool // for what Report was ordered
	known   int  // of how many connections, from the first on, nothing is waited for
	until   time.Duration
	answer  *json.Encoder
}

// Run connects, and carries out the orders on in until it ends.
func Run(o Options, in io.Reader, out io.Writer) error {
	if o.Size < minSize || o.Connections < 1 || o.Ports < 1 || o.Rate < 1 {
		return fmt.Errorf("openloop: %+v is no load", o)
	}
	runtime.LockOSThread()
	// Nor what a collector of garbage adds. There is little of it.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(2 << 30)
	c := &client{Options: o, begin: time.Now(), answer: json.NewEncoder(out)}
	if err := c.open(); err != nil {
		return fmt.Errorf("openloop: %w", err)
	}
	if err := c.answer.Encode(sum(c.conns)); err != nil {
		return err
	}
	orders := make(chan string)
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return err
	}
	go func() {
		defer close(orders)
		for lines := bufio.NewScanner(in); lines.Scan(); {
			unix.Write(wake, binary.NativeEndian.AppendUint64(nil, 1)) //nolint:errcheck // a full counter wakes too
			orders <- lines.Text()
		}
		unix.Write(wake, binary.NativeEndian.AppendUint64(nil, 1)) //nolint:errcheck // a full counter wakes too
	}()
	return c.loop(wake, orders)
}

func (c *client) now() time.Duration { return time.Since(c.begin) }

// Numbers of the descriptors that are not connections.
const (
	timerID = -1
	wakeID  = -2
)

func (c *client) open() (err error) {
	if c.poll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return err
	}
	if c.timer, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK); err != nil {
		return err
	}
	addr, err := netip.ParseAddr(c.Address)
	if err != nil {
		return err
	}
	for i := range c.Connections {
		fd, err := dial(netip.AddrPortFrom(addr, uint16(c.Port+i%c.Ports)))
		if err != nil {
			return fmt.Errorf("connection %d of %d: %w", i+1, c.Connections, err)
		}
		k := &conn{id: uint32(i), period: c.period()}
		if i == 0 {
			k.period = Tick
		}
		c.fds, c.conns = append(c.fds, fd), append(c.conns, k)
		if err := c.watch(fd, i); err != nil {
			return err
		}
	}
	for i, k := range c.conns { // evenly over the period
		k.next = c.now() + k.period*time.Duration(i)/time.Duration(len(c.conns))
	}
	tick := unix.NsecToTimespec(int64(Tick))
	if err := unix.TimerfdSettime(c.timer, 0, &unix.ItimerSpec{Interval: tick, Value: tick}, nil); err != nil {
		return err
	}
	return c.watch(c.timer, timerID)
}

func (c *client) watch(fd, id int) error {
	return unix.EpollCtl(c.poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(id)})
}

func dial(to netip.AddrPort) (int, error) {
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	if to.Addr().Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return 0, err
	}
	if err := unix.Connect(fd, sa); err != nil {
		return 0, err
	}
	return fd, unix.SetNonblock(fd, true)
}

func (c *client) loop(wake int, orders <-chan string) error {
	if err := c.watch(wake, wakeID); err != nil {
		return err
	}
	events := make([]unix.EpollEvent, 256)
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.EpollWait(c.poll, events, -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		for _, e := range events[:n] {
			switch e.Fd {
			case timerID:
				c.tick(buf)
			case wakeID:
				unix.Read(wake, buf[:8]) //nolint:errcheck // it was readable
				order, ok := <-orders
				if !ok {
					return nil
				}
				if err := c.obey(order); err != nil {
					return err
				}
			default:
				c.read(int(e.Fd), buf)
			}
		}
		if err := c.report(); err != nil {
			return err
		}
	}
}

// tick sends what is due.
func (c *client) tick(buf []byte) {
	if _, err := unix.Read(c.timer, buf[:8]); err != nil {
		return
	}
	if ticks := binary.NativeEndian.Uint64(buf); ticks > 1 {
		c.seen.LateMS = max(c.seen.LateMS, milliseconds(time.Duration(ticks-1)*Tick))
	}
	if c.paused {
		return
	}
	now := c.now()
	c.send(0, now)
	// They are due in turn, so that the first that isn't ends the search.
	for range len(c.conns) - 1 {
		i := 1 + c.turn%(len(c.conns)-1)
		if c.conns[i].state == alive && c.conns[i].next > now {
			break
		}
		c.send(i, now)
		c.turn++
	}
}

func (c *client) send(i int, now time.Duration) {
	k := c.conns[i]
	if k.state != alive || k.next > now {
		return
	}
	due := k.next
	if k.next += k.period; k.next <= now { // this process did not run meanwhile: that is not the service's fault
		due, k.next = now, now+k.period
	}
	message := k.rest // of one that the queue had no room for as a whole
	if len(message) == 0 {
		message = k.message(k.sent, c.Size)
	}
	n, err := unix.Write(c.fds[i], message)
	switch {
	case errors.Is(err, unix.EAGAIN): // the window and the queue are full: it waits already
		return
	case err != nil:
		c.dead(i, err)
		return
	}
	if len(k.rest) == 0 {
		k.sending(due)
	}
	k.rest = message[n:]
}

func (c *client) read(i int, buf []byte) {
	k := c.conns[i]
	n, err := unix.Read(c.fds[i], buf)
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
	case err != nil:
		c.dead(i, err)
	case n == 0:
		c.dead(i, io.EOF)
	default:
		answers, err := k.received(buf[:n], c.Size, c.now())
		c.seen.Answers += int64(answers)
		if err != nil {
			c.dead(i, err)
			k.state = wrong
		}
	}
}

func (c *client) dead(i int, err error) {
	k := c.conns[i]
	if k.state != alive {
		return
	}
	k.state = ended
	if errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
		k.state = wasReset
	}
	if c.seen.Error == "" {
		c.seen.Error = err.Error()
	}
	unix.Close(c.fds[i])
}

// obey carries out an order, and answers unless that takes a while.
func (c *client) obey(order string) error {
	now := c.now()
	switch order {
	case Reset:
		c.seen = Seen{}
		for _, k := range c.conns {
			k.reset(now)
		}
	case Report:
		for _, k := range c.conns {
			k.wanted = k.sent + 1
		}
		c.waiting, c.known, c.until = true, 0, now+c.Limit
		return nil
	case Pause, Resume:
		c.paused = order == Pause
		for _, k := range c.conns { // a pause is no gap
			k.next = now + k.period*time.Duration(k.id)/time.Duration(len(c.conns))
			k.reset(now)
		}
		c.turn = 0
	default:
		return fmt.Errorf("openloop: order %q is not understood", order)
	}
	return c.answer.Encode(sum(c.conns))
}

// localAddress tells a connection from others, for ss(8) and the like.
func localAddress(fd int) string {
	switch sa, _ := unix.Getsockname(fd); a := sa.(type) { // of a socket that lives
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)).String()
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port)).String()
	}
	return "an unknown address"
}

// report answers the order of that name once everything is known, or the time is up.
func (c *client) report() error {
	if !c.waiting {
		return nil
	}
	if c.now() < c.until {
		for ; c.known < len(c.conns); c.known++ {
			if k := c.conns[c.known]; k.state == alive && k.got < k.wanted {
				return nil
			}
		}
	}
	c.waiting = false
	s := sum(c.conns)
	s.LateMS, s.Answers, s.Error = c.seen.LateMS, c.seen.Answers, c.seen.Error
	if c.Each {
		for _, k := range c.conns {
			s.Each = append(s.Each, SeenOne{GapMS: milliseconds(k.gap), End: c.begin.Add(k.gapEnd)})
		}
	}
	for i, k := range c.conns {
		if s.Error == "" && k.state == alive && k.got < k.wanted {
			s.Error = fmt.Sprintf("connection %d from %s: %d messages were not answered for %v", i, localAddress(c.fds[i]), k.sent-k.got, c.Limit)
		}
	}
	return c.answer.Encode(s)
}
