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

func (s *sealWriter) Write(p []byte) (n int, err error) {
	err = hashWhile(s.h, p, func() error {
		n, err = s.w.Write(p)
		return err
	})
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
	r      io.Reader
	c      Compression
	tail   int // length of a seal
	buf    []byte
	pos    int // buf[pos:body] was not read yet
	body   int // buf[body:end] may be the seal
	end    int
	err    error // io.EOF or *sourceError
	h      hash.Hash
	n      uint64          // bytes of the body that are digested
	hashed <-chan struct{} // until it is closed, buf[:body] is being digested
}

// newSealReader finds out what r holds.
func newSealReader(r io.Reader) (*sealReader, error) {
	s := &sealReader{r: r, h: sha256.New(), buf: make([]byte, chunk+tarBlock)}
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
	s.tail = len(trailer(s.c, 0, make([]byte, sha256.Size)))
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

// release makes all that can't be the seal readable, and digests it meanwhile.
func (s *sealReader) release() {
	s.pos, s.body = 0, max(0, s.end-s.tail)
	s.hashed = hashing(s.h, s.buf[:s.body])
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
		<-s.hashed
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
	<-s.hashed
	got := s.buf[s.body:s.end]
	switch {
	case bytes.Equal(got, trailer(s.c, s.n, s.h.Sum(nil))):
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
