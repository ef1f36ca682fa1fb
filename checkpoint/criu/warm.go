package criu

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Where criu keeps what it found out about the kernel (criu/kerndat.c); only on tmpfs, so that it does not
// outlive a boot.
const (
	kerndatDir  = "/run"
	kerndatFile = "/run/criu.kdat"
)

// Cached reports whether criu can keep what it finds out about the kernel. Without that every request
// takes 40 ms longer, in the blackout, and a criu inside a namespace needs its loopback device up.
func Cached() bool {
	var st unix.Statfs_t
	return unix.Statfs(kerndatDir, &st) == nil && st.Type == unix.TMPFS_MAGIC
}

// Warm makes sure that criu's knowledge of the kernel is cached, if it can be: a criu inside a service's
// namespace then doesn't have to find it out while the service is frozen.
func Warm(ctx context.Context, path string) error {
	if !Cached() {
		return nil
	}
	if _, err := os.Stat(kerndatFile); !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	_ = Check(ctx, path) // what it says matters elsewhere; here only that it was made
	return ctx.Err()
}
