// Package ptrace does to other processes what only their tracer can: it runs system calls in their name, and puts their
// threads back where they were when the tracer that moved them, criu, has died.
package ptrace

import (
	"errors"
	"fmt"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
)

// ErrGone means that a process ended under its tracer.
var ErrGone = errors.New("process is gone")

// Sets of registers, linux/elf.h.
const (
	ntPRStatus = 1 // general purpose
	ntPRFPReg  = 2 // floating point
)

// onThread runs fn on a thread of its own: being traced is a relation between threads. What fn traces it has to let go.
// The thread need not end with the goroutine: the process's first one never does.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		done <- fn()
	}()
	return <-done
}

// request is ptrace(2) for what golang.org/x/sys/unix has no function for.
func request(op, tid int, addr uintptr, data unsafe.Pointer) error {
	if _, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(op), uintptr(tid), addr, uintptr(data), 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// regset reads or writes a set of registers; it returns how much of b the kernel knows.
func regset(op, tid, set int, b []byte) (int, error) {
	if len(b) == 0 {
		return 0, unix.EINVAL
	}
	vec := unix.Iovec{Base: &b[0]}
	vec.SetLen(len(b))
	err := request(op, tid, uintptr(set), unsafe.Pointer(&vec))
	return int(vec.Len), err
}

func setRegset(tid, set int, b []byte) error {
	_, err := regset(unix.PTRACE_SETREGSET, tid, set, b)
	return err
}

func (r *registers) read(tid int) error {
	_, err := regset(unix.PTRACE_GETREGSET, tid, ntPRStatus, r.bytes())
	return err
}

func (r *registers) write(tid int) error { return setRegset(tid, ntPRStatus, r.bytes()) }

// interrupt begins to trace a thread and stops it.
func interrupt(tid int) error {
	if err := unix.PtraceSeize(tid); err != nil {
		return fmt.Errorf("ptrace: %w", err)
	}
	err := unix.PtraceInterrupt(tid)
	if err == nil {
		err = awaitStop(tid)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("interrupt: %w", err), unix.PtraceDetach(tid))
	}
	return nil
}

// awaitStop waits until a traced thread has stopped. One that sleeps uninterruptibly may take its time.
func awaitStop(tid int) error {
	_, err := awaitStatus(tid, stopTime)
	return err
}

// stopTime is how long a thread may take to stop.
const stopTime = 10 * time.Second

var errNoStop = errors.New("it does not stop")

func awaitStatus(tid int, within time.Duration) (unix.WaitStatus, error) {
	for begun := time.Now(); ; {
		var status unix.WaitStatus
		got, err := unix.Wait4(tid, &status, unix.WNOHANG|unix.WALL, nil)
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return 0, fmt.Errorf("wait: %w", err)
		case got == tid && status.Stopped():
			return status, nil
		case got == tid:
			return status, ErrGone
		case time.Since(begun) > within:
			return 0, errNoStop
		case time.Since(begun) < 20*time.Microsecond:
			runtime.Gosched()
		default:
			proc.Pause(20 * time.Microsecond) // ptrace has no event that could be waited for with a time limit
		}
	}
}

// call lets a stopped thread execute a system call in place of its next instruction. All its registers, and its memory
// but for what the call changes, are as before afterwards. The message is that of a ptrace event on the way, if one is
// enabled.
func call(tid int, number uint64, args ...uint64) (result, message int, err error) {
	var saved registers
	if err := saved.read(tid); err != nil {
		return 0, 0, fmt.Errorf("read registers: %w", err)
	}
	text := make([]byte, len(syscallInstruction))
	if _, err := unix.PtracePeekText(tid, saved.pc(), text); err != nil {
		return 0, 0, fmt.Errorf("read text: %w", err)
	}
	defer func() {
		_, perr := unix.PtracePokeText(tid, saved.pc(), text)
		err = errors.Join(err, perr, saved.write(tid))
	}()
	if _, err := unix.PtracePokeText(tid, saved.pc(), syscallInstruction[:]); err != nil {
		return 0, 0, fmt.Errorf("write text: %w", err)
	}
	now := saved
	now.prepare(number, [5]uint64(append(args, make([]uint64, 5-len(args))...)))
	if err := now.write(tid); err != nil {
		return 0, 0, fmt.Errorf("write registers: %w", err)
	}
	for done := false; !done; {
		if err := unix.PtraceSingleStep(tid); err != nil {
			return 0, 0, fmt.Errorf("step: %w", err)
		}
		status, err := awaitStatus(tid, stopTime)
		switch {
		case err != nil:
			return 0, 0, err
		case status>>16 != 0: // an event within the call, or the news that the process is stopped
			at, err := unix.PtraceGetEventMsg(tid)
			if err != nil {
				return 0, 0, fmt.Errorf("ptrace: %w", err)
			}
			message = int(at)
		case status.StopSignal() == unix.SIGTRAP:
			done = true
		default: // a signal on its way to the thread has to wait
			defer unix.Syscall(unix.SYS_TKILL, uintptr(tid), uintptr(status.StopSignal()), 0)
		}
	}
	if err := now.read(tid); err != nil {
		return 0, 0, fmt.Errorf("read registers: %w", err)
	}
	return now.result(), message, nil
}

// Setsid makes another process the leader of a session of its own, by setsid(2) in its name. CRIU can't dump a
// process whose session's leader is outside of its pid namespace, which is how `unshare --pid --fork` starts its
// child. The process must not lead a process group and must not have a controlling terminal, which it would lose.
//
// The process is stopped for a moment and goes on with all registers and memory as they were.
func Setsid(pid int) error {
	err := onThread(func() (err error) {
		if err := interrupt(pid); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, unix.PtraceDetach(pid)) }()
		result, _, err := call(pid, unix.SYS_SETSID)
		if err == nil && result < 0 {
			err = fmt.Errorf("setsid: %w", unix.Errno(-result))
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("give process %d a session: %w", pid, err)
	}
	return nil
}
