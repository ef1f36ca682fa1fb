package checkpoint

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/nsmigrate/nsmigrate/checkpoint/hold"
	"github.com/nsmigrate/nsmigrate/netstate"
)

// Spec names what to dump: a namespace with all its process trees, or one tree and its namespace.
// Exactly one field is set.
type Spec struct {
	NetNS string // a name below /run/netns, or the path of an nsfs file
	PID   int    // the root of a tree
}

// Options of a dump. The zero value dumps and removes the source.
type Options struct {
	CRIU         string        // path of criu; "" looks in the private prefix, then on PATH
	LeaveRunning bool          // resume the source after the dump: the image is a snapshot
	TCPClose     bool          // don't save established connections
	AllowLoss    []string      // kinds of objects (see [Problem.Kind]) that may be left behind
	DryRun       bool          // stop before anything is frozen
	Timeout      time.Duration // for the whole operation until the point of no return; 0 is two minutes
	WorkDir      string        // where the image is gathered; "" is a new directory on tmpfs if there is one
	Tool         string        // name and version of the program, for the manifest
	Logger       *slog.Logger  // nil discards
	Progress     Progress      // nil reports nothing

	// Record is told how to put the service back, or to end it, in another process, before it is touched; may be nil.
	// An error ends the dump.
	Record func(*Record) error

	// Contexts is told where the threads of the service are once it is stopped, for [Record.Contexts], and nil when they run
	// again; may be nil. The first error ends the dump.
	Contexts func(Contexts) error

	// Frozen is called when the service stands still, while CRIU reads it; may be nil. An error ends the dump.
	Frozen func(context.Context) error

	// Captured is given the network state of the frozen service as soon as it is known, which then is not in
	// [Service.Image]; may be nil. An error ends the dump.
	Captured func(context.Context, *netstate.State) error

	// Pages is given the memory of the frozen service as CRIU reads it, which then is not in [Service.Image]: size bytes,
	// to be read to their end, that are appended to an entry of the image. It is called for several trees at the same
	// time; may be nil. An error ends the dump.
	Pages func(ctx context.Context, entry string, size int64, r io.Reader) error

	// Chunk is told the image's chunks as soon as they are there, for a [Store] that has them ready when it is given the
	// image; may be nil, as it is for one that takes the image's directory as it is.
	Chunk ChunkFunc

	// Gather has [Open] succeed whatever stands in the way, for somebody who has more to ask before he refuses: see
	// [Service.Problems]. Unless there are none, such a service must not be dumped.
	Gather bool
}

// Store is where an image goes. Dump stages it while the source is frozen and mute, and publishes it when
// the source is gone: until then there is one live copy and no image under the name that the user gave, and
// from then on an image and no live copy.
type Store interface {
	// Stage makes the complete image in dir durable (fsynced) under a name of its own. Only when it returns
	// nil is the source removed.
	Stage(ctx context.Context, dir string, m *Manifest) error
	// Publish gives the staged image its name.
	Publish() error
	// Discard removes what Stage wrote. It is called instead of Publish, also after a Stage that failed.
	Discard() error
}

// Progress is told how an operation goes on. Calls come from one goroutine and must not block.
type Progress interface {
	// Phase begins the named phase, e.g. "preflight", "capture", "freeze".
	Phase(name string)
	// Bytes says how much of a phase's known amount is done; total is 0 where it is unknown.
	Bytes(done, total int64)
}

// Phase is one timed step of an operation.
type Phase struct {
	Name     string        `json:"name"`
	Start    time.Duration `json:"start"` // since the operation's begin
	Duration time.Duration `json:"duration"`
	Blackout bool          `json:"blackout"`         // the service was frozen meanwhile
	Beside   bool          `json:"beside,omitempty"` // it went on at the same time as others
}

// Report tells what a dump did.
type Report struct {
	Manifest *Manifest     `json:"manifest"`
	Phases   []Phase       `json:"phases"`
	Frozen   time.Duration `json:"frozen"` // from the freeze to the kill or the resume
	Bytes    int64         `json:"bytes"`  // of the image before compression
	CRIU     []CRIUStats   `json:"criu_statistics"`
	Held     hold.Stats    `json:"held"`            // what came for the service while it stood still
	Notes    []string      `json:"notes,omitempty"` // what a user should know, e.g. that connections get closed
}

// CRIUStats are CRIU's own figures for one tree's dump, in microseconds and pages, named as podman prints them.
type CRIUStats struct {
	FreezingTime uint32 `json:"freezing_time"`
	FrozenTime   uint32 `json:"frozen_time"`
	MemdumpTime  uint32 `json:"memdump_time"`
	MemwriteTime uint32 `json:"memwrite_time"`
	PagesScanned uint64 `json:"pages_scanned"`
	PagesWritten uint64 `json:"pages_written"`
}
