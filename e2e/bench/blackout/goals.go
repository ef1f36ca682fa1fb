package blackout

import (
	"fmt"
	"math"
	"strings"
)

// goal is something that nsmigrate sets out to reach, and what came of it.
type goal struct {
	what, want, got string
	met             bool
}

// goals judges what was measured, and leaves out what wasn't.
func (r Results) goals() []goal {
	var all []goal
	add := func(what, want, got string, met bool) { all = append(all, goal{what, want, got, met}) }
	for _, scene := range []string{first, "10 connections"} {
		for _, mover := range []string{reference, "nsmigrate ssh"} {
			if c := r.cell(scene, mover); c.known() {
				gap := c.worstGaps()
				add(scene+", "+mover, "p50 <= 12 ms, p99 <= 30 ms", fmt.Sprintf("%s, %s", number(gap.median()), number(gap.at(0.99))),
					gap.median() <= 12 && gap.at(0.99) <= 30)
			}
		}
	}
	for _, rival := range []struct {
		mover string
		times float64
	}{{alone, 3}, {"runc", 10}, {"podman", 30}} {
		if ours, theirs := r.cell(first, reference), r.cell(first, rival.mover); ours.known() && theirs.known() {
			x := ratioOf(ours.gaps(), theirs.gaps())
			add(first+", shorter than with "+rival.mover, fmt.Sprintf(">= %gx", rival.times), number(x.middle)+"x", x.middle >= rival.times)
		}
	}
	for _, many := range []struct {
		scene string
		most  float64
	}{{"1,000 connections", 70}, {"10,000 connections", 700}} {
		if c := r.cell(many.scene, reference); c.known() {
			alive, total, rst := c.survived()
			add(many.scene+", all of which live", fmt.Sprintf("p50 <= %g ms", many.most),
				fmt.Sprintf("%s, %s of %s live, %d RST", number(c.worstGaps().median()), thousands(alive), thousands(total), rst),
				c.worstGaps().median() <= many.most && alive == total && rst == 0)
		}
	}
	if c := r.cell(first, reference); c.known() && c.Runs[0].CRIU.Work > 0 {
		bound := 3 + 2*r.RTT
		add(first+", beside criu's work", "<= 3 ms + 2 round trips", number(c.overhead().median()), c.overhead().median() <= bound)
	}
	if t := r.Tail; t != nil && len(t.Moves) > 0 {
		late, lost := t.impatient()
		add(fmt.Sprintf("%s moves, clients that wait longer than the service stands still", thousands(len(t.Moves))),
			fmt.Sprintf("by <= %d ms", patience), fmt.Sprintf("%s at most; %d of %s waited longer, %d connections lost", number(t.beyond().max()), late, thousands(len(t.gaps())), lost),
			late == 0 && lost == 0 && len(t.Failures) == 0)
	}
	for _, x := range r.Throughput {
		if x.Reason == "" {
			add(fmt.Sprintf("throughput, IPv%s, %s, first second", x.Family, x.Direction), ">= 95 % of before",
				fmt.Sprintf("%.0f %%", 100*x.First/x.Before), x.First >= 0.95*x.Before && x.Changed == "")
		}
	}
	for _, c := range r.Cells {
		raw := r.cell(c.Scene, alone)
		if c.Load.MemoryMB < leastMemory || c.Mover != reference || !c.known() || !raw.known() {
			continue
		}
		times := c.blackouts().median() / raw.frozen().median()
		add(c.Scene+", frozen against criu's dump to memory alone", "<= 1.2x", number(times)+"x", times <= 1.2)
	}
	for _, x := range r.Snapshots {
		if x.Reason == "" {
			times := sampleOf(x.Theirs).median() / sampleOf(x.Ours).median()
			add("snapshot, "+x.name(), "no slower than criu dump, zstd -1 -T0", number(times)+"x as fast", times >= 1)
		}
	}
	for _, c := range curves() {
		const proportional = 1.1 // with what medians of a few runs tell
		ours, criu := r.growth(c).last()
		if math.IsNaN(ours) {
			continue
		}
		got := fmt.Sprintf("as n^%.2f", ours)
		if !math.IsNaN(criu) {
			got += fmt.Sprintf(", criu's own part as n^%.2f", criu)
		}
		add("growth with "+strings.ToLower(c.name)+", at the end of the curve", "in proportion or better", got, ours <= proportional)
	}
	return all
}

// known says whether something was measured.
func (c *Cell) known() bool { return c != nil && len(c.Runs) > 0 }

// goalTable tells what was reached.
func (r Results) goalTable() table {
	t := table{head: []string{"goal", "wanted", "measured", ""}}
	for _, g := range r.goals() {
		verdict := "missed"
		if g.met {
			verdict = "met"
		}
		t.rows = append(t.rows, []string{g.what, g.want, g.got, verdict})
	}
	return t
}
