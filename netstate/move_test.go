package netstate_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
)

const bridged = `
	ip link set lo up
	ip link add eth0 address 02:00:00:00:00:02 type veth peer name veth-svc netns $HOST
	ip addr add 10.0.0.2/24 dev eth0; ip addr add fd00::2/64 dev eth0; ip link set eth0 up
	host ip link set veth-svc master br0 up
	ip route add default via 10.0.0.1; ip -6 route add default via fd00::1`

const gateway = `ip addr add 10.0.0.1/24 dev br0; ip addr add fd00::1/64 dev br0 nodad`

// moved captures a case and builds it on another host, on whose bridge is the gateway.
func moved(t *testing.T, script string) (s *netstate.State, target *ns.NS, opts netstate.BuildOptions) {
	t.Helper()
	hostA, source := arrange(t, script)
	settleDown(t, source, hostA)
	s = reread(t, capture(t, source, hostA))
	hostB := otherHost(t)
	target = newNS(t)
	sh(t, hostB, gateway)
	opts = netstate.BuildOptions{Host: hostB}
	if err := netstate.Build(context.Background(), target, s, opts); err != nil {
		t.Fatal(err)
	}
	return s, target, opts
}

// reaches reports whether an address answers: a port without a listener refuses at once. That a neighbour does not
// answer, which may be found out a moment before it does, is no answer.
func reaches(t *testing.T, n *ns.NS, addr string, within time.Duration) bool {
	t.Helper()
	for deadline := time.Now().Add(within); ; {
		err := n.Do(func() error {
			_, err := net.DialTimeout("tcp", net.JoinHostPort(addr, "9"), time.Until(deadline))
			return err
		})
		if !errors.Is(err, unix.EHOSTUNREACH) || time.Now().After(deadline) {
			return errors.Is(err, unix.ECONNREFUSED)
		}
	}
}

// TestMuteUntilConnected: nothing leaves a namespace that is built but not connected, and from the moment that
// it is connected both protocols work, without duplicate address detection.
func TestMuteUntilConnected(t *testing.T) {
	needRoot(t)
	macvlan := `
		host ip link add par type veth peer name parpeer
		host ip link set par up; host ip link set parpeer up
		host ip link add mv0 link par address 02:aa:00:00:00:01 type macvlan mode bridge
		host ip link set mv0 netns $HOST_TARGET
		ip addr add 10.0.0.2/24 dev mv0; ip addr add fd00::2/64 dev mv0; ip link set mv0 up`
	for _, c := range []struct{ name, script, mac, prepare string }{
		{"veth", bridged, "02:00:00:00:00:02", "true"},
		{"macvlan", macvlan, "02:aa:00:00:00:01", "ip link set parpeer master br0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, target, opts := moved(t, c.script)
			sh(t, opts.Host, c.prepare+"; sleep 0.5")
			heard := func() bool { return strings.Contains(sh(t, opts.Host, "bridge fdb show br br0"), c.mac+" dev") }
			if reaches(t, target, "10.0.0.1", time.Second) || reaches(t, target, "fd00::1", time.Second) {
				t.Error("the host answers")
			}
			if heard() {
				t.Error("the host's bridge has learned the namespace's address")
			}
			if err := netstate.Connect(context.Background(), target, s, opts); err != nil {
				t.Fatal(err)
			}
			if !reaches(t, target, "10.0.0.1", time.Minute) || !reaches(t, target, "fd00::1", time.Minute) {
				t.Error("the host does not answer")
			}
			if !heard() {
				t.Error("the host's bridge has not learned the namespace's address")
			}
			if out := sh(t, target, "ip -6 addr show tentative"); out != "" {
				t.Errorf("tentative addresses: %s", out)
			}
		})
	}
}

// TestLearnedNeighbours: what the source had learned is known after the move, also where the lack of a carrier
// flushed it; but not the address of a bridge that stayed behind.
func TestLearnedNeighbours(t *testing.T) {
	needRoot(t)
	s, target, opts := moved(t, bridged+`
		ip neigh add 10.0.0.7 lladdr 02:00:00:00:00:77 dev eth0 nud reachable
		ip neigh add fd00::7 lladdr 02:00:00:00:00:77 dev eth0 nud stale
		ip neigh add 10.0.0.8 lladdr $(host cat /sys/class/net/br0/address 2>/dev/null || host ip -br link show br0 | tr -s ' ' | cut -d' ' -f3) dev eth0 nud reachable`)
	if err := netstate.Connect(context.Background(), target, s, opts); err != nil {
		t.Fatal(err)
	}
	got := sh(t, target, "sleep 1.2; ip neigh show dev eth0 nud stale | sort")
	if !strings.Contains(got, "10.0.0.7 lladdr 02:00:00:00:00:77") || !strings.Contains(got, "fd00::7 lladdr 02:00:00:00:00:77") || strings.Contains(got, "10.0.0.8 ") {
		t.Errorf("neighbours after the move:\n%s", got)
	}
}

// TestDisconnect cuts the source and puts it back, with the host's routes.
func TestDisconnect(t *testing.T) {
	needRoot(t)
	ctx := context.Background()
	hostA, source := arrange(t, bridged+`
		host sh -c "`+gateway+`; ip link set veth-svc nomaster; ip addr add 10.9.0.1/32 dev veth-svc; ip route add 10.0.0.2/32 dev veth-svc"
		ip link set eth0 up`)
	settleDown(t, source, hostA)
	s := capture(t, source, hostA)
	opts := netstate.BuildOptions{Host: hostA}
	const quiet = `while [ -n "$(ip -6 addr show tentative)" ]; do sleep 0.02; done; `
	before := sh(t, hostA, quiet+"ip route show table all; ip addr show dev veth-svc")
	if err := netstate.Disconnect(ctx, source, s, opts); err != nil {
		t.Fatal(err)
	}
	if cut := sh(t, hostA, "ip route show dev veth-svc; ip -br link show veth-svc"); !strings.Contains(cut, "DOWN") || strings.Contains(cut, "10.0.0.2") {
		t.Errorf("after the cut: %s", cut)
	}
	if err := netstate.Connect(ctx, source, s, opts); err != nil {
		t.Fatal(err)
	}
	if after := sh(t, hostA, "sleep 0.3; "+quiet+"ip route show table all; ip addr show dev veth-svc"); sortLines(after) != sortLines(before) {
		t.Errorf("the host differs:\n%s", lineDiff(before, after))
	}
	checkDiff(t, s, func() *netstate.State { return capture(t, source, hostA) })
	for range 2 {
		if err := netstate.RemoveUplinks(ctx, s.Uplinks(), opts); err != nil {
			t.Fatal(err)
		}
	}
	if left := sh(t, hostA, "ip link show veth-svc 2>/dev/null || true"); left != "" {
		t.Errorf("left on the host: %s", left)
	}
}

// TestRemoveUplinksSparesNamesake: a link that has only the name in common is not ours.
func TestRemoveUplinksSparesNamesake(t *testing.T) {
	needRoot(t)
	hostA, source := arrange(t, bridged)
	s := capture(t, source, hostA)
	sh(t, hostA, "ip link del veth-svc; ip link add veth-svc type veth peer name other")
	if err := netstate.RemoveUplinks(context.Background(), s.Uplinks(), netstate.BuildOptions{Host: hostA}); err != nil {
		t.Fatal(err)
	}
	sh(t, hostA, "ip link show veth-svc")
}

// TestUndo: a build that fails after it changed the host leaves the host as it was, with what a journal kept of it,
// and its error says what the kernel refused.
func TestUndo(t *testing.T) {
	needRoot(t)
	ctx := context.Background()
	hostA, source := arrange(t, bridged)
	settleDown(t, source, hostA)
	s := capture(t, source, hostA)
	hostB, target := newNS(t), newNS(t)
	sh(t, hostB, "ip link add bystander type bridge")
	before := sh(t, hostB, "ip link")
	var notes [][]byte
	opts := netstate.BuildOptions{
		Host:    hostB,
		Uplinks: map[string]netstate.UplinkTarget{"eth0": {Peer: "up0", Bridge: "nobridge"}},
		Note: func(c netstate.HostChange) error {
			if now := sh(t, hostB, "ip link"); now != before {
				t.Errorf("the host was changed before %s was noted:\n%s", c, lineDiff(before, now))
			}
			note, err := json.Marshal(c)
			notes = append(notes, note)
			return err
		},
	}
	undo := func() {
		t.Helper()
		for _, note := range slices.Backward(notes) {
			var c netstate.HostChange
			if err := json.Unmarshal(note, &c); err != nil {
				t.Fatal(err)
			}
			if err := hostB.Do(func() error { return netstate.UndoHostChange(ctx, c) }); err != nil {
				t.Error(err)
			}
		}
	}
	err := netstate.Build(ctx, target, s, opts)
	if err == nil || !strings.Contains(err.Error(), "bridge nobridge: no such link") {
		t.Fatalf("Build: %v", err)
	}
	if during := sh(t, hostB, "ip link"); !strings.Contains(during, "up0") {
		t.Errorf("the failure came before the change: %s", during)
	}
	undo()
	if after := sh(t, hostB, "ip link"); after != before {
		t.Errorf("the host differs:\n%s", lineDiff(before, after))
	}
	undo() // there is nothing more to undo

	// Another attempt at the same service is no business of the first one's journal.
	first := notes
	notes = nil
	opts.Uplinks = map[string]netstate.UplinkTarget{"eth0": {Peer: "up0", Bridge: "bystander"}}
	if err := netstate.Build(ctx, newNS(t), s, netstate.BuildOptions{Host: hostB, Uplinks: opts.Uplinks}); err != nil {
		t.Fatal(err)
	}
	notes = first
	undo()
	sh(t, hostB, "ip link show up0")

	// A name that is taken is refused before an undo could touch its owner; what can't be noted is not done.
	notes, before = nil, sh(t, hostB, "ip link")
	opts.Uplinks = map[string]netstate.UplinkTarget{"eth0": {Peer: "bystander"}}
	if err := netstate.Build(ctx, newNS(t), s, opts); err == nil || len(notes) > 0 {
		t.Errorf("Build over a link: %v, %d notes", err, len(notes))
	}
	opts.Uplinks = map[string]netstate.UplinkTarget{"eth0": {Peer: "up1"}}
	opts.Note = func(netstate.HostChange) error { return errors.ErrUnsupported }
	if err := netstate.Build(ctx, newNS(t), s, opts); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Build without a note: %v", err)
	}
	if after := sh(t, hostB, "ip link"); after != before {
		t.Errorf("the host differs:\n%s", lineDiff(before, after))
	}
	if err := netstate.UndoHostChange(ctx, netstate.HostChange{Kind: "moon"}); err == nil {
		t.Error("a change of an unknown kind was undone")
	}
}

// TestRefusedMessage: a refusal names the object in ip's words, with the kernel's text and errno.
func TestRefusedMessage(t *testing.T) {
	needRoot(t)
	hostA, source := arrange(t, `
		ip link add e0 type veth peer name e1; ip link set e0 up; ip link set e1 up
		ip addr add 10.1.0.1/24 dev e0; ip route add 192.0.2.0/24 via 10.1.0.9 metric 77`)
	s := capture(t, source, hostA)
	for i, m := range s.Messages[netstate.KindRoute] {
		s.Messages[netstate.KindRoute][i].Data = []byte(strings.ReplaceAll(string(m.Data), "\x0a\x01\x00\x09", "\x0a\x63\x00\x09"))
	}
	err := netstate.Build(context.Background(), newNS(t), s, netstate.BuildOptions{Host: newNS(t)})
	const want = "add route 192.0.2.0/24 metric 77 via 10.99.0.9 dev e0 table main proto boot: Nexthop has invalid gateway (network is unreachable)"
	if err == nil || !strings.HasSuffix(err.Error(), want) || !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("got  %v\nwant ...%s", err, want)
	}
}

func TestPreflight(t *testing.T) {
	needRoot(t)
	hostA, source := arrange(t, bridged+`
		ip link add eth1 type veth peer name twin netns $HOST
		host ip link add par type veth peer name parpeer
		host ip link add mv0 link par type macvlan; host ip link set mv0 netns $HOST_TARGET`)
	s := capture(t, source, hostA)
	host := newNS(t)
	sh(t, host, "ip link add twin type bridge; ip addr add 10.0.0.2/24 dev twin")
	problems, err := netstate.Preflight(context.Background(), s, netstate.BuildOptions{
		Host: host, Uplinks: map[string]netstate.UplinkTarget{"eth9": {Peer: "x"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range problems {
		got = append(got, p.String())
	}
	want := []string{
		"uplink eth9: the namespace has no uplink of this name",
		"uplink eth0: the host has no bridge br0",
		"uplink eth1: the host has a link twin already",
		"uplink mv0: the host has no device par",
		"address 10.0.0.2 dev eth0: the host has this address itself",
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestPreflightMTU: full packets of the service must get through on the other host.
func TestPreflightMTU(t *testing.T) {
	needRoot(t)
	hostA, source := arrange(t, bridged+`
		ip link set eth0 mtu 4000
		host ip link add par mtu 9000 type veth peer name parpeer
		host ip link add mv0 link par mtu 8000 type macvlan; host ip link set mv0 netns $HOST_TARGET`)
	s := capture(t, source, hostA)
	for _, tt := range []struct {
		name, host string
		want       []string
	}{
		{"nothing on the bridge limits it", "ip link add br0 type bridge; ip link add par mtu 8000 type veth", nil},
		{"one port takes it", `ip link add br0 type bridge; ip link add par mtu 8000 type veth
			ip link add p1 mtu 1500 master br0 type veth; ip link add p2 mtu 4000 master br0 type veth`, nil},
		{"too small", `ip link add br0 type bridge; ip link add par mtu 7999 type veth
			ip link add p1 mtu 1500 master br0 type veth; ip link add p2 mtu 3999 master br0 type veth`, []string{
			"uplink eth0: its MTU is 4000, and every port of br0 takes 3999 bytes at most",
			"uplink mv0: its MTU is 8000, and par takes 7999 bytes at most",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			host := newNS(t)
			sh(t, host, tt.host)
			problems, err := netstate.Preflight(context.Background(), s, netstate.BuildOptions{Host: host})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, p := range problems {
				got = append(got, p.String())
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %q\nwant %q", got, tt.want)
			}
		})
	}
}

// TestDiffEmpty compares with a fresh namespace, which nil stands for.
func TestDiffEmpty(t *testing.T) {
	needRoot(t)
	fresh := newNS(t)
	s := capture(t, fresh, newNS(t))
	if changes := netstate.Diff(nil, s); len(changes) > 0 {
		t.Errorf("a fresh namespace differs from nil: %v", changes)
	}
	sh(t, fresh, "ip link set lo up; ip route add 10.0.0.0/8 dev lo; ip rule add lookup 9 pref 9; echo 7 > /proc/sys/net/ipv4/tcp_retries2")
	altered := capture(t, fresh, newNS(t))
	var got []string
	for _, c := range netstate.Diff(s, altered) {
		got = append(got, c.String())
	}
	for _, want := range []string{
		"+ route 10.0.0.0/8 dev lo table main proto boot scope link",
		"+ rule 9: from all proto 0 lookup 9",
		"- sysctl net.ipv4.tcp_retries2 = 15", "+ sysctl net.ipv4.tcp_retries2 = 7",
		"+ address inet 127.0.0.1/8 dev lo scope host label lo",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("%q is not among\n%s", want, strings.Join(got, "\n"))
		}
	}
	if changes := netstate.Diff(altered, nil); len(changes) == 0 {
		t.Error("an altered namespace equals nil")
	}
}

// TestHiddenGateways: rules that came after a route or a nexthop don't keep a namespace from being connected.
func TestHiddenGateways(t *testing.T) {
	needRoot(t)
	move(t, `
		ip link add eth0 address 02:11:22:33:44:55 type veth peer name va netns $HOST
		ip addr add 10.1.0.2/24 dev eth0; ip addr add fd01::2/64 dev eth0 nodad; ip link set eth0 up; host ip link set va up
		until ip nexthop add id 5 via 10.1.0.1 dev eth0; do sleep 0.1; done 2>/dev/null
		ip nexthop add id 6 via fd01::1 dev eth0
		ip route add 192.0.2.0/24 nhid 5; ip -6 route add 2001:db8::/64 nhid 6; ip route add 198.51.100.0/24 via 10.1.0.9
		ip rule add pref 0 to 10.9.0.0/16 lookup main; ip rule add pref 1 blackhole; ip -6 rule add pref 1 blackhole`, toolCommands(), false)
}
