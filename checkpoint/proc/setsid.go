package proc

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Setsid makes another process the leader of a session of its own, by setsid(2) in its name. CRIU can't dump a
// process whose session's leader is outside of its pid namespace, which is how `unshare --pid --fork` starts its
// child. The process must not lead a process group and must not have a controlling terminal, which it would lose.
//
// The process is stopped with ptrace(2) for a moment, executes one system call instruction in place of its next one,
// and goes on with all registers and memory as they were.
func Setsid(pid int) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // ptrace is a relation between threads; the thread ends with the goroutine
		done <- setsid(pid)
	}()
	if err := <-done; err != nil {
		return fmt.Errorf("give process %d a session: %w", pid, err)
	}
	return nil
}

func setsid(pid int) (err error) {
	if err := unix.PtraceSeize(pid); err != nil {
		return fmt.Errorf("ptrace: %w", err)
	}
	defer func() { err = errors.Join(err, unix.PtraceDetach(pid)) }()
	if err := unix.PtraceInterrupt(pid); err != nil {
		return fmt.Errorf("interrupt: %w", err)
	}
	if err := awaitStop(pid); err != nil {
		return err
	}
	var saved registers
	if err := saved.read(pid); err != nil {
		return fmt.Errorf("read registers: %w", err)
	}
	text := make([]byte, len(syscallInstruction))
	if _, err := unix.PtracePeekText(pid, saved.pc(), text); err != nil {
		return fmt.Errorf("read text: %w", err)
	}
	defer func() {
		_, perr := unix.PtracePokeText(pid, saved.pc(), text)
		err = errors.Join(err, perr, saved.write(pid))
	}()
	if _, err := unix.PtracePokeText(pid, saved.pc(), syscallInstruction[:]); err != nil {
		return fmt.Errorf("write text: %w", err)
	}
	call := saved
	call.prepare(unix.SYS_SETSID)
	if err := call.write(pid); err != nil {
		return fmt.Errorf("write registers: %w", err)
	}
	if err := unix.PtraceSingleStep(pid); err != nil {
		return fmt.Errorf("step: %w", err)
	}
	if err := awaitStop(pid); err != nil {
		return err
	}
	if err := call.read(pid); err != nil {
		return fmt.Errorf("read registers: %w", err)
	}
	if result := call.result(); result < 0 {
		return fmt.Errorf("setsid: %w", unix.Errno(-result))
	}
	return nil
}

// awaitStop waits until the traced process has stopped. A process that sleeps uninterruptibly may take its time.
func awaitStop(pid int) error {
	for deadline := time.Now().Add(2 * time.Second); ; {
		var status unix.WaitStatus
		got, err := unix.Wait4(pid, &status, unix.WNOHANG|unix.WALL, nil)
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("wait: %w", err)
		case got == pid && status.Stopped():
			return nil
		case got == pid:
			return ErrGone
		case time.Now().After(deadline):
			return errors.New("it does not stop")
		}
		time.Sleep(100 * time.Microsecond) // ptrace has no event that could be waited for with a time limit
	}
}
