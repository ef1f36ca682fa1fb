package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/nsmigrate/nsmigrate/checkpoint"
)

// FileStore stores an image as one file. It is a [checkpoint.Store].
type FileStore struct {
	Path    string
	Options PackOptions

	staged string
}

// Stage implements [checkpoint.Store].
func (s *FileStore) Stage(ctx context.Context, dir string, m *checkpoint.Manifest) error {
	to, err := destination(s.Path)
	if err != nil {
		return fmt.Errorf("store image: %w", err)
	}
	if to.stream {
		return packStream(ctx, to.path, dir, m, s.Options)
	}
	s.staged = filepath.Join(filepath.Dir(to.path), "."+filepath.Base(to.path)+".staged")
	return PackFile(ctx, s.staged, dir, m, s.Options)
}

// Publish implements [checkpoint.Store].
func (s *FileStore) Publish() error {
	if s.staged == "" {
		return nil
	}
	return checkpoint.PublishFile(s.staged, s.Path)
}

// Discard implements [checkpoint.Store].
func (s *FileStore) Discard() error {
	if s.staged == "" {
		return nil
	}
	if err := os.Remove(s.staged); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("discard image: %w", err)
	}
	return nil
}

// StreamStore writes an image to a stream, whose reader knows it to be whole by its end. It is a
// [checkpoint.Store].
type StreamStore struct {
	Writer  io.Writer
	Options PackOptions
}

// Stage implements [checkpoint.Store].
func (s *StreamStore) Stage(ctx context.Context, dir string, m *checkpoint.Manifest) error {
	return Pack(ctx, s.Writer, dir, m, s.Options)
}

// Publish implements [checkpoint.Store].
func (s *StreamStore) Publish() error { return nil }

// Discard implements [checkpoint.Store]. What was written can't be taken back; without its end it is no image.
func (s *StreamStore) Discard() error { return nil }

var (
	_ checkpoint.Store = (*FileStore)(nil)
	_ checkpoint.Store = (*StreamStore)(nil)
)
