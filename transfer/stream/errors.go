package stream

import (
	"errors"
	"fmt"
	"time"
)

// What can be wrong with a connection. Errors of a Conn wrap one of these, a *VersionError, a *GreetingError, the
// cause of the context that ended, or the error of the connection below. None but ErrCanceled can be recovered from.
var (
	ErrDamaged   = errors.New("bytes were altered on the way")
	ErrTruncated = errors.New("the connection ended in the middle")
	ErrOrder     = errors.New("frames were lost, repeated or reordered on the way")
	ErrTooLarge  = errors.New("the other side sent something larger than is allowed")
	ErrProtocol  = errors.New("the other side broke the protocol")
	ErrFlood     = errors.New("the other side sends pings without end")
	ErrStalled   = errors.New("the connection stalled")
	ErrSlow      = errors.New("the other side sends slower than is allowed")
	ErrClosed    = errors.New("the connection was closed")

	// ErrCanceled ends an entry that its sender could not read to the end. The connection can be used on.
	ErrCanceled = errors.New("the sender gave the entry up")
)

// Version of the protocol.
type Version struct{ Major, Minor uint16 }

func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// VersionError says that the two sides speak different protocols.
type VersionError struct{ Ours, Theirs Version }

func (e *VersionError) Error() string {
	return fmt.Sprintf("the other side speaks version %v of the protocol, this one speaks %v", e.Theirs, e.Ours)
}

// Remedy says what the user can do.
func (e *VersionError) Remedy() string {
	if e.Theirs.Major < e.Ours.Major {
		return "install this version of nsmigrate on the other host, or let --push-binary bring it there"
	}
	return "install the other host's version of nsmigrate on this host"
}

// GreetingError says that what answered is not nsmigrate.
type GreetingError struct {
	Got []byte // how it began
}

func (e *GreetingError) Error() string {
	if len(e.Got) == 0 {
		return "the other side ended before it said anything"
	}
	return fmt.Sprintf("the other side is not nsmigrate: it began with %q", e.Got)
}

// Remedy says what the user can do.
func (e *GreetingError) Remedy() string {
	if len(e.Got) == 0 {
		return "see whether nsmigrate runs there at all"
	}
	return "if that is printed by a shell's startup file (.bashrc, .profile) over there, print it for interactive shells " +
		"only; else see whether the address and the port are right"
}

func stalled(d time.Duration, doing string) error {
	return fmt.Errorf("%w: nothing was heard for %v while %s", ErrStalled, d, doing)
}
