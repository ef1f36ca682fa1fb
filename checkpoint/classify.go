package checkpoint

import (
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"slices"

	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
	"github.com/nsmigrate/nsmigrate/checkpoint/sockets"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
)

// Findings are what a scene means for a dump.
type Findings struct {
	Problems []Problem   // all of them; a dump is possible if none is left
	Trees    []Tree      // without Dir and Binaries
	Scanned  []proc.Tree // the trees as they were seen, in the same order
	Notes    []string    // harmless, but a user should know
	// Sessionless are processes, as the host sees them, that need a session of their own first ([proc.Setsid]).
	Sessionless []int
}

// Classify decides what can be carried and how: it is pure. root is the tree to be dumped, by the pid that
// the host sees; 0 is all trees of the namespace.
func Classify(s *Scene, root int) Findings {
	c := &classifier{
		scene: s, holders: make(map[uint64]int),
		inets: make(map[uint64]*sockets.Inet), unixes: make(map[uint64]*sockets.Unix),
	}
	for i := range s.Inets {
		c.inets[s.Inets[i].Inode] = &s.Inets[i]
	}
	for i := range s.Unixes {
		c.unixes[s.Unixes[i].Inode] = &s.Unixes[i]
	}
	trees := c.choose(root)
	c.sharedSockets()
	c.orphans()
	for i := range trees {
		t := &trees[i]
		c.strays(t)
		for j := range t.Processes {
			if p := &t.Processes[j]; !p.Zombie() {
				c.process(t, p)
				c.maps(p)
			}
		}
		c.mountNS(t)
		facts := c.facts(t)
		facts.Externals = c.externals(t)
		c.found.Trees = append(c.found.Trees, facts)
	}
	c.found.Scanned = trees
	c.found.Problems = c.problems.merge()
	return c.found
}

type classifier struct {
	scene    *Scene
	found    Findings
	problems collector
	// Sockets by inode: which tree (by its root's pid) holds them, and what sock_diag says.
	holders map[uint64]int
	inets   map[uint64]*sockets.Inet
	unixes  map[uint64]*sockets.Unix
}

// choose picks the trees to be dumped.
func (c *classifier) choose(root int) []proc.Tree {
	var trees []proc.Tree
	for i := range c.scene.Trees {
		t := &c.scene.Trees[i]
		switch {
		case launcher(t):
			c.note("%s started a pid namespace and waits for it: it is not carried and ends with it", who(t.Root()))
		case len(t.Inits) > 0:
			c.refuse(t.Root(), Problem{
				Kind: "process", Object: who(t.Root()),
				Reason: fmt.Sprintf("its child %d begins a pid namespace of its own inside the tree, which CRIU can't dump", t.Inits[0]),
				Remedy: "start the two services separately in the network namespace",
			})
		case root != 0 && root != t.Root().PID:
			reason := "it lives in the network namespace, but outside of the tree to be dumped"
			if slices.Contains(t.PIDs(), root) {
				reason = fmt.Sprintf("it is an ancestor of process %d in the same network namespace", root)
			}
			c.refuse(t.Root(), Problem{
				Kind: "process", Object: who(t.Root()), Reason: reason,
				Remedy: "dump the whole namespace (--netns), or end the process first",
			})
		default:
			trees = append(trees, *t)
		}
	}
	return trees
}

// launcher says that a tree is only the program that started a pid namespace (unshare(1), nsenter(1)): it
// has one process, no socket, and waits for its child.
func launcher(t *proc.Tree) bool {
	if len(t.Inits) == 0 || len(t.Processes) > 1 {
		return false
	}
	return !slices.ContainsFunc(t.Root().FDs, func(f proc.FD) bool {
		_, socket := proc.Inode(f.Target, "socket")
		return socket
	})
}

// facts describes a tree for the manifest.
func (c *classifier) facts(t *proc.Tree) Tree {
	root := t.Root()
	f := Tree{
		Root: proc.Own(root.NSpid), HostRoot: root.PID, PIDNS: t.PIDNS(),
		MountNS: mountNSOf(t, &c.scene.Host), Command: root.Cmdline, Cwd: root.Cwd,
		IDs: ids(t), Files: Files([]proc.Tree{*t}),
	}
	if f.MountNS != MountOwn { // CRIU rebuilds the file system of terminals with the tree's own mounts
		f.Terminals = terminals(t)
	}
	for _, p := range t.Processes {
		f.Capabilities |= p.Permitted
	}
	if len(f.Command) == 0 {
		f.Command = []string{root.Comm}
	}
	if sid := proc.Own(root.NSsid); sid != 0 && sid != f.Root {
		f.ShellJob = true
	}
	if f.MountNS == MountOwn {
		for _, m := range t.Mounts {
			if m.Type == "nsfs" { // a namespace's name: nothing in the tree needs it, and the other host lacks it
				f.SkipMounts = append(f.SkipMounts, m.Point)
			}
		}
		f.Places = places(t.Mounts, c.scene.Host.Mounts)
	}
	return f
}

// places lists the paths of the host that CRIU needs to make the mounts of a tree again: what those show that are the
// host's too, and what they all stand on as far as it is the host's.
func places(own, host []proc.Mount) []string {
	shown := make(map[int]bool) // by id: it is the host's
	for _, m := range own {
		shown[m.ID] = m.Point == "/"
	}
	set := make(map[string]bool)
	for _, m := range own { // in the order of their making
		if m.Point == "/" || m.Type == "nsfs" {
			continue
		}
		source := sourceOf(&m, host)
		shown[m.ID] = source != ""
		if source != "" {
			set[source] = true
		}
		if shown[m.Parent] {
			set[m.Point] = true
		}
	}
	delete(set, ns.Dir) // which is made for the namespace's name
	return slices.Sorted(maps.Keys(set))
}

// sourceOf returns the path of the host that CRIU takes for what a private mount shows, "" for a mount that it makes anew
// (mount.c:resolve_external_mounts). Of many it takes the one that was mounted first.
func sourceOf(m *proc.Mount, host []proc.Mount) string {
	if len(m.Optional) > 0 {
		return ""
	}
	for _, h := range host {
		below, err := filepath.Rel(h.Root, m.Root)
		if h.Dev == m.Dev && h.Type == m.Type && err == nil && filepath.IsLocal(below) {
			return filepath.Join(h.Point, below)
		}
	}
	return ""
}

// ids lists the ids that must be free where the tree is restored. The group and the session of a root that
// leads neither are its starter's, and it gets others.
func ids(t *proc.Tree) []int {
	set := make(map[int]bool)
	foreign := make(map[int]bool)
	root := t.Root()
	for _, id := range []int{proc.Own(root.NSsid), proc.Own(root.NSpgid)} {
		foreign[id] = id != proc.Own(root.NSpid)
	}
	for i := range t.Processes {
		p := &t.Processes[i]
		set[proc.Own(p.NSpid)] = true
		for _, th := range p.Threads {
			set[th.NSTID] = true
		}
		for _, id := range []int{proc.Own(p.NSpgid), proc.Own(p.NSsid)} {
			if id != 0 && !foreign[id] {
				set[id] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// terminals lists the pseudo terminals that a tree holds the masters of.
func terminals(t *proc.Tree) []int {
	var list []int
	for _, p := range t.Processes {
		for i := range p.FDs {
			if n, ok := master(&p.FDs[i]); ok {
				list = append(list, n)
			}
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// mountNSOf decides where CRIU has to run for a tree.
func mountNSOf(t *proc.Tree, host *Surroundings) MountNS {
	root := t.Root()
	if root.NS.Mnt == host.Namespaces.Mnt {
		return MountHost
	}
	if t.PIDNS() && superblock(t.Mounts, "/proc", "proc") != superblock(host.Mounts, "/proc", "proc") {
		return MountOwn
	}
	if sys := superblock(t.Mounts, "/sys", "sysfs"); sys != "" && sys != superblock(host.Mounts, "/sys", "sysfs") {
		return MountNetns // every network namespace has a sysfs of its own
	}
	return MountPrivate
}

// superblock returns the device of what is mounted at a place: of the mount on top, "" if it is not of the type.
func superblock(mounts []proc.Mount, point, typ string) string {
	dev := ""
	for _, m := range mounts {
		if path.Clean(m.Point) == point {
			dev = ""
			if m.Type == typ {
				dev = m.Dev
			}
		}
	}
	return dev
}

func (c *classifier) note(format string, args ...any) {
	c.found.Notes = append(c.found.Notes, fmt.Sprintf(format, args...))
}

// refuse records a problem of a process. Problems of one process with the same reason become one.
func (c *classifier) refuse(p *proc.Process, problem Problem) {
	c.problems.add(p.PID, problem)
}

// who names a process as ps(1) does.
func who(p *proc.Process) string { return fmt.Sprintf("process %d (%s)", p.PID, p.Comm) }

// collector gathers problems. A service has a thousand connections of a kind: that is one problem.
type collector struct {
	list  []Problem
	count []int
	index map[problemKey]int
}

type problemKey struct {
	pid                  int
	kind, reason, remedy string
}

func (c *collector) add(pid int, p Problem) {
	if c.index == nil {
		c.index = make(map[problemKey]int)
	}
	key := problemKey{pid, p.Kind, p.Reason, p.Remedy}
	i, seen := c.index[key]
	if !seen {
		i = len(c.list)
		c.index[key] = i
		c.list = append(c.list, p)
		c.count = append(c.count, 0)
	}
	c.count[i]++
}

func (c *collector) merge() []Problem {
	for i := range c.list {
		if more := c.count[i] - 1; more > 0 {
			c.list[i].Object += fmt.Sprintf(" and %d more", more)
		}
	}
	return c.list
}
