package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// DirStore stores an image as a directory, which must be absent or empty.
type DirStore struct {
	Path string

	staged bool
}

// stagedName is where a staged image waits for its name, beside it. Whoever finds one after a crash has a
// whole image; whether its source still lives only a look at the source host tells.
func stagedName(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".staged")
}

// Stage implements [Store].
func (s *DirStore) Stage(ctx context.Context, dir string, _ *Manifest) error {
	if err := CheckDir(s.Path); err != nil {
		return fmt.Errorf("store image: %w", err)
	}
	s.staged = true
	return StoreDir(ctx, dir, stagedName(s.Path))
}

// Publish implements [Store].
func (s *DirStore) Publish() error { return PublishFile(stagedName(s.Path), s.Path) }

// Discard implements [Store].
func (s *DirStore) Discard() error {
	if !s.staged {
		return nil
	}
	return os.RemoveAll(stagedName(s.Path))
}

// PublishFile gives a file or directory its name, durably. What the name stood for before, an empty file or
// directory, is replaced.
func PublishFile(from, to string) error {
	if err := unix.Rename(from, to); err != nil {
		return fmt.Errorf("name image: %w", &os.LinkError{Op: "rename", Old: from, New: to, Err: err})
	}
	return errors.Join(syncPath(filepath.Dir(to)))
}
