// Package plot draws the few pictures that the benchmark needs, as SVG: stacked bars, lines over logarithmic axes, and
// distributions. They read well on light and on dark pages, as they bring their own paper.
package plot

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Bars are rows of stacked bars.
type Bars struct {
	Title string
	Unit  string // of the values
	Rows  []Row
}

// Row is one of them, from left to right.
type Row struct {
	Label string
	Parts []Part
	Note  string // behind the bar
}

// Part is a piece of a bar. Parts of the same name have the same colour.
type Part struct {
	Name  string
	Value float64
}

// Lines are curves over two logarithmic axes.
type Lines struct {
	Title  string
	X, Y   string // what the axes show
	Series []Series
}

// Series is one of them.
type Series struct {
	Name   string
	Points []Point
}

// Point has a value and between which bounds it was.
type Point struct{ X, Y, Low, High float64 }

// Distribution shows which part of a number of values is below which value.
type Distribution struct {
	Title   string
	X       string // what the values are
	Samples []Sample
	Tail    bool // show on a logarithmic axis which part is above, to see the last thousandth as well as the half
}

// Sample is what one of its lines is drawn from.
type Sample struct {
	Name   string
	Values []float64
}

const (
	width  = 880
	font   = 13
	legend = 22 // height of a line of it
)

// colours tell names apart, also to those who see few.
var colours = [...]string{"#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999", "#332288", "#88ccee"}

// canvas collects elements.
type canvas struct {
	b      bytes.Buffer
	height float64
}

func (c *canvas) element(format string, args ...any) {
	fmt.Fprintf(&c.b, format+"\n", args...)
}

func (c *canvas) text(x, y float64, anchor, s string, style ...string) {
	var escaped bytes.Buffer
	xml.EscapeText(&escaped, []byte(s)) //nolint:errcheck // a buffer takes everything
	c.element(`<text x="%s" y="%s" text-anchor="%s" %s>%s</text>`, num(x), num(y), anchor, strings.Join(style, " "), escaped.String())
}

func (c *canvas) title(s string) {
	c.text(16, 26, "start", s, `font-weight="bold"`, `font-size="15"`)
}

// legend lists names with their colours in lines from y on, and returns where it ends.
func (c *canvas) legend(y float64, names []string) float64 {
	x := 16.
	for i, name := range names {
		wide := 34 + textWidth(name)
		if x+wide > width && x > 16 {
			x, y = 16, y+legend
		}
		c.element(`<rect x="%s" y="%s" width="12" height="12" fill="%s"/>`, num(x), num(y-10), colours[i%len(colours)])
		c.text(x+18, y, "start", name)
		x += wide
	}
	return y + legend
}

// textWidth is about how wide a text is.
func textWidth(s string) float64 { return float64(len([]rune(s))) * font * 0.56 }

func (c *canvas) svg() []byte {
	var out bytes.Buffer
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%s" viewBox="0 0 %d %s" font-family="sans-serif" font-size="%d" fill="#222">`+"\n",
		width, num(c.height), width, num(c.height), font)
	fmt.Fprintf(&out, `<rect width="%d" height="%s" fill="#ffffff"/>`+"\n", width, num(c.height))
	out.Write(c.b.Bytes())
	out.WriteString("</svg>\n")
	return out.Bytes()
}

func num(f float64) string { return strconv.FormatFloat(math.Round(f*10)/10, 'f', -1, 64) }

// Value is how pictures and tables write a number.
func Value(f float64) string {
	switch {
	case f >= 100_000:
		return fmt.Sprintf("%.0fk", f/1000)
	case f >= 1000:
		return fmt.Sprintf("%d,%03d", int(f+0.5)/1000, int(f+0.5)%1000)
	case f >= 100:
		return fmt.Sprintf("%.0f", f)
	case f >= 10:
		return strings.TrimSuffix(fmt.Sprintf("%.1f", f), ".0")
	}
	return strings.TrimRight(strings.TrimRight(fmt.Sprintf("%.2f", f), "0"), ".")
}

// SVG draws the bars.
func (b Bars) SVG() []byte {
	const rowHeight, bar = 30., 20.
	var names []string
	label, most, note := 0., 0., 0.
	for _, r := range b.Rows {
		sum := 0.
		for _, p := range r.Parts {
			if !slices.Contains(names, p.Name) {
				names = append(names, p.Name)
			}
			sum += p.Value
		}
		label, most, note = max(label, textWidth(r.Label)), max(most, sum), max(note, textWidth(r.Note))
	}
	c := &canvas{}
	c.title(b.Title)
	y := c.legend(50, names)
	left := 16 + label + 10
	scale := (width - left - 16 - note - 6) / max(most, math.SmallestNonzeroFloat64)
	for _, r := range b.Rows {
		c.text(left-10, y+bar-5, "end", r.Label)
		x := left
		for _, p := range r.Parts {
			wide := p.Value * scale
			c.element(`<rect x="%s" y="%s" width="%s" height="%s" fill="%s"><title>%s %s %s</title></rect>`,
				num(x), num(y), num(wide), num(bar), colours[slices.Index(names, p.Name)%len(colours)], escape(p.Name), Value(p.Value), escape(b.Unit))
			x += wide
		}
		c.text(x+6, y+bar-5, "start", r.Note)
		y += rowHeight
	}
	c.height = y + 10
	return c.svg()
}

func escape(s string) string {
	var b bytes.Buffer
	xml.EscapeText(&b, []byte(s)) //nolint:errcheck // a buffer takes everything
	return b.String()
}

// frame is a box with axes. Functions put values onto them.
type frame struct {
	left, top, right, bottom float64
	x, y                     axis
}

type axis struct {
	low, high float64
	log       bool
}

// part is where a value is, 0 to 1.
func (a axis) part(v float64) float64 {
	if a.log {
		return math.Log(v/a.low) / math.Log(a.high/a.low)
	}
	return (v - a.low) / (a.high - a.low)
}

// logAxis holds all the values between full steps of 1, 2 and 5.
func logAxis(values []float64) axis {
	low, high := math.Inf(1), 0.
	for _, v := range values {
		if v > 0 {
			low, high = min(low, v), max(high, v)
		}
	}
	if high == 0 {
		low, high = 1, 1
	}
	a := axis{low: stepBelow(low), high: stepAbove(high), log: true}
	if a.low == a.high {
		a.high *= 2
	}
	return a
}

func stepBelow(v float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(v)))
	for _, s := range []float64{5, 2, 1} {
		if s*power <= v*(1+1e-9) {
			return s * power
		}
	}
	return power
}

func stepAbove(v float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(v)))
	for _, s := range []float64{1, 2, 5} {
		if s*power >= v*(1-1e-9) {
			return s * power
		}
	}
	return 10 * power
}

// ticks are where an axis has numbers.
func (a axis) ticks() []float64 {
	if !a.log {
		var all []float64
		for i := range 5 {
			all = append(all, a.low+(a.high-a.low)*float64(i)/4)
		}
		return all
	}
	steps := []float64{1, 2, 5}
	if a.high/a.low > 1000 {
		steps = steps[:1]
	}
	var all []float64
	for power := math.Pow(10, math.Floor(math.Log10(a.low))); power <= a.high; power *= 10 {
		for _, s := range steps {
			if v := s * power; v >= a.low*(1-1e-9) && v <= a.high*(1+1e-9) {
				all = append(all, v)
			}
		}
	}
	return all
}

func (f frame) at(x, y float64) (px, py float64) {
	return f.left + f.x.part(x)*(f.right-f.left), f.bottom - f.y.part(y)*(f.bottom-f.top)
}

func (c *canvas) frame(f frame, x, y string) {
	for _, v := range f.x.ticks() {
		px, _ := f.at(v, f.y.low)
		c.element(`<line x1="%s" y1="%s" x2="%s" y2="%s" stroke="#ddd"/>`, num(px), num(f.top), num(px), num(f.bottom))
		c.text(px, f.bottom+18, "middle", Value(v))
	}
	for _, v := range f.y.ticks() {
		_, py := f.at(f.x.low, v)
		c.element(`<line x1="%s" y1="%s" x2="%s" y2="%s" stroke="#ddd"/>`, num(f.left), num(py), num(f.right), num(py))
		c.text(f.left-6, py+4, "end", Value(v))
	}
	c.element(`<rect x="%s" y="%s" width="%s" height="%s" fill="none" stroke="#888"/>`, num(f.left), num(f.top), num(f.right-f.left), num(f.bottom-f.top))
	c.text((f.left+f.right)/2, f.bottom+38, "middle", x)
	c.text(16, f.top-8, "start", y)
	c.height = f.bottom + 50
}

const (
	plotHeight = 300
	visible    = 1 // distance
)

// SVG draws the lines.
func (l Lines) SVG() []byte {
	c := &canvas{}
	c.title(l.Title)
	var names []string
	var xs, ys []float64
	for _, s := range l.Series {
		names = append(names, s.Name)
		for _, p := range s.Points {
			xs, ys = append(xs, p.X), append(ys, p.Y, p.Low, p.High)
		}
	}
	top := c.legend(50, names) + 14
	f := frame{left: 70, top: top, right: width - 30, bottom: top + plotHeight, x: logAxis(xs), y: logAxis(ys)}
	c.frame(f, l.X, l.Y)
	for i, s := range l.Series {
		colour := colours[i%len(colours)]
		var path strings.Builder
		for _, p := range s.Points {
			if p.X <= 0 || p.Y <= 0 {
				continue
			}
			x, y := f.at(p.X, p.Y)
			fmt.Fprintf(&path, "%s,%s ", num(x), num(y))
			if p.Low > 0 && p.High > p.Low {
				_, low := f.at(p.X, p.Low)
				_, high := f.at(p.X, p.High)
				c.element(`<line x1="%s" y1="%s" x2="%s" y2="%s" stroke="%s" stroke-opacity="0.5"/>`, num(x), num(low), num(x), num(high), colour)
			}
			c.element(`<circle cx="%s" cy="%s" r="3.5" fill="%s"><title>%s: %s at %s</title></circle>`, num(x), num(y), colour, escape(s.Name), Value(p.Y), Value(p.X))
		}
		c.element(`<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`, strings.TrimSpace(path.String()), colour)
	}
	return c.svg()
}

// SVG draws the distribution.
func (d Distribution) SVG() []byte {
	c := &canvas{}
	c.title(d.Title)
	var names []string
	var xs []float64
	for _, s := range d.Samples {
		names = append(names, s.Name)
		xs = append(xs, s.Values...)
	}
	top := c.legend(50, names) + 14
	f := frame{left: 70, top: top, right: width - 30, bottom: top + plotHeight, x: logAxis(xs), y: axis{0, 100, false}}
	label, part := "% of all that are no longer", func(j, n int) float64 { return 100 * float64(j) / float64(n) }
	if d.Tail {
		least := 100.
		for _, s := range d.Samples {
			least = min(least, 100/float64(max(1, len(s.Values))))
		}
		f.y = logAxis([]float64{least, 100})
		// The last one ends at the bottom: a logarithmic axis has no zero.
		label, part = "% of all that are longer", func(j, n int) float64 { return max(f.y.low, 100*float64(n-j)/float64(n)) }
	}
	c.frame(f, d.X, label)
	for i, s := range d.Samples {
		values := slices.Sorted(slices.Values(s.Values))
		var path strings.Builder
		lastX, lastY := math.Inf(-1), 0.
		for j, v := range values {
			if v <= 0 {
				continue
			}
			x, y := f.at(v, part(j, len(values)))
			_, next := f.at(v, part(j+1, len(values)))
			if math.Abs(x-lastX)+math.Abs(next-lastY) < visible && j < len(values)-1 { // of thousands of values most
				continue
			}
			fmt.Fprintf(&path, "%s,%s %s,%s ", num(x), num(y), num(x), num(next))
			lastX, lastY = x, next
		}
		c.element(`<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`, strings.TrimSpace(path.String()), colours[i%len(colours)])
	}
	return c.svg()
}
