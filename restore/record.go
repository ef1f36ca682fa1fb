package restore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/lock"
	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
	"github.com/nsmigrate/nsmigrate/checkpoint/sockets"
	"github.com/nsmigrate/nsmigrate/netstate"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/restore/wire"
)

// Record is what a restore has changed on its host, or is about to change. It is enough to take all of it back, or to
// let the service live, in another process after the one that restored it has died.
type Record struct {
	Scratch   string                `json:"scratch,omitempty"`   // directory of ours
	NetNS     string                `json:"netns"`               // name of the namespace
	Inode     uint64                `json:"inode"`               // of the namespace
	Temporary bool                  `json:"temporary,omitempty"` // the name is ours, and not for the service
	Links     []netstate.HostChange `json:"links,omitempty"`
	PIDFile   string                `json:"pid_file,omitempty"`  // absolute path
	Processes []proc.Ident          `json:"processes,omitempty"` // of a complete service: what runs when it is live
	Live      bool                  `json:"live,omitempty"`      // it may have been heard: there is no way back (of [Run] only)
}

// open returns the namespace, nil if it is not there or not the one that was recorded.
func (r *Record) open() (*ns.NS, error) {
	if r.NetNS == "" {
		return nil, nil
	}
	n, err := ns.Open(r.NetNS)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ns.ErrNotNetNS) { // not bound yet, or not any more
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if n.Inode() != r.Inode {
		return nil, n.Close()
	}
	return n, nil
}

// Undo takes back what was changed, newest first, without a packet. It may be repeated.
func (r *Record) Undo(ctx context.Context) error {
	var errs []error
	if r.PIDFile != "" {
		errs = append(errs, remove(r.PIDFile))
	}
	n, err := r.open()
	switch {
	case err != nil:
		errs = append(errs, err)
	case n != nil:
		errs = append(errs, r.endNamespace(ctx, n))
	}
	if r.Scratch != "" {
		errs = append(errs, os.RemoveAll(r.Scratch))
	}
	return errors.Join(errs...)
}

// endNamespace ends what lives in the namespace, mute, and removes its links to the host and its name.
func (r *Record) endNamespace(ctx context.Context, n *ns.NS) error {
	defer n.Close()
	l, err := lock.Open(n)
	if err != nil {
		return err
	}
	defer l.Close()
	if err := l.Keep(); err != nil {
		return err
	}
	if err := proc.Default.KillNetNS(n.Inode()); err != nil {
		return fmt.Errorf("end what is left in the namespace: %w", err)
	}
	var errs []error
	for _, c := range slices.Backward(r.Links) {
		errs = append(errs, netstate.UndoHostChange(ctx, c))
	}
	return errors.Join(append(errs, ns.Unbind(r.NetNS))...)
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// ErrGone means that a service is not there any more.
var ErrGone = errors.New("the service is gone")

// GoLive lets a complete service live whose restorer died on the way there: [Restoration.GoLive] for another process.
// It may be repeated. The error is [ErrGone] if the service's namespace is not there.
func (r *Record) GoLive(ctx context.Context, state *netstate.State, uplinks map[string]netstate.UplinkTarget) error {
	n, err := r.open()
	if err != nil {
		return err
	}
	if n == nil {
		return fmt.Errorf("namespace %s: %w", r.NetNS, ErrGone)
	}
	defer n.Close()
	if err := lock.Drop(n); err != nil {
		return err
	}
	if err := netstate.Connect(ctx, n, state, netstate.BuildOptions{Uplinks: uplinks}); err != nil {
		return err
	}
	announcer, err := wire.NewAnnouncer(n, wireAddresses(state))
	if err != nil {
		return err
	}
	defer announcer.Close()
	if err := announcer.Send(); err != nil {
		return err
	}
	if err := r.goOn(sockets.Nudge); err != nil {
		return err
	}
	if err := r.Settle(); err != nil {
		return err
	}
	return announcer.Repeat(ctx)
}

// goOn lets the processes of a complete service run. Each is nudged before, while it is stopped: its connections tell their
// peers that they go on; the peers answer, which is what both wait for.
func (r *Record) goOn(nudge func(pid int) error) error {
	for _, id := range r.Processes {
		if state, err := proc.Default.State(id.PID); err != nil || state != 'T' || !proc.Default.Alive(id) {
			continue // it runs already, and would fail to read from a connection in repair mode
		}
		if err := nudge(id.PID); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	// Children first, so that no parent sees one stopped.
	for _, id := range slices.Backward(r.Processes) {
		if proc.Default.Alive(id) {
			unix.Kill(id.PID, unix.SIGCONT) //nolint:errcheck // gone
		}
	}
	return nil
}

// Settle removes what was needed only until the service was live.
func (r *Record) Settle() error {
	var errs []error
	if r.Temporary {
		errs = append(errs, ns.Unbind(r.NetNS))
	}
	if r.Scratch != "" {
		errs = append(errs, os.RemoveAll(r.Scratch))
	}
	return errors.Join(errs...)
}

func wireAddresses(state *netstate.State) []wire.Address {
	var addrs []wire.Address
	for _, a := range state.Addresses() {
		addrs = append(addrs, wire.Address{Device: a.Device, Addr: a.Prefix.Addr()})
	}
	return addrs
}
