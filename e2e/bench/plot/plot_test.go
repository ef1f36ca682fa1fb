package plot

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Every picture is XML that has what it was asked for, and nothing lies outside of it.
func TestPictures(t *testing.T) {
	for name, x := range map[string]struct {
		svg  []byte
		want []string
	}{
		"bars": {
			Bars{Title: "a < b", Unit: "ms", Rows: []Row{
				{Label: "one", Parts: []Part{{"freeze", 3}, {"copy", 1}}, Note: "4 ms"}, {Label: "two", Parts: []Part{{"copy", 400}}, Note: "400 ms"},
			}}.SVG(), []string{"a &lt; b", ">freeze<", ">copy<", ">two<", "400 ms"},
		},
		"no bars": {Bars{Title: "none"}.SVG(), []string{"none"}},
		"lines": {
			Lines{Title: "lines", X: "connections", Y: "ms", Series: []Series{
				{"ours", []Point{{1, 10, 9, 12}, {1000, 60, 55, 70}, {10000, 700, 600, 800}}}, {"theirs", []Point{{1, 30, 0, 0}, {0, 0, 0, 0}}},
			}}.SVG(), []string{">ours<", ">theirs<", ">connections<", ">10,000<", "polyline"},
		},
		"no lines": {Lines{Title: "none", Series: []Series{{Name: "empty"}}}.SVG(), []string{">empty<"}},
		"distribution": {
			Distribution{Title: "waits", X: "ms", Samples: []Sample{{"ours", []float64{12, 8, 9, 8, 0}}}}.SVG(), []string{">ours<", ">100<", "polyline"},
		},
		"tail": {
			Distribution{Title: "waits", X: "ms", Tail: true, Samples: []Sample{{"ours", []float64{12, 8, 9, 8, 0.1}}}}.SVG(), []string{">20<", "longer<", "polyline"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, want := range x.want {
				if !bytes.Contains(x.svg, []byte(want)) {
					t.Errorf("there is no %q", want)
				}
			}
			inside(t, x.svg)
		})
	}
}

// inside demands that the picture is well-formed and that no coordinate is outside of its box.
func inside(t *testing.T, svg []byte) {
	t.Helper()
	height := math.Inf(1)
	for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		start, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		for _, a := range start.Attr {
			var limit float64
			switch a.Name.Local {
			case "x", "x1", "x2", "cx", "width":
				limit = width
			case "y", "y1", "y2", "cy", "height":
				limit = height
			case "points":
				for p := range strings.FieldsSeq(a.Value) {
					x, y, _ := strings.Cut(p, ",")
					between(t, x, width)
					between(t, y, height)
				}
				continue
			default:
				continue
			}
			v := between(t, a.Value, limit)
			if start.Name.Local == "svg" && a.Name.Local == "height" {
				height = v
			}
		}
	}
}

func between(t *testing.T, s string, limit float64) float64 {
	t.Helper()
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || v < 0 || v > limit || math.IsNaN(v) {
		t.Errorf("%q is not between 0 and %v: %v", s, limit, err)
	}
	return v
}

func TestAxis(t *testing.T) {
	a := logAxis([]float64{0, 8, 4096})
	if a.low != 5 || a.high != 5000 {
		t.Errorf("from %v to %v", a.low, a.high)
	}
	if got, want := a.ticks(), []float64{5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000}; !slices.Equal(got, want) {
		t.Errorf("ticks at %v, want %v", got, want)
	}
	if a.part(5) != 0 || a.part(5000) != 1 {
		t.Errorf("its ends are at %v and %v", a.part(5), a.part(5000))
	}
	if one := logAxis([]float64{1}); one.low >= one.high {
		t.Errorf("of one value: %+v", one)
	}
}

func TestValue(t *testing.T) {
	for f, want := range map[float64]string{0.5: "0.5", 3: "3", 9.87: "9.87", 12.3: "12.3", 40: "40", 123.4: "123", 1234: "1,234", 10000: "10,000", 250000: "250k"} {
		if got := Value(f); got != want {
			t.Errorf("%v: %q, want %q", f, got, want)
		}
	}
}
