// Init is the first process of a virtual machine of package vm: it puts the guest's root together from what
// the real machine lends, and then lets the real machine run commands. It is made for an initial RAM disk
// that holds nothing else but the kernel modules it needs.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/e2e/vm/agent"
)

// serve is the argument that makes this program the agent.
const serve = "serve"

func main() {
	if len(os.Args) > 1 && os.Args[1] == serve {
		if err := runAgent(); err != nil {
			fmt.Println("agent:", err)
			os.Exit(1)
		}
		return
	}
	if err := start(); err != nil {
		fmt.Println("init:", err)
	}
	unix.Sync()
	fmt.Println("init: power off:", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}

// start boots the guest and returns when the agent has ended.
func start() error {
	if err := boot(); err != nil {
		return err
	}
	// An extra process, because the first one reaps whatever it gets.
	cmd := exec.Command("/proc/self/exe", serve)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8"}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	for {
		pid, err := unix.Wait4(-1, nil, 0, nil)
		if pid == cmd.Process.Pid || errors.Is(err, unix.ECHILD) {
			return nil
		}
	}
}

func runAgent() error {
	port, err := openPort()
	if err != nil {
		return err
	}
	return agent.Serve(port)
}

// openPort opens the serial line to the real machine, which comes when its driver and QEMU have agreed on it.
func openPort() (*os.File, error) {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		ports, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil || len(ports) == 0 {
			continue
		}
		// Reading would return at once without data only until the line is connected, so it is opened to block.
		fd, err := unix.Open(filepath.Join("/dev", filepath.Base(filepath.Dir(ports[0]))), unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		if poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}; !connected(poll) {
			unix.Close(fd)
			continue
		}
		return os.NewFile(uintptr(fd), "port"), nil
	}
	return nil, errors.New("no line to the real machine")
}

// connected reports whether the other end of a port is open; until it is, reading finds the end of the file.
func connected(poll []unix.PollFd) bool {
	n, err := unix.Poll(poll, 1000)
	return err == nil && n == 1 && poll[0].Revents&unix.POLLHUP == 0
}

// mount is one line of fstab(5).
type mount struct {
	what, where, kind string
	flags             uintptr
	options           string
}

func mountAll(list []mount) error {
	for _, m := range list {
		if err := os.MkdirAll(m.where, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.what, m.where, m.kind, m.flags, m.options); err != nil {
			return fmt.Errorf("mount %s: %w", m.where, err)
		}
	}
	return nil
}

const (
	nothing   = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	transport = "trans=virtio,version=9p2000.L,msize=512000"
)

// boot puts the guest's root together: that of the real machine with a layer in memory above it, so that
// writing changes nothing, and the directory that both machines share, at the same place in both.
func boot() error {
	if err := mountAll([]mount{{"proc", "/proc", "proc", nothing, ""}}); err != nil {
		return err
	}
	if err := loadModules("/modules"); err != nil {
		return err
	}
	args, err := arguments()
	if err != nil {
		return err
	}
	err = mountAll([]mount{
		{"sysfs", "/sys", "sysfs", nothing, ""},
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, ""},
		// Nobody changes the machine's programs during a test, so what was read is true from then on.
		{"root", "/lower", "9p", unix.MS_RDONLY, transport + ",cache=loose"},
		{"tmpfs", "/layer", "tmpfs", 0, ""},
	})
	if err != nil {
		return err
	}
	if err := errors.Join(os.Mkdir("/layer/upper", 0o755), os.Mkdir("/layer/work", 0o755)); err != nil {
		return err
	}
	err = mountAll([]mount{
		{"root", "/root", "overlay", 0, "lowerdir=/lower,upperdir=/layer/upper,workdir=/layer/work"},
		{"/lower" + args["modules"], "/root/lib/modules", "", unix.MS_BIND, ""},
		{"/proc", "/root/proc", "", unix.MS_MOVE, ""},
		{"/sys", "/root/sys", "", unix.MS_MOVE, ""},
		{"/dev", "/root/dev", "", unix.MS_MOVE, ""},
	})
	if err != nil {
		return err
	}
	if err := errors.Join(unix.Chdir("/root"), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), unix.Chdir("/")); err != nil {
		return fmt.Errorf("enter the root: %w", err)
	}
	mounts := []mount{
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=620,ptmxmode=666"},
		{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
		{"tmpfs", "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", nothing, ""},
		{"", "/", "", unix.MS_REC | unix.MS_SHARED, ""}, // as systemd has it
	}
	if dir := args["share"]; dir != "" {
		mounts = append(mounts, mount{"share", dir, "9p", 0, transport})
	}
	if err := mountAll(mounts); err != nil {
		return err
	}
	return unix.Sethostname([]byte("vm"))
}

// loadModules loads the files of a directory in the order of their names.
func loadModules(dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, file := range files {
		f, err := os.Open(filepath.Join(dir, file.Name()))
		if err != nil {
			return err
		}
		flags := 0
		if !strings.HasSuffix(file.Name(), ".ko") {
			flags = unix.MODULE_INIT_COMPRESSED_FILE
		}
		err = unix.FinitModule(int(f.Fd()), "", flags)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w", file.Name(), err)
		}
	}
	return nil
}

// arguments reads the words NAME=VALUE of the kernel's command line.
func arguments() (map[string]string, error) {
	line, err := os.ReadFile("/proc/cmdline")
	args := map[string]string{}
	for word := range strings.FieldsSeq(string(line)) {
		if name, value, ok := strings.Cut(word, "="); ok {
			args[name] = value
		}
	}
	return args, err
}
