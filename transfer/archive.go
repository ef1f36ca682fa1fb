package transfer

import (
	"archive/tar"
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"github.com/nsmigrate/nsmigrate/checkpoint"
)

const chunk = 256 << 10 // bytes that are moved at a time: what stays in a core's cache

// PackOptions of an archive. The zero value compresses with zstd.
type PackOptions struct {
	Compression Compression
	Progress    func(done int64) // told how many of [checkpoint.Manifest.Bytes] are done; may be nil
	Ahead       *Ahead           // has packed chunks already, with zstd; may be nil
}

// UnpackOptions of an archive. The zero value unpacks everything.
type UnpackOptions struct {
	Want     func(name string) bool // nil, or entries to write; others are verified all the same
	Progress func(done int64)       // as in [PackOptions]
}

// item is one header of an archive and, for a file, where its content is.
type item struct {
	header *tar.Header
	data   []byte            // of the manifest and its digest
	entry  *checkpoint.Entry // of other files
}

// layout returns the sequence of an archive, which the manifest determines.
func layout(m *checkpoint.Manifest, manifest, sum []byte) []item {
	file := func(name string, size int64) *tar.Header {
		return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, ModTime: m.Created}
	}
	items := []item{
		{header: file(checkpoint.ManifestFile, int64(len(manifest))), data: manifest},
		{header: file(checkpoint.SumFile, int64(len(sum))), data: sum},
	}
	seen := map[string]bool{".": true}
	var enter func(dir string)
	enter = func(dir string) {
		if seen[dir] {
			return
		}
		enter(path.Dir(dir))
		seen[dir] = true
		items = append(items, item{
			header: &tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o700, ModTime: m.Created},
		})
	}
	for i := range m.Entries {
		e := &m.Entries[i]
		enter(path.Dir(e.Name))
		items = append(items, item{header: file(e.Name, e.Size), entry: e})
	}
	return items
}

// Pack writes the image in dir, which [checkpoint.Seal] described in m, as an archive. It reads each entry once and
// takes m's word for its digest, which Unpack checks. If ctx ends in a write to w, that may be under way still when
// Pack has returned.
func Pack(ctx context.Context, w io.Writer, dir string, m *checkpoint.Manifest, opts PackOptions) error {
	if err := pack(ctx, w, dir, m, opts); err != nil {
		return fmt.Errorf("pack image: %w", err)
	}
	return nil
}

func pack(ctx context.Context, w io.Writer, dir string, m *checkpoint.Manifest, opts PackOptions) error {
	manifest, err := checkpoint.EncodeManifest(m)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()

	out := bufio.NewWriterSize(contextWriter{ctx, w}, chunk)
	sealed := newSealWriter(out)
	items := layout(m, manifest, checkpoint.SumLine(manifest))
	compression := cmp.Or(opts.Compression, Zstd)
	p := &pump{ctx: ctx, buf: make([]byte, chunk), progress: opts.Progress, ahead: opts.Ahead}
	switch compression {
	case None:
		err = p.packAll(sealed, root, items)
	case Zstd:
		err = compress(sealed, func(w io.Writer) error { return p.packAll(w, root, items) })
	default:
		err = fmt.Errorf("compression %q: want %q or %q", compression, Zstd, None)
	}
	if err != nil {
		return err
	}
	if err := sealed.Seal(compression); err != nil {
		return err
	}
	return out.Flush()
}

// pump moves the content of entries in chunks and counts them.
type pump struct {
	ctx      context.Context
	buf      []byte
	done     int64
	progress func(done int64)
	ahead    *Ahead // may be nil
}

func (p *pump) packAll(w io.Writer, root *os.Root, items []item) error {
	for _, it := range items {
		if err := p.pack(w, root, it); err != nil {
			return fmt.Errorf("%s: %w", it.header.Name, err)
		}
	}
	return tar.NewWriter(w).Close()
}

// pack writes a part of a tar. What was packed ahead does not pass through a [tar.Writer], which therefore has headers alone.
func (p *pump) pack(w io.Writer, root *os.Root, it item) error {
	if err := tar.NewWriter(w).WriteHeader(it.header); err != nil {
		return err
	}
	if err := p.content(w, root, it); err != nil {
		return err
	}
	_, err := w.Write(make([]byte, -it.header.Size&(tarBlock-1)))
	return err
}

func (p *pump) content(w io.Writer, root *os.Root, it item) error {
	if it.entry == nil {
		_, err := w.Write(it.data)
		return err
	}
	f, err := root.Open(it.entry.Name)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() != it.entry.Size {
		return fmt.Errorf("changed since it was sealed: %d bytes, not %d", info.Size(), it.entry.Size)
	}
	if frames, ok := w.(*frameWriter); ok && p.ahead.has(it.entry) {
		return p.packed(frames, f, it.entry)
	}
	return p.copy(it.entry.Size, func(b []byte) error {
		if _, err := io.ReadFull(f, b); err != nil {
			return err
		}
		_, err := w.Write(b)
		return err
	})
}

// copy calls move for size bytes, chunk by chunk.
func (p *pump) copy(size int64, move func(b []byte) error) error {
	for size > 0 {
		if p.ctx.Err() != nil {
			return context.Cause(p.ctx)
		}
		b := p.buf[:min(size, int64(len(p.buf)))]
		if err := move(b); err != nil {
			return err
		}
		size -= int64(len(b))
		p.done += int64(len(b))
		if p.progress != nil {
			p.progress(p.done)
		}
	}
	return nil
}

// Unpack reads an archive to its end and writes the image to dir, which must be absent or empty. Nothing is left
// of it after an error. What the archive says is not trusted: it must have the names, sizes and digests of its
// manifest, in its order, and an unbroken seal; else the error wraps [checkpoint.ErrDamaged], or
// [checkpoint.ErrFormat] for an unknown major version. After an error a last read from r may be under way still.
// The image is not synced: see [checkpoint.Sync].
func Unpack(ctx context.Context, r io.Reader, dir string, opts UnpackOptions) (*checkpoint.Manifest, error) {
	m, err := unpackInto(ctx, r, dir, opts)
	if err != nil {
		return nil, fmt.Errorf("unpack image: %w", err)
	}
	return m, nil
}

func unpackInto(ctx context.Context, r io.Reader, dir string, opts UnpackOptions) (_ *checkpoint.Manifest, err error) {
	if err := checkpoint.CheckDir(dir); err != nil {
		return nil, err
	}
	made := os.Mkdir(dir, 0o700) == nil
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	m, err := unpack(ctx, r, root, opts)
	if err != nil {
		return nil, errors.Join(err, empty(root, dir, made))
	}
	return m, nil
}

// empty removes all below root, and dir itself if it was made for the image.
func empty(root *os.Root, dir string, made bool) error {
	if made {
		return os.RemoveAll(dir)
	}
	d, err := root.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	for _, name := range names {
		err = errors.Join(err, root.RemoveAll(name))
	}
	return err
}

func unpack(ctx context.Context, r io.Reader, root *os.Root, opts UnpackOptions) (*checkpoint.Manifest, error) {
	reading, stop := context.WithCancel(ctx)
	defer stop()
	sealed, err := newSealReader(contextReader{reading, r})
	if err != nil {
		return nil, err
	}
	body := io.Reader(sealed)
	if sealed.c == Zstd {
		frames, err := newFrameReader(sealed)
		if err != nil {
			return nil, err
		}
		defer func() {
			stop() // it may be in a read, and nobody knows whether that ends
			frames.Close()
		}()
		body = frames
	}
	u := &unpacker{
		pump: pump{ctx: ctx, buf: make([]byte, chunk), progress: opts.Progress},
		tar:  tar.NewReader(body),
		root: root,
		want: opts.Want,
	}
	m, manifest, sum, err := u.manifest()
	if err != nil {
		return nil, err
	}
	if err := u.entries(layout(m, manifest, sum)[2:]); err != nil {
		return nil, err
	}
	if n, err := body.Read(make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
		return nil, damaged("archive", cmp.Or(err, errors.New("data after its end")))
	}
	if err := sealed.Close(); err != nil {
		return nil, err
	}
	// The manifest is written last: without it a directory is no image.
	if err := root.WriteFile(checkpoint.ManifestFile, manifest, 0o600); err != nil {
		return nil, err
	}
	return m, root.WriteFile(checkpoint.SumFile, sum, 0o600)
}

type unpacker struct {
	pump
	tar  *tar.Reader
	root *os.Root
	want func(string) bool
}

// damaged says that an entry could not be read. If the reason is not the archive but what it was read from, it
// says that.
func damaged(name string, err error) error {
	if source, ok := errors.AsType[*sourceError](err); ok {
		return source
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %s: truncated: the archive ends early", checkpoint.ErrDamaged, name)
	}
	return fmt.Errorf("%w: %s: altered: %w", checkpoint.ErrDamaged, name, err)
}

// next reads a header and compares it with what must come. A negative size stands for any.
func (u *unpacker) next(want *tar.Header) (*tar.Header, error) {
	got, err := u.tar.Next()
	if err != nil {
		return nil, damaged(want.Name, err)
	}
	switch {
	case got.Name != want.Name:
		return nil, fmt.Errorf("%w: %q: extra: the manifest wants %q here", checkpoint.ErrDamaged, got.Name, want.Name)
	case got.Typeflag != want.Typeflag || got.Linkname != "":
		return nil, fmt.Errorf("%w: %s: altered: it has type %q, want %q", checkpoint.ErrDamaged, got.Name, got.Typeflag, want.Typeflag)
	case got.Size != want.Size && want.Size >= 0:
		return nil, fmt.Errorf("%w: %s: altered: %d bytes, want %d", checkpoint.ErrDamaged, got.Name, got.Size, want.Size)
	}
	return got, nil
}

// manifest reads the first two files.
func (u *unpacker) manifest() (m *checkpoint.Manifest, manifest, sum []byte, err error) {
	manifest, err = u.small(checkpoint.ManifestFile, checkpoint.MaxManifest)
	if err != nil {
		return nil, nil, nil, err
	}
	sum, err = u.small(checkpoint.SumFile, tarBlock)
	if err != nil {
		return nil, nil, nil, err
	}
	m, err = checkpoint.ParseManifest(manifest, sum)
	return m, manifest, sum, err
}

func (u *unpacker) small(name string, limit int64) ([]byte, error) {
	h, err := u.next(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: -1})
	if err != nil {
		return nil, err
	}
	if h.Size > limit {
		return nil, fmt.Errorf("%w: %s: altered: %d bytes, more than %d", checkpoint.ErrDamaged, name, h.Size, limit)
	}
	data, err := io.ReadAll(u.tar)
	if err != nil {
		return nil, damaged(name, err)
	}
	return data, nil
}

// entries reads the rest of the archive, which must be exactly the given items.
func (u *unpacker) entries(items []item) error {
	for _, it := range items {
		if _, err := u.next(it.header); err != nil {
			return err
		}
		var err error
		if it.entry == nil {
			err = u.root.Mkdir(path.Clean(it.header.Name), 0o700)
		} else {
			err = u.entry(it.entry)
		}
		if err != nil {
			return err
		}
	}
	switch h, err := u.tar.Next(); {
	case err == nil:
		return fmt.Errorf("%w: %q: extra: not in the manifest", checkpoint.ErrDamaged, h.Name)
	case !errors.Is(err, io.EOF):
		return damaged("archive", err)
	}
	return nil
}

// entry verifies one file and writes it if it is wanted.
func (u *unpacker) entry(e *checkpoint.Entry) error {
	if u.want != nil && !u.want(e.Name) {
		return u.verified(e, io.Discard)
	}
	f, err := u.root.OpenFile(e.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return cmp.Or(u.verified(e, f), f.Close())
}

func (u *unpacker) verified(e *checkpoint.Entry, w io.Writer) error {
	var digest checkpoint.Digest
	err := u.copy(e.Size, func(b []byte) error {
		if _, err := io.ReadFull(u.tar, b); err != nil {
			return damaged(e.Name, err)
		}
		digest.Write(b) //nolint:errcheck // never fails
		_, err := w.Write(b)
		return err
	})
	if err != nil {
		return err
	}
	return e.Check(e.Size, digest.Sum())
}
