package ptrace

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// JoinTime has a process with one thread enter the time namespace of another (time_namespaces(7)), which it calls of: it
// opens a handle of it, enters and closes the handle again. A process with more threads, as each of Go is, can't do so
// itself. It is stopped for a moment.
func JoinTime(pid, of int) error {
	err := onThread(func() (err error) {
		if err := interrupt(pid); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, unix.PtraceDetach(pid)) }()
		handle, _, err := call(pid, unix.SYS_PIDFD_OPEN, uint64(of), 0)
		if err != nil || handle < 0 {
			return answer(err, "pidfd_open", handle)
		}
		entered, _, err := call(pid, unix.SYS_SETNS, uint64(handle), unix.CLONE_NEWTIME)
		_, _, cerr := call(pid, unix.SYS_CLOSE, uint64(handle))
		return errors.Join(answer(err, "setns", entered), cerr)
	})
	if err != nil {
		return fmt.Errorf("have process %d enter the time namespace of %d: %w", pid, of, err)
	}
	return nil
}

// answer is the error of a call: one of its own, or what the kernel answered.
func answer(err error, name string, result int) error {
	if err == nil && result < 0 {
		err = fmt.Errorf("%s: %w", name, unix.Errno(-result))
	}
	return err
}
