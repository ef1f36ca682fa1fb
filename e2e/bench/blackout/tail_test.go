package blackout

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nsmigrate/nsmigrate/e2e/bench/openloop"
)

func TestTailMove(t *testing.T) {
	heard := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(d time.Duration) time.Time { return heard.Add(d) }
	trace := Trace{
		Phases: []Phase{{"freeze", 8 * time.Millisecond}, {"restore", 4 * time.Millisecond}},
		There:  []Phase{{"go live", 2 * time.Millisecond}},
	}
	seen := openloop.Seen{Alive: 3, LateMS: 1, Each: []openloop.SeenOne{
		{GapMS: 11, End: at(-time.Millisecond)},
		{GapMS: 13, End: at(time.Millisecond)},
		{GapMS: 2, End: at(-time.Second)}, // of another time than that of the move
		{GapMS: 12 + patience, End: at(20 * time.Millisecond)},
	}}
	var m TailMove
	m.tell(seen, trace, heard)
	if m.Blackout != 12 || m.Lost != 1 || m.Late != 1 || !slices.Equal(m.First, []float64{1, 3, 22}) || m.Phases != nil {
		t.Errorf("%+v", m)
	}
	seen.Each[3].GapMS += 0.5
	m = TailMove{}
	if m.tell(seen, trace, heard); m.Phases == nil {
		t.Error("a move after which somebody waited too long is not explained")
	}
}

func someTail() *Tail {
	return &Tail{Connections: 2, Rate: 2000, Moves: []TailMove{
		{Blackout: 10, Gaps: []float64{9, 11}, First: []float64{1, 2}, Between: 3},
		{Blackout: 20, Gaps: []float64{41, 19}, First: []float64{21}, Between: 4, Lost: 1, Phases: []Phase{{"freeze", 20 * time.Millisecond}}},
	}}
}

func TestTail(t *testing.T) {
	tail := someTail()
	if late, lost := tail.impatient(); late != 1 || lost != 1 {
		t.Errorf("%d clients waited too long, %d connections were lost", late, lost)
	}
	if got := tail.beyond(); !slices.Equal(got, sample{-1, -1, 1, 21}) {
		t.Errorf("waited longer by %v", got)
	}
	if got := tail.summary(); !strings.Contains(got, "of 4 waits, one of each client and move, 1 were over 20 ms longer") || !strings.Contains(got, "1 connections were lost") {
		t.Error(got)
	}
	if got := tail.exceptions(); len(got) != 1 || !strings.Contains(got[0], "freeze 20.0") {
		t.Errorf("%q", got)
	}
	if none := (*Tail)(nil); len(none.table().rows) != 0 || none.summary() != "" {
		t.Error("there is something to say of nothing")
	}
}

func TestJoin(t *testing.T) {
	var all Results
	for range 2 {
		all.Join(Results{Cells: []Cell{{Scene: "a", Mover: "x", Runs: make([]Run, 2)}, {Scene: "b", Mover: "x"}}, Tail: someTail()})
	}
	all.Join(Results{Cells: []Cell{{Scene: "a", Mover: "y"}}})
	var order []string
	for _, c := range all.Cells {
		order = append(order, c.Scene+c.Mover)
	}
	if !slices.Equal(order, []string{"ax", "ay", "bx"}) || len(all.Cells[0].Runs) != 4 || len(all.Tail.Moves) != 4 {
		t.Errorf("%v, %d runs, %d moves", order, len(all.Cells[0].Runs), len(all.Tail.Moves))
	}
}
