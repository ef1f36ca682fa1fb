package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/nsmigrate/nsmigrate/checkpoint"
)

// dumpFlags are the flags of a dump that more than one command can use.
func dumpFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "netns", Usage: "dump the network namespace `NAME|PATH` with all its processes"},
		&cli.IntFlag{Name: "tree", Aliases: []string{"t"}, Usage: "dump the process tree of `PID` and its network namespace"},
		&cli.StringFlag{Name: "images-dir", Aliases: []string{"D"}, Usage: "write the image to the directory `DIR`, which must be new or empty"},
		&cli.StringFlag{Name: "export", Aliases: []string{"e"}, Usage: "write the image to `FILE`, which must be new; - is standard output"},
		&cli.BoolFlag{Name: "leave-running", Aliases: []string{"R"}, Usage: "resume the service after the dump: the image is a snapshot, and its connections are closed on restore"},
		&cli.BoolFlag{Name: "tcp-close", Usage: "don't save established TCP connections: they are closed on restore"},
		&cli.StringFlag{Name: "compress", Aliases: []string{"c"}, Value: "zstd", Usage: "compress an exported image with `zstd|none`"},
		&cli.StringSliceFlag{Name: "allow-loss", Usage: "go on without objects of these `KIND`s that can't be carried; a refusal names the kinds"},
		&cli.BoolFlag{Name: "dry-run", Usage: "stop before anything is frozen"},
		&cli.BoolFlag{Name: "print-stats", Usage: "print how long each phase took"},
		&cli.DurationFlag{Name: "timeout", Value: defaultTimeout, Usage: "give up after this `TIME`, and resume the service"},
		criuFlag(),
	}
}

// defaultTimeout bounds a dump and a restore.
const defaultTimeout = 2 * time.Minute

// dumpRequest is what the flags of a dump ask for.
type dumpRequest struct {
	spec  checkpoint.Spec
	opts  checkpoint.Options
	dest  destination
	stats bool
}

func parseDump(c *cli.Context) (*dumpRequest, error) {
	if err := oneOf(c, "what to dump", "netns", "tree"); err != nil {
		return nil, err
	}
	r := &dumpRequest{
		spec: checkpoint.Spec{NetNS: c.String("netns"), PID: c.Int("tree")},
		opts: checkpoint.Options{
			CRIU:         c.String("criu"),
			LeaveRunning: c.Bool("leave-running"),
			TCPClose:     c.Bool("tcp-close"),
			AllowLoss:    c.StringSlice("allow-loss"),
			DryRun:       c.Bool("dry-run"),
			Timeout:      c.Duration("timeout"),
		},
		stats: c.Bool("print-stats"),
	}
	switch {
	case c.IsSet("netns") && r.spec.NetNS == "":
		return nil, usagef("ip netns list shows the names", "--netns: the name is empty")
	case c.IsSet("tree") && r.spec.PID <= 0:
		return nil, usagef("", "--tree: %d is no process id", r.spec.PID)
	case r.opts.Timeout <= 0:
		return nil, usagef("give a time such as 30s or 2m", "--timeout: %v is too short", r.opts.Timeout)
	}
	var err error
	r.dest, err = parseDestination(c)
	return r, err
}

// destination is where an image goes. At most one of dir and file is set; a dry run may have neither.
type destination struct {
	dir, file string
	stdout    bool
	compress  bool
}

func parseDestination(c *cli.Context) (destination, error) {
	d := destination{dir: c.String("images-dir"), file: c.String("export")}
	if !c.Bool("dry-run") || c.IsSet("images-dir") || c.IsSet("export") {
		if err := oneOf(c, "where to write the image", "images-dir", "export"); err != nil {
			return d, err
		}
		if d.dir == "" && d.file == "" {
			return d, usagef("", "where to write the image is missing: the name is empty")
		}
	}
	switch c.String("compress") {
	case "zstd":
		d.compress = true
	case "none":
	default:
		return d, usagef("it is zstd or none", "--compress: unknown method %q", c.String("compress"))
	}
	if d.dir != "" && c.IsSet("compress") {
		return d, usagef("export it to a file with --export", "--compress: an image in a directory is not compressed")
	}
	if d.file == "-" {
		d.file, d.stdout = "", true
	}
	return d, nil
}

func (d destination) String() string {
	switch {
	case d.stdout:
		return "standard output"
	case d.dir != "":
		return d.dir
	}
	return d.file
}

// check refuses a destination that can't take an image, before anything is frozen.
func (d destination) check() error {
	var p checkpoint.Problem
	switch {
	case d.dir != "":
		p = checkpoint.Problem{Kind: "image", Object: d.dir, Reason: reason(checkpoint.CheckDir(d.dir)), Remedy: "give a new or empty directory; an image may be the only copy of a service, and is never overwritten"}
	case d.file != "":
		p = checkpoint.Problem{Kind: "image", Object: d.file, Reason: fileObstacle(d.file), Remedy: "give a new file; an image may be the only copy of a service, and is never overwritten"}
	}
	if p.Reason == "" {
		return nil
	}
	return checkpoint.Refuse("dump", []checkpoint.Problem{p})
}

func fileObstacle(file string) string {
	if _, err := os.Lstat(file); err == nil {
		return "the file exists"
	} else if !os.IsNotExist(err) {
		return reason(err)
	}
	return parentObstacle(file)
}

func parentObstacle(path string) string {
	parent := filepath.Dir(path)
	info, err := os.Stat(parent)
	switch {
	case err != nil:
		return reason(err)
	case !info.IsDir():
		return parent + " is not a directory"
	}
	return ""
}

// reason is a path error without the operation's name, which means nothing to people; "" is no error.
func reason(err error) string {
	if err == nil {
		return ""
	}
	var e *fs.PathError
	if errors.As(err, &e) {
		return fmt.Sprintf("%s: %v", e.Path, e.Err)
	}
	return err.Error()
}

// showPhases prints a table of phases, and when the service was frozen.
func showPhases(b *strings.Builder, phases []checkpoint.Phase) {
	if len(phases) == 0 {
		return
	}
	fmt.Fprintf(b, "  %-24s %10s %10s\n", "phase", "at", "took")
	for _, p := range phases {
		frozen := ""
		if p.Blackout {
			frozen = "  frozen"
		}
		fmt.Fprintf(b, "  %-24s %10s %10s%s\n", p.Name, span(p.Start), span(p.Duration), frozen)
	}
}
