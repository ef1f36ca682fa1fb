package netstate

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// findLosses looks for the objects that no kind of a State holds. It asks only what answers without loading a
// module: a subsystem that is not there has no objects.
func findLosses(ctx context.Context, n *ns.NS, nl *rawnl.Conn, links []link) ([]Loss, error) {
	routes, err := routeLosses(ctx, n, nl)
	if err != nil {
		return nil, err
	}
	bpf, err := bpfLosses(n, links)
	if err != nil {
		return nil, err
	}
	groups, err := multicastLosses(n)
	if err != nil {
		return nil, err
	}
	return slices.Concat(routes, bpf, groups), nil
}

// routeLosses finds routes of families that are not carried.
func routeLosses(ctx context.Context, n *ns.NS, nl *rawnl.Conn) ([]Loss, error) {
	type family struct {
		family byte
		object string
		sign   string // is there if the kernel knows the family
	}
	families := []family{
		{unix.AF_MPLS, "MPLS routes", "/proc/sys/net/mpls"},
		{rtnlFamilyIPMR, "IPv4 multicast routes", "/proc/thread-self/net/ip_mr_cache"},
		{rtnlFamilyIP6MR, "IPv6 multicast routes", "/proc/thread-self/net/ip6_mr_cache"},
	}
	// A family that the kernel lacks is answered with the routes of all families, which may be a million.
	err := n.Do(func() error {
		families = slices.DeleteFunc(families, func(f family) bool {
			_, err := os.Stat(f.sign)
			return errors.Is(err, os.ErrNotExist)
		})
		return nil
	})
	if err != nil {
		return nil, err
	}
	var losses []Loss
	for _, f := range families {
		req := rawnl.Message{Type: unix.RTM_GETROUTE, Data: make([]byte, unix.SizeofRtMsg)}
		req.Data[0] = f.family
		msgs, err := nl.Dump(ctx, req)
		if absent(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("dump %s: %w", f.object, err)
		}
		count := len(slices.DeleteFunc(msgs, func(m rawnl.Message) bool { return len(m.Data) == 0 || m.Data[0] != f.family }))
		if count > 0 {
			losses = append(losses, Loss{Kind: "route", Object: f.object, Reason: fmt.Sprintf("%d of them, which are not carried yet", count)})
		}
	}
	return losses, nil
}

// absent reports whether an error means that the kernel has no such subsystem.
func absent(err error) bool {
	for _, errno := range []unix.Errno{unix.EOPNOTSUPP, unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT, unix.ENOENT} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// multicastLosses finds link-layer addresses that somebody made a device listen to (ip maddr add). In the
// kernel's dumps they look like those that follow from the memberships of sockets.
func multicastLosses(n *ns.NS) ([]Loss, error) {
	var losses []Loss
	err := n.Do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/dev_mcast")
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		for line := range strings.Lines(string(text)) {
			// Index, name, users, users who added it globally, address.
			if f := strings.Fields(line); len(f) == 5 && f[3] != "0" {
				mac, _ := hex.DecodeString(f[4])
				losses = append(losses, Loss{
					Kind: "multicast", Object: fmt.Sprintf("address %s dev %s", net.HardwareAddr(mac), f[1]),
					Reason: "addresses added with ip maddr are not carried", Remedy: "add it again after the move",
				})
			}
		}
		return err
	})
	return losses, err
}
