// Package lab builds a small data centre out of namespaces: hosts A and B, a client, and a switch between
// them. Nothing of it is in the real machine's own network namespace, and all of it ends with the program.
//
//	client eth0 ──┐                       ┌── eth0 br0 A ── veth-svc ── eth0 in namespace "svc"
//	              ├── switch (bridge sw0) ┤
//	              ┘                       └── eth0 br0 B
package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Mounts says how a host's mounts propagate.
type Mounts string

const (
	MountsShared  Mounts = "shared"  // as systemd sets them up; the default
	MountsPrivate Mounts = "private" // as in most containers
)

// Options of a lab. The zero value serves.
type Options struct {
	Mounts Mounts
	Dir    string // where the lab's directory is made; "" is the machine's directory for temporary files
}

// Addresses of the lab's LAN. The client is also reachable, from services through their default route only,
// at the Far addresses.
const (
	ClientIPv4    = "10.77.0.10"
	ClientIPv6    = "fd77::10"
	ClientFarIPv4 = "192.0.2.10"
	ClientFarIPv6 = "2001:db8:2::10"
	GatewayIPv4   = "10.77.0.254"
	GatewayIPv6   = "fd77::fe"
)

// Lab is two hosts, a client and a switch.
type Lab struct {
	Dir    string // seen by all hosts at the same place, like a network file system
	A, B   *Host
	Client *Host

	net *Host // the switch
}

// New builds a lab. Close removes it.
func New(ctx context.Context, o Options) (*Lab, error) {
	if o.Mounts == "" {
		o.Mounts = MountsShared
	}
	tmp, err := os.MkdirTemp(o.Dir, "nsmigrate-lab-")
	if err != nil {
		return nil, err
	}
	l := &Lab{Dir: tmp}
	if err := l.build(ctx, o); err != nil {
		return nil, errors.Join(fmt.Errorf("build lab: %w", err), l.Close())
	}
	return l, nil
}

func (l *Lab) build(ctx context.Context, o Options) error {
	for i, place := range []struct {
		host **Host
		name string
		ipv4 string
		ipv6 string
	}{
		{&l.net, "switch", "", ""},
		{&l.A, "host-a", "10.77.0.1", "fd77::1"},
		{&l.B, "host-b", "10.77.0.2", "fd77::2"},
		{&l.Client, "client", ClientIPv4, ClientIPv6},
	} {
		h, err := newHost(initSpec{hostname: place.name, shared: l.Dir, mounts: o.Mounts, firstPID: 1000 + 7000*i},
			filepath.Join(l.Dir, place.name))
		if err != nil {
			return err
		}
		h.IPv4, h.IPv6 = place.ipv4, place.ipv6
		*place.host = h
	}
	if err := l.net.Script(ctx, "ip link add sw0 type bridge mcast_snooping 0; ip link set sw0 up"); err != nil {
		return err
	}
	for _, h := range []*Host{l.A, l.B, l.Client} {
		if err := l.plug(ctx, h); err != nil {
			return err
		}
	}
	for _, h := range []*Host{l.A, l.B} {
		err := h.Script(ctx, fmt.Sprintf(`
			ip link add br0 type bridge mcast_snooping 0
			ip link set br0 address $(cat /sys/class/net/eth0/address)
			ip link set eth0 master br0
			ip link set br0 up
			ip address add %s/24 dev br0
			ip address add %s/64 dev br0 nodad`, h.IPv4, h.IPv6))
		if err != nil {
			return err
		}
	}
	return l.Client.Script(ctx, fmt.Sprintf(`
		ip address add %s/24 dev eth0
		ip address add %s/24 dev eth0
		ip address add %s/32 dev lo
		ip address add %s/64 dev eth0 nodad
		ip address add %s/64 dev eth0 nodad
		ip address add %s/128 dev lo nodad
		echo 1 > /proc/sys/net/ipv4/ip_forward
		echo 1 > /proc/sys/net/ipv6/conf/all/forwarding`,
		ClientIPv4, GatewayIPv4, ClientFarIPv4, ClientIPv6, GatewayIPv6, ClientFarIPv6))
}

// plug connects a host's eth0 with the switch. The pair is made inside the switch: the machine's own
// network namespace never sees it.
func (l *Lab) plug(ctx context.Context, h *Host) error {
	port := "to-" + h.Name
	add := command(ctx, "ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", fmt.Sprint(h.PID()))
	err := l.net.doNet(func() error {
		out, err := add.CombinedOutput()
		if err != nil {
			return fmt.Errorf("plug %s: %w: %s", h.Name, err, out)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := l.net.Script(ctx, fmt.Sprintf("ip link set %s master sw0 up", port)); err != nil {
		return err
	}
	return h.Script(ctx, "ip link set lo up; ip link set eth0 up")
}

// Hosts returns the two hosts.
func (l *Lab) Hosts() []*Host { return []*Host{l.A, l.B} }

// Other returns the host that is not h.
func (l *Lab) Other(h *Host) *Host {
	if h == l.A {
		return l.B
	}
	return l.A
}

// Close ends every process of the lab, by which all its namespaces vanish, and removes its directory.
func (l *Lab) Close() error {
	for _, h := range []*Host{l.Client, l.A, l.B, l.net} {
		if h != nil {
			h.close()
		}
	}
	return os.RemoveAll(l.Dir)
}

// Eventually asks until the answer is nil, and returns the last answer if the context ends first. It is for
// what has no event to wait for.
func Eventually(ctx context.Context, ask func() error) error {
	const longest = 200 * time.Millisecond
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, longest) {
		err := ask()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}
