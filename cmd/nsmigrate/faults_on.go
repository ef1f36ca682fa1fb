//go:build faults

package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/transfer/handover"
	"github.com/nsmigrate/nsmigrate/transfer/journal"
)

// stepsArg has the program list all steps of the protocol, so that the tests of crashes can't miss one.
const stepsArg = "nssteps"

func init() {
	if len(os.Args) < 2 || os.Args[1] != stepsArg {
		return
	}
	steps := append(handover.Steps(journal.Source), handover.Steps(journal.Destination)...)
	if err := printJSON(os.Stdout, steps); err != nil {
		os.Exit(int(statusError))
	}
	os.Exit(0)
}

// faults makes trouble at some steps, for the tests of crashes. NSMIGRATE_FAULT lists them with commas between: the step,
// "=" and
//
//	kill         this process dies by SIGKILL
//	error        the step fails
//	wait:FILE    FILE is made, and the step waits until it is removed
//
// Each makes trouble once.
func faults(env func(string) string) func(context.Context, handover.Step) error {
	todo := make(map[string]string)
	for fault := range strings.SplitSeq(env("NSMIGRATE_FAULT"), ",") {
		if at, what, ok := strings.Cut(fault, "="); ok {
			todo[at] = what
		}
	}
	return func(ctx context.Context, s handover.Step) error {
		what := todo[s.String()]
		delete(todo, s.String())
		path, waits := strings.CutPrefix(what, "wait:")
		switch {
		case what == "kill":
			unix.Kill(os.Getpid(), unix.SIGKILL) //nolint:errcheck // it does not return
		case what == "error":
			return fmt.Errorf("a fault at %s", s)
		case waits:
			return waitForRemoval(ctx, path)
		}
		return nil
	}
}

func waitForRemoval(ctx context.Context, path string) error {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	for {
		if _, err := os.Stat(path); err != nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Millisecond):
		}
	}
}
