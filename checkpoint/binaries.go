package checkpoint

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
)

// ReadBinaries identifies the files that trees map executable, a list a tree, by path. Files that several
// processes map are read once. Deleted ones are left out: they travel inside the image. It reads whole
// files that have no build-id, so it is for the time before the freeze.
func ReadBinaries(ctx context.Context, trees []proc.Tree) ([][]Binary, error) {
	type source struct {
		path  string
		inode uint64
	}
	type result struct {
		binary Binary
		ok     bool
	}
	read := make(map[source]*result)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	eachBinary(trees, func(_ int, p *proc.Process, m *proc.FileMap) {
		key := source{m.Path, m.Ino}
		if read[key] != nil {
			return
		}
		r := new(result)
		read[key] = r
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			var err error
			r.binary, r.ok, err = mappedBinary(p.PID, m)
			return err
		})
	})
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("identify binaries: %w", err)
	}
	lists := make([][]Binary, len(trees))
	eachBinary(trees, func(tree int, _ *proc.Process, m *proc.FileMap) {
		r := read[source{m.Path, m.Ino}]
		if r.ok && !slices.Contains(lists[tree], r.binary) {
			lists[tree] = append(lists[tree], r.binary)
		}
	})
	for _, list := range lists {
		slices.SortFunc(list, func(a, b Binary) int { return strings.Compare(a.Path, b.Path) })
	}
	return lists, nil
}

func eachBinary(trees []proc.Tree, visit func(tree int, p *proc.Process, m *proc.FileMap)) {
	for i := range trees {
		for j := range trees[i].Processes {
			p := &trees[i].Processes[j]
			for k := range p.Files {
				if m := &p.Files[k]; m.Exec && !m.Deleted && strings.HasPrefix(m.Path, "/") {
					visit(i, p, m)
				}
			}
		}
	}
}

// mappedBinary reads a file through the mapping itself, which is right in every mount namespace; false if
// the mapping is gone.
func mappedBinary(pid int, m *proc.FileMap) (Binary, bool, error) {
	dir := filepath.Join(string(proc.Default), strconv.Itoa(pid))
	f, err := os.Open(filepath.Join(dir, "map_files", m.Range))
	if errors.Is(err, fs.ErrNotExist) {
		f, err = os.Open(filepath.Join(dir, "root", m.Path))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return Binary{}, false, nil
	}
	if err != nil {
		return Binary{}, false, err
	}
	defer f.Close()
	b, err := identify(f, m.Path)
	return b, err == nil, err
}

// binaryPrefix begins the digest of a [Binary] and names its algorithm.
const binaryPrefix = "sha256:"

// identify reads what tells a binary from another one of the same path.
func identify(f *os.File, path string) (Binary, error) {
	st, err := f.Stat()
	if err != nil {
		return Binary{}, err
	}
	b := Binary{Path: path, Size: st.Size(), BuildID: buildID(f)}
	if b.BuildID != "" {
		return b, nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, st.Size())); err != nil {
		return Binary{}, fmt.Errorf("read %s: %w", path, err)
	}
	b.Digest = binaryPrefix + hex.EncodeToString(h.Sum(nil))
	return b, nil
}

// buildID returns the GNU build-id of an ELF file in hex, "" if it has none. It looks at the program
// headers, which stripping leaves alone.
func buildID(r io.ReaderAt) string {
	f, err := elf.NewFile(r)
	if err != nil {
		return ""
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > 1<<16 {
			continue
		}
		notes := make([]byte, p.Filesz)
		if _, err := p.ReadAt(notes, 0); err != nil {
			continue
		}
		if id := gnuBuildID(notes, f.ByteOrder, p.Align); id != nil {
			return hex.EncodeToString(id)
		}
	}
	return ""
}

// gnuBuildID finds NT_GNU_BUILD_ID in a run of notes: three words (name size, description size, type), the
// name and the description, each padded (elf(5)); nil if there is none.
func gnuBuildID(notes []byte, order binary.ByteOrder, align uint64) []byte {
	if align != 8 {
		align = 4
	}
	const ntGNUBuildID = 3
	for len(notes) >= 12 {
		name, desc, typ := uint64(order.Uint32(notes)), uint64(order.Uint32(notes[4:])), order.Uint32(notes[8:])
		descAt := (12 + name + align - 1) &^ (align - 1)
		end := descAt + desc
		if end > uint64(len(notes)) {
			return nil
		}
		if typ == ntGNUBuildID && bytes.Equal(notes[12:12+name], []byte("GNU\x00")) && desc > 0 {
			return notes[descAt:end]
		}
		notes = notes[min(uint64(len(notes)), (end+align-1)&^(align-1)):]
	}
	return nil
}

// CheckBinaries compares the binaries that an image needs with the files below root ("/" is this host) and
// returns a problem for each that is missing or another.
func CheckBinaries(root string, want []Binary) []Problem {
	found := make([]*Problem, len(want))
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, w := range want {
		g.Go(func() error {
			if reason := differs(root, w); reason != "" {
				found[i] = &Problem{Kind: "binary", Object: w.Path, Reason: reason, Remedy: "install the same version of its package as on the host of the dump"}
			}
			return nil
		})
	}
	g.Wait()
	return problems(found)
}

// problems collects those that are there, each object once.
func problems(found []*Problem) []Problem {
	var list []Problem
	for _, p := range found {
		if p != nil && !slices.Contains(list, *p) {
			list = append(list, *p)
		}
	}
	return list
}

func differs(root string, w Binary) string {
	f, err := os.Open(filepath.Join(root, w.Path))
	if err != nil {
		return absent(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return absent(err)
	}
	if reason := wrongSize(st, w.Size); reason != "" {
		return reason
	}
	got, err := identify(f, w.Path)
	switch {
	case err != nil:
		return absent(err)
	case got.BuildID != w.BuildID:
		return fmt.Sprintf("it is another build here (build-id %s, needed is %s)", orNone(got.BuildID), orNone(w.BuildID))
	case got.Digest != w.Digest:
		return "it has other contents here"
	}
	return ""
}

func orNone(id string) string {
	if id == "" {
		return "none"
	}
	return id
}

func absent(err error) string {
	if errors.Is(err, fs.ErrNotExist) {
		return "it is missing here"
	}
	return "it can't be read here: " + err.Error()
}

func wrongSize(st fs.FileInfo, size int64) string {
	if !st.Mode().IsRegular() {
		return "it is no regular file here"
	}
	if st.Size() != size {
		return fmt.Sprintf("it has %d bytes here, needed are %d", st.Size(), size)
	}
	return ""
}

// CheckPlaces returns one problem that names all places which trees need for their mounts and which are missing below root.
func CheckPlaces(root string, trees []Tree) []Problem {
	missing := make(map[string]bool)
	for _, t := range trees {
		for _, p := range t.Places {
			if _, err := os.Stat(filepath.Join(root, p)); err != nil {
				missing[p] = true
			}
		}
	}
	if len(missing) == 0 {
		return nil
	}
	paths := strings.Join(slices.Sorted(maps.Keys(missing)), " ")
	return []Problem{{
		Kind: "mount", Object: paths, Reason: "the service has a mount there, in a mount namespace of its own, and the place is missing here",
		Remedy: "make it (mkdir -p, or touch where it is a file over there), and mount there what the service uses of it",
	}}
}

// CheckFiles compares the files that an image's trees have open with those below root and returns a problem
// for each that is missing or of another size, which CRIU would not open again.
func CheckFiles(root string, want []File) []Problem {
	found := make([]*Problem, len(want))
	for i, w := range want {
		st, err := os.Stat(filepath.Join(root, w.Path))
		reason := ""
		if err != nil {
			reason = absent(err)
		} else {
			reason = wrongSize(st, w.Size)
		}
		if reason != "" {
			found[i] = &Problem{Kind: "file", Object: w.Path, Reason: reason, Remedy: "copy it from the host of the dump (shared storage has it already)"}
		}
	}
	return problems(found)
}
