package blackout

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestGoals(t *testing.T) {
	r := someResults()
	r.Throughput = []Throughput{{Family: "4", Direction: "to the client", Before: 10, First: 9.4}, {Family: "6", Reason: "no iperf3"}}
	r.Snapshots = []Snapshot{{Place: "disk", Ours: []float64{1}, Theirs: []float64{2}}}
	want := map[string]bool{
		"1 connection, nsmigrate tls":                                     true,
		"1 connection, shorter than with criu":                            true, // 30 by 10 ms
		"1,000 connections, all of which live":                            true,
		"2 moves, clients that wait longer than the service stands still": false,
		"throughput, IPv4, to the client, first second":                   false,
		"4 GB, frozen against criu's dump to memory alone":                false, // 7 by 5 ms
		"snapshot, 0 MB, compressible, to disk":                           true,
		"growth with routes, at the end of the curve":                     true,
		"1 connection, beside criu's work":                                false, // 7 less 3 ms
	}
	got := map[string]bool{}
	for _, g := range r.goals() {
		got[g.what] = g.met
	}
	for what, met := range want {
		if is, ok := got[what]; !ok || is != met {
			t.Errorf("%s: %v, %v", what, is, ok)
		}
	}
	for what := range got {
		if strings.Contains(what, "IPv6") || strings.Contains(what, "ssh") {
			t.Errorf("%s: it was not measured", what)
		}
	}
	if none := (Results{}).goals(); len(none) != 0 {
		t.Errorf("of nothing: %v", none)
	}
}

func TestGrowth(t *testing.T) {
	cell := func(mover string, routes int, gap float64) Cell {
		run := Run{Trace: Trace{CRIU: CRIU{Frozen: time.Duration(routes) * time.Microsecond}}}
		run.WorstGapMS = gap
		return Cell{Scene: thousands(routes), Mover: mover, Load: Workload{Connections: 1, Routes: routes}, Runs: []Run{run}}
	}
	r := Results{Cells: []Cell{
		cell(reference, 1000, 40), cell(reference, 10, 5), cell(alone, 10, 7), cell(reference, 100, 10), cell(alone, 1000, 9), cell(alone, 100, 8),
	}}
	var routes growth
	for _, c := range curves() {
		if c.name == "routes" {
			routes = r.growth(c)
		}
	}
	ours, criu := routes.last()
	if math.Abs(ours-math.Log10(4)) > 1e-9 || math.Abs(criu-1) > 1e-9 {
		t.Errorf("grows as n^%v, criu's as n^%v", ours, criu)
	}
	rows := routes.table().rows
	if len(rows) != 3 || rows[0][0] != "10" || rows[2][1] != "40.0 (40.0-40.0)" || rows[2][5] != "1.00" {
		t.Errorf("%q", rows)
	}
}
