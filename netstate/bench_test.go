package netstate_test

import (
	"context"
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
