package blackout

import (
	"fmt"
	"strings"
)

// table is a head and rows of cells, for a terminal or for Markdown.
type table struct {
	head []string
	rows [][]string
}

func (t table) markdown() string {
	var b strings.Builder
	line := func(cells []string) { b.WriteString("| " + strings.Join(cells, " | ") + " |\n") }
	line(t.head)
	b.WriteString(strings.Repeat("|---", len(t.head)) + "|\n")
	for _, r := range t.rows {
		line(r)
	}
	return b.String()
}

// throughputTable tells how fast connections are before and after a move.
func (r Results) throughputTable() table {
	t := table{head: []string{"throughput, Gbit/s", "before", "first second after", "later", "segments, window, congestion control"}}
	for _, x := range r.Throughput {
		row := []string{fmt.Sprintf("IPv%s, %s", x.Family, x.Direction)}
		if x.Reason != "" {
			t.rows = append(t.rows, append(row, "not measured: "+cellText(x.Reason), "", "", ""))
			continue
		}
		part := func(f float64) string { return fmt.Sprintf("%s (%.0f %%)", number(f), 100*f/x.Before) }
		kinds := x.Was + ", as before"
		if x.Changed != "" {
			kinds = x.Was + ", then " + x.Changed
		}
		t.rows = append(t.rows, append(row, number(x.Before), part(x.First), part(x.Later), kinds))
	}
	return t
}

// snapshotTable tells how long snapshots take.
func (r Results) snapshotTable() table {
	t := table{head: []string{"snapshot", "nsmigrate dump -e, s", "criu dump, zstd -1 -T0, s", "nsmigrate is faster", "GB/s", "size, MB"}}
	for _, x := range r.Snapshots {
		what := "compressible"
		if x.Load.Fill == Noise {
			what = "not compressible"
		}
		row := []string{fmt.Sprintf("%d MB, %s, to %s", x.Load.MemoryMB, what, x.Place)}
		if x.Reason != "" {
			t.rows = append(t.rows, append(row, "not measured: "+cellText(x.Reason), "", "", "", ""))
			continue
		}
		ours, theirs := sampleOf(x.Ours), sampleOf(x.Theirs)
		spread := func(s sample) string {
			return fmt.Sprintf("%s (%s-%s)", number(s.median()), number(s.min()), number(s.max()))
		}
		ratio := ratioOf(ours, theirs)
		t.rows = append(t.rows, append(row, spread(ours), spread(theirs), number(ratio.middle)+"x",
			number(float64(x.Load.MemoryMB)*(1<<20)/1e9/ours.median()), fmt.Sprintf("%d, %d", x.Size>>20, x.Other>>20)))
	}
	return t
}

// memoryTable tells how long a service stands still for each GB of its memory.
func (r Results) memoryTable() table {
	t := table{head: []string{"memory", "moved with", "frozen, s per GB: transfer and restore included", "criu's dump alone, s per GB"}}
	for _, c := range r.Cells {
		if c.Load.MemoryMB < 64 || len(c.Runs) == 0 || c.Mover != reference {
			continue
		}
		gb := float64(c.Load.MemoryMB) * (1 << 20) / 1e9
		dump := ""
		if raw := r.cell(c.Scene, alone); raw != nil && len(raw.Runs) > 0 {
			dump = number(raw.of(func(r Run) float64 { return r.CRIU.Frozen.Seconds() }).median() / gb)
		}
		frozen := c.of(func(r Run) float64 { return r.blackout().Seconds() })
		t.rows = append(t.rows, []string{c.Scene, c.Mover, number(frozen.median() / gb), dump})
	}
	return t
}

// moreTables are those beside the one of the gaps.
func (r Results) moreTables() []table {
	var some []table
	for _, t := range []table{r.memoryTable(), r.throughputTable(), r.snapshotTable()} {
		if len(t.rows) > 0 {
			some = append(some, t)
		}
	}
	return some
}
