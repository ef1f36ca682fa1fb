package blackout

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// growth is how the waits of clients grow with something.
type growth struct {
	curve
	points []growthPoint // in order
}

type growthPoint struct {
	x          float64
	ours, criu *Cell // either may be missing
}

// growth collects the points of a curve.
func (r Results) growth(c curve) growth {
	g := growth{curve: c}
	for i, cell := range r.Cells {
		x := c.at(cell.Load)
		if x == 0 || len(cell.Runs) == 0 || cell.Mover != reference && cell.Mover != alone {
			continue
		}
		at := slices.IndexFunc(g.points, func(p growthPoint) bool { return p.x == x })
		if at < 0 {
			at, g.points = len(g.points), append(g.points, growthPoint{x: x})
		}
		if cell.Mover == alone {
			g.points[at].criu = &r.Cells[i]
		} else {
			g.points[at].ours = &r.Cells[i]
		}
	}
	slices.SortFunc(g.points, func(a, b growthPoint) int { return cmp.Compare(a.x, b.x) })
	return g
}

// own is what criu's own statistics say of moves by hand: how long it had the service frozen, and restored it.
func (c Cell) own() sample {
	return c.of(func(r Run) float64 { return milliseconds(r.CRIU.Frozen + r.CRIU.Restore) })
}

// exponent says how something grows from one point of a curve to another: 1 is in proportion, less is better.
func exponent(x1, y1, x2, y2 float64) float64 { return math.Log(y2/y1) / math.Log(x2/x1) }

// last is how the median waits grow at the end of the curve, with nsmigrate and by criu's own statistics. Either is NaN if it
// isn't known.
func (g growth) last() (ours, criu float64) {
	ours, criu = math.NaN(), math.NaN()
	if len(g.points) < 2 {
		return ours, criu
	}
	a, b := g.points[len(g.points)-2], g.points[len(g.points)-1]
	if a.ours != nil && b.ours != nil {
		ours = exponent(a.x, a.ours.worstGaps().median(), b.x, b.ours.worstGaps().median())
	}
	if a.criu != nil && b.criu != nil {
		criu = exponent(a.x, a.criu.own().median(), b.x, b.criu.own().median())
	}
	return ours, criu
}

// table tells the points of the curve.
func (g growth) table() table {
	t := table{head: []string{g.x, reference + ", ms: median (min-max)", "runs", "criu by hand", "runs", "criu's own part of that, frozen + restore"}}
	if len(g.points) < 2 {
		return t
	}
	for _, p := range g.points {
		row := []string{thousands(int(p.x)), "", "", "", "", ""}
		if p.ours != nil {
			row[1], row[2] = spread(p.ours.worstGaps()), fmt.Sprint(len(p.ours.Runs))
		}
		if p.criu != nil {
			row[3], row[4], row[5] = spread(p.criu.worstGaps()), fmt.Sprint(len(p.criu.Runs)), number(p.criu.own().median())
		}
		t.rows = append(t.rows, row)
	}
	return t
}

func spread(s sample) string {
	return fmt.Sprintf("%s (%s-%s)", number(s.median()), number(s.min()), number(s.max()))
}

// overheadTable tells what nsmigrate itself adds to criu's work.
func (r Results) overheadTable() table {
	t := table{head: []string{
		"ms, medians", "moved with", "stood still", "of it criu at work, on both hosts", "around that", "two round trips", "criu by hand: frozen + restore",
	}}
	for _, c := range r.Cells {
		if !c.Load.small() || !c.tellsBlackout() || len(c.Runs) == 0 || c.Runs[0].CRIU.Work == 0 {
			continue
		}
		own := ""
		if raw := r.cell(c.Scene, alone); raw != nil && len(raw.Runs) > 0 {
			own = number(raw.own().median())
		}
		t.rows = append(t.rows, []string{
			c.Scene, c.Mover, number(c.blackouts().median()), number(c.of(func(r Run) float64 { return milliseconds(r.CRIU.Work) }).median()),
			number(c.overhead().median()), number(2 * r.RTT), own,
		})
	}
	return t
}

func (c Cell) blackouts() sample {
	return c.of(func(r Run) float64 { return milliseconds(r.blackout()) })
}

// overhead is what is left of each time that the service stood still without criu's work.
func (c Cell) overhead() sample {
	return c.of(func(r Run) float64 { return milliseconds(r.blackout() - r.CRIU.Work) })
}
