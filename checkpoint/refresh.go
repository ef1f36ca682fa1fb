package checkpoint

import (
	"fmt"
	"os"
	"path/filepath"
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
	return nil
}
