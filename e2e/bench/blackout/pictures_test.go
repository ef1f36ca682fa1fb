package blackout

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nsmigrate/nsmigrate/e2e/bench/openloop"
)

// someResults have a point of every curve, and a mover that could not be measured.
func someResults() Results {
	var r Results
	for _, p := range picks() {
		for i, mover := range []string{"nsmigrate tls", "criu"} {
			c := Cell{Scene: p.Name, Mover: mover, Load: p.Workload}
			for run := range 3 {
				gap := float64(9 + run + 20*i)
				c.Runs = append(c.Runs, Run{
					Seen:  openloop.Seen{GapMS: gap, WorstGapMS: gap + 1, Alive: p.Connections},
					Trace: Trace{Phases: []Phase{{"freeze", 3 * time.Millisecond}, {"restore", 4 * time.Millisecond}}, CRIU: CRIU{Frozen: 5 * time.Millisecond, Work: 3 * time.Millisecond}},
				})
			}
			r.Cells = append(r.Cells, c)
		}
	}
	r.Cells = append(r.Cells, Cell{Scene: first, Mover: "runc", Failures: []string{"install: no | here\nmore"}})
	r.Tail = someTail()
	return r
}

func TestPictures(t *testing.T) {
	pictures := someResults().Pictures()
	want := []string{"connections.svg", "distribution.svg", "memory.svg", "phases.svg", "processes.svg", "routes.svg", "tail.svg"}
	if got := slices.Sorted(maps.Keys(pictures)); !slices.Equal(got, want) {
		t.Errorf("pictures %v, want %v", got, want)
	}
	for name, words := range map[string][]string{
		"phases.svg":      {">freeze<", ">until the answer comes<", ">clients wait 10<"},
		"connections.svg": {">criu<", ">criu&#39;s own part of that<"},
	} {
		for _, word := range words {
			if !strings.Contains(string(pictures[name]), word) {
				t.Errorf("%s does not say %q", name, word)
			}
		}
	}
	if none := (Results{}).Pictures(); len(none) != 0 {
		t.Errorf("of nothing: %v", none)
	}
}

func TestMarkdown(t *testing.T) {
	got := someResults().Markdown("`make bench`", "a machine", "docs/bench")
	for _, want := range []string{
		"Measured with `make bench`\non a machine.\nWhere", "| 1 connection | nsmigrate tls | 3 | 11.0 (12.0; 10.0-12.0) |  | all |",
		"|  | criu | 3 | 31.0 (32.0; 30.0-32.0) | 2.82x", "| not measured: install: no \\| here |",
		"**Beside criu's work.**", "![Beside criu's work](docs/bench/phases.svg)", "**The tail.** 2 moves", "**Goals.**",
		"| 100,000 | 11.0 (10.0-12.0) | 3 | 31.0 (30.0-32.0) | 3 | 5.00 |",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("there is no %q in\n%s", want, got)
		}
	}
}

// Everything that is measured has a name of its own and somebody who is measured.
func TestScenes(t *testing.T) {
	known := map[string]bool{}
	for _, m := range movers() {
		known[m.name()] = true
	}
	names := map[string]bool{}
	for _, p := range picks() {
		if names[p.Name] {
			t.Errorf("two are called %q", p.Name)
		}
		names[p.Name] = true
		for _, turn := range p.turns {
			if !known[turn.mover] || turn.every < 1 {
				t.Errorf("%s: %+v is nobody's turn", p.Name, turn)
			}
		}
	}
	if got := len(scenes(Options{Quick: true})); got == 0 || got >= len(scenes(Options{})) {
		t.Errorf("%d scenes are quick", got)
	}
	for _, s := range scenes(Options{Rounds: 50}) {
		if small := s.Connections <= 10 && s.Workload == (Workload{Name: s.Name, Connections: s.Connections}); (s.Rounds == 50) != small {
			t.Errorf("%s: %d rounds", s.Name, s.Rounds)
		}
	}
}
