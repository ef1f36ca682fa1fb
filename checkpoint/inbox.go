package checkpoint

import (
	"context"

	"github.com/nsmigrate/nsmigrate/checkpoint/hold"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
)

// inbox is what comes for a service while it stands still. The zero value, and one that is closed, keeps nothing.
type inbox struct {
	holder  *hold.Holder
	uplinks []hold.Uplink
	frames  []hold.Frame // that were taken, for the copy on this host if it goes on
	kept    hold.Stats   // of a holder that is closed
	given   int          // frames
}

// open begins to keep packets, if there are uplinks that they can be kept from.
func (b *inbox) open(ctx context.Context, n *ns.NS, uplinks []hold.Uplink) (err error) {
	if len(uplinks) == 0 {
		return nil
	}
	b.uplinks = uplinks
	b.holder, err = hold.Open(ctx, n, uplinks)
	return err
}

// group is where the lock has to tell of what it drops, 0 if nobody wants to know.
func (b *inbox) group() uint16 {
	if b.holder == nil {
		return 0
	}
	return b.holder.Group()
}

// pass returns what is new as it travels to another host, nil if nothing is.
func (b *inbox) pass() ([]byte, error) {
	if b.holder == nil {
		return nil, nil
	}
	frames, err := b.holder.Take()
	b.frames = append(b.frames, frames...)
	if len(frames) == 0 {
		return nil, err
	}
	return hold.Encode(frames), err
}

// giveBack gives everything to the copy on this host, which is not locked any more.
func (b *inbox) giveBack() error {
	if b.holder == nil {
		return nil
	}
	frames, err := b.holder.Take()
	if frames = append(b.frames, frames...); len(frames) == 0 {
		return err
	}
	b.frames = nil
	given, err := hold.Give(b.uplinks, frames)
	b.given += given
	return err
}

func (b *inbox) stats() hold.Stats {
	stats := b.kept
	if b.holder != nil {
		stats = b.holder.Stats()
	}
	stats.Given = b.given
	return stats
}

func (b *inbox) close() {
	if b.holder == nil {
		return
	}
	b.kept = b.holder.Stats()
	b.holder.Close()
	b.holder, b.frames = nil, nil
}
