package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/netstate"
	"github.com/nsmigrate/nsmigrate/restore"
	"github.com/nsmigrate/nsmigrate/transfer/journal"
	"github.com/nsmigrate/nsmigrate/transfer/offline"
)

func restoreCommand(u *ui, s *signals) *cli.Command {
	return &cli.Command{
		Name:  "restore",
		Usage: "rebuild a service from an image and let it run",
		Description: description(`Verifies every byte of the image, rebuilds the network namespace under its name, restores the processes
and their sockets in it, announces the addresses on the network (gratuitous ARP, unsolicited neighbour
advertisement) and lets the service run. If anything fails before that, all of it is removed again and the
image is as it was.

Connections go on only if the service was stopped at its dump. Those of a snapshot are closed.`,
			[]string{
				"sudo nsmigrate restore -i svc.nsm --dry-run           # what would stand in the way?",
				"sudo nsmigrate restore -i svc.nsm",
				"sudo nsmigrate restore -i svc.nsm --uplink eth0=veth-svc@br1",
				"sudo nsmigrate restore -D /srv/images/job --wait      # in the foreground, as a job",
				"ssh root@old nsmigrate dump --netns svc -e - | sudo nsmigrate restore -i -",
			},
			statusRefused, statusRestoreFailed, statusLeftBehind, statusDamaged, statusInterrupted) +
			"\n  With --wait: the service's own status once it runs, 128 and the number of the signal that killed it.",
		Flags: restoreFlags(),
		Action: func(c *cli.Context) error {
			r, err := parseRestore(c)
			if err != nil {
				return err
			}
			return u.restore(c.Context, r, s)
		},
	}
}

func (u *ui) restore(ctx context.Context, r *restoreRequest, s *signals) error {
	report, err := u.restoreImage(ctx, r)
	if report == nil {
		return err
	}
	if err != nil {
		// The service is live: what went wrong is what came after.
		err = &leftBehindError{err: err}
	}
	if err := errors.Join(u.showRestore(r, report), err); err != nil || !r.opts.Wait {
		return err
	}
	if sig := s.leave(); sig != 0 { // it came when the service was live already
		for _, pid := range report.PIDs {
			unix.Kill(pid, sig) //nolint:errcheck // it may have ended
		}
	}
	code, err := report.Wait(context.WithoutCancel(ctx))
	if err == nil && code != 0 {
		err = serviceExit(code)
	}
	return err
}

// restoreImage does the restore proper. The unpacked image is gone when it returns.
func (u *ui) restoreImage(ctx context.Context, r *restoreRequest) (report *restore.Report, err error) {
	if err := checkpoint.RequireRoot("restore"); err != nil {
		return nil, err
	}
	progress, done := u.progress("restore " + r.source.String())
	defer done()
	if progress != nil {
		progress.Phase("read image")
	}
	r.opts.Progress = progress
	if r.opts.DryRun {
		return u.restoreFrom(ctx, r, nil)
	}
	op, err := u.begin(r.stateDir, journal.Restore, offline.About{Service: r.opts.NetNS, Image: r.source.absolute()})
	if err != nil {
		return nil, err
	}
	r.source.scratch = op.Scratch
	if r.opts.Wait {
		r.opts.Stdio = u.stdio(r.source)
	}
	report, err = u.restoreFrom(ctx, r, op)
	failed, ok := errors.AsType[*restore.Error](err)
	return report, op.end(err, ok && failed.Leftover != nil)
}

// restoreFrom opens the image and restores it. op is nil if nothing is to be built.
func (u *ui) restoreFrom(ctx context.Context, r *restoreRequest, op *operation) (*restore.Report, error) {
	dir, m, remove, err := u.open(ctx, r.source)
	if err != nil {
		return nil, err
	}
	defer remove()
	if op != nil {
		r.opts.Record = func(record *restore.Record) error { return op.Restoring(absolute(dir), r.opts.Uplinks, record) }
	}
	return restore.Run(ctx, dir, m, r.opts)
}

// stdio returns our own standard streams for a service in the foreground. An image that came through
// standard input leaves nothing there for the service.
func (u *ui) stdio(s source) []*os.File {
	in := os.Stdin
	if s.stdin {
		in = nil
	}
	return []*os.File{in, os.Stdout, os.Stderr}
}

func (u *ui) showRestore(r *restoreRequest, report *restore.Report) error {
	if u.json {
		return printJSON(u.out, report)
	}
	for _, n := range report.Notes {
		u.say("note: %s", n)
	}
	name := cmp.Or(report.NetNS, "the service")
	var b strings.Builder
	if r.opts.DryRun {
		fmt.Fprintf(&b, "%s can be restored from %s; nothing was changed\n", name, r.source)
	} else {
		pids := make([]string, len(report.PIDs))
		for i, pid := range report.PIDs {
			pids[i] = strconv.Itoa(pid)
		}
		what := "the network alone"
		if len(pids) > 0 {
			what = "process " + strings.Join(pids, ", ")
		}
		fate := ""
		switch {
		case len(pids) == 0:
		case report.TCPClose:
			fate = ", established connections were closed"
		default:
			fate = ", connections go on"
		}
		fmt.Fprintf(&b, "restored %s from %s: %s, live after %s%s\n", name, r.source, what, span(report.Total), fate)
	}
	if r.stats {
		showPhases(&b, report.Phases)
		for i, c := range report.CRIU {
			fmt.Fprintf(&b, "  criu, tree %d: forking %d us, restore %d us, %d pages restored\n", i+1, c.ForkingTime, c.RestoreTime, c.PagesRestored)
		}
	}
	_, err := io.WriteString(u.out, b.String())
	return err
}

func restoreFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "images-dir", Aliases: []string{"D"}, Usage: "restore the image in the directory `DIR`"},
		&cli.StringFlag{Name: "import", Aliases: []string{"i"}, Usage: "restore the image in `FILE`; - is standard input"},
		&cli.StringFlag{Name: "netns", Usage: "call the network namespace `NAME` instead of the name it had"},
		&cli.StringSliceFlag{Name: "uplink", Usage: "attach the service's interface elsewhere than on the source host: `IF=PEER[@BRIDGE]` names the host's end of a veth and its bridge, IF=DEVICE the device below a macvlan; can be repeated"},
		&cli.StringFlag{Name: "pidfile", Usage: "write the process ids of the trees' roots to `FILE`, one a line"},
		&cli.StringFlag{Name: "pidns", Value: string(restore.PIDNSAuto), Usage: "take process ids from the host's pid namespace, from a new one, or from a new one if they are taken: `host|new|auto`"},
		&cli.BoolFlag{Name: "tcp-close", Usage: "close established TCP connections"},
		&cli.StringSliceFlag{Name: "allow-loss", Usage: "go on although this host lacks what the source had of these `KIND`s; a refusal names them"},
		&cli.BoolFlag{Name: "force", Usage: "restore although the service's address answers on the network"},
		&cli.BoolFlag{Name: "dry-run", Usage: "stop before anything is built"},
		&cli.BoolFlag{Name: "print-stats", Usage: "print how long each phase took"},
		&cli.BoolFlag{Name: "wait", Usage: "stay in the foreground, forward signals to the service, and end with its exit status"},
		&cli.DurationFlag{Name: "timeout", Value: defaultTimeout, Usage: "give up after this `TIME`, and clean up"},
		stateDirFlag(),
		criuFlag(),
	}
}

// restoreRequest is what the flags of a restore ask for.
type restoreRequest struct {
	source source
	opts   restore.Options
	stats  bool

	stateDir string
}

func parseRestore(c *cli.Context) (*restoreRequest, error) {
	r := &restoreRequest{
		opts: restore.Options{
			CRIU:      c.String("criu"),
			NetNS:     c.String("netns"),
			PIDFile:   c.String("pidfile"),
			TCPClose:  c.Bool("tcp-close"),
			AllowLoss: c.StringSlice("allow-loss"),
			Force:     c.Bool("force"),
			Wait:      c.Bool("wait"),
			DryRun:    c.Bool("dry-run"),
			Timeout:   c.Duration("timeout"),
		},
		stats:    c.Bool("print-stats"),
		stateDir: c.String("state-dir"),
	}
	var err error
	if r.source, err = parseSource(c); err != nil {
		return nil, err
	}
	if r.opts.PIDNS, err = restore.ParsePIDNS(c.String("pidns")); err != nil {
		return nil, &usageError{err: err}
	}
	if r.opts.Uplinks, err = parseUplinks(c.StringSlice("uplink")); err != nil {
		return nil, err
	}
	switch {
	case c.IsSet("netns") && (r.opts.NetNS == "" || strings.Contains(r.opts.NetNS, "/")):
		return nil, usagef("give a name as ip netns list shows them, not a path", "--netns: %q can't name a network namespace", r.opts.NetNS)
	case r.opts.Timeout <= 0:
		return nil, usagef("give a time such as 30s or 2m", "--timeout: %v is too short", r.opts.Timeout)
	case r.opts.Wait && r.opts.DryRun:
		return nil, usagef("", "--wait and --dry-run exclude each other")
	}
	return r, nil
}

// parseUplinks reads IF=PEER[@BRIDGE], where PEER or BRIDGE may be empty to be as on the source host.
func parseUplinks(args []string) (map[string]netstate.UplinkTarget, error) {
	const hint = "write IF=PEER, IF=PEER@BRIDGE or IF=@BRIDGE, for example eth0=veth-svc@br0"
	var m map[string]netstate.UplinkTarget
	for _, arg := range args {
		name, where, ok := strings.Cut(arg, "=")
		peer, bridge, hasBridge := strings.Cut(where, "@")
		if !ok || name == "" || where == "" || hasBridge && bridge == "" || strings.ContainsAny(bridge, "@=") {
			return nil, usagef(hint, "--uplink: %q is not understood", arg)
		}
		if _, twice := m[name]; twice {
			return nil, usagef("give each interface once", "--uplink: %s is given twice", name)
		}
		if m == nil {
			m = make(map[string]netstate.UplinkTarget)
		}
		m[name] = netstate.UplinkTarget{Peer: peer, Bridge: bridge}
	}
	return m, nil
}
