package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Host is a machine made of namespaces: network, processes, mounts and hostname of its own, the file
// system shared with the real machine except for /run, /tmp and /dev/shm.
type Host struct {
	Name string
	Dir  string // the host's own place for images and the like; visible everywhere at the same path
	IPv4 string
	IPv6 string

	shared string // the lab's directory, see initSpec
	init   *exec.Cmd
	alive  io.Closer // init ends when it is closed
	pidfd  int

	mu      sync.Mutex
	started []*Process
}

func newHost(spec initSpec, dir string) (*Host, error) {
	h := &Host{Name: spec.hostname, Dir: dir, shared: spec.shared}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	h.init = &exec.Cmd{
		Path:   "/proc/self/exe",
		Args:   spec.args(),
		Env:    os.Environ(),
		Dir:    "/",
		Stderr: os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{
			Setsid:     true,
			Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS,
		},
	}
	in, err := h.init.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := h.init.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := h.init.Start(); err != nil {
		return nil, fmt.Errorf("start host %s: %w", h.Name, err)
	}
	h.alive = in
	line, err := bufio.NewReader(out).ReadString('\n')
	if strings.TrimSpace(line) != "ready" {
		h.close()
		return nil, errors.Join(fmt.Errorf("start host %s: %s", h.Name, strings.TrimSpace(line)), err)
	}
	h.pidfd, err = unix.PidfdOpen(h.init.Process.Pid, 0)
	if err != nil {
		h.close()
		return nil, fmt.Errorf("start host %s: %w", h.Name, err)
	}
	return h, nil
}

// PID is the host's init as the real machine sees it.
func (h *Host) PID() int { return h.init.Process.Pid }

// Path returns where the real machine finds a file of the host, its own /run, /tmp and /dev/shm included.
func (h *Host) Path(path string) string { return fmt.Sprintf("/proc/%d/root%s", h.PID(), path) }

// do runs fn on a thread that is inside the host's namespaces. The thread ends afterwards.
func (h *Host) do(fn func() error) error {
	return h.enter(unix.CLONE_NEWNET|unix.CLONE_NEWPID|unix.CLONE_NEWNS|unix.CLONE_NEWUTS, fn)
}

// doNet is do in the network namespace only: process ids and files are the real machine's.
func (h *Host) doNet(fn func() error) error { return h.enter(unix.CLONE_NEWNET, fn) }

func (h *Host) enter(kinds int, fn func() error) error {
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil { // setns(2) of a mount namespace demands it
			return fmt.Errorf("enter host %s: %w", h.Name, err)
		}
		if err := unix.Setns(h.pidfd, kinds); err != nil {
			return fmt.Errorf("enter host %s: %w", h.Name, err)
		}
		return fn()
	})
}

// onThread runs fn on a thread that is thrown away afterwards, with whatever namespaces fn left it in.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- fn()
	}()
	return <-done
}

// Process is a program that runs in a host.
type Process struct {
	Cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// Start runs a prepared command in the host, in a session of its own. Its process id is the real machine's;
// it is killed when the lab closes. Nobody needs to call Wait for it to be reaped.
func (h *Host) Start(cmd *exec.Cmd) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	if !cmd.SysProcAttr.Setctty {
		cmd.SysProcAttr.Setsid = true
	}
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
	if cmd.Env == nil {
		cmd.Env = Environ()
	}
	p := &Process{Cmd: cmd, done: make(chan struct{})}
	// exec opens /dev/null for missing streams and clones on the calling thread: all inside the host.
	if err := h.do(cmd.Start); err != nil {
		return nil, fmt.Errorf("%s: start %s: %w", h.Name, strings.Join(cmd.Args, " "), err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.started = append(h.started, p)
	return p, nil
}

// Environ is the environment of a login on a host: what this program was told about the real machine's
// directories is of no use there, and the hosts share /var, where journals would be.
func Environ() []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "TMPDIR=") || strings.HasPrefix(v, "XDG_")
	})
	return append(env, "NSMIGRATE_STATE_DIR="+StateDir)
}

// StateDir is where a host's journals of migrations are.
const StateDir = "/run/nsmigrate"

// Wait returns when the process has ended or the context is done.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Signal sends a signal to the process if it still runs.
func (p *Process) Signal(sig os.Signal) error {
	err := p.Cmd.Process.Signal(sig)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// PID is the process's id as the real machine sees it.
func (p *Process) PID() int { return p.Cmd.Process.Pid }

// Result is what a finished command said.
type Result struct {
	Args   []string
	Code   int // exit code; 128 and the signal's number if it was killed
	Stdout string
	Stderr string
}

// Output is both streams of the command.
func (r Result) Output() string { return r.Stdout + r.Stderr }

func (r Result) String() string {
	return fmt.Sprintf("$ %s\n%s[exit code %d]", strings.Join(r.Args, " "), r.Output(), r.Code)
}

// Run runs a command to its end, which may be any exit code. Only what keeps it from running is an error.
func (h *Host) Run(ctx context.Context, args ...string) (Result, error) {
	return h.RunCmd(ctx, exec.CommandContext(ctx, args[0], args[1:]...))
}

// RunCmd is Run for a prepared command, whose output streams are set here.
func (h *Host) RunCmd(ctx context.Context, cmd *exec.Cmd) (Result, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	p, err := h.Start(cmd)
	if err != nil {
		return Result{}, err
	}
	<-p.done // a context made the command killable already
	r := Result{Args: cmd.Args, Stdout: stdout.String(), Stderr: stderr.String()}
	if ctx.Err() != nil {
		return r, fmt.Errorf("%s: %v: %w", h.Name, r, ctx.Err())
	}
	var exit *exec.ExitError
	switch {
	case errors.As(p.err, &exit) && exit.ProcessState.Exited():
		r.Code = exit.ExitCode()
	case errors.As(p.err, &exit):
		r.Code = 128 + int(exit.Sys().(syscall.WaitStatus).Signal())
	case p.err != nil:
		return r, fmt.Errorf("%s: %v: %w", h.Name, r, p.err)
	}
	return r, nil
}

// Output runs a command that has to succeed and returns its standard output.
func (h *Host) Output(ctx context.Context, args ...string) (string, error) {
	r, err := h.Run(ctx, args...)
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("%s: %v", h.Name, r)
	}
	return r.Stdout, err
}

// Script runs lines of shell that all have to succeed.
func (h *Host) Script(ctx context.Context, script string) error {
	_, err := h.Output(ctx, "sh", "-euc", script)
	return err
}

// ProcessInfo describes a process of a host.
type ProcessInfo struct {
	PID     int // in the host
	Name    string
	Command string
	State   string // R, S, Z ...
}

// Processes lists the processes in the host, those in pid namespaces below included, init not.
func (h *Host) Processes() []ProcessInfo {
	var list []ProcessInfo
	dirs, _ := filepath.Glob(h.Path("/proc/[0-9]*"))
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		status, err := os.ReadFile(dir + "/status")
		if err != nil || pid == 1 {
			continue // ended meanwhile
		}
		command, _ := os.ReadFile(dir + "/cmdline")
		list = append(list, ProcessInfo{
			PID:     pid,
			Name:    StatusField(status, "Name"),
			Command: strings.TrimSpace(strings.ReplaceAll(string(command), "\x00", " ")),
			State:   StatusField(status, "State")[:1],
		})
	}
	return list
}

// StatusField returns a field of a /proc/PID/status.
func StatusField(status []byte, name string) string {
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func (h *Host) close() {
	h.alive.Close()
	h.init.Wait()
	if h.pidfd > 0 {
		unix.Close(h.pidfd)
	}
	for _, p := range h.started {
		<-p.done
	}
}

// Kill signals a process by its id in the host.
func (h *Host) Kill(pid int, sig syscall.Signal) error {
	// A directory of /proc serves as a pidfd; the id itself means another process out here.
	dir, err := os.Open(h.Path(fmt.Sprintf("/proc/%d", pid)))
	if err != nil {
		return fmt.Errorf("%s: signal process %d: %w", h.Name, pid, err)
	}
	defer dir.Close()
	if err := unix.PidfdSendSignal(int(dir.Fd()), sig, nil, 0); err != nil {
		return fmt.Errorf("%s: signal process %d: %w", h.Name, pid, err)
	}
	return nil
}
