package checkpoint

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"

	"github.com/zeebo/xxh3"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// SumPrefix begins the digest of every [Entry] and names its algorithm: the SHA-256 of the XXH3 of 128 bits, big endian, of
// each MiB of the file, the last of which may be a part of one. All cores take part in it, at the speed at which memory can
// be read; SHA-256 of the file itself took longer than to compress it. It tells of accidents, and not of who made an image.
const SumPrefix = "xxh3-sha256:"

// ChunkSize is how much of a file is digested at a time.
const ChunkSize = 1 << 20

// chunkSum is the digest of a chunk.
type chunkSum [16]byte

func sumOf(chunk []byte) chunkSum { return xxh3.Hash128(chunk).Bytes() }

// digestOf returns the digest of a file of these chunks.
func digestOf(chunks []chunkSum) string {
	h := sha256.New()
	for i := range chunks {
		h.Write(chunks[i][:])
	}
	return SumPrefix + hex.EncodeToString(h.Sum(nil))
}

// Digest is that of a file that is written to it.
type Digest struct {
	chunks []chunkSum
	part   xxh3.Hasher // of the last chunk
	size   int         // of it
}

// Write never fails.
func (d *Digest) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		n := min(len(p), ChunkSize-d.size)
		d.part.Write(p[:n]) //nolint:errcheck // never fails
		p = p[n:]
		if d.size += n; d.size == ChunkSize {
			d.cut()
		}
	}
	return total, nil
}

func (d *Digest) cut() {
	d.chunks = append(d.chunks, d.part.Sum128().Bytes())
	d.part.Reset()
	d.size = 0
}

// Sum returns the digest of all that was written, after which nothing more may be.
func (d *Digest) Sum() string {
	if d.size > 0 {
		d.cut()
	}
	return digestOf(d.chunks)
}

// ChunkFunc is told each chunk of each file of an image: its number, and what is in it, until the call returns. Calls come
// from several goroutines and in any order. kept says that nobody will read the chunk in the file any more: the room that it
// takes there is given back.
type ChunkFunc func(name string, index int, data []byte) (kept bool)

// chunkReader reads the chunks of a file.
type chunkReader struct {
	file *os.File
	name string
	told ChunkFunc // may be nil
}

// read digests a chunk of so many bytes. buf has room for it.
func (r *chunkReader) read(index, size int, buf []byte) (chunkSum, error) {
	at := int64(index) * ChunkSize
	if n, err := r.file.ReadAt(buf[:size], at); n < size {
		return chunkSum{}, fmt.Errorf("digest %s: %w", r.name, err)
	}
	sum := sumOf(buf[:size])
	if r.told != nil && r.told(r.name, index, buf[:size]) {
		// A file system that can't do so keeps it.
		unix.Fallocate(int(r.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, int64(size)) //nolint:errcheck // see above
	}
	return sum, nil
}

// digestFiles returns the entries of files below root, whose chunks all cores share. begun are digests of the beginning of
// files; told may be nil.
func digestFiles(ctx context.Context, root *os.Root, names []string, begun map[string][]chunkSum, told ChunkFunc) ([]Entry, error) {
	workers := runtime.GOMAXPROCS(0)
	buffers := make(chan []byte, workers)
	for range workers {
		buffers <- nil
	}
	entries := make([]Entry, len(names))
	g, working := errgroup.WithContext(ctx)
	g.SetLimit(workers)
	for i, name := range names {
		if working.Err() != nil {
			break
		}
		if err := digestFile(working, g, root, &entries[i], name, begun[name], told, buffers); err != nil {
			g.Go(func() error { return err })
			break
		}
	}
	err := g.Wait()
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return entries, err
}

// digestFile has g digest a file. The entry is complete when g is done.
func digestFile(ctx context.Context, g *errgroup.Group, root *os.Root, e *Entry, name string, begun []chunkSum, told ChunkFunc, buffers chan []byte) error {
	flags := os.O_RDONLY
	if told != nil {
		flags = os.O_RDWR
	}
	f, err := root.OpenFile(name, flags, 0)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	size := info.Size()
	chunks := make([]chunkSum, (size+ChunkSize-1)/ChunkSize)
	from := copy(chunks, begun)
	*e = Entry{Name: name, Size: size, Digest: digestOf(nil)}
	var left atomic.Int64
	left.Store(int64(len(chunks) - from))
	end := func() error {
		e.Digest = digestOf(chunks)
		return f.Close()
	}
	if from == len(chunks) {
		return end()
	}
	r := &chunkReader{file: f, name: name, told: told}
	for k := from; k < len(chunks); k++ {
		g.Go(func() error {
			err := context.Cause(ctx)
			if err == nil {
				buf := <-buffers
				length := int(min(ChunkSize, size-int64(k)*ChunkSize))
				if len(buf) < length {
					buf = make([]byte, length)
				}
				chunks[k], err = r.read(k, length, buf)
				buffers <- buf
			}
			if left.Add(-1) == 0 {
				return errors.Join(err, end())
			}
			return err
		})
	}
	return nil
}
