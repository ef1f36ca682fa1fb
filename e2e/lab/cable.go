package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// CableName is what the ends of a [Cable] are called.
const CableName = "cable0"

// Cable is a bad Ethernet between the two hosts, beside the good one: it swaps, repeats, loses and alters frames.
type Cable struct {
	IPv4 map[*Host]string // the hosts' addresses on it
	ends []*os.File

	mu      sync.Mutex
	trouble map[string]int // what happened to how many frames
}

// How many frames there are to one that suffers. They are prime, so that every frame in turn suffers any of it.
const (
	swapped  = 5
	repeated = 17
	lost     = 31
	altered  = 37
)

// heldBack is how long a frame waits for the one that is to overtake it.
const heldBack = 5 * time.Millisecond

// LayCable connects the two hosts by a bad cable.
func (l *Lab) LayCable(ctx context.Context) (_ *Cable, err error) {
	c := &Cable{IPv4: map[*Host]string{l.A: "10.78.0.1", l.B: "10.78.0.2"}, trouble: map[string]int{}}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("lay a cable: %w", err), c.Close())
		}
	}()
	for _, h := range l.Hosts() {
		end, err := h.tap(CableName)
		if err != nil {
			return nil, err
		}
		c.ends = append(c.ends, end)
		if err := h.Script(ctx, fmt.Sprintf("ip address add %s/24 dev %s; ip link set %[2]s up", c.IPv4[h], CableName)); err != nil {
			return nil, err
		}
	}
	go c.carry(c.ends[0], c.ends[1])
	go c.carry(c.ends[1], c.ends[0])
	return c, nil
}

// tap makes a network device whose other side is a file. It goes when that is closed.
func (h *Host) tap(name string) (end *os.File, err error) {
	err = h.doNet(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("open /dev/net/tun: %w", err)
		}
		req, err := unix.NewIfreq(name)
		if err == nil {
			req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
		if err != nil {
			unix.Close(fd)
			return fmt.Errorf("make %s: %w", name, err)
		}
		end = os.NewFile(uintptr(fd), name)
		return nil
	})
	return end, err
}

// carry passes frames on, or does them harm, until the cable is cut.
func (c *Cable) carry(from, to *os.File) {
	frames := make(chan []byte)
	go func() {
		defer close(frames)
		for buf := make([]byte, 64<<10); ; {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			frames <- append([]byte(nil), buf[:n]...)
		}
	}()
	var waits []byte // the frame that is held back
	var late <-chan time.Time
	send := func(frame []byte) {
		if frame != nil {
			to.Write(frame) //nolint:errcheck // one more that is lost
		}
	}
	for n := 1; ; {
		select {
		case <-late:
			send(waits)
			waits, late = nil, nil
			continue
		case frame, ok := <-frames:
			switch {
			case !ok:
				return
			case n%lost == 0:
				c.count("lost")
			case n%altered == 0:
				c.count("altered")
				frame[len(frame)-1] ^= 0x10
				send(frame)
			case n%repeated == 0:
				c.count("repeated")
				send(frame)
				send(frame)
			case n%swapped == 0 && waits == nil:
				waits, late = frame, time.After(heldBack)
			default:
				if send(frame); waits != nil {
					c.count("swapped")
					send(waits)
					waits, late = nil, nil
				}
			}
			n++
		}
	}
}

func (c *Cable) count(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.trouble[what]++
}

// Troubles returns how many frames suffered what.
func (c *Cable) Troubles() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.trouble)
}

// Close cuts the cable and removes its ends.
func (c *Cable) Close() error {
	var errs []error
	for _, end := range c.ends {
		errs = append(errs, end.Close())
	}
	return errors.Join(errs...)
}
