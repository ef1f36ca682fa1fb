package host

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint"
)

var machineProbes = []probe{
	{
		name: "scratch", run: probeScratch,
		lack:   "images are gathered on a disk while the service is frozen, which takes longer",
		remedy: "mount -t tmpfs tmpfs /dev/shm",
	},
	{
		name: "run-tmpfs", run: probeRunTmpfs,
		lack:   "CRIU can't keep what it learned about the kernel and tries it out again, 40 ms at every dump and restore",
		remedy: "mount a tmpfs on /run before anything is started there, as systemd does",
	},
	{
		name: "open-files", run: probeOpenFiles,
		lack:   "a service with more descriptors can't be restored here",
		remedy: "raise the limit before the call: ulimit -Hn 1048576 (as root)",
	},
	{
		name: "cgroup", run: probeCgroup,
		lack:   "services can't be told from each other by their group",
		remedy: "mount -t cgroup2 cgroup2 /sys/fs/cgroup",
	},
}

// ScratchDirs are where images are gathered, in order of preference, if they are on tmpfs.
var ScratchDirs = [...]string{"/dev/shm", "/run"}

func isTmpfs(dir string) (fs unix.Statfs_t, ok bool) {
	err := unix.Statfs(dir, &fs)
	return fs, err == nil && (fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC)
}

func probeScratch(context.Context) (string, error) {
	for _, dir := range ScratchDirs {
		if fs, ok := isTmpfs(dir); ok {
			return fmt.Sprintf("images are gathered in memory, %s, %s free", dir, checkpoint.Size(int64(fs.Bavail)*fs.Bsize)), nil
		}
	}
	return "", errors.New("no tmpfs at /dev/shm or /run")
}

func probeRunTmpfs(context.Context) (string, error) {
	if _, ok := isTmpfs("/run"); !ok {
		return "", errors.New("/run is not on tmpfs")
	}
	return "CRIU keeps what it learned about the kernel", nil
}

const manyFiles = 65536

func probeOpenFiles(context.Context) (string, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return "", err
	}
	if limit.Max < manyFiles {
		return "", fmt.Errorf("at most %d a process", limit.Max)
	}
	return fmt.Sprintf("%d a process", limit.Max), nil
}

func probeCgroup(context.Context) (string, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &fs); err != nil {
		return "", fmt.Errorf("/sys/fs/cgroup: %w", err)
	}
	switch fs.Type {
	case unix.CGROUP2_SUPER_MAGIC:
		return "version 2", nil
	case unix.TMPFS_MAGIC, unix.CGROUP_SUPER_MAGIC:
		return "version 1", nil
	}
	return "", errors.New("no control groups at /sys/fs/cgroup")
}
