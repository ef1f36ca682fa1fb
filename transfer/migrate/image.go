package migrate

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sync"

	"github.com/nsmigrate/nsmigrate/transfer/handover"
)

// The image of a frozen service goes through the stream in three ways, each in as many entries as it takes:
//
//   - memory as CRIU reads it, in pieces that are appended to the pages file they are named after;
//   - the small files that CRIU wrote, a thousand for a thousand connections, together in archives of this name;
//   - every other file as an entry of its own.
const filesEntry = "image.tar"

const (
	smallFile = 256 << 10 // bytes, at most, of a file that travels with others
	together  = 4 << 20   // bytes of files that are enough for an archive
)

// inTurn has entries follow each other that several goroutines send.
type inTurn struct {
	mu   sync.Mutex
	next handover.SendEntry
}

func (t *inTurn) send(ctx context.Context, name string, size int64, r io.Reader) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.next(ctx, name, size, r)
}

// sendImage sends the files below dir.
func sendImage(ctx context.Context, dir string, send handover.SendEntry) error {
	b := &bundle{ctx: ctx, send: send}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		return b.add(path, filepath.ToSlash(name))
	})
	if err != nil {
		return err
	}
	return b.flush()
}

// bundle gathers small files.
type bundle struct {
	ctx  context.Context
	send handover.SendEntry
	buf  bytes.Buffer
	tar  *tar.Writer // nil if there is nothing in buf
}

func (b *bundle) add(path, name string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() > smallFile {
		return b.send(b.ctx, name, info.Size(), f)
	}
	if b.tar == nil {
		b.tar = tar.NewWriter(&b.buf)
	}
	if err := b.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: info.Size(), Mode: 0o600}); err != nil {
		return err
	}
	if _, err := io.CopyN(b.tar, f, info.Size()); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if b.buf.Len() < together {
		return nil
	}
	return b.flush()
}

func (b *bundle) flush() error {
	if b.tar == nil {
		return nil
	}
	if err := b.tar.Close(); err != nil {
		return err
	}
	defer b.buf.Reset()
	b.tar = nil
	return b.send(b.ctx, filesEntry, int64(b.buf.Len()), bytes.NewReader(b.buf.Bytes()))
}

// storeImage takes a piece of an image into dir.
func storeImage(dir, name string, r io.Reader) error {
	switch {
	case name == filesEntry:
		return storeFiles(dir, r)
	case isPages(name):
		return appendPages(dir, name, r)
	}
	return storeFile(dir, name, r)
}

// storeFiles takes an archive of files.
func storeFiles(dir string, r io.Reader) error {
	for archive := tar.NewReader(r); ; {
		h, err := archive.Next()
		switch {
		case errors.Is(err, io.EOF):
			_, err := io.Copy(io.Discard, r) // what fills the archive's last block
			return err
		case err != nil:
			return err
		case h.Typeflag != tar.TypeReg:
			return fmt.Errorf("%q is no file", h.Name)
		}
		if err := storeFile(dir, h.Name, archive); err != nil {
			return err
		}
	}
}

func storeFile(dir, name string, r io.Reader) error {
	f, err := create(dir, name, os.O_EXCL)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// create opens a file of an image for writing, and makes it if it is not there.
func create(dir, name string, flags int) (*os.File, error) {
	if !filepath.IsLocal(name) || name == "." {
		return nil, fmt.Errorf("entry %q leads out of the image", name)
	}
	file := filepath.Join(dir, name)
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|flags, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return nil, err
		}
		f, err = os.OpenFile(file, os.O_WRONLY|os.O_CREATE|flags, 0o600)
	}
	return f, err
}

// isPages says whether a file of an image holds memory.
func isPages(name string) bool {
	ok, _ := path.Match("pages-*.img", path.Base(name)) // the pattern is well-formed
	return ok
}

// appendPages appends memory to a file. Pages of zeros take no room.
func appendPages(dir, name string, r io.Reader) error {
	f, err := create(dir, name, 0)
	if err != nil {
		return err
	}
	end, err := f.Seek(0, io.SeekEnd)
	if err == nil {
		w := &holeWriter{f: f, end: end}
		if _, err = io.Copy(w, r); err == nil {
			err = f.Truncate(w.end)
		}
	}
	return errors.Join(err, f.Close())
}

const pageSize = 4 << 10

// holeWriter appends to a file and leaves out what is zero, in units of pages.
type holeWriter struct {
	f   *os.File
	end int64
}

func (w *holeWriter) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		skip := run(rest, true)
		data := run(rest[skip:], false)
		if data > 0 {
			if _, err := w.f.WriteAt(rest[skip:skip+data], w.end+int64(skip)); err != nil {
				return len(p) - len(rest), err
			}
		}
		w.end += int64(skip + data)
		rest = rest[skip+data:]
	}
	return len(p), nil
}

// run returns how many bytes at the beginning of p are in pages that are all zero, or all not.
func run(p []byte, zero bool) int {
	var zeros [pageSize]byte
	n := 0
	for n < len(p) {
		page := p[n:min(n+pageSize, len(p))]
		if bytes.Equal(page, zeros[:len(page)]) != zero {
			break
		}
		n += len(page)
	}
	return n
}
