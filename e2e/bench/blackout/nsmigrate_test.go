package blackout

import (
	"reflect"
	"testing"
	"time"
)

func TestParseReport(t *testing.T) {
	const text = `{"phases": [{"name": "build", "duration": 5}, {"name": "freeze", "duration": 3000000, "blackout": true},
		{"name": "handover", "duration": 1000000, "blackout": true}],
		"destination": {"phases": [{"name": "preflight", "duration": 7}, {"name": "restore trees", "duration": 2000000}]},
		"criu_statistics": [{"frozen_time": 2500, "memdump_time": 100}, {"frozen_time": 500}], "stream": {"wire_sent": 4096}}`
	got, err := parseReport([]byte(text))
	want := Trace{
		Phases: []Phase{{"freeze", 3 * time.Millisecond}, {"handover", time.Millisecond}},
		There:  []Phase{{"restore trees", 2 * time.Millisecond}},
		CRIU:   CRIU{Frozen: 3 * time.Millisecond, Restore: 2 * time.Millisecond, MemDump: 100 * time.Microsecond},
		Bytes:  4096,
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if _, err := parseReport([]byte("killed")); err == nil {
		t.Error("anything passes for a report")
	}
}
