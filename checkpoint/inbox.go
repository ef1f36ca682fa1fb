package checkpoint

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/nsmigrate/nsmigrate/checkpoint/hold"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
)

// inbox is what comes for a service while it stands still. The zero value, and one that is closed, keeps nothing.
type inbox struct {
	uplinks []hold.Uplink

	mu     sync.Mutex // of what follows, which gather fills beside everything else
	holder *hold.Holder
	frames []hold.Frame // that were taken, for the copy on this host if it goes on
	passed int          // how many of them are on their way to another host
	failed error        // the last error of taking them that was not told
	kept   hold.Stats   // of a holder that is closed
	given  int          // frames
	quit   chan struct{}
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

// gatherEvery is how often gather looks for packets.
const gatherEvery = 5 * time.Millisecond

// gather takes packets from the kernel as they come, until the inbox is closed: a thousand connections send thousands, which
// would otherwise be taken when the other host's copy waits for them. More than can travel stay where they are.
func (b *inbox) gather() {
	if b.holder == nil || b.quit != nil {
		return
	}
	b.quit = make(chan struct{})
	go func() {
		ticker := time.NewTicker(gatherEvery)
		defer ticker.Stop()
		for {
			select {
			case <-b.quit:
				return
			case <-ticker.C:
				b.mu.Lock()
				if b.holder != nil && b.holder.Stats().Bytes < hold.MaxCargo {
					b.take()
				}
				b.mu.Unlock()
			}
		}
	}()
}

// take takes what has come.
func (b *inbox) take() {
	frames, err := b.holder.Take()
	b.frames = append(b.frames, frames...)
	if err != nil {
		b.failed = err
	}
}

// pass returns what is new as it travels to another host, nil if nothing is.
func (b *inbox) pass() ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.holder == nil {
		return nil, nil
	}
	b.take()
	frames, err := b.frames[b.passed:], b.failed
	b.passed, b.failed = len(b.frames), nil
	if len(frames) == 0 {
		return nil, err
	}
	return hold.Encode(frames), err
}

// giveBack gives everything to the copy on this host, which is not locked any more.
func (b *inbox) giveBack() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.holder == nil {
		return nil
	}
	b.take()
	frames, err := b.frames, b.failed
	b.frames, b.passed, b.failed = nil, 0, nil
	if len(frames) == 0 {
		return err
	}
	given, failed := hold.Give(b.uplinks, frames)
	b.given += given
	return errors.Join(err, failed)
}

func (b *inbox) stats() hold.Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	stats := b.kept
	if b.holder != nil {
		stats = b.holder.Stats()
	}
	stats.Given = b.given
	return stats
}

func (b *inbox) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.holder == nil {
		return
	}
	if b.quit != nil {
		close(b.quit)
	}
	b.kept = b.holder.Stats()
	b.holder.Close()
	b.holder, b.frames, b.passed = nil, nil, 0
}
