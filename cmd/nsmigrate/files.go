package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/transfer/migrate"
)

func filesFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "files", Value: string(migrate.FilesAuto), Usage: "bring along the files that the service has open for writing, or none but those that --ship names: `auto|none`"},
		&cli.StringSliceFlag{Name: "ship", Usage: "bring along the file or directory at `PATH` too, with all below it: a directory becomes what it is here, and what it has only over there goes; can be repeated"},
	}
}

func parseFiles(c *cli.Context) (files migrate.Files, named []string, err error) {
	if files, err = migrate.ParseFiles(c.String("files")); err != nil {
		return "", nil, &usageError{err: err}
	}
	for _, p := range c.StringSlice("ship") {
		if p == "" {
			return "", nil, usagef("name a file or a directory", "--ship: the path is empty")
		}
		p, err := filepath.Abs(p)
		if err != nil {
			return "", nil, err
		}
		if !slices.Contains(named, p) {
			named = append(named, p)
		}
	}
	return files, named, nil
}

// mostPaths is how many of many files are named to people.
const mostPaths = 10

// showFiles tells people which files travelled along, or would do so.
func showFiles(b *strings.Builder, f *migrate.FilesReport, moved, list bool) {
	if f == nil || len(f.Paths) == 0 {
		return
	}
	travel, replaced, removed := "would travel", "would be replaced", "would be removed"
	if moved {
		travel, replaced, removed = "travelled", "replaced", "removed"
	}
	parts := []string{"no file " + travel + " along"}
	if f.Files > 0 {
		parts[0] = fmt.Sprintf("%s %s along, %s", count(f.Files, "file", "files"), travel, checkpoint.Size(f.Bytes))
		if moved {
			parts[0] += fmt.Sprintf(": %s sent, %s of it while the service stood still", checkpoint.Size(f.Sent), checkpoint.Size(f.SentFrozen))
		} else {
			parts[0] += ", of which the destination lacks " + checkpoint.Size(f.Lacked)
		}
	}
	if f.Shared > 0 {
		parts = append(parts, count(f.Shared, "is", "are")+" on storage that both hosts see")
	}
	if f.Replaced > 0 {
		parts = append(parts, count(f.Replaced, "different one", "different ones")+" over there "+replaced)
	}
	if f.Removed > 0 {
		parts = append(parts, fmt.Sprintf("%d that only the destination had %s", f.Removed, removed))
	}
	fmt.Fprintln(b, strings.Join(parts, "; "))
	if !list {
		return
	}
	showSome(b, "  ", f.Paths, len(f.Paths))
	showSome(b, "  "+removed+": ", f.Examples, f.Removed)
}

// showSome lists some of n names.
func showSome(b *strings.Builder, prefix string, names []string, n int) {
	shown := names[:min(len(names), mostPaths)]
	for _, name := range shown {
		fmt.Fprintf(b, "%s%s\n", prefix, name)
	}
	if more := n - len(shown); more > 0 && len(shown) > 0 {
		fmt.Fprintf(b, "%sand %d more\n", prefix, more)
	}
}
