package criu

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Place says where a criu process runs: the namespaces it enters before it executes, nil for the
// caller's. CRIU dumps only what differs from its own namespaces, so the place decides what it touches:
// inside the target's network namespace it neither saves nor locks any network state, and inside a
// target's mount namespace it sees "the host's" mounts.
type Place struct {
	Net   *os.File
	Mount *os.File
	PID   *os.File
}

// Inherit hands an open file to criu under the key that an external resource has (criu(8), --inherit-fd).
type Inherit struct {
	Key  string
	File *os.File
}

// Config starts a criu process.
type Config struct {
	Path    string // of the criu program
	Place   Place
	Images  *os.File // directory of the CRIU images
	Work    *os.File // directory of the log and the statistics
	Inherit []Inherit
	Pages   *PageServer // takes the memory of a dump; nil leaves it to images
	Await   bool        // the images of a restore may come later: see [Process.Arrived]
}

// Process is a running `criu swrk` that waits for its one request. Starting it early keeps the exec and
// the probing of kernel features out of the time in which a tree is frozen.
type Process struct {
	cmd     *exec.Cmd
	sock    *os.File
	work    *os.File
	inherit []Inherit
	pages   *int32     // descriptor of the page server, if there is one
	images  string     // directory
	gate    *os.File   // what criu waits at for its images; nil if they are there
	files   []*os.File // ours to close
	exited  chan struct{}
	status  error
	once    sync.Once
}

// Descriptors of a criu process.
const (
	fdSocket = 3 + iota
	fdImages
	fdWork
	fdConfig
	fdInherit // the first inherited file
)

// Start executes criu in its place. The process ends when it has served one request or when Close is called.
func Start(cfg Config) (*Process, error) {
	ours, theirs, err := socketpair()
	if err != nil {
		return nil, fmt.Errorf("start criu: %w", err)
	}
	defer theirs.Close()
	// The work directory has no field in the request that holds in every pid namespace; a configuration
	// file can name it relative to criu itself.
	conf, err := memfile("criu.conf", fmt.Sprintf("work-dir /proc/self/fd/%d\n", fdWork))
	if err != nil {
		ours.Close()
		return nil, fmt.Errorf("start criu: %w", err)
	}
	p := &Process{sock: ours, work: cfg.Work, inherit: cfg.Inherit, images: cfg.Images.Name(), files: []*os.File{ours, conf}, exited: make(chan struct{})}
	p.cmd = exec.Command(cfg.Path, "swrk", strconv.Itoa(fdSocket))
	p.cmd.Dir = "/"
	p.cmd.ExtraFiles = []*os.File{theirs, cfg.Images, cfg.Work, conf}
	for _, in := range cfg.Inherit {
		p.cmd.ExtraFiles = append(p.cmd.ExtraFiles, in.File)
	}
	if cfg.Pages != nil {
		p.pages = new(int32(3 + len(p.cmd.ExtraFiles)))
		p.cmd.ExtraFiles = append(p.cmd.ExtraFiles, cfg.Pages.peer)
	}
	if cfg.Await {
		theirs, err := p.makeGate(3 + len(p.cmd.ExtraFiles))
		if err != nil {
			p.closeFiles()
			return nil, fmt.Errorf("start criu: %w", err)
		}
		defer theirs.Close()
		p.cmd.ExtraFiles = append(p.cmd.ExtraFiles, theirs)
	}
	// A session of its own: Ctrl-C on the terminal is for us to handle, not for criu to die of, and a restored
	// tree without a session joins this one and not that of a shell.
	var handle int
	p.cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, PidFD: &handle}
	if err := cfg.Place.start(p.cmd); err != nil {
		p.closeFiles()
		return nil, fmt.Errorf("start criu: %w", err)
	}
	if cfg.Pages != nil {
		closed(cfg.Pages.peer) //nolint:errcheck // criu has it; without ours its end is seen
	}
	go func() {
		awaitExit(handle)
		p.status = p.cmd.Wait()
		// Its end of the socket may still be open in another process (ptrace.KeepFiles).
		if conn, err := ours.SyscallConn(); err == nil {
			conn.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_RD) }) //nolint:errcheck // closed already
		}
		close(p.exited)
	}()
	return p, nil
}

// awaitExit waits for the end of a process by its handle, which it closes. Whoever waits with wait4(2) or waitid(2) may
// take the stops of a process that another thread of ours traces (ptrace.KeepFiles) for its end.
func awaitExit(handle int) {
	if handle < 0 {
		return // a kernel without handles
	}
	defer unix.Close(handle)
	poll := []unix.PollFd{{Fd: int32(handle), Events: unix.POLLIN}}
	for {
		if n, err := unix.Poll(poll, -1); n > 0 || !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// start starts the command inside the place. Mount namespaces can only be entered by a thread that shares
// its file system context with no other, so the command is forked from a thread of its own that is thrown
// away afterwards.
func (p Place) start(cmd *exec.Cmd) error {
	return p.Do(cmd.Start)
}

// Do runs fn on a thread inside the place; with a pid namespace, only children that fn forks are in it.
func (p Place) Do(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime ends the thread with the goroutine
		done <- func() error {
			if err := p.enter(); err != nil {
				return err
			}
			return fn()
		}()
	}()
	return <-done
}

func (p Place) enter() error {
	if p.PID != nil {
		if err := unix.Setns(int(p.PID.Fd()), unix.CLONE_NEWPID); err != nil {
			return fmt.Errorf("enter pid namespace: %w", err)
		}
	}
	if p.Net != nil {
		if err := unix.Setns(int(p.Net.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
	}
	if p.Mount != nil {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("leave shared file system context: %w", err)
		}
		if err := unix.Setns(int(p.Mount.Fd()), unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("enter mount namespace: %w", err)
		}
	}
	return nil
}

// PID returns criu's pid in the caller's pid namespace.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// killGrace is how long criu may take to end by itself after its socket closed: it then has to roll a
// dump back or to kill a half-restored tree.
const killGrace = 30 * time.Second

// Close ends the process and waits for it. A criu that is in the middle of a request takes the closed
// socket as a veto and rolls back. Further calls do nothing.
func (p *Process) Close() error {
	var err error
	p.once.Do(func() {
		p.closeFiles()
		select {
		case <-p.exited:
		case <-time.After(killGrace):
			err = errors.New("criu did not end; killed")
			p.cmd.Process.Kill()
			<-p.exited
		}
	})
	return err
}

func (p *Process) closeFiles() {
	for _, f := range p.files {
		f.Close()
	}
}

func socketpair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	// criu reads its end blocking; ours stays non-blocking so that the runtime can poll it.
	if err := unix.SetNonblock(fds[1], false); err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "criu"), os.NewFile(uintptr(fds[1]), "criu-swrk"), nil
}

func memfile(name, text string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.WriteString(text); err != nil {
		f.Close()
		return nil, err
	}
	_, err = f.Seek(0, 0)
	return f, err
}
