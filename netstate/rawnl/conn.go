package rawnl

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
)

// Conn is a netlink socket inside one network namespace. It serves one caller at a time.
type Conn struct {
	fd   int
	seq  uint32
	free []byte // memory to receive into; it lasts for several datagrams when they are large
	next int    // size of the next such memory
}

const (
	dumpMax = 1 << 15 // bytes of a dump's datagram, at most
	copyMax = 1 << 13 // bytes of a datagram that is copied where it is kept
	freeMin = 1 << 12 // bytes of memory to receive into
	freeMax = 1 << 20
	sendMax = 1 << 18 // bytes of messages in one sendmsg; the socket's buffer is larger
)

// Dial opens a socket of a netlink protocol (unix.NETLINK_ROUTE, NETLINK_NETFILTER, NETLINK_GENERIC ...)
// inside the namespace.
func Dial(n *ns.NS, protocol int) (*Conn, error) {
	c := &Conn{}
	err := n.Do(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
		if err != nil {
			return fmt.Errorf("open netlink socket: %w", err)
		}
		c.fd = fd
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := c.setup(); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Conn) setup() error {
	if err := unix.Bind(c.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("bind netlink socket: %w", err)
	}
	for _, opt := range []int{unix.NETLINK_EXT_ACK, unix.NETLINK_GET_STRICT_CHK} {
		if err := unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, opt, 1); err != nil {
			return fmt.Errorf("set netlink socket option %d: %w", opt, err)
		}
	}
	// NETLINK_CAP_ACK would shorten acknowledgements of large messages; acknowledgements of success never
	// carry the message, those of failure are read for the offset only.
	if err := unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1); err != nil {
		return fmt.Errorf("set netlink socket option: %w", err)
	}
	for _, opt := range []int{unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
		if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, opt, 8<<20); err != nil {
			return fmt.Errorf("size netlink socket buffer: %w", err)
		}
	}
	return c.widen()
}

// widen makes the datagrams of all dumps as large as the kernel ever makes them. It makes them as large as the largest
// buffer that something was received into so far, and most kinds of dumps end, without an error, at an object that does
// not fit into a datagram of its own.
func (c *Conn) widen() error {
	// Nothing is asked for, so there is an acknowledgement.
	if err := c.send(Message{Type: unix.NLMSG_NOOP, Flags: unix.NLM_F_ACK}.Append(nil, 0)); err != nil {
		return err
	}
	// It fits into the first of the buffers, which are one.
	buffers := slices.Repeat([][]byte{make([]byte, 1<<10)}, dumpMax>>10)
	for {
		_, _, _, _, err := unix.RecvmsgBuffers(c.fd, buffers, nil, 0)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("receive netlink message: %w", err)
		}
	}
}

// Close closes the socket.
func (c *Conn) Close() error { return unix.Close(c.fd) }

// Leave closes the socket a moment later. To close a netfilter socket takes some milliseconds if anybody just removed
// objects of nf_tables in its namespace: the kernel waits until they can be freed (nft_rcv_nl_event).
func (c *Conn) Leave() { time.AfterFunc(leaveAfter, func() { c.Close() }) }

// leaveAfter is longer than a grace period of RCU.
const leaveAfter = 100 * time.Millisecond

// Error is the kernel's refusal of a message.
type Error struct {
	Index   int // position of the message in the batch; -1 for a dump
	Errno   unix.Errno
	Message string // the kernel's extended acknowledgement, often empty
}

func (e *Error) Error() string {
	switch {
	case e.Message == "":
		return e.Errno.Error()
	case e.Errno > errnoMax:
		return e.Message
	}
	return fmt.Sprintf("%s (%s)", e.Message, e.Errno.Error())
}

// errnoMax is the kernel's MAX_ERRNO. Numbers beyond it are a subsystem's own, and have no name.
const errnoMax unix.Errno = 4095

// Unwrap makes errors.Is(err, unix.EEXIST) and the like work.
func (e *Error) Unwrap() error { return e.Errno }

// ErrInterrupted means that a dump was inconsistent every time because the namespace kept changing.
var ErrInterrupted = errors.New("namespace kept changing during the dump")

const dumpTries = 10

// Dump sends a request with NLM_F_DUMP and returns the messages of the answer. A dump that the kernel
// marks inconsistent (NLM_F_DUMP_INTR) is taken again; after several tries the error is [ErrInterrupted].
func (c *Conn) Dump(ctx context.Context, req Message) ([]Message, error) {
	for range dumpTries {
		msgs, interrupted, err := c.dumpOnce(ctx, req)
		if err != nil {
			return nil, err
		}
		if !interrupted {
			return msgs, nil
		}
	}
	return nil, ErrInterrupted
}

func (c *Conn) dumpOnce(ctx context.Context, req Message) (msgs []Message, interrupted bool, err error) {
	c.seq++
	req.Flags |= unix.NLM_F_REQUEST | unix.NLM_F_DUMP
	if err := c.send(req.Append(nil, c.seq)); err != nil {
		return nil, false, err
	}
	for {
		if err := ctx.Err(); err != nil {
			return nil, false, err
		}
		b, err := c.recv()
		if err != nil {
			return nil, false, err
		}
		if len(b) == 0 { // so a dump goes on for ever, where it knows that there is more
			return nil, false, tooLarge()
		}
		b = c.keep(b)
		for len(b) > 0 {
			var f frame
			if f, b, err = next(b); err != nil {
				return nil, false, err
			}
			if f.seq != c.seq {
				continue // the rest of an earlier, abandoned answer
			}
			interrupted = interrupted || f.Flags&unix.NLM_F_DUMP_INTR != 0
			switch f.Type {
			case unix.NLMSG_DONE:
				return msgs, interrupted, doneError(f)
			case unix.NLMSG_ERROR:
				if err := ackError(f, -1); err != nil {
					return nil, false, err
				}
				return msgs, interrupted, nil
			default:
				if len(msgs) == cap(msgs) {
					msgs = slices.Grow(msgs, len(msgs)+1) // append would grow a long list by little, and often
				}
				msgs = append(msgs, Message{Type: f.Type, Data: f.Data})
			}
		}
	}
}

// Request sends one message that is no dump and returns the answers that precede its acknowledgement.
func (c *Conn) Request(ctx context.Context, req Message) ([]Message, error) {
	c.seq++
	req.Flags |= unix.NLM_F_REQUEST | unix.NLM_F_ACK
	if err := c.send(req.Append(nil, c.seq)); err != nil {
		return nil, err
	}
	var msgs []Message
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		b, err := c.recv()
		if err != nil {
			return nil, err
		}
		b = c.keep(b)
		for len(b) > 0 {
			var f frame
			if f, b, err = next(b); err != nil {
				return nil, err
			}
			if f.seq != c.seq {
				continue
			}
			if f.Type == unix.NLMSG_ERROR {
				return msgs, ackError(f, 0)
			}
			msgs = append(msgs, Message{Type: f.Type, Data: f.Data})
		}
	}
}

// Apply sends the messages in order, many to a system call, and waits for all acknowledgements. The first
// refusal is returned as an [*Error] with the message's index; messages after it may have been carried
// out (the kernel handles a whole sendmsg before it can be told to stop).
func (c *Conn) Apply(ctx context.Context, msgs []Message) error {
	var first *Error
	err := c.ApplyEach(ctx, msgs, func(e *Error) {
		if first == nil {
			first = e
		}
	})
	if err == nil && first != nil {
		return first
	}
	return err
}

// ApplyEach is [Conn.Apply] for messages that do not depend on each other: it sends all of them and calls
// refused for each that the kernel refuses, in order. Its error is one of the conversation.
func (c *Conn) ApplyEach(ctx context.Context, msgs []Message, refused func(*Error)) error {
	var out []byte
	for start := 0; start < len(msgs); {
		if err := ctx.Err(); err != nil {
			return err
		}
		out = out[:0]
		base, end, last := c.seq+1, start, 0
		for ; end < len(msgs) && (len(out) == 0 || len(out)+HeaderLen+len(msgs[end].Data) < sendMax); end++ {
			m := msgs[end]
			m.Flags |= unix.NLM_F_REQUEST
			m.Flags &^= unix.NLM_F_ACK // refusals are reported anyway; only the end needs a sign
			c.seq++
			last = len(out)
			out = m.Append(out, c.seq)
		}
		binary.NativeEndian.PutUint16(out[last+6:], binary.NativeEndian.Uint16(out[last+6:])|unix.NLM_F_ACK)
		if err := c.send(out); err != nil {
			return err
		}
		if err := c.awaitAcks(base, end-start, start, refused); err != nil {
			return err
		}
		start = end
	}
	return nil
}

// awaitAcks reads the refusals of n messages with sequence numbers from base on, up to the acknowledgement of the
// last of them; first is the index of the message that base belongs to.
func (c *Conn) awaitAcks(base uint32, n, first int, refused func(*Error)) error {
	for done := false; !done; {
		b, err := c.recv()
		if err != nil {
			return err
		}
		for len(b) > 0 {
			var f frame
			if f, b, err = next(b); err != nil {
				return err
			}
			if f.Type != unix.NLMSG_ERROR || f.seq-base >= uint32(n) {
				continue
			}
			done = f.seq-base == uint32(n)-1
			err := ackError(f, first+int(f.seq-base))
			if refusal, ok := errors.AsType[*Error](err); ok {
				refused(refusal)
			} else if err != nil {
				return err
			}
		}
	}
	return nil
}

// Transaction sends the messages as one atomic nfnetlink batch for a subsystem (unix.NFNL_SUBSYS_NFTABLES):
// all take effect or none does. The error is an [*Error] with the index of the first message refused.
func (c *Conn) Transaction(ctx context.Context, subsys uint16, msgs []Message) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	size := 0
	for _, m := range msgs {
		size += HeaderLen + Align(len(m.Data))
	}
	if size > 4<<20 { // one batch is one sendmsg, which must fit into the send buffer
		if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, size+1<<20); err != nil {
			return fmt.Errorf("size netlink socket buffer: %w", err)
		}
	}
	c.seq++
	out := batchEdge(unix.NFNL_MSG_BATCH_BEGIN, subsys).Append(make([]byte, 0, size+64), c.seq)
	begin := c.seq
	base := c.seq + 1
	for i, m := range msgs {
		m.Flags |= unix.NLM_F_REQUEST
		m.Flags &^= unix.NLM_F_ACK // refusals are reported anyway; only the end of the batch needs a sign
		if i == len(msgs)-1 {
			m.Flags |= unix.NLM_F_ACK
		}
		c.seq++
		out = m.Append(out, c.seq)
	}
	c.seq++
	out = batchEdge(unix.NFNL_MSG_BATCH_END, subsys).Append(out, c.seq)
	if len(msgs) == 0 {
		return nil
	}
	if err := c.send(out); err != nil {
		return err
	}
	last := base + uint32(len(msgs)) - 1
	var refused error
	for {
		b, err := c.recv()
		if err != nil {
			return err
		}
		for len(b) > 0 {
			var f frame
			if f, b, err = next(b); err != nil {
				return err
			}
			if f.Type != unix.NLMSG_ERROR || f.seq-begin > uint32(len(msgs))+1 {
				continue
			}
			index := -1
			if f.seq-base < uint32(len(msgs)) {
				index = int(f.seq - base)
			}
			if err := ackError(f, index); err != nil && refused == nil {
				refused = err
			}
			// The kernel reports all refusals of a batch, then the acknowledgement of its last message;
			// where the batch itself is refused there is only that report.
			if f.seq == last || f.seq == begin {
				return refused
			}
		}
	}
}

// Settle waits until no nfnetlink batch of a subsystem is under way in the namespace, and changes nothing. It sends an
// empty batch, for which the kernel takes the lock that a commit holds to its end (nfnetlink_rcv_batch); that is over
// when the message is sent. A kernel that refuses refuses whatever follows as well, so that is not reported here.
func (c *Conn) Settle(ctx context.Context, subsys uint16) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c.seq += 2
	out := batchEdge(unix.NFNL_MSG_BATCH_BEGIN, subsys).Append(nil, c.seq-1)
	return c.send(batchEdge(unix.NFNL_MSG_BATCH_END, subsys).Append(out, c.seq))
}

// Queue has the kernel keep up to size bytes of messages that come unasked, its own overhead included, for [Conn.Drain]. What
// exceeds that is lost and no error.
func (c *Conn) Queue(size int) error {
	if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size/2); err != nil { // which it doubles
		return fmt.Errorf("size netlink socket buffer: %w", err)
	}
	if err := unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, unix.NETLINK_NO_ENOBUFS, 1); err != nil {
		return fmt.Errorf("set netlink socket option: %w", err)
	}
	return nil
}

// Join has the kernel tell of what happens, by the messages of a multicast group, for [Conn.Drain].
func (c *Conn) Join(group int) error {
	if err := unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group); err != nil {
		return fmt.Errorf("join netlink group %d: %w", group, err)
	}
	return c.Queue(queueMin)
}

// queueMin is room for some events. Who waits for one looks at what it is about, not at what it says.
const queueMin = 1 << 20

// Await waits for a message that comes unasked, and reports whether one is there for [Conn.Drain]; false if the time was over
// before.
func (c *Conn) Await(ctx context.Context, deadline time.Time) (bool, error) {
	const look = 100 * time.Millisecond // at the context
	for {
		wait := max(0, min(time.Until(deadline), look))
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}, int((wait+time.Millisecond-1)/time.Millisecond))
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return false, fmt.Errorf("await netlink message: %w", err)
		case n > 0:
			return true, nil
		case ctx.Err() != nil:
			return false, context.Cause(ctx)
		case !time.Now().Before(deadline):
			return false, nil
		}
	}
}

// Drain calls each for every message that has come unasked, and does not wait for more. The message's data is valid
// until each returns.
func (c *Conn) Drain(each func(Message)) error {
	for {
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}, 0); errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil {
			return fmt.Errorf("receive netlink message: %w", err)
		} else if n == 0 {
			return nil
		}
		b, err := c.recv()
		if err != nil {
			return err
		}
		for len(b) > 0 {
			var f frame
			if f, b, err = next(b); err != nil {
				return err
			}
			each(f.Message)
		}
	}
}

// batchEdge returns a message that begins or ends a batch: a struct nfgenmsg with the subsystem in res_id, big-endian.
func batchEdge(typ, subsys uint16) Message {
	return Message{Type: typ, Flags: unix.NLM_F_REQUEST, Data: []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, byte(subsys >> 8), byte(subsys)}}
}

// Fd returns the socket, for callers that join multicast groups or poll.
func (c *Conn) Fd() int { return c.fd }

func (c *Conn) send(b []byte) error {
	for {
		err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("send netlink message: %w", err)
		}
	}
}

// recv returns the next datagram; it is valid until the next call, or for good after keep.
func (c *Conn) recv() ([]byte, error) {
	for {
		// Looked at first, because some are larger than any buffer: that of a link with many virtual functions is.
		size, _, err := unix.Recvfrom(c.fd, nil, unix.MSG_PEEK|unix.MSG_TRUNC)
		var from unix.Sockaddr
		if err == nil {
			if len(c.free) < size {
				c.next = max(size, min(max(2*c.next, freeMin), freeMax))
				c.free = make([]byte, c.next)
			}
			size, from, err = unix.Recvfrom(c.fd, c.free[:size], 0)
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("receive netlink message: %w", err)
		}
		if sa, ok := from.(*unix.SockaddrNetlink); !ok || sa.Pid != 0 {
			continue // only the kernel is believed
		}
		return c.free[:size:size], nil
	}
}

// keep returns the datagram that recv returned last, in memory of its own: a small one is copied.
func (c *Conn) keep(b []byte) []byte {
	if len(b) < copyMax {
		return append([]byte(nil), b...)
	}
	c.free = c.free[min(Align(len(b)), len(c.free)):]
	return b
}

// doneError reads the status that ends a dump.
func doneError(f frame) error {
	if len(f.Data) < 4 {
		return nil
	}
	if errno := int32(binary.NativeEndian.Uint32(f.Data)); errno < 0 {
		if unix.Errno(-errno) == unix.EMSGSIZE {
			return tooLarge()
		}
		return &Error{Index: -1, Errno: unix.Errno(-errno), Message: extAck(f, 4)}
	}
	return nil
}

// tooLarge says that a dump can't show an object and those behind it.
func tooLarge() error {
	return &Error{Index: -1, Errno: unix.EMSGSIZE, Message: "an object is larger than the largest message of a dump, and hides those behind it"}
}

// ackError reads an acknowledgement; nil if it says success.
func ackError(f frame, index int) error {
	if len(f.Data) < 4 {
		return fmt.Errorf("%w: acknowledgement of %d bytes", ErrMalformed, len(f.Data))
	}
	errno := int32(binary.NativeEndian.Uint32(f.Data))
	if errno == 0 {
		return nil
	}
	return &Error{Index: index, Errno: unix.Errno(-errno), Message: extAck(f, 4+HeaderLen)}
}

// extAck reads the text of an extended acknowledgement, whose attributes start at the given offset
// (NETLINK_CAP_ACK keeps the payload of the refused message out).
func extAck(f frame, offset int) string {
	if f.Flags&unix.NLM_F_ACK_TLVS == 0 || len(f.Data) < offset {
		return ""
	}
	attrs, err := ParseAttrs(f.Data[offset:])
	if err != nil {
		return ""
	}
	msg, _ := Find(attrs, unix.NLMSGERR_ATTR_MSG)
	return CString(msg)
}
