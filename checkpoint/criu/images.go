package criu

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	remap_file_path "github.com/checkpoint-restore/go-criu/v8/crit/images/remap-file-path"
	"github.com/checkpoint-restore/go-criu/v8/stats"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Magic numbers that begin an image; a second one behind them tells its kind (criu/include/magic.h).
const (
	magicCommon  = 0x54564319
	magicService = 0x55105940
	magicPagemap = 0x56084025
)

// maxMessage bounds what is allocated for a message of an image, which may come from another host.
const maxMessage = 16 << 20

// image is one of CRIU's files that hold messages: magic numbers, then messages that follow their size. Some kinds
// have raw data behind a message. go-criu's own reader trusts what it reads and keeps all of it in a global cache.
type image struct {
	f *os.File
	r *bufio.Reader
}

func openImage(dir, name string) (*image, error) {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return nil, err
	}
	im := &image{f: f, r: bufio.NewReader(f)}
	var magic [8]byte
	if _, err := io.ReadFull(im.r, magic[:]); err != nil {
		f.Close()
		return nil, im.wrap(noEOF(err))
	}
	if m := binary.LittleEndian.Uint32(magic[:]); m != magicCommon && m != magicService {
		f.Close()
		return nil, im.wrap(fmt.Errorf("magic number %#x is not CRIU's", m))
	}
	return im, nil
}

func (im *image) wrap(err error) error { return fmt.Errorf("read CRIU image %s: %w", im.f.Name(), err) }

func (im *image) Close() error { return im.f.Close() }

// next returns the next message, and io.EOF behind the last one.
func (im *image) next() ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(im.r, size[:]); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(size[:])
	if n > maxMessage {
		return nil, fmt.Errorf("a message of %d bytes", n)
	}
	b := make([]byte, n)
	_, err := io.ReadFull(im.r, b)
	return b, noEOF(err)
}

// into is next for a message of a known type.
func (im *image) into(m proto.Message) error {
	b, err := im.next()
	if err != nil {
		return err
	}
	return proto.Unmarshal(b, m)
}

// skip passes over raw data.
func (im *image) skip(n int64) error {
	_, err := io.CopyN(io.Discard, im.r, n)
	return noEOF(err)
}

// noEOF turns an end that comes too early into an error that is not taken for the end of an image.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// message is a pointer to a generated message type T.
type message[T any] interface {
	*T
	proto.Message
}

// decode returns all messages of an image, in which the given function tells how much raw data follows each; nil
// stands for none.
func decode[T any, M message[T]](dir, name string, raw func(M) int64) ([]M, error) {
	im, err := openImage(dir, name)
	if err != nil {
		return nil, err
	}
	defer im.Close()
	var all []M
	for {
		m := M(new(T))
		switch err := im.into(m); {
		case errors.Is(err, io.EOF):
			return all, nil
		case err != nil:
			return nil, im.wrap(err)
		}
		all = append(all, m)
		if raw != nil {
			if err := im.skip(raw(m)); err != nil {
				return nil, im.wrap(err)
			}
		}
	}
}

// decodeOne returns the first message of an image, of a kind that has just one or whose first is of another type
// than the rest.
func decodeOne[T any, M message[T]](dir, name string) (M, error) {
	im, err := openImage(dir, name)
	if err != nil {
		return nil, err
	}
	defer im.Close()
	m := M(new(T))
	if err := im.into(m); err != nil {
		return nil, im.wrap(noEOF(err))
	}
	return m, nil
}

// decodeOptional is [decode] for an image that CRIU writes only if there is something for it.
func decodeOptional[T any, M message[T]](dir, name string, raw func(M) int64) ([]M, error) {
	all, err := decode[T, M](dir, name, raw)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return all, err
}

// IDs returns every pid, tid, pgid and sid that the tree in dir needs, sorted, in the pid namespace of its root.
func IDs(dir string) ([]int, error) {
	tasks, err := decode[pstree.PstreeEntry](dir, "pstree.img", nil)
	if err != nil {
		return nil, err
	}
	var ids []int
	for _, t := range tasks {
		ids = append(ids, int(t.GetPid()), int(t.GetPgid()), int(t.GetSid()))
		for _, tid := range t.GetThreads() {
			ids = append(ids, int(tid))
		}
	}
	slices.Sort(ids)
	ids = slices.Compact(ids)
	// 0 is what CRIU writes for a group or session that began outside the pid namespace.
	return slices.DeleteFunc(ids, func(id int) bool { return id == 0 }), nil
}

// File is a regular file that a tree has open or mapped.
type File struct {
	Path string
	Size int64
}

// Files returns the regular files that a restore of the tree in dir will look for by their paths, sorted. CRIU
// insists on their sizes. Files that were deleted while in use, whose content is part of the image, are not among
// them.
func Files(dir string) ([]File, error) {
	entries, err := decode[fdinfo.FileEntry](dir, "files.img", nil)
	if err != nil {
		return nil, err
	}
	remaps, err := decodeOptional[remap_file_path.RemapFilePathEntry](dir, "remap-fpath.img", nil)
	if err != nil {
		return nil, err
	}
	remapped := make(map[uint32]bool)
	for _, r := range remaps {
		remapped[r.GetOrigId()] = true
	}
	var files []File
	for _, e := range entries {
		reg := e.GetReg()
		if reg == nil || reg.Size == nil || reg.GetExt() || remapped[reg.GetId()] || reg.GetMode()&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		files = append(files, File{Path: reg.GetName(), Size: int64(reg.GetSize())})
	}
	slices.SortFunc(files, func(a, b File) int {
		return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Size, b.Size))
	})
	return slices.Compact(files), nil
}

// DumpStats are CRIU's figures of a dump: microseconds and pages, named as podman prints them.
type DumpStats struct {
	FreezingTime uint32 `json:"freezing_time"`
	FrozenTime   uint32 `json:"frozen_time"`
	MemdumpTime  uint32 `json:"memdump_time"`
	MemwriteTime uint32 `json:"memwrite_time"`
	PagesScanned uint64 `json:"pages_scanned"`
	PagesWritten uint64 `json:"pages_written"`
}

// RestoreStats are CRIU's figures of a restore.
type RestoreStats struct {
	ForkingTime     uint32 `json:"forking_time"`
	RestoreTime     uint32 `json:"restore_time"`
	PagesRestored   uint64 `json:"pages_restored"`
	PagesCompared   uint64 `json:"pages_compared"`
	PagesSkippedCOW uint64 `json:"pages_skipped_cow"`
}

// ReadDumpStats reads the statistics that a dump left in its work directory.
func ReadDumpStats(dir string) (*DumpStats, error) {
	e, err := readStats(dir, stats.StatsDump)
	if err != nil {
		return nil, err
	}
	d := e.GetDump()
	return &DumpStats{
		FreezingTime: d.GetFreezingTime(),
		FrozenTime:   d.GetFrozenTime(),
		MemdumpTime:  d.GetMemdumpTime(),
		MemwriteTime: d.GetMemwriteTime(),
		PagesScanned: d.GetPagesScanned(),
		PagesWritten: d.GetPagesWritten(),
	}, nil
}

// ReadRestoreStats reads the statistics that a restore left in its work directory.
func ReadRestoreStats(dir string) (*RestoreStats, error) {
	e, err := readStats(dir, stats.StatsRestore)
	if err != nil {
		return nil, err
	}
	r := e.GetRestore()
	return &RestoreStats{
		ForkingTime:     r.GetForkingTime(),
		RestoreTime:     r.GetRestoreTime(),
		PagesRestored:   r.GetPagesRestored(),
		PagesCompared:   r.GetPagesCompared(),
		PagesSkippedCOW: r.GetPagesSkippedCow(),
	}, nil
}

// WriteDumpStats writes statistics to dir in the form of CRIU's own, for programs that look for them in an image:
// CRIU writes them only when a dump has ended, and an image is complete before.
func WriteDumpStats(dir string, s DumpStats) error {
	e := &stats.StatsEntry{Dump: &stats.DumpStatsEntry{
		FreezingTime:       &s.FreezingTime,
		FrozenTime:         &s.FrozenTime,
		MemdumpTime:        &s.MemdumpTime,
		MemwriteTime:       &s.MemwriteTime,
		PagesScanned:       &s.PagesScanned,
		PagesWritten:       &s.PagesWritten,
		PagesSkippedParent: new(uint64),
		PagesLazy:          new(uint64),
	}}
	message, err := e.MarshalVT()
	if err != nil {
		return fmt.Errorf("write dump statistics: %w", err)
	}
	var b []byte
	b = binary.LittleEndian.AppendUint32(b, magicService)
	b = binary.LittleEndian.AppendUint32(b, stats.StatsMagic)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(message)))
	b = append(b, message...)
	if err := os.WriteFile(filepath.Join(dir, stats.StatsDump), b, 0o600); err != nil {
		return fmt.Errorf("write dump statistics: %w", err)
	}
	return nil
}

func readStats(dir, name string) (*stats.StatsEntry, error) {
	im, err := openImage(dir, name)
	if err != nil {
		return nil, err
	}
	defer im.Close()
	b, err := im.next()
	if err != nil {
		return nil, im.wrap(noEOF(err))
	}
	e := new(stats.StatsEntry)
	if err := e.UnmarshalVT(b); err != nil {
		return nil, im.wrap(err)
	}
	return e, nil
}
