package ptrace

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
)

// Process is a process with its threads, the main thread's id being the process's.
type Process struct {
	PID     int
	Threads []int
}

// Contexts tell where the threads of stopped processes are: what criu keeps in its own memory alone while it has them
// execute code of its own. As JSON they are for another process.
type Contexts struct {
	processes []saved
	late      bool // they come from another process: threads may have run since
}

type saved struct {
	PID     int
	Text    text
	Threads []context
}

type context struct {
	TID       int
	Registers registers
	Float     []byte
	Blocked   uint64 // signals
}

// MarshalJSON implements [json.Marshaler].
func (c *Contexts) MarshalJSON() ([]byte, error) { return json.Marshal(c.processes) }

// UnmarshalJSON implements [json.Unmarshaler].
func (c *Contexts) UnmarshalJSON(b []byte) error {
	c.late = true
	return json.Unmarshal(b, &c.processes)
}

// text is the place where criu has a process execute single system calls: the beginning of its first executable
// mapping (criu/parasite-syscall.c), where it puts the instruction and, behind it, a name.
type text struct {
	At    uintptr
	Bytes [16]byte
}

// criuMapping is the name of the memory that criu lends to the processes it dumps (compel/include/infect-priv.h).
const criuMapping = "/memfd:CRIUMFD"

// Save reads the contexts of processes whose threads are stopped by a signal. When it returns they are on their way back
// into that stop. Threads that are not stopped, because they wait in the kernel for what can't be interrupted, are left out.
func Save(processes []Process) (*Contexts, error) {
	var c Contexts
	for _, p := range processes {
		s, err := p.save()
		if err != nil {
			return &c, err
		}
		c.processes = append(c.processes, s)
	}
	return &c, nil
}

// few is how many threads are not worth a tracer of their own.
const few = 32

// save reads the contexts of a process's threads, of many by as many tracers as there are cores: a tracer is one thread.
func (p *Process) save() (saved, error) {
	size := max(few, (len(p.Threads)+runtime.GOMAXPROCS(0)-1)/runtime.GOMAXPROCS(0))
	parts := make([]saved, 0, runtime.GOMAXPROCS(0))
	var g errgroup.Group
	for tids := range slices.Chunk(p.Threads, size) {
		parts = append(parts, saved{PID: p.PID})
		part := &parts[len(parts)-1]
		g.Go(func() error { return onThread(func() error { return part.saveAll(tids) }) })
	}
	err := g.Wait()
	all := saved{PID: p.PID}
	for _, part := range parts {
		if part.Text.At != 0 {
			all.Text = part.Text
		}
		all.Threads = append(all.Threads, part.Threads...)
	}
	return all, err
}

func (p *saved) saveAll(tids []int) error {
	for _, tid := range tids {
		err := p.save(tid)
		switch {
		case errors.Is(err, unix.ESRCH), errors.Is(err, unix.EPERM), errors.Is(err, errNotStopped): // or exiting
		case err != nil:
			return fmt.Errorf("save the context of thread %d: %w", tid, err)
		}
	}
	return nil
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
	t := context{TID: tid, Float: make([]byte, 1024)}
	n, err := regset(unix.PTRACE_GETREGSET, tid, ntPRFPReg, t.Float)
	t.Float = t.Float[:n]
	err = errors.Join(err, t.Registers.read(tid), t.mask(unix.PTRACE_GETSIGMASK))
	if tid == p.PID && err == nil {
		err = p.Text.read(tid)
	}
	p.Threads = append(p.Threads, t)
	return err
}

// mask reads or writes which signals the thread blocks.
func (t *context) mask(op int) error {
	return request(op, t.TID, unsafe.Sizeof(t.Blocked), unsafe.Pointer(&t.Blocked))
}

// read finds the text of a process that is traced.
func (t *text) read(pid int) error {
	maps, err := proc.Default.Mappings(pid)
	if err != nil {
		return err
	}
	for _, m := range maps {
		if m.Perms[2] == 'x' && m.End-m.Start >= uint64(os.Getpagesize()) {
			t.At = uintptr(m.Start)
			_, err := unix.PtracePeekText(pid, t.At, t.Bytes[:])
			return err
		}
	}
	return nil
}

// Restore puts threads back that a criu which died has left elsewhere, and takes out of their processes what it left
// there. They have to be stopped by a signal, and are so again afterwards; none of them may have run code of its own since
// Save. Of contexts that another process saved that is not known: they are those of threads only that are still in criu's
// code.
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
			waits, err := p.restore(&traced, c.late)
			if err != nil {
				astray[p.PID] = true
				errs = append(errs, fmt.Errorf("put process %d back: %w", p.PID, err))
			}
			if waits {
				waiting = append(waiting, p.PID)
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
			if astray[p.PID] {
				continue
			}
			if err := cleanUp(p.PID); err != nil {
				errs = append(errs, fmt.Errorf("clean up process %d: %w", p.PID, err))
			}
		}
		return errors.Join(errs...)
	})
}

// restore puts a process back, unless its main thread waits for orders. It leaves the threads traced. Late, only what
// shows that criu had it is put back.
func (p *saved) restore(traced *[]int, late bool) (waits bool, err error) {
	from, to, err := criuMemory(p.PID)
	if errors.Is(err, proc.ErrGone) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var errs []error
	for i := range p.Threads {
		t := &p.Threads[i]
		err := seizeStopped(t.TID)
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EPERM) {
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("thread %d: %w", t.TID, err))
			continue
		}
		*traced = append(*traced, t.TID)
		var now registers
		if err := now.read(t.TID); err != nil {
			errs = append(errs, err)
			continue
		}
		astray := from <= now.pc() && now.pc() < to
		if t.TID == p.PID {
			injected, err := p.Text.restore(p.PID, late)
			errs = append(errs, err)
			if waits = astray; waits {
				continue
			}
			astray = injected && p.Text.contains(now.pc())
		}
		blocked, err := t.blocked()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		// criu has a thread block all signals but SIGTRAP while it executes code of its own (parasite_run in
		// compel/src/lib/infect.c). The trap at the end of that code is delivered to the thread if criu dies: to a handler
		// that may block all of them.
		astray = astray || blocked|trap == allBlocked && t.Blocked|trap != allBlocked
		if astray || !late {
			errs = append(errs, t.restore(&now))
		}
	}
	return waits, errors.Join(errs...)
}

// blocked returns which signals the thread blocks now.
func (t *context) blocked() (uint64, error) {
	now := context{TID: t.TID}
	err := now.mask(unix.PTRACE_GETSIGMASK)
	return now.Blocked, err
}

func (t *context) restore(now *registers) error {
	var errs []error
	if !bytes.Equal(now.bytes(), t.Registers.bytes()) {
		errs = append(errs, t.Registers.write(t.TID), setRegset(t.TID, ntPRFPReg, t.Float), clearBreakpoints(t.TID))
	}
	return errors.Join(append(errs, t.mask(unix.PTRACE_SETSIGMASK))...)
}

// Sets of signals.
const (
	trap       = 1 << (unix.SIGTRAP - 1)
	allBlocked = ^uint64(1<<(unix.SIGKILL-1) | 1<<(unix.SIGSTOP-1)) // which can be
)

// restore puts the text back, if something else is there; with care only if it looks like what criu puts there.
func (t *text) restore(pid int, care bool) (injected bool, err error) {
	if t.At == 0 {
		return false, nil
	}
	var now [len(t.Bytes)]byte
	if _, err := unix.PtracePeekText(pid, t.At, now[:]); care && errors.Is(err, unix.EIO) {
		return false, nil // it has another text by now
	} else if err != nil {
		return false, err
	}
	if now == t.Bytes || care && !bytes.HasPrefix(now[:], syscallInstruction[:]) {
		return false, nil
	}
	_, err = unix.PtracePokeText(pid, t.At, t.Bytes[:])
	return true, err
}

func (t *text) contains(pc uintptr) bool { return t.At <= pc && pc < t.At+uintptr(len(t.Bytes)) }

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
