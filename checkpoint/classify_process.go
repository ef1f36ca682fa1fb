package checkpoint

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
)

// strays refuses children that left the network namespace: CRIU would dump them with their namespace.
func (c *classifier) strays(t *proc.Tree) {
	for i := range t.Strays {
		p := &t.Strays[i]
		c.refuse(p, Problem{
			Kind: "process", Object: who(p),
			Reason: fmt.Sprintf("it is a child of process %d, but lives in another network namespace", p.PPID),
			Remedy: "end it, or start it outside of the service",
		})
	}
}

// process checks what CRIU can't dump, or what can't be rebuilt elsewhere, of the process itself.
func (c *classifier) process(t *proc.Tree, p *proc.Process) {
	root, host := t.Root(), &c.scene.Host
	refuse := func(reason, remedy string) {
		c.refuse(p, Problem{Kind: "process", Object: who(p), Reason: reason, Remedy: remedy})
	}
	if p.Tracer != 0 {
		refuse(fmt.Sprintf("process %d traces it, and CRIU must", p.Tracer), "end the debugger or strace first")
	}
	if proc.Own(p.NSsid) == 0 {
		if p.Terminal != 0 || proc.Own(p.NSpgid) == proc.Own(p.NSpid) {
			refuse("the leader of its session is outside of its pid namespace", "start it with setsid, e.g. unshare --pid --fork setsid COMMAND")
		} else {
			c.found.Sessionless = append(c.found.Sessionless, p.PID)
			c.note("%s gets a session of its own: the leader of its session is outside of its pid namespace", who(p))
		}
	}
	if uid, foreign := otherUser(p); foreign && !host.SysResource {
		refuse(fmt.Sprintf("it runs as user %d, whose limits can be read only with CAP_SYS_RESOURCE, which this host's root lacks", uid),
			"give nsmigrate the capability, or run the service as root")
	}
	if p.NS.User != host.Namespaces.User {
		refuse("it lives in a user namespace of its own, which can't be rebuilt around an existing network namespace",
			"start the service without a user namespace")
	}
	// CRIU itself makes a time namespace for what it restores, so that clocks go on where they stopped.
	if p.NS.Time != root.NS.Time {
		refuse(fmt.Sprintf("it lives in another time namespace than the root of its tree, process %d", root.PID), "")
	}
	if p.NS.PID != root.NS.PID {
		refuse(fmt.Sprintf("it lives in another pid namespace than the root of its tree, process %d", root.PID), "")
	}
	if p.NS.Mnt != root.NS.Mnt {
		refuse(fmt.Sprintf("it lives in another mount namespace than the root of its tree, process %d", root.PID),
			"start the service without private mounts for single processes")
	}
	if i := slices.IndexFunc(p.Threads, func(t proc.Thread) bool { return t.NetNS != 0 && t.NetNS != c.scene.NetNS }); i >= 0 {
		refuse(fmt.Sprintf("its thread %d lives in another network namespace", p.Threads[i].TID), "")
	}
}

// otherUser says whether reading the limits of a process takes a privilege: prlimit(2) demands it unless
// all of real, effective and saved ids are the caller's, who is root.
func otherUser(p *proc.Process) (uid int, foreign bool) {
	for _, id := range p.UIDs[:3] {
		if id != 0 {
			return id, true
		}
	}
	return 0, p.GIDs[0] != 0 || p.GIDs[1] != 0 || p.GIDs[2] != 0
}

// mountNS checks that the tree sees the host's file system, if perhaps through mounts of its own.
func (c *classifier) mountNS(t *proc.Tree) {
	root, host := t.Root(), &c.scene.Host
	if root.NS.Mnt == host.Namespaces.Mnt {
		return
	}
	theirs, ours := rootMount(t.Mounts), rootMount(host.Mounts)
	if theirs.Dev == ours.Dev && theirs.Root == ours.Root {
		return
	}
	c.refuse(root, Problem{
		Kind: "mount", Object: fmt.Sprintf("root file system of %s", who(root)),
		Reason: fmt.Sprintf("it is %s (%s), not the host's: the service runs in a container's or chroot's root, which is not carried", theirs.Source, theirs.Type),
		Remedy: "move containers with their engine's checkpoint command; start services in the host's file system",
	})
}

func rootMount(mounts []proc.Mount) (root proc.Mount) {
	for _, m := range mounts {
		if m.Point == "/" {
			root = m
		}
	}
	return root
}

// maps checks the mappings that are no ordinary files.
func (c *classifier) maps(p *proc.Process) {
	for i := range p.Files {
		m := &p.Files[i]
		reason := ""
		switch {
		case strings.HasPrefix(m.Path, "anon_inode:"):
			reason = "CRIU can't carry what the kernel keeps behind this mapping"
		case strings.HasPrefix(m.Path, "/SYSV") && m.Deleted:
			if p.NS.IPC == c.scene.Host.Namespaces.IPC {
				c.refuse(p, Problem{
					Kind: "memory", Object: fmt.Sprintf("System V shared memory %s of %s", strings.TrimPrefix(m.Path, "/"), who(p)),
					Reason: "it belongs to the host's IPC namespace",
					Remedy: "start the service in an IPC namespace of its own (unshare --ipc)",
				})
			}
		case strings.HasPrefix(m.Path, "/dev/") && !strings.HasPrefix(m.Path, "/dev/shm/") && m.Path != "/dev/zero":
			reason = "the memory of a device can't be carried"
		}
		if reason != "" {
			c.refuse(p, Problem{Kind: "memory", Object: fmt.Sprintf("mapping of %s by %s", m.Path, who(p)), Reason: reason})
		}
	}
}

// Files lists the regular files that trees have open or mapped and that CRIU will look for under the same
// path and with the same size. Executable mappings are left to the binaries, and logs that are only appended
// to may grow. Sizes are those of the moment: of files that are written to, what counts is the freeze.
func Files(trees []proc.Tree) []File {
	sizes := make(map[string]int64)
	for i := range trees {
		mounts := mountTypes(&trees[i])
		for j := range trees[i].Processes {
			for _, f := range trees[i].Processes[j].FDs {
				appends := f.Flags&unix.O_ACCMODE == unix.O_WRONLY && f.Flags&unix.O_APPEND != 0
				if f.Mode&unix.S_IFMT == unix.S_IFREG && f.Nlink > 0 && strings.HasPrefix(f.Target, "/") && !appends && !pseudo(mounts[f.MntID]) {
					sizes[f.Target] = f.Size
				}
			}
		}
	}
	list := make([]File, 0, len(sizes))
	for name, size := range sizes {
		list = append(list, File{name, size})
	}
	slices.SortFunc(list, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return list
}

// mountTypes returns the file system types that a tree sees, by mount id.
func mountTypes(t *proc.Tree) map[int]string {
	types := make(map[int]string, len(t.Mounts))
	for _, m := range t.Mounts {
		types[m.ID] = m.Type
	}
	return types
}

// pseudo says that a file system's files have no lasting size, or that the mount is not the tree's.
func pseudo(typ string) bool {
	switch typ {
	case "", "proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "bpf", "configfs":
		return true
	}
	return false
}
