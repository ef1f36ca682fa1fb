package hold

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"golang.org/x/sys/unix"
)

// Give sends frames into a namespace from the host's ends of its uplinks, in the caller's namespace: the kernel takes
// them for what comes by the uplink, as it did before. It returns how many were given; frames that an uplink can't have
// received, and what a link doesn't take, are left out. Those of an uplink whose end is not there are left out, too, and the
// error says so.
func Give(uplinks []Uplink, frames []Frame) (given int, err error) {
	if len(frames) == 0 {
		return 0, nil
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("give held packets back: %w", err)
	}
	defer unix.Close(fd)
	type end struct {
		uplink *Uplink
		index  int // of the link on the host
	}
	ends := make(map[int32]end, len(uplinks))
	var errs []error
	for i := range uplinks {
		u := &uplinks[i]
		if !slices.ContainsFunc(frames, func(f Frame) bool { return f.Index == u.Index }) {
			continue
		}
		link, err := net.InterfaceByName(u.Peer)
		if err != nil {
			errs = append(errs, fmt.Errorf("give held packets back: host side %s: %w", u.Peer, err))
			continue
		}
		ends[u.Index] = end{u, link.Index}
	}
	for _, f := range frames {
		e, ok := ends[f.Index]
		if !ok || !e.uplink.fits(f) {
			continue
		}
		if unix.Sendto(fd, f.Data, 0, &unix.SockaddrLinklayer{Ifindex: e.index}) == nil {
			given++
		}
	}
	return given, errors.Join(errs...)
}
