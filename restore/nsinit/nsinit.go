// Package nsinit prepares the surroundings of a restored tree: mount namespaces as ip-netns(8) makes them,
// and pid namespaces with a tiny init for trees whose process ids are taken on this host.
package nsinit

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
)

// Arg is the first argument of a process that is to be an init; main calls [Main] when it sees it.
const Arg = "nsinit"

// Config tells an init what to prepare.
type Config struct {
	Sysfs   bool   `json:"sysfs"`    // /sys shows the network namespace
	Name    string `json:"name"`     // of the network namespace, for /etc/netns
	LastPID int    `json:"last_pid"` // ids up to here are left to the tree
}

// Init is the first process of a pid namespace. It reaps what its tree leaves behind and ends with the
// tree's last process, with the exit status of the tree's root.
type Init struct {
	cmd     *exec.Cmd
	control *os.File
}

// Descriptors of an init.
const (
	fdControl = 3
	fdNet     = 4
)

// Start makes a pid namespace with a mount namespace that shows it. The init ends, and with it everything
// in its namespace, unless [Init.Adopt] is called.
func Start(n *ns.NS, cfg Config) (*Init, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("start init: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "control"), os.NewFile(uintptr(fds[1]), "control")
	i := &Init{cmd: exec.Command("/proc/self/exe", Arg), control: ours}
	i.cmd.Dir = "/"
	i.cmd.ExtraFiles = []*os.File{theirs, n.File()}
	i.cmd.Env = []string{"GOMAXPROCS=1"}
	i.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS, Setsid: true}
	err = i.cmd.Start()
	theirs.Close() // with a copy of our own, the init's early end would not end the conversation
	if err != nil {
		ours.Close()
		return nil, fmt.Errorf("start init: %w", err)
	}
	if err := i.prepare(cfg); err != nil {
		i.Close()
		return nil, fmt.Errorf("start init: %w", err)
	}
	return i, nil
}

func (i *Init) prepare(cfg Config) error {
	if err := json.NewEncoder(i.control).Encode(cfg); err != nil {
		return err
	}
	line, err := bufio.NewReader(i.control).ReadString('\n')
	if err != nil {
		return fmt.Errorf("it ended early: %w", err)
	}
	if line != "ready\n" {
		return errors.New(line[:len(line)-1])
	}
	return nil
}

// PID returns the init's pid in the caller's pid namespace.
func (i *Init) PID() int { return i.cmd.Process.Pid }

// Namespace opens one of the init's namespaces: "pid" or "mnt".
func (i *Init) Namespace(kind string) (*os.File, error) {
	return os.Open(fmt.Sprintf("/proc/%d/ns/%s", i.PID(), kind))
}

// Adopt leaves the init to its tree, whose root has the given pid inside the namespace. The process that
// restored the tree must have ended, so that the root is the init's child.
func (i *Init) Adopt(root int) error {
	defer i.control.Close()
	if _, err := fmt.Fprintf(i.control, "%d\n", root); err != nil {
		return fmt.Errorf("hand the tree to its init: %w", err)
	}
	return nil
}

// Wait waits for the tree's end and returns its root's exit code, 128 and the signal's number if it was killed.
func (i *Init) Wait() (int, error) {
	err := i.cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// Close ends the init and everything in its namespace, unless it was left to its tree.
func (i *Init) Close() error {
	i.control.Close()
	i.cmd.Process.Kill()
	i.cmd.Wait()
	return nil
}

// Main is the init's life. It never returns.
func Main() {
	runtime.LockOSThread()
	control := os.NewFile(fdControl, "control")
	in := bufio.NewReader(control)
	var cfg Config
	line, err := in.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &cfg)
	}
	if err == nil {
		err = arrange(cfg)
	}
	if err != nil {
		fmt.Fprintln(control, err)
		os.Exit(1)
	}
	fmt.Fprintln(control, "ready")
	word, err := in.ReadString('\n')
	if err != nil { // nobody is left who would use the namespace
		os.Exit(1)
	}
	root, err := strconv.Atoi(word[:len(word)-1])
	if err != nil {
		os.Exit(1)
	}
	control.Close()
	os.Exit(reap(root))
}

func arrange(cfg Config) error {
	// Signals from outside are for the tree; as the first process it is safe from those it doesn't handle,
	// but the Go runtime handles many.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts slaves of the host's: %w", err)
	}
	if cfg.Sysfs {
		if err := sysfsOf(fdNet, cfg.Name); err != nil {
			return err
		}
	}
	unix.Close(fdNet)
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if cfg.LastPID > 0 {
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(cfg.LastPID)), 0); err != nil {
			return fmt.Errorf("set last pid: %w", err)
		}
	}
	return nil
}

// sysfsOf mounts the /sys of a network namespace; the init itself stays in the host's, lest it would count
// as a process of the service.
func sysfsOf(net int, name string) error {
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer own.Close()
	if err := unix.Setns(net, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	if err := mountSysfs(name); err != nil {
		return err
	}
	if err := bindEtc(name); err != nil {
		return err
	}
	return unix.Setns(int(own.Fd()), unix.CLONE_NEWNET)
}

// reap waits until no child is left.
func reap(root int) int {
	code := 0
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return code
		case pid == root:
			code = ExitCode(status)
		}
	}
}

// ExitCode is the shell's way to say how a process ended.
func ExitCode(status unix.WaitStatus) int {
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}
