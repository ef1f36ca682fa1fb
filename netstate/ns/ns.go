// Package ns holds network namespaces open and runs code inside them.
//
// A namespace is identified by the inode of its nsfs file (see namespaces(7)); names are bind mounts of
// that file under [Dir], as ip-netns(8) makes them, so namespaces made here and there are interchangeable.
package ns

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Dir is where named network namespaces are mounted (ip-netns(8)).
const Dir = "/run/netns"

// NS is an open handle on a network namespace. It keeps the namespace alive until Close.
type NS struct {
	file  *os.File
	inode uint64
}

// Open opens the namespace with the given name below [Dir], or the nsfs file at the given path if the
// argument contains a slash. A missing one is reported as [fs.ErrNotExist].
func Open(nameOrPath string) (*NS, error) {
	return openFile(PathOf(nameOrPath))
}

// PathOf returns the path that [Open] opens.
func PathOf(nameOrPath string) string {
	if strings.Contains(nameOrPath, "/") {
		return nameOrPath
	}
	return filepath.Join(Dir, nameOrPath)
}

// OfPID opens the network namespace of a process.
func OfPID(pid int) (*NS, error) {
	return openFile(fmt.Sprintf("/proc/%d/ns/net", pid))
}

// Current opens the network namespace of the calling thread.
func Current() (*NS, error) {
	return openFile("/proc/thread-self/ns/net")
}

func openFile(path string) (*NS, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	n, err := fromFile(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open network namespace %q: %w", path, err)
	}
	return n, nil
}

// ErrNotNetNS means that a path names something else than a network namespace.
var ErrNotNetNS = errors.New("not a network namespace")

func fromFile(f *os.File) (*NS, error) {
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return nil, ErrNotNetNS
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	return &NS{file: f, inode: st.Ino}, nil
}

// Create makes a new network namespace without a name. The calling goroutine's namespace is unchanged.
func Create() (*NS, error) {
	var made *NS
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("create network namespace: %w", err)
		}
		var err error
		made, err = Current()
		return err
	})
	return made, err
}

// ErrNameInUse means that a name below [Dir] is taken.
var ErrNameInUse = errors.New("network namespace name in use")

// CheckName reports whether a string can be the name of a namespace: one path element, not dots.
func CheckName(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") || len(name) > 255 {
		return fmt.Errorf("%q can't name a network namespace", name)
	}
	return nil
}

// Bind gives the namespace a name below [Dir]. It makes [Dir] a shared mount first, as ip-netns(8) does,
// so that names appear in and vanish from every mount namespace alike. The error is [ErrNameInUse] if the
// name exists.
func (n *NS) Bind(name string) (err error) {
	if err := CheckName(name); err != nil {
		return err
	}
	if err := shareDir(); err != nil {
		return fmt.Errorf("name network namespace %q: %w", name, err)
	}
	path := PathOf(name)
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: %q", ErrNameInUse, name)
	}
	if err != nil {
		return fmt.Errorf("name network namespace: %w", err)
	}
	f.Close()
	// Bind through the descriptor: the namespace may have no other name.
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", n.Fd()), path, "", unix.MS_BIND, ""); err != nil {
		os.Remove(path)
		return fmt.Errorf("name network namespace %q: mount: %w", name, err)
	}
	return nil
}

// Unbind removes a name. The namespace itself ends when nothing else holds it. A missing name is no error.
func Unbind(name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	path := PathOf(name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove network namespace name %q: unmount: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network namespace name: %w", err)
	}
	return nil
}

func shareDir() error {
	if err := os.MkdirAll(Dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("", Dir, "", unix.MS_SHARED|unix.MS_REC, ""); err == nil {
		return nil
	} else if !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("make %s a shared mount: %w", Dir, err)
	}
	// Not a mount point yet.
	if err := unix.Mount(Dir, Dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s: %w", Dir, err)
	}
	if err := unix.Mount("", Dir, "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make %s a shared mount: %w", Dir, err)
	}
	return nil
}

// NameOf returns the name below [Dir] that is bound to the namespace, or "" if there is none.
func (n *NS) NameOf() (string, error) {
	entries, err := os.ReadDir(Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("find network namespace name: %w", err)
	}
	for _, e := range entries {
		var st unix.Stat_t
		if unix.Stat(PathOf(e.Name()), &st) == nil && st.Ino == n.inode && isNsfs(PathOf(e.Name())) {
			return e.Name(), nil
		}
	}
	return "", nil
}

func isNsfs(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// Fd returns the descriptor; it stays owned by the handle.
func (n *NS) Fd() int { return int(n.file.Fd()) }

// File returns the open file; it stays owned by the handle.
func (n *NS) File() *os.File { return n.file }

// Inode returns the inode number that identifies the namespace.
func (n *NS) Inode() uint64 { return n.inode }

// Close releases the handle.
func (n *NS) Close() error { return n.file.Close() }

// String returns the kernel's notation, "net:[INODE]".
func (n *NS) String() string { return fmt.Sprintf("net:[%d]", n.inode) }

// LinkName returns the name of the interface that has an index in the namespace, or ip(8)'s notation if there is none.
func (n *NS) LinkName(index int32) string {
	name := fmt.Sprintf("if%d", index)
	_ = n.Do(func() error {
		if dev, err := net.InterfaceByIndex(int(index)); err == nil {
			name = dev.Name
		}
		return nil
	})
	return name
}

// Do runs fn on a thread that is inside the namespace. Sockets that fn opens belong to the namespace for
// good; goroutines that fn starts do not run inside it. No other goroutine is ever scheduled on a thread that is
// in a foreign namespace: a thread that can't go back where it came from is thrown away.
func (n *NS) Do(fn func() error) error {
	return onThread(func() error {
		if err := unix.Setns(n.Fd(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return fn()
	})
}

// onThread runs fn on a locked thread, which goes back into its network namespace afterwards. The main thread is
// spared: /proc/PID/ns would show the process inside meanwhile, and it alone is never thrown away.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			done <- andBack(fn)
			return
		}
		elsewhere := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(elsewhere)
			done <- andBack(fn)
		}()
		<-elsewhere // while this goroutine has the main thread, the other one can't get it
		runtime.UnlockOSThread()
	}()
	return <-done
}

// andBack runs fn and brings the thread, to which the goroutine is locked, back into its network namespace. Where that
// fails the thread stays locked: the goroutine ends so, and the runtime makes the thread end with it.
func andBack(fn func() error) error {
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fn()
	}
	defer unix.Close(home)
	err = fn()
	if unix.Setns(home, unix.CLONE_NEWNET) == nil {
		runtime.UnlockOSThread()
	}
	return err
}
