package journal

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Locks belong to the open file and not to the process: no other descriptor of the same file that is closed takes
// them away, and unlike those of flock(2) they can be asked for without being taken for a moment.

func lock(f *os.File) error {
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &l)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return ErrBusy
	}
	return os.NewSyscallError("lock", err)
}

func locked(f *os.File) (bool, error) {
	l := unix.Flock_t{Type: unix.F_RDLCK, Whence: io.SeekStart}
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l)
	return l.Type != unix.F_UNLCK, os.NewSyscallError("ask for the lock", err)
}
