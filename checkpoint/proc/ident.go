package proc

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
)

// Ident names one process for good: ids are used again, but not with the same start time.
type Ident struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since the host's boot (proc_pid_stat(5), field 22)
}

// Ident returns the identity of a process. The error is [ErrGone] if there is none.
func (d Dir) Ident(pid int) (Ident, error) {
	b, err := os.ReadFile(d.path(pid, "stat"))
	if err != nil {
		return Ident{}, gone(pid, err)
	}
	// The command's name, in parentheses, may hold anything; the third field follows it.
	const start = 22 - 3
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) <= start {
		return Ident{}, fmt.Errorf("stat: %w %q", ErrMalformed, b)
	}
	ticks, err := strconv.ParseUint(string(fields[start]), 10, 64)
	if err != nil {
		return Ident{}, fmt.Errorf("stat: %w %q", ErrMalformed, b)
	}
	return Ident{PID: pid, Start: ticks}, nil
}

// Alive reports whether the process still is there, be it as a zombie.
func (d Dir) Alive(id Ident) bool {
	now, err := d.Ident(id.PID)
	return err == nil && now == id
}
