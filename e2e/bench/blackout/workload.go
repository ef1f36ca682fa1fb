package blackout

import (
	"encoding/json"
	"fmt"
	"slices"
)

const (
	messageSize = 32    // bytes
	messageRate = 5_000 // a second, of all connections but the first, which has one every millisecond
	fewClients  = 10    // connections of which each is told of
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
	Rate        int    `json:"rate,omitempty"` // messages a second of all connections but the first; 0 is the usual one
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

// pick is a scene among all.
type pick struct {
	Workload
	rounds int  // as many as there is time for, and at most
	least  int  // also if there is no time
	quick  int  // in place of rounds; 0 leaves it out
	main   bool // it stands in the main table, and the others in those of curves
	turns  []turn
}

// turn is a mover that takes part in every so many-th round of a scene: those who take a second or ten for what others do in
// milliseconds have fewer rounds than those.
type turn struct {
	mover string
	every int
}

// Who is measured with what.
var (
	everybody = []turn{
		{"nsmigrate tls", 1},
		{"nsmigrate ssh", 1},
		{"nsmigrate unix", 3},
		{alone, 1},
		{"criu, own lock", 5},
		{"runc", 3},
		{"crun", 3},
		{"podman", 5},
	}
	fewPeers   = []turn{{"nsmigrate tls", 1}, {"nsmigrate ssh", 1}, {alone, 3}, {"runc", 6}, {"podman", 10}}
	containers = []turn{{"nsmigrate tls", 1}, {alone, 1}, {"runc", 2}, {"podman", 3}}
	theQuick   = []turn{{"nsmigrate tls", 1}, {alone, 1}}
)

// picks are what is measured, in this order.
func picks() []pick {
	all := []pick{
		{Workload{Name: "1 connection", Connections: 1}, 30, 30, 6, true, everybody},
		{Workload{Name: "10 connections", Connections: 10}, 30, 30, 4, true, fewPeers},
		{Workload{Name: "100 connections", Connections: 100}, 6, 2, 0, true, theQuick},
		{Workload{Name: "1,000 connections", Connections: 1000}, 10, 3, 2, true, containers},
		{Workload{Name: "4,000 connections", Connections: 4000, Workers: 2}, 2, 1, 0, false, theQuick},
		{Workload{Name: "10,000 connections", Connections: 10_000, Workers: 5}, 4, 2, 0, true, theQuick},
	}
	for _, n := range []int{10, 1000, 10_000, 100_000} {
		all = append(all, pick{Workload{Name: thousands(n) + " routes", Connections: 1, Routes: n}, 3, 1, 0, false, theQuick})
	}
	for _, n := range []int{10, 100, 500} {
		all = append(all, pick{Workload{Name: fmt.Sprintf("%d processes", n), Connections: 1, Idle: n - 1}, 3, 1, 0, false, theQuick})
	}
	return append(all,
		pick{Workload{Name: "8 MB", Connections: 1, MemoryMB: 8}, 5, 1, 0, false, theQuick},
		pick{Workload{Name: "64 MB", Connections: 1, MemoryMB: 64}, 5, 1, 2, true, containers},
		pick{Workload{Name: "64 MB, compressible", Connections: 1, MemoryMB: 64, Fill: Text}, 3, 1, 0, false, theQuick},
		pick{Workload{Name: "64 MB of zeros", Connections: 1, MemoryMB: 64, Fill: Zero}, 3, 1, 0, false, theQuick},
		pick{Workload{Name: "512 MB", Connections: 1, MemoryMB: 512}, 3, 1, 0, true, containers},
		pick{Workload{Name: "512 MB, compressible", Connections: 1, MemoryMB: 512, Fill: Text}, 2, 1, 0, false, theQuick},
		pick{Workload{Name: "512 MB of zeros", Connections: 1, MemoryMB: 512, Fill: Zero}, 2, 1, 0, false, theQuick},
		pick{Workload{Name: "4 GB", Connections: 1, MemoryMB: 4096}, 2, 1, 0, true, theQuick},
		pick{Workload{Name: "4 GB, compressible", Connections: 1, MemoryMB: 4096, Fill: Text}, 1, 1, 0, false, theQuick},
		pick{Workload{Name: "4 GB of zeros", Connections: 1, MemoryMB: 4096, Fill: Zero}, 1, 1, 0, false, theQuick},
	)
}

// isMain says whether a scene stands in the main table.
func isMain(scene string) bool {
	return slices.ContainsFunc(picks(), func(p pick) bool { return p.Name == scene && p.main })
}

// small services move so quickly that many rounds don't matter.
func (w Workload) small() bool {
	return w.Connections <= 10 && w.MemoryMB == 0 && w.Routes == 0 && w.Idle == 0
}

// heavy services do not live beside others.
func (w Workload) heavy() bool { return w.MemoryMB > 256 || w.Connections > 2000 }

// thousands writes a number as people do.
func thousands(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%d,%03d", n/1000, n%1000)
}

// scenes are the picks that somebody asked for.
func scenes(o Options) []Scene {
	var chosen []Scene
	for _, p := range picks() {
		s := Scene{Workload: p.Workload, Rounds: p.rounds, Least: p.least, Turns: p.turns}
		if o.Quick {
			s.Rounds = p.quick
		}
		if s.Rounds > 0 && o.Rounds > 0 {
			if !s.small() {
				s.Rounds = min(s.Rounds, o.Rounds)
			} else {
				s.Rounds = o.Rounds
			}
		}
		s.Least = min(s.Least, s.Rounds)
		s.Turns = slices.DeleteFunc(slices.Clone(s.Turns), func(t turn) bool { return o.Movers != nil && !o.Movers.MatchString(t.mover) })
		if s.Rounds > 0 && len(s.Turns) > 0 && (o.Only == nil || o.Only.MatchString(s.Name)) {
			chosen = append(chosen, s)
		}
	}
	return chosen
}
