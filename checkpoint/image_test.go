package checkpoint_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/nsmigrate/nsmigrate/checkpoint"
)

func write(tb testing.TB, dir string, files map[string]string) {
	tb.Helper()
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			tb.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
			tb.Fatal(err)
		}
	}
}

// sealed returns a directory with a small image.
func sealed(tb testing.TB) string {
	tb.Helper()
	dir := filepath.Join(tb.TempDir(), "image")
	write(tb, dir, map[string]string{
		"checkpoint/core-1.img":        "core",
		"checkpoint/tree-2/core-9.img": "other",
		"config.dump":                  "{}",
		"netns/state.nsm":              "",
	})
	if err := checkpoint.Seal(tb.Context(), dir, valid()); err != nil {
		tb.Fatal(err)
	}
	return dir
}

func opens(t *testing.T, dir string) {
	t.Helper()
	m, err := checkpoint.OpenDir(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if m.ID != valid().ID || len(m.Entries) != 4 || m.Bytes() != 11 {
		t.Errorf("manifest %+v", m)
	}
}

func TestSealAndOpen(t *testing.T) {
	dir := sealed(t)
	opens(t, dir)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	check := exec.Command("sha256sum", "--check", "--strict", checkpoint.SumFile)
	check.Dir = dir
	if out, err := check.CombinedOutput(); err != nil {
		t.Errorf("sha256sum: %v: %s", err, out)
	}
	if err := checkpoint.Sync(dir); err != nil {
		t.Error(err)
	}
	// again, over an older manifest
	if err := checkpoint.Seal(t.Context(), dir, valid()); err != nil {
		t.Error(err)
	}
	opens(t, dir)
}

// TestFlipDir: one altered byte in any file, and every truncation, is noticed.
func TestFlipDir(t *testing.T) {
	dir := sealed(t)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		refused := func(changed []byte, what string, at int) {
			t.Helper()
			if err := os.WriteFile(path, changed, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := checkpoint.OpenDir(context.Background(), dir); !errors.Is(err, checkpoint.ErrDamaged) || !strings.Contains(err.Error(), "manifest") && !strings.Contains(err.Error(), name) {
				t.Fatalf("%s: %s %d: %v", name, what, at, err)
			}
		}
		for i := range data {
			for _, bit := range []byte{0x01, 0x80} {
				data[i] ^= bit
				refused(data, "byte", i)
				data[i] ^= bit
			}
		}
		for n := range data {
			refused(data[:n], "cut to", n)
		}
		refused(append(slices.Clip(data), 0), "longer than", len(data))
		return os.WriteFile(path, data, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	opens(t, dir)
}

func TestOpenDirDamaged(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "core")
	if err := os.WriteFile(outside, []byte("core"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		want  string
		spoil func(dir string) error
	}{
		{"damaged image: config.dump: missing", func(dir string) error { return os.Remove(filepath.Join(dir, "config.dump")) }},
		{"damaged image: netns/state.nsm: missing", func(dir string) error { return os.RemoveAll(filepath.Join(dir, "netns")) }},
		{"damaged image: manifest.json: missing: no image, or an incomplete one", func(dir string) error {
			return os.Remove(filepath.Join(dir, "manifest.json"))
		}},
		{"damaged image: manifest.sha256: missing: no image, or an incomplete one", func(dir string) error {
			return os.Remove(filepath.Join(dir, "manifest.sha256"))
		}},
		{"damaged image: netns/more: extra: not in the manifest", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "netns/more"), nil, 0o600)
		}},
		{"damaged image: checkpoint/parent: extra: not in the manifest", func(dir string) error {
			return os.Symlink("/", filepath.Join(dir, "checkpoint/parent"))
		}},
		{"damaged image: checkpoint/core-1.img: altered: it is a symbolic link", func(dir string) error {
			path := filepath.Join(dir, "checkpoint/core-1.img")
			return errors.Join(os.Remove(path), os.Symlink(outside, path))
		}},
		{"damaged image: checkpoint/core-1.img: altered: it is a named pipe", func(dir string) error {
			path := filepath.Join(dir, "checkpoint/core-1.img")
			return errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o600))
		}},
		{"damaged image: manifest.json: altered: it is a symbolic link", func(dir string) error {
			path := filepath.Join(dir, "manifest.json")
			return errors.Join(os.Rename(path, outside+".json"), os.Symlink(outside+".json", path))
		}},
		{"damaged image: manifest.sha256: altered: it is a directory", func(dir string) error {
			path := filepath.Join(dir, "manifest.sha256")
			return errors.Join(os.Remove(path), os.Mkdir(path, 0o700))
		}},
		{"damaged image: config.dump: missing", func(dir string) error {
			path := filepath.Join(dir, "config.dump")
			return errors.Join(os.Remove(path), os.Mkdir(path, 0o700))
		}},
		{"damaged image: manifest.json: altered: 67108865 bytes, more than 67108864", func(dir string) error {
			return os.Truncate(filepath.Join(dir, "manifest.json"), checkpoint.MaxManifest+1)
		}},
		{"damaged image: checkpoint/core-1.img: truncated: 3 bytes of 4", func(dir string) error {
			return os.Truncate(filepath.Join(dir, "checkpoint/core-1.img"), 3)
		}},
		{"damaged image: checkpoint/core-1.img: altered: 5 bytes, want 4", func(dir string) error {
			return os.Truncate(filepath.Join(dir, "checkpoint/core-1.img"), 5)
		}},
		{"damaged image: checkpoint/core-1.img: altered: its digest is not the manifest's", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "checkpoint/core-1.img"), []byte("cord"), 0o600)
		}},
	} {
		dir := sealed(t)
		if err := test.spoil(dir); err != nil {
			t.Fatal(err)
		}
		m, err := checkpoint.OpenDir(t.Context(), dir)
		if want := "open image " + dir + ": " + test.want; m != nil || !errors.Is(err, checkpoint.ErrDamaged) || err.Error() != want {
			t.Errorf("%v\nwant\n%s", err, want)
		}
	}
	_, err := checkpoint.OpenDir(t.Context(), filepath.Join(t.TempDir(), "absent"))
	if !errors.Is(err, fs.ErrNotExist) || errors.Is(err, checkpoint.ErrDamaged) {
		t.Errorf("no directory: %v", err)
	}
}

func TestSealRefuses(t *testing.T) {
	for want, spoil := range map[string]func(path string) error{
		"a symbolic link": func(path string) error { return os.Symlink("config.dump", path) },
		"a named pipe":    func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"a socket":        func(path string) error { return syscall.Mknod(path, syscall.S_IFSOCK|0o600, 0) },
	} {
		dir := sealed(t)
		if err := spoil(filepath.Join(dir, "checkpoint/parent")); err != nil {
			t.Fatal(err)
		}
		err := checkpoint.Seal(t.Context(), dir, valid())
		if want := "seal image " + dir + ": checkpoint/parent: " + want + " can't be part of an image"; err == nil || err.Error() != want {
			t.Errorf("%v\nwant\n%s", err, want)
		}
		// what was sealed before is no image any more
		if _, err := checkpoint.ReadManifest(dir); !errors.Is(err, checkpoint.ErrDamaged) {
			t.Errorf("after a failure: %v", err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := checkpoint.Seal(ctx, sealed(t), valid()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// other returns a directory on another filesystem than the tests' own.
func other(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "nsmigrate-test-*")
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestStoreDir(t *testing.T) {
	for name, parent := range map[string]string{"move": t.TempDir(), "copy": other(t)} {
		t.Run(name, func(t *testing.T) {
			parent := parent
			image := func() string {
				from := filepath.Join(parent, "from")
				os.RemoveAll(from)
				if err := os.Rename(sealed(t), from); err != nil {
					from = sealed(t)
				}
				return from
			}
			to := filepath.Join(parent, "to")
			for range 2 { // absent, then empty
				if err := checkpoint.StoreDir(t.Context(), image(), to); err != nil {
					t.Fatal(err)
				}
				opens(t, to)
				os.RemoveAll(to)
				if err := os.Mkdir(to, 0o755); err != nil {
					t.Fatal(err)
				}
			}

			write(t, to, map[string]string{"precious": "x"})
			from := image()
			err := checkpoint.StoreDir(t.Context(), from, to)
			if want := "store image in " + to + ": directory " + to + " is not empty: file already exists"; err == nil || err.Error() != want || !errors.Is(err, fs.ErrExist) {
				t.Errorf("%v\nwant\n%s", err, want)
			}
			opens(t, from)

			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if err := checkpoint.StoreDir(ctx, from, filepath.Join(parent, "never")); !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled: %v", err)
			}
			opens(t, from)
			if err := checkpoint.StoreDir(t.Context(), from, filepath.Join(parent, "no/parent")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("no parent: %v", err)
			}
			list, err := os.ReadDir(parent)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range list {
				if e.Name() != "from" && e.Name() != "to" {
					t.Errorf("%s is left behind", e.Name())
				}
			}
		})
	}
}

func TestCheckDir(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{
		filepath.Join(dir, "new"):     nil,
		t.TempDir():                   nil,
		dir:                           fs.ErrExist,
		file:                          syscall.ENOTDIR,
		filepath.Join(dir, "a", "b"):  fs.ErrNotExist,
		filepath.Join(file, "inside"): syscall.ENOTDIR,
	} {
		if err := checkpoint.CheckDir(path); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
}
