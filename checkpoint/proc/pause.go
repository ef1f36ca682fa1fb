package proc

import (
	"time"

	"golang.org/x/sys/unix"
)

// Pause sleeps for less than a millisecond, which is what [time.Sleep] takes at least when nothing else is to be done: the
// runtime then waits with epoll_wait(2), which counts in milliseconds (runtime/netpoll_epoll.go).
func Pause(d time.Duration) {
	ts := unix.NsecToTimespec(d.Nanoseconds())
	unix.Nanosleep(&ts, nil) //nolint:errcheck // shorter is as good
}
