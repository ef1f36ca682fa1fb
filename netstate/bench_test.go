package netstate_test

import (
	"context"
	"slices"
	"testing"

	"github.com/nsmigrate/nsmigrate/netstate"
)

// container is the typical namespace: lo, a veth to a bridge, two addresses, five routes, twenty nft rules.
const container = `
	ip link set lo up
	ip link add eth0 type veth peer name veth-svc netns $HOST
	ip addr add 10.0.0.2/24 dev eth0; ip addr add fd00::2/64 dev eth0 nodad; ip link set eth0 up
	host ip link set veth-svc master br0 up
	ip route add default via 10.0.0.1; ip -6 route add default via fd00::1
	for i in 1 2 3; do ip route add 192.0.$i.0/24 via 10.0.0.$i; done
	nft add table inet filter; nft 'add chain inet filter input { type filter hook input priority 0; }'
	for i in $(seq 20); do echo "add rule inet filter input ip saddr 10.1.1.$i tcp dport $i accept"; done | nft -f -`

func BenchmarkCapture(b *testing.B) {
	needRoot(b)
	host, source := arrange(b, container)
	first := capture(b, source, host)
	for _, c := range []struct {
		name string
		opts netstate.CaptureOptions
	}{
		{"full", netstate.CaptureOptions{Host: host}},
		{"again", netstate.CaptureOptions{Host: host, Prev: first}},
	} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				if _, err := netstate.Capture(context.Background(), source, c.opts); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkBuildAndConnect(b *testing.B) {
	needRoot(b)
	host, source := arrange(b, container)
	s := capture(b, source, host)
	for _, step := range []string{"build", "connect"} {
		b.Run(step, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				other, target := otherHost(b), newNS(b)
				opts := netstate.BuildOptions{Host: other}
				if step == "build" {
					b.StartTimer()
				}
				if err := netstate.Build(context.Background(), target, s, opts); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				if step == "connect" {
					if err := netstate.Connect(context.Background(), target, s, opts); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// BenchmarkRoutes moves 50,000 routes.
func BenchmarkRoutes(b *testing.B) {
	needRoot(b)
	host, source := arrange(b, `
		ip link add e0 type veth peer name e1; ip link set e0 up; ip link set e1 up; ip addr add 10.0.0.1/8 dev e0
		for i in $(seq 0 195); do for j in $(seq 0 255); do echo "route add 100.$i.$j.0/24 via 10.0.0.9"; done; done | ip -batch -`)
	s := capture(b, source, host)
	count := float64(len(s.Messages[netstate.KindRoute]))
	b.Run("capture", func(b *testing.B) {
		for b.Loop() {
			if _, err := netstate.Capture(context.Background(), source, netstate.CaptureOptions{Host: host, Prev: s}); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(count*float64(b.N)/b.Elapsed().Seconds(), "routes/s")
	})
	b.Run("build", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			target := newNS(b)
			b.StartTimer()
			if err := netstate.Build(context.Background(), target, s, netstate.BuildOptions{Host: host}); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(count*float64(b.N)/b.Elapsed().Seconds(), "routes/s")
	})
}

// BenchmarkLinks moves a bridge with 249 pairs of veth.
func BenchmarkLinks(b *testing.B) {
	needRoot(b)
	host, source := arrange(b, `
		(echo link add br0 type bridge; echo link set br0 up
		for i in $(seq 249); do
			echo "link add p$i type veth peer name q$i"; echo "link set p$i master br0 up"; echo "link set q$i up"
		done) | ip -batch -`)
	s := capture(b, source, host)
	b.Run("capture", func(b *testing.B) {
		for b.Loop() {
			if _, err := netstate.Capture(context.Background(), source, netstate.CaptureOptions{Host: host}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("build", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			target := newNS(b)
			b.StartTimer()
			if err := netstate.Build(context.Background(), target, s, netstate.BuildOptions{Host: host}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkUpdate brings a namespace back and forth between two states of a running service: other neighbours,
// lifetimes and counters.
func BenchmarkUpdate(b *testing.B) {
	needRoot(b)
	host, source := arrange(b, container+`
		ip addr add fd07::1/64 dev eth0 nodad valid_lft 5000 preferred_lft 4000; nft add rule inet filter input counter
		for i in $(seq 50); do echo "neigh add 10.0.0.$i lladdr 02:00:00:00:00:01 dev eth0 nud stale"; done | ip -batch -
		for i in $(seq 100); do conntrack -I -s 10.0.0.2 -d 192.0.2.$i -p tcp --sport 1000 --dport 80 --state ESTABLISHED --timeout 1000 -u SEEN_REPLY,ASSURED; done >/dev/null`)
	first := capture(b, source, host)
	sh(b, source, `
		for i in $(seq 20); do echo "neigh change 10.0.0.$i lladdr 02:00:00:00:00:02 dev eth0 nud stale"; done | ip -batch -
		for i in $(seq 20); do conntrack -D -d 192.0.2.$i; done >/dev/null 2>&1
		nft replace rule inet filter input handle $(nft -a list chain inet filter input | sed -n 's/.*counter.*handle //p') counter packets 9 bytes 9`)
	again, err := netstate.Capture(context.Background(), source, netstate.CaptureOptions{Host: host, Prev: first})
	if err != nil {
		b.Fatal(err)
	}
	states := []*netstate.State{first, again}
	b.Run("difference", func(b *testing.B) {
		for b.Loop() {
			if _, err := netstate.Difference(first, again); err != nil {
				b.Fatal(err)
			}
		}
		d, _ := delta(b, first, again)
		b.ReportMetric(float64(len(d)), "B")
	})
	b.Run("difference of nothing", func(b *testing.B) {
		for b.Loop() {
			if _, err := netstate.Difference(again, again); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("apply", func(b *testing.B) {
		_, d := delta(b, first, again)
		for b.Loop() {
			if _, err := d.Apply(first); err != nil {
				b.Fatal(err)
			}
		}
	})
	target, opts := newNS(b), netstate.BuildOptions{Host: otherHost(b)}
	if err := netstate.Build(context.Background(), target, first, opts); err != nil {
		b.Fatal(err)
	}
	b.Run("update", func(b *testing.B) {
		for b.Loop() {
			if err := netstate.Update(context.Background(), target, states[0], states[1], opts); err != nil {
				b.Fatal(err)
			}
			slices.Reverse(states)
		}
	})
	b.Run("update by nothing", func(b *testing.B) {
		for b.Loop() {
			if err := netstate.Update(context.Background(), target, states[0], states[0], opts); err != nil {
				b.Fatal(err)
			}
		}
	})
}
