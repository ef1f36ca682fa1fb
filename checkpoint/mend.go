package checkpoint

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
	"github.com/nsmigrate/nsmigrate/checkpoint/ptrace"
	"github.com/nsmigrate/nsmigrate/checkpoint/sidecar"
	"github.com/nsmigrate/nsmigrate/checkpoint/sockets"
)

// saveContexts notes where the threads of stopped trees are.
func (ts trees) saveContexts() error {
	contexts := make([]*ptrace.Contexts, len(ts))
	for i, t := range ts {
		var processes []ptrace.Process
		for i := range t.live.Processes {
			p := &t.live.Processes[i]
			if p.Zombie() {
				continue
			}
			threads := make([]int, len(p.Threads))
			for i, thread := range p.Threads {
				threads[i] = thread.TID
			}
			processes = append(processes, ptrace.Process{PID: p.PID, Threads: threads})
		}
		var err error
		if contexts[i], err = ptrace.Save(processes); err != nil {
			return err
		}
	}
	// A thread that is on its way back into its stop when criu seizes it stops but once, where criu counts on twice, lets
	// it go after the first and waits for the second (skip_sigstop in compel/src/lib/infect.c).
	if err := ts.awaitStopped(); err != nil {
		return err
	}
	for i, t := range ts {
		t.contexts = contexts[i]
	}
	return nil
}

// where is what saveContexts noted.
func (ts trees) where() Contexts {
	list := make(Contexts, len(ts))
	for i, t := range ts {
		list[i] = t.contexts
	}
	return list
}

// mend does what a criu that died could not: it takes the connections of a tree out of repair mode, which makes every
// read fail, brings the threads back that executed criu's code, and puts back the options that the mode changes. The
// tree is stopped.
func (t *tree) mend(car *sidecar.Sidecar) error {
	return t.mendStopped(trees{t}.awaitStopped(), car)
}

// mendStopped is mend when it is known whether all threads have stopped. If not, they are left where they are: one that
// ran and stops again would get the registers of another moment. Those that wait for criu's orders go back by themselves.
func (t *tree) mendStopped(running error, car *sidecar.Sidecar) error {
	errs := []error{running}
	pids := make(map[int]int)
	for i := range t.live.Processes {
		p := &t.live.Processes[i]
		if p.Zombie() {
			continue
		}
		pids[proc.Own(p.NSpid)] = p.PID
		errs = append(errs, endRepair(p.PID))
	}
	if t.contexts != nil && running == nil {
		errs = append(errs, t.contexts.Restore(t.letGo))
	} else {
		errs = append(errs, t.letGo())
	}
	if car != nil {
		_, err := car.Apply(context.Background(), t.index, func(pid int) int { return pids[pid] }, nil)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// endRepair takes all connections of a process out of repair mode. The probe that the kernel sends meets the
// lock, and does no harm without it.
func endRepair(pid int) error {
	held, err := proc.Default.Sockets(pid)
	if errors.Is(err, proc.ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	lender, err := sockets.OpenLender(pid)
	if err != nil {
		return err
	}
	defer lender.Close()
	var errs []error
	for fd := range held {
		own, err := lender.Borrow(fd)
		if err != nil {
			continue // closed meanwhile
		}
		if on, err := unix.GetsockoptInt(own, unix.IPPROTO_TCP, unix.TCP_REPAIR); err == nil && on != 0 {
			if err := unix.SetsockoptInt(own, unix.IPPROTO_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_OFF); err != nil {
				errs = append(errs, fmt.Errorf("end repair mode of descriptor %d of process %d: %w", fd, pid, err))
			}
		}
		unix.Close(own)
	}
	return errors.Join(errs...)
}
