package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/netstate"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/transfer"
)

// errDiffers ends a diff that found something, as diff(1) does: with status 1 and no message.
var errDiffers = errors.New("the network states differ")

func diffCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:      "diff",
		Usage:     "compare the network states of images and live namespaces",
		ArgsUsage: "A B",
		Description: description(`Prints what must be removed from A (-) and added to it (+) to make it B, in the words of ip(8) and nft(8).
Each of A and B is an image (a file, a directory), a live namespace (its name, netns:NAME, or the path of its
file), or the word empty for a fresh namespace. What changes by itself, such as counters, timers and cache ages,
is not compared.`,
			[]string{
				"sudo nsmigrate diff svc.nsm svc                # what changed since the dump?",
				"nsmigrate diff monday.nsm tuesday.nsm",
				"sudo nsmigrate diff empty netns:svc            # all that was configured",
			}, statusRefused, statusDamaged) + "\n  With a difference: 1, as diff(1).",
		Action: func(c *cli.Context) error {
			if c.NArg() != 2 {
				return usagef("e.g. nsmigrate diff svc.nsm svc", "two things to compare are needed, not %d", c.NArg())
			}
			var states [2]*netstate.State
			for i := range states {
				var err error
				if states[i], err = u.state(c.Context, c.Args().Get(i)); err != nil {
					return err
				}
			}
			return u.showDiff(netstate.Diff(states[0], states[1]))
		},
	}
}

func (u *ui) showDiff(changes []netstate.Change) error {
	if u.json {
		if changes == nil {
			changes = []netstate.Change{}
		}
		if err := printJSON(u.out, changes); err != nil {
			return err
		}
	} else {
		for _, c := range changes {
			if _, err := fmt.Fprintln(u.out, c); err != nil {
				return err
			}
		}
	}
	if len(changes) > 0 {
		return errDiffers
	}
	return nil
}

// state reads the network state that an argument of diff names; nil is a fresh namespace.
func (u *ui) state(ctx context.Context, arg string) (*netstate.State, error) {
	if arg == "empty" {
		return nil, nil
	}
	name, live := strings.CutPrefix(arg, "netns:")
	if info, err := os.Stat(arg); err == nil && !live {
		switch {
		case info.IsDir():
			return u.stateOfImage(ctx, source{dir: arg})
		case !isNamespace(arg):
			return u.stateOfImage(ctx, source{file: arg})
		}
	}
	n, err := ns.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, usagef("name an image, a namespace of `ip netns list`, or the word empty", "%q is neither an image nor a network namespace", arg)
	}
	if err != nil {
		return nil, err
	}
	defer n.Close()
	return netstate.Capture(ctx, n, netstate.CaptureOptions{})
}

// isNamespace tells the file of a namespace from that of an image.
func isNamespace(path string) bool {
	abs, err := filepath.Abs(path) // with a slash it is a path and no name
	if err != nil {
		return false
	}
	n, err := ns.Open(abs)
	if err != nil {
		return false
	}
	n.Close()
	return true
}

func (u *ui) stateOfImage(ctx context.Context, src source) (*netstate.State, error) {
	dir, _, done, err := u.openPart(ctx, src, transfer.UnpackOptions{
		Want: func(name string) bool { return name == checkpoint.StateFile },
	})
	if err != nil {
		return nil, err
	}
	defer done()
	f, err := os.Open(filepath.Join(dir, checkpoint.StateFile))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", checkpoint.ErrDamaged, err)
	}
	defer f.Close()
	s, err := netstate.ReadState(f)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", checkpoint.ErrDamaged, checkpoint.StateFile, err)
	}
	return s, nil
}
