package checkpoint

import (
	"cmp"
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
	s := &Service{target: t, opts: opts, clock: clock, report: &Report{}}
	defer s.Close()
	if s.state, err = netstate.Capture(ctx, t.ns, netstate.CaptureOptions{Logger: opts.Logger}); err != nil {
		return nil, fmt.Errorf("dump: %w", err)
	}
	kept, losses := allow(problemsOf(s.state), opts.AllowLoss)
	if err := Refuse("dump", kept); err != nil {
		return nil, err
	}
	s.report.Manifest = s.manifest(nil, losses)
	if opts.DryRun {
		return s.Report(), nil
	}
	clock.Phase("write image", false)
	if s.scratch, err = Scratch(opts.WorkDir); err != nil {
		return nil, fmt.Errorf("dump: %w", err)
	}
	if s.car, err = sidecar.Capture(ctx, nil, nil); err != nil {
		return nil, fmt.Errorf("dump: %w", err)
	}
	err = cmp.Or(s.complete(), s.writeSockets())
	if err == nil {
		err = s.stage(ctx, store)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("dump: %w", err), store.Discard())
	}
	if err := store.Publish(); err != nil {
		return nil, fmt.Errorf("dump: %w", err)
	}
	return s.Report(), nil
}
