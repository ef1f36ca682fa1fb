package ptrace

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// A FileKeeper keeps the files of another process open when that process dies, those that it opens later too.
//
// criu has the threads of a process that it dumps execute code of its own, which waits for orders on a socket. A criu
// that is killed closes its end before the kernel ends its hold on the thread: for some milliseconds the thread then
// runs the service's code, whose connections are all in a mode in which every read fails. Kept open, the socket says
// nothing until someone has put things right.
type FileKeeper struct {
	once    sync.Once
	release chan struct{}
	done    chan error
}

// KeepFiles starts a keeper of a child of this process. The child must be stopped or waiting, and not in the middle of
// its work: it is stopped for a moment. Nobody may be waiting for the child with wait4(2) or the like, which would see that
// stop.
//
// The keeper is a process that shares the child's table of files (CLONE_FILES of clone(2)) and never runs: it stays in
// the stop in which every new child of a traced process begins. It ends with this process, if not before.
//
// A shared table is slow to grow: each time, the kernel waits until no core reads the old one any more, some ten
// milliseconds (expand_fdtable of fs/file.c). So it is made large enough for files descriptors before it is shared, unless
// the child may not have as many.
func KeepFiles(pid, files int) (*FileKeeper, error) {
	k := &FileKeeper{release: make(chan struct{}), done: make(chan error, 1)}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // it is the keeper's tracer, and ends with the goroutine
		keeper, err := fork(pid, files)
		started <- err
		if err != nil {
			return
		}
		<-k.release
		k.done <- reap(keeper)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("keep the files of process %d: %w", pid, err)
	}
	return k, nil
}

// Close ends the keeper. What the other process left open is closed then. Further calls do nothing.
func (k *FileKeeper) Close() error {
	var err error
	k.once.Do(func() {
		close(k.release)
		err = <-k.done
	})
	return err
}

// fork has a child of ours clone itself to another child of ours that shares its table of files, which has room for as many
// as are wanted, and holds the latter.
func fork(pid, files int) (keeper int, err error) {
	if err := interrupt(pid); err != nil {
		return 0, err
	}
	defer func() {
		if err = errors.Join(err, unix.PtraceDetach(pid)); err != nil && keeper > 0 {
			err = errors.Join(err, reap(keeper))
		}
	}()
	if err := makeRoom(pid, files); err != nil {
		return 0, err
	}
	// The new process inherits the options, among them to die with its tracer.
	if err := unix.PtraceSetOptions(pid, unix.PTRACE_O_TRACECLONE|unix.PTRACE_O_EXITKILL); err != nil {
		return 0, fmt.Errorf("ptrace: %w", err)
	}
	defer func() { err = errors.Join(err, unix.PtraceSetOptions(pid, 0)) }()
	result, keeper, err := call(pid, unix.SYS_CLONE, unix.CLONE_FILES|unix.CLONE_PARENT)
	if err != nil {
		return 0, err
	}
	if result < 0 { // otherwise the new process's id in the child's pid namespace
		return 0, fmt.Errorf("clone: %w", unix.Errno(-result))
	}
	if err := awaitStop(keeper); err != nil {
		return keeper, err
	}
	return keeper, rename(keeper, "nsmigrate-files")
}

// makeRoom has a stopped process duplicate its standard input to a high descriptor, and close that: its table of files
// never shrinks. One that has no such file, or may not have that many, does without.
func makeRoom(pid, files int) error {
	const from = 0
	fd, _, err := call(pid, unix.SYS_FCNTL, from, unix.F_DUPFD_CLOEXEC, uint64(max(files, 1)-1))
	if err != nil || fd < 0 {
		return err
	}
	_, _, err = call(pid, unix.SYS_CLOSE, uint64(fd))
	return err
}

func reap(pid int) error {
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		return fmt.Errorf("end the keeper of files: %w", err)
	}
	for {
		switch _, err := unix.Wait4(pid, nil, unix.WALL, nil); {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("end the keeper of files: %w", err)
		default:
			return nil
		}
	}
}

// rename gives a stopped process another command line. Who looks for the program that it is a copy of, and ends it,
// means another.
func rename(pid int, name string) error {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return err
	}
	// Its second field, in parentheses, may hold anything; see proc_pid_stat(5) for arg_start and arg_end.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	const first, argStart, argEnd = 3, 48, 49
	if len(fields) <= argEnd-first {
		return errors.New("rename the keeper of files: its command line can't be found")
	}
	start, serr := strconv.ParseUint(fields[argStart-first], 10, 64)
	end, eerr := strconv.ParseUint(fields[argEnd-first], 10, 64)
	if err := errors.Join(serr, eerr); err != nil || start >= end {
		return errors.Join(err, errors.New("rename the keeper of files: its command line can't be found"))
	}
	text := make([]byte, end-start)
	copy(text[:len(text)-1], name)
	if _, err := unix.PtracePokeData(pid, uintptr(start), text); err != nil {
		return fmt.Errorf("rename the keeper of files: %w", err)
	}
	return nil
}
