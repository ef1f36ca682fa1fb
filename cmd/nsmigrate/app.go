package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// newApp assembles the commands. It never exits: errors come back from Run.
func newApp(u *ui, s *signals) *cli.App {
	app := &cli.App{
		Name:  "nsmigrate",
		Usage: "move a running service with its network namespace and its connections to another host",
		Description: description(`nsmigrate freezes a service, writes it down together with its whole network namespace, and brings it
back on another host. TCP connections stay established: the peers see one slow answer.`,
			[]string{
				"nsmigrate check                               # can this host do it?",
				"nsmigrate dump --netns svc -e svc.nsm         # on the old host: freeze, write, remove",
				"nsmigrate restore -i svc.nsm                  # on the new host: rebuild, announce, resume",
				"nsmigrate migrate --netns svc --to ssh://new  # both, live",
			},
			statusRefused, statusDumpFailed, statusSourceStuck, statusRestoreFailed, statusLeftBehind,
			statusInDoubt, statusDamaged, statusNotReady, statusInterrupted),
		Reader:          u.in,
		Writer:          u.out,
		ErrWriter:       u.err,
		HideVersion:     true,
		HideHelpCommand: true,
		ExitErrHandler:  func(*cli.Context, error) {},
		OnUsageError:    u.onUsageError,
		Commands: []*cli.Command{
			checkCommand(u),
			dumpCommand(u),
			restoreCommand(u, s),
			migrateCommand(u),
			recoverCommand(u),
			receiveCommand(u),
			serveCommand(u, s, receiverFlags(), u.serveMigrations),
			inspectCommand(u),
			diffCommand(u),
			versionCommand(u),
		},
		Action: func(c *cli.Context) error {
			if name := c.Args().First(); name != "" {
				return usagef("`nsmigrate --help` lists the commands", "there is no command %q", name)
			}
			cli.HelpPrinter(u.err, cli.AppHelpTemplate, c.App)
			return usagef("", "a command is missing")
		},
	}
	for _, cmd := range app.Commands {
		u.finish(cmd)
	}
	return app
}

// finish gives a command what all have in common: --format, strict arguments, usage errors as errors.
func (u *ui) finish(cmd *cli.Command) {
	cmd.HideHelpCommand = true
	cmd.OnUsageError = u.onUsageError
	cmd.Flags = append(cmd.Flags, &cli.StringFlag{
		Name: "format", Value: "text", Usage: "print results and errors as `text|json`",
	})
	for _, f := range cmd.Flags {
		if f, ok := f.(*cli.BoolFlag); ok {
			f.DisableDefaultText = true // what is not asked for is not done
		}
	}
	cmd.Before = func(c *cli.Context) error {
		u.command = cmd.Name
		format := c.String("format")
		if u.json = format == "json"; !u.json && format != "text" {
			return usagef("it is text or json", "--format: unknown format %q", format)
		}
		if extra := c.Args().First(); extra != "" && cmd.ArgsUsage == "" {
			return usagef("everything is said by flags; see `nsmigrate "+cmd.Name+" --help`", "unexpected argument %q", extra)
		}
		for _, arg := range c.Args().Slice() { // the parser takes no flag behind the first argument
			if len(arg) > 1 && strings.HasPrefix(arg, "-") {
				return usagef("flags come first; nothing was done", "%s must stand before %q", arg, c.Args().First())
			}
		}
		return nil
	}
}

func (u *ui) onUsageError(c *cli.Context, err error, _ bool) error {
	hint := "`nsmigrate --help` lists the commands"
	if c.Command != nil && c.Command.Name != "" && c.Command.Name != c.App.Name {
		u.command = c.Command.Name
		hint = fmt.Sprintf("`nsmigrate %s --help` lists the flags", c.Command.Name)
	}
	return &usageError{err: err, hint: hint}
}

// asksForJSON finds --format json in arguments that perhaps can't be parsed.
func asksForJSON(args []string) bool {
	for i, a := range args {
		name, value, joined := strings.Cut(strings.TrimLeft(a, "-"), "=")
		if !strings.HasPrefix(a, "-") || name != "format" {
			continue
		}
		if !joined && i+1 < len(args) {
			value = args[i+1]
		}
		return value == "json"
	}
	return false
}

// description is the long help of a command: what it does, examples, exit statuses.
func description(text string, examples []string, statuses ...status) string {
	var b strings.Builder
	b.WriteString(text)
	b.WriteString("\n\nEXAMPLES:\n")
	for _, e := range examples {
		b.WriteString("  " + e + "\n")
	}
	b.WriteString("\nEXIT STATUS:\n")
	b.WriteString(exitHelp(statuses...))
	return b.String()
}

// oneOf reports an error unless exactly one of the named flags is set.
func oneOf(c *cli.Context, what string, names ...string) error {
	set := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !c.IsSet(n) })
	flags := make([]string, len(names))
	for i, n := range names {
		flags[i] = "--" + n
	}
	switch len(set) {
	case 0:
		return usagef("", "%s is missing: give one of %s", what, strings.Join(flags, ", "))
	case 1:
		return nil
	}
	return usagef("", "--%s and --%s exclude each other", set[0], set[1])
}
