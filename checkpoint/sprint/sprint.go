// Package sprint lets this process and its helpers go before all others while a service stands still. Every step of that
// time is short and ends with waking up another process, which each time could find its core taken.
package sprint

import (
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Longest is how long a sprint lasts at most. One that is longer would take the cores from everybody else on the host, and
// gain little: what takes that long does not consist of short steps.
const Longest = 100 * time.Millisecond

// priority is the lowest of those of real time, which all come before ordinary threads (sched(7)).
const priority = 1

// Sprint is a time in which some threads run before those of other processes. A nil one is over.
type Sprint struct {
	mu     sync.Mutex
	before map[int]*unix.SchedAttr // by thread
	timer  *time.Timer
	over   bool
}

// Start begins a sprint of all threads that this process has, and of the given processes with all that they start
// meanwhile. It ends with End, or after [Longest]. It is a help and no need: where it is not allowed (CAP_SYS_NICE, or a
// cgroup that has no share in real time), all goes on as before. Threads that are not of the ordinary kind stay as they are.
func Start(pids ...int) *Sprint {
	s := &Sprint{before: make(map[int]*unix.SchedAttr)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer = time.AfterFunc(Longest, s.End)
	s.join(os.Getpid(), unix.SCHED_FLAG_RESET_ON_FORK)
	for _, pid := range pids {
		s.join(pid, 0)
	}
	return s
}

func (s *Sprint) join(pid int, flags uint64) {
	for _, tid := range threads(pid) {
		old, err := unix.SchedGetAttr(tid, 0)
		if err != nil || old.Policy != unix.SCHED_NORMAL {
			continue // it has ended, or its user knows better
		}
		fast := unix.SchedAttr{Policy: unix.SCHED_RR, Priority: priority, Flags: flags}
		if unix.SchedSetAttr(tid, &fast, 0) == nil {
			s.before[tid] = old
		}
	}
}

// Over reports whether the sprint has ended.
func (s *Sprint) Over() bool {
	if s == nil {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.over
}

// End ends the sprint. It may be called more than once.
func (s *Sprint) End() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return
	}
	s.over = true
	s.timer.Stop()
	for tid, old := range s.before {
		if now, err := unix.SchedGetAttr(tid, 0); err == nil && now.Policy == unix.SCHED_RR && now.Priority == priority {
			unix.SchedSetAttr(tid, old, 0) //nolint:errcheck // it has ended
		}
	}
}

// threads lists those of a process, none if it has ended.
func threads(pid int) (tids []int) {
	dir, err := os.Open("/proc/" + strconv.Itoa(pid) + "/task")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1) // of those that remain
	for _, name := range names {
		if tid, err := strconv.Atoi(name); err == nil {
			tids = append(tids, tid)
		}
	}
	return tids
}
