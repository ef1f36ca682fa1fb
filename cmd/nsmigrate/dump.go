package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/checkpoint/hold"
	"github.com/nsmigrate/nsmigrate/transfer"
	"github.com/nsmigrate/nsmigrate/transfer/journal"
	"github.com/nsmigrate/nsmigrate/transfer/offline"
)

func dumpCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:  "dump",
		Usage: "freeze a service, write it down with its network namespace, and remove it",
		Description: description(`Freezes all processes of a network namespace, or one process tree and its namespace, makes them mute,
and writes them to an image. When the image is complete and on the disk, the service is killed without
a packet and its namespace is removed: the image is now the only copy. If anything fails before that,
the service runs on and its connections with it.

With --leave-running the service runs on in any case, and the image is a snapshot: restored, it has the
memory of the moment, but its established connections are closed, since their peers have moved on.

Through a pipe (--export -) nsmigrate can't know that the reader kept the image. Where that matters, dump
to a file.`,
			[]string{
				"sudo nsmigrate dump --netns svc --dry-run             # what would stand in the way?",
				"sudo nsmigrate dump --netns svc -e svc.nsm",
				"sudo nsmigrate dump --tree 4711 -D /srv/images/job    # a directory, not compressed",
				"sudo nsmigrate dump --netns svc -e - | ssh root@new nsmigrate restore -i -",
				"sudo nsmigrate dump --netns router --no-processes -e router.nsm   # a backup of the network alone",
				"sudo nsmigrate dump --netns svc -R -e snapshot.nsm    # and go on",
			},
			statusRefused, statusDumpFailed, statusSourceStuck, statusLeftBehind, statusInterrupted),
		Flags: dumpFlags(),
		Action: func(c *cli.Context) error {
			r, err := parseDump(c)
			if err != nil {
				return err
			}
			return u.dump(c.Context, r)
		},
	}
}

func (u *ui) dump(ctx context.Context, r *dumpRequest) error {
	if err := checkpoint.RequireRoot("dump"); err != nil {
		return err
	}
	if err := r.dest.check(); err != nil {
		return err
	}
	out := u.out
	if r.dest.stdout && !r.opts.DryRun {
		if isTerminal(u.out) {
			return usagef("redirect it, or export to a file", "--export -: an image is not for a terminal")
		}
		out = u.err
	}
	progress, done := u.progress("dump " + r.name())
	r.opts.Progress = progress
	r.opts.Tool = "nsmigrate " + version
	dump := checkpoint.Dump
	var op *operation
	var journalled *offline.Operation
	var ahead *transfer.Ahead
	if r.noProcesses {
		dump = checkpoint.Backup
	} else if !r.opts.DryRun {
		if r.dest.compressed() {
			var err error
			if ahead, err = transfer.NewAhead(); err != nil {
				return err
			}
			defer ahead.Close() //nolint:errcheck // memory
			r.opts.Chunk = ahead.Chunk
		}
		about := offline.About{Service: r.name(), Image: r.dest.absolute(), Snapshot: r.opts.LeaveRunning}
		var err error
		if op, err = u.begin(r.stateDir, journal.Dump, about); err != nil {
			return err
		}
		journalled = op.Operation
		r.opts.WorkDir, r.opts.Record, r.opts.Contexts = op.Scratch, op.Dumping, op.Stopped
	}
	report, err := dump(ctx, r.spec, u.store(r.dest, progress, journalled, ahead), r.opts)
	done()
	if op != nil {
		failed, ok := errors.AsType[*checkpoint.FailedError](err)
		err = op.end(err, ok && failed.Stuck != nil || report != nil && err != nil)
	}
	if report == nil {
		return err
	}
	if err != nil {
		// The point of no return is past: what went wrong is the clean-up.
		err = &leftBehindError{err: err}
	}
	return errors.Join(u.showDump(out, r, report), err)
}

// name is what the user calls the target.
func (r *dumpRequest) name() string {
	if r.spec.NetNS != "" {
		return r.spec.NetNS
	}
	return fmt.Sprintf("process %d", r.spec.PID)
}

func (u *ui) showDump(out io.Writer, r *dumpRequest, report *checkpoint.Report) error {
	if u.json {
		return printJSON(out, report)
	}
	for _, l := range report.Manifest.Losses {
		u.say("left behind: %s", l)
	}
	for _, n := range report.Notes {
		u.say("note: %s", n)
	}
	var b strings.Builder
	trees := count(len(report.Manifest.Trees), "process tree", "process trees")
	if r.noProcesses {
		trees = "the network alone"
	}
	if r.noProcesses && !r.opts.DryRun {
		fmt.Fprintf(&b, "dumped %s to %s: %s, %s\n", r.name(), r.dest, trees, checkpoint.Size(report.Bytes))
	} else if r.opts.DryRun {
		fmt.Fprintf(&b, "%s can be dumped: %s; nothing was changed\n", r.name(), trees)
	} else {
		after := "the source is removed"
		if r.opts.LeaveRunning {
			after = "the source runs on"
		}
		fmt.Fprintf(&b, "dumped %s to %s: %s, %s, frozen for %s; %s\n", r.name(), r.dest, trees, checkpoint.Size(report.Bytes), span(report.Frozen), after)
	}
	if r.stats {
		showHeld(&b, report.Held)
		showPhases(&b, report.Phases)
		for i, c := range report.CRIU {
			fmt.Fprintf(&b, "  criu, tree %d: freezing %d us, frozen %d us, memory dump %d us, memory write %d us, %d pages scanned, %d written\n",
				i+1, c.FreezingTime, c.FrozenTime, c.MemdumpTime, c.MemwriteTime, c.PagesScanned, c.PagesWritten)
		}
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// dumpFlags are the flags of a dump.
func dumpFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "netns", Usage: "dump the network namespace `NAME|PATH` with all its processes"},
		&cli.IntFlag{Name: "tree", Aliases: []string{"t"}, DefaultText: "none", Usage: "dump the process tree of `PID` and its network namespace"},
		&cli.StringFlag{Name: "images-dir", Aliases: []string{"D"}, Usage: "write the image to the directory `DIR`, which must be new or empty"},
		&cli.StringFlag{Name: "export", Aliases: []string{"e"}, Usage: "write the image to `FILE`, which must be new; - is standard output"},
		&cli.BoolFlag{Name: "leave-running", Aliases: []string{"R"}, Usage: "resume the service after the dump: the image is a snapshot, and its connections are closed on restore"},
		&cli.BoolFlag{Name: "no-processes", Usage: "write down the network namespace alone and change nothing; it may be the host's own (--netns /proc/1/ns/net)"},
		&cli.BoolFlag{Name: "tcp-close", Usage: "don't save established TCP connections: they are closed on restore"},
		&cli.StringFlag{Name: "compress", Aliases: []string{"c"}, Value: "zstd", Usage: "compress an exported image with `zstd|none`"},
		&cli.StringSliceFlag{Name: "allow-loss", Usage: "go on without objects of these `KIND`s that can't be carried; a refusal names the kinds"},
		&cli.BoolFlag{Name: "dry-run", Usage: "stop before anything is frozen"},
		&cli.BoolFlag{Name: "print-stats", Usage: "print how long each phase took"},
		&cli.DurationFlag{Name: "timeout", Value: defaultTimeout, Usage: "give up after this `TIME`, and resume the service"},
		stateDirFlag(),
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

	noProcesses bool
	stateDir    string
}

func parseDump(c *cli.Context) (*dumpRequest, error) {
	spec, err := parseSpec(c, "dump")
	if err != nil {
		return nil, err
	}
	r := &dumpRequest{
		spec: spec,
		opts: checkpoint.Options{
			CRIU:         c.String("criu"),
			LeaveRunning: c.Bool("leave-running"),
			TCPClose:     c.Bool("tcp-close"),
			AllowLoss:    c.StringSlice("allow-loss"),
			DryRun:       c.Bool("dry-run"),
			Timeout:      c.Duration("timeout"),
		},
		stats: c.Bool("print-stats"),

		noProcesses: c.Bool("no-processes"),
		stateDir:    c.String("state-dir"),
	}
	if r.opts.Timeout <= 0 {
		return nil, usagef("give a time such as 30s or 2m", "--timeout: %v is too short", r.opts.Timeout)
	}
	r.dest, err = parseDestination(c)
	return r, err
}

// parseSpec reads what is to be dumped or moved.
func parseSpec(c *cli.Context, verb string) (checkpoint.Spec, error) {
	spec := checkpoint.Spec{NetNS: c.String("netns"), PID: c.Int("tree")}
	if err := oneOf(c, "what to "+verb, "netns", "tree"); err != nil {
		return spec, err
	}
	switch {
	case c.IsSet("netns") && spec.NetNS == "":
		return spec, usagef("ip netns list shows the names", "--netns: the name is empty")
	case c.IsSet("tree") && spec.PID <= 0:
		return spec, usagef("", "--tree: %d is no process id", spec.PID)
	}
	return spec, nil
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

// compressed says whether the image becomes a file that is.
func (d destination) compressed() bool { return d.compress && d.dir == "" }

// String is the destination as people call it.
func (d destination) String() string {
	switch {
	case d.stdout:
		return "standard output"
	case d.dir != "":
		return d.dir
	}
	return d.file
}

// absolute is what the destination is called by a process with another working directory.
func (d destination) absolute() string {
	if d.stdout {
		return d.String()
	}
	return absolute(d.String())
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
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Sprintf("%s: %v", e.Path, e.Err)
	}
	return err.Error()
}

// showHeld prints what became of the packets for a service that stood still.
func showHeld(b *strings.Builder, h hold.Stats) {
	if h.Packets+h.Dropped == 0 {
		return
	}
	fmt.Fprintf(b, "  %s for it came meanwhile: %d kept (%s), %d left to be sent again\n",
		count(h.Packets+h.Dropped, "packet", "packets"), h.Packets, checkpoint.Size(h.Bytes), h.Dropped)
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
		if p.Beside {
			frozen = "  at the same time"
		}
		fmt.Fprintf(b, "  %-24s %10s %10s%s\n", p.Name, span(p.Start), span(p.Duration), frozen)
	}
}
