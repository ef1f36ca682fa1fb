package migrate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/checkpoint/hold"
	"github.com/nsmigrate/nsmigrate/netstate"
	"github.com/nsmigrate/nsmigrate/restore"
	"github.com/nsmigrate/nsmigrate/transfer/frozen"
	"github.com/nsmigrate/nsmigrate/transfer/handover"
	"github.com/nsmigrate/nsmigrate/transfer/journal"
	"github.com/nsmigrate/nsmigrate/transfer/ship"
)

// Bounds of what a source may send before it is agreed that the service comes.
const maxOffered = 256 << 20 // bytes of a network state: a million routes are half of it

// Destination is the host that a service migrates to. It implements [handover.Host].
type Destination struct {
	Options restore.Options // of this host: what the source's user wishes comes with the offer
	Guard   StartGuard
	Admit   func() error // asked when a service is offered: its error, a [*checkpoint.RefusedError], sends it away; nil lets every one in
	OnLive  string       // shell command that is run when the service is live; "" is none

	journal *journal.Journal
	guard   Guard

	offered  []byte            // network state
	index    *ship.Index       // of the files that come along; nil if none do
	files    *ship.Destination // which takes them
	manifest *checkpoint.Manifest
	state    *netstate.State
	restore  *restore.Restoration
	hurries  bool // since the service stands still
	restored restored
	memory   *checkpoint.Memory // where the images are, if they are not in the directory of ours
}

// restored is what another process has to know of the destination.
type restored struct {
	Images  string                           `json:"images,omitempty"` // directory of ours, where they are or beside which
	Uplinks map[string]netstate.UplinkTarget `json:"uplinks,omitempty"`
	Record  *restore.Record                  `json:"record,omitempty"`
	OnLive  string                           `json:"on_live,omitempty"` // to be run yet
}

// Store implements [handover.Host].
func (d *Destination) Store(ctx context.Context, name string, size int64, r io.Reader) error {
	if d.restored.Images == "" {
		if name == ship.IndexEntry {
			var err error
			d.index, err = ship.ReadIndex(r, ship.Limits{})
			return err
		}
		if name != checkpoint.StateFile || size > maxOffered {
			return fmt.Errorf("entry %q of %d bytes is no part of an offer", name, size)
		}
		b, err := io.ReadAll(io.LimitReader(r, maxOffered+1))
		if err != nil {
			return err
		}
		if len(b) > maxOffered {
			return fmt.Errorf("the network state has more than %d bytes", maxOffered)
		}
		d.offered = b
		return nil
	}
	if ok, err := d.storeFiles(ctx, name, r); ok {
		return err
	}
	if !d.hurries { // the first piece of it
		d.hurries = true
		d.restore.Hurry()
	}
	err := storeImage(d.images(), name, r)
	if failed, ok := errors.AsType[*os.PathError](err); ok && d.memory != nil {
		// People know the place whose room it is.
		failed.Path = strings.Replace(failed.Path, d.memory.Path(), d.restored.Images, 1)
	}
	return err
}

// images is where the images are. Nobody but this process has a use for them.
func (d *Destination) images() string {
	if d.memory != nil {
		return d.memory.Path()
	}
	return d.restored.Images
}

// Check implements [handover.Host].
func (d *Destination) Check(ctx context.Context, o *handover.Offer) (*handover.Ready, error) {
	if d.Admit != nil {
		if err := d.Admit(); err != nil {
			return nil, err
		}
	}
	var of offer
	if err := json.Unmarshal(o.Manifest, &of); err != nil {
		return nil, fmt.Errorf("the offer is malformed: %w", err)
	}
	if of.Service == nil {
		return nil, errors.New("the offer is malformed: it describes no service")
	}
	if err := of.Service.Validate(); err != nil {
		return nil, fmt.Errorf("the offer is malformed: %w", err)
	}
	state, err := parseState(d.offered)
	if err != nil {
		return nil, err
	}
	opts := d.Options
	opts.NetNS, opts.Uplinks, opts.PIDNS = of.Wish.NetNS, of.Wish.Uplinks, of.Wish.PIDNS
	opts.TCPClose, opts.Force = of.Wish.TCPClose, of.Wish.Force
	opts.AllowLoss = of.Wish.AllowLoss
	opts.Source = restore.SourceAlive
	opts.Record = func(r *restore.Record) error {
		d.restored.Record = r
		return d.note()
	}
	d.manifest, d.state, d.restored.Uplinks = of.Service, state, opts.Uplinks
	ready := new(handover.Ready)
	var w wants
	if d.index != nil {
		if w.Files, ready.Problems, err = d.compareFiles(ctx, o.ID); err != nil {
			return nil, err
		}
		opts.Brought = d.index.Has
	}
	d.restore, err = restore.Plan(ctx, of.Service, state, opts)
	if refused, ok := errors.AsType[*checkpoint.RefusedError](err); ok {
		ready.Problems = append(ready.Problems, refused.Problems...)
	} else if err != nil {
		return nil, err
	}
	ready.Wants, err = json.Marshal(w)
	return ready, err
}

func parseState(b []byte) (*netstate.State, error) {
	state, err := netstate.ReadState(bytes.NewReader(b))
	if err == nil {
		err = state.Validate()
	}
	if err != nil {
		return nil, fmt.Errorf("the network state is malformed: %w", err)
	}
	return state, nil
}

// changed returns the state that a difference makes of another one: the same one if there is none.
func changed(state *netstate.State, delta []byte) (*netstate.State, error) {
	d, err := netstate.ReadDelta(bytes.NewReader(delta))
	if err != nil {
		return nil, fmt.Errorf("the change of the network state is malformed: %w", err)
	}
	if d.Empty() {
		return state, nil
	}
	if state, err = d.Apply(state); err != nil {
		return nil, fmt.Errorf("the change of the network state is malformed: %w", err)
	}
	return state, nil
}

// Begin implements [handover.Host].
func (d *Destination) Begin(_ context.Context, j *journal.Journal) error {
	d.journal = j
	var err error
	d.guard, err = d.Guard.start(j)
	return err
}

func (d *Destination) note() error { return d.journal.SaveJSON(frozen.RestoreFile, &d.restored) }

// Build implements [handover.Host].
func (d *Destination) Build(ctx context.Context) error {
	dir, err := checkpoint.Scratch("")
	if err != nil {
		return err
	}
	d.restored.Images, d.restored.OnLive = dir, d.OnLive
	if err := d.note(); err != nil {
		return err
	}
	if err := d.journal.Save(stateFile, d.offered); err != nil {
		return err
	}
	d.offered = nil
	d.memory = checkpoint.NewMemory(dir)
	for i := range d.manifest.Trees {
		if err := os.MkdirAll(filepath.Join(d.images(), d.manifest.Trees[i].Dir), 0o700); err != nil {
			return err
		}
	}
	if d.files != nil {
		if err := d.files.Mark(ctx); err != nil {
			return err
		}
	}
	return d.restore.Build(ctx, d.images())
}

// Prepare implements [handover.Host].
func (d *Destination) Prepare(ctx context.Context, final json.RawMessage) error {
	m := new(checkpoint.Manifest)
	if err := json.Unmarshal(final, m); err != nil {
		return fmt.Errorf("the last manifest is malformed: %w", err)
	}
	if err := m.Validate(); err != nil {
		return fmt.Errorf("the last manifest is malformed: %w", err)
	}
	// The disk of the images is not that of the journal, which is for the process that may have to let the service live.
	delta, err := os.ReadFile(filepath.Join(d.images(), deltaFile))
	if err != nil {
		return err
	}
	if err := d.journal.Save(deltaFile, delta); err != nil {
		return err
	}
	if d.state, err = changed(d.state, delta); err != nil {
		return err
	}
	flushed, err := d.placeFiles(ctx)
	if err != nil {
		return err
	}
	err = d.restore.Restore(ctx, d.images(), m, d.state)
	return errors.Join(err, <-flushed)
}

// GoLive implements [handover.Host].
func (d *Destination) GoLive(ctx context.Context) (json.RawMessage, error) {
	if d.restore == nil {
		return nil, d.goLiveRecorded(ctx)
	}
	if err := d.restore.GoLive(ctx); err != nil {
		return nil, err
	}
	return json.Marshal(d.restore.Report())
}

func (d *Destination) goLiveRecorded(ctx context.Context) error {
	if d.restored.Record == nil {
		return errors.New("the journal does not say what was restored")
	}
	b, err := os.ReadFile(filepath.Join(d.journal.Path(), stateFile))
	if err != nil {
		return err
	}
	state, err := parseState(b)
	if err != nil {
		return err
	}
	if b, err = os.ReadFile(filepath.Join(d.journal.Path(), deltaFile)); err != nil {
		return err
	}
	if state, err = changed(state, b); err != nil {
		return err
	}
	return d.restored.Record.GoLive(ctx, state, d.restored.Uplinks)
}

// Deliver implements [handover.Host].
func (d *Destination) Deliver(_ context.Context, r io.Reader) error {
	frames, err := hold.Decode(r)
	if err != nil || d.restore == nil {
		return err
	}
	return d.restore.Deliver(frames)
}

// Settle implements [handover.Host].
func (d *Destination) Settle(ctx context.Context, tell func(error)) error {
	if d.journal.Rebooted() {
		return d.commitFiles(ctx) // all else was in memory
	}
	err := d.runHook(ctx)
	tell(err)
	if d.restore != nil {
		err = errors.Join(err, d.restore.Settle(ctx))
	} else if d.restored.Record != nil {
		err = errors.Join(err, d.restored.Record.Settle())
	}
	return errors.Join(err, d.commitFiles(ctx), d.removeImages())
}

// Undo implements [handover.Host].
func (d *Destination) Undo(ctx context.Context) error {
	if d.journal != nil && d.journal.Rebooted() {
		return d.undoFiles(ctx) // all else was in memory
	}
	var err error
	switch {
	case d.restore != nil:
		failed, _ := errors.AsType[*restore.Error](d.restore.Undo(errGivenUp))
		err = failed.Leftover
	case d.restored.Record != nil:
		err = d.restored.Record.Undo(ctx)
	}
	return errors.Join(err, d.undoFiles(ctx), d.removeImages())
}

// runHook tells whoever routes to the service that it is here: once, whether it succeeds or not, and again only if this
// process dies meanwhile.
func (d *Destination) runHook(ctx context.Context) error {
	if d.restored.OnLive == "" {
		return nil
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", d.restored.OnLive)
	cmd.Env = append(os.Environ(), "NSMIGRATE_ID="+d.journal.ID)
	if name, pid := d.where(); name != "" {
		cmd.Env = append(cmd.Env, "NSMIGRATE_NETNS="+name)
		if pid > 0 {
			cmd.Env = append(cmd.Env, fmt.Sprintf("NSMIGRATE_PID=%d", pid))
		}
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("the service lives, but the command for that failed: %w: %s", err, bytes.TrimSpace(out))
	}
	d.restored.OnLive = ""
	return errors.Join(err, d.note())
}

// where returns the service's namespace and first process; pid is 0 if it has none.
func (d *Destination) where() (name string, pid int) {
	if d.restore != nil {
		report := d.restore.Report()
		if len(report.PIDs) > 0 {
			pid = report.PIDs[0]
		}
		return report.NetNS, pid
	}
	r := d.restored.Record
	if r == nil {
		return "", 0
	}
	if len(r.Processes) > 0 {
		pid = r.Processes[0].PID
	}
	return r.NetNS, pid
}

func (d *Destination) removeImages() error {
	if d.memory != nil {
		d.memory.Close() //nolint:errcheck // a directory
		d.memory = nil
	}
	if d.restored.Images == "" {
		return nil
	}
	return os.RemoveAll(d.restored.Images)
}

// Close releases what the migration needed of this host. The service, if it is live, lives on.
func (d *Destination) Close() {
	d.dismiss()
	if d.restore != nil {
		d.restore.Close()
	}
	if d.files != nil {
		d.files.Close() //nolint:errcheck // directories
	}
	if d.memory != nil {
		d.memory.Close() //nolint:errcheck // a directory
		d.memory = nil
	}
}

func (d *Destination) dismiss() {
	if d.guard != nil {
		d.guard.Dismiss()
		d.guard = nil
	}
}

// ReopenDestination is the destination of a migration whose process has died.
func ReopenDestination(j *journal.Journal) (*Destination, error) {
	d := &Destination{journal: j}
	_, err := j.LoadJSON(frozen.RestoreFile, &d.restored)
	return d, err
}
