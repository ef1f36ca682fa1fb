package checkpoint

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
	"github.com/nsmigrate/nsmigrate/checkpoint/sockets"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
)

// Scene is what a namespace's processes and sockets looked like at one moment: all that [Classify] needs
// to know. Taking it disturbs no process.
type Scene struct {
	NetNS  uint64 // inode
	Host   Surroundings
	Trees  []proc.Tree
	Traits map[uint64]sockets.Traits // of the sockets that the trees hold, by inode
	Inets  []sockets.Inet
	Unixes []sockets.Unix
}

// Surroundings are the facts about the place that nsmigrate itself runs in.
type Surroundings struct {
	Namespaces  proc.Namespaces
	Mounts      []proc.Mount
	SysResource bool // CAP_SYS_RESOURCE, without which CRIU can't read the limits of another user's process
}

// Survey takes the scene of a namespace. Processes and sockets that vanish meanwhile are left out.
func Survey(ctx context.Context, n *ns.NS) (*Scene, error) {
	s := &Scene{NetNS: n.Inode(), Traits: make(map[uint64]sockets.Traits)}
	var err error
	if s.Host, err = surroundings(); err != nil {
		return nil, fmt.Errorf("survey: %w", err)
	}
	if s.Trees, err = proc.Default.Trees(n.Inode()); err != nil {
		return nil, fmt.Errorf("survey %v: %w", n, err)
	}
	for i := range s.Trees {
		for j := range s.Trees[i].Processes {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			if err := s.inspect(&s.Trees[i].Processes[j]); err != nil {
				return nil, fmt.Errorf("survey %v: %w", n, err)
			}
		}
	}
	if s.Inets, err = sockets.Inets(ctx, n); err != nil {
		return nil, fmt.Errorf("survey %v: %w", n, err)
	}
	if s.Unixes, err = sockets.Unixes(ctx, n); err != nil {
		return nil, fmt.Errorf("survey %v: %w", n, err)
	}
	return s, nil
}

func surroundings() (Surroundings, error) {
	var s Surroundings
	self, err := proc.Default.Read(unix.Getpid())
	if err != nil {
		return s, err
	}
	s.Namespaces = self.NS
	if s.Mounts, err = proc.Default.Mounts(self.PID); err != nil {
		return s, err
	}
	caps := [2]unix.CapUserData{}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&header, &caps[0]); err != nil {
		return s, fmt.Errorf("read own capabilities: %w", err)
	}
	s.SysResource = caps[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
	return s, nil
}

// inspect asks the sockets of a process what only they know.
func (s *Scene) inspect(p *proc.Process) error {
	var lender *sockets.Lender
	for i := range p.FDs {
		inode, ok := proc.Inode(p.FDs[i].Target, "socket")
		if _, done := s.Traits[inode]; !ok || done {
			continue
		}
		if lender == nil {
			var err error
			if lender, err = sockets.OpenLender(p.PID); errors.Is(err, unix.ESRCH) {
				return nil
			} else if err != nil {
				return err
			}
			defer lender.Close()
		}
		fd, err := lender.Borrow(p.FDs[i].Num)
		if errors.Is(err, unix.EBADF) || errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return err
		}
		traits, err := sockets.Inspect(fd)
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("descriptor %d of process %d: %w", p.FDs[i].Num, p.PID, err)
		}
		s.Traits[inode] = traits
	}
	return nil
}
