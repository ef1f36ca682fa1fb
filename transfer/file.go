package transfer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint"
)

// CheckFile reports whether [PackFile] would accept path: nothing is there yet or an empty file, because what an
// archive replaces may be the only copy of a service; or something that is not a file but takes bytes, such as a
// named pipe.
func CheckFile(path string) error {
	_, err := destination(path)
	return err
}

// place is where an archive goes.
type place struct {
	path   string // real
	exists bool   // as an empty file, which may be replaced
	stream bool   // not a file: is written to as it is
}

func destination(path string) (place, error) {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		_, err := os.Stat(filepath.Dir(path))
		return place{path: path}, err
	case err != nil:
		return place{}, err
	case info.IsDir():
		return place{}, fmt.Errorf("%s is a directory", path)
	case !info.Mode().IsRegular():
		return place{path: path, stream: true}, nil
	case info.Size() > 0:
		return place{}, fmt.Errorf("file %s is not empty: %w", path, fs.ErrExist)
	}
	return place{path: path, exists: true}, nil
}

// PackFile is [Pack] to a file that exists durably and whole afterwards, with mode 0600, or not at all.
// See [CheckFile] for what may be at path before.
func PackFile(ctx context.Context, path, dir string, m *checkpoint.Manifest, opts PackOptions) error {
	to, err := destination(path)
	if err != nil {
		return fmt.Errorf("pack image: %w", err)
	}
	if to.stream {
		return packStream(ctx, to.path, dir, m, opts)
	}
	// CreateTemp opens with mode 0600.
	f, err := os.CreateTemp(filepath.Dir(to.path), "."+filepath.Base(to.path)+".*.tmp")
	if err != nil {
		return fmt.Errorf("pack image: %w", err)
	}
	err = errors.Join(packSync(ctx, f, dir, m, opts), f.Close())
	if err == nil {
		err = to.replace(f.Name())
	}
	if err != nil {
		os.Remove(f.Name()) //nolint:errcheck // gone already if it was renamed
		return err
	}
	return nil
}

func packSync(ctx context.Context, f *os.File, dir string, m *checkpoint.Manifest, opts PackOptions) error {
	if err := Pack(ctx, f, dir, m, opts); err != nil {
		return err
	}
	return f.Sync()
}

func packStream(ctx context.Context, path, dir string, m *checkpoint.Manifest, opts PackOptions) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("pack image: %w", err)
	}
	return errors.Join(Pack(ctx, f, dir, m, opts), f.Close())
}

// replace puts the file tmp in its place and syncs the directory. After an error nothing new is there.
func (to place) replace(tmp string) error {
	flags := uint(unix.RENAME_NOREPLACE)
	if to.exists {
		flags = 0
	}
	err := unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, to.path, flags)
	if errors.Is(err, unix.EINVAL) { // a filesystem without RENAME_NOREPLACE, such as NFS
		err = os.Rename(tmp, to.path)
	}
	if err != nil {
		return &os.PathError{Op: "place archive", Path: to.path, Err: err}
	}
	if err := syncDir(filepath.Dir(to.path)); err != nil {
		return errors.Join(err, os.Remove(to.path))
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}

// UnpackFile is [Unpack] from a file.
func UnpackFile(ctx context.Context, path, dir string, opts UnpackOptions) (*checkpoint.Manifest, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("unpack image: %w", err)
	}
	defer f.Close()
	m, err := Unpack(ctx, f, dir, opts)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// Place gives an image, a file or a directory, the name to, durably. It replaces nothing but an empty directory.
func Place(staged, to string) error {
	// rename(2) replaces an empty directory, and never one with something in it; of files, neither.
	err := unix.Renameat2(unix.AT_FDCWD, staged, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if info, statErr := os.Stat(staged); err != nil && statErr == nil && (info.IsDir() || errors.Is(err, unix.EINVAL)) {
		err = unix.Rename(staged, to)
	}
	if err != nil {
		return fmt.Errorf("the image is at %s and could not be moved to %s: %w", staged, to, err)
	}
	return syncDir(filepath.Dir(to))
}
