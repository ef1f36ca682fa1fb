// Package proc reads from proc(5) what processes are: their ids, namespaces, descriptors, mappings and
// mounts, and groups them into the trees that CRIU dumps one at a time. It gives data and judges nothing.
package proc

// Process is one process (a thread group) as /proc shows it. A zombie has ids and a name and nothing else.
type Process struct {
	PID    int  // in the pid namespace that the /proc belongs to, as PPID and Tracer
	PPID   int  // 0 if the parent is outside of that namespace
	State  byte // the letter of ps(1): 'R', 'S', 'D', 'T' stopped, 't' traced, 'Z' zombie ...
	Tracer int  // who ptraces it; 0 is nobody
	// NSpid, NSpgid and NSsid are the same id in every nested pid namespace, from that of the /proc inwards.
	// 0 stands for a group or session whose leader is outside of the namespace.
	NSpid, NSpgid, NSsid []int
	Threads              []Thread // the main thread first
	Comm                 string   // at most 15 bytes
	Cmdline              []string
	Exe, Cwd, Root       string // as the process sees them; Exe may end in " (deleted)"
	UIDs, GIDs           [4]int // real, effective, saved, file system
	Permitted            uint64 // capabilities, a bit each (capabilities(7))
	Terminal             int    // device number of the controlling terminal; 0 is none
	Seccomp              int    // 0 none, 1 strict, 2 filter
	NS                   Namespaces
	FDs                  []FD // by number
	Files                []FileMap
}

// Own returns the innermost of the nested ids: the one that the process itself sees.
func Own(ids []int) int {
	if len(ids) == 0 {
		return 0
	}
	return ids[len(ids)-1]
}

// Zombie reports whether the process has ended and waits for its parent.
func (p *Process) Zombie() bool { return p.State == 'Z' || p.State == 'X' }

// Stopped reports whether a signal stopped the process.
func (p *Process) Stopped() bool { return p.State == 'T' }

// Init reports whether the process is the first one of a pid namespace below that of the /proc.
func (p *Process) Init() bool { return len(p.NSpid) > 1 && Own(p.NSpid) == 1 }

// Thread is one thread of a process.
type Thread struct {
	TID   int    // in the pid namespace that the /proc belongs to
	NSTID int    // in the thread's own pid namespace
	NetNS uint64 // inode; 0 if it could not be read
}

// Namespaces holds the inode numbers of a process's namespaces; 0 if one could not be read.
type Namespaces struct {
	Cgroup, IPC, Mnt, Net, PID, Time, User, UTS uint64
}

// FD is one open descriptor: /proc/PID/fd/N and its fdinfo.
type FD struct {
	Num    int
	Target string // of the link: a path, "socket:[INO]", "pipe:[INO]", "anon_inode:[eventfd]" ...
	Flags  int    // of open(2)
	Pos    int64
	MntID  int // of the mount it was opened through; pseudo file systems have ids that no mountinfo lists
	// What stat(2) says of the open file; all 0 if that failed.
	Mode      uint32
	Dev, Rdev uint64
	Ino       uint64
	Nlink     uint64
	Size      int64

	TTY int    // index of a pseudo terminal's master; -1 if the file is none
	Tun string // the interface that a descriptor of /dev/net/tun is attached to; "" if none
}

// Mapping is one line of /proc/PID/maps.
type Mapping struct {
	Start, End uint64
	Perms      string // "r-xp"
	Ino        uint64
	Path       string // as that of [FileMap]; also "[heap]" and the like, "" is anonymous memory
	Deleted    bool
}

// FileMap is a file that a process maps, whatever the number of mappings.
type FileMap struct {
	Path    string // without " (deleted)"; also "anon_inode:[...]" and "socket:[...]"
	Range   string // of its first mapping: a name in /proc/PID/map_files
	Ino     uint64
	Exec    bool // some mapping is executable
	Shared  bool // some mapping is shared
	Written bool // some mapping is shared and writable
	Deleted bool
}

// Mount is one line of /proc/PID/mountinfo.
type Mount struct {
	ID, Parent int
	Dev        string // of the superblock, "major:minor"
	Root       string // what of the file system is mounted
	Point      string // where, as the process sees it
	Options    string
	Optional   []string // "shared:N", "master:N" ...
	Type       string   // "ext4", "nsfs" ...
	Source     string
}
