package netstate

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// HostChange is a change of the host that [Build] makes, as data: a journal keeps it beyond a crash.
type HostChange struct {
	Kind string `json:"kind"` // what is changed; "link": the host's side of an uplink is made
	Name string `json:"name"` // of the host's link
	// Inner is the interface index of the link's other end and NSID the number by which the host knows the namespace
	// that the other end is in. The number was drawn by lot for this namespace, so that a later link of the same name
	// is never taken for this one, not even that of another attempt to bring the same service here.
	Inner int32 `json:"inner"`
	NSID  int32 `json:"nsid"`
}

const hostLink = "link"

func (c HostChange) String() string {
	return fmt.Sprintf("%s %s to interface %d of namespace %d", c.Kind, c.Name, c.Inner, c.NSID)
}

// UndoHostChange takes a change of the host, in whose namespace the calling thread is, back. It does nothing if the
// change was not made or was undone before, and spares what has only the name in common with it. With the link go
// its addresses and the routes through it.
func UndoHostChange(ctx context.Context, c HostChange) error {
	if c.Kind != hostLink {
		return fmt.Errorf("undo change of the host: this nsmigrate knows no change of kind %q", c.Kind)
	}
	h, err := openHost(nil)
	if err != nil {
		return fmt.Errorf("undo %s: %w", c, err)
	}
	defer h.close(nil)
	l, _, err := h.linkByName(ctx, c.Name)
	switch {
	case errors.Is(err, errNoLink):
		return nil
	case err != nil:
		return fmt.Errorf("undo %s: %w", c, err)
	case !l.outside || l.nsid != c.NSID || l.lower != c.Inner:
		return nil
	}
	if err := h.deleteLink(ctx, &l); err != nil {
		return fmt.Errorf("undo %s: %w", c, err)
	}
	return nil
}

// identify returns the number by which the host knows a namespace. If it has none yet, which is so for a namespace
// that was just made, one is drawn by lot: the kernel would give the lowest that is free, which says nothing about
// whose it is. The kernel forgets the number when the namespace ends.
func (h *host) identify(ctx context.Context, n *ns.NS) (int32, error) {
	id, err := nsid(ctx, h.nl, n)
	if err != nil || id >= 0 {
		return id, err
	}
	id = rand.Int32()
	attrs := []rawnl.Attr{
		{Type: unix.NETNSA_FD, Data: binary.NativeEndian.AppendUint32(nil, uint32(n.Fd()))},
		{Type: unix.NETNSA_NSID, Data: binary.NativeEndian.AppendUint32(nil, uint32(id))},
	}
	req := rawnl.Message{Type: unix.RTM_NEWNSID, Data: rawnl.AppendAttrs([]byte{unix.AF_UNSPEC, 0, 0, 0}, attrs)}
	if err := h.nl.Apply(ctx, []rawnl.Message{req}); err != nil {
		return -1, fmt.Errorf("number the namespace: %w", err)
	}
	return id, nil
}
