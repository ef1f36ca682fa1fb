package transfer

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/nsmigrate/nsmigrate/checkpoint"
)

// Compression of an archive's body.
type Compression string

// What Pack writes and Unpack reads. The zero value is Zstd.
const (
	Zstd Compression = "zstd"
	None Compression = "none"
)

const (
	sealMagic = "nsmseal\x01"
	sealSize  = len(sealMagic) + 8 + sha256.Size
	tarBlock  = 512

	zstdMagic      = "\x28\xb5\x2f\xfd" // of a frame, RFC 8878 3.1.1
	skippableMagic = 0x184D2A5E         // RFC 8878 3.1.2 leaves the last four bits to the user
)

// trailer returns the seal of a body in the form that fits its compression.
func trailer(c Compression, length uint64, digest []byte) []byte {
	var b []byte
	if c == Zstd {
		b = binary.LittleEndian.AppendUint32(b, skippableMagic)
		b = binary.LittleEndian.AppendUint32(b, uint32(sealSize))
	}
	b = append(b, sealMagic...)
	b = binary.BigEndian.AppendUint64(b, length)
	b = append(b, digest...)
	if c == None {
		b = append(b, make([]byte, tarBlock-len(b))...)
	}
	return b
}

// sealWriter digests what passes through it.
type sealWriter struct {
	w io.Writer
	h hash.Hash
	n uint64
}

func newSealWriter(w io.Writer) *sealWriter { return &sealWriter{w: w, h: sha256.New()} }

func (s *sealWriter) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.h.Write(p[:n])
	s.n += uint64(n)
	return n, err
}

// Seal writes the trailer of all that was written.
func (s *sealWriter) Seal(c Compression) error {
	_, err := s.w.Write(trailer(c, s.n, s.h.Sum(nil)))
	return err
}

// sealReader reads a body and keeps back what may be its seal, which Close checks.
type sealReader struct {
	r    io.Reader
	c    Compression
	h    hash.Hash
	n    uint64 // bytes of the body that were read and digested
	buf  []byte
	pos  int // buf[pos:end] was not read yet; its last len(trailer) bytes may be the seal
	end  int
	tail int
	err  error // io.EOF or *sourceError
}

// newSealReader finds out what r holds.
func newSealReader(r io.Reader) (*sealReader, error) {
	s := &sealReader{r: r, h: sha256.New(), buf: make([]byte, 1<<20)}
	for s.end < tarBlock && s.err == nil {
		s.fill()
	}
	if s.err != nil && !errors.Is(s.err, io.EOF) {
		return nil, s.err
	}
	head := s.buf[:s.end]
	switch {
	case bytes.HasPrefix(head, []byte(zstdMagic)):
		s.c = Zstd
	case len(head) >= tarBlock && string(head[257:262]) == "ustar":
		s.c = None
	default:
		return nil, fmt.Errorf("%w: archive: neither zstd nor tar: no image, or its head is altered", checkpoint.ErrDamaged)
	}
	s.tail = len(trailer(s.c, 0, make([]byte, sha256.Size)))
	return s, nil
}

// fill reads once from r behind what is there, after moving that to the front.
func (s *sealReader) fill() {
	s.end = copy(s.buf, s.buf[s.pos:s.end])
	s.pos = 0
	n, err := s.r.Read(s.buf[s.end:])
	s.end += n
	if err != nil && !errors.Is(err, io.EOF) {
		err = &sourceError{err}
	}
	s.err = err
}

// Read returns the body. Its errors are io.EOF and *sourceError.
func (s *sealReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for s.end-s.pos <= s.tail {
		if s.err != nil {
			return 0, s.err
		}
		s.fill()
	}
	n := copy(p, s.buf[s.pos:s.end-s.tail])
	s.h.Write(p[:n])
	s.pos += n
	s.n += uint64(n)
	return n, nil
}

// Close checks the seal. The whole body must have been read.
func (s *sealReader) Close() error {
	if n, err := s.Read(make([]byte, 1)); n > 0 {
		return fmt.Errorf("%w: archive: altered: data before its seal that belongs to nothing", checkpoint.ErrDamaged)
	} else if !errors.Is(err, io.EOF) {
		return err
	}
	want := trailer(s.c, s.n, s.h.Sum(nil))
	got := s.buf[s.pos:s.end]
	switch {
	case bytes.Equal(got, want):
		return nil
	case !bytes.Contains(got, []byte(sealMagic)):
		return fmt.Errorf("%w: archive: truncated: it does not end in a seal", checkpoint.ErrDamaged)
	default:
		return fmt.Errorf("%w: archive: altered: it differs from its seal", checkpoint.ErrDamaged)
	}
}

// sourceError is the failure of what an archive is read from: it says nothing of the archive.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return "read archive: " + e.err.Error() }

func (e *sourceError) Unwrap() error { return e.err }
