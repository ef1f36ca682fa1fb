package checkpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
)

// Held is a regular file that a service writes to: it has the file open for that, or mapped. Its content is no part of
// an image, which has no more than its path and size.
type Held struct {
	Path   string // as this host sees it
	Append bool   // the service can only append to it: what was there stays as it is
	Mapped bool   // the service writes to it through shared memory, of which the file's times may say nothing
}

// Held lists the files that the service writes to at the moment, by path. Files without a name travel inside the image
// and are left out; so are, with a note, those that this host does not see under the path that the service sees.
func (s *Service) Held() (files []Held, notes []string, err error) {
	return heldBy(s.live, s.report.Manifest.Trees, s.scratch)
}

// heldBy is Held for trees and what the manifest says of each. Files below the directory ours, "" for none, are not the
// service's: while criu is at work in a process, its log is open there.
func heldBy(trees []proc.Tree, facts []Tree, ours string) (files []Held, notes []string, err error) {
	h := holdings{files: make(map[string]Held), hidden: make(map[string]bool), ours: ours}
	for i := range trees {
		// What such a tree keeps in memory of its own mounts is part of the image.
		h.carried = func(typ string) bool { return facts[i].MountNS == MountOwn && typ == "tmpfs" }
		h.mounts = mountTypes(&trees[i])
		for j := range trees[i].Processes {
			p := &trees[i].Processes[j]
			if err := h.process(p); err != nil && !errors.Is(err, proc.ErrGone) {
				return nil, nil, fmt.Errorf("find the files that process %d writes to: %w", p.PID, err)
			}
		}
	}
	for _, f := range h.files {
		files = append(files, f)
	}
	slices.SortFunc(files, func(a, b Held) int { return strings.Compare(a.Path, b.Path) })
	return files, h.notes, nil
}

// holdings gathers what processes hold.
type holdings struct {
	files   map[string]Held
	hidden  map[string]bool // paths that a note tells of
	ours    string          // directory
	notes   []string
	mounts  map[int]string // of the tree: types by id
	carried func(typ string) bool
}

func (h *holdings) process(p *proc.Process) error {
	if p.Zombie() {
		return nil
	}
	fds, err := proc.Default.Paths(p.PID)
	if err != nil {
		return err
	}
	for _, f := range fds {
		switch {
		case f.Mode&unix.S_IFMT != unix.S_IFREG, f.Nlink == 0, f.Flags&unix.O_PATH != 0:
		case f.Flags&unix.O_ACCMODE == unix.O_RDONLY:
		case h.ours != "" && strings.HasPrefix(f.Target, h.ours+"/"):
		case visible(f.Target, f.Dev, f.Ino):
			h.add(Held{Path: f.Target, Append: f.Flags&unix.O_APPEND != 0})
		case !h.carried(h.mounts[f.MntID]):
			h.hide(p, f.Target)
		}
	}
	maps, err := proc.Default.Maps(p.PID)
	if err != nil {
		return err
	}
	for _, m := range maps {
		if !m.Written || m.Deleted || !strings.HasPrefix(m.Path, "/") {
			continue
		}
		var st unix.Stat_t
		err := unix.Stat(filepath.Join(string(proc.Default), strconv.Itoa(p.PID), "map_files", m.Range), &st)
		switch {
		case errors.Is(err, fs.ErrNotExist), err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG:
		case err != nil:
			return &os.PathError{Op: "stat", Path: m.Path, Err: err}
		case visible(m.Path, st.Dev, st.Ino):
			h.add(Held{Path: m.Path, Mapped: true})
		default:
			h.hide(p, m.Path)
		}
	}
	return nil
}

// visible says that this host sees a file under a path.
func visible(path string, dev, ino uint64) bool {
	var st unix.Stat_t
	return unix.Lstat(path, &st) == nil && st.Dev == dev && st.Ino == ino
}

func (h *holdings) add(f Held) {
	if have, ok := h.files[f.Path]; ok {
		f.Append, f.Mapped = f.Append && have.Append, f.Mapped || have.Mapped
	}
	h.files[f.Path] = f
}

func (h *holdings) hide(p *proc.Process, path string) {
	if h.hidden[path] {
		return
	}
	h.hidden[path] = true
	h.notes = append(h.notes, fmt.Sprintf("%s writes to %s, which this host does not see under that path: it does not travel",
		who(p), path))
}
