package checkpoint

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// What is in memory is found under the directory's path, and nowhere else.
func TestMemory(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	beside := t.TempDir()
	if err := unix.Mount("tmpfs", beside, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(beside, unix.MNT_DETACH) }) //nolint:errcheck // it is the test's end
	m := NewMemory(beside)
	if m == nil {
		t.Fatal("no directory in memory")
	}
	defer m.Close()
	if err := os.MkdirAll(filepath.Join(m.Path(), "a", "b"), 0o700); err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("page"), 1<<20)
	file := filepath.Join(m.Path(), "a", "b", "c")
	if err := os.WriteFile(file, want, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read %d bytes of %d: %v", len(got), len(want), err)
	}
	if list, err := os.ReadDir(beside); err != nil || len(list) > 0 {
		t.Errorf("beside it there are %v: %v", list, err)
	}
	if err := os.WriteFile(filepath.Join(m.Path(), "more"), make([]byte, 128<<20), 0o600); err == nil {
		t.Error("more fits in than there was room beside it")
	}
	os.WriteFile(filepath.Join(beside, "fill"), make([]byte, 128<<20), 0o600) //nolint:errcheck // until it is full
	full := NewMemory(beside)
	if full == nil {
		t.Fatal("no directory in memory beside one that is full")
	}
	defer full.Close()
	if err := os.WriteFile(filepath.Join(full.Path(), "more"), make([]byte, 1<<20), 0o600); err == nil {
		t.Error("something fits in where beside it nothing did")
	}
}

// A directory on a disk has none beside it.
func TestMemoryDisk(t *testing.T) {
	if m := NewMemory("/proc"); m != nil {
		m.Close()
		t.Error("there is memory beside what is none")
	}
}
