package blackout

import (
	"math"
	"testing"
)

func TestSample(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(100 - i)
	}
	for _, x := range []struct {
		name                     string
		values                   []float64
		median, p99, least, most float64
	}{
		{"one", []float64{3}, 3, 3, 3, 3},
		{"two", []float64{4, 1}, 2.5, 4, 1, 4},
		{"three", []float64{9, 1, 2}, 2, 9, 1, 9},
		{"a hundred", hundred, 50.5, 99, 1, 100},
	} {
		s := sampleOf(x.values)
		if s.median() != x.median || s.at(0.99) != x.p99 || s.min() != x.least || s.max() != x.most {
			t.Errorf("%s: median %v, p99 %v, min %v, max %v", x.name, s.median(), s.at(0.99), s.min(), s.max())
		}
	}
	if hundred[0] != 100 {
		t.Error("the caller's values were sorted")
	}
	if none := sampleOf(nil); !math.IsNaN(none.median()) || !math.IsNaN(none.max()) {
		t.Error("nothing has a median")
	}
}

func TestRatio(t *testing.T) {
	got := ratioOf(sampleOf([]float64{1, 2, 3, 4}), sampleOf([]float64{20, 40, 60, 80}))
	if want := (ratio{middle: 20, low: 20. / 3, high: 60}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}
