package offline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/restore"
	"github.com/nsmigrate/nsmigrate/transfer"
	"github.com/nsmigrate/nsmigrate/transfer/frozen"
	"github.com/nsmigrate/nsmigrate/transfer/journal"
)

// Outcome is what became of an operation that was cut short.
type Outcome string

// Outcomes.
const (
	Resumed Outcome = "resumed" // the source of a dump runs as before
	Removed Outcome = "removed" // the image is complete, and the source of the dump removed
	Undone  Outcome = "undone"  // nothing is left of a restore
	Live    Outcome = "live"    // the restored service is live
	Gone    Outcome = "gone"    // the service has ended, with the host or by itself
)

// Result tells how an operation ended.
type Result struct {
	Outcome Outcome
	Image   string // that a dump made: it is complete; "" if there is none
}

// State says in a word how far an operation has come: "begun", then "frozen" (which the service may be) and "whole" (which
// the image is) of a dump, "building" and "live" of a restore.
func State(c *journal.Content) (string, error) {
	state := "begun"
	switch c.Role {
	case journal.Dump:
		d, err := readDump(c)
		switch {
		case err != nil:
			return "", err
		case d.whole != nil:
			state = "whole"
		case d.record != nil:
			state = "frozen"
		}
	case journal.Restore:
		r, err := readRestore(c)
		switch {
		case err != nil:
			return "", err
		case r.Record != nil && r.Record.Live:
			state = "live"
		case r.Record != nil:
			state = "building"
		}
	}
	return state, nil
}

// AboutOf is what a journal says of its operation as a whole.
func AboutOf(c *journal.Content) (About, error) {
	var a About
	if err := json.Unmarshal(c.Data, &a); err != nil {
		return a, fmt.Errorf("the journal doesn't say what was begun: %w", err)
	}
	return a, nil
}

// Recover brings an operation to its end that a process left behind. It closes the journal, which stays if there is an
// error: it can be tried again. deliver writes the end of an image to the stream that a dump wrote to.
func Recover(ctx context.Context, j *journal.Journal, deliver func(tail []byte) error) (r Result, err error) {
	about, err := AboutOf(&j.Content)
	if err == nil {
		switch j.Role {
		case journal.Dump:
			r, err = recoverDump(ctx, j, about, deliver)
		case journal.Restore:
			r, err = recoverRestore(ctx, j)
		default:
			err = fmt.Errorf("a %s is no dump or restore", j.Role)
		}
	}
	if err == nil && about.Scratch != "" {
		err = os.RemoveAll(about.Scratch)
	}
	if err != nil {
		return r, errors.Join(err, j.Close())
	}
	return r, j.Finish(journal.NoTombstone)
}

// dump is what a dump's journal says.
type dump struct {
	record    *checkpoint.Record // nil if the service was not touched
	staged    *staged
	whole     *whole
	published bool
}

func readDump(c *journal.Content) (d dump, err error) {
	for _, r := range c.Records {
		switch r.Step {
		case stepStage:
			d.staged = new(staged)
			err = json.Unmarshal(r.Data, d.staged)
		case stepWhole:
			d.whole = new(whole)
			err = json.Unmarshal(r.Data, d.whole)
		case stepPublish:
			d.published = true
		}
		if err != nil {
			return d, fmt.Errorf("step %q of the journal: %w", r.Step, err)
		}
	}
	d.record, err = frozen.Load(c)
	return d, err
}

func recoverDump(ctx context.Context, j *journal.Journal, about About, deliver func([]byte) error) (Result, error) {
	d, err := readDump(&j.Content)
	if err != nil {
		return Result{}, err
	}
	if j.Rebooted() { // then nothing is left of the source, and an image is the service
		r := Result{Outcome: Gone}
		if d.complete() {
			r.Image = d.staged.To
			return r, d.place()
		}
		return r, d.discard()
	}
	if d.record == nil {
		return Result{Outcome: Resumed}, d.discard()
	}
	ended, err := d.record.Ended(ctx)
	switch {
	case err != nil:
		return Result{}, err
	case ended && d.whole != nil && !about.Snapshot:
		// Whatever becomes of the image's name: the source is not to stay half ended.
		return Result{Outcome: Removed, Image: about.Image}, errors.Join(d.publish(j, deliver), d.record.End(ctx))
	}
	r := Result{Outcome: Resumed}
	if err := d.record.Resume(ctx); errors.Is(err, checkpoint.ErrGone) {
		r.Outcome = Gone
	} else if err != nil {
		return Result{}, err
	}
	if about.Snapshot && d.isPublished() {
		r.Image = about.Image
		return r, nil
	}
	return r, d.discard()
}

// complete says that a durable image is there under the name that it had before it was to get its own.
func (d *dump) complete() bool {
	if d.staged == nil {
		return false
	}
	_, err := os.Lstat(d.staged.At)
	return err == nil
}

// isPublished says that a complete image has got to where the user wanted it.
func (d *dump) isPublished() bool {
	if d.staged == nil {
		return d.published
	}
	return d.whole != nil && !d.complete()
}

// publish brings a complete image to where the user wanted it.
func (d *dump) publish(j *journal.Journal, deliver func([]byte) error) error {
	switch {
	case d.isPublished():
		return nil
	case d.staged != nil:
		return d.place()
	}
	if err := deliver(d.whole.Tail); err != nil {
		return fmt.Errorf("write the end of the image: %w", err)
	}
	return j.Decide(stepPublish, nil, false)
}

func (d *dump) place() error { return transfer.Place(d.staged.At, d.staged.To) }

// discard removes an image that is not to be.
func (d *dump) discard() error {
	if d.staged == nil {
		return nil
	}
	at := d.staged.At
	unfinished, err := filepath.Glob(filepath.Join(filepath.Dir(at), "."+filepath.Base(at)+".*.tmp"))
	for _, path := range append(unfinished, at) {
		err = errors.Join(err, os.RemoveAll(path))
	}
	return err
}

func readRestore(c *journal.Content) (r restored, err error) {
	_, err = c.LoadJSON(frozen.RestoreFile, &r)
	return r, err
}

func recoverRestore(ctx context.Context, j *journal.Journal) (Result, error) {
	r, err := readRestore(&j.Content)
	if err != nil {
		return Result{}, err
	}
	switch {
	case r.Record == nil:
		return Result{Outcome: Undone}, nil
	case j.Rebooted(): // all else was in memory, or is somebody else's by now
		outcome := map[bool]Outcome{false: Undone, true: Gone}[r.Record.Live]
		return Result{Outcome: outcome}, os.RemoveAll(r.Record.Scratch)
	case !r.Record.Live:
		return Result{Outcome: Undone}, r.Record.Undo(ctx)
	}
	state, err := restore.ReadState(r.Image)
	if err != nil {
		return Result{}, err
	}
	err = r.Record.GoLive(ctx, state, r.Uplinks)
	if errors.Is(err, restore.ErrGone) {
		return Result{Outcome: Gone}, r.Record.Undo(ctx)
	}
	return Result{Outcome: Live}, err
}
