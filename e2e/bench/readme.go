package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// pictureDir is where the README's pictures are.
const pictureDir = "docs/bench"

func writePictures(dir string, pictures map[string][]byte) error {
	errs := []error{os.MkdirAll(dir, 0o755)}
	for name, svg := range pictures {
		errs = append(errs, os.WriteFile(filepath.Join(dir, name), svg, 0o644))
	}
	return errors.Join(errs...)
}

// intoReadme puts the table into the file, and onto out.
func (r *Report) intoReadme(name string, out io.Writer) error {
	table := r.Blackout.Markdown(r.Command, r.Machine, pictureDir)
	if _, err := io.WriteString(out, table); err != nil {
		return err
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	replaced, err := between(string(text), table)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return os.WriteFile(name, []byte(replaced), 0o644)
}

// The README's figures are between these.
const (
	beginMark = "<!-- figures of make bench -->\n"
	endMark   = "<!-- end of the figures -->\n"
)

// between replaces what is between the marks.
func between(text, with string) (string, error) {
	before, rest, ok := strings.Cut(text, beginMark)
	_, after, ok2 := strings.Cut(rest, endMark)
	if !ok || !ok2 {
		return "", fmt.Errorf("there is no %q and %q to put the figures between", beginMark, endMark)
	}
	return before + beginMark + with + endMark + after, nil
}
