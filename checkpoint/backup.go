package checkpoint

import (
	"context"
	"errors"
	"fmt"

	"github.com/nsmigrate/nsmigrate/checkpoint/sidecar"
	"github.com/nsmigrate/nsmigrate/netstate"
)

// Backup writes down a network namespace alone, without the processes in it, and changes nothing: the backup of a
// router or a lab node. The namespace may be the host's own. Errors: [*RefusedError] if it holds what can't be
// carried, and any other error; in every case the store holds no image then.
func Backup(ctx context.Context, spec Spec, store Store, opts Options) (*Report, error) {
	clock := NewClock(opts.Progress)
	clock.Phase("capture", false)
	if err := RequireRoot("dump"); err != nil {
		return nil, err
	}
	t, err := openNamespace(spec)
	if err != nil {
		return nil, err
	}
	opts.LeaveRunning = true
	d := &dump{target: t, opts: opts, clock: clock, report: &Report{}}
	defer d.close()
	if d.state, err = netstate.Capture(ctx, t.ns, netstate.CaptureOptions{Logger: opts.Logger}); err != nil {
		return nil, fmt.Errorf("dump: %w", err)
	}
	kept, losses := allow(problemsOf(d.state), opts.AllowLoss)
	if err := Refuse("dump", kept); err != nil {
		return nil, err
	}
	d.report.Manifest = d.manifest(nil, losses)
	if opts.DryRun {
		return d.finished(), nil
	}
	clock.Phase("write image", false)
	if d.scratch, err = Scratch(opts.WorkDir); err != nil {
		return nil, fmt.Errorf("dump: %w", err)
	}
	if d.car, err = sidecar.Capture(ctx, nil, nil); err != nil {
		return nil, fmt.Errorf("dump: %w", err)
	}
	if err := d.write(ctx, d.state, store); err != nil {
		return nil, errors.Join(fmt.Errorf("dump: %w", err), store.Discard())
	}
	if err := store.Publish(); err != nil {
		return nil, fmt.Errorf("dump: %w", err)
	}
	return d.finished(), nil
}
