package blackout

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
)

// A flow of 8 Gbit/s before the move, 2 in the first second after it, and 4 later.
func TestFlow(t *testing.T) {
	var intervals []string
	for i := range 60 {
		at, rate := float64(i)/10, 8.
		switch {
		case at < 0.5: // the start
			rate = 1
		case at >= 2 && at < 3:
			rate = 2
		case at >= 3:
			rate = 4
		}
		intervals = append(intervals, fmt.Sprintf(`{"sum": {"start": %v, "end": %v, "bits_per_second": %v}}`, at, at+0.1, rate*1e9))
	}
	f, err := parseFlow([]byte(`{"intervals": [` + strings.Join(intervals, ",") + `]}`))
	if err != nil {
		t.Fatal(err)
	}
	got := f.rates(1900*time.Millisecond, 2*time.Second)
	for name, x := range map[string][2]float64{"before": {got.before, 8}, "first": {got.first, 2}, "later": {got.later, 4}} {
		if math.Abs(x[0]-x[1]) > 1e-6 {
			t.Errorf("%s: %v, want %v", name, x[0], x[1])
		}
	}
	for _, text := range []string{`{"error": "unable to connect"}`, ""} {
		if _, err := parseFlow([]byte(text)); err == nil {
			t.Errorf("%q passes for a flow", text)
		}
	}
	if got := (flow{}).rates(0, 0); got != (rates{}) {
		t.Errorf("of nothing: %+v", got)
	}
}

func TestKinds(t *testing.T) {
	const text = `0 0 [::ffff:10.77.0.100]:5201 [::ffff:10.77.0.10]:4711
	 ts sack cubic wscale:7,7 rto:204 rtt:0.05/0.02 ato:40 mss:1448 pmtu:1500 rcvmss:536 cwnd:10
0 0 [::ffff:10.77.0.100]:5201 [::ffff:10.77.0.10]:4713
	 ts sack cubic wscale:7,7 rto:204 rtt:1/2 mss:1448 pmtu:1500 cwnd:4
`
	if got, want := parseKinds(text), "cubic wscale:7,7 mss:1448"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := parseKinds(""); got != "" {
		t.Errorf("of nothing: %q", got)
	}
}
