package checkpoint

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
)

// externals finds the open files of a tree whose other end or whose mount is outside, and refuses those
// that can't be carried at all.
func (c *classifier) externals(t *proc.Tree) []External {
	x := &outside{classifier: c, tree: t, mounts: mountTypes(t), pipes: make(map[uint64]int), masters: make(map[int]bool), index: make(map[string]int)}
	x.overmounted = make(map[int]string)
	for _, m := range t.Mounts {
		for _, over := range t.Mounts {
			if over.Parent == m.ID && over.Point == m.Point {
				x.overmounted[m.ID] = m.Point
			}
		}
	}
	for i := range t.Processes {
		for j := range t.Processes[i].FDs {
			x.insideEnd(&t.Processes[i].FDs[j])
		}
	}
	seen := make(map[uint64]bool)
	for i := range t.Processes {
		p := &t.Processes[i]
		for j := range p.FDs {
			f := &p.FDs[j]
			inode, socket := proc.Inode(f.Target, "socket")
			switch {
			case socket && seen[inode]:
				x.again(fmt.Sprintf("unix[%d]", inode), p, f)
			case socket:
				seen[inode] = true
				x.socket(p, f, inode)
			default:
				x.file(p, f)
			}
		}
	}
	return x.list
}

// outside gathers one tree's externals.
type outside struct {
	*classifier
	tree        *proc.Tree
	mounts      map[int]string // types of the visible mounts, by id
	overmounted map[int]string // mounts hidden below another one, with their place
	pipes       map[uint64]int // ends that the tree holds, by inode: bit 0 reads, bit 1 writes
	masters     map[int]bool   // pseudo terminals whose master the tree holds
	list        []External
	index       map[string]int // into list, by key
}

// insideEnd notes what the tree holds itself.
func (x *outside) insideEnd(f *proc.FD) {
	if inode, ok := proc.Inode(f.Target, "pipe"); ok {
		x.pipes[inode] |= ends(f.Flags)
	}
	if n, ok := master(f); ok {
		x.masters[n] = true
	}
}

// master reports the number of the pseudo terminal that a file is the master of.
func master(f *proc.FD) (int, bool) { return f.TTY, f.TTY >= 0 && unix.Major(f.Rdev) == ttyAux }

func ends(flags int) int {
	switch flags & unix.O_ACCMODE {
	case unix.O_RDONLY:
		return 1
	case unix.O_WRONLY:
		return 2
	}
	return 3
}

// Majors of linux/major.h.
const (
	memMajor  = 1
	ttyMajor  = 4
	ttyAux    = 5 // /dev/tty, /dev/console, /dev/ptmx
	miscMajor = 10
	ptsFirst  = 136 // UNIX98_PTY_SLAVE_MAJOR, eight of them
	ptsLast   = 143

	tunMinor    = 200 // of miscMajor
	autofsMinor = 235
	ttyMinor    = 0 // of ttyAux
	ptmxMinor   = 2
)

// file classifies a descriptor that is no socket.
func (x *outside) file(p *proc.Process, f *proc.FD) {
	if inode, ok := proc.Inode(f.Target, "pipe"); ok {
		if x.pipes[inode] != 3 {
			x.external(p, f, External{Kind: "pipe", Key: fmt.Sprintf("pipe:[%d]", inode)})
		}
		return
	}
	if kind, ok := strings.CutPrefix(f.Target, "anon_inode:"); ok {
		x.anonymous(p, f, strings.Trim(kind, "[]"))
		return
	}
	if !strings.HasPrefix(f.Target, "/") {
		x.namespaceFile(p, f)
		return
	}
	switch f.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		x.refuseFile(p, f, "device", "a block device can't be carried", "")
		return
	case unix.S_IFCHR:
		if x.device(p, f) {
			return
		}
	}
	x.path(p, f)
}

// ptsOf returns the number of the pseudo terminal that a device number of proc_pid_stat(5) stands for, -1 if it is none.
func ptsOf(device int) int {
	major, minor := device>>8&0xfff, device&0xff|device>>12&0xfff00
	if major < ptsFirst || major > ptsLast {
		return -1
	}
	return (major-ptsFirst)<<8 | minor
}

// anonymous checks the kinds that CRIU knows (files.c:dump_one_file).
func (x *outside) anonymous(p *proc.Process, f *proc.FD, kind string) {
	switch kind {
	case "eventfd", "eventpoll", "inotify", "fanotify", "signalfd", "timerfd", "pidfd":
		return
	case "io_uring":
		x.refuseFile(p, f, "io_uring", "CRIU can't carry requests that the kernel works on",
			"turn io_uring off in the service, or for all with sysctl kernel.io_uring_disabled=2")
		return
	}
	x.refuseFile(p, f, "file", fmt.Sprintf("CRIU can't carry a file of kind %s", kind), "")
}

// namespaceFile checks "net:[INO]" and the like: the tree's own namespaces can be found again.
func (x *outside) namespaceFile(p *proc.Process, f *proc.FD) {
	kind, _, _ := strings.Cut(f.Target, ":")
	own := x.tree.Root().NS
	inode, ok := map[string]uint64{
		"cgroup": own.Cgroup, "ipc": own.IPC, "mnt": own.Mnt, "net": own.Net, "pid": own.PID, "time": own.Time, "user": own.User, "uts": own.UTS,
	}[kind]
	if got, isNS := proc.Inode(f.Target, kind); ok && isNS && got == inode {
		return
	}
	if kind == "pidfd" || strings.HasPrefix(f.Target, "[pidfd]") {
		return
	}
	x.refuseFile(p, f, "file", "CRIU can't carry such a file", "")
}

// device classifies a character device; false if it is to be treated like any file with a path.
func (x *outside) device(p *proc.Process, f *proc.FD) bool {
	switch major, minor := unix.Major(f.Rdev), unix.Minor(f.Rdev); {
	case major == memMajor:
		return false
	case major == miscMajor && minor == autofsMinor:
		return false
	case major == miscMajor && minor == tunMinor:
		reason := "the tunnel's file can't be attached again"
		if f.Tun != "" {
			reason = fmt.Sprintf("it is attached to the interface %s and can't be attached again", f.Tun)
		}
		x.refuseFile(p, f, "device", reason, "stop the tunnel's program before the dump and start it after the restore")
		return true
	case major == ttyAux && minor == ptmxMinor:
		return false
	case major == ttyAux && minor == ttyMinor && x.masters[ptsOf(p.Terminal)]:
		x.refuseFile(p, f, "terminal", "CRIU can't carry a controlling terminal that is open as /dev/tty while its other end is in the service too",
			"use a shell there that opens its terminal by its own name, such as bash instead of dash")
		return true
	case major >= ptsFirst && major <= ptsLast:
		if x.masters[int(major-ptsFirst)<<8|int(minor)] {
			return false
		}
		fallthrough
	case major == ttyMajor, major == ttyAux:
		x.external(p, f, External{Kind: "tty", Key: fmt.Sprintf("tty[%x:%x]", f.Rdev, f.Dev), Path: f.Target})
		return true
	}
	x.refuseFile(p, f, "device", "the state behind a device can't be carried", "")
	return true
}

// path classifies a file by whether the tree can find it again under its path.
func (x *outside) path(p *proc.Process, f *proc.FD) {
	if strings.HasPrefix(f.Target, "/memfd:") {
		return // memory that travels with the tree
	}
	if strings.HasPrefix(f.Target, "/dmabuf:") {
		x.refuseFile(p, f, "device", "the memory of a device can't be carried", "")
		return
	}
	if _, visible := x.mounts[f.MntID]; visible {
		if place, hidden := x.overmounted[f.MntID]; hidden {
			x.refuseFile(p, f, "file", fmt.Sprintf("it lies below another mount on %s", place), "open it again, e.g. by a reload of the service")
		}
		return
	}
	if f.Nlink == 0 && f.Mode&unix.S_IFMT == unix.S_IFREG {
		x.refuseFile(p, f, "file", "it is deleted, and was opened in another mount namespace", "restart the service with its output in a file that exists")
		return
	}
	x.external(p, f, External{Kind: "file", Key: fmt.Sprintf("file[%x:%x]", f.MntID, f.Ino), Path: f.Target})
}

// external records an external file with its first holder, or one more holder of a known one. Two
// descriptions of one file share a key, so they have to share an access mode.
func (x *outside) external(p *proc.Process, f *proc.FD, e External) {
	if x.again(e.Key, p, f) {
		return
	}
	e.Flags, e.Pos = f.Flags, f.Pos
	e.FDs = []FD{{PID: proc.Own(p.NSpid), FD: f.Num}}
	x.index[e.Key] = len(x.list)
	x.list = append(x.list, e)
}

func (x *outside) again(key string, p *proc.Process, f *proc.FD) bool {
	i, ok := x.index[key]
	if !ok {
		return false
	}
	e := &x.list[i]
	e.FDs = append(e.FDs, FD{PID: proc.Own(p.NSpid), FD: f.Num})
	if e.Kind != "pipe" && (e.Flags^f.Flags)&unix.O_ACCMODE != 0 {
		e.Flags = e.Flags&^unix.O_ACCMODE | unix.O_RDWR
	}
	return true
}

func (x *outside) refuseFile(p *proc.Process, f *proc.FD, kind, reason, remedy string) {
	x.refuse(p, Problem{
		Kind: kind, Object: fmt.Sprintf("%s, descriptor %d of %s", f.Target, f.Num, who(p)),
		Reason: reason, Remedy: remedy,
	})
}
