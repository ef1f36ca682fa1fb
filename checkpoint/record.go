package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/lock"
	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
	"github.com/nsmigrate/nsmigrate/checkpoint/ptrace"
	"github.com/nsmigrate/nsmigrate/checkpoint/sidecar"
	"github.com/nsmigrate/nsmigrate/netstate"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
)

// Record is what it takes to put a service back, or to end it, in another process after the one that froze it has
// died. It is made before the service is touched.
type Record struct {
	NetNS     string            `json:"netns,omitempty"` // the namespace's name, if it has one
	Inode     uint64            `json:"inode"`           // of the namespace
	Scratch   string            `json:"scratch"`         // directory of ours
	Roots     []proc.Ident      `json:"roots"`           // of the trees, in the order of the manifest
	Parents   []proc.Ident      `json:"parents,omitempty"`
	Stopped   []proc.Ident      `json:"stopped,omitempty"` // by their user, and to stay so
	CRIU      []proc.Ident      `json:"criu"`
	Datagrams []Datagram        `json:"datagrams,omitempty"`
	Uplinks   []netstate.Uplink `json:"uplinks,omitempty"`
	Sockets   *sidecar.Sidecar  `json:"sockets,omitempty"`

	Contexts Contexts `json:"-"` // what [Options].Contexts was told last
}

// Contexts say where the threads of a stopped service are, by tree: a criu that dies may leave some in code of its own. As
// JSON they are for another process.
type Contexts []*ptrace.Contexts

// Datagram is a datagram socket that is taken off its peer outside for a while.
type Datagram struct {
	Tree int    `json:"tree"`
	PID  int    `json:"pid"` // in the tree's own pid namespace
	FD   int    `json:"fd"`
	Path string `json:"path"`
}

// ErrGone means that a service is not there any more.
var ErrGone = errors.New("the service is gone")

func (s *Service) newRecord() (*Record, error) {
	r := &Record{NetNS: s.target.name, Inode: s.target.ns.Inode(), Scratch: s.scratch, Uplinks: s.state.Uplinks(), Sockets: s.car}
	for i, t := range s.trees {
		root, err := proc.Default.Ident(t.facts.HostRoot)
		if err != nil {
			return nil, err
		}
		r.Roots = append(r.Roots, root)
		runner, err := proc.Default.Ident(t.criu.PID())
		if err != nil {
			return nil, err
		}
		r.CRIU = append(r.CRIU, runner)
		if ppid := t.live.Root().PPID; ppid > 1 {
			if parent, err := proc.Default.Ident(ppid); err == nil && !stopped(ppid) {
				r.Parents = append(r.Parents, parent)
			}
		}
		for _, pid := range t.live.PIDs() {
			if id, err := proc.Default.Ident(pid); err == nil && stopped(pid) {
				r.Stopped = append(r.Stopped, id)
			}
		}
		for _, e := range t.facts.Externals {
			if e.Kind == KindDatagram {
				r.Datagrams = append(r.Datagrams, Datagram{Tree: i, PID: e.FDs[0].PID, FD: e.FDs[0].FD, Path: e.Path})
			}
		}
	}
	return r, nil
}

func stopped(pid int) bool {
	state, err := proc.Default.State(pid)
	return err == nil && state == 'T'
}

// open returns the service's namespace. The error is ErrGone if neither its processes nor its name lead there.
func (r *Record) open() (*ns.NS, error) {
	for _, root := range r.Roots {
		if !proc.Default.Alive(root) {
			continue
		}
		if n, err := ns.OfPID(root.PID); err == nil {
			if n.Inode() == r.Inode {
				return n, nil
			}
			n.Close()
		}
	}
	if r.NetNS == "" {
		return nil, ErrGone
	}
	n, err := ns.Open(r.NetNS)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ns.ErrNotNetNS) {
		return nil, ErrGone
	}
	if err != nil {
		return nil, err
	}
	if n.Inode() != r.Inode {
		n.Close()
		return nil, ErrGone
	}
	return n, nil
}

// criuGrace is how long a criu whose caller died may take to let its tree go.
const criuGrace = 10 * time.Second

// awaitCRIU waits until no criu holds the service any more: each takes the death of its caller for a veto.
func (r *Record) awaitCRIU(ctx context.Context) error {
	for _, id := range r.CRIU {
		if err := awaitEnd(ctx, id, criuGrace); err != nil {
			return fmt.Errorf("wait for criu: %w", err)
		}
	}
	return nil
}

// awaitEnd waits for the end of a process that is not our child, and kills it when the time is over.
func awaitEnd(ctx context.Context, id proc.Ident, grace time.Duration) error {
	fd, err := unix.PidfdOpen(id.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if !proc.Default.Alive(id) { // it ended before the descriptor was opened, which is of another process
		return nil
	}
	deadline := time.Now().Add(grace)
	for killed := false; ; {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, int(min(time.Until(deadline), 100*time.Millisecond).Milliseconds())+1)
		switch {
		case n == 1:
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case time.Now().After(deadline) && !killed:
			killed, deadline = true, time.Now().Add(grace)
			if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
				return err
			}
		case time.Now().After(deadline):
			return fmt.Errorf("process %d does not end", id.PID)
		}
	}
}

// Ended waits until no criu holds the service, and reports whether one has ended it, or begun to.
func (r *Record) Ended(ctx context.Context) (bool, error) {
	if err := r.awaitCRIU(ctx); err != nil {
		return false, err
	}
	return slices.ContainsFunc(r.Roots, func(root proc.Ident) bool { return !proc.Default.Alive(root) }), nil
}

// Resume puts the service back as it was before it was frozen. It may be repeated. The error is [ErrGone] if there is
// nothing to put back.
func (r *Record) Resume(ctx context.Context) error {
	n, err := r.open()
	if err != nil {
		return err
	}
	defer n.Close()
	if err := r.awaitCRIU(ctx); err != nil {
		return err
	}
	ts, err := r.trees()
	if err != nil {
		return err
	}
	_, stuck := ts.putBack(r.Sockets, func() error { return lock.Drop(n) })
	r.wakeParents()
	return errors.Join(stuck, os.RemoveAll(r.Scratch))
}

// trees are those that are still there.
func (r *Record) trees() (trees, error) {
	live, err := proc.Default.Trees(r.Inode)
	if err != nil {
		return nil, err
	}
	var ts trees
	for i, root := range r.Roots {
		at := slices.IndexFunc(live, func(t proc.Tree) bool { return t.Root().PID == root.PID })
		if at < 0 || !proc.Default.Alive(root) {
			continue
		}
		t := &tree{index: i, facts: &Tree{HostRoot: root.PID}, live: &live[at], orphan: true}
		if i < len(r.Contexts) {
			t.contexts = r.Contexts[i]
		}
		for _, d := range r.Datagrams {
			if d.Tree == i {
				t.facts.Externals = append(t.facts.Externals, External{Kind: KindDatagram, Path: d.Path, FDs: []FD{{PID: d.PID, FD: d.FD}}})
			}
		}
		for j := range t.live.Processes {
			p := &t.live.Processes[j]
			if id, err := proc.Default.Ident(p.PID); err == nil && slices.Contains(r.Stopped, id) {
				t.facts.Stopped = append(t.facts.Stopped, proc.Own(p.NSpid))
			}
		}
		ts = append(ts, t)
	}
	return ts, nil
}

func (r *Record) wakeParents() {
	for _, id := range r.Parents {
		if proc.Default.Alive(id) && stopped(id.PID) {
			unix.Kill(id.PID, unix.SIGCONT) //nolint:errcheck // gone
		}
	}
}

// Keep makes the service mute, if it is there.
func (r *Record) Keep() error {
	n, err := r.open()
	if errors.Is(err, ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer n.Close()
	l, err := lock.Open(n)
	if err != nil {
		return err
	}
	defer l.Close()
	return l.Keep()
}

// End kills the service without a packet and removes its namespace. It may be repeated, and does nothing if the service
// is gone.
func (r *Record) End(ctx context.Context) error {
	if err := r.Keep(); err != nil {
		return err
	}
	if err := r.awaitCRIU(ctx); err != nil {
		return err
	}
	n, err := r.open()
	switch {
	case errors.Is(err, ErrGone):
	case err != nil:
		return err
	default:
		defer n.Close()
		if err := proc.Default.KillNetNS(r.Inode); err != nil {
			return fmt.Errorf("end the source: %w", err)
		}
		r.wakeParents()
		if r.NetNS != "" {
			if err := ns.Unbind(r.NetNS); err != nil {
				return err
			}
		}
	}
	return errors.Join(netstate.RemoveUplinks(ctx, r.Uplinks, netstate.BuildOptions{}), os.RemoveAll(r.Scratch))
}
