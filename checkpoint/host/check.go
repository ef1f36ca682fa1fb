// Package host tells whether a machine can dump and restore, one probe for each thing that is needed.
// A probe tries the thing itself where that does no harm, in a namespace that is thrown away, because
// versions and configuration files say little about patched kernels and confined roots.
package host

import (
	"context"
	"errors"
	"fmt"
)

// Status is the outcome of a probe.
type Status string

// A failed probe that is not needed is a warning; one that could not be tried is skipped.
const (
	OK   Status = "ok"
	Warn Status = "warn"
	Fail Status = "fail"
	Skip Status = "skip"
)

// Probe is one thing that was looked at.
type Probe struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	Needed bool   `json:"needed"`           // dump and restore are impossible without it
	Detail string `json:"detail"`           // what was found, and what its lack means
	Remedy string `json:"remedy,omitempty"` // what the user can do
}

// Options of a check.
type Options struct {
	CRIU string // path of criu; "" looks in the private prefix, then on PATH
}

// probe is a row of the tables: run returns what was found, or an error if the thing is missing.
type probe struct {
	name   string
	needed bool
	run    func(ctx context.Context) (detail string, err error)
	lack   string // what its lack means, after the error
	remedy string
}

// errSkip marks a probe that could not be tried.
var errSkip = errors.New("not tried")

// Check runs all probes. It needs no privileges itself: what can't be tried without them fails.
func Check(ctx context.Context, opts Options) []Probe {
	var found []Probe
	for _, table := range [][]probe{privilegeProbes, criuProbes(opts.CRIU), kernelProbes, machineProbes} {
		for _, p := range table {
			found = append(found, p.try(ctx))
		}
	}
	return found
}

// Ready reports whether every needed probe succeeded, and names those that did not.
func Ready(probes []Probe) (missing []string, ok bool) {
	for _, p := range probes {
		if p.Needed && p.Status != OK {
			missing = append(missing, p.Name)
		}
	}
	return missing, len(missing) == 0
}

func (p probe) try(ctx context.Context) Probe {
	out := Probe{Name: p.name, Needed: p.needed}
	detail, err := p.run(ctx)
	if err == nil {
		out.Status, out.Detail = OK, detail
		return out
	}
	out.Detail, out.Remedy = err.Error(), p.remedy
	if p.lack != "" {
		out.Detail += ": " + p.lack
	}
	var remedied interface{ Remedy() string }
	switch {
	case errors.Is(err, errSkip):
		out.Status, out.Remedy = Skip, ""
	case p.needed:
		out.Status = Fail
	default:
		out.Status = Warn
	}
	if errors.As(err, &remedied) {
		out.Remedy = remedied.Remedy()
	}
	return out
}

func skip(why string) error { return fmt.Errorf("%w, %s", errSkip, why) }
