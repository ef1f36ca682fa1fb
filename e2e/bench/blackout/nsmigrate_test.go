package blackout

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestParseReport(t *testing.T) {
	const text = `{"phases": [{"name": "build", "duration": 5}, {"name": "freeze", "duration": 3000000, "blackout": true},
		{"name": "handover", "duration": 1000000, "blackout": true}],
		"dump_phases": [{"name": "stop", "duration": 5}, {"name": "freeze", "duration": 400000}, {"name": "criu", "duration": 600000}],
		"destination": {"phases": [{"name": "preflight", "duration": 7}, {"name": "restore trees", "duration": 2000000}]},
		"criu_statistics": [{"frozen_time": 2500, "memdump_time": 100}, {"frozen_time": 500}], "stream": {"wire_sent": 4096}}`
	got, err := parseReport([]byte(text))
	want := Trace{
		Phases: []Phase{{"freeze", 3 * time.Millisecond}, {"handover", time.Millisecond}},
		There:  []Phase{{"restore trees", 2 * time.Millisecond}},
		CRIU:   CRIU{Frozen: 3 * time.Millisecond, Restore: 2 * time.Millisecond, MemDump: 100 * time.Microsecond, Work: 3 * time.Millisecond},
		Bytes:  4096,
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if _, err := parseReport([]byte("killed")); err == nil {
		t.Error("anything passes for a report")
	}
}

func TestAwaitLive(t *testing.T) {
	const begun = `{"event":"status","time":"2026-01-02T03:04:05.1Z","phase":"freeze"}` + "\n"
	const live = `{"event":"status","time":"2026-01-02T03:04:05.2Z","phase":"end"}` + "\n"
	want := time.Date(2026, 1, 2, 3, 4, 5, 200_000_000, time.UTC)
	if got := awaitLive(strings.NewReader(begun + "noise\n" + live + begun)); !got.Equal(want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := awaitLive(strings.NewReader(begun)); !got.IsZero() {
		t.Errorf("a migration that failed was live at %v", got)
	}
}
