package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/transfer/handover"
	"github.com/nsmigrate/nsmigrate/transfer/journal"
	"github.com/nsmigrate/nsmigrate/transfer/migrate"
)

func recoverCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:      "recover",
		Usage:     "finish or undo what a migration left behind that was cut short",
		ArgsUsage: "[ID]",
		Description: description(`A migration that is cut short is brought to its end by itself as soon as the hosts can talk to each other:
either the service lives on the destination, or it goes on where it was. This command does the same by
hand: for one migration, or for all of this host. It reads the journals, asks the other host where that
has to decide, and finishes what was begun, forwards or backwards.

Only if the other host can't be reached, or has forgotten, a person has to decide where the service lives.
Look at the other host first: the word is believed.

  --force-live   on the source: the service lives on the destination, end the frozen copy here.
                 If that is wrong, no copy is left.
                 on the destination: let the prepared copy live.
                 If the source runs again, two copies live and the connections of both are lost.
  --force-abort  on the source: the service does not live on the destination, let it go on here.
                 If that is wrong, two copies live.
                 on the destination: the prepared copy is removed.`,
			[]string{
				"sudo nsmigrate recover --list",
				"sudo nsmigrate recover",
				"sudo nsmigrate recover --force-abort 5d41402abc4b2a76b9719d911017c592",
			},
			statusInDoubt, statusLeftBehind),
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "list", Usage: "show the migrations of this host that are not at their end, and do nothing"},
			&cli.BoolFlag{Name: "force-live", Usage: "the service lives on the destination, or shall live there"},
			&cli.BoolFlag{Name: "force-abort", Usage: "the service does not live on the destination, and never will"},
			&cli.DurationFlag{Name: "timeout", Value: time.Minute, Usage: "ask the other host for this `TIME`"},
			stateDirFlag(),
		},
		Action: func(c *cli.Context) error {
			if c.NArg() > 1 {
				return usagef("call it for each, or without one for all", "one migration can be named, not %d", c.NArg())
			}
			o := recoverOptions{askFor: c.Duration("timeout")}
			switch {
			case c.Bool("force-live") && c.Bool("force-abort"):
				return usagef("say what is true", "--force-live and --force-abort exclude each other")
			case c.Bool("force-live"):
				o.force = handover.ForceLive
			case c.Bool("force-abort"):
				o.force = handover.ForceAbort
			}
			if o.force != handover.ForceNothing && c.Args().First() == "" {
				return usagef("`nsmigrate recover --list` shows them", "which migration is meant?")
			}
			if err := checkpoint.RequireRoot("recover"); err != nil {
				return err
			}
			dir := journal.Dir{Path: c.String("state-dir")}
			if c.Bool("list") {
				return u.listMigrations(dir)
			}
			return u.recover(c.Context, dir, c.Args().First(), o)
		},
	}
}

func stateDirFlag() cli.Flag {
	return &cli.StringFlag{Name: "state-dir", Value: journal.DefaultPath, EnvVars: []string{"NSMIGRATE_STATE_DIR"}, Usage: "keep the journals of migrations in `DIR`, which must outlive a reboot"}
}

type recoverOptions struct {
	force  handover.Force
	askFor time.Duration
}

// recovered is what became of a migration.
type recovered struct {
	ID      string           `json:"id"`
	Role    journal.Role     `json:"role"`
	Service string           `json:"service"`
	Outcome handover.Outcome `json:"outcome,omitempty"`
	Error   string           `json:"error,omitempty"`
}

func (r recovered) String() string {
	what := map[handover.Outcome]string{
		handover.Moved:  "it lives on the destination",
		handover.Stayed: "it goes on on the source",
		handover.Gone:   "it ended when the host was restarted",
	}[r.Outcome]
	if what == "" {
		what = "it is undecided: " + r.Error
	}
	return fmt.Sprintf("migration %s of %s (%s): %s", r.ID, r.Service, r.Role, what)
}

// recoverOne brings one migration of this host to its end.
func recoverOne(ctx context.Context, dir journal.Dir, id string, role journal.Role, o recoverOptions) (recovered, error) {
	j, err := dir.Open(id, role)
	if err != nil {
		return recovered{}, err
	}
	a, err := aboutOf(j.Data)
	if err != nil {
		j.Close()
		return recovered{}, err
	}
	r := recovered{ID: id, Role: role, Service: a.Service}
	opts := handover.Options{AskFor: o.askFor, At: faults(os.Getenv)}
	if role == journal.Destination {
		host, err := migrate.ReopenDestination(j)
		if err != nil {
			j.Close()
			return r, err
		}
		defer host.Close()
		r.Outcome, err = handover.RecoverDestination(ctx, j, host, o.force, opts)
		return r, err
	}
	opts.Redial = a.Link.redial
	service := migrate.ReopenSource(j)
	defer service.Close()
	r.Outcome, err = handover.RecoverSource(ctx, j, service, o.force, opts)
	return r, err
}

// insist is recoverOne with a person's word: it waits for a process that works on the migration, which perhaps asks the
// other host in vain, to let go of it.
func insist(ctx context.Context, dir journal.Dir, id string, role journal.Role, o recoverOptions) (recovered, error) {
	const pause = 50 * time.Millisecond // shorter than that of a guard
	patience, cancel := context.WithTimeout(ctx, o.askFor)
	defer cancel()
	for {
		r, err := recoverOne(ctx, dir, id, role, o)
		if errors.Is(err, fs.ErrNotExist) {
			err = journal.ErrFinished // meanwhile
		}
		if !errors.Is(err, journal.ErrBusy) {
			return r, err
		}
		select {
		case <-time.After(pause):
		case <-patience.Done():
			return r, err
		}
	}
}

func (u *ui) recover(ctx context.Context, dir journal.Dir, id string, o recoverOptions) error {
	list, err := dir.List()
	if err != nil {
		return err
	}
	all := []recovered{}
	var errs []error
	for _, c := range list {
		if c.Finished() || id != "" && c.ID != id {
			continue
		}
		recoverIt := recoverOne
		if o.force != handover.ForceNothing {
			recoverIt = insist
		}
		r, err := recoverIt(ctx, dir, c.ID, c.Role, o)
		if errors.Is(err, journal.ErrFinished) {
			continue
		}
		if err != nil {
			r.ID, r.Role, r.Error = c.ID, c.Role, err.Error()
			errs = append(errs, err)
		}
		all = append(all, r)
		if !u.json {
			fmt.Fprintln(u.out, r)
		}
	}
	if u.json {
		errs = append(errs, printJSON(u.out, all))
	} else if len(all) == 0 {
		if id != "" {
			return usagef("`nsmigrate recover --list` shows them", "this host has no unfinished migration %s", id)
		}
		fmt.Fprintln(u.out, "no migration is unfinished on this host")
	}
	return errors.Join(errs...)
}

// unfinished is a migration that is not at its end.
type unfinished struct {
	ID      string         `json:"id"`
	Role    journal.Role   `json:"role"`
	Service string         `json:"service,omitempty"`
	From    string         `json:"from,omitempty"`
	To      string         `json:"to,omitempty"`
	Begun   time.Time      `json:"begun"`
	State   handover.State `json:"state,omitempty"`
	Busy    bool           `json:"busy"` // a process works on it
	Error   string         `json:"error,omitempty"`
}

func (u *ui) listMigrations(dir journal.Dir) error {
	list, err := dir.List()
	if err != nil {
		return err
	}
	all := []unfinished{}
	for _, c := range list {
		if c.Finished() {
			continue
		}
		m := unfinished{ID: c.ID, Role: c.Role, Begun: c.Created(), Busy: c.Busy}
		err := c.Err
		if err == nil {
			var a about
			a, err = aboutOf(c.Data)
			m.Service, m.From, m.To = a.Service, a.From, a.Link.To
		}
		if err == nil {
			m.State, err = handover.StateOf(c)
		}
		if err != nil {
			m.Error = err.Error()
		}
		all = append(all, m)
	}
	if u.json {
		return printJSON(u.out, all)
	}
	if len(all) == 0 {
		fmt.Fprintln(u.out, "no migration is unfinished on this host")
		return nil
	}
	var b strings.Builder
	for _, m := range all {
		fmt.Fprintf(&b, "%s  %-11s  %-9s  %s from %s to %s, begun %s", m.ID, m.Role, m.State, m.Service, m.From, m.To, m.Begun.Format(time.DateTime))
		if m.Busy {
			b.WriteString(", a process works on it")
		}
		if m.Error != "" {
			b.WriteString(": " + m.Error)
		}
		b.WriteString("\n")
	}
	_, err = io.WriteString(u.out, b.String())
	return err
}
