package criu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// PrivatePath is where `make criu` installs a CRIU of its own, beside whatever the distribution has.
const PrivatePath = "/usr/local/lib/nsmigrate/criu/bin/criu"

// Minimum is the oldest CRIU that can dump sockets on the kernels in use: Linux 6.16 took away a socket
// option, and every older release without a distribution's patch stops at it.
var Minimum = Version{Major: 4, Minor: 2}

// InstallRemedy says what a user without a working CRIU can do.
const InstallRemedy = "run `make criu` in the nsmigrate source tree: it installs a good one into a private prefix and touches nothing else of the system; or name another with --criu PATH"

// NotFoundError says that there is no CRIU where it was looked for.
type NotFoundError struct {
	Explicit string // the path that the user gave; "" if the usual places were searched
	Err      error  // why Explicit is none
}

func (e *NotFoundError) Error() string {
	if e.Explicit != "" {
		return fmt.Sprintf("criu: %v", e.Err)
	}
	return "criu: not found, neither at " + PrivatePath + " nor on PATH"
}

// Unwrap returns the cause.
func (e *NotFoundError) Unwrap() error { return e.Err }

// Remedy says what the user can do.
func (e *NotFoundError) Remedy() string { return InstallRemedy }

// TooOldError says that CRIU is older than [Minimum].
type TooOldError struct {
	Path string
	Have Version
}

func (e *TooOldError) Error() string {
	return fmt.Sprintf("criu: %s is version %s, and %s or newer is needed", e.Path, e.Have, Minimum)
}

// Remedy says what the user can do.
func (e *TooOldError) Remedy() string { return InstallRemedy }

// Find returns the path of the CRIU to use: the explicit one if there is one, else the one in the private
// prefix, else the first on PATH. It doesn't run it. The error is a [*NotFoundError].
func Find(explicit string) (string, error) {
	if explicit != "" {
		path, err := exec.LookPath(explicit)
		if err != nil {
			return "", &NotFoundError{Explicit: explicit, Err: err}
		}
		return path, nil
	}
	for _, name := range []string{PrivatePath, "criu"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	// sbin is often missing from the PATH of sudo and su.
	for _, name := range []string{"/usr/local/sbin/criu", "/usr/sbin/criu"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", &NotFoundError{}
}

// FindRequired is [Find] and [Require] in one.
func FindRequired(ctx context.Context, explicit string) (string, Version, error) {
	path, err := Find(explicit)
	if err != nil {
		return "", Version{}, err
	}
	v, err := Require(ctx, path)
	return path, v, err
}

// Require runs `criu --version` and returns a [*TooOldError] if it is older than [Minimum].
func Require(ctx context.Context, path string) (Version, error) {
	v, err := VersionOf(ctx, path)
	if err == nil && v.Less(Minimum) {
		err = &TooOldError{Path: path, Have: v}
	}
	return v, err
}

// Version is a release of CRIU.
type Version struct{ Major, Minor, Sub int }

func (v Version) String() string {
	if v.Sub == 0 {
		return fmt.Sprintf("%d.%d", v.Major, v.Minor)
	}
	return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Sub)
}

// Less reports whether v is older than o.
func (v Version) Less(o Version) bool {
	if v.Major != o.Major {
		return v.Major < o.Major
	}
	if v.Minor != o.Minor {
		return v.Minor < o.Minor
	}
	return v.Sub < o.Sub
}

// VersionOf runs `criu --version`.
func VersionOf(ctx context.Context, path string) (Version, error) {
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.WaitDelay = waitDelay
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && len(exit.Stderr) > 0 {
			err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(exit.Stderr))
		}
		return Version{}, fmt.Errorf("criu: run %s --version: %w", path, err)
	}
	v, err := ParseVersion(string(out))
	if err != nil {
		return Version{}, fmt.Errorf("criu: %s --version: %w", path, err)
	}
	return v, nil
}

// ParseVersion reads the output of `criu --version`, or a version alone.
func ParseVersion(out string) (Version, error) {
	text, _, _ := strings.Cut(strings.TrimSpace(out), "\n")
	text = strings.TrimSpace(strings.TrimPrefix(text, "Version:"))
	text, _, _ = strings.Cut(text, " ")
	number, _, _ := strings.Cut(text, "-") // "4.2.1-rc1", "4.2-3-g1234567"
	parts := strings.Split(number, ".")
	var v Version
	fields := []*int{&v.Major, &v.Minor, &v.Sub}
	if len(parts) < 2 || len(parts) > len(fields) {
		return Version{}, fmt.Errorf("%q is no version", text)
	}
	for i, p := range parts {
		n, err := strconv.Atoi(p)
		if err != nil || n < 0 {
			return Version{}, fmt.Errorf("%q is no version", text)
		}
		*fields[i] = n
	}
	return v, nil
}
