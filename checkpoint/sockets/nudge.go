package sockets

import (
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
)

// Nudge makes every connection of a stopped process tell its peer that it goes on: leaving repair mode sends a window
// probe, which the peer answers (tcp_send_window_probe of net/ipv4/tcp_output.c). Without it both would wait for a
// timer, seconds after a move. A process that runs might find a socket in repair mode, where reads fail.
func Nudge(pid int) error {
	held, err := proc.Default.Sockets(pid)
	if errors.Is(err, proc.ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	once := make(map[uint64]int, len(held)) // descriptors by inode
	for fd, inode := range held {
		once[inode] = fd
	}
	return NudgeSome(pid, slices.Collect(maps.Values(once)))
}

// NudgeSome is [Nudge] for some descriptors of a process.
func NudgeSome(pid int, fds []int) error {
	if len(fds) == 0 {
		return nil
	}
	lender, err := OpenLender(pid)
	if err != nil {
		return err
	}
	defer lender.Close()
	return Share(fds, func(fds []int) error {
		for _, fd := range fds {
			own, err := lender.Borrow(fd)
			if err != nil {
				continue // closed meanwhile
			}
			err = nudge(own)
			unix.Close(own)
			if err != nil {
				return fmt.Errorf("nudge connection of descriptor %d of process %d: %w", fd, pid, err)
			}
		}
		return nil
	})
}

// least is how many sockets are worth a goroutine.
const least = 64

// Share divides work on sockets, which is done one system call after the other, among all cores.
func Share[T any](sockets []T, work func(some []T) error) error {
	var g errgroup.Group
	size := max(least, (len(sockets)+runtime.GOMAXPROCS(0)-1)/runtime.GOMAXPROCS(0))
	for some := range slices.Chunk(sockets, size) {
		g.Go(func() error { return work(some) })
	}
	return g.Wait()
}

func nudge(fd int) error {
	// The mode forces, and its end forbids, the reuse of the address (do_tcp_setsockopt of net/ipv4/tcp.c).
	reuse, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR)
	if err != nil {
		return err
	}
	// Only a connection has the mode: a listening socket, and everything but TCP, refuses it.
	if unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_ON) != nil {
		return nil
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_OFF); err != nil {
		return err
	}
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, min(reuse, 1))
}
