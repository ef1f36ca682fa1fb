package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/nsmigrate/nsmigrate/transfer/journal"
	"github.com/nsmigrate/nsmigrate/transfer/offline"
)

// operation is a dump or a restore under way, with the guard that brings it to its end should this process be killed.
type operation struct {
	*offline.Operation
	guard *guard
}

// begin begins a dump or a restore. Its guard writes to the same standard streams as this process.
func (u *ui) begin(stateDir string, role journal.Role, a offline.About) (*operation, error) {
	id := journal.NewID()
	g, err := startGuardOf(stateDir, id, role, fileOr(u.out), fileOr(u.err)) // before there is anything to be put right
	if err != nil {
		return nil, err
	}
	op, err := offline.Begin(journal.Dir{Path: stateDir}, id, role, a)
	if err != nil {
		g.Dismiss()
		return nil, &hintedError{err: err, hint: "it keeps what it takes to put things back if nsmigrate is killed; --state-dir names another place"}
	}
	return &operation{Operation: op, guard: g}, nil
}

func fileOr(w io.Writer) *os.File {
	f, _ := w.(*os.File)
	return f
}

// end ends it, for good or, if something is left to be done, for `nsmigrate recover`.
func (o *operation) end(err error, leftover bool) error {
	defer o.guard.Dismiss()
	if !leftover {
		return errors.Join(err, o.Finish())
	}
	hint := "`nsmigrate recover " + o.ID() + "` tries again"
	return &hintedError{err: errors.Join(err, o.Leave()), hint: hint}
}

// absolute is a path for a process with another working directory.
func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}
