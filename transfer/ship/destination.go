package ship

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/nsmigrate/nsmigrate/checkpoint"
)

// Options of a destination.
type Options struct {
	Root   string // the directory that stands for "/"; "" is "/" itself
	ID     string // of the migration, 32 hex digits: names what is staged
	Limits Limits
	Within []string // if not empty, files may come only below these directories
	// Record writes a change down before it is made, so that [Undo] and [Commit] work after a crash.
	Record func(Change) error

	stay bool // set by tests: no directory can be renamed
}

// Destination takes the files of a source. Nothing of them is seen under its name before [Destination.Install].
type Destination struct {
	opts     Options
	root     *place
	volumes  *volumes
	labels   bool // SELinux labels the files of this host
	storages []string
	entries  []*node // in the order of the index
	tree     *node   // "/"
	count    int     // nodes
	bytes    int64   // of their content
	compared bool    // with what this host has
	hidden   map[string]*hidden
	removals map[string]*unit // of what the source does not have, by path
	problems []checkpoint.Problem
	dirty    map[*node]bool // staged directories whose metadata is to be set
	fresh    map[*node]bool // staged files that are not on the disk yet
	// staged files that have their places and are not on the disk yet
	unflushed []*os.File
	step      func(string) // told of each step of an installation, by tests
}

// node is one thing that travels, in its place.
type node struct {
	name  string
	up    *node
	entry *Entry // nil for "/"
	kids  map[string]*node
	unit  *unit // what is renamed at the installation, with all below it

	inPlace bool // a directory that is there and stays, whatever happens in it
	bound   bool // it stays because something is mounted on it or in it
	same    bool // both hosts see the very same file: it is left alone
	pinned  bool // another name is a hard link to it
	old     *old // what is under the name on this host; nil if there is nothing of use
	staged  bool
	shared  bool // what is staged is the old file itself, under one more name
}

// old is what a name stood for before.
type old struct {
	st    info
	meta  Meta
	link  string   // of a symbolic link
	match []Extent // of a regular file: what has the source's content
	equal bool     // nothing is different
}

// unit is what comes into its place by one rename, and what had that place goes by another.
type unit struct {
	node    *node // nil if nothing comes
	path    string
	hidden  *hidden
	number  int
	old     *identity // nil if the place was free
	differs bool      // from the old one
}

// hidden is a directory beside the destination of some units.
type hidden struct {
	dir   string // it is in, below the root
	place *place // nil until it is made
	used  int    // numbers given away
}

const hiddenPrefix = ".nsmigrate-"

// hiddenName recognises the names of directories that migrations make.
func hiddenName(name string) bool {
	id, ok := strings.CutPrefix(name, hiddenPrefix)
	return ok && validID(id)
}

func validID(id string) bool {
	return len(id) == 32 && strings.Trim(id, "0123456789abcdef") == ""
}

// NewDestination prepares to take files. Nothing is changed.
func NewDestination(opts Options) (*Destination, error) {
	if !validID(opts.ID) {
		return nil, fmt.Errorf("take files: %q is no ID of a migration", opts.ID)
	}
	d := &Destination{
		opts: opts, labels: labels(), tree: &node{inPlace: true}, hidden: make(map[string]*hidden),
		removals: make(map[string]*unit), dirty: make(map[*node]bool), fresh: make(map[*node]bool),
		step: func(string) {},
	}
	var err error
	if d.volumes, err = openVolumes(); err == nil {
		d.root, err = openPlace(cmp.Or(opts.Root, "/"))
	}
	if err != nil {
		return nil, fmt.Errorf("take files: %w", err)
	}
	return d, nil
}

// Close frees what is held open. It changes nothing.
func (d *Destination) Close() error {
	errs := []error{d.root.Close(), d.closeUnflushed()}
	for _, h := range d.hidden {
		if h.place != nil {
			errs = append(errs, h.place.Close())
		}
	}
	return errors.Join(errs...)
}

func (n *node) path() string {
	if n.up == nil {
		return "/"
	}
	return path.Join(n.up.path(), n.name)
}

// rel is the path below the root.
func (n *node) rel() string { return n.path()[1:] }

// sorted returns the children by name.
func (n *node) sorted() []*node {
	return slices.SortedFunc(maps.Values(n.kids), func(a, b *node) int { return cmp.Compare(a.name, b.name) })
}

// each visits a node and all below it, directories first.
func (n *node) each(visit func(*node)) {
	visit(n)
	for _, k := range n.sorted() {
		k.each(visit)
	}
}

// lookup finds the node of a path; nil if there is none.
func (d *Destination) lookup(p string) *node {
	n := d.tree
	for name := range strings.SplitSeq(strings.TrimPrefix(p, "/"), "/") {
		if name == "" {
			continue
		}
		if n = n.kids[name]; n == nil {
			return nil
		}
	}
	return n
}

// add puts an entry in its place, below a directory that is known.
func (d *Destination) add(e *Entry) (*node, error) {
	dir, name := path.Split(e.Path)
	up := d.lookup(dir)
	if up == nil || up.entry != nil && up.entry.Kind != Directory || up.kids[name] != nil {
		return nil, fmt.Errorf("%w: %q comes without its directory, or twice", ErrMalformed, e.Path)
	}
	if e.Kind == Hardlink {
		first := d.lookup(e.Target)
		if first == nil || first.entry == nil || first.entry.Kind != Regular {
			return nil, fmt.Errorf("%w: %q is a hard link to nothing", ErrMalformed, e.Path)
		}
		first.pinned = true
	}
	d.adapt(e)
	d.count++
	if err := d.account(e.bytes()); err != nil {
		return nil, err
	}
	n := &node{name: name, up: up, entry: e}
	if up.kids == nil {
		up.kids = make(map[string]*node)
	}
	up.kids[name] = n
	return n, nil
}

// account bounds the content that is to come, as far as the host's administrator wants it bounded.
func (d *Destination) account(n int64) error {
	d.bytes = plus(d.bytes, n)
	if limit := d.opts.Limits.Bytes; limit > 0 && d.bytes > limit && n > 0 && d.compared {
		return fmt.Errorf("the files to ship grew to %s, this host takes %s", checkpoint.Size(d.bytes), checkpoint.Size(limit))
	}
	return nil
}

// adapt leaves out what means nothing to this host.
func (d *Destination) adapt(e *Entry) {
	if !d.labels {
		e.Xattrs = slices.DeleteFunc(e.Xattrs, func(x Xattr) bool { return x.Name == selinux })
	}
}

// mirrors says that a directory comes to be as on the source: what the source does not have goes.
func (n *node) mirrors() bool { return n.entry != nil && n.entry.Kind == Directory && !n.entry.Implied }

// unitOf returns the unit that a node comes with, and the node's path from it: "" for the unit's own node.
func (n *node) unitOf() (*unit, string) {
	rel := ""
	for at := n; at != nil; at = at.up {
		if at.unit != nil {
			return at.unit, rel
		}
		rel = path.Join(at.name, rel)
	}
	return nil, ""
}

// at returns where a node's file is now: staged, or under its name.
func (d *Destination) at(n *node) (*place, string) {
	if u, rel := n.unitOf(); u != nil && n.staged {
		return u.hidden.place, path.Join(u.newName(), rel)
	}
	return d.root, n.rel()
}

// What is in a directory for staging: what comes, and what was replaced.
const (
	newSuffix = ".new"
	oldSuffix = ".old"
)

func (u *unit) newName() string { return fmt.Sprint(u.number) + newSuffix }
func (u *unit) oldName() string { return fmt.Sprint(u.number) + oldSuffix }

// newUnit makes a node, or what is to go from a path, one that is renamed by itself.
func (d *Destination) newUnit(p string, n *node, was *identity) *unit {
	dir := path.Dir(p)
	h := d.hidden[dir]
	if h == nil {
		h = &hidden{dir: dir}
		d.hidden[dir] = h
	}
	u := &unit{node: n, path: p, hidden: h, number: h.used, old: was, differs: n == nil || was == nil}
	h.used++
	if n != nil {
		n.unit = u
	}
	return u
}

func (d *Destination) problem(object, reason, remedy string) {
	p := checkpoint.Problem{Kind: "file", Object: object, Reason: reason, Remedy: remedy}
	if !slices.Contains(d.problems, p) {
		d.problems = append(d.problems, p)
	}
}
