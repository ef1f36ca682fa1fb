package ship

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// extents finds where a file of the given size has data. A file system that does not know answers that all is data.
func extents(f *os.File, size int64) ([]Extent, error) {
	var list []Extent
	for at := int64(0); at < size; {
		start, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // nothing but a hole behind it
		}
		if err != nil {
			return nil, os.NewSyscallError("find data", err)
		}
		end, err := unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
		if errors.Is(err, unix.ENXIO) {
			break // it was cut off meanwhile
		}
		if err != nil {
			return nil, os.NewSyscallError("find the end of data", err)
		}
		start, end = min(start, size), min(end, size)
		if n := len(list); n > 0 && list[n-1].end() == start { // it grew meanwhile
			list[n-1].Length += end - start
		} else if end > start {
			list = append(list, Extent{start, end - start})
		}
		at = end
	}
	return list, nil
}

// readBlock reads the block of a file at off, holes as zeros, up to size. What was cut off meanwhile reads as zeros
// too: the file has changed then, and will be read again.
func readBlock(f io.ReaderAt, b []byte, off, size int64, data []Extent) ([]byte, error) {
	run := Extent{off, min(int64(len(b)), size-off)}
	b = b[:run.Length]
	parts := within(data, run)
	if len(parts) != 1 || parts[0] != run {
		clear(b)
	}
	for _, p := range parts {
		into := b[p.Offset-off : p.end()-off]
		n, err := f.ReadAt(into, p.Offset)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		clear(into[n:])
	}
	return b, nil
}

// large is how much of one file is worth the work of several processors.
const large = 4 << 20

// digest computes the sums of the given blocks of a file, several at a time.
func digest(ctx context.Context, f io.ReaderAt, e *Entry, blocks []int64) ([]Sum, error) {
	sums := make([]Sum, len(blocks))
	workers := runtime.GOMAXPROCS(0)
	if int64(len(blocks))*e.Block < large {
		workers = 1
	}
	g, ctx := errgroup.WithContext(ctx)
	share := (len(blocks) + workers - 1) / workers
	for from := 0; from < len(blocks); from += share {
		to := min(from+share, len(blocks))
		g.Go(func() error {
			buf := make([]byte, min(e.Block, e.Size))
			for i := from; i < to; i++ {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				b, err := readBlock(f, buf, blocks[i]*e.Block, e.Size, e.Data)
				if err != nil {
					return err
				}
				sums[i] = sha256.Sum256(b)
			}
			return nil
		})
	}
	return sums, g.Wait()
}

// copyRun copies a run of bytes from one file to another, without a copy if their file system can share it.
func copyRun(from, to *os.File, run Extent, buf []byte) error {
	in, out := run.Offset, run.Offset
	for in < run.end() {
		n, err := unix.CopyFileRange(int(from.Fd()), &in, int(to.Fd()), &out, int(min(run.end()-in, 1<<30)), 0)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS),
			errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPERM):
			return copyBytes(from, to, Extent{in, run.end() - in}, buf)
		case err != nil:
			return fmt.Errorf("copy %d bytes at %d: %w", run.Length, run.Offset, err)
		case n == 0:
			return errShort
		}
	}
	return nil
}

var errShort = errors.New("the file was cut off while it was copied")

func copyBytes(from, to *os.File, run Extent, buf []byte) error {
	for run.Length > 0 {
		b := buf[:min(run.Length, int64(len(buf)))]
		if _, err := from.ReadAt(b, run.Offset); err != nil {
			if errors.Is(err, io.EOF) {
				return errShort
			}
			return err
		}
		if _, err := to.WriteAt(b, run.Offset); err != nil {
			return err
		}
		run.Offset += int64(len(b))
		run.Length -= int64(len(b))
	}
	return nil
}

// trim makes a file as long as wanted, and a hole of all that is not to be data.
func trim(f *os.File, size int64, data []Extent) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() != size {
		if err := f.Truncate(size); err != nil {
			return err
		}
	}
	have, err := extents(f, size)
	if err != nil {
		return err
	}
	for _, h := range have {
		for _, gap := range without(h, data) {
			if gap.end() == size { // the last block is not whole, and only whole ones become holes
				gap.Length += maxBlock
			}
			err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, gap.Offset, gap.Length)
			if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
				err = zero(f, Extent{gap.Offset, min(gap.Length, size-gap.Offset)})
			}
			if err != nil {
				return fmt.Errorf("make a hole: %w", err)
			}
		}
	}
	return nil
}

// without returns the parts of a run that are not in data.
func without(run Extent, data []Extent) []Extent {
	var gaps []Extent
	at := run.Offset
	for _, d := range within(data, run) {
		if d.Offset > at {
			gaps = append(gaps, Extent{at, d.Offset - at})
		}
		at = d.end()
	}
	if at < run.end() {
		gaps = append(gaps, Extent{at, run.end() - at})
	}
	return gaps
}

// zero stands in for a hole where there are none.
func zero(f *os.File, run Extent) error {
	b := make([]byte, min(run.Length, pieceSize))
	for run.Length > 0 {
		n, err := f.WriteAt(b[:min(run.Length, int64(len(b)))], run.Offset)
		if err != nil {
			return err
		}
		run.Offset += int64(n)
		run.Length -= int64(n)
	}
	return nil
}
