package main

import (
	"encoding/json"
	"errors"
	"os"
	"time"

	"github.com/nsmigrate/nsmigrate/checkpoint"
)

// event is one line of --progress-fd. The names of the status are QEMU's.
type event struct {
	Event  string    `json:"event"` // "status" or "progress"
	Time   time.Time `json:"time"`
	Status string    `json:"status,omitempty"` // setup, active, pre-switchover, device
	Phase  string    `json:"phase,omitempty"`
	Done   int64     `json:"done,omitempty"`  // bytes
	Total  int64     `json:"total,omitempty"` // bytes; 0 is not known
}

// events tells a program how a migration goes on. A reader that is slow loses progress, never a status: the descriptor
// is written by a goroutine of its own, since nothing may hold up an operation that has a service frozen.
type events struct {
	next  checkpoint.Progress // told too; may be nil
	phase string
	lines chan event
	gone  chan struct{}
}

func newEvents(f *os.File, next checkpoint.Progress) *events {
	e := &events{next: next, lines: make(chan event, 256), gone: make(chan struct{})}
	go func() {
		defer close(e.gone)
		defer f.Close()
		enc := json.NewEncoder(f)
		for line := range e.lines {
			if enc.Encode(line) != nil {
				for range e.lines { // nobody reads any more
				}
				return
			}
		}
	}()
	return e
}

// statusOfPhase is what QEMU calls the time of a phase.
func statusOfPhase(phase string) string {
	switch phase {
	case "connect", "preflight", "survey", "build":
		return "setup"
	case "precopy":
		return "active"
	case "freeze", "restore":
		return "pre-switchover"
	}
	return "device"
}

// Phase is [checkpoint.Progress].
func (e *events) Phase(name string) {
	e.phase = name
	e.send(event{Event: "status", Status: statusOfPhase(name), Phase: name})
	if e.next != nil {
		e.next.Phase(name)
	}
}

// Bytes is [checkpoint.Progress].
func (e *events) Bytes(done, total int64) {
	e.send(event{Event: "progress", Phase: e.phase, Done: done, Total: total})
	if e.next != nil {
		e.next.Bytes(done, total)
	}
}

func (e *events) send(v event) {
	v.Time = time.Now().UTC()
	select {
	case e.lines <- v:
	default:
	}
}

// finish tells how it ended, and waits until all is written.
func (e *events) finish(status string) {
	e.lines <- event{Event: "status", Time: time.Now().UTC(), Status: status}
	close(e.lines)
	<-e.gone
}

// eventStatus is what QEMU calls the end of a migration.
func eventStatus(err error) string {
	_, interrupted := errors.AsType[*interruptedError](err)
	switch status := statusOf(err); {
	case status == statusOK, status == statusLeftBehind:
		return "completed"
	case interrupted:
		return "cancelled"
	}
	return "failed"
}
