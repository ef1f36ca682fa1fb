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
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// said is what a criu sends to its page server.
type said struct{ bytes.Buffer }

func (s *said) command(command uint32, pages, address, image uint64) {
	binary.Write(s, binary.NativeEndian, pageCommand{Command: command, Pages: pages, Address: address, Image: image}) //nolint:errcheck // memory
}

// run is a command that adds pages, and the pages, each full of its number.
func (s *said) run(address uint64, pages ...byte) {
	s.command(pagePresent<<psCommandBits|psAddFlags, uint64(len(pages)), address, 0)
	for _, p := range pages {
		s.Write(bytes.Repeat([]byte{p}, pageSize))
	}
}

// took is what a page server passed on, by image.
type took map[string][]byte

func (k took) sink(_ context.Context, name string, size int64, r io.Reader) error {
	b, err := io.ReadAll(r)
	if err == nil && int64(len(b)) != size {
		err = fmt.Errorf("%d bytes came of %d: %w", len(b), size, io.ErrUnexpectedEOF)
	}
	k[name] = append(k[name], b...)
	return err
}

func takePages(dir string, in io.Reader, sink PageSink) (answers []byte, err error) {
	var out bytes.Buffer
	t := &pageTaker{ctx: context.Background(), r: never{in}, w: &out, dir: dir, sink: sink}
	err = t.take()
	return out.Bytes(), err
}

// never is a reader that has all there is to read at once.
type never struct{ io.Reader }

func (never) SetReadDeadline(time.Time) error { return nil }

// Memory is passed on while criu does something else.
func TestPageServerLull(t *testing.T) {
	criu, ours, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer criu.Close()
	var in said
	in.command(psOpen, 0, 0, 7<<psTypeBits|psTypePID)
	in.run(0x1000, 1, 2)
	var farewell said
	farewell.command(psClose, 0, 0, 0)
	go func() {
		ours.Write(in.Bytes())                           //nolint:errcheck // seen below
		ours.Write(farewell.Bytes()[:pageCommandSize/2]) //nolint:errcheck // some of it
	}()
	got := took{}
	var answers bytes.Buffer
	taker := &pageTaker{ctx: context.Background(), r: criu, w: &answers, dir: t.TempDir(), sink: func(ctx context.Context, name string, size int64, r io.Reader) error {
		err := got.sink(ctx, name, size, r)
		ours.Write(farewell.Bytes()[pageCommandSize/2:]) //nolint:errcheck // the rest
		ours.Close()
		return err
	}}
	if err := taker.take(); err != nil {
		t.Fatal(err)
	}
	if n := len(got["pages-1.img"]); n != 2*pageSize {
		t.Errorf("%d bytes were passed on", n)
	}
}

func TestPageServer(t *testing.T) {
	var in said
	in.command(psParent, 0, 0, 7<<psTypeBits|psTypePID)
	in.command(psOpen, 0, 0, 7<<psTypeBits|psTypePID)
	in.run(0x1000, 1, 2)
	in.command(psHole, 3, 0x8000, 0)
	long := make([]byte, longRun/pageSize+1)
	for i := range long {
		long[i] = byte(i)
	}
	in.run(0x100000, long...)
	in.run(0x900000, 9)
	in.command(psOpen, 0, 0, 8<<psTypeBits|psTypeShmem)
	in.command(psForceClose, 0, 0, 0)
	dir := t.TempDir()
	got := took{}
	answers, err := takePages(dir, &in, got.sink)
	if err != nil {
		t.Fatal(err)
	}
	if want := make([]byte, 4+1+1+4); !bytes.Equal(answers, want) {
		t.Errorf("criu was answered %x", answers)
	}
	var want []byte
	for _, p := range append(append([]byte{1, 2}, long...), 9) {
		want = append(want, bytes.Repeat([]byte{p}, pageSize)...)
	}
	if !bytes.Equal(got["pages-1.img"], want) {
		t.Errorf("%d bytes of memory were passed on, not the right %d", len(got["pages-1.img"]), len(want))
	}
	if b, ok := got["pages-2.img"]; !ok || len(b) > 0 {
		t.Errorf("memory that has no pages: %v, %d bytes", ok, len(b))
	}

	// CRIU's own reader of such images is ours for views.
	if err := os.WriteFile(filepath.Join(dir, "pages-1.img"), got["pages-1.img"], 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := openMemory(dir, 7)
	if err != nil {
		t.Fatal(err)
	}
	for address, page := range map[uint64]byte{0x1000: 1, 0x2000: 2, 0x100000: 0, 0x101000: 1, 0x900000: 9} {
		if b, err := m.read(address, 1); err != nil || b[0] != page {
			t.Errorf("at %#x: %v, %v", address, b, err)
		}
	}
	if b, _ := m.read(0x8000, 1); len(b) > 0 {
		t.Error("a hole was read")
	}
	if _, err := os.Stat(filepath.Join(dir, "pagemap-shmem-8.img")); err != nil {
		t.Error(err)
	}
}

// A criu that goes away, speaks nonsense, or whose memory nobody wants, ends the server with an error.
func TestPageServerFails(t *testing.T) {
	full := errors.New("full")
	for name, say := range map[string]func(*said){
		"silence": func(*said) {},
		"unknown": func(s *said) { s.command(99, 0, 0, 0) },
		"nowhere": func(s *said) { s.run(0x1000, 1); s.command(psClose, 0, 0, 0) },
		"huge": func(s *said) {
			s.command(psOpen, 0, 0, 7<<psTypeBits|psTypePID)
			s.command(psAdd, 1<<60, 0, 0)
		},
		"type": func(s *said) { s.command(psOpen, 0, 0, 7<<psTypeBits|9) },
		"cut": func(s *said) {
			s.command(psOpen, 0, 0, 7<<psTypeBits|psTypePID)
			s.run(0x1000, 1, 2)
			s.Truncate(s.Len() - 1)
		},
		"twice": func(s *said) {
			s.command(psOpen, 0, 0, 7<<psTypeBits|psTypePID)
			s.command(psOpen, 0, 0, 7<<psTypeBits|psTypePID)
		},
	} {
		var in said
		say(&in)
		if _, err := takePages(t.TempDir(), &in, took{}.sink); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	var in said
	in.command(psOpen, 0, 0, 7<<psTypeBits|psTypePID)
	in.run(0x1000, 1)
	in.command(psClose, 0, 0, 0)
	_, err := takePages(t.TempDir(), &in, func(context.Context, string, int64, io.Reader) error { return full })
	if !errors.Is(err, full) {
		t.Errorf("%v, want %v", err, full)
	}
}

// When the dump is given up, the server doesn't wait for criu.
func TestPageServerGivenUp(t *testing.T) {
	s, err := NewPageServer(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error)
	go func() { served <- s.Serve(ctx, took{}.sink) }()
	cancel()
	if err := <-served; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// An error of ours is told from the end of criu, which has a reason of its own.
func TestHungUp(t *testing.T) {
	for _, end := range []error{io.EOF, io.ErrUnexpectedEOF, unix.ECONNRESET, unix.EPIPE} {
		if !HungUp(fmt.Errorf("take memory: %w", end)) {
			t.Errorf("%v is not the end of criu", end)
		}
	}
	if HungUp(fmt.Errorf("take memory: %w", unix.ENOSPC)) {
		t.Error("a full disk is the end of criu")
	}
}
