package proc

import (
	"errors"
	"fmt"
	"os"
	"slices"
)

// Entry is what is known of every process of the host: enough to group them.
type Entry struct {
	PID, PPID int
	NetNS     uint64 // inode; 0 for a zombie, which has left its namespaces
	Zombie    bool
	Init      bool // the first process of a pid namespace below that of the /proc
}

// Table lists the processes of the host without kernel threads and without this process.
func (d Dir) Table() ([]Entry, error) {
	pids, err := numbers(string(d))
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var table []Entry
	for _, pid := range pids {
		p, kernel, err := d.status(pid)
		if errors.Is(err, ErrGone) || kernel || pid == os.Getpid() {
			continue
		}
		if err != nil {
			return nil, err
		}
		e := Entry{PID: pid, PPID: p.PPID, Zombie: p.Zombie(), Init: p.Init()}
		if link, err := os.Readlink(d.path(pid, "ns", "net")); err == nil {
			if e.NetNS, err = parseNS(link); err != nil {
				return nil, err
			}
		}
		table = append(table, e)
	}
	return table, nil
}

// Group is a set of processes that CRIU dumps in one go: a root and what descends from it.
type Group struct {
	Root    int
	Members []int // parents before their children, the root first
	Strays  []int // children of members that live in another network namespace
	Inits   []int // children of members that begin a pid namespace; each is the root of a group of its own
}

// Groups divides the processes of a network namespace into groups. A root is a process whose parent is
// outside of the namespace, or the first process of a pid namespace: its parent (unshare(1), nsenter(1))
// may have entered the network namespace too, but can't be dumped together with it. Roots come in order
// of their ids.
func Groups(table []Entry, netns uint64) []Group {
	byPID := make(map[int]Entry, len(table))
	children := make(map[int][]int)
	for _, e := range table {
		byPID[e.PID] = e
		children[e.PPID] = append(children[e.PPID], e.PID)
	}
	inside := func(e Entry) bool { return e.NetNS == netns && !e.Zombie }
	var groups []Group
	for _, e := range table {
		parent, known := byPID[e.PPID]
		if !inside(e) || known && inside(parent) && !e.Init {
			continue
		}
		g := Group{Root: e.PID, Members: []int{e.PID}}
		for i := 0; i < len(g.Members); i++ { // grows as children are found
			for _, pid := range children[g.Members[i]] {
				switch c := byPID[pid]; {
				case c.Init && inside(c):
					g.Inits = append(g.Inits, pid)
				case c.Zombie || inside(c):
					g.Members = append(g.Members, pid)
				default:
					g.Strays = append(g.Strays, pid)
				}
			}
		}
		groups = append(groups, g)
	}
	slices.SortFunc(groups, func(a, b Group) int { return a.Root - b.Root })
	return groups
}

// Tree is a group with all that is known of its processes.
type Tree struct {
	Processes []Process // parents before their children, the root first
	Strays    []Process // see [Group]
	Inits     []int     // see [Group]
	Mounts    []Mount   // that the root sees
}

// Root returns the tree's root.
func (t *Tree) Root() *Process { return &t.Processes[0] }

// PIDNS reports whether the tree has a pid namespace of its own.
func (t *Tree) PIDNS() bool { return t.Root().Init() }

// PIDs returns the ids of the tree's processes in the pid namespace of the /proc.
func (t *Tree) PIDs() []int {
	pids := make([]int, len(t.Processes))
	for i := range t.Processes {
		pids[i] = t.Processes[i].PID
	}
	return pids
}

// Trees reads the process trees of a network namespace. Processes that end meanwhile are left out. None is
// no error.
func (d Dir) Trees(netns uint64) ([]Tree, error) {
	table, err := d.Table()
	if err != nil {
		return nil, err
	}
	var trees []Tree
	for _, g := range Groups(table, netns) {
		t, err := d.readTree(g)
		if errors.Is(err, ErrGone) {
			continue
		}
		if err != nil {
			return nil, err
		}
		trees = append(trees, t)
	}
	return trees, nil
}

// readTree fails with ErrGone if the root is gone.
func (d Dir) readTree(g Group) (Tree, error) {
	t := Tree{Inits: g.Inits}
	for _, part := range []struct {
		pids []int
		into *[]Process
	}{{g.Members, &t.Processes}, {g.Strays, &t.Strays}} {
		for _, pid := range part.pids {
			p, err := d.Read(pid)
			if errors.Is(err, ErrGone) && pid != g.Root {
				continue
			}
			if err != nil {
				return t, err
			}
			*part.into = append(*part.into, p)
		}
	}
	var err error
	t.Mounts, err = d.Mounts(g.Root)
	return t, err
}

// InNetNS returns the processes of a network namespace, by id. Zombies belong to no namespace and are left out.
func (d Dir) InNetNS(netns uint64) ([]Process, error) {
	table, err := d.Table()
	if err != nil {
		return nil, err
	}
	var list []Process
	for _, e := range table {
		if e.NetNS != netns {
			continue
		}
		p, err := d.Read(e.PID)
		if errors.Is(err, ErrGone) {
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	return list, nil
}
