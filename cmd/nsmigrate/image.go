package main

import (
	"context"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/transfer"
)

// source is where an image comes from: exactly one of the first fields is set.
type source struct {
	dir, file string
	stdin     bool

	scratch string // directory to unpack it in; "" is one of its own
}

func parseSource(c *cli.Context) (source, error) {
	s := source{dir: c.String("images-dir"), file: c.String("import")}
	if err := oneOf(c, "an image", "images-dir", "import"); err != nil {
		return s, err
	}
	if s.dir == "" && s.file == "" {
		return s, usagef("", "an image is missing: the name is empty")
	}
	if s.file == "-" {
		s.file, s.stdin = "", true
	}
	return s, nil
}

func (s source) String() string {
	switch {
	case s.stdin:
		return "standard input"
	case s.dir != "":
		return s.dir
	}
	return s.file
}

// absolute is what the source is called by a process with another working directory.
func (s source) absolute() string {
	if s.stdin {
		return s.String()
	}
	return absolute(s.String())
}

// open returns the image as a directory in which every byte has been verified. An image that comes as a file
// is unpacked on tmpfs, if there is one, and done removes it.
func (u *ui) open(ctx context.Context, s source) (dir string, m *checkpoint.Manifest, done func(), err error) {
	return u.openPart(ctx, s, transfer.UnpackOptions{})
}

// openPart is open with only those entries of a file written that the options ask for; all are verified.
func (u *ui) openPart(ctx context.Context, s source, opts transfer.UnpackOptions) (dir string, m *checkpoint.Manifest, done func(), err error) {
	if s.dir != "" {
		m, err = checkpoint.OpenDir(ctx, s.dir)
		return s.dir, m, func() {}, err
	}
	scratch := s.scratch
	if scratch == "" {
		if scratch, err = checkpoint.Scratch(""); err != nil {
			return "", nil, nil, err
		}
	}
	done = func() { os.RemoveAll(scratch) }
	dir = filepath.Join(scratch, "image")
	if s.stdin {
		m, err = transfer.Unpack(ctx, u.in, dir, opts)
	} else {
		m, err = transfer.UnpackFile(ctx, s.file, dir, opts)
	}
	if err != nil {
		done()
		return "", nil, nil, err
	}
	return dir, m, done, nil
}
