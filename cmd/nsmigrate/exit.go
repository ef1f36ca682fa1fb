package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/checkpoint/criu"
	"github.com/nsmigrate/nsmigrate/restore"
	"github.com/nsmigrate/nsmigrate/transfer/handover"
	"github.com/nsmigrate/nsmigrate/transfer/journal"
	"github.com/nsmigrate/nsmigrate/transfer/transport"
)

// status is an exit status. Each is a class of outcomes that a script wants to tell from the others.
type status int

const (
	statusOK            status = 0
	statusError         status = 1
	statusUsage         status = 2
	statusRefused       status = 3
	statusDumpFailed    status = 4
	statusSourceStuck   status = 5
	statusRestoreFailed status = 6
	statusLeftBehind    status = 7
	statusDamaged       status = 8
	statusNotReady      status = 9
	statusInDoubt       status = 10
	statusInterrupted   status = 130
)

// describe returns a status's name, for programs, and its meaning, for people.
func (s status) describe() (name, meaning string) {
	switch s {
	case statusOK:
		return "ok", "done"
	case statusUsage:
		return "usage", "wrong flags or arguments"
	case statusRefused:
		return "refused", "refused before anything was changed; all the reasons are listed"
	case statusDumpFailed:
		return "dump-failed", "the dump failed; the source is running as before"
	case statusSourceStuck:
		return "source-stuck", "the dump failed and the source could not be put back"
	case statusRestoreFailed:
		return "restore-failed", "the restore failed; nothing is left of it, the image is intact"
	case statusLeftBehind:
		return "left-behind", "something was left behind on this host; it is named"
	case statusDamaged:
		return "damaged-image", "the image is damaged or of a format that can't be read"
	case statusNotReady:
		return "not-ready", "this host can't dump and restore"
	case statusInDoubt:
		return "in-doubt", "the service is frozen and mute, because it is not known whether it lives on the destination"
	case statusInterrupted:
		return "interrupted", "interrupted by a signal; what was begun has been put back"
	}
	return "error", "any other error"
}

// statusOf is where errors become exit statuses. What the user must know first decides: a service that
// stands still or debris on the host comes before the cause.
func statusOf(err error) status {
	var (
		usage       *usageError
		refused     *checkpoint.RefusedError
		sentAway    *transport.RefusedError
		dump        *checkpoint.FailedError
		interrupted *interruptedError
		noCRIU      *criu.NotFoundError
		oldCRIU     *criu.TooOldError
		notReady    *notReadyError
		restoring   *restore.Error
		leftBehind  *leftBehindError
		inDoubt     *handover.InDoubtError
		stuck       *handover.StuckError
		handing     *handover.FailedError
	)
	switch {
	case err == nil:
		return statusOK
	case errors.As(err, &inDoubt):
		return statusInDoubt
	case errors.As(err, &handing) && handing.Stuck != nil && handing.Role == journal.Source:
		return statusSourceStuck
	case errors.As(err, &handing) && handing.Stuck != nil, errors.As(err, &stuck):
		return statusLeftBehind
	case errors.As(err, &dump) && dump.Stuck != nil:
		return statusSourceStuck
	case errors.As(err, &restoring) && restoring.Leftover != nil, errors.As(err, &leftBehind):
		return statusLeftBehind
	case errors.As(err, &interrupted):
		return statusInterrupted
	case errors.As(err, &usage):
		return statusUsage
	case errors.As(err, &refused), errors.As(err, &sentAway), errors.As(err, &noCRIU), errors.As(err, &oldCRIU):
		return statusRefused
	case errors.Is(err, checkpoint.ErrDamaged), errors.Is(err, checkpoint.ErrFormat):
		return statusDamaged
	case handing != nil && handing.Role == journal.Destination:
		return statusRestoreFailed
	case dump != nil, handing != nil:
		return statusDumpFailed
	case restoring != nil:
		return statusRestoreFailed
	case errors.As(err, &notReady):
		return statusNotReady
	}
	return statusError
}

// exitHelp lists exit statuses for --help.
func exitHelp(statuses ...status) string {
	all := append([]status{statusOK, statusError, statusUsage}, statuses...)
	slices.Sort(all)
	var b strings.Builder
	for _, s := range all {
		_, meaning := s.describe()
		fmt.Fprintf(&b, "  %3d  %s\n", s, meaning)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// leftBehindError says that an operation did what it was for, and that some of its clean-up failed.
type leftBehindError struct{ err error }

func (e *leftBehindError) Error() string { return e.err.Error() }

func (e *leftBehindError) Unwrap() error { return e.err }

// usageError says that a command was called in a wrong way.
type usageError struct {
	err  error
	hint string
}

func usagef(hint, format string, args ...any) error {
	return &usageError{err: fmt.Errorf(format, args...), hint: hint}
}

func (e *usageError) Error() string { return e.err.Error() }

func (e *usageError) Unwrap() error { return e.err }

// Remedy says what the user can do.
func (e *usageError) Remedy() string { return e.hint }

// hintedError adds to an error what the user can do about it.
type hintedError struct {
	err  error
	hint string
}

func (e *hintedError) Error() string { return e.err.Error() }

func (e *hintedError) Unwrap() error { return e.err }

// Remedy says what the user can do.
func (e *hintedError) Remedy() string { return e.hint }
