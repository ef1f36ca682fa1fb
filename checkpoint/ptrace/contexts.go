package ptrace

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
)

// Process is a process with its threads, the main thread's id being the process's.
type Process struct {
	PID     int
	Threads []int
}

// Contexts tell where the threads of stopped processes are: what criu keeps in its own memory alone while it has them
// execute code of its own.
type Contexts struct{ processes []saved }

type saved struct {
	pid     int
	text    text
	threads []context
}

type context struct {
	tid       int
	registers registers
	float     []byte
	blocked   uint64 // signals
}

// text is the place where criu has a process execute single system calls: the beginning of its first executable
// mapping (criu/parasite-syscall.c), where it puts the instruction and, behind it, a name.
type text struct {
	at    uintptr
	bytes [16]byte
}

// criuMapping is the name of the memory that criu lends to the processes it dumps (compel/include/infect-priv.h).
const criuMapping = "/memfd:CRIUMFD"

// Save reads the contexts of processes whose threads are stopped by a signal. When it returns they are on their way back
// into that stop. Threads that are not stopped, because they wait in the kernel for what can't be interrupted, are left out.
func Save(processes []Process) (*Contexts, error) {
	var c Contexts
	err := onThread(func() error {
		for _, p := range processes {
			s := saved{pid: p.PID}
			for _, tid := range p.Threads {
				err := s.save(tid)
				switch {
				case errors.Is(err, unix.ESRCH), errors.Is(err, unix.EPERM), errors.Is(err, errNotStopped): // or exiting
				case err != nil:
					return fmt.Errorf("save the context of thread %d: %w", tid, err)
				}
			}
			c.processes = append(c.processes, s)
		}
		return nil
	})
	return &c, err
}

var errNotStopped = errors.New("the thread is not stopped")

// seizeStopped begins to trace a thread that a signal has stopped. The kernel turns one stop into the other before the
// request returns (ptrace_attach in kernel/ptrace.c); the wait takes the news of it, which a later one would take for that
// of another stop.
func seizeStopped(tid int) error {
	// One that runs could be let go only when it has stopped, which may take long.
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", tid))
	if errors.Is(err, os.ErrNotExist) {
		return unix.ESRCH
	}
	if err != nil {
		return err
	}
	if state := stat[bytes.LastIndexByte(stat, ')')+1:]; !bytes.HasPrefix(state, []byte(" T")) {
		return errNotStopped
	}
	if err := unix.PtraceSeize(tid); err != nil {
		return err
	}
	return awaitStop(tid)
}

func (p *saved) save(tid int) (err error) {
	if err := seizeStopped(tid); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.PtraceDetach(tid)) }()
	t := context{tid: tid, float: make([]byte, 1024)}
	n, err := regset(unix.PTRACE_GETREGSET, tid, ntPRFPReg, t.float)
	t.float = t.float[:n]
	err = errors.Join(err, t.registers.read(tid), t.mask(unix.PTRACE_GETSIGMASK))
	if tid == p.pid && err == nil {
		err = p.text.read(tid)
	}
	p.threads = append(p.threads, t)
	return err
}

// mask reads or writes which signals the thread blocks.
func (t *context) mask(op int) error {
	return request(op, t.tid, unsafe.Sizeof(t.blocked), unsafe.Pointer(&t.blocked))
}

// read finds the text of a process that is traced.
func (t *text) read(pid int) error {
	maps, err := proc.Default.Mappings(pid)
	if err != nil {
		return err
	}
	for _, m := range maps {
		if m.Perms[2] == 'x' && m.End-m.Start >= uint64(os.Getpagesize()) {
			t.at = uintptr(m.Start)
			_, err := unix.PtracePeekText(pid, t.at, t.bytes[:])
			return err
		}
	}
	return nil
}

// Restore puts threads back that a criu which died has left elsewhere, and takes out of their processes what it left
// there. They have to be stopped by a signal, and are so again afterwards; none of them may have run code of its own since
// Save.
//
// release is called when no thread but those that wait for criu's orders is astray any more. It must close criu's files:
// those threads then go back by themselves.
func (c *Contexts) Restore(release func() error) error {
	return c.restore(release, returnTime)
}

// returnTime is how long a thread may take from the end of criu's socket to its return.
const returnTime = 10 * time.Second

func (c *Contexts) restore(release func() error, within time.Duration) error {
	return onThread(func() (err error) {
		var errs []error
		var traced []int
		defer func() {
			for _, tid := range traced {
				if derr := unix.PtraceDetach(tid); !errors.Is(derr, unix.ESRCH) {
					err = errors.Join(err, derr)
				}
			}
		}()
		var waiting []int            // for orders
		astray := make(map[int]bool) // perhaps still in criu's code, which has to stay then
		for _, p := range c.processes {
			waits, err := p.restore(&traced)
			if err != nil {
				astray[p.pid] = true
				errs = append(errs, fmt.Errorf("put process %d back: %w", p.pid, err))
			}
			if waits {
				waiting = append(waiting, p.pid)
			}
		}
		errs = append(errs, release())
		for _, pid := range waiting {
			if err := awaitReturn(pid, within); err != nil {
				astray[pid] = true
				errs = append(errs, fmt.Errorf("put process %d back: %w", pid, err))
			}
		}
		for _, p := range c.processes {
			if astray[p.pid] {
				continue
			}
			if err := cleanUp(p.pid); err != nil {
				errs = append(errs, fmt.Errorf("clean up process %d: %w", p.pid, err))
			}
		}
		return errors.Join(errs...)
	})
}

// restore puts a process back, unless its main thread waits for orders. It leaves the threads traced.
func (p *saved) restore(traced *[]int) (waits bool, err error) {
	from, to, err := criuMemory(p.pid)
	if errors.Is(err, proc.ErrGone) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var errs []error
	for i := range p.threads {
		t := &p.threads[i]
		err := seizeStopped(t.tid)
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EPERM) {
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("thread %d: %w", t.tid, err))
			continue
		}
		*traced = append(*traced, t.tid)
		var now registers
		if err := now.read(t.tid); err != nil {
			errs = append(errs, err)
			continue
		}
		if t.tid == p.pid {
			errs = append(errs, p.text.restore(p.pid))
			if waits = from <= now.pc() && now.pc() < to; waits {
				continue
			}
		}
		errs = append(errs, t.restore(&now))
	}
	return waits, errors.Join(errs...)
}

func (t *context) restore(now *registers) error {
	var errs []error
	if !bytes.Equal(now.bytes(), t.registers.bytes()) {
		errs = append(errs, t.registers.write(t.tid), setRegset(t.tid, ntPRFPReg, t.float), clearBreakpoints(t.tid))
	}
	return errors.Join(append(errs, t.mask(unix.PTRACE_SETSIGMASK))...)
}

func (t *text) restore(pid int) error {
	if t.at == 0 {
		return nil
	}
	var now [len(t.bytes)]byte
	if _, err := unix.PtracePeekText(pid, t.at, now[:]); err != nil {
		return err
	}
	if now == t.bytes {
		return nil
	}
	_, err := unix.PtracePokeText(pid, t.at, t.bytes[:])
	return err
}

// criuMemory finds the memory that criu lent to a process.
func criuMemory(pid int) (from, to uintptr, err error) {
	maps, err := proc.Default.Mappings(pid)
	for _, m := range maps {
		if m.Path == criuMapping && m.Deleted {
			if from == 0 {
				from = uintptr(m.Start)
			}
			to = uintptr(m.End) // code and data are mapped in a row
		}
	}
	return from, to, err
}

// awaitReturn lets a traced thread that waited for orders from criu finish: it finds the socket closed, closes its own
// files and returns to where it was by rt_sigreturn(2). The thread is stopped afterwards, also if it does not come back in
// time.
func awaitReturn(tid int, within time.Duration) error {
	if err := unix.PtraceSetOptions(tid, unix.PTRACE_O_TRACESYSGOOD); err != nil {
		return err
	}
	const systemCall = unix.SIGTRAP | 0x80
	var signal int
	for end, returns := time.Now().Add(within), false; time.Now().Before(end); {
		if err := unix.PtraceSyscall(tid, signal); err != nil {
			return err
		}
		status, err := awaitStatus(tid, time.Until(end))
		if errors.Is(err, errNoStop) {
			if err := errors.Join(unix.PtraceInterrupt(tid), awaitStop(tid)); err != nil {
				return err
			}
			break
		}
		if err != nil {
			return err
		}
		signal = 0
		switch at := status.StopSignal(); {
		case at == systemCall && returns:
			return clearBreakpoints(tid)
		case at == systemCall:
			var now registers
			if err := now.read(tid); err != nil {
				return err
			}
			returns = now.call() == unix.SYS_RT_SIGRETURN
		case at == unix.SIGTRAP || status>>16 != 0: // criu's breakpoint; the news that the process is stopped
		default:
			signal = int(at)
		}
	}
	return errNoReturn
}

var errNoReturn = errors.New("the thread does not come back from criu's code")

// cleanUp takes criu's memory out of a process whose threads are back and traced.
func cleanUp(pid int) error {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return err
	}
	for _, path := range files {
		if link, err := os.Readlink(path); err != nil || link != criuMapping+" (deleted)" {
			continue
		}
		fd, err := strconv.ParseUint(filepath.Base(path), 10, 31)
		if err != nil {
			return err
		}
		if _, _, err := call(pid, unix.SYS_CLOSE, fd); err != nil {
			return err
		}
	}
	from, to, err := criuMemory(pid)
	if err != nil || from == 0 {
		return nil //nolint:nilerr // it has ended, or nothing is there
	}
	result, _, err := call(pid, unix.SYS_MUNMAP, uint64(from), uint64(to-from))
	if err == nil && result < 0 {
		err = unix.Errno(-result)
	}
	return err
}
