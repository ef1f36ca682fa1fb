package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/transfer"
)

// names returns what is in dir.
func names(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range list {
		all = append(all, e.Name())
	}
	return all
}

func TestPackFile(t *testing.T) {
	dir, m := image(t, small())
	at := t.TempDir()
	path := filepath.Join(at, "svc.nsm")
	packFile := func(ctx context.Context, path string) error {
		return transfer.PackFile(ctx, path, dir, m, transfer.PackOptions{})
	}
	unpacks := func(path string) {
		t.Helper()
		if _, err := transfer.UnpackFile(t.Context(), path, filepath.Join(t.TempDir(), "image"), transfer.UnpackOptions{}); err != nil {
			t.Error(err)
		}
	}

	if err := packFile(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	unpacks(path)
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}

	// what is there may be the only copy of a service
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := "pack image: file " + path + " is not empty: file already exists"
	if err := packFile(t.Context(), path); !errors.Is(err, fs.ErrExist) || err.Error() != want {
		t.Errorf("%v\nwant\n%s", err, want)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("an image was replaced: %v", err)
	}

	// an empty file, by another name
	empty, link := filepath.Join(at, "empty"), filepath.Join(at, "link")
	if err := errors.Join(os.WriteFile(empty, nil, 0o644), os.Symlink("empty", link)); err != nil {
		t.Fatal(err)
	}
	if err := packFile(t.Context(), link); err != nil {
		t.Fatal(err)
	}
	unpacks(empty)
	if info, err := os.Lstat(link); err != nil || info.Mode().Type() != fs.ModeSymlink {
		t.Errorf("the link was replaced: %v, %v", info.Mode(), err)
	}

	// a pipe is written to, not replaced
	pipe := filepath.Join(at, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- packFile(t.Context(), pipe) }()
	unpacks(pipe)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if info, err := os.Lstat(pipe); err != nil || info.Mode().Type() != fs.ModeNamedPipe {
		t.Errorf("the pipe was replaced: %v, %v", info.Mode(), err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := packFile(ctx, filepath.Join(at, "never")); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := packFile(t.Context(), filepath.Join(at, "no", "parent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no parent: %v", err)
	}
	if err := packFile(t.Context(), at); err == nil {
		t.Error("a directory is accepted")
	}
	if got := names(t, at); len(got) != 4 {
		t.Errorf("left behind: %v", got)
	}

	for path, want := range map[string]error{
		filepath.Join(at, "new"):    nil,
		"/dev/null":                 nil,
		pipe:                        nil,
		path:                        fs.ErrExist,
		filepath.Join(at, "a", "b"): fs.ErrNotExist,
	} {
		if err := transfer.CheckFile(path); !errors.Is(err, want) {
			t.Errorf("check %s: %v, want %v", path, err, want)
		}
	}
	if _, err := transfer.UnpackFile(t.Context(), filepath.Join(at, "new"), t.TempDir(), transfer.UnpackOptions{}); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, checkpoint.ErrDamaged) {
		t.Errorf("no file: %v", err)
	}
}
