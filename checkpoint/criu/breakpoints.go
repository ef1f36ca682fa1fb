package criu

import (
	"os"

	"golang.org/x/sys/unix"
)

// Breakpoints keeps the kernel ready for hardware breakpoints, of which CRIU sets one in every process that it dumps or
// restores. The first user of a task's performance events on a host waits 10 to 25 ms until all cores have noticed
// (account_event of kernel/events/core.c), and does so again a second after the last one is gone: in the blackout, unless
// somebody is a user all the time. The zero value does nothing.
type Breakpoints struct{ event *os.File }

// KeepBreakpoints takes that time now. Where it is not allowed, nothing is kept, and criu will wait.
func KeepBreakpoints() Breakpoints {
	attr := unix.PerfEventAttr{
		Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_DUMMY, Size: unix.PERF_ATTR_SIZE_VER0,
		Bits: unix.PerfBitDisabled | unix.PerfBitExcludeKernel | unix.PerfBitExcludeHv,
	}
	// An event of the main thread, which lives as long as this process.
	fd, err := unix.PerfEventOpen(&attr, os.Getpid(), -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return Breakpoints{}
	}
	return Breakpoints{event: os.NewFile(uintptr(fd), "perf_event")}
}

// Close ends it.
func (b Breakpoints) Close() error {
	if b.event == nil {
		return nil
	}
	return b.event.Close()
}
