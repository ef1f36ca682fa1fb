package checkpoint

import (
	"fmt"
	"strings"
)

// Problem is one reason to refuse an operation before anything was changed.
type Problem struct {
	Kind   string `json:"kind"`   // class of object, as in [Loss]; also what --allow-loss takes if Loss is set
	Object string `json:"object"` // in the words of ip(8), ss(8), ps(1)
	Reason string `json:"reason"` // why it stands in the way
	Remedy string `json:"remedy"` // what the user can do
	Loss   bool   `json:"loss"`   // the user may go on without the object (--allow-loss)

	Host string `json:"host,omitempty"` // "destination" if it is that of a migration that says so; "" is this host
}

func (p Problem) String() string {
	s := fmt.Sprintf("%s %s: %s", p.Kind, p.Object, p.Reason)
	if p.Host != "" {
		s = fmt.Sprintf("on the %s: %s", p.Host, s)
	}
	if p.Remedy != "" {
		s += "\n  hint: " + p.Remedy
	}
	return s
}

// RefusedError says that nothing was done, and all the reasons at once.
type RefusedError struct {
	Op       string // "dump" or "restore"
	Problems []Problem
}

func (e *RefusedError) Error() string {
	lines := make([]string, 0, len(e.Problems)+1)
	lines = append(lines, e.Op+" refused, nothing was changed:")
	for _, p := range e.Problems {
		lines = append(lines, p.String())
	}
	return strings.Join(lines, "\n")
}

// Refuse returns a *RefusedError, or nil if there is no problem.
func Refuse(op string, problems []Problem) error {
	if len(problems) == 0 {
		return nil
	}
	return &RefusedError{Op: op, Problems: problems}
}

// FailedError says that a dump began and did not end. The source runs again unless Stuck says otherwise.
type FailedError struct {
	Phase string // of the dump, e.g. "freeze", "store image"
	Err   error
	Log   string // directory of criu's logs, "" if there are none
	Stuck error  // why the source could not be put back; nil if it was
}

func (e *FailedError) Error() string {
	s := fmt.Sprintf("dump: %s: %v", e.Phase, e.Err)
	if e.Log != "" {
		s += "\ncriu's log is in " + e.Log
	}
	if e.Stuck != nil {
		return s + fmt.Sprintf("\nthe source could not be put back: %v", e.Stuck)
	}
	return s + "\nthe source is running as before"
}

// Unwrap returns the cause.
func (e *FailedError) Unwrap() error { return e.Err }
