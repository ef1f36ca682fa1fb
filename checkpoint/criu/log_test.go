package criu

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns/nstest"
)

// A criu that failed for lack of room, and had none to say so, is explained all the same; where there is room, it is not
// put down to that.
func TestExplainFull(t *testing.T) {
	nstest.NeedRoot(t)
	for _, test := range []struct {
		size string
		full bool
	}{{"16k", true}, {"1m", false}} {
		work := tmpfs(t, test.size)
		fd, err := unix.Openat(int(work.Fd()), LogFile, unix.O_CREAT|unix.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		log := os.NewFile(uintptr(fd), LogFile)
		if _, err := io.WriteString(log, "Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n"); err != nil {
			t.Fatal(err)
		}
		log.Close()
		got := (&Process{work: work}).explain("dump", 0, "", false)
		if errors.Is(got, unix.ENOSPC) != test.full || strings.Contains(got.Error(), "no space left on device") != test.full {
			t.Errorf("%s: %v", test.size, got)
		}
	}
}

// tmpfs returns a file system that is mounted nowhere.
func tmpfs(t *testing.T, size string) *os.File {
	t.Helper()
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fs)
	if err := errors.Join(unix.FsconfigSetString(fs, "size", size), unix.FsconfigCreate(fs)); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "tmpfs")
	t.Cleanup(func() { f.Close() })
	return f
}
