package proc

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Dir is a mount of proc(5). The process ids in it are those of the pid namespace it was mounted in.
type Dir string

// Default is the /proc of this process.
const Default Dir = "/proc"

// ErrGone means that a process ended while it was read.
var ErrGone = errors.New("process is gone")

// Read returns all about one process. The error is [ErrGone] if there is no such process.
func (d Dir) Read(pid int) (Process, error) {
	p, _, err := d.status(pid)
	if err != nil || p.Zombie() {
		return p, err
	}
	for _, read := range []func(*Process) error{d.readNamespaces, d.readThreads, d.readNames, d.readFDs, d.readMaps} {
		if err := read(&p); err != nil {
			err = gone(pid, err)
			if errors.Is(err, ErrGone) { // it may have become a zombie meanwhile
				if z, _, again := d.status(pid); again == nil && z.Zombie() {
					return z, nil
				}
			}
			return p, err
		}
	}
	return p, nil
}

func (d Dir) status(pid int) (p Process, kernel bool, err error) {
	b, err := os.ReadFile(d.path(pid, "status"))
	if err == nil {
		kernel, err = parseStatus(&p, b)
	}
	return p, kernel, gone(pid, err)
}

// gone turns the errors of a file whose process has ended into ErrGone.
func gone(pid int, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ESRCH):
		return fmt.Errorf("read process %d: %w", pid, ErrGone)
	}
	return fmt.Errorf("read process %d: %w", pid, err)
}

func (d Dir) path(pid int, name ...string) string {
	return filepath.Join(append([]string{string(d), strconv.Itoa(pid)}, name...)...)
}

func (d Dir) readNamespaces(p *Process) error {
	for _, n := range []struct {
		name string
		into *uint64
	}{
		{"cgroup", &p.NS.Cgroup},
		{"ipc", &p.NS.IPC},
		{"mnt", &p.NS.Mnt},
		{"net", &p.NS.Net},
		{"pid", &p.NS.PID},
		{"time", &p.NS.Time},
		{"user", &p.NS.User},
		{"uts", &p.NS.UTS},
	} {
		link, err := os.Readlink(d.path(p.PID, "ns", n.name))
		if errors.Is(err, fs.ErrNotExist) && n.name != "net" {
			continue // a kernel without that kind of namespace
		}
		if err != nil {
			return err
		}
		if *n.into, err = parseNS(link); err != nil {
			return err
		}
	}
	return nil
}

func (d Dir) readThreads(p *Process) error {
	entries, err := numbers(d.path(p.PID, "task"))
	if err != nil {
		return err
	}
	for _, tid := range entries {
		b, err := os.ReadFile(d.path(p.PID, "task", strconv.Itoa(tid), "status"))
		if err != nil {
			continue // threads come and go
		}
		var t Process
		if _, err := parseStatus(&t, b); err != nil {
			return err
		}
		thread := Thread{TID: tid, NSTID: Own(t.NSpid)}
		if link, err := os.Readlink(d.path(p.PID, "task", strconv.Itoa(tid), "ns", "net")); err == nil {
			thread.NetNS, _ = parseNS(link)
		}
		p.Threads = append(p.Threads, thread)
	}
	slices.SortStableFunc(p.Threads, func(a, b Thread) int { // the main thread first
		return cmp.Compare(min(1, abs(a.TID-p.PID)), min(1, abs(b.TID-p.PID)))
	})
	return nil
}

func abs(n int) int { return max(n, -n) }

// State returns the state of a process, the letter of ps(1). The error is [ErrGone] if there is no such process.
func (d Dir) State(pid int) (byte, error) {
	return readState(pid, d.path(pid, "stat"))
}

// Running lists the threads of a process that are neither stopped nor at their end, with their states.
func (d Dir) Running(pid int) (states []byte, err error) {
	tids, err := numbers(d.path(pid, "task"))
	if err != nil {
		return nil, gone(pid, err)
	}
	for _, tid := range tids {
		state, err := readState(pid, d.path(pid, "task", strconv.Itoa(tid), "stat"))
		if errors.Is(err, ErrGone) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if !strings.ContainsRune("TtZX", rune(state)) {
			states = append(states, state)
		}
	}
	return states, nil
}

func readState(pid int, path string) (byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, gone(pid, err)
	}
	i := bytes.LastIndexByte(b, ')')
	if i < 0 || len(b) < i+3 {
		return 0, fmt.Errorf("stat: %w %q", ErrMalformed, b)
	}
	return b[i+2], nil
}

func (d Dir) readNames(p *Process) error {
	b, err := os.ReadFile(d.path(p.PID, "cmdline"))
	if err != nil {
		return err
	}
	if b = bytes.TrimSuffix(b, []byte{0}); len(b) > 0 {
		p.Cmdline = strings.Split(string(b), "\x00")
	}
	if b, err = os.ReadFile(d.path(p.PID, "stat")); err != nil {
		return err
	}
	if p.Terminal, err = parseTerminal(b); err != nil {
		return err
	}
	for _, l := range []struct {
		name string
		into *string
	}{{"exe", &p.Exe}, {"cwd", &p.Cwd}, {"root", &p.Root}} {
		if *l.into, err = os.Readlink(d.path(p.PID, l.name)); err != nil {
			return err
		}
	}
	return nil
}

func (d Dir) readFDs(p *Process) error {
	nums, err := numbers(d.path(p.PID, "fd"))
	if err != nil {
		return err
	}
	p.FDs = make([]FD, 0, len(nums))
	for _, n := range nums {
		f, err := d.FD(p.PID, n)
		if errors.Is(err, fs.ErrNotExist) {
			continue // closed meanwhile
		}
		if err != nil {
			return err
		}
		p.FDs = append(p.FDs, f)
	}
	return nil
}

// FD returns one descriptor of a process. The error is [fs.ErrNotExist] if it is not open.
func (d Dir) FD(pid, num int) (FD, error) {
	f := FD{Num: num}
	link := d.path(pid, "fd", strconv.Itoa(num))
	var err error
	if f.Target, err = os.Readlink(link); err != nil {
		return f, err
	}
	b, err := os.ReadFile(d.path(pid, "fdinfo", strconv.Itoa(num)))
	if err != nil {
		return f, err
	}
	if err := parseFDInfo(&f, b); err != nil {
		return f, fmt.Errorf("descriptor %d: %w", num, err)
	}
	var st unix.Stat_t
	if unix.Stat(link, &st) == nil { // follows to the open file itself, in whatever mount namespace it is
		f.Mode, f.Dev, f.Rdev, f.Ino, f.Nlink, f.Size = st.Mode, st.Dev, st.Rdev, st.Ino, uint64(st.Nlink), st.Size
	}
	return f, nil
}

// Sockets returns the inode of each socket that a process holds, by descriptor: much less than [Dir.Read]
// does, for the moments when the process is frozen.
func (d Dir) Sockets(pid int) (map[int]uint64, error) {
	nums, err := numbers(d.path(pid, "fd"))
	if err != nil {
		return nil, gone(pid, err)
	}
	found := make(map[int]uint64)
	for _, n := range nums {
		target, err := os.Readlink(d.path(pid, "fd", strconv.Itoa(n)))
		if err != nil {
			continue // closed meanwhile
		}
		if ino, ok := Inode(target, "socket"); ok {
			found[n] = ino
		}
	}
	return found, nil
}

// Paths returns the descriptors of a process that are files with a path: much less than [Dir.Read] does, for the moments
// when the process is frozen. The error is [ErrGone] if there is no such process.
func (d Dir) Paths(pid int) ([]FD, error) {
	nums, err := numbers(d.path(pid, "fd"))
	if err != nil {
		return nil, gone(pid, err)
	}
	var found []FD
	for _, n := range nums {
		target, err := os.Readlink(d.path(pid, "fd", strconv.Itoa(n)))
		if err != nil || !strings.HasPrefix(target, "/") {
			continue // closed meanwhile, or no path
		}
		f, err := d.FD(pid, n)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, gone(pid, err)
		}
		found = append(found, f)
	}
	return found, nil
}

// Maps returns the files that a process maps. The error is [ErrGone] if there is no such process.
func (d Dir) Maps(pid int) ([]FileMap, error) {
	mappings, err := d.Mappings(pid)
	return mappedFiles(mappings), err
}

// Mappings returns what a process maps, by address. The error is [ErrGone] if there is no such process.
func (d Dir) Mappings(pid int) ([]Mapping, error) {
	mappings, err := d.readMappings(pid)
	return mappings, gone(pid, err)
}

func (d Dir) readMappings(pid int) ([]Mapping, error) {
	b, err := os.ReadFile(d.path(pid, "maps"))
	if err != nil {
		return nil, err
	}
	return parseMaps(b)
}

func (d Dir) readMaps(p *Process) error {
	mappings, err := d.readMappings(p.PID)
	p.Files = mappedFiles(mappings)
	return err
}

// Mounts returns the mounts that a process sees, in the order of their making.
func (d Dir) Mounts(pid int) ([]Mount, error) {
	b, err := os.ReadFile(d.path(pid, "mountinfo"))
	if err != nil {
		return nil, gone(pid, err)
	}
	mounts, err := parseMountinfo(b)
	return mounts, gone(pid, err)
}

// Namespaces returns the inodes of a process's namespaces.
func (d Dir) Namespaces(pid int) (Namespaces, error) {
	p := Process{PID: pid}
	err := d.readNamespaces(&p)
	return p.NS, gone(pid, err)
}

// numbers lists the entries of a directory that are numbers, in order.
func numbers(dir string) ([]int, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	list := make([]int, 0, len(names))
	for _, name := range names {
		if n, err := strconv.Atoi(name); err == nil {
			list = append(list, n)
		}
	}
	slices.Sort(list)
	return list, nil
}
