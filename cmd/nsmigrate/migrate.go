package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/checkpoint/hold"
	"github.com/nsmigrate/nsmigrate/restore"
	"github.com/nsmigrate/nsmigrate/transfer/handover"
	"github.com/nsmigrate/nsmigrate/transfer/journal"
	"github.com/nsmigrate/nsmigrate/transfer/migrate"
	"github.com/nsmigrate/nsmigrate/transfer/stream"
)

func migrateCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:  "migrate",
		Usage: "move a running service to another host, live",
		Description: description(`Moves all processes of a network namespace, or one process tree and its namespace, to another host, and
their connections with them. Both hosts are examined first, and everything that stands in the way is told
at once. The namespace is built over there while the service runs; then the service is frozen, moved
through memory, and lives over there. If anything fails before that, it goes on here as if nothing had
happened. There is never a moment with two live copies.

Files that the service has open for writing travel along, and what --ship names: owner, mode, times,
attributes and holes are kept, and only what is different over there is sent, most of it before the freeze.
What they replace over there is put back if the migration fails. All other files that the service uses must
be on the other host already, which is looked at before anything is frozen; programs and libraries have to be
the same builds.

If the connection breaks in the one moment in which only the other host knows where the service lives, it
stays frozen and mute here, and nsmigrate asks until it knows. See nsmigrate recover.`,
			[]string{
				"sudo nsmigrate migrate --netns svc --to ssh://root@new --dry-run   # what would stand in the way?",
				"sudo nsmigrate migrate --netns svc --to ssh://root@new",
				"sudo nsmigrate migrate --netns svc --to ssh://new:2222 --push-binary",
				"sudo nsmigrate migrate --netns svc --to ssh://me@new --remote-path 'sudo -n nsmigrate'",
				"sudo nsmigrate migrate --netns svc --to ssh://new --bandwidth 50M --progress-fd 3 3>events.json",
				"sudo nsmigrate migrate --tree 4711 --to tls://new --tls-ca ca.pem --tls-cert me.pem --tls-key me.key",
				"sudo nsmigrate migrate --netns svc --to ssh://new --uplink eth0=veth-svc@br1",
				"sudo nsmigrate migrate --netns svc --to ssh://new --ship /srv/app --ship /etc/app.conf",
				"sudo nsmigrate migrate --netns svc --to ssh://new --files none   # all data is on shared storage",
			},
			statusRefused, statusDumpFailed, statusSourceStuck, statusInDoubt, statusLeftBehind, statusInterrupted),
		Flags: migrateFlags(),
		Action: func(c *cli.Context) error {
			r, err := parseMigrate(c)
			if err != nil {
				return err
			}
			return u.migrate(c.Context, r)
		},
	}
}

func migrateFlags() []cli.Flag {
	flags := []cli.Flag{
		&cli.StringFlag{Name: "netns", Usage: "move the network namespace `NAME|PATH` with all its processes"},
		&cli.IntFlag{Name: "tree", Aliases: []string{"t"}, DefaultText: "none", Usage: "move the process tree of `PID` and its network namespace"},
	}
	flags = append(flags, remoteFlags()...)
	flags = append(flags, filesFlags()...)
	return append(flags,
		&cli.StringFlag{Name: "to-netns", Usage: "call the network namespace `NAME` over there instead of the name it has"},
		&cli.StringSliceFlag{Name: "uplink", Usage: "attach the service's interface elsewhere than here: `IF=PEER[@BRIDGE]` names the host's end of a veth and its bridge, IF=DEVICE the device below a macvlan; can be repeated"},
		&cli.StringFlag{Name: "pidns", Value: string(restore.PIDNSAuto), Usage: "take process ids from the other host's pid namespace, from a new one, or from a new one if they are taken: `host|new|auto`"},
		&cli.BoolFlag{Name: "tcp-close", Usage: "close established TCP connections"},
		&cli.StringSliceFlag{Name: "allow-loss", Usage: "leave objects of these `KINDS` behind, which otherwise refuse the migration; \"cpu\" goes on with a processor over there that has less"},
		&cli.BoolFlag{Name: "force", Usage: "migrate although somebody else answers for the service's address over there"},
		&cli.StringFlag{Name: "compress", Value: "auto", Usage: "compress what is sent: `auto|zstd|none`; auto does it when it pays"},
		&cli.StringFlag{Name: "bandwidth", Usage: "send `BYTES` a second at most, e.g. 100M"},
		&cli.BoolFlag{Name: "dry-run", Usage: "examine both hosts and stop"},
		&cli.BoolFlag{Name: "print-stats", Usage: "print how long each phase took on both hosts"},
		&cli.DurationFlag{Name: "max-frozen", Value: 2 * time.Minute, Usage: "give up, and resume the service, when it was frozen for this `TIME` and isn't over there"},
		&cli.IntFlag{Name: "progress-fd", Value: -1, DefaultText: "none", Usage: "write JSON events, one a line, to the file descriptor `FD`"},
		stateDirFlag(),
		criuFlag(),
	)
}

// migrateRequest is what the flags of a migration ask for.
type migrateRequest struct {
	spec     checkpoint.Spec
	opts     checkpoint.Options
	wish     migrate.Wish
	files    migrate.Files
	ship     []string // absolute paths
	link     link
	stream   stream.Options
	handover handover.Options
	stateDir string
	events   int // descriptor; -1 is none
	stats    bool
}

func parseMigrate(c *cli.Context) (*migrateRequest, error) {
	spec, err := parseSpec(c, "move")
	if err != nil {
		return nil, err
	}
	r := &migrateRequest{
		spec: spec,
		opts: checkpoint.Options{
			CRIU: c.String("criu"), TCPClose: c.Bool("tcp-close"), AllowLoss: c.StringSlice("allow-loss"),
			Tool: "nsmigrate " + version,
		},
		wish: migrate.Wish{
			NetNS: c.String("to-netns"), TCPClose: c.Bool("tcp-close"), Force: c.Bool("force"), AllowLoss: c.StringSlice("allow-loss"),
		},
		handover: handover.Options{DryRun: c.Bool("dry-run"), Frozen: c.Duration("max-frozen")},
		stateDir: c.String("state-dir"),
		events:   c.Int("progress-fd"),
		stats:    c.Bool("print-stats"),
	}
	to, err := parseRemote(c)
	if err != nil {
		return nil, err
	}
	r.link = link{To: to.address.String(), Options: to.opts}
	if r.files, r.ship, err = parseFiles(c); err != nil {
		return nil, err
	}
	if r.wish.PIDNS, err = restore.ParsePIDNS(c.String("pidns")); err != nil {
		return nil, &usageError{err: err}
	}
	if r.wish.Uplinks, err = parseUplinks(c.StringSlice("uplink")); err != nil {
		return nil, err
	}
	switch how := c.String("compress"); how {
	case "auto":
	case string(stream.Zstd), string(stream.None):
		r.stream.Compression = stream.Compression(how)
	default:
		return nil, usagef("it is auto, zstd or none", "--compress: %q is not understood", how)
	}
	if r.stream.Bandwidth, err = parseSize(c.String("bandwidth")); err != nil {
		return nil, err
	}
	return r, nil
}

// migration is the result document of a migration.
type migration struct {
	*handover.Report
	DumpPhases  []checkpoint.Phase     `json:"dump_phases,omitempty"` // of this host's part, in detail
	Destination *restore.Report        `json:"destination,omitempty"`
	CRIU        []checkpoint.CRIUStats `json:"criu_statistics,omitempty"`
	Notes       []string               `json:"notes,omitempty"`
	Held        hold.Stats             `json:"held"` // packets for the service that came while it stood still
	Files       *migrate.FilesReport   `json:"files,omitempty"`
	Stream      stream.Stats           `json:"stream"`
	Ratio       float64                `json:"ratio"` // bytes that were sent for each one on the wire
}

func (u *ui) migrate(ctx context.Context, r *migrateRequest) (err error) {
	if err := checkpoint.RequireRoot("migrate"); err != nil {
		return err
	}
	progress, done := u.progress("migrate " + (&dumpRequest{spec: r.spec}).name())
	defer done()
	if r.events >= 0 {
		e := newEvents(os.NewFile(uintptr(r.events), "progress"), progress)
		progress = e
		defer func() { e.finish(eventStatus(err)) }()
	}
	if progress != nil {
		progress.Phase("connect")
	}
	conn, err := r.link.dial(ctx, r.stream)
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	host, _ := os.Hostname() // for people only
	s := &migrate.Source{
		Spec: r.spec, Options: r.opts, Wish: r.wish, Files: r.files, Ship: r.ship, Progress: progress, Guard: startGuard,
		About: about{Service: r.spec.String(), From: host, Link: r.link, PID: os.Getpid()},
	}
	defer s.Close()
	r.handover.Progress = progress
	r.handover.Redial = r.link.redial
	r.handover.At = faults(os.Getenv)
	report, err := handover.Send(ctx, handover.Over(conn), journal.Dir{Path: r.stateDir}, s, r.handover)
	if err != nil {
		return err
	}
	done()
	m := migration{Report: report, Stream: conn.Stats()}
	m.Ratio = m.Stream.Ratio()
	if dump := s.Report(); dump != nil {
		m.CRIU, m.Notes, m.DumpPhases, m.Held = dump.CRIU, dump.Notes, dump.Phases, dump.Held
	}
	if m.Files, err = s.FilesReport(report.Wants); err != nil {
		u.say("note: %v", err)
	}
	if report.PeerReport != nil {
		m.Destination = new(restore.Report)
		if err := json.Unmarshal(report.PeerReport, m.Destination); err != nil {
			u.say("note: the destination's report is malformed: %v", err)
			m.Destination = nil
		}
	}
	err = u.showMigration(r, &m)
	if report.Leftover != nil {
		err = errors.Join(err, &leftBehindError{err: report.Leftover})
	}
	return err
}

func (u *ui) showMigration(r *migrateRequest, m *migration) error {
	if u.json {
		return printJSON(u.out, m)
	}
	notes := m.Notes
	if m.Destination != nil {
		notes = append(notes, m.Destination.Notes...)
	}
	if m.Files != nil {
		notes = append(notes, m.Files.Notes...)
	}
	for _, n := range notes {
		u.say("note: %s", n)
	}
	if m.PeerTrouble != "" {
		u.say("warning: on the destination: %s", m.PeerTrouble)
	}
	var b strings.Builder
	if m.Outcome == handover.Checked {
		fmt.Fprintf(&b, "%s can be migrated to %s; nothing was changed\n", r.spec, r.link.To)
	} else {
		name, what := r.spec.String(), "" // a destination that could not be heard tells nothing
		if d := m.Destination; d != nil {
			name, what = cmp.Or(d.NetNS, name), "the network alone, "
			if len(d.PIDs) > 0 {
				what = "process " + strings.Trim(strings.Join(strings.Fields(fmt.Sprint(d.PIDs)), ", "), "[]") + ", "
			}
		}
		fmt.Fprintf(&b, "migrated %s to %s: %s%s sent, stood still for %s\n", name, r.link.To, what, checkpoint.Size(m.Stream.WireSent), span(m.Blackout))
	}
	showFiles(&b, m.Files, m.Outcome == handover.Moved, r.stats || r.handover.DryRun)
	if r.stats {
		fmt.Fprintf(&b, "  stream: %s in %s, ratio %.2f\n", checkpoint.Size(m.Stream.RawSent), checkpoint.Size(m.Stream.WireSent), m.Ratio)
		showHeld(&b, m.Held)
		if f := m.Files; f != nil && m.Outcome == handover.Moved {
			fmt.Fprintf(&b, "  files: gone through %s while the service ran, and for %s when it stood still: %s changed\n",
				count(f.Passes, "time", "times"), span(f.FrozenTime), count(f.EntriesFinal, "entry", "entries"))
		}
		showPhases(&b, m.Phases)
		if len(m.DumpPhases) > 0 {
			b.WriteString("of its dump:\n")
			showPhases(&b, m.DumpPhases)
		}
		if len(m.PeerPhases) > 0 {
			b.WriteString("on the destination:\n")
			showPhases(&b, m.PeerPhases)
		}
		if m.Destination != nil {
			b.WriteString("of its restore:\n")
			showPhases(&b, m.Destination.Phases)
		}
		for i, c := range m.CRIU {
			fmt.Fprintf(&b, "  criu, tree %d: freezing %d us, frozen %d us, memory dump %d us, memory write %d us, %d pages scanned, %d written\n",
				i+1, c.FreezingTime, c.FrozenTime, c.MemdumpTime, c.MemwriteTime, c.PagesScanned, c.PagesWritten)
		}
	}
	_, err := io.WriteString(u.out, b.String())
	return err
}
