package blackout

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/nsmigrate/nsmigrate/e2e/bench/plot"
)

// first is the scene that says most: nothing but the move itself.
const first = "1 connection"

// alone is CRIU without anything around it.
const alone = "criu"

// Pictures are drawn from what was measured: SVG by name of file.
func (r Results) Pictures() map[string][]byte {
	all := map[string][]byte{}
	if bars := r.phaseBars(first); len(bars.Rows) > 0 {
		all["phases.svg"] = bars.SVG()
	}
	if d := r.distribution(first); len(d.Samples) > 0 {
		all["distribution.svg"] = d.SVG()
	}
	if d := r.Tail.picture(); len(d.Samples) > 0 {
		all["tail.svg"] = d.SVG()
	}
	for _, c := range curves() {
		if lines := r.curve(c); len(lines.Series) > 0 {
			all[c.name+".svg"] = lines.SVG()
		}
	}
	return all
}

// phaseBars shows where the time goes, of those who take less than a tenth of a second or so.
func (r Results) phaseBars(scene string) plot.Bars {
	const bearable = 6 // times the reference: a longer bar would make the others invisible
	b := plot.Bars{Title: "Where the time goes, " + scene + " (ms, medians)", Unit: "ms"}
	ours := r.cell(scene, reference)
	for _, c := range r.Cells {
		if c.Scene != scene || len(c.Runs) == 0 || ours != nil && c.gaps().median() > bearable*ours.gaps().median() {
			continue
		}
		row := plot.Row{Label: c.Mover, Note: "clients wait " + plot.Value(c.gaps().median())}
		sum := 0.
		for _, p := range c.phaseMedians(func(t Trace) []Phase { return t.Phases }) {
			row.Parts = append(row.Parts, plot.Part{Name: p.Name, Value: milliseconds(p.Took)})
			sum += milliseconds(p.Took)
		}
		if rest := c.gaps().median() - sum; rest > 0 {
			row.Parts = append(row.Parts, plot.Part{Name: "until the answer comes", Value: rest})
		}
		b.Rows = append(b.Rows, row)
	}
	return b
}

func (r Results) distribution(scene string) plot.Distribution {
	d := plot.Distribution{Title: "How long a client waits, " + scene, X: "longest wait in a move, ms"}
	for _, c := range r.Cells {
		if c.Scene == scene && len(c.Runs) > 0 {
			d.Samples = append(d.Samples, plot.Sample{Name: c.Mover, Values: c.gaps()})
		}
	}
	return d
}

// picture is what clients see of very many moves: without packets that were lost or came late they wait as long as the service
// stands still.
func (t *Tail) picture() plot.Distribution {
	const least = 0.1 // what is less is nothing
	d := plot.Distribution{X: "ms", Tail: true}
	if t == nil || len(t.Moves) == 0 {
		return d
	}
	d.Title = fmt.Sprintf("How long clients wait in %s moves", thousands(len(t.Moves)))
	for _, s := range []struct {
		name   string
		values sample
	}{
		{"the service stood still", t.blackouts()},
		{"longest wait of each client", t.gaps()},
		{"from when it was live to each client's first answer", t.firsts()},
	} {
		values := make([]float64, len(s.values))
		for i, v := range s.values {
			values[i] = max(least, v)
		}
		d.Samples = append(d.Samples, plot.Sample{Name: s.name, Values: values})
	}
	return d
}

// curve is how the gap grows with something.
type curve struct {
	name, title, x string
	at             func(Workload) float64 // 0: this workload isn't on it
}

func curves() []curve {
	only := func(w Workload, with Workload) bool { // no more than what the curve is about
		w.Name, w.Fill = "", ""
		return w == with
	}
	return []curve{
		{"connections", "Wait against connections", "connections", func(w Workload) float64 {
			if !only(w, Workload{Connections: w.Connections, Workers: w.Workers}) {
				return 0
			}
			return float64(w.Connections)
		}},
		{"memory", "Wait against memory that can't be compressed", "MB", func(w Workload) float64 {
			if w.fill() != Noise || !only(w, Workload{Connections: 1, MemoryMB: w.MemoryMB}) {
				return 0
			}
			return float64(w.MemoryMB)
		}},
		{"routes", "Wait against routes", "routes", func(w Workload) float64 {
			if !only(w, Workload{Connections: 1, Routes: w.Routes}) {
				return 0
			}
			return float64(w.Routes)
		}},
		{"processes", "Wait against processes", "processes", func(w Workload) float64 {
			if !only(w, Workload{Connections: 1, Idle: w.Idle}) {
				return 0
			}
			return float64(w.Idle + 1)
		}},
	}
}

// curve has the gap of each mover, and what of it is CRIU's own work, by the statistics of CRIU alone: with nsmigrate the
// service is frozen in CRIU's eyes until the other host has it.
func (r Results) curve(c curve) plot.Lines {
	l := plot.Lines{Title: c.title, X: c.x, Y: "longest wait, ms (medians, min to max)"}
	add := func(name string, cell Cell, s sample) {
		i := slices.IndexFunc(l.Series, func(s plot.Series) bool { return s.Name == name })
		if i < 0 {
			i, l.Series = len(l.Series), append(l.Series, plot.Series{Name: name})
		}
		l.Series[i].Points = append(l.Series[i].Points, plot.Point{X: c.at(cell.Load), Y: s.median(), Low: s.min(), High: s.max()})
	}
	for _, cell := range r.Cells {
		if len(cell.Runs) == 0 || c.at(cell.Load) == 0 {
			continue
		}
		add(cell.Mover, cell, cell.worstGaps())
		if cell.Mover == alone {
			add("criu's own part of that", cell, cell.own())
		}
	}
	// What has one point only is no curve.
	l.Series = slices.DeleteFunc(l.Series, func(s plot.Series) bool { return len(s.Points) < 2 })
	for _, s := range l.Series {
		slices.SortFunc(s.Points, func(a, b plot.Point) int { return cmp.Compare(a.X, b.X) })
	}
	return l
}
