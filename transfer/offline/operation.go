package offline

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/netstate"
	"github.com/nsmigrate/nsmigrate/restore"
	"github.com/nsmigrate/nsmigrate/transfer/frozen"
	"github.com/nsmigrate/nsmigrate/transfer/journal"
)

// About is what a journal says of an operation as a whole.
type About struct {
	Service  string `json:"service,omitempty"`  // as the user named it
	Image    string `json:"image"`              // where it goes to or comes from, for people
	Snapshot bool   `json:"snapshot,omitempty"` // the source is left running
	Scratch  string `json:"scratch"`            // directory of ours; set by [Begin]
}

// Operation is a dump or a restore under way. What it is told is in the journal before it is done. A nil one takes no
// notice of anything.
type Operation struct {
	About
	journal *journal.Journal
}

// Steps of a dump's journal.
const (
	stepStage   = "stage"   // staged: the image is about to be written
	stepWhole   = "whole"   // whole: it is complete and, unless it is a stream, durable
	stepPublish = "publish" // the end of a stream was written
)

// staged is where an image is before it gets its name. Nothing is there until it is complete and durable.
type staged struct {
	At string `json:"at"`
	To string `json:"to"` // the name
}

type whole struct {
	Tail []byte `json:"tail,omitempty"` // what is held back of a stream
}

// restored is what is to be known of a restore.
type restored struct {
	Image   string                           `json:"image"` // directory
	Uplinks map[string]netstate.UplinkTarget `json:"uplinks,omitempty"`
	Record  *restore.Record                  `json:"record"`
}

// Begin begins the journal of a dump or a restore and makes its scratch directory.
func Begin(dir journal.Dir, id string, role journal.Role, a About) (*Operation, error) {
	a.Scratch = filepath.Join(checkpoint.ScratchDir(""), "nsmigrate-"+id)
	j, err := dir.Create(id, role, a)
	if err != nil {
		return nil, err
	}
	o := &Operation{About: a, journal: j}
	if err := os.Mkdir(a.Scratch, 0o700); err != nil {
		return nil, errors.Join(err, j.Finish(journal.NoTombstone))
	}
	return o, nil
}

// ID is that of the operation, for `nsmigrate recover`.
func (o *Operation) ID() string { return o.journal.ID }

// Dumping notes how to put the service back, or to end it. It is [checkpoint.Options].Record.
func (o *Operation) Dumping(r *checkpoint.Record) error { return frozen.Save(o.journal, r) }

// Stopped notes where the threads of the service are. It is [checkpoint.Options].Contexts.
func (o *Operation) Stopped(c checkpoint.Contexts) error { return frozen.SaveContexts(o.journal, c) }

// Staging notes where an image is going to be written, and the name that it gets later. Nothing may be at the former
// before the image there is complete and durable.
func (o *Operation) Staging(at, to string) error {
	if o == nil {
		return nil
	}
	return o.journal.Decide(stepStage, staged{At: at, To: to}, false)
}

// Whole notes that the image is complete. From now on the source may be ended. Of an image that is written to a stream, tail
// is what is held back of it.
func (o *Operation) Whole(tail []byte) error {
	if o == nil {
		return nil
	}
	return o.journal.Decide(stepWhole, whole{Tail: tail}, false)
}

// Published notes that the tail has been written.
func (o *Operation) Published() error {
	if o == nil {
		return nil
	}
	return o.journal.Decide(stepPublish, nil, false)
}

// Restoring notes what a restore of the image in a directory changes on the host. See [restore.Options].
func (o *Operation) Restoring(image string, uplinks map[string]netstate.UplinkTarget, r *restore.Record) error {
	return o.journal.SaveJSON(frozen.RestoreFile, restored{Image: image, Uplinks: uplinks, Record: r})
}

// Finish ends the journal: nothing is left to be done.
func (o *Operation) Finish() error {
	return errors.Join(os.RemoveAll(o.Scratch), o.journal.Finish(journal.NoTombstone))
}

// Leave leaves the rest to [Recover].
func (o *Operation) Leave() error { return errors.Join(os.RemoveAll(o.Scratch), o.journal.Close()) }
