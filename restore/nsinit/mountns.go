package nsinit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
)

// NewMountNS makes a mount namespace with the host's mounts, which later mounts of the host reach but whose
// own the host never sees. With sysfs, /sys shows the network namespace and the files below
// /etc/netns/NAME stand over those in /etc, as ip-netns(8) arranges it for the programs it starts.
func NewMountNS(n *ns.NS, name string, sysfs bool) (*os.File, error) {
	return inNewMountNS(func() error {
		if !sysfs {
			return nil
		}
		if err := unix.Setns(n.Fd(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		if err := mountSysfs(name); err != nil {
			return err
		}
		return bindEtc(name)
	})
}

// inNewMountNS makes a mount namespace, runs arrange on a thread inside it, and returns it.
func inNewMountNS(arrange func() error) (*os.File, error) {
	type result struct {
		file *os.File
		err  error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime ends the thread with the goroutine
		f, err := func() (*os.File, error) {
			if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
				return nil, fmt.Errorf("unshare: %w", err)
			}
			if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
				return nil, fmt.Errorf("make mounts slaves of the host's: %w", err)
			}
			if err := arrange(); err != nil {
				return nil, err
			}
			return os.Open("/proc/thread-self/ns/mnt")
		}()
		done <- result{f, err}
	}()
	r := <-done
	if r.err != nil {
		return nil, fmt.Errorf("make mount namespace: %w", r.err)
	}
	return r.file, nil
}

// mountSysfs replaces /sys by the one of the thread's network namespace.
func mountSysfs(name string) error {
	var st unix.Statfs_t
	flags := uintptr(0)
	if unix.Statfs("/sys", &st) == nil && st.Flags&unix.ST_RDONLY != 0 {
		flags |= unix.MS_RDONLY
	}
	if err := unix.Unmount("/sys", unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount /sys: %w", err)
	}
	if err := unix.Mount(name, "/sys", "sysfs", flags, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	return nil
}

func bindEtc(name string) error {
	if name == "" {
		return nil
	}
	dir := filepath.Join("/etc/netns", name)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		over := filepath.Join("/etc", e.Name())
		if _, err := os.Stat(over); err != nil {
			continue // ip-netns(8) passes over those too
		}
		if err := unix.Mount(filepath.Join(dir, e.Name()), over, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", over, err)
		}
	}
	return nil
}

// NewRootMountNS makes a mount namespace with the host's mounts, in which dir is the host's root file system
// without what is mounted below it: what CRIU needs to rebuild a mount namespace upon (criu(8), --root).
func NewRootMountNS(dir string) (*os.File, error) {
	return inNewMountNS(func() error {
		if err := unix.Mount("/", dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind / to %s: %w", dir, err)
		}
		if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("make %s private: %w", dir, err)
		}
		return nil
	})
}
