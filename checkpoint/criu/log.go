package criu

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// LogFile is the name of criu's log in its work directory.
const LogFile = "criu.log"

// Error is the failure of a request, with what criu's log says about it.
type Error struct {
	Op     string // "dump" or "restore"
	Errno  unix.Errno
	Cause  string   // the line that explains most
	Lines  []string // all lines that report errors, oldest first
	Hint   string   // what to do about it, if the cause is known
	Vetoed bool     // refused at a hook, not failed
	Died   bool     // criu ended without an answer: nothing was rolled back
}

func (e *Error) Error() string {
	s := fmt.Sprintf("criu %s: %s", e.Op, e.Cause)
	if e.Hint != "" {
		s += "\n  hint: " + e.Hint
	}
	return s
}

// Unwrap makes errors.Is work for the cause that criu names and for [ErrVetoed].
func (e *Error) Unwrap() []error {
	var errs []error
	if e.Errno != 0 {
		errs = append(errs, e.Errno)
	}
	if e.Vetoed {
		errs = append(errs, ErrVetoed)
	}
	return errs
}

func (p *Process) explain(op string, errno unix.Errno, msg string, died bool) *Error {
	e := &Error{Op: op, Errno: errno, Died: died}
	f, err := openat(p.work, LogFile)
	if err == nil {
		e.Lines = errorLines(f)
		f.Close()
	}
	e.Cause, e.Hint = diagnose(e.Lines)
	if (e.Cause == "" || matches(e.Cause, harmless[:])) && full(p.work) { // so full, maybe, that it could not log the reason
		e.Cause, e.Errno = fmt.Sprintf("%s: %v", p.work.Name(), unix.ENOSPC), unix.ENOSPC
	}
	e.Vetoed = strings.Contains(e.Cause, "RPC client reported script error")
	if e.Cause == "" || died {
		e.Cause = strings.TrimSpace(msg)
	}
	if e.Cause == "" {
		e.Cause = "failed without a reason in its log"
	}
	return e
}

// full reports whether a file system has no room for an image.
func full(dir *os.File) bool {
	var fs unix.Statfs_t
	return unix.Fstatfs(int(dir.Fd()), &fs) == nil && int64(fs.Bavail)*fs.Bsize < enough
}

// enough room for an image.
const enough = 64 << 10

func openat(dir *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// errorLines returns the messages of a log that report errors, without their time and pid stamps.
func errorLines(r io.Reader) []string {
	var lines []string
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		_, msg, ok := strings.Cut(sc.Text(), "Error (")
		if !ok {
			continue
		}
		if _, text, ok := strings.Cut(msg, "): "); ok {
			msg = text
		}
		lines = append(lines, strings.TrimSpace(msg))
	}
	return lines
}

// harmless are errors that criu logs and survives, or that only repeat that something failed.
var harmless = [...]string{
	"Can't setup RLIMIT_NOFILE",
	"Dumping FAILED",
	"Restoring FAILED",
	"One of more action scripts failed",
	"Pre-dumping FAILED",
	"Task exited with",
	"killed by signal 9",
	"Can't unlink",
	"Unable to get rtt",
}

// hints explain the errors that users meet most, by a part of criu's message.
var hints = [...]struct{ part, hint string }{
	{"Can't get rlimit", "CRIU needs CAP_SYS_RESOURCE to dump processes of other users; this root lacks it (nsmigrate check)"},
	{"Can't fork for", "the process id is taken on this host, a zombie suffices; --pidns new restores into a pid namespace of its own"},
	{"Unable to create a thread", "a thread id is taken on this host; --pidns new restores into a pid namespace of its own"},
	{"has bad size", "a file that the service has open changed since the dump: bring it back to its size at the dump"},
	{"has bad build-id", "another version of the program or library is installed here: install the same one as on the source"},
	{"Unsupported proto 262", "an MPTCP socket (Go's default for listeners): start the service with GODEBUG=multipathtcp=0"},
	{"In-flight connection", "a connection waits in an accept queue; try again, or raise the service's accept rate"},
	{"Can't bind inet socket back", "the namespace lacks the address that a socket is bound to"},
	{"without correspond master", "a terminal's other end is outside the service"},
	{"is outside of its pid namespace", "start the service with setsid, so that its session belongs to it"},
	{"Can't open file", "a file that the service has open is missing on this host"},
	{"Address already in use", "another socket has the address"},
	{"vdso: Unexpected rt vDSO area bounds", "this CRIU is too old for the kernel: make criu installs a newer one"},
}

// diagnose picks the line that explains a failure: the first that is not known to be harmless.
func diagnose(lines []string) (cause, hint string) {
	for _, line := range lines {
		if matches(line, harmless[:]) {
			continue
		}
		cause = line
		break
	}
	if cause == "" && len(lines) > 0 {
		cause = lines[len(lines)-1]
	}
	for _, line := range lines {
		for _, h := range hints {
			if strings.Contains(line, h.part) {
				return line, h.hint
			}
		}
	}
	return cause, ""
}

func matches(line string, parts []string) bool {
	for _, p := range parts {
		if strings.Contains(line, p) {
			return true
		}
	}
	return false
}
