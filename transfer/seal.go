package transfer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/zeebo/xxh3"

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
	sealMagic = "nsmseal\x02"
	sumSize   = 16
	sealSize  = len(sealMagic) + 8 + sumSize
	tarBlock  = 512

	zstdMagic      = "\x28\xb5\x2f\xfd" // of a frame, RFC 8878 3.1.1
	skippableMagic = 0x184D2A5E         // RFC 8878 3.1.2 leaves the last four bits to the user
)

// trailer returns the seal of a body in the form that fits its compression.
func trailer(c Compression, length uint64, digest xxh3.Uint128) []byte {
	var b []byte
	if c == Zstd {
		b = binary.LittleEndian.AppendUint32(b, skippableMagic)
		b = binary.LittleEndian.AppendUint32(b, uint32(sealSize))
	}
	b = append(b, sealMagic...)
	b = binary.BigEndian.AppendUint64(b, length)
	sum := digest.Bytes()
	b = append(b, sum[:]...)
	if c == None {
		b = append(b, make([]byte, tarBlock-len(b))...)
	}
	return b
}

// sealWriter digests what passes through it.
type sealWriter struct {
	w io.Writer
	h xxh3.Hasher
	n uint64
}

func newSealWriter(w io.Writer) *sealWriter { return &sealWriter{w: w} }

func (s *sealWriter) Write(p []byte) (n int, err error) {
	s.h.Write(p) //nolint:errcheck // never fails
	n, err = s.w.Write(p)
	s.n += uint64(n)
	return n, err
}

// Seal writes the trailer of all that was written.
func (s *sealWriter) Seal(c Compression) error {
	_, err := s.w.Write(trailer(c, s.n, s.h.Sum128()))
	return err
}

// sealReader reads a body and keeps back what may be its seal, which Close checks.
type sealReader struct {
	r    io.Reader
	c    Compression
	tail int // length of a seal
	buf  []byte
	pos  int // buf[pos:body] was not read yet
	body int // buf[body:end] may be the seal
	end  int
	err  error // io.EOF or *sourceError
	h    xxh3.Hasher
	n    uint64 // bytes of the body that are digested
}

// newSealReader finds out what r holds.
func newSealReader(r io.Reader) (*sealReader, error) {
	s := &sealReader{r: r, buf: make([]byte, chunk+tarBlock)}
	for s.end < tarBlock && s.err == nil {
		s.read()
	}
	if source, ok := errors.AsType[*sourceError](s.err); ok {
		return nil, source
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
	s.tail = len(trailer(s.c, 0, xxh3.Uint128{}))
	s.release()
	return s, nil
}

// read reads once behind what is there.
func (s *sealReader) read() {
	n, err := s.r.Read(s.buf[s.end:])
	s.end += n
	if err != nil && !errors.Is(err, io.EOF) {
		err = &sourceError{err}
	}
	s.err = err
}

// release makes all that can't be the seal readable, and digests it.
func (s *sealReader) release() {
	s.pos, s.body = 0, max(0, s.end-s.tail)
	s.h.Write(s.buf[:s.body]) //nolint:errcheck // never fails
	s.n += uint64(s.body)
}

// Read returns the body. Its errors are io.EOF and *sourceError.
func (s *sealReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for s.pos == s.body {
		if s.err != nil {
			return 0, s.err
		}
		s.end = copy(s.buf, s.buf[s.body:s.end])
		s.read()
		s.release()
	}
	n := copy(p, s.buf[s.pos:s.body])
	s.pos += n
	return n, nil
}

// Close checks the seal. The whole body must have been read.
func (s *sealReader) Close() error {
	switch n, err := s.Read(make([]byte, 1)); {
	case n > 0:
		return fmt.Errorf("%w: archive: altered: data before its seal that belongs to nothing", checkpoint.ErrDamaged)
	case !errors.Is(err, io.EOF):
		return err
	}
	got := s.buf[s.body:s.end]
	switch {
	case bytes.Equal(got, trailer(s.c, s.n, s.h.Sum128())):
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
