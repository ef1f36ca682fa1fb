package openloop

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"
)

// conn is the bookkeeping of a connection, without its socket. Times are since the client's start.
type conn struct {
	id      uint32
	period  time.Duration
	next    time.Duration // when the next message is due
	sent    uint64        // messages
	got     uint64        // answers, in order
	rest    []byte        // of the last message, which is not sent yet
	partial []byte        // of the next answer
	due     []time.Duration
	last    time.Duration // of the last answer, or of the begin of the window

	gap, wait time.Duration // longest of the window
	gapEnd    time.Duration // when the longest gap was over
	wanted    uint64        // answers until what was ordered is known
	state     state
}

type state int

const (
	alive state = iota
	wasReset
	ended
	wrong
)

// message is what the number n of a connection looks like.
func (c *conn) message(n uint64, size int) []byte {
	b := make([]byte, size)
	binary.BigEndian.PutUint32(b, c.id)
	binary.BigEndian.PutUint64(b[4:], n)
	return b
}

// minSize is that of a message that can be told from others.
const minSize = 12

// sending notes that a message went out that was due at a time.
func (c *conn) sending(due time.Duration) {
	c.sent++
	c.due = append(c.due, due)
}

// received takes bytes that came at a time, and returns how many answers they complete.
func (c *conn) received(b []byte, size int, now time.Duration) (answers int, err error) {
	c.partial = append(c.partial, b...)
	for len(c.partial) >= size {
		if c.got == c.sent {
			return answers, fmt.Errorf("connection %d: an answer to nothing", c.id)
		}
		if !bytes.Equal(c.partial[:size], c.message(c.got, size)) {
			return answers, fmt.Errorf("connection %d: answer %d is not what was sent", c.id, c.got)
		}
		c.partial = c.partial[:copy(c.partial, c.partial[size:])]
		c.wait = max(c.wait, now-c.due[0])
		c.due = c.due[1:]
		if gap := now - c.last - c.period; gap > c.gap {
			c.gap, c.gapEnd = gap, now
		}
		c.last = now
		c.got++
		answers++
	}
	return answers, nil
}

// reset begins a window.
func (c *conn) reset(now time.Duration) {
	c.gap, c.wait, c.gapEnd = 0, 0, now
	c.last = max(c.last, now-c.period)
}

// sum adds up what the connections saw. The first one is the probe, always sent to at the highest rate.
func sum(conns []*conn) Seen {
	var s Seen
	for i, c := range conns {
		switch {
		case c.state == wasReset:
			s.Reset++
		case c.state == ended:
			s.Ended++
		case c.state == wrong:
			s.Wrong++
		case c.got < c.wanted:
			s.Silent++
		default:
			s.Alive++
		}
		if i == 0 {
			s.GapMS = milliseconds(c.gap)
		}
		s.WorstGapMS = max(s.WorstGapMS, milliseconds(c.gap))
		s.WaitMS = max(s.WaitMS, milliseconds(c.wait))
	}
	return s
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
