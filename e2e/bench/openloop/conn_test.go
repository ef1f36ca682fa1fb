package openloop

import (
	"reflect"
	"testing"
	"time"
)

const ms = time.Millisecond

// The longest interval without an answer counts, less the period; the wait from when a message was due.
func TestConnection(t *testing.T) {
	const size = 32
	c := &conn{id: 7, period: ms}
	answer := func(n uint64, at time.Duration) {
		t.Helper()
		if answers, err := c.received(c.message(n, size), size, at); err != nil || answers != 1 {
			t.Fatalf("answer %d: %d, %v", n, answers, err)
		}
	}
	for i := range 5 {
		c.sending(time.Duration(i) * ms)
	}
	answer(0, ms/2)
	answer(1, 3*ms/2)
	c.reset(2 * ms)
	answer(2, 12*ms) // 10.5 ms after the one before, 10 ms after it was due
	b := append(c.message(3, size), c.message(4, size)...)
	if answers, err := c.received(b[:40], size, 13*ms); err != nil || answers != 1 {
		t.Errorf("a part of two answers: %d, %v", answers, err)
	}
	if answers, err := c.received(b[40:], size, 14*ms); err != nil || answers != 1 {
		t.Errorf("the rest of it: %d, %v", answers, err)
	}
	if c.gap != 19*ms/2 || c.wait != 10*ms || c.gapEnd != 12*ms {
		t.Errorf("gap %v until %v, wait %v", c.gap, c.gapEnd, c.wait)
	}
	c.reset(20 * ms)
	c.sending(21 * ms)
	answer(5, 22*ms)
	if c.gap != 2*ms || c.wait != ms { // idle from 19 ms on, a period before the window
		t.Errorf("in a new window: gap %v, wait %v", c.gap, c.wait)
	}
}

func TestWrongAnswers(t *testing.T) {
	c := &conn{id: 1}
	if _, err := c.received(c.message(0, minSize), minSize, 0); err == nil {
		t.Error("an answer to nothing passes")
	}
	c = &conn{id: 1}
	c.sending(0)
	if _, err := c.received(c.message(1, minSize), minSize, 0); err == nil {
		t.Error("an answer to something else passes")
	}
}

func TestSum(t *testing.T) {
	got := sum([]*conn{
		{gap: 2 * ms, wait: 3 * ms, got: 4, wanted: 4},
		{gap: 5 * ms, wait: ms, got: 3, wanted: 4},
		{state: wasReset},
		{state: ended},
		{state: wrong},
	})
	want := Seen{Alive: 1, Silent: 1, Reset: 1, Ended: 1, Wrong: 1, GapMS: 2, WorstGapMS: 5, WaitMS: 3}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestPeriod(t *testing.T) {
	for connections, want := range map[int]time.Duration{1: ms, 10: 2 * ms, 1001: 200 * ms} {
		if got := (Options{Connections: connections, Rate: 5000}).period(); got != want {
			t.Errorf("%d connections: %v, want %v", connections, got, want)
		}
	}
}
