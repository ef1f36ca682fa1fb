package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/transfer"
	"github.com/nsmigrate/nsmigrate/transfer/offline"
)

// store returns the store for a destination. progress, op and ahead, which has packed a part of the image, may be nil.
func (u *ui) store(d destination, progress checkpoint.Progress, op *offline.Operation, ahead *transfer.Ahead) checkpoint.Store {
	opts := transfer.PackOptions{Compression: transfer.None, Ahead: ahead}
	if d.compress {
		opts.Compression = transfer.Zstd
	}
	switch {
	case d.stdout:
		return &streamStore{w: u.out, opts: opts, progress: progress, op: op}
	case d.dir != "":
		return &placeStore{to: d.dir, op: op, write: func(ctx context.Context, at, dir string, _ *checkpoint.Manifest) error {
			return checkpoint.StoreDir(ctx, dir, at)
		}}
	}
	return &placeStore{to: d.file, op: op, write: func(ctx context.Context, at, dir string, m *checkpoint.Manifest) error {
		return transfer.PackFile(ctx, at, dir, m, withProgress(opts, m, progress))
	}}
}

func withProgress(opts transfer.PackOptions, m *checkpoint.Manifest, progress checkpoint.Progress) transfer.PackOptions {
	if progress != nil {
		total := m.Bytes()
		opts.Progress = func(done int64) { progress.Bytes(done, total) }
	}
	return opts
}

// placeStore stages an image beside the place where it is to be, and moves it there.
type placeStore struct {
	to     string
	write  func(ctx context.Context, at, dir string, m *checkpoint.Manifest) error
	staged string
	op     *offline.Operation
}

// Stage is [checkpoint.Store].
func (s *placeStore) Stage(ctx context.Context, dir string, m *checkpoint.Manifest) error {
	to, err := filepath.Abs(s.to)
	if err != nil {
		return err
	}
	if real, err := filepath.EvalSymlinks(to); err == nil {
		to = real
	}
	s.to = to
	s.staged = filepath.Join(filepath.Dir(to), fmt.Sprintf(".%s.%s.staged", filepath.Base(to), m.ID))
	if err := s.op.Staging(s.staged, s.to); err != nil {
		return err
	}
	if err := s.write(ctx, s.staged, dir, m); err != nil {
		return err
	}
	return s.op.Whole(nil)
}

// Publish is [checkpoint.Store]. If the name was taken meanwhile, the image keeps the one that the error tells:
// it may be the only copy of a service.
func (s *placeStore) Publish() error { return transfer.Place(s.staged, s.to) }

// Discard is [checkpoint.Store].
func (s *placeStore) Discard() error {
	if s.staged == "" {
		return nil
	}
	return os.RemoveAll(s.staged)
}

// streamStore writes an archive to a reader that can't be asked whether it has it. The end of the archive is
// held back until the source is gone, so that nobody can restore an image whose source may yet be resumed.
type streamStore struct {
	w        io.Writer
	opts     transfer.PackOptions
	progress checkpoint.Progress
	held     heldWriter
	op       *offline.Operation
}

// Stage is [checkpoint.Store].
func (s *streamStore) Stage(ctx context.Context, dir string, m *checkpoint.Manifest) error {
	s.held.w = s.w
	if err := transfer.Pack(ctx, &s.held, dir, m, withProgress(s.opts, m, s.progress)); err != nil {
		return err
	}
	return s.op.Whole(s.held.tail)
}

// Publish is [checkpoint.Store].
func (s *streamStore) Publish() error {
	if _, err := s.w.Write(s.held.tail); err != nil {
		return err
	}
	if f, ok := s.w.(*os.File); ok {
		if err := f.Sync(); err != nil && !errors.Is(err, unix.EINVAL) { // no file
			return err
		}
	}
	return s.op.Published()
}

// Discard is [checkpoint.Store]. What was written lacks its end, which every reader takes for damage.
func (s *streamStore) Discard() error { return nil }

// heldBack is so much that it includes a part of the seal of every archive.
const heldBack = 32

// heldWriter passes on all but the last bytes that are written to it.
type heldWriter struct {
	w    io.Writer
	tail []byte
}

func (h *heldWriter) Write(p []byte) (int, error) {
	h.tail = append(h.tail, p...)
	if n := len(h.tail) - heldBack; n > 0 {
		if _, err := h.w.Write(h.tail[:n]); err != nil {
			return 0, err
		}
		h.tail = append(h.tail[:0], h.tail[n:]...)
	}
	return len(p), nil
}
