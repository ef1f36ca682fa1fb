package netstate_test

import (
	"context"
	"testing"

	"github.com/nsmigrate/nsmigrate/netstate"
)

// cases are namespaces built with the tools of iproute2; "host" is another namespace, descriptor 3 of the
// script.
var cases = []struct{ name, script string }{
	{"empty", ""},
	{"lo up", "ip link set lo up"},
	{"container", `
		ip link set lo up
		ip link add eth0 mtu 1400 type veth peer name veth-svc mtu 1450 netns /proc/self/fd/3
		ip addr add 10.0.0.2/24 brd + dev eth0
		ip addr add fd00::2/64 dev eth0 nodad
		ip link set eth0 up
		nsenter --net=/proc/self/fd/3 sh -euc "ip link add br0 type bridge; ip link set br0 up; ip link set veth-svc master br0 up"
		ip route add default via 10.0.0.1
		ip -6 route add default via fd00::1
		ip route add 192.0.2.0/24 via 10.0.0.1 dev eth0 metric 7 proto static
		ip neigh add 10.0.0.1 lladdr 02:00:00:00:00:01 dev eth0
		echo 0 > /proc/sys/net/ipv4/tcp_syncookies
		echo 2 > /proc/sys/net/ipv4/conf/eth0/rp_filter
	`},
}

// TestRoundTrip is oracle 1: a state that is captured, written, read and built in a fresh namespace is
// captured equal.
func TestRoundTrip(t *testing.T) {
	needRoot(t)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			ctx := context.Background()
			hostA, source := newNS(t), newNS(t)
			sh(t, source, c.script, hostA)
			want := reread(t, capture(t, source, hostA))
			if losses := want.Losses(); len(losses) > 0 {
				t.Fatalf("losses: %v", losses)
			}
			hostB, target := newNS(t), newNS(t)
			sh(t, hostB, "ip link add br0 type bridge; ip link set br0 up")
			opts := netstate.BuildOptions{Host: hostB}
			if problems, err := netstate.Preflight(ctx, want, opts); err != nil || len(problems) > 0 {
				t.Fatalf("preflight: %v %v", problems, err)
			}
			if err := netstate.Build(ctx, target, want, opts); err != nil {
				t.Fatal(err)
			}
			checkDiff(t, want, func() *netstate.State { return capture(t, target, hostB) })
			if err := netstate.Connect(ctx, target, want, opts); err != nil {
				t.Fatal(err)
			}
			checkDiff(t, want, func() *netstate.State { return capture(t, target, hostB) })
		})
	}
}
