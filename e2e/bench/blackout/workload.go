package blackout

import (
	"encoding/json"
	"fmt"
)

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

// pick is a scene among all: how many rounds it has, and with which movers.
type pick struct {
	Workload
	rounds, quick int // 0 leaves it out
	movers        []string
}

// Who is measured with what. Those who take a second or ten for what others do in milliseconds are left out where there is
// nothing new to see.
var (
	everybody  []string
	containers = []string{"nsmigrate tls", "criu", "runc", "podman"}
	theQuick   = []string{"nsmigrate tls", "criu"}
	itself     = []string{"nsmigrate tls"} // criu alone leaves the network to others
)

// picks are what is measured, in this order.
func picks() []pick {
	all := []pick{
		{Workload{Name: "1 connection", Connections: 1}, 30, 3, everybody},
		{Workload{Name: "10 connections", Connections: 10}, 30, 0, []string{"nsmigrate tls", "nsmigrate ssh", "criu"}},
		{Workload{Name: "100 connections", Connections: 100}, 5, 0, theQuick},
		{Workload{Name: "1,000 connections", Connections: 1000}, 8, 3, containers},
		{Workload{Name: "4,000 connections", Connections: 4000, Workers: 2}, 3, 0, theQuick},
		{Workload{Name: "10,000 connections", Connections: 10_000, Workers: 5}, 3, 0, theQuick},
		{Workload{Name: "8 MB", Connections: 1, MemoryMB: 8}, 5, 0, theQuick},
		{Workload{Name: "64 MB", Connections: 1, MemoryMB: 64}, 5, 3, containers},
		{Workload{Name: "512 MB", Connections: 1, MemoryMB: 512}, 3, 0, containers},
		{Workload{Name: "512 MB, compressible", Connections: 1, MemoryMB: 512, Fill: Text}, 2, 0, theQuick},
		{Workload{Name: "4 GB", Connections: 1, MemoryMB: 4096}, 2, 0, theQuick},
		{Workload{Name: "4 GB, compressible", Connections: 1, MemoryMB: 4096, Fill: Text}, 2, 0, theQuick},
		{Workload{Name: "4 GB of zeros", Connections: 1, MemoryMB: 4096, Fill: Zero}, 1, 0, theQuick},
	}
	for _, n := range []int{10, 1000, 10_000, 100_000} {
		all = append(all, pick{Workload{Name: thousands(n) + " routes", Connections: 1, Routes: n}, 3, 0, itself})
	}
	for _, n := range []int{10, 100, 500} {
		all = append(all, pick{Workload{Name: fmt.Sprintf("%d processes", n), Connections: 1, Idle: n - 1}, 3, 0, theQuick})
	}
	return all
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
		s := Scene{Workload: p.Workload, Rounds: p.rounds, Movers: p.movers}
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
		if s.Rounds > 0 && (o.Only == nil || o.Only.MatchString(s.Name)) {
			chosen = append(chosen, s)
		}
	}
	return chosen
}
