package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/transfer/handover"
	"github.com/nsmigrate/nsmigrate/transfer/journal"
	"github.com/nsmigrate/nsmigrate/transfer/migrate"
	"github.com/nsmigrate/nsmigrate/transfer/offline"
)

func recoverCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:      "recover",
		Usage:     "finish or undo what a migration, a dump or a restore left behind that was cut short",
		ArgsUsage: "[ID]",
		Description: description(`What is cut short is brought to its end by itself, by a process that watches over it: a dump and a restore
at once, a migration as soon as the hosts can talk to each other. If that process was killed too, or could
not do it, this command does the same by hand: for one operation, or for all of this host. It reads the
journals and finishes what was begun, forwards or backwards:

  a migration  Either the service lives on the destination, or it goes on where it was. The other host is
               asked where that has to decide.
  a dump       The source runs again as before; if the image is complete and the source's end had begun,
               the image gets its name and the source is removed.
  a restore    All of it is removed; if the service may have been heard already, it is brought to life.

Only if the other host of a migration can't be reached, or has forgotten, a person has to decide where the
service lives. Look at the other host first: the word is believed.

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
			&cli.BoolFlag{Name: "list", Usage: "show what is not at its end on this host, and do nothing"},
			&cli.BoolFlag{Name: "force-live", Usage: "the service lives on the destination, or shall live there"},
			&cli.BoolFlag{Name: "force-abort", Usage: "the service does not live on the destination, and never will"},
			&cli.DurationFlag{Name: "timeout", Value: time.Minute, Usage: "ask the other host for this `TIME`"},
			stateDirFlag(),
		},
		Action: func(c *cli.Context) error {
			if c.NArg() > 1 {
				return usagef("call it for each, or without one for all", "one ID can be given, not %d", c.NArg())
			}
			o := recoverOptions{askFor: c.Duration("timeout"), deliver: u.saveTail}
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
				return u.listUnfinished(dir)
			}
			return u.recover(c.Context, dir, c.Args().First(), o)
		},
	}
}

func stateDirFlag() cli.Flag {
	return &cli.StringFlag{Name: "state-dir", Value: journal.DefaultPath, EnvVars: []string{"NSMIGRATE_STATE_DIR"}, Usage: "keep the journals in `DIR`, which must outlive a reboot"}
}

type recoverOptions struct {
	force   handover.Force
	askFor  time.Duration
	deliver func(tail []byte) error // writes the end of an image to the stream that a dump wrote to
}

// recovered is what became of an operation.
type recovered struct {
	ID      string       `json:"id"`
	Role    journal.Role `json:"role"`
	Service string       `json:"service,omitempty"`
	Image   string       `json:"image,omitempty"`   // of a dump: it is complete
	Outcome string       `json:"outcome,omitempty"` // [handover.Outcome], [offline.Outcome]
	Error   string       `json:"error,omitempty"`

	of, what string // in people's words: service or image, and outcome
}

func (r recovered) String() string {
	what := cmp.Or(r.what, "it is undecided: "+r.Error)
	if r.Role == journal.Dump || r.Role == journal.Restore {
		return fmt.Sprintf("%s %s of %s: %s", r.Role, r.ID, r.of, what)
	}
	return fmt.Sprintf("migration %s of %s (%s): %s", r.ID, r.Service, r.Role, what)
}

// handedOver notes the outcome of a migration.
func (r *recovered) handedOver(o handover.Outcome) {
	r.Outcome, r.what = string(o), map[handover.Outcome]string{
		handover.Moved:  "it lives on the destination",
		handover.Stayed: "it goes on on the source",
		handover.Gone:   "it ended when the host was restarted",
	}[o]
}

// ended notes the outcome of a dump or a restore.
func (r *recovered) ended(how offline.Result) {
	r.Outcome, r.Image = string(how.Outcome), how.Image
	complete := how.Image != ""
	switch how.Outcome {
	case offline.Resumed:
		r.what = "the source is running as before"
		if complete {
			r.what += ", its snapshot " + how.Image + " is complete"
		}
	case offline.Removed:
		r.what = "the image " + how.Image + " is complete, the source is removed"
	case offline.Gone:
		r.what = "the service has ended"
		if complete {
			r.what += ", its image " + how.Image + " is complete"
		}
	case offline.Undone:
		r.what = "nothing is left of the restore on this host, the image is intact"
	case offline.Live:
		r.what = "the service is live"
	}
}

// recoverOffline brings a dump or a restore to its end. It closes the journal.
func recoverOffline(ctx context.Context, j *journal.Journal, o recoverOptions) (recovered, error) {
	r := recovered{ID: j.ID, Role: j.Role}
	if o.force != handover.ForceNothing {
		return r, errors.Join(fmt.Errorf("%s %s is on this host alone, and --force-%s makes no sense of that: recover it without",
			j.Role, j.ID, o.force), j.Close())
	}
	if a, err := offline.AboutOf(&j.Content); err == nil {
		r.Service, r.of = a.Service, cmp.Or(a.Service, a.Image)
	}
	how, err := offline.Recover(ctx, j, o.deliver)
	if err == nil {
		r.ended(how)
	}
	return r, err
}

// saveTail keeps the end of an image that a dump would have written to its standard output, which nobody has any more.
func (u *ui) saveTail(tail []byte) error {
	f, err := os.CreateTemp("", "nsmigrate-*.end")
	if err != nil {
		return err
	}
	if _, err := f.Write(tail); err != nil {
		return errors.Join(err, f.Close())
	}
	u.say("note: the image that was written to standard output lacks its last %d bytes: append %s to it", len(tail), f.Name())
	return f.Close()
}

// recoverOne brings one operation of this host to its end.
func recoverOne(ctx context.Context, dir journal.Dir, id string, role journal.Role, o recoverOptions) (recovered, error) {
	j, err := dir.Open(id, role)
	if err != nil {
		return recovered{}, err
	}
	if role == journal.Dump || role == journal.Restore {
		return recoverOffline(ctx, j, o)
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
		outcome, err := handover.RecoverDestination(ctx, j, host, o.force, opts)
		r.handedOver(outcome)
		return r, err
	}
	opts.Redial = a.Link.redial
	service := migrate.ReopenSource(j)
	defer service.Close()
	outcome, err := handover.RecoverSource(ctx, j, service, o.force, opts)
	r.handedOver(outcome)
	return r, err
}

// insist is recoverOne with a person's word. A process that works on the migration, which perhaps asks the other host in
// vain, gets the word, or is waited for to let go of it.
func insist(ctx context.Context, dir journal.Dir, id string, role journal.Role, o recoverOptions) (recovered, error) {
	const pause = 50 * time.Millisecond // shorter than that of a guard
	patience, cancel := context.WithTimeout(ctx, o.askFor)
	defer cancel()
	word := o.force
	request, err := dir.Request(id, role, string(word))
	if err == nil {
		defer request.Close()
	}
	for {
		taken := request.Taken()
		if taken {
			o.force = handover.ForceNothing // the journal has it, if that process should die of it
		}
		r, err := recoverOne(ctx, dir, id, role, o)
		switch {
		case errors.Is(err, fs.ErrNotExist) && request.Taken():
			r = recovered{ID: id, Role: role}
			r.handedOver(map[handover.Force]handover.Outcome{handover.ForceLive: handover.Moved, handover.ForceAbort: handover.Stayed}[word])
			return r, nil
		case errors.Is(err, fs.ErrNotExist):
			return r, journal.ErrFinished // meanwhile
		case !errors.Is(err, journal.ErrBusy) && taken == request.Taken():
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
		if a, about := aboutOf(c.Data); about == nil {
			r.Service = cmp.Or(r.Service, a.Service)
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
			return usagef("`nsmigrate recover --list` shows them", "nothing with the ID %s is unfinished on this host", id)
		}
		fmt.Fprintln(u.out, nothingUnfinished)
	}
	return errors.Join(errs...)
}

const nothingUnfinished = "nothing is unfinished on this host"

// unfinished is an operation that is not at its end.
type unfinished struct {
	ID      string       `json:"id"`
	Role    journal.Role `json:"role"`
	Service string       `json:"service,omitempty"`
	From    string       `json:"from,omitempty"` // host, or image
	To      string       `json:"to,omitempty"`
	Begun   time.Time    `json:"begun"`
	State   string       `json:"state,omitempty"` // [handover.State], [offline.State]
	Busy    bool         `json:"busy"`            // a process works on it
	Error   string       `json:"error,omitempty"`
}

// describe fills in what a journal says.
func (m *unfinished) describe(c *journal.Content) error {
	if c.Err != nil {
		return c.Err
	}
	var err error
	if c.Role == journal.Dump || c.Role == journal.Restore {
		var a offline.About
		if a, err = offline.AboutOf(c); err != nil {
			return err
		}
		if m.Service, m.To = a.Service, a.Image; c.Role == journal.Restore {
			m.From, m.To = a.Image, ""
		}
		m.State, err = offline.State(c)
		return err
	}
	a, err := aboutOf(c.Data)
	if err != nil {
		return err
	}
	m.Service, m.From, m.To = a.Service, a.From, a.Link.To
	state, err := handover.StateOf(c)
	m.State = string(state)
	return err
}

func (m *unfinished) String() string {
	s := fmt.Sprintf("%s  %-11s  %-9s  %s", m.ID, m.Role, m.State, cmp.Or(m.Service, "the service"))
	if m.From != "" {
		s += " from " + m.From
	}
	if m.To != "" {
		s += " to " + m.To
	}
	s += ", begun " + m.Begun.Format(time.DateTime)
	if m.Busy {
		s += ", a process works on it"
	}
	if m.Error != "" {
		s += ": " + m.Error
	}
	return s
}

func (u *ui) listUnfinished(dir journal.Dir) error {
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
		if err := m.describe(c); err != nil {
			m.Error = err.Error()
		}
		all = append(all, m)
	}
	if u.json {
		return printJSON(u.out, all)
	}
	if len(all) == 0 {
		fmt.Fprintln(u.out, nothingUnfinished)
		return nil
	}
	for _, m := range all {
		if _, err := fmt.Fprintln(u.out, &m); err != nil {
			return err
		}
	}
	return nil
}
