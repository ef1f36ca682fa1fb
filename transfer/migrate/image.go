package migrate

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/restore"
	"github.com/nsmigrate/nsmigrate/transfer/handover"
)

// The image of a frozen service goes through the stream in three ways, each in as many entries as it takes:
//
//   - memory as CRIU reads it, in pieces that are appended to the pages file they are named after;
//   - the small files that CRIU wrote, a thousand for a thousand connections, together in entries of this name: of each
//     the lengths of its name (2 bytes) and of its content (4 bytes), big endian, the name, and the content;
//   - every other file as an entry of its own.
const filesEntry = "image.files"

const (
	smallFile = 256 << 10 // bytes, at most, of a file that travels with others
	together  = 1 << 20   // bytes of files that are enough for an entry
	soon      = 128 << 10 // the same while CRIU writes others
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

// sendImage sends the files below dir that were not sent before.
func sendImage(ctx context.Context, dir string, before map[string]bool, send handover.SendEntry) error {
	b := &bundle{ctx: ctx, send: send, enough: together}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil || before[name] {
			return err
		}
		return b.add(path, filepath.ToSlash(name))
	})
	if err != nil {
		return err
	}
	return b.flush()
}

// early sends the files of connections, and the options of their sockets, while CRIU writes others: they are written once, and
// are a thousand of a thousand.
type early struct {
	dir   string
	watch *os.File // inotify(7)
	dirs  map[int32]string
	sent  map[string]bool
	done  chan error
}

// sendEarly begins to send files of an image in dir, in some directories of it, until finish is called. Where the kernel
// can't tell what is written, nothing is sent early.
func sendEarly(ctx context.Context, dir string, dirs []string, send handover.SendEntry) *early {
	e := &early{dir: dir, dirs: make(map[int32]string), sent: make(map[string]bool), done: make(chan error, 1)}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		e.done <- nil
		return e
	}
	e.watch = os.NewFile(uintptr(fd), "inotify")
	for _, d := range dirs {
		if id, err := unix.InotifyAddWatch(fd, filepath.Join(dir, d), unix.IN_CLOSE_WRITE|unix.IN_ONLYDIR); err == nil {
			e.dirs[int32(id)] = d
		}
	}
	go func() { e.done <- e.run(&bundle{ctx: ctx, send: send, enough: soon}) }()
	return e
}

// finish returns which files were sent.
func (e *early) finish() (map[string]bool, error) {
	if e.watch == nil {
		return e.sent, <-e.done
	}
	e.watch.SetReadDeadline(time.Unix(1, 0)) //nolint:errcheck // an inotify descriptor has deadlines
	err := <-e.done
	go e.watch.Close() // for which the kernel waits until all cores have seen it, some ten milliseconds
	return e.sent, err
}

func (e *early) run(b *bundle) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := e.watch.Read(buf)
		if err != nil {
			return b.flush() // finish was called
		}
		for rest := buf[:n]; len(rest) >= unix.SizeofInotifyEvent; {
			id := int32(binary.NativeEndian.Uint32(rest))
			size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(rest[12:]))
			file := string(bytes.TrimRight(rest[unix.SizeofInotifyEvent:size], "\x00"))
			rest = rest[size:]
			name := path.Join(e.dirs[id], file)
			connection, _ := path.Match("tcp-stream-*.img", file) // the pattern is well-formed
			if !connection && name != checkpoint.SocketsFile || e.sent[name] {
				continue
			}
			if err := b.add(filepath.Join(e.dir, name), name); err != nil {
				return err
			}
			e.sent[name] = true
		}
	}
}

// bundle gathers small files.
type bundle struct {
	ctx    context.Context
	send   handover.SendEntry
	enough int // bytes to be sent
	buf    []byte
}

const fileHeader = 2 + 4

func (b *bundle) add(path, name string) error {
	if len(name) > math.MaxUint16 {
		return fmt.Errorf("%s: a name of %d bytes", path, len(name))
	}
	start := len(b.buf)
	b.buf = binary.BigEndian.AppendUint16(b.buf, uint16(len(name)))
	b.buf = append(b.buf, 0, 0, 0, 0)
	b.buf = append(b.buf, name...)
	content := len(b.buf)
	b.buf = slices.Grow(b.buf, smallFile+1)
	n, err := readSmall(path, b.buf[content:content+smallFile+1])
	if err != nil {
		return err
	}
	if n > smallFile {
		b.buf = b.buf[:start]
		return b.alone(path, name)
	}
	binary.BigEndian.PutUint32(b.buf[start+2:], uint32(n))
	b.buf = b.buf[:content+n]
	if len(b.buf) < b.enough {
		return nil
	}
	return b.flush()
}

// alone sends a file as an entry of its own.
func (b *bundle) alone(path, name string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return b.send(b.ctx, name, info.Size(), f)
}

func (b *bundle) flush() error {
	if len(b.buf) == 0 {
		return nil
	}
	err := b.send(b.ctx, filesEntry, int64(len(b.buf)), bytes.NewReader(b.buf))
	b.buf = b.buf[:0]
	return err
}

// readSmall reads a file until p is full, in the three system calls that it takes: there may be thousands.
func readSmall(path string, p []byte) (n int, err error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	for n < len(p) {
		m, err := unix.Read(fd, p[n:])
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return n, &os.PathError{Op: "read", Path: path, Err: err}
		case m == 0:
			return n, nil
		default:
			n += m
		}
	}
	return n, nil
}

// writeSmall makes a file.
func writeSmall(path string, p []byte) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "create", Path: path, Err: err}
	}
	defer unix.Close(fd)
	for len(p) > 0 {
		n, err := unix.Write(fd, p)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return &os.PathError{Op: "write", Path: path, Err: err}
		}
		p = p[max(n, 0):]
	}
	return nil
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

// storeFiles takes files that came together.
func storeFiles(dir string, r io.Reader) error {
	in := bufio.NewReaderSize(r, smallFile)
	name, content := make([]byte, 0, 256), make([]byte, 0, 4096)
	for {
		var h [fileHeader]byte
		switch _, err := io.ReadFull(in, h[:]); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		size := int(binary.BigEndian.Uint32(h[2:]))
		if size > smallFile {
			return fmt.Errorf("a small file of %d bytes", size)
		}
		name = slices.Grow(name[:0], math.MaxUint16)[:binary.BigEndian.Uint16(h[:])]
		content = slices.Grow(content[:0], size)[:size]
		for _, p := range [][]byte{name, content} {
			if _, err := io.ReadFull(in, p); err != nil {
				return noEOF(err)
			}
		}
		if err := storeSmall(dir, string(name), content); err != nil {
			return err
		}
	}
}

// noEOF keeps an end in the middle from being taken for the end.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func storeSmall(dir, name string, content []byte) error {
	file, err := within(dir, name)
	if err != nil {
		return err
	}
	err = writeSmall(file, content)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return err
		}
		err = writeSmall(file, content)
	}
	return err
}

func storeFile(dir, name string, r io.Reader) error {
	f, err := create(dir, name, os.O_EXCL)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// within returns the path of a file of an image.
func within(dir, name string) (string, error) {
	if !filepath.IsLocal(name) || name == "." || strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("entry %q leads out of the image", name)
	}
	return filepath.Join(dir, restore.StoreAs(name)), nil
}

// create opens a file of an image for writing, and makes it if it is not there.
func create(dir, name string, flags int) (*os.File, error) {
	file, err := within(dir, name)
	if err != nil {
		return nil, err
	}
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
