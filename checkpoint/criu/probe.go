package criu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// CheckError is CRIU's own word that something doesn't work here.
type CheckError struct{ Reason string }

func (e *CheckError) Error() string { return e.Reason }

// A check takes 40 ms. It is not cut short by the caller's context, because criu's helpers, which wait for it to
// tell them to end, would outlive it; a criu that hangs is killed with those of its process group.
const (
	checkTimeout = 30 * time.Second
	waitDelay    = 2 * time.Second // for the output of a killed criu, which its own children may hold open
)

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
	if ctx.Err() != nil {
		return ctx.Err()
	}
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTimeout)
	defer cancel()
	cmd := exec.CommandContext(limited, path, append([]string{"check"}, args...)...)
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true} // out of reach of Ctrl-C, too
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = waitDelay
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil {
		return nil
	}
	if limited.Err() != nil {
		return fmt.Errorf("run %s: killed, it did not end within %s", strings.Join(cmd.Args, " "), checkTimeout)
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
