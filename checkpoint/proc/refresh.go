package proc

import (
	"errors"
	"os"
	"slices"
	"strconv"
)

// Refresh brings the list of a tree's processes and threads up to date, in place and in little time: it is
// for a tree that was just frozen. Processes that are known keep what was read of them before; new ones are
// read whole.
func (d Dir) Refresh(t *Tree) error {
	known := make(map[int]*Process, len(t.Processes))
	for i := range t.Processes {
		known[t.Processes[i].PID] = &t.Processes[i]
	}
	root := t.Root().PID
	pids := []int{root}
	var fresh []Process
	for i := 0; i < len(pids); i++ { // grows as children are found
		pid := pids[i]
		tids, err := numbers(d.path(pid, "task"))
		if err != nil {
			if err = gone(pid, err); errors.Is(err, ErrGone) && pid != root {
				continue
			}
			return err
		}
		p := known[pid]
		if p == nil {
			read, err := d.Read(pid)
			if errors.Is(err, ErrGone) {
				continue
			}
			if err != nil {
				return err
			}
			if read.Init() {
				continue // the root of another tree
			}
			p = &read
		} else if !p.Zombie() && !sameThreads(p.Threads, tids) {
			p.Threads = nil
			if err := d.readThreads(p); err != nil {
				return gone(pid, err)
			}
		}
		fresh = append(fresh, *p)
		for _, tid := range tids {
			b, err := os.ReadFile(d.path(pid, "task", strconv.Itoa(tid), "children"))
			if err != nil {
				continue // the thread is gone
			}
			children, err := ints(string(b))
			if err != nil {
				return err
			}
			pids = append(pids, children...)
		}
	}
	t.Processes = fresh
	return nil
}

// sameThreads compares threads with a sorted list of ids.
func sameThreads(threads []Thread, tids []int) bool {
	if len(threads) != len(tids) {
		return false
	}
	for _, t := range threads {
		if _, found := slices.BinarySearch(tids, t.TID); !found {
			return false
		}
	}
	return true
}
