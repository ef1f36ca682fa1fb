package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/checkpoint/criu"
	"github.com/nsmigrate/nsmigrate/netstate"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
)

func inspectCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:  "inspect",
		Usage: "show what is in an image or in a live namespace",
		Description: description(`Shows where an image comes from and whether its connections can go on, its processes and sockets with
their states and queues, and its network: links, addresses, routes, rules, filters. An image is verified
first, every byte of it. Of a live namespace the same is shown; nothing in it is stopped or changed.`,
			[]string{
				"nsmigrate inspect -i svc.nsm",
				"nsmigrate inspect -D /srv/images/job --format json | jq '.trees[].sockets'",
				"sudo nsmigrate inspect --netns svc",
			}, statusDamaged),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "images-dir", Aliases: []string{"D"}, Usage: "show the image in the directory `DIR`"},
			&cli.StringFlag{Name: "import", Aliases: []string{"i"}, Usage: "show the image in `FILE`; - is standard input"},
			&cli.StringFlag{Name: "netns", Usage: "show the live network namespace `NAME|PATH`"},
		},
		Action: func(c *cli.Context) error {
			v, err := u.inspect(c)
			if err != nil {
				return err
			}
			if u.json {
				return printJSON(u.out, v)
			}
			return v.text(u.out)
		},
	}
}

func (u *ui) inspect(c *cli.Context) (*view, error) {
	if err := oneOf(c, "what to inspect", "images-dir", "import", "netns"); err != nil {
		return nil, err
	}
	if c.IsSet("netns") {
		return viewNetNS(c.Context, c.String("netns"))
	}
	src, err := parseSource(c)
	if err != nil {
		return nil, err
	}
	return u.viewImage(c.Context, src)
}

func (u *ui) viewImage(ctx context.Context, src source) (*view, error) {
	dir, m, done, err := u.open(ctx, src)
	if err != nil {
		return nil, err
	}
	defer done()
	v := &view{Image: m, NetNS: netnsView{Name: m.Target.NetNS, Inode: m.Target.Inode}, Trees: []treeView{}}
	f, err := os.Open(filepath.Join(dir, checkpoint.StateFile))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if v.Network, err = netstate.ReadState(f); err != nil {
		return nil, err
	}
	for _, t := range m.Trees {
		tree, err := criu.InspectTree(filepath.Join(dir, t.Dir))
		if err != nil {
			return nil, err
		}
		v.Trees = append(v.Trees, treeView{Root: t.Root, TreeView: tree})
	}
	return v, nil
}

func viewNetNS(ctx context.Context, name string) (*view, error) {
	n, err := ns.Open(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, &hintedError{err: fmt.Errorf("there is no network namespace %q", name), hint: "ip netns list shows the names; a path must contain a slash"}
	case err != nil:
		return nil, err
	}
	defer n.Close()
	v := &view{NetNS: netnsView{Inode: n.Inode()}}
	if v.NetNS.Name, err = n.NameOf(); err != nil {
		return nil, err
	}
	if v.Network, err = netstate.Capture(ctx, n, netstate.CaptureOptions{}); err != nil {
		return nil, err
	}
	v.Trees, v.Unheld, err = liveTrees(ctx, n)
	return v, err
}
