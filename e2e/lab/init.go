package lab

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"

	"golang.org/x/sys/unix"
)

// initName is argv[0] of a host's first process, which is this same program started anew.
const initName = "nsmigrate-lab-init"

// A program that imports this package can become a host's init: the test binary and the demo need no
// helper program, and nothing to call in their main.
func init() {
	if os.Args[0] == initName {
		os.Exit(runInit())
	}
}

// runInit is process 1 of a host. It builds the host's mounts, says so on its standard output, reaps what it
// inherits, and ends with its standard input: when the lab's program is gone, however it went, the kernel
// removes the host with everything in it.
func runInit() int {
	spec, err := parseInitArgs(os.Args[1:])
	if err == nil {
		err = spec.build()
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	children := make(chan os.Signal, 16)
	signal.Notify(children, unix.SIGCHLD)
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	go func() {
		for range children {
			reap()
		}
	}()
	fmt.Println("ready")
	os.Stdin.Read(make([]byte, 1))
	return 0
}

func reap() {
	for {
		if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 || err != nil {
			return
		}
	}
}

type initSpec struct {
	hostname string
	shared   string // directory of the machine that the host sees at the same place
	mounts   Mounts
	firstPID int
}

func (s initSpec) args() []string {
	return []string{initName, s.hostname, s.shared, string(s.mounts), strconv.Itoa(s.firstPID)}
}

func parseInitArgs(args []string) (initSpec, error) {
	if len(args) != 4 {
		return initSpec{}, fmt.Errorf("init: %d arguments", len(args))
	}
	pid, err := strconv.Atoi(args[3])
	return initSpec{hostname: args[0], shared: args[1], mounts: Mounts(args[2]), firstPID: pid}, err
}

// ownTmpfs are the directories of which every host has its own: /run for ip-netns(8) and CRIU's cache,
// the others for whatever a program may leave in them.
var ownTmpfs = []string{"/run", "/tmp", "/dev/shm"}

func (s initSpec) build() error {
	if err := unix.Sethostname([]byte(s.hostname)); err != nil {
		return fmt.Errorf("init: set hostname: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("init: make mounts private: %w", err)
	}
	// Both are taken before they get hidden by the mounts below.
	shared, err := unix.OpenTree(unix.AT_FDCWD, s.shared, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("init: open %s: %w", s.shared, err)
	}
	cgroup, err := unix.OpenTree(unix.AT_FDCWD, "/sys/fs/cgroup", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return fmt.Errorf("init: open /sys/fs/cgroup: %w", err)
	}
	for _, dir := range ownTmpfs {
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil {
			return fmt.Errorf("init: mount %s: %w", dir, err)
		}
	}
	// Terminals are numbered by the host, and each begins at 0.
	if err := unix.Mount("devpts", "/dev/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"); err != nil {
		return fmt.Errorf("init: mount /dev/pts: %w", err)
	}
	if err := os.Mkdir(StateDir, 0o700); err != nil {
		return fmt.Errorf("init: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("init: mount /proc: %w", err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("init: mount /sys: %w", err)
	}
	if err := attach(cgroup, "/sys/fs/cgroup"); err != nil {
		return err
	}
	if err := os.MkdirAll(s.shared, 0o755); err != nil {
		return fmt.Errorf("init: %w", err)
	}
	if err := attach(shared, s.shared); err != nil {
		return err
	}
	if s.mounts == MountsShared {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
			return fmt.Errorf("init: make mounts shared: %w", err)
		}
	}
	// Far from where other hosts count, so that the ids of a tree are free where it goes, and far from
	// the low ids that CRIU's own processes get.
	if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(s.firstPID)), 0); err != nil {
		return fmt.Errorf("init: %w", err)
	}
	return nil
}

// attach mounts a detached tree and closes its descriptor.
func attach(tree int, at string) error {
	defer unix.Close(tree)
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("init: mount %s: %w", at, err)
	}
	return nil
}
