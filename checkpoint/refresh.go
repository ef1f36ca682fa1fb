package checkpoint

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
)

// refresh brings a tree's description up to date with the frozen processes: services fork, start threads
// and write to their files between the survey and the freeze.
func (f *Tree) refresh(t *proc.Tree) error {
	if err := proc.Default.Refresh(t); err != nil {
		return fmt.Errorf("look at the frozen tree of process %d: %w", f.HostRoot, err)
	}
	f.IDs = ids(t)
	var files []File
	for _, file := range f.Files {
		st, err := os.Stat(filepath.Join(string(proc.Default), strconv.Itoa(f.HostRoot), "root", file.Path))
		if err == nil { // else it was removed, and travels in the image
			files = append(files, File{file.Path, st.Size()})
		}
	}
	f.Files = files
	f.refreshPositions(t)
	return nil
}

// refreshPositions notes where the service is in the files that it got from outside: its next line goes there.
func (f *Tree) refreshPositions(t *proc.Tree) {
	for i := range f.Externals {
		e := &f.Externals[i]
		if e.Kind != "file" {
			continue
		}
		for j := range t.Processes {
			p := &t.Processes[j]
			k := slices.IndexFunc(e.FDs, func(fd FD) bool { return fd.PID == proc.Own(p.NSpid) })
			if k < 0 {
				continue
			}
			if now, err := proc.Default.FD(p.PID, e.FDs[k].FD); err == nil { // else closed, and another one holds it
				e.Pos = now.Pos
				break
			}
		}
	}
}
