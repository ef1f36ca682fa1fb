package checkpoint

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
)

// Bounds of the wait for stopped processes. On a busy host one may not get to its signal for a while. One that is in
// vfork(2), or waits for a disk, does not stop; CRIU waits for it.
const (
	stopTime  = 10 * time.Second
	sleepTime = 200 * time.Millisecond // for those in uninterruptible sleep
)

// stop stops every process of the trees. Should their criu die, its kernel-side hold on them ends at once; stopped,
// they don't run into connections that are in repair mode, where every read fails. The images say that they are
// stopped, so restore has to let them go on too.
func (ts trees) stop() error {
	for _, t := range ts {
		if err := t.stop(); err != nil {
			return fmt.Errorf("stop process %d: %w", t.facts.HostRoot, err)
		}
	}
	return ts.awaitStopped()
}

// awaitStopped waits until no thread runs that was told to stop.
func (ts trees) awaitStopped() error {
	for begun := time.Now(); ; {
		running, asleep := ts.running()
		switch {
		case running == 0 && (asleep == 0 || time.Since(begun) > sleepTime):
			return nil
		case time.Since(begun) > stopTime:
			return fmt.Errorf("%d threads did not stop within %s", running, stopTime)
		}
		proc.Pause(20 * time.Microsecond) // nobody but the parent is told when a process stops
	}
}

// wakeParent lets the parent of a tree's root run again if it stopped itself because its child did, as shells,
// script(1) and su(1) do.
func (t *tree) wakeParent() {
	parent := t.live.Root().PPID
	if !t.parentRan || parent <= 1 {
		return
	}
	if state, err := proc.Default.State(parent); err == nil && state == 'T' {
		unix.Kill(parent, unix.SIGCONT) //nolint:errcheck // gone
	}
}

// stop goes over the tree until it finds nobody new: a process can fork until it is stopped itself.
func (t *tree) stop() error {
	done := make(map[int]bool)
	state, err := proc.Default.State(t.live.Root().PPID)
	t.parentRan = err == nil && state != 'T'
	for {
		if err := proc.Default.Refresh(t.live); err != nil {
			return err
		}
		before := len(done)
		for i := range t.live.Processes {
			p := &t.live.Processes[i]
			if done[p.PID] || p.Zombie() {
				continue
			}
			done[p.PID] = true
			state, err := proc.Default.State(p.PID)
			switch {
			case errors.Is(err, proc.ErrGone):
				continue
			case err != nil:
				return err
			case state == 'T': // its user stopped it, and it stays stopped
				t.facts.Stopped = append(t.facts.Stopped, proc.Own(p.NSpid))
				continue
			}
			if err := unix.Kill(p.PID, unix.SIGSTOP); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
			t.stopped = append(t.stopped, p.PID)
		}
		if len(done) == before {
			return nil
		}
	}
}

// ours are the processes that stand still, if they do, because of us and not of their user.
func (t *tree) ours() (pids []int) {
	for i := range t.live.Processes {
		if p := &t.live.Processes[i]; !slices.Contains(t.facts.Stopped, proc.Own(p.NSpid)) {
			pids = append(pids, p.PID)
		}
	}
	return pids
}

// running counts the threads that were told to stop and did not yet, and those of them that can't be woken up.
func (ts trees) running() (running, asleep int) {
	for _, t := range ts {
		for _, pid := range t.stopped {
			states, err := proc.Default.Running(pid)
			if err != nil {
				continue // it has ended
			}
			for _, state := range states {
				if state == 'D' {
					asleep++
				} else {
					running++
				}
			}
		}
	}
	return running, asleep
}

// goOn lets the processes run again that stop stopped.
func (ts trees) goOn() {
	for _, t := range ts {
		for _, pid := range t.stopped {
			unix.Kill(pid, unix.SIGCONT) //nolint:errcheck // gone
		}
		t.stopped = nil
		t.wakeParent()
	}
}
