package blackout

import (
	"math"
	"slices"
)

// sample is what was measured in several rounds, in order of size.
type sample []float64

func sampleOf(values []float64) sample {
	s := slices.Clone(values)
	slices.Sort(s)
	return s
}

// at is the value that a part of all, 0 to 1, does not exceed. Of nothing it is NaN.
func (s sample) at(part float64) float64 {
	if len(s) == 0 {
		return math.NaN()
	}
	return s[max(0, int(math.Ceil(part*float64(len(s))))-1)]
}

func (s sample) median() float64 {
	if len(s) == 0 || len(s)%2 == 1 {
		return s.at(0.5)
	}
	return (s[len(s)/2-1] + s[len(s)/2]) / 2
}

func (s sample) min() float64 { return s.at(0) }
func (s sample) max() float64 { return s.at(1) }

// ratio says how many times larger b is than a: of the medians, and between which bounds if either of them is taken at
// its quartiles.
type ratio struct{ middle, low, high float64 }

func ratioOf(a, b sample) ratio {
	const lower, upper = 0.25, 0.75
	return ratio{b.median() / a.median(), b.at(lower) / a.at(upper), b.at(upper) / a.at(lower)}
}
