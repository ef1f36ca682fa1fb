package blackout

import (
	"fmt"
	"slices"
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
	t := table{head: []string{"Gbit/s", "before", "first second after", "later", "segments, window, congestion control"}}
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

func (r Results) throughputRounds() string {
	rounds := 0
	for _, x := range r.Throughput {
		rounds = max(rounds, x.Rounds)
	}
	if rounds == 1 {
		return "once"
	}
	return fmt.Sprintf("medians of %d moves", rounds)
}

// name says what of, and where to.
func (x Snapshot) name() string {
	what := "compressible"
	if x.Load.Fill == Noise {
		what = "not compressible"
	}
	return fmt.Sprintf("%s MB, %s, to %s", thousands(x.Load.MemoryMB), what, x.Place)
}

// snapshotTable tells how long snapshots take.
func (r Results) snapshotTable() table {
	t := table{head: []string{"snapshot", "nsmigrate dump -e, s", "criu dump, zstd -1 -T0, s", "nsmigrate is faster", "GB/s", "size, MB"}}
	for _, x := range r.Snapshots {
		if x.Reason != "" {
			t.rows = append(t.rows, []string{x.name(), "not measured: " + cellText(x.Reason), "", "", "", ""})
			continue
		}
		ours, theirs := sampleOf(x.Ours), sampleOf(x.Theirs)
		t.rows = append(t.rows, []string{
			x.name(), spread(ours), spread(theirs), number(ratioOf(ours, theirs).middle) + "x",
			number(float64(x.Load.MemoryMB) * (1 << 20) / 1e9 / ours.median()), fmt.Sprintf("%d, %d", x.Size>>20, x.Other>>20),
		})
	}
	return t
}

// leastMemory is how many MB a service has at least whose standstill is told for each GB.
const leastMemory = 64

// memoryTable tells how long a service stands still for each GB of its memory.
func (r Results) memoryTable() table {
	t := table{head: []string{
		"memory", "runs", "nsmigrate tls: stood still, s per GB, transfer and restore included", "criu's dump to memory alone, s per GB", "ratio",
		"criu by hand: dump, copy from memory to memory, restore, s per GB",
	}}
	for _, c := range r.Cells {
		if c.Load.MemoryMB < leastMemory || !c.known() || c.Mover != reference {
			continue
		}
		gb := float64(c.Load.MemoryMB) * (1 << 20) / 1e9
		stood := c.blackouts().median() / 1000
		row := []string{c.Scene, fmt.Sprint(len(c.Runs)), number(stood / gb), "", "", ""}
		if raw := r.cell(c.Scene, alone); raw.known() {
			dump := raw.frozen().median() / 1000
			row[3], row[4], row[5] = number(dump/gb), number(stood/dump)+"x", number(raw.blackouts().median()/1000/gb)
		}
		t.rows = append(t.rows, row)
	}
	return t
}

// frozen is how long criu had the service frozen, in milliseconds.
func (c Cell) frozen() sample {
	return c.of(func(r Run) float64 { return milliseconds(r.CRIU.Frozen) })
}

// titled is a table with what it is about.
type titled struct {
	title, note string
	table
	picture string // name of file, "" for none
}

// moreTables are those beside the one of the waits.
func (r Results) moreTables() []titled {
	all := []titled{{title: "The tail", note: r.Tail.summary(), table: r.Tail.table(), picture: "tail.svg"}}
	all = append(all, titled{
		title: "Beside criu's work", table: r.overheadTable(), picture: "phases.svg",
		note: "Criu is at work when it seizes the processes, dumps them, restores and leaves them; what nsmigrate does around that\n" +
			"is to mute the namespace, to read its state, to send all of it, to connect and announce it, and to agree on who lives.",
	})
	for _, c := range curves() {
		all = append(all, titled{
			title: c.title, table: r.growth(c).table(), picture: c.name + ".svg",
			note: "Longest wait of the worst connection.",
		})
	}
	all = append(all,
		titled{
			title: "Memory", table: r.memoryTable(),
			note: "Without compression where it does not pay. Criu's dump alone is a dump into memory, that nobody has copied or restored yet.",
		},
		titled{
			title: "Throughput", table: r.throughputTable(),
			note: "Of a connection of iperf3 that is moved in full flight: " + r.throughputRounds() + ".",
		},
		titled{
			title: "Snapshots", table: r.snapshotTable(),
			note: "Of a service that lives on, in a compressed file: seconds until all of it is on the disk, or in memory.",
		},
		titled{title: "Goals", note: "What was to be reached, and what was.", table: r.goalTable()},
	)
	return slices.DeleteFunc(all, func(t titled) bool { return len(t.rows) == 0 })
}
