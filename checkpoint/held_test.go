package checkpoint

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
)

// holdFiles opens files of a directory in every way that matters.
func holdFiles(dir string) (any, error) {
	var keep []any
	var errs []error
	open := func(name string, flags int) *os.File {
		f, err := os.OpenFile(filepath.Join(dir, name), flags|os.O_CREATE, 0o600)
		keep, errs = append(keep, f), append(errs, err)
		return f
	}
	open("read", os.O_RDONLY)
	open("append", os.O_WRONLY|os.O_APPEND)
	open("data", os.O_RDWR)
	open("both", os.O_WRONLY|os.O_APPEND)
	open("both", os.O_WRONLY)
	open("unlinked", os.O_RDWR)
	errs = append(errs, os.Remove(filepath.Join(dir, "unlinked")))
	mapped := open("mapped", os.O_RDWR)
	errs = append(errs, mapped.Truncate(1))
	memory, err := unix.Mmap(int(mapped.Fd()), 0, 1, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	errs = append(errs, err, mapped.Close())
	open("moved", os.O_RDWR)
	errs = append(errs, os.Rename(filepath.Join(dir, "moved"), filepath.Join(dir, "renamed")))
	return append(keep, memory), errors.Join(errs...)
}

// What a process writes to is found, whatever it is called by now, and nothing else.
func TestHeld(t *testing.T) {
	dir := t.TempDir()
	cmd := serve(t, newNS(t), "hold", []string{"HOLD_DIR=" + dir})
	p, err := proc.Default.Read(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	files, notes, err := heldBy([]proc.Tree{{Processes: []proc.Process{p}}}, []Tree{{MountNS: MountHost}}, "")
	files = slices.DeleteFunc(files, func(f Held) bool { return !strings.HasPrefix(f.Path, dir) }) // the test's own log
	want := []Held{
		{Path: dir + "/append", Append: true},
		{Path: dir + "/both"},
		{Path: dir + "/data"},
		{Path: dir + "/mapped", Mapped: true},
		{Path: dir + "/renamed"},
	}
	if err != nil || !slices.Equal(files, want) || len(notes) > 0 {
		t.Errorf("got %+v, %q, %v\nwant %+v", files, notes, err, want)
	}
	// Nor what we ourselves have open in it.
	files, _, err = heldBy([]proc.Tree{{Processes: []proc.Process{p}}}, []Tree{{MountNS: MountHost}}, dir)
	if i := slices.IndexFunc(files, func(f Held) bool { return strings.HasPrefix(f.Path, dir) && !f.Mapped }); err != nil || i >= 0 {
		t.Errorf("with all of them ours: %+v, %v", files, err)
	}
}

// A file on a mount that only the process sees is not what the host has under that path.
func TestHeldOnPrivateMount(t *testing.T) {
	dir := t.TempDir()
	cmd := serve(t, newNS(t), "file", []string{"DATA_FILE=" + dir + "/data"}, "unshare", "--mount", "sh", "-euc",
		`mount -t tmpfs none "$1"; touch "$1/data"; shift; exec "$@"`, "sh", dir)
	p, err := proc.Default.Read(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := proc.Default.Mounts(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	trees := []proc.Tree{{Processes: []proc.Process{p}, Mounts: mounts}}
	for kind, noted := range map[MountNS]bool{MountPrivate: true, MountOwn: false} {
		files, notes, err := heldBy(trees, []Tree{{MountNS: kind}}, "")
		found := slices.ContainsFunc(files, func(f Held) bool { return strings.HasPrefix(f.Path, dir) })
		told := slices.ContainsFunc(notes, func(n string) bool { return strings.Contains(n, dir+"/data") })
		if err != nil || found || told != noted {
			t.Errorf("%s: files %+v, notes %q, %v", kind, files, notes, err)
		}
	}
}
