package netstate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// fetchShown is [fetch], and compares IPv6 routes with what the kernel counts of them: their dump ends, without an
// error, at a route with so many nexthops that it is larger than a datagram, and does not show those behind it either.
func fetchShown(ctx context.Context, n *ns.NS, nl *rawnl.Conn, d dump) (msgs []rawnl.Message, losses []Loss, err error) {
	hidden := 0
	for range 3 { // routes may come and go between a dump and a count
		if msgs, err = fetch(ctx, nl, d); err != nil || d.kind != KindRoute || d.req.Data[0] != unix.AF_INET6 {
			return msgs, nil, err
		}
		if hidden, err = hiddenRoutes(n, hopsOf(msgs)); err != nil || hidden <= 0 {
			return msgs, nil, err
		}
	}
	return msgs, []Loss{{
		Kind: "route", Object: "IPv6 routes",
		Reason: fmt.Sprintf("the kernel does not show %d of their nexthops, because one of the routes is larger than a netlink message", hidden),
		Remedy: "give that route a group of nexthop objects instead of its nexthops",
	}}, nil
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

// hiddenRoutes returns how many more IPv6 routes a namespace has than were shown. The kernel's count is free; the list
// of routes without an end is read if it differs.
func hiddenRoutes(n *ns.NS, shown int) (hidden int, err error) {
	err = n.Do(func() error {
		const dir = "/proc/thread-self/net/"
		stats, err := os.ReadFile(dir + "rt6_stats")
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if entries, ok := routeEntries(string(stats)); ok && entries <= shown {
			return nil
		}
		list, err := os.ReadFile(dir + "ipv6_route")
		if err == nil {
			hidden = listedRoutes(string(list)) - shown
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("count IPv6 routes: %w", err)
	}
	return hidden, nil
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
