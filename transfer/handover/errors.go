package handover

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/transfer/journal"
)

// FailedError says that a migration failed, and where that leaves this host.
type FailedError struct {
	ID    string
	Role  journal.Role
	Phase string // in which it failed, e.g. "dump"
	State State  // Idle, Offered or Agreed if nothing was changed on this host; else Resumed or Aborted
	Err   error  // why; a *PeerError if the other side said so
	Stuck error  // why this host could not be put back; nil if it was
}

func (e *FailedError) Error() string {
	s := fmt.Sprintf("migrate: %s: %v", e.Phase, e.Err)
	switch {
	case e.Stuck != nil && e.Role == journal.Source:
		s += fmt.Sprintf("\nthe service could not be resumed here: %v", e.Stuck) + recoverHint(e.ID)
	case e.Stuck != nil:
		s += fmt.Sprintf("\nnot everything could be removed again from this host: %v", e.Stuck) + recoverHint(e.ID)
	case e.Role == journal.Source && e.State == Resumed:
		s += "\nthe service is running on this host as before"
	case e.Role == journal.Source:
		s += "\nthe service was not touched"
	case e.State == Aborted:
		s += "\nnothing is left of it on this host"
	}
	return s
}

// Unwrap returns the cause.
func (e *FailedError) Unwrap() error { return e.Err }

func recoverHint(id string) string {
	return "\n  hint: see to that, then run: nsmigrate recover " + id
}

// InDoubtError says that the service is frozen and mute on the source, because it is not known whether it lives on
// the destination. Nothing is lost: it is known as soon as the destination answers, or a person has looked.
type InDoubtError struct {
	ID     string
	Since  time.Time // when the source released it
	Answer Verdict   // the last answer; "" if there was none
	Err    error     // why there was none, or what the destination said
}

func (e *InDoubtError) Error() string {
	var s strings.Builder
	s.WriteString("migrate: it is not known whether the service lives on the destination: ")
	switch e.Answer {
	case VerdictUnknown:
		s.WriteString("the destination knows nothing of this migration")
	case VerdictLost:
		s.WriteString("it went live there, and then that host was restarted")
	case VerdictBusy:
		s.WriteString("the destination is still busy with it")
	case VerdictStuck:
		s.WriteString("the destination can't bring it to life")
	default:
		s.WriteString("the destination can't be asked")
	}
	if e.Err != nil {
		fmt.Fprintf(&s, ": %v", e.Err)
	}
	fmt.Fprintf(&s, "\nthe copy here is frozen and mute since %s, and stays so", e.Since.Format(time.RFC3339))
	hint := "when the destination can be reached, run: nsmigrate recover " + e.ID
	switch e.Answer {
	case VerdictStuck:
		hint = "see to that on the destination, then run: nsmigrate recover " + e.ID + " (there, and here)"
	case VerdictUnknown, VerdictLost:
		hint = "look at the destination, then decide on this host"
	}
	fmt.Fprintf(&s, "\n  hint: %s\n"+
		"        if you are sure that the service lives there: nsmigrate recover --force-live %s (else no copy is left)\n"+
		"        if you are sure that it doesn't and never will: nsmigrate recover --force-abort %s (else two copies live)",
		hint, e.ID, e.ID)
	return s.String()
}

// Unwrap returns the cause.
func (e *InDoubtError) Unwrap() error { return e.Err }

// StuckError says that it is decided where the service lives, but what follows from it can't be done on this host. The
// journal stays, and recovery tries again.
type StuckError struct {
	ID    string
	State State // Live, Aborted, Ended or Resumed
	Lives bool  // it is Live and does live; only what comes after that is missing
	Err   error
}

func (e *StuckError) Error() string {
	s := map[State]string{
		Live:    "the service is to live on this host, but could not be brought to life",
		Aborted: "not everything could be removed again from this host",
		Ended:   "the service has moved, but the frozen copy could not be removed from this host",
		Resumed: "the service could not be resumed on this host",
	}[e.State]
	if e.Lives {
		s = "the service lives on this host, but not all is done that belongs to that"
	}
	return fmt.Sprintf("migrate: %s: %v", s, e.Err) + recoverHint(e.ID)
}

// Unwrap returns the cause.
func (e *StuckError) Unwrap() error { return e.Err }

// PeerError is the other side's reason to give a migration up.
type PeerError struct {
	Role     journal.Role         // of the other side
	Reason   string               // its phase and its error
	Problems []checkpoint.Problem // which Reason names, for programs
}

func (e *PeerError) Error() string {
	return fmt.Sprintf("the %s gave up: %s", e.Role, e.Reason)
}

// ProtocolError says that the other side said something that makes no sense, or not now.
type ProtocolError struct {
	Reason string
}

func (e *ProtocolError) Error() string { return "the other side broke the protocol: " + e.Reason }

// errLost is why a connection can't be used any more, if there is no other reason.
var errLost = errors.New("the connection was lost")

// other returns the role of the other side.
func other(role journal.Role) journal.Role {
	if role == journal.Source {
		return journal.Destination
	}
	return journal.Source
}
