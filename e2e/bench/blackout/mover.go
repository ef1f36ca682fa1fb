package blackout

import (
	"context"
	"time"

	"github.com/nsmigrate/nsmigrate/e2e/lab"
)

// mover is a way to take a service from one host to another. Adding one is adding it to [movers].
type mover interface {
	// name is what tables call it.
	name() string
	// install makes both hosts ready. Its error is the reason why the mover isn't measured.
	install(ctx context.Context, w *world) error
	// start makes the service's namespace and the service on its host.
	start(ctx context.Context, w *world, s *service) error
	// move takes it to the other host, and tells what its time went into. What can be prepared before the service stands
	// still is prepared here first, and nothing of the service is left on the host where it was.
	move(ctx context.Context, w *world, s *service, to *lab.Host) (Trace, error)
	// stop ends the service wherever it is.
	stop(ctx context.Context, w *world, s *service) error
}

// Trace is what a mover itself tells about a move.
type Trace struct {
	Phases []Phase `json:"phases,omitempty"` // of the blackout, in order
	There  []Phase `json:"there,omitempty"`  // what the other host did meanwhile; part of these phases
	CRIU   CRIU    `json:"criu"`
	Bytes  int64   `json:"bytes,omitempty"` // that went from host to host
}

// Phase is a part of the blackout.
type Phase struct {
	Name string        `json:"name"`
	Took time.Duration `json:"took"`
}

// CRIU is CRIU's own share, by its statistics.
type CRIU struct {
	Frozen  time.Duration `json:"frozen"`
	Restore time.Duration `json:"restore"`
	MemDump time.Duration `json:"mem_dump"`
	Work    time.Duration `json:"work,omitempty"` // in which nsmigrate has criu at work, by its own clock: to seize, dump, restore and leave
}

func movers() []mover {
	shared := &peers{}
	return []mover{
		&nsmigrate{via: "tls"}, &nsmigrate{via: "ssh"}, &nsmigrate{via: "unix"},
		&rawCRIU{}, &rawCRIU{ownLock: true}, &runtime{shared, "runc"}, &runtime{shared, "crun"}, &podman{shared},
	}
}
