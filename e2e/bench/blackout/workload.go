package blackout

import "encoding/json"

const (
	messageSize = 32    // bytes
	messageRate = 5_000 // a second, of all connections but the first, which has one every millisecond
)

// Workload is what a service has when it is moved.
type Workload struct {
	Name        string `json:"name"`
	Connections int    `json:"connections"`
	Workers     int    `json:"workers,omitempty"` // processes that connections are spread over
	Idle        int    `json:"idle,omitempty"`    // processes that do nothing
	MemoryMB    int    `json:"memory_mb,omitempty"`
	Fill        Fill   `json:"fill,omitempty"`
	Routes      int    `json:"routes,omitempty"`
}

// Fill is what memory holds.
type Fill string

const (
	Zero  Fill = "zero"
	Text  Fill = "text"  // what a compressor likes
	Noise Fill = "noise" // what it can do nothing with
)

func (w Workload) fill() Fill {
	if w.Fill == "" {
		return Noise
	}
	return w.Fill
}

func jsonText(v any) (string, error) {
	b, err := json.Marshal(v)
	return string(b), err
}

// scenes are what is measured, in this order.
func scenes(o Options) []Scene {
	all := []Scene{
		{Workload: Workload{Name: "1 connection", Connections: 1}, Rounds: 30},
		{Workload: Workload{Name: "10 connections", Connections: 10}, Rounds: 30},
		{Workload: Workload{Name: "1,000 connections", Connections: 1000}, Rounds: 10},
	}
	var chosen []Scene
	for _, s := range all {
		if o.Only != nil && !o.Only.MatchString(s.Name) {
			continue
		}
		if o.Quick {
			s.Rounds = min(s.Rounds, 5)
		}
		if o.Rounds > 0 {
			s.Rounds = o.Rounds
		}
		chosen = append(chosen, s)
	}
	return chosen
}
