package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/checkpoint/criu"
	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/restore/nsinit"
)

// tree is one process tree under way.
type tree struct {
	index   int
	facts   *checkpoint.Tree
	newPID  bool // into a pid namespace of its own
	init    *nsinit.Init
	root    string      // directory that CRIU takes for / where it rebuilds mount namespaces
	config  criu.Config // of its criu
	criu    *criu.Process
	session *criu.Session
	hostPID map[int]int // by pid in the tree's own pid namespace, once it is restored
	files   []*os.File
	inherit []criu.Inherit

	terminals []*terminal
}

// prepare makes the tree's surroundings.
func (t *tree) prepare(path, dir, logs, name string, n *ns.NS) error {
	place, err := t.surround(n, name, logs)
	if err != nil {
		return err
	}
	images, err := t.open(filepath.Join(dir, t.facts.Dir))
	if err != nil {
		return err
	}
	log := filepath.Join(logs, strconv.Itoa(t.index+1))
	if err := os.MkdirAll(log, 0o700); err != nil {
		return err
	}
	work, err := t.open(log)
	if err != nil {
		return err
	}
	t.config = criu.Config{Path: path, Place: place, Images: images, Work: work, Await: criu.Waits(images.Name())}
	return nil
}

// start starts the tree's criu, which gets what takes the place of the files that stayed behind, and has it take up the
// restore. What criu wants to know of the kernel it finds out then, over the loopback device if it must, so the namespace
// must not be locked before [tree.begin].
func (t *tree) start(stdio []*os.File, tcpClose bool) error {
	if err := t.openExternals(stdio); err != nil {
		return err
	}
	t.config.Inherit = t.inherit
	var err error
	if t.criu, err = criu.Start(t.config); err != nil {
		return err
	}
	o := criu.RestoreOptions{TCPClose: tcpClose, Root: t.root, ShellJob: t.facts.ShellJob}
	if t.facts.MountNS == checkpoint.MountOwn {
		o.External = []string{"mnt[]"}
		o.SkipMounts = t.facts.SkipMounts
	}
	t.session, err = t.criu.Restore(o)
	return err
}

// surround makes the namespaces around a tree that CRIU does not rebuild, and says where criu has to run.
func (t *tree) surround(n *ns.NS, name, scratch string) (criu.Place, error) {
	place := criu.Place{Net: n.File()}
	sysfs := t.facts.MountNS == checkpoint.MountNetns
	var err error
	switch {
	case t.newPID:
		if t.init, err = nsinit.Start(n, nsinit.Config{Sysfs: sysfs, Name: name, LastPID: t.lastPID()}); err != nil {
			return place, err
		}
		if place.PID, err = t.keep(t.init.Namespace("pid")); err != nil {
			return place, err
		}
		place.Mount, err = t.keep(t.init.Namespace("mnt"))
	case t.facts.MountNS == checkpoint.MountOwn:
		t.root = filepath.Join(scratch, fmt.Sprintf("root-%d", t.index+1))
		if err := os.MkdirAll(t.root, 0o700); err != nil {
			return place, err
		}
		place.Mount, err = t.keep(nsinit.NewRootMountNS(t.root))
	case t.facts.MountNS == checkpoint.MountNetns, t.facts.MountNS == checkpoint.MountPrivate:
		place.Mount, err = t.keep(nsinit.NewMountNS(n, name, sysfs))
	}
	return place, err
}

// lastPID leaves the tree's ids alone when criu's own helpers get theirs in a new namespace.
func (t *tree) lastPID() int {
	last := 300 // the kernel's own start after a wrap (RESERVED_PIDS of kernel/pid.c)
	for _, id := range t.facts.IDs {
		last = max(last, id)
	}
	return last
}

func (t *tree) open(path string) (*os.File, error) { return t.keep(os.Open(path)) }

func (t *tree) keep(f *os.File, err error) (*os.File, error) {
	if err == nil {
		t.files = append(t.files, f)
	}
	return f, err
}

// begin lets criu have the images, and stops it before it makes anything.
func (t *tree) begin(ctx context.Context) error {
	if err := t.criu.Arrived(); err != nil {
		return err
	}
	return t.session.Advance(ctx, criu.PreRestore)
}

// restore lets criu rebuild the tree and holds it there: complete, and nothing runs.
func (t *tree) restore(ctx context.Context) error { return t.session.Advance(ctx, criu.PostRestore) }

// pids returns the tree's processes as this host sees them, by their ids in the tree's own pid namespace.
func (t *tree) pids(netns uint64) (map[int]int, error) {
	pidns, err := t.pidNamespace()
	if err != nil {
		return nil, err
	}
	table, err := proc.Default.Table()
	if err != nil {
		return nil, err
	}
	pids := make(map[int]int)
	for _, e := range table {
		if e.NetNS != netns {
			continue
		}
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", e.PID))
		if err != nil || link != pidns {
			continue
		}
		own, err := ownPID(e.PID)
		if err != nil {
			return nil, err
		}
		pids[own] = e.PID
	}
	return pids, nil
}

// pidNamespace returns the link text that identifies the tree's pid namespace.
func (t *tree) pidNamespace() (string, error) {
	of := t.session.PID() // of a tree that is not in a new pid namespace, as criu outside sees it
	if t.init != nil {
		of = t.init.PID()
	}
	return os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", of))
}

func ownPID(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if ids, ok := strings.CutPrefix(line, "NSpid:"); ok {
			fields := strings.Fields(ids)
			return strconv.Atoi(fields[len(fields)-1])
		}
	}
	return pid, nil
}

// finish lets criu complete the tree and end: nothing of it runs yet, but it needs nobody any more. stdio is nil if
// nsmigrate will not stay with it.
func (t *tree) finish(stdio []*os.File) error {
	for _, term := range t.terminals {
		if len(stdio) > 1 {
			term.attach(stdio[0], stdio[1])
		} else if err := term.leave(); err != nil {
			return err
		}
	}
	if err := t.session.Finish(); err != nil {
		return err
	}
	if t.init == nil {
		return nil
	}
	if err := t.criu.Close(); err != nil { // the root is the init's child only when criu is gone
		return err
	}
	return t.init.Adopt(t.session.PID())
}

// hosts lists the tree's processes that run when the service is live: the dump stopped them first of all.
func (t *tree) hosts() []proc.Ident {
	var list []proc.Ident
	for own, pid := range t.hostPID {
		if slices.Contains(t.facts.Stopped, own) {
			continue
		}
		if id, err := proc.Default.Ident(pid); err == nil { // else a zombie that is gone
			list = append(list, id)
		}
	}
	slices.SortFunc(list, func(a, b proc.Ident) int { return a.PID - b.PID })
	return list
}

// kill takes back what was restored, without a packet as long as the tree was not released.
func (t *tree) kill() error {
	var errs []error
	if t.session != nil {
		if err := t.session.Veto(); errors.Is(err, criu.ErrEnded) && t.session.PID() > 0 && t.init == nil && t.restored() {
			// It ran already, or its criu died and left it behind.
			errs = append(errs, killTree(t.session.PID()))
		}
	}
	if t.init != nil {
		t.init.Close()
	}
	for _, term := range t.terminals {
		term.close()
	}
	return errors.Join(errs...)
}

// restored reports whether the request came so far that its root exists, and is not somebody else's process.
func (t *tree) restored() bool {
	return t.session.Reached(criu.PostRestore)
}

// killTree ends a process and all that descends from it.
func killTree(root int) error {
	table, err := proc.Default.Table()
	if err != nil {
		return err
	}
	children := make(map[int][]int)
	for _, e := range table {
		children[e.PPID] = append(children[e.PPID], e.PID)
	}
	list := []int{root}
	for i := 0; i < len(list); i++ {
		list = append(list, children[list[i]]...)
	}
	var errs []error
	for _, pid := range list {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("kill process %d: %w", pid, err))
		}
	}
	return errors.Join(errs...)
}

// close ends the criu and releases its files; the tree lives on.
func (t *tree) close() {
	if t.criu != nil {
		t.criu.Close()
	}
	closeAll(t.inherit)
	for _, term := range t.terminals {
		term.slave.Close()
	}
	for _, f := range t.files {
		f.Close()
	}
}
