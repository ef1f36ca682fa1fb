package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const chunk = 1 << 20 // bytes between two looks at the context

// Seal makes what lies in dir an image: it sets m.Format and m.Entries, closes every file and directory to other
// users, and writes the manifest. The files must be complete; anything but files and directories is refused.
// Seal does not sync: see [Sync].
func Seal(ctx context.Context, dir string, m *Manifest) error {
	return sealBegun(ctx, dir, m, nil, nil)
}

// sealBegun is Seal for an image of which some files are digested in part. told, which may be nil, is told of all other chunks.
func sealBegun(ctx context.Context, dir string, m *Manifest, begun map[string][]chunkSum, told ChunkFunc) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("seal image: %w", err)
	}
	defer root.Close()
	if err := seal(ctx, root, m, begun, told); err != nil {
		return fmt.Errorf("seal image %s: %w", dir, err)
	}
	return nil
}

func seal(ctx context.Context, root *os.Root, m *Manifest, begun map[string][]chunkSum, told ChunkFunc) error {
	// An older manifest must not vouch for anything if this run ends early.
	for _, name := range []string{SumFile, ManifestFile} {
		if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	files, err := closeToOthers(root)
	if err != nil {
		return err
	}
	entries, err := digestFiles(ctx, root, files, begun, told)
	if err != nil {
		return err
	}
	m.Format = Format{Major: FormatMajor, Minor: FormatMinor}
	m.Entries = entries
	data, err := EncodeManifest(m)
	if err != nil {
		return err
	}
	if err := root.WriteFile(ManifestFile, data, 0o600); err != nil {
		return err
	}
	return root.WriteFile(SumFile, SumLine(data), 0o600)
}

// closeToOthers gives root and all below it the modes of an image and returns the names of its files, sorted.
func closeToOthers(root *os.Root) ([]string, error) {
	var files []string
	err := fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return root.Chmod(name, 0o700)
		case !d.Type().IsRegular():
			return fmt.Errorf("%s: %s can't be part of an image", name, kindOf(d.Type()))
		}
		files = append(files, name)
		return root.Chmod(name, 0o600)
	})
	slices.Sort(files)
	return files, err
}

func kindOf(t fs.FileMode) string {
	switch {
	case t&fs.ModeSymlink != 0:
		return "a symbolic link"
	case t&fs.ModeNamedPipe != 0:
		return "a named pipe"
	case t&fs.ModeSocket != 0:
		return "a socket"
	case t&fs.ModeDevice != 0:
		return "a device"
	case t.IsDir():
		return "a directory"
	}
	return "what is no file"
}

func copyChunks(ctx context.Context, w io.Writer, r io.Reader) (int64, error) {
	buf := make([]byte, chunk)
	var total int64
	for {
		if err := ctx.Err(); err != nil {
			return total, context.Cause(ctx)
		}
		n, err := r.Read(buf)
		if _, err := w.Write(buf[:n]); err != nil {
			return total, err
		}
		total += int64(n)
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// OpenDir reads the manifest of the image in dir and verifies the image against it: every listed file is there
// with its size and digest, and no other. What differs is named in an error that wraps [ErrDamaged]; an image of
// an unknown major version is an [ErrFormat].
func OpenDir(ctx context.Context, dir string) (*Manifest, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	defer root.Close()
	m, err := readManifest(root)
	if err == nil {
		err = verify(ctx, root, m)
	}
	if err != nil {
		return nil, fmt.Errorf("open image %s: %w", dir, err)
	}
	return m, nil
}

// ReadManifest is [OpenDir] without a look at the entries: for the writer of an image, which has just sealed it,
// and for who only wants to show it.
func ReadManifest(dir string) (*Manifest, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	defer root.Close()
	m, err := readManifest(root)
	if err != nil {
		return nil, fmt.Errorf("open image %s: %w", dir, err)
	}
	return m, nil
}

func readManifest(root *os.Root) (*Manifest, error) {
	manifest, err := readSmall(root, ManifestFile, MaxManifest)
	if err != nil {
		return nil, err
	}
	sum, err := readSmall(root, SumFile, 4096)
	if err != nil {
		return nil, err
	}
	return ParseManifest(manifest, sum)
}

func readSmall(root *os.Root, name string, limit int64) ([]byte, error) {
	info, err := root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: %s: missing: no image, or an incomplete one", ErrDamaged, name)
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%w: %s: altered: it is %s", ErrDamaged, name, kindOf(info.Mode()))
	case info.Size() > limit:
		return nil, fmt.Errorf("%w: %s: altered: %d bytes, more than %d", ErrDamaged, name, info.Size(), limit)
	}
	return root.ReadFile(name)
}

// verify compares the image below root with its manifest: what costs nothing first, then the digests.
func verify(ctx context.Context, root *os.Root, m *Manifest) error {
	if err := verifyNames(root, m.Entries); err != nil {
		return err
	}
	names := make([]string, len(m.Entries))
	for i, e := range m.Entries {
		names[i] = e.Name
	}
	found, err := digestFiles(ctx, root, names, nil, nil)
	if err != nil {
		return err
	}
	for i, e := range m.Entries {
		if err := e.Check(found[i].Size, found[i].Digest); err != nil {
			return err
		}
	}
	return nil
}

// verifyNames looks at names, types and sizes. Directories carry nothing, so that an empty one does no harm.
func verifyNames(root *os.Root, entries []Entry) error {
	missing := make(map[string]Entry, len(entries))
	for _, e := range entries {
		missing[e.Name] = e
	}
	err := fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || name == ManifestFile || name == SumFile {
			return err
		}
		e, ok := missing[name]
		if !ok {
			return fmt.Errorf("%w: %s: extra: not in the manifest", ErrDamaged, name)
		}
		if !d.Type().IsRegular() {
			return fmt.Errorf("%w: %s: altered: it is %s", ErrDamaged, name, kindOf(d.Type()))
		}
		delete(missing, name)
		info, err := d.Info()
		if err != nil {
			return err
		}
		return e.Check(info.Size(), e.Digest)
	})
	if err != nil {
		return err
	}
	for _, e := range entries {
		if _, ok := missing[e.Name]; ok {
			return fmt.Errorf("%w: %s: missing", ErrDamaged, e.Name)
		}
	}
	return nil
}

// Check compares what was found of an entry with the manifest. Its error wraps [ErrDamaged].
func (e Entry) Check(size int64, digest string) error {
	switch {
	case size < e.Size:
		return fmt.Errorf("%w: %s: truncated: %d bytes of %d", ErrDamaged, e.Name, size, e.Size)
	case size > e.Size:
		return fmt.Errorf("%w: %s: altered: %d bytes, want %d", ErrDamaged, e.Name, size, e.Size)
	case digest != e.Digest:
		return fmt.Errorf("%w: %s: altered: its digest is not the manifest's", ErrDamaged, e.Name)
	}
	return nil
}

// Sync makes the files and directories of the image in dir durable, except dir's own name in its parent.
func Sync(dir string) error {
	var g errgroup.Group
	g.SetLimit(8) // many at a time share a journal's commit
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && (d.IsDir() || d.Type().IsRegular()) {
			g.Go(func() error { return syncPath(path) })
		}
		return err
	})
	return errors.Join(err, g.Wait())
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	return nil
}

// CheckDir reports whether [StoreDir] would accept the directory to: it is absent or empty, and its parent exists.
func CheckDir(to string) error {
	_, err := destination(to)
	return err
}

// destination returns the real path of a directory that may be created or, being empty, replaced.
func destination(to string) (string, error) {
	abs, err := filepath.Abs(to)
	if err != nil {
		return "", err
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		abs = real
	}
	list, err := os.ReadDir(abs)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Stat(filepath.Dir(abs)); err != nil {
			return "", err
		}
	case err != nil:
		return "", err
	case len(list) > 0:
		return "", fmt.Errorf("directory %s is not empty: %w", to, fs.ErrExist)
	}
	return abs, nil
}

// StoreDir makes the sealed image in from durable as the directory to, whole or not at all. The directory to must
// be absent or empty. On one filesystem the image is moved and from is gone afterwards; else it is copied and from
// is left for the caller. After an error from is as it was, and to too.
func StoreDir(ctx context.Context, from, to string) error {
	if err := storeDir(ctx, from, to); err != nil {
		return fmt.Errorf("store image in %s: %w", to, err)
	}
	return nil
}

func storeDir(ctx context.Context, from, to string) (err error) {
	to, err = destination(to)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(to), "."+filepath.Base(to)+".*.tmp")
	if err != nil {
		return err
	}
	at, moved := tmp, false
	defer func() {
		switch {
		case err == nil:
		case moved:
			err = errors.Join(err, os.Rename(at, from))
		default:
			err = errors.Join(err, os.RemoveAll(at))
		}
	}()
	// unlike os.Rename, rename(2) replaces an empty directory
	switch err := unix.Rename(from, tmp); {
	case err == nil:
		moved = true
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EBUSY):
		if err := copyTree(ctx, from, tmp); err != nil {
			return err
		}
	default:
		return fmt.Errorf("move %s: %w", from, err)
	}
	if err := Sync(tmp); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	switch err := unix.Rename(tmp, to); {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: a mount point can't be replaced, name a directory below it", err)
	case err != nil:
		return err
	}
	at = to
	return syncPath(filepath.Dir(to))
}

// copyTree copies the files below from into the empty directory to.
func copyTree(ctx context.Context, from, to string) error {
	src, err := os.OpenRoot(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenRoot(to)
	if err != nil {
		return err
	}
	defer dst.Close()
	return fs.WalkDir(src.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil || name == ".":
			return err
		case d.IsDir():
			return dst.Mkdir(name, 0o700)
		}
		return copyFile(ctx, src, dst, name)
	})
}

func copyFile(ctx context.Context, src, dst *os.Root, name string) error {
	r, err := src.Open(name)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := dst.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err := copyChunks(ctx, w, r); err != nil {
		return errors.Join(fmt.Errorf("copy %s: %w", name, err), w.Close())
	}
	return w.Close()
}
