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
	Kernel Kernel
	CPUs   int    // default 1: under emulation a second one costs more than it gives, but two guests side by side don't
	Memory int    // in MiB; default 2048
	Share  string // directory that the machine and its guests write, at the same place in all of them; "" is none
	NICs   []NIC  // named eth0, eth1 ... in the guest
}

// NIC is a network card of a guest.
type NIC struct {
	MAC   string
	Cable string // the two cards with the same one are connected
}

// Kernel is one of the kernels that guests can run.
type Kernel int

// They are of different versions.
const (
	Newest Kernel = iota // of those in the machine's package sources
	Older
)

// Machine is a guest that runs.
type Machine struct {
	client  *agent.Client
	line    *os.File // to the agent; the guest ends when it is closed
	console buffer
	qemu    *exec.Cmd
	ended   chan struct{}
}

const (
	// attempts is how often something is tried with guests of which one is gone.
	attempts = 3
	// bootTime is more than guests ever need to boot on a busy machine.
	bootTime = 5 * time.Minute
	// workTime is more than anything that is done with guests takes on a busy machine.
	workTime = 20 * time.Minute
	// lastWords is how long a guest whose kernel panics writes on its console at most.
	lastWords = time.Second
)

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

// Lab has what the guests of a test run share.
type Lab struct {
	kernels [2]kernel
	dir     string // of the lab's own files
	log     func(format string, args ...any)
}

// NewLab finds kernels, which it fetches if they aren't there, and builds what guests start with. The log is told of
// guests that are gone. The caller closes it.
func NewLab(ctx context.Context, log func(format string, args ...any)) (_ *Lab, err error) {
	l := &Lab{log: log}
	if l.dir, err = os.MkdirTemp("", "nsmigrate-vm-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if l.kernels, err = findKernels(ctx); err != nil {
		return nil, err
	}
	init := filepath.Join(l.dir, "init")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", init, "github.com/nsmigrate/nsmigrate/e2e/vm/init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the guests' init: %w\n%s", err, out)
	}
	for k := range l.kernels {
		if err := writeInitrd(l.initrd(Kernel(k)), init, l.kernels[k].modules); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// Close removes what the lab made.
func (l *Lab) Close() error { return os.RemoveAll(l.dir) }

func (l *Lab) initrd(k Kernel) string { return filepath.Join(l.dir, fmt.Sprintf("initrd%d", k)) }

// Do boots guests, calls fn with them, in the order of their configs, and ends them. If one does not come up or is gone
// before fn is done ([ErrGone]), most likely by a panic of its kernel, all of it is done once more, and once again. Any
// other error of fn is final. An error has what was on the guests' consoles.
func (l *Lab) Do(ctx context.Context, configs []Config, fn func(context.Context, []*Machine) error) error {
	for attempt := 1; ; attempt++ {
		err := l.once(ctx, configs, fn)
		if err == nil || !errors.Is(err, ErrGone) || attempt == attempts || ctx.Err() != nil {
			return err
		}
		l.log("attempt %d: %v", attempt, err)
	}
}

func (l *Lab) once(ctx context.Context, configs []Config, fn func(context.Context, []*Machine) error) error {
	machines, err := l.start(configs)
	defer func() {
		for _, m := range machines {
			m.end()
		}
	}()
	if err != nil {
		return fmt.Errorf("start virtual machines: %w", err)
	}
	err = bounded(ctx, bootTime, fmt.Errorf("%w: it did not come up in %v", ErrGone, bootTime), func(ctx context.Context) error {
		for i, m := range machines {
			if err := m.ready(ctx, &configs[i]); err != nil {
				return fmt.Errorf("boot virtual machine %d: %w", i, err)
			}
		}
		return nil
	})
	if err == nil {
		err = bounded(ctx, workTime, fmt.Errorf("no end after %v", workTime), func(ctx context.Context) error { return fn(ctx, machines) })
	}
	if err == nil {
		return nil
	}
	for i, m := range machines {
		// Whatever fn made of it: that a guest is gone explains the rest.
		if m.wait(lastWords) && !errors.Is(err, ErrGone) {
			err = fmt.Errorf("%w: %w", ErrGone, err)
		}
		if text := m.console.tail(); len(text) > 0 {
			err = fmt.Errorf("%w\nconsole of virtual machine %d:\n%s", err, i, text)
		}
	}
	return err
}

// bounded calls fn. If it takes too long, its error says so in the given words.
func bounded(ctx context.Context, limit time.Duration, late error, fn func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, late)
	defer cancel()
	err := fn(ctx)
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, late) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	return err
}

// start starts guests. Those that it returns with an error run, too.
func (l *Lab) start(configs []Config) (machines []*Machine, err error) {
	loose := map[string]*os.File{} // ends of cables
	defer func() {
		for _, end := range loose {
			end.Close()
		}
	}()
	for i := range configs {
		var cables []*os.File
		for _, nic := range configs[i].NICs {
			end := loose[nic.Cable]
			delete(loose, nic.Cable)
			if end == nil {
				if end, loose[nic.Cable], err = socketPair(); err != nil {
					break
				}
			}
			defer end.Close() // QEMU has a descriptor of its own
			cables = append(cables, end)
		}
		if err != nil {
			return machines, err
		}
		m, err := l.startOne(&configs[i], cables)
		if err != nil {
			return machines, err
		}
		machines = append(machines, m)
	}
	return machines, nil
}

func (l *Lab) startOne(config *Config, cables []*os.File) (*Machine, error) {
	line, guest, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer guest.Close()
	m := &Machine{line: line, ended: make(chan struct{})}
	m.qemu = exec.Command("qemu-system-x86_64", arguments(config, &l.kernels[config.Kernel], l.initrd(config.Kernel))...)
	m.qemu.ExtraFiles = append([]*os.File{guest}, cables...)
	m.qemu.Stdout, m.qemu.Stderr = &m.console, &m.console
	// It ends with this program, however that ends; a signal at its terminal is for this program alone.
	m.qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := m.launch(); err != nil {
		return nil, errors.Join(err, line.Close())
	}
	m.client = agent.NewClient(line)
	return m, nil
}

// socketPair returns two connected sockets.
func socketPair() (a, b *os.File, err error) {
	// Go closes a file that somebody reads from at once only if it does not block.
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("pair of sockets: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "socket"), os.NewFile(uintptr(fds[1]), "socket"), nil
}

// ready waits until the guest takes commands.
func (m *Machine) ready(ctx context.Context, config *Config) error {
	err := m.client.Ready(ctx)
	if err == nil && len(config.NICs) > 0 { // nothing in the guest looks for devices
		err = m.Run(ctx, Command{Args: []string{"modprobe", "virtio_net"}})
	}
	return err
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
type kernel struct{ image, modules string }

//go:embed kernel.sh
var kernelScript string

// findKernels returns the kernels in the order of [Kernel].
func findKernels(ctx context.Context) (kernels [2]kernel, err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return kernels, err
	}
	cmd := exec.CommandContext(ctx, "bash", "-c", kernelScript)
	cmd.Env = append(os.Environ(), "CACHE="+filepath.Join(cache, "nsmigrate", "vm"))
	var trouble bytes.Buffer
	cmd.Stderr = &trouble
	out, err := cmd.Output()
	if err != nil {
		return kernels, fmt.Errorf("find kernels: %w\n%s", err, trouble.Bytes())
	}
	dirs := strings.Fields(string(out))
	if len(dirs) != len(kernels) {
		return kernels, fmt.Errorf("find kernels: got %q", dirs)
	}
	for i, dir := range dirs {
		if kernels[i], err = unpacked(dir); err != nil {
			return kernels, err
		}
	}
	return kernels, nil
}

// unpacked finds the parts of a kernel that is unpacked in a directory.
func unpacked(dir string) (kernel, error) {
	modules, err := filepath.Glob(filepath.Join(dir, "lib", "modules", "*"))
	if err != nil || len(modules) != 1 {
		return kernel{}, fmt.Errorf("modules of %d kernels in %s", len(modules), dir)
	}
	k := kernel{image: filepath.Join(dir, "boot", "vmlinuz-"+filepath.Base(modules[0])), modules: modules[0]}
	if _, err := os.Stat(k.image); errors.Is(err, os.ErrNotExist) {
		k.image = filepath.Join(k.modules, "vmlinuz") // its place since Linux 7
	}
	return k, nil
}

// arguments are QEMU's. Descriptor 3 is the agent's line, the following ones are the cables.
func arguments(config *Config, k *kernel, initrd string) []string {
	cpus, memory := config.CPUs, config.Memory
	if cpus == 0 {
		cpus = 1
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
		"-append", fmt.Sprintf("console=ttyS0 quiet loglevel=3 panic=-1 modules=%s share=%s", filepath.Dir(k.modules), config.Share),
		"-virtfs", "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap",
		"-device", "virtio-rng-pci",
		"-device", "virtio-serial-pci",
		"-chardev", "socket,id=agent,fd=3", "-device", "virtserialport,chardev=agent,name=agent",
	}
	if config.Share != "" {
		args = append(args, "-virtfs", "local,path="+config.Share+",mount_tag=share,security_model=none,multidevs=remap")
	}
	for i, nic := range config.NICs {
		args = append(args,
			"-netdev", fmt.Sprintf("socket,id=n%d,fd=%d", i, 4+i),
			"-device", fmt.Sprintf("virtio-net-pci,netdev=n%d,mac=%s", i, nic.MAC))
	}
	return args
}

// Run runs a command in the guest to its end. The error of one that failed is an *[ExitError].
func (m *Machine) Run(ctx context.Context, c Command) error { return m.client.Run(ctx, c) }

// Shell runs a shell script in the guest and returns what it printed.
func (m *Machine) Shell(ctx context.Context, script string) (string, error) {
	var out strings.Builder
	err := m.Run(ctx, Command{Args: []string{"sh", "-euc", script}, Output: &out})
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", script, err, out.String())
	}
	return out.String(), err
}

// end ends the guest.
func (m *Machine) end() {
	m.line.Close()
	if !m.wait(5 * time.Second) { // it powers itself off in less than one, if it still can
		_ = m.qemu.Process.Kill()
		<-m.ended
	}
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
