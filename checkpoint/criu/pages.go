package criu

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// PageSink takes memory of a tree: size bytes, which it reads to their end, to be appended to the named image. The image
// exists from its first call on, which may be one of no bytes.
type PageSink func(ctx context.Context, name string, size int64, r io.Reader) error

// PageServer takes the memory of a tree from the criu that dumps it, in the place of CRIU's own page server, with which
// it shares the protocol (criu/page-xfer.c). Criu splices the pages into a socket, so that they are copied once, to
// where they go to, and never to a file on this host.
type PageServer struct {
	sock *os.File
	peer *os.File
	dir  string // for the maps of the images
}

// NewPageServer makes a page server that writes the maps that belong to the memory to the images directory dir.
func NewPageServer(dir string) (*PageServer, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	for _, fd := range fds {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, pageBuffer) //nolint:errcheck // less is only slower
	}
	if err := unix.SetNonblock(fds[0], true); err != nil { // so that the runtime can poll it
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	return &PageServer{sock: os.NewFile(uintptr(fds[0]), "pages"), peer: os.NewFile(uintptr(fds[1]), "criu-pages"), dir: dir}, nil
}

const (
	pageBuffer = 4 << 20 // bytes on their way
	pageSize   = 4 << 10 // of every architecture that we know the registers of
	gathered   = 1 << 20 // bytes of short runs of pages that are passed on together
	longRun    = 256 << 10
	lull       = 200 * time.Microsecond
	mostPages  = 1 << 52 / pageSize // in an address space
)

// Commands of the protocol.
const (
	psAdd        = 1
	psHole       = 2
	psOpen       = 4 // PS_IOV_OPEN2, which wants an answer
	psParent     = 5
	psAddFlags   = 6
	psClose      = 0x1023
	psForceClose = 0x1024

	psCommandBits = 16
	psTypeBits    = 8
	psTypePID     = 1
	psTypeShmem   = 2
)

// pageCommand is struct page_server_iov, in the byte order of the host.
type pageCommand struct {
	Command uint32
	_       uint32
	Pages   uint64
	Address uint64
	Image   uint64
}

const pageCommandSize = 32

// Serve takes the memory until criu says that it was all of it. After an error, before that, criu's dump fails.
func (s *PageServer) Serve(ctx context.Context, sink PageSink) error {
	defer s.sock.Close()
	defer context.AfterFunc(ctx, func() { s.sock.Close() })()
	t := &pageTaker{ctx: ctx, r: s.sock, w: s.sock, dir: s.dir, sink: sink}
	err := t.take()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("take memory from criu: %w", err)
	}
	return nil
}

// HungUp reports whether an error of [PageServer.Serve] says only that criu was gone.
func HungUp(err error) bool {
	return slices.ContainsFunc([]error{io.EOF, io.ErrUnexpectedEOF, unix.ECONNRESET, unix.EPIPE}, func(end error) bool { return errors.Is(err, end) })
}

// Close ends the server.
func (s *PageServer) Close() error { return errors.Join(closed(s.sock), closed(s.peer)) }

func closed(f *os.File) error {
	if err := f.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

type deadlineReader interface {
	io.Reader
	SetReadDeadline(t time.Time) error
}

// pageTaker speaks the server's part of the protocol.
type pageTaker struct {
	ctx  context.Context
	r    deadlineReader
	w    io.Writer
	dir  string
	sink PageSink

	images int    // so far
	name   string // of the one that is open, "" if none is
	begun  bool   // the sink has seen it
	pages  bytes.Buffer
	pmap   *os.File
	lines  []byte // of the map, not yet written
}

func (t *pageTaker) take() (err error) {
	defer func() {
		if t.pmap != nil {
			t.pmap.Close()
		}
	}()
	for {
		var raw [pageCommandSize]byte
		if err := t.next(raw[:]); err != nil {
			return err // an end, too: criu says when it is done
		}
		var c pageCommand
		if _, err := binary.Decode(raw[:], binary.NativeEndian, &c); err != nil {
			return err
		}
		switch command, flags := c.Command&(1<<psCommandBits-1), c.Command>>psCommandBits; command {
		case psOpen:
			err = t.open(c.Image)
		case psParent:
			_, err = t.w.Write(make([]byte, 4)) // there is none
		case psAdd:
			err = t.add(&c, pagePresent)
		case psHole:
			err = t.add(&c, pageInParent)
		case psAddFlags:
			err = t.add(&c, flags)
		case psClose, psForceClose:
			// All of it is here. What is passed on yet, criu need not wait for.
			if _, err := t.w.Write(make([]byte, 4)); err != nil {
				return err
			}
			return t.finish()
		default:
			err = fmt.Errorf("command %#x of the page server's protocol is unknown", command)
		}
		if err != nil {
			return err
		}
	}
}

// next reads a command. What was gathered is passed on while there is none: criu does other things between the memory of
// the last process and its farewell.
func (t *pageTaker) next(p []byte) error {
	n := 0
	if t.pages.Len() > 0 {
		t.r.SetReadDeadline(time.Now().Add(lull)) //nolint:errcheck // it has deadlines
		var err error
		n, err = io.ReadFull(t.r, p)
		t.r.SetReadDeadline(time.Time{}) //nolint:errcheck // see above
		if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		if err := t.pass(); err != nil {
			return err
		}
	}
	_, err := io.ReadFull(t.r, p[n:])
	return err
}

// open begins an image.
func (t *pageTaker) open(image uint64) error {
	if _, err := t.w.Write([]byte{0}); err != nil { // no parent
		return err
	}
	if err := t.finish(); err != nil {
		return err
	}
	id := image >> psTypeBits
	var name string
	switch image & (1<<psTypeBits - 1) {
	case psTypePID:
		name = fmt.Sprintf("pagemap-%d.img", id)
	case psTypeShmem:
		name = fmt.Sprintf("pagemap-shmem-%d.img", id)
	default:
		return fmt.Errorf("memory of an unknown type: %#x", image)
	}
	var err error
	if t.pmap, err = os.OpenFile(filepath.Join(t.dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return err
	}
	t.images++
	t.name, t.begun = fmt.Sprintf("pages-%d.img", t.images), false
	t.lines = binary.LittleEndian.AppendUint32(t.lines[:0], magicCommon)
	t.lines = binary.LittleEndian.AppendUint32(t.lines, magicPagemap)
	return t.line(&pagemap.PagemapHead{PagesId: new(uint32(t.images))})
}

// line appends a message to the map.
func (t *pageTaker) line(m proto.Message) error {
	b, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	t.lines = binary.LittleEndian.AppendUint32(t.lines, uint32(len(b)))
	t.lines = append(t.lines, b...)
	if len(t.lines) < gathered {
		return nil
	}
	_, err = t.pmap.Write(t.lines)
	t.lines = t.lines[:0]
	return err
}

// add takes a run of pages.
func (t *pageTaker) add(c *pageCommand, flags uint32) error {
	if t.name == "" || c.Pages > mostPages {
		return fmt.Errorf("%d pages that belong nowhere", c.Pages)
	}
	err := t.line(&pagemap.PagemapEntry{Vaddr: &c.Address, CompatNrPages: new(uint32(0)), Flags: &flags, NrPages: &c.Pages})
	if err != nil || flags&pagePresent == 0 {
		return err
	}
	size := int64(c.Pages) * pageSize
	if size < longRun {
		if _, err := io.CopyN(&t.pages, t.r, size); err != nil {
			return err
		}
		if t.pages.Len() < gathered {
			return nil
		}
		return t.pass()
	}
	if err := t.pass(); err != nil {
		return err
	}
	return t.put(size, io.LimitReader(t.r, size))
}

// pass passes on what was gathered.
func (t *pageTaker) pass() error {
	if t.pages.Len() == 0 {
		return nil
	}
	defer t.pages.Reset()
	return t.put(int64(t.pages.Len()), bytes.NewReader(t.pages.Bytes()))
}

func (t *pageTaker) put(size int64, r io.Reader) error {
	t.begun = true
	return t.sink(t.ctx, t.name, size, r)
}

// finish ends the open image.
func (t *pageTaker) finish() error {
	if t.name == "" {
		return nil
	}
	if err := t.pass(); err != nil {
		return err
	}
	if !t.begun {
		if err := t.put(0, bytes.NewReader(nil)); err != nil {
			return err
		}
	}
	t.name = ""
	_, err := t.pmap.Write(t.lines)
	err = errors.Join(err, t.pmap.Close())
	t.pmap = nil
	return err
}
