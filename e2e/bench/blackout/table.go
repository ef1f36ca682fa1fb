package blackout

import (
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"
	"time"
)

// reference is the mover that the others are compared with.
const reference = "nsmigrate tls"

// Print writes the tables.
func (r Results) Print(out io.Writer) {
	if len(r.Cells) > 0 {
		r.printGaps(out)
		r.printPhases(out)
	}
	for _, t := range r.moreTables() {
		fmt.Fprintf(out, "\n%s. %s\n", t.title, t.note)
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		for _, row := range append([][]string{t.head}, t.rows...) {
			fmt.Fprintln(w, strings.Join(row, "\t"))
		}
		w.Flush()
	}
	if r.Tail != nil {
		for _, line := range r.Tail.exceptions() {
			fmt.Fprintf(out, "\nIn the tail, somebody waited too long: %s\n", line)
		}
		for _, why := range r.Tail.Failures {
			fmt.Fprintf(out, "\nIn the tail, a move failed: %s\n", why)
		}
	}
}

func (r Results) printGaps(out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "moved with\truns\tgap p50\tp99\tmin\tmax ms\tworst conn.\tp99\tnsmigrate is shorter\tsurvived\tRST\t")
	for i, c := range r.Cells {
		if i == 0 || c.Scene != r.Cells[i-1].Scene {
			fmt.Fprintf(w, "%s\t\t\t\t\t\t\t\t\t\t\t\n", c.Scene)
		}
		fmt.Fprintf(w, "  %s\t%s\n", c.Mover, strings.Join(r.row(c), "\t"))
	}
	w.Flush()
	fmt.Fprint(out, `The gap is the longest interval without an answer on a connection that has a message every millisecond, less that
millisecond, in one move; of "worst conn." it is the gap of the connection where it is longest. Medians of all runs, and
the ratio of medians (with those of the quartiles).
`)
}

// row is what a table says of a cell.
func (r Results) row(c Cell) []string {
	if len(c.Runs) == 0 {
		return append([]string{"0", "not measured, see below"}, make([]string, 8)...)
	}
	gap, worst := c.gaps(), c.worstGaps()
	alive, total, rst := c.survived()
	row := []string{
		fmt.Sprint(len(c.Runs)), number(gap.median()), number(gap.at(0.99)), number(gap.min()), number(gap.max()),
		number(worst.median()), number(worst.at(0.99)), "", fmt.Sprintf("%d of %d", alive, total), fmt.Sprint(rst),
	}
	if ours := r.cell(c.Scene, reference); ours != nil && c.Mover != reference && len(ours.Runs) > 0 {
		x := ratioOf(ours.gaps(), gap)
		row[7] = fmt.Sprintf("%sx (%s-%s)", number(x.middle), number(x.low), number(x.high))
	}
	if n := len(c.Failures); n > 0 {
		row[8] += fmt.Sprintf(", failed %d times", n)
	}
	return row
}

func (r Results) cell(scene, mover string) *Cell {
	for i, c := range r.Cells {
		if c.Scene == scene && c.Mover == mover {
			return &r.Cells[i]
		}
	}
	return nil
}

func (c Cell) of(value func(Run) float64) sample {
	values := make([]float64, len(c.Runs))
	for i, r := range c.Runs {
		values[i] = value(r)
	}
	return sampleOf(values)
}

func (c Cell) gaps() sample      { return c.of(func(r Run) float64 { return r.GapMS }) }
func (c Cell) worstGaps() sample { return c.of(func(r Run) float64 { return r.WorstGapMS }) }

func (c Cell) survived() (alive, total, rst int) {
	for _, r := range c.Runs {
		alive += r.Alive
		total += max(1, c.Load.Connections)
		rst += r.RST
	}
	return alive, total, rst
}

// phaseMedians are those of each phase, in the order of the first run.
func (c Cell) phaseMedians(of func(Trace) []Phase) []Phase {
	var names []string
	times := map[string][]float64{}
	for _, r := range c.Runs {
		for _, p := range of(r.Trace) {
			if times[p.Name] == nil {
				names = append(names, p.Name)
			}
			times[p.Name] = append(times[p.Name], float64(p.Took))
		}
	}
	phases := make([]Phase, len(names))
	for i, name := range names {
		phases[i] = Phase{name, time.Duration(sampleOf(times[name]).median())}
	}
	return phases
}

func (r Results) printPhases(out io.Writer) {
	fmt.Fprintln(out, "\nWhere the time goes (medians, ms), and what criu's statistics say: with nsmigrate, frozen is until the other host has it.")
	for _, c := range r.Cells {
		if len(c.Runs) == 0 {
			continue
		}
		here := phasesText(c.phaseMedians(func(t Trace) []Phase { return t.Phases }))
		if there := c.phaseMedians(func(t Trace) []Phase { return t.There }); len(there) > 0 {
			here += " (meanwhile, on the other host: " + phasesText(there) + ")"
		}
		frozen := c.of(func(r Run) float64 { return milliseconds(r.CRIU.Frozen) }).median()
		restore := c.of(func(r Run) float64 { return milliseconds(r.CRIU.Restore) }).median()
		if frozen > 0 {
			here += fmt.Sprintf("; criu: frozen %s, restore %s", number(frozen), number(restore))
		}
		if c.tellsBlackout() {
			beyond := c.of(Run.beyond)
			here += fmt.Sprintf("; clients wait longer than that by p50 %s, p99 %s, max %s",
				number(beyond.median()), number(beyond.at(0.99)), number(beyond.max()))
		}
		fmt.Fprintf(out, "  %s, %s: %s\n", c.Scene, c.Mover, here)
	}
	for _, c := range r.Cells {
		for _, why := range c.Failures {
			fmt.Fprintf(out, "\n%s, %s failed: %s\n", c.Scene, c.Mover, why)
		}
	}
}

func phasesText(phases []Phase) string {
	parts := make([]string, len(phases))
	for i, p := range phases {
		parts[i] = fmt.Sprintf("%s %s", p.Name, number(milliseconds(p.Took)))
	}
	return strings.Join(parts, ", ")
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// blackout is how long the mover itself says the service stood still.
func (t Trace) blackout() time.Duration {
	var sum time.Duration
	for _, p := range t.Phases {
		sum += p.Took
	}
	return sum
}

// tellsBlackout says whether the mover's phases are no more than the blackout: others freeze somewhere in their first one.
func (c Cell) tellsBlackout() bool { return strings.HasPrefix(c.Mover, "nsmigrate") }

// beyond is by how many milliseconds a client waited longer than the service stood still.
func (r Run) beyond() float64 { return r.WorstGapMS - milliseconds(r.blackout()) }

func number(f float64) string {
	switch {
	case math.Abs(f) < 10:
		return fmt.Sprintf("%.2f", f)
	case math.Abs(f) < 100:
		return fmt.Sprintf("%.1f", f)
	}
	return fmt.Sprintf("%.0f", f)
}
