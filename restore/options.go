package restore

import (
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/netstate"
)

// PIDNS says where a tree's process ids come from.
type PIDNS string

// A tree always gets its own process ids back. Where one of them is taken on this host, the tree can
// live in a new pid namespace.
const (
	PIDNSAuto PIDNS = "auto" // the host's, or a new one if an id is taken
	PIDNSHost PIDNS = "host"
	PIDNSNew  PIDNS = "new"
)

// ParsePIDNS reads the value of a flag; "" is auto.
func ParsePIDNS(s string) (PIDNS, error) {
	switch p := PIDNS(s); p {
	case "":
		return PIDNSAuto, nil
	case PIDNSAuto, PIDNSHost, PIDNSNew:
		return p, nil
	}
	return "", fmt.Errorf("pid namespace %q: want auto, host or new", s)
}

// SourceLife says whether the service that is about to be restored lives on its source host.
type SourceLife string

// SourceAlive is the life of a service that migrates: it answers for its addresses until it is frozen.
const SourceAlive SourceLife = "alive"

// Options of a restore. The zero value restores a service as it was on its source host.
type Options struct {
	CRIU      string                           // path of criu; "" looks in the private prefix, then on PATH
	NetNS     string                           // name of the namespace; "" is the name it had
	Uplinks   map[string]netstate.UplinkTarget // by the interface's name inside; others as on the source host
	PIDNS     PIDNS                            // "" is auto
	PIDFile   string                           // gets the roots' pids, one a line
	TCPClose  bool                             // close established connections
	AllowLoss []string                         // kinds of problems ([checkpoint.Problem].Loss) to go on with
	Force     bool                             // restore although the service's addresses answer on the wire
	Wait      bool                             // the caller will call [Report.Wait]
	Stdio     []*os.File                       // what takes the place of terminals and pipes that stayed behind, by descriptor; nil is /dev/null
	DryRun    bool                             // stop before anything is built
	Timeout   time.Duration                    // until the service is live; 0 is two minutes
	Logger    *slog.Logger                     // nil discards
	Progress  checkpoint.Progress              // nil reports nothing
	Record    func(*Record) error              // nil, or told before the host is changed; an error ends the restore
	Source    SourceLife                       // "" is that nobody may answer for the service's addresses

	// Brought says that a file is brought here by somebody else, who has it in its place before [Restoration.Restore];
	// nil is that all files must be here from the beginning.
	Brought func(path string) bool
}

func (o *Options) brought(path string) bool { return o.Brought != nil && o.Brought(path) }

// Report tells what a restore did.
type Report struct {
	NetNS    string             `json:"netns,omitempty"` // name of the namespace
	PIDs     []int              `json:"pids"`            // of the trees' roots, as this host sees them
	TCPClose bool               `json:"tcp_close"`       // established connections were closed
	Phases   []checkpoint.Phase `json:"phases"`
	Total    time.Duration      `json:"total"` // until the service was live
	CRIU     []CRIUStats        `json:"criu_statistics,omitempty"`
	Notes    []string           `json:"notes,omitempty"`

	waiters []func() (int, error)
}

// CRIUStats are CRIU's own figures for one tree's restore, in microseconds and pages, named as podman prints them.
type CRIUStats struct {
	ForkingTime     uint32 `json:"forking_time"`
	RestoreTime     uint32 `json:"restore_time"`
	PagesRestored   uint64 `json:"pages_restored"`
	PagesCompared   uint64 `json:"pages_compared"`
	PagesSkippedCOW uint64 `json:"pages_skipped_cow"`
}

// Error says that a restore began and did not end. Nothing of it is left unless Leftover says otherwise;
// the image is as it was.
type Error struct {
	Phase    string
	Err      error
	Leftover error  // what could not be removed
	Log      string // directory of criu's logs, "" if there are none
}

func (e *Error) Error() string {
	s := fmt.Sprintf("restore: %s: %v", e.Phase, e.Err)
	if e.Log != "" {
		s += "\ncriu's log is in " + e.Log
	}
	if e.Leftover != nil {
		return s + fmt.Sprintf("\nnot everything could be removed again: %v", e.Leftover)
	}
	return s + "\nnothing is left of it on this host, the image is intact"
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }
