package main

import (
	"testing"
	"time"
)

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0:                        "0 us",
		999 * time.Microsecond:   "999 us",
		12345 * time.Microsecond: "12.3 ms",
		1500 * time.Millisecond:  "1.50 s",
		90 * time.Second:         "1m30s",
	} {
		if got := span(d); got != want {
			t.Errorf("span(%d) = %q, want %q", d, got, want)
		}
	}
}

func TestStatusLine(t *testing.T) {
	l := &statusLine{title: "dump svc"}
	l.Phase("store")
	l.Bytes(1<<20, 4<<20)
	if got, want := l.text(80, 1300*time.Millisecond), "dump svc: store 1.0 MiB of 4.0 MiB (1.3 s)"; got != want {
		t.Errorf("text = %q, want %q", got, want)
	}
	l.Phase("kill")
	if got, want := l.text(14, 0), "dump svc: kill"; got != want {
		t.Errorf("text cut to 14 columns = %q, want %q", got, want)
	}
	if got := l.text(-1, 0); got != "" {
		t.Errorf("text cut to nothing = %q", got)
	}
}
