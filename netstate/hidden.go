package netstate

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// procNet holds files of /proc/net, which are read together: to enter a namespace takes longer than to read one.
type procNet struct{ devMcast, rt6Stats string }

func readProcNet(n *ns.NS) (p procNet, err error) {
	err = n.Do(func() (err error) {
		if p.devMcast, err = procFile("dev_mcast"); err != nil {
			return err
		}
		p.rt6Stats, err = procFile("rt6_stats")
		return err
	})
	return p, err
}

// procFile reads a file of /proc/net in the thread's namespace; one that the kernel does not have is empty.
func procFile(name string) (string, error) {
	text, err := os.ReadFile("/proc/thread-self/net/" + name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(text), err
}

// hiddenRoutes names IPv6 routes that the kernel has and does not show: their dump ends, without an error, at a route
// with so many nexthops that it is larger than a datagram, and does not show those behind it either. shown is how many
// nexthops a dump had. The kernel's own count is free; the list of routes without an end is read if it differs.
func hiddenRoutes(ctx context.Context, n *ns.NS, nl *rawnl.Conn, shown int, p procNet) ([]Loss, error) {
	if entries, ok := routeEntries(p.rt6Stats); !ok || entries <= shown {
		return nil, nil
	}
	hidden := 0
	for range 3 { // routes may come and go between a dump and a count
		msgs, err := nl.Dump(ctx, get(unix.RTM_GETROUTE, unix.SizeofRtMsg, unix.AF_INET6))
		if err != nil {
			return nil, fmt.Errorf("dump routes: %w", err)
		}
		err = n.Do(func() error {
			list, err := procFile("ipv6_route")
			hidden = listedRoutes(list) - hopsOf(msgs)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("count IPv6 routes: %w", err)
		}
		if hidden <= 0 {
			return nil, nil
		}
	}
	return []Loss{{
		Kind: "route", Object: "IPv6 routes",
		Reason: fmt.Sprintf("the kernel does not show %d of their nexthops, because one of the routes is larger than a netlink message", hidden),
		Remedy: "give that route a group of nexthop objects instead of its nexthops",
	}}, nil
}

// hiddenQdiscs names queueing disciplines that the kernel has and does not show: their dump ends, without an error, at one
// that is larger than a datagram, and does not show those behind it either. Only the schedule of a taprio is ever so
// large, and that is always a root, of which the links tell.
func hiddenQdiscs(ctx context.Context, nl *rawnl.Conn, links []link) ([]Loss, error) {
	var missing []*link
	for range 3 { // links may come and go between two dumps
		if !slices.ContainsFunc(links, func(l link) bool { return l.rootQdisc() == taprio }) {
			return nil, nil
		}
		msgs, err := nl.Dump(ctx, get(unix.RTM_GETQDISC, sizeofTCMsg, unix.AF_UNSPEC))
		if err != nil {
			return nil, fmt.Errorf("dump queueing disciplines: %w", err)
		}
		if missing = withoutRoot(links, msgs); len(missing) == 0 {
			return nil, nil
		}
		if links, err = dumpLinks(ctx, nl); err != nil {
			return nil, fmt.Errorf("dump links: %w", err)
		}
	}
	return hiddenRoots(missing), nil
}

const taprio = "taprio"

// rootQdisc returns the kind of a link's queueing discipline, "" if the kernel never shows it.
func (l *link) rootQdisc() string {
	if kind := rawnl.CString(l.attr(unix.IFLA_QDISC)); kind != "noop" && kind != "noqueue" {
		return kind
	}
	return ""
}

// withoutRoot returns the links that have a queueing discipline of which a dump shows nothing.
func withoutRoot(links []link, qdiscs []rawnl.Message) []*link {
	shown := map[int32]bool{}
	for _, m := range qdiscs { // struct tcmsg: family, 3 of padding, ifindex, handle, parent, info
		if len(m.Data) >= sizeofTCMsg && binary.NativeEndian.Uint32(m.Data[12:]) == tcRoot {
			shown[int32(binary.NativeEndian.Uint32(m.Data[4:]))] = true
		}
	}
	var missing []*link
	for i := range links {
		if links[i].rootQdisc() != "" && !shown[links[i].index] {
			missing = append(missing, &links[i])
		}
	}
	return missing
}

// hiddenRoots names the queueing disciplines of links that a dump has none of.
func hiddenRoots(missing []*link) []Loss {
	const large = "its schedule is larger than a netlink message, so that the kernel does not show it"
	var losses []Loss
	for _, l := range missing {
		loss := Loss{Kind: "qdisc", Object: l.rootQdisc() + " dev " + l.name + " root", Reason: large, Remedy: "give it a schedule of fewer entries"}
		if l.rootQdisc() != taprio {
			loss.Reason, loss.Remedy = "the kernel shows nothing behind a taprio that is larger than a netlink message", "give that a schedule of fewer entries"
		}
		losses = append(losses, loss)
	}
	return losses
}

// hopsOf counts the nexthops of dumped routes, each of which is a route to the kernel.
func hopsOf(msgs []rawnl.Message) int {
	count := 0
	for _, m := range msgs {
		count++
		if len(m.Data) < unix.SizeofRtMsg {
			continue
		}
		attrs := m.Data[unix.SizeofRtMsg:]
		if hops := rawnl.Get(attrs, unix.RTA_MULTIPATH); hops != nil && rawnl.Get(attrs, rtaNHID) == nil {
			count--
			for range nexthopsOf(hops) {
				count++
			}
		}
	}
	return count
}

// routeEntries reads the fourth number of rt6_stats, fib_rt_entries.
func routeEntries(stats string) (int, bool) {
	f := strings.Fields(stats)
	if len(f) < 4 {
		return 0, false
	}
	entries, err := strconv.ParseUint(f[3], 16, 32)
	return int(entries), err == nil
}

// listedRoutes counts the lines of ipv6_route, without the entry that each table begins with, which rejects.
func listedRoutes(list string) int {
	count := 0
	for line := range strings.Lines(list) {
		f := strings.Fields(line) // destination, its length, source, its length, gateway, metric, references, uses, flags, device
		if len(f) == 10 && (f[1] != "00" || f[5] != "ffffffff" || f[8] != "00200200") {
			count++
		}
	}
	return count
}
