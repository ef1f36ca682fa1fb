// Package vm boots virtual machines that run Debian's own kernel, for what the machine's kernel can't do: link
// kinds it was built without, processes of other users where root is confined, two hosts with two kernels.
//
// A guest sees the machine's root file system, read-only under a layer in memory that goes with the guest, and
// one directory that both write. There is no hardware acceleration, because where tests run there often is
// none: a guest is slow (some 10 times slower than the machine), and once in a while its kernel panics, so that
// whoever uses one should be ready to start again: see [Do].
package vm

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/e2e/vm/agent"
)

// Command is a program to run in a guest.
type Command = agent.Command

// ExitError says that a program ran in a guest and failed.
type ExitError = agent.ExitError

// ErrGone says that a guest ended while something was expected of it, most likely by a panic of its kernel.
var ErrGone = agent.ErrGone

// Config of a [Machine].
type Config struct {
	CPUs   int    // default 2
	Memory int    // in MiB; default 2048
	Share  string // directory that both write, at the same place in the guest; default is one that ends with the Machine
	NICs   []NIC  // named eth0, eth1 ... in the guest
}

// NIC is a network card of a guest.
type NIC struct {
	MAC   string
	Cable *os.File // one end of a [Cable], which the Machine gets
}

// Cable connects the cards of two guests.
func Cable() (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("cable: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "cable"), os.NewFile(uintptr(fds[1]), "cable"), nil
}

// Machine is a guest that runs.
type Machine struct {
	Share string

	client  *agent.Client
	line    *os.File // to the agent; the guest ends when it is closed
	console buffer
	qemu    *exec.Cmd
	ended   chan struct{}
	dir     string // of the Machine's own files
}

// bootTime is more than a guest ever needs to boot on a busy machine.
const bootTime = 2 * time.Minute

// Needs returns why no guest can run on this machine, or nil.
func Needs() error {
	if runtime.GOARCH != "amd64" {
		return errors.New("virtual machines are made for amd64 only")
	}
	if os.Geteuid() != 0 {
		return errors.New("a virtual machine needs root to see all of the machine's files")
	}
	for _, tool := range []string{"qemu-system-x86_64", "apt-get", "depmod"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is missing (make deps)", tool)
		}
	}
	return nil
}

// Do boots a guest, calls fn and ends the guest. If the guest was gone before fn was done ([ErrGone]), all of it
// is done once more, and once again.
func Do(ctx context.Context, config Config, fn func(*Machine) error) error {
	const attempts = 3
	var failed error
	for range attempts {
		err := once(ctx, config, fn)
		if err == nil {
			return nil
		}
		failed = errors.Join(failed, err)
		if !errors.Is(err, ErrGone) || ctx.Err() != nil {
			break
		}
	}
	return failed
}

func once(ctx context.Context, config Config, fn func(*Machine) error) error {
	m, err := Boot(ctx, config)
	if err != nil {
		return err
	}
	return errors.Join(fn(m), m.Close())
}

// Boot starts a guest and returns when it is ready for commands. The caller closes it.
func Boot(ctx context.Context, config Config) (*Machine, error) {
	m, err := start(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("boot a virtual machine: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	err = m.client.Ready(ctx)
	if err == nil && len(config.NICs) > 0 { // nothing in the guest looks for devices
		err = m.Run(ctx, Command{Args: []string{"modprobe", "virtio_net"}})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("boot a virtual machine: %w", err), m.Close())
	}
	return m, nil
}

func start(ctx context.Context, config Config) (m *Machine, err error) {
	kernel, err := findKernel(ctx)
	if err != nil {
		return nil, err
	}
	m = &Machine{ended: make(chan struct{})}
	if m.dir, err = os.MkdirTemp("", "nsmigrate-vm-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(m.dir))
		}
	}()
	if m.Share = config.Share; m.Share == "" {
		m.Share = filepath.Join(m.dir, "share")
		if err := os.Mkdir(m.Share, 0o777); err != nil {
			return nil, err
		}
	}
	initrd, err := m.buildInitrd(ctx, kernel)
	if err != nil {
		return nil, err
	}
	line, guest, err := Cable()
	if err != nil {
		return nil, err
	}
	m.line = line
	m.qemu = exec.Command("qemu-system-x86_64", arguments(config, kernel, initrd, m.Share)...)
	m.qemu.ExtraFiles = []*os.File{guest}
	for _, nic := range config.NICs {
		m.qemu.ExtraFiles = append(m.qemu.ExtraFiles, nic.Cable)
	}
	m.qemu.Stdout, m.qemu.Stderr = &m.console, &m.console
	// It ends with this program, however that ends; a signal at its terminal is for this program alone.
	m.qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	err = m.launch()
	for _, f := range m.qemu.ExtraFiles {
		f.Close()
	}
	if err != nil {
		return nil, errors.Join(err, line.Close())
	}
	m.client = agent.NewClient(line)
	return m, nil
}

// launch starts QEMU on a thread that stays until it has ended: the signal of a parent's death is about the
// parent's thread.
func (m *Machine) launch() error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := m.qemu.Start()
		started <- err
		if err == nil {
			_ = m.qemu.Wait()
			close(m.ended)
		}
	}()
	return <-started
}

// kernel is an unpacked kernel package.
type kernel struct{ image, modules, release string }

//go:embed kernel.sh
var kernelScript string

// findKernel is asked once; its answer holds for all guests of a test run.
var findKernel = func() func(context.Context) (kernel, error) {
	var mu sync.Mutex
	var found *kernel
	return func(ctx context.Context) (kernel, error) {
		mu.Lock()
		defer mu.Unlock()
		if found != nil {
			return *found, nil
		}
		k, err := fetchKernel(ctx)
		if err == nil {
			found = &k
		}
		return k, err
	}
}()

func fetchKernel(ctx context.Context) (kernel, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return kernel{}, err
	}
	cmd := exec.CommandContext(ctx, "bash", "-c", kernelScript)
	cmd.Env = append(os.Environ(), "CACHE="+filepath.Join(cache, "nsmigrate", "vm"))
	var trouble bytes.Buffer
	cmd.Stderr = &trouble
	out, err := cmd.Output()
	if err != nil {
		return kernel{}, fmt.Errorf("kernel: %w\n%s", err, trouble.Bytes())
	}
	dir := strings.TrimSpace(string(out))
	images, err := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return kernel{}, fmt.Errorf("kernel: %d images in %s", len(images), dir)
	}
	release := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	return kernel{image: images[0], modules: filepath.Join(dir, "lib", "modules", release), release: release}, nil
}

// buildInitrd builds the guest's init and packs it with the modules it needs.
func (m *Machine) buildInitrd(ctx context.Context, k kernel) (string, error) {
	program := filepath.Join(m.dir, "init")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", program, "github.com/nsmigrate/nsmigrate/e2e/vm/init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the guest's init: %w\n%s", err, out)
	}
	path := filepath.Join(m.dir, "initrd")
	return path, writeInitrd(path, program, k.modules)
}

// arguments are QEMU's. Descriptor 3 is the agent's line, the following ones are the cables.
func arguments(config Config, k kernel, initrd, share string) []string {
	cpus, memory := config.CPUs, config.Memory
	if cpus == 0 {
		cpus = 2
	}
	if memory == 0 {
		memory = 2048
	}
	args := []string{
		"-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max",
		"-smp", strconv.Itoa(cpus), "-m", strconv.Itoa(memory),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-kernel", k.image, "-initrd", initrd,
		"-append", fmt.Sprintf("console=ttyS0 quiet loglevel=3 panic=-1 modules=%s share=%s", filepath.Dir(k.modules), share),
		"-virtfs", "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap",
		"-virtfs", "local,path=" + share + ",mount_tag=share,security_model=none,multidevs=remap",
		"-device", "virtio-rng-pci",
		"-device", "virtio-serial-pci",
		"-chardev", "socket,id=agent,fd=3", "-device", "virtserialport,chardev=agent,name=agent",
	}
	for i, nic := range config.NICs {
		args = append(args,
			"-netdev", fmt.Sprintf("socket,id=n%d,fd=%d", i, 4+i),
			"-device", fmt.Sprintf("virtio-net-pci,netdev=n%d,mac=%s", i, nic.MAC))
	}
	return args
}

// Run runs a command in the guest to its end. The error of one that failed is an *[ExitError].
func (m *Machine) Run(ctx context.Context, c Command) error {
	err := m.client.Run(ctx, c)
	if errors.Is(err, ErrGone) {
		m.wait(time.Second) // for its last words on the console
		return fmt.Errorf("%w; its console:\n%s", err, m.console.tail())
	}
	return err
}

// Shell runs a shell script in the guest and returns what it printed.
func (m *Machine) Shell(ctx context.Context, script string) (string, error) {
	var out strings.Builder
	err := m.Run(ctx, Command{Args: []string{"sh", "-euc", script}, Output: &out})
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", script, err, out.String())
	}
	return out.String(), err
}

// Close ends the guest and removes what it left.
func (m *Machine) Close() error {
	err := m.line.Close()
	if !m.wait(5 * time.Second) { // it powers itself off in less than one, if it still can
		_ = m.qemu.Process.Kill()
		<-m.ended
	}
	return errors.Join(err, os.RemoveAll(m.dir))
}

// wait waits until the guest has ended, but not too long.
func (m *Machine) wait(limit time.Duration) bool {
	select {
	case <-m.ended:
		return true
	case <-time.After(limit):
		return false
	}
}

// buffer collects what a guest's kernel says.
type buffer struct {
	mu   sync.Mutex
	text []byte
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text = append(b.text, p...)
	return len(p), nil
}

// tail returns the end of it.
func (b *buffer) tail() []byte {
	const enough = 8 << 10
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text[max(0, len(b.text)-enough):]
}
