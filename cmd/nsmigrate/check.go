package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/nsmigrate/nsmigrate/checkpoint/host"
)

func checkCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:  "check",
		Usage: "tell whether this host can dump and restore, and what to do if not",
		Description: description(`Tries everything that a dump and a restore need, one line for each: ok, warn (some services can't be
carried), fail (nothing can), skip (not tried). Nothing on the host is changed.`,
			[]string{
				"sudo nsmigrate check",
				"sudo nsmigrate check --format json | jq '.probes[] | select(.status != \"ok\")'",
				"sudo nsmigrate check --criu /opt/criu/sbin/criu",
			}, statusNotReady),
		Flags: []cli.Flag{criuFlag()},
		Action: func(c *cli.Context) error {
			probes := host.Check(c.Context, host.Options{CRIU: c.String("criu")})
			if err := c.Context.Err(); err != nil {
				return err
			}
			return u.showProbes(probes)
		},
	}
}

func criuFlag() cli.Flag {
	return &cli.StringFlag{
		Name: "criu", Usage: "`PATH` of the criu to use; else the one of `make criu`, else the first on PATH",
	}
}

// notReadyError says what is missing for this host to dump and restore.
type notReadyError struct{ missing []string }

func (e *notReadyError) Error() string {
	return "this host can't dump and restore: " + strings.Join(e.missing, ", ") + " failed"
}

// Remedy says what the user can do.
func (e *notReadyError) Remedy() string { return "each failed line says what to do" }

func (u *ui) showProbes(probes []host.Probe) error {
	missing, ready := host.Ready(probes)
	if u.json {
		if err := printJSON(u.out, struct {
			Ready  bool         `json:"ready"`
			Probes []host.Probe `json:"probes"`
		}{ready, probes}); err != nil {
			return err
		}
	} else {
		for _, p := range probes {
			line := fmt.Sprintf("%-4s  %-18s  %s", p.Status, p.Name, p.Detail)
			if p.Remedy != "" {
				line += "; hint: " + p.Remedy
			}
			if _, err := fmt.Fprintln(u.out, line); err != nil {
				return err
			}
		}
	}
	if !ready {
		return &notReadyError{missing: missing}
	}
	if !u.json {
		fmt.Fprintln(u.out, "this host can dump and restore")
	}
	return nil
}
