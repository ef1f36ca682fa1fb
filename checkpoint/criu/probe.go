package criu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// CheckError is CRIU's own word that something doesn't work here.
type CheckError struct{ Reason string }

func (e *CheckError) Error() string { return e.Reason }

// waitDelay bounds the wait for the output of a killed criu, which its own children may hold open.
const waitDelay = 2 * time.Second

// Check runs `criu check`: does this CRIU work with this kernel? The error
// is a [*CheckError] if it says no.
func Check(ctx context.Context, path string) error {
	return check(ctx, path)
}

// CheckFeature runs `criu check --feature NAME`. `criu check --feature list` names them. The error is a
// [*CheckError] if it says no.
func CheckFeature(ctx context.Context, path, name string) error {
	return check(ctx, path, "--feature", name)
}

func check(ctx context.Context, path string, args ...string) error {
	cmd := exec.CommandContext(ctx, path, append([]string{"check"}, args...)...)
	cmd.WaitDelay = waitDelay
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if _, ok := errors.AsType[*exec.ExitError](err); !ok {
		return fmt.Errorf("run %s: %w", strings.Join(cmd.Args, " "), err)
	}
	return &CheckError{Reason: checkReason(string(out))}
}

// checkReason picks the lines that say why from the output of `criu check`: its errors, else its
// warnings, else what it said last.
func checkReason(out string) string {
	var reasons, warnings, rest []string
	for line := range strings.Lines(out) {
		line = strings.TrimRight(strings.TrimSpace(line), ".")
		if line == "" {
			continue
		}
		// "Error (criu/cr-check.c:1234): Dirty tracking is OFF. ..."
		kind, text, found := strings.Cut(line, "): ")
		switch {
		case found && strings.Contains(kind, "Error ("):
			reasons = append(reasons, text)
		case found && strings.Contains(kind, "Warn  ("):
			warnings = append(warnings, text)
		default:
			rest = append(rest, line)
		}
	}
	switch {
	case len(reasons) > 0:
		return strings.Join(reasons, "; ")
	case len(warnings) > 0:
		return strings.Join(warnings, "; ")
	case len(rest) > 0:
		return rest[len(rest)-1]
	}
	return "criu check failed without a word"
}
