package conntrack_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nsmigrate/nsmigrate/netstate/conntrack"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/ns/nstest"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// pair is a client and a server namespace joined by a link: 10.0.0.1 and 10.0.0.2, fd00::1 and fd00::2.
type pair struct{ client, server *ns.NS }

func newPair(t testing.TB) pair {
	t.Helper()
	p := pair{nstest.New(t), nstest.New(t)}
	err := p.client.Do(func() error {
		cmd := exec.Command("ip", "link", "add", "c", "type", "veth", "peer", "name", "s", "netns", "/proc/self/fd/3")
		cmd.ExtraFiles = []*os.File{p.server.File()}
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range []*ns.NS{p.client, p.server} {
		dev := string("cs"[i])
		nstest.Run(t, n, fmt.Sprintf("sysctl -qw net.ipv4.tcp_syn_retries=2; ip link set lo up; ip addr add 10.0.0.%d/24 dev %s; ip addr add fd00::%d/64 dev %s nodad; ip link set %s up", i+1, dev, i+1, dev, dev))
	}
	return p
}

// listen opens a TCP listener inside a namespace that echoes what it gets.
func listen(t testing.TB, n *ns.NS, addr string) {
	t.Helper()
	serve(t, n, addr, func(c net.Conn) { _, _ = io.Copy(c, c) })
}

// serve opens a TCP listener inside a namespace and handles each connection.
func serve(t testing.TB, n *ns.NS, addr string, handle func(net.Conn)) {
	t.Helper()
	err := n.Do(func() error {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		l, err := lc.Listen(t.Context(), "tcp", addr)
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					handle(c)
				}()
			}
		}()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func dial(t testing.TB, n *ns.NS, network, addr string) net.Conn {
	t.Helper()
	var c net.Conn
	err := n.Do(func() error {
		// The goroutines that a dial with a name or a timeout starts would be outside of the namespace.
		ap := netip.MustParseAddrPort(addr)
		var err error
		if network == "udp" {
			c, err = net.DialUDP(network, nil, net.UDPAddrFromAddrPort(ap))
		} else {
			c, err = net.DialTCP(network, nil, net.TCPAddrFromAddrPort(ap))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// echo sends a line and expects it back.
func echo(t testing.TB, c net.Conn, line string) {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, line); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(line))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != line {
		t.Fatalf("sent %q, got %q, %v", line, got, err)
	}
}

// list returns what conntrack says of a namespace, sorted, without the life that is left.
func list(t testing.TB, n *ns.NS) []string {
	t.Helper()
	var lines []string
	for line := range strings.Lines(nstest.Run(t, n, "conntrack -L -o extended,labels 2>/dev/null")) {
		lines = append(lines, regexp.MustCompile(`^(\S+ +\d+ \S+ +\d+) \d+`).ReplaceAllString(strings.TrimSpace(line), "$1"))
	}
	slices.Sort(lines)
	return lines
}

// replay captures a namespace, flushes its entries and creates them again.
func replay(t testing.TB, n *ns.NS) {
	t.Helper()
	before := list(t, n)
	msgs := capture(t, n)
	if len(msgs) == 0 {
		t.Fatal("nothing captured")
	}
	plan, err := conntrack.Plan(msgs)
	if err != nil {
		t.Fatal(err)
	}
	nstest.Run(t, n, "conntrack -F 2>/dev/null")
	if left := capture(t, n); len(left) != 0 {
		t.Fatalf("%d entries left after flush", len(left))
	}
	if err := conntrack.Apply(t.Context(), n, plan); err != nil {
		t.Fatal(err)
	}
	if after := list(t, n); !slices.Equal(before, after) {
		t.Errorf("before:\n%s\nafter:\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	checkEqual(t, msgs, capture(t, n))
}

func checkEqual(t testing.TB, before, after []rawnl.Message) {
	t.Helper()
	if len(before) != len(after) {
		t.Errorf("%d messages before, %d after", len(before), len(after))
		return
	}
	for i := range before {
		want, got := conntrack.Normalize(before[i]), conntrack.Normalize(after[i])
		if string(want.Data) != string(got.Data) {
			t.Errorf("- %s\n+ %s\n- %x\n+ %x", conntrack.Describe(want), conntrack.Describe(got), want.Data, got.Data)
		}
	}
}

func capture(t testing.TB, n *ns.NS) []rawnl.Message {
	t.Helper()
	msgs, err := conntrack.Capture(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	return msgs
}

// TestReplayConnections: a connection that is translated inside the namespace goes on over entries that
// were flushed and created again.
func TestReplayConnections(t *testing.T) {
	nstest.NeedRoot(t, "ip", "nft", "conntrack")
	cases := []struct {
		name, rules, listen, dial string
	}{
		{"plain", "", "10.0.0.2:5000", "10.0.0.2:5000"},
		{"redirect", "tcp dport 80 redirect to :5000", "10.0.0.2:5000", "10.0.0.2:80"},
		{"dnat", "ip daddr 192.0.2.1 tcp dport 80 dnat ip to 10.0.0.2:5000", "10.0.0.2:5000", "192.0.2.1:80"},
		{"dnat6", "ip6 daddr 2001:db8::1 tcp dport 80 dnat ip6 to [fd00::2]:5000", "[fd00::2]:5000", "[2001:db8::1]:80"},
		{"redirect6", "tcp dport 80 redirect to :5000", "[fd00::2]:5000", "[fd00::2]:80"},
		{"both", "ip daddr 192.0.2.1 tcp dport 80 dnat ip to 10.0.0.2:5000; }; chain in { type nat hook input priority 100; tcp dport 5000 snat ip to 10.0.0.99:7777", "10.0.0.2:5000", "192.0.2.1:80"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p := newPair(t)
			nstest.Run(t, p.client, "ip route add default via 10.0.0.2; ip -6 route add default via fd00::2")
			nstest.Run(t, p.server, "ip addr add 10.0.0.77/24 dev s; ip route add 10.0.0.99 dev s; ip neigh add 10.0.0.99 lladdr 02:00:00:00:00:99 dev s")
			nstest.Run(t, p.server, `nft 'table inet t { chain f { type filter hook input priority 0; ct state invalid drop; ct state established accept; tcp dport 5000 ct mark set 0x77 accept; };
				chain n { type nat hook prerouting priority dstnat; `+c.rules+`; }; }'`)
			listen(t, p.server, c.listen)
			conn := dial(t, p.client, "tcp", c.dial)
			echo(t, conn, "before\n")
			replay(t, p.server)
			echo(t, conn, "after\n")
			replay(t, p.server)
			echo(t, conn, strings.Repeat("much", 50_000))
		})
	}
}

// TestReplayWhileRetransmitting: the first packet that a moved entry sees is old, and the answer
// acknowledges more than that packet held. It must not count as invalid.
func TestReplayWhileRetransmitting(t *testing.T) {
	nstest.NeedRoot(t, "ip", "nft", "conntrack")
	p := newPair(t)
	nstest.Run(t, p.server, `nft 'table ip t {
		chain i { type filter hook input priority 0; ct state invalid drop; };
		chain o { type filter hook output priority 0; ct state invalid drop; }; }'`)
	// Segments too large to be repeated together.
	line, count := strings.Repeat("unheard", 200), 6
	serve(t, p.server, "10.0.0.2:5000", func(c net.Conn) {
		_, _ = io.CopyN(c, c, int64(len("before\n")))
		_, _ = io.CopyN(io.Discard, c, int64(len(line)*count))
		_, _ = io.WriteString(c, "all heard\n")
	})
	conn := dial(t, p.client, "tcp", "10.0.0.2:5000")
	echo(t, conn, "before\n")
	// The server hears the client, the client doesn't hear the server, until it starts to repeat from its
	// first unacknowledged segment.
	nstest.Run(t, p.client, "nft 'table ip deaf { chain i { type filter hook input priority 0; tcp sport 5000 drop; }; }'")
	for range count - 1 {
		if _, err := io.WriteString(conn, line); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	time.Sleep(400 * time.Millisecond)
	msgs := capture(t, p.server)
	plan, err := conntrack.Plan(msgs)
	if err != nil {
		t.Fatal(err)
	}
	nstest.Run(t, p.server, "conntrack -F 2>/dev/null")
	if err := conntrack.Apply(t.Context(), p.server, plan); err != nil {
		t.Fatal(err)
	}
	nstest.Run(t, p.client, "nft delete table ip deaf")
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, line); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); string(got) != "all heard\n" {
		t.Fatalf("got %q, %v", got, err)
	}
}

// TestReplayForwarded: entries of a router that masquerades, for protocols with ports and with ids.
func TestReplayForwarded(t *testing.T) {
	nstest.NeedRoot(t, "ip", "nft", "conntrack", "ping")
	left, right := newPair(t), nstest.New(t)
	router := left.server
	err := router.Do(func() error {
		cmd := exec.Command("ip", "link", "add", "r", "type", "veth", "peer", "name", "x", "netns", "/proc/self/fd/3")
		cmd.ExtraFiles = []*os.File{right.File()}
		return cmd.Run()
	})
	if err != nil {
		t.Fatal(err)
	}
	nstest.Run(t, router, "ip addr add 10.1.0.1/24 dev r; ip link set r up; sysctl -qw net.ipv4.ip_forward=1")
	nstest.Run(t, right, "ip addr add 10.1.0.2/24 dev x; ip link set x up; ip link set lo up")
	nstest.Run(t, left.client, "ip route add default via 10.0.0.2")
	nstest.Run(t, router, `nft 'table ip t { chain n { type nat hook postrouting priority srcnat; oifname "r" meta l4proto { tcp, udp } masquerade to :40000-40100; oifname "r" masquerade; }; chain z { type filter hook forward priority 0; ct label set 5; ct mark set 0x5; }; }'`)
	listen(t, right, "10.1.0.2:5000")
	conn := dial(t, left.client, "tcp", "10.1.0.2:5000")
	echo(t, conn, "before\n")
	nstest.Run(t, left.client, "ping -c 1 -W 2 10.1.0.2")
	udp := dial(t, left.client, "udp", "10.1.0.2:53")
	if _, err := udp.Write([]byte("unanswered")); err != nil {
		t.Fatal(err)
	}
	replay(t, router)
	echo(t, conn, "after\n")

	msgs := capture(t, router)
	for _, c := range []struct {
		addr string
		some bool
	}{{"10.0.0.1", true}, {"10.1.0.1", true}, {"10.9.9.9", false}} {
		got := conntrack.Filter(msgs, []netip.Addr{netip.MustParseAddr(c.addr)})
		if c.some != (len(got) > 0) {
			t.Errorf("%s: %d entries", c.addr, len(got))
		}
	}
}

// TestReplayExpectations: an FTP control connection with its helper, an expected data connection that
// comes after the move, and one that came before and names its master. All of it in a zone.
func TestReplayExpectations(t *testing.T) {
	nstest.NeedRoot(t, "ip", "nft", "conntrack")
	p := newPair(t)
	nstest.Run(t, p.server, `nft 'table ip t {
		ct helper ftp { type "ftp" protocol tcp; l3proto ip; };
		chain r { type filter hook prerouting priority raw; ct zone set 5; };
		chain o { type filter hook output priority raw; ct zone set 5; };
		chain i { type filter hook input priority 0; tcp dport 21 ct helper set "ftp"; tcp dport 21 accept; ct state established,related accept; drop; }; }'`)
	serve(t, p.server, "10.0.0.2:21", func(c net.Conn) {
		_, _ = io.WriteString(c, "220 at your service\r\n") // the helper looks for answers after a line's end
		for port := byte(1); ; port++ {
			if _, err := io.ReadFull(c, make([]byte, len("PASV\r\n"))); err != nil {
				return
			}
			_, _ = fmt.Fprintf(c, "227 Entering Passive Mode (10,0,0,2,100,%d).\r\n", port)
		}
	})
	listen(t, p.server, "10.0.0.2:25601")
	listen(t, p.server, "10.0.0.2:25602")
	control := dial(t, p.client, "tcp", "10.0.0.2:21")
	if _, err := control.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	passive := func() {
		if _, err := io.WriteString(control, "PASV\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := control.Read(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
	}
	passive()
	first := dial(t, p.client, "tcp", "10.0.0.2:25601")
	echo(t, first, "first\n")
	passive()
	var lines []string
	for _, m := range capture(t, p.server) {
		lines = append(lines, conntrack.Describe(m))
	}
	text := strings.Join(lines, "\n")
	for _, want := range []string{"helper=ftp", "zone=5", "expectation tcp", "EXPECTED", "master src=10.0.0.1 dst=10.0.0.2"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	replay(t, p.server)
	echo(t, first, "first again\n")
	second := dial(t, p.client, "tcp", "10.0.0.2:25602")
	echo(t, second, "second\n")
}

// TestApplyOverExisting: entries that are there already, wrong or right, end up as planned.
func TestApplyOverExisting(t *testing.T) {
	nstest.NeedRoot(t, "ip", "nft", "conntrack")
	p := newPair(t)
	nstest.Run(t, p.server, "nft 'table ip t { chain n { type nat hook prerouting priority dstnat; tcp dport 80 redirect to :5000; }; }'")
	listen(t, p.server, "10.0.0.2:5000")
	conn := dial(t, p.client, "tcp", "10.0.0.2:80")
	echo(t, conn, "before\n")
	msgs := capture(t, p.server)
	plan, err := conntrack.Plan(msgs)
	if err != nil {
		t.Fatal(err)
	}
	// As it is.
	if err := conntrack.Apply(t.Context(), p.server, plan); err != nil {
		t.Fatal(err)
	}
	checkEqual(t, msgs, capture(t, p.server))
	// Replayed as captured, which loses the translation.
	nstest.Run(t, p.server, "conntrack -F 2>/dev/null")
	var verbatim []rawnl.Message
	for _, m := range msgs {
		m.Flags = 0x400 // NLM_F_CREATE
		verbatim = append(verbatim, m)
	}
	if err := conntrack.Apply(t.Context(), p.server, verbatim); err != nil {
		t.Fatal(err)
	}
	if err := conntrack.Apply(t.Context(), p.server, plan); err != nil {
		t.Fatal(err)
	}
	checkEqual(t, msgs, capture(t, p.server))
	echo(t, conn, "after\n")
}

// TestCaptureUntracked: looking does not switch tracking on.
func TestCaptureUntracked(t *testing.T) {
	nstest.NeedRoot(t, "ip", "conntrack")
	p := newPair(t)
	if msgs := capture(t, p.server); len(msgs) != 0 {
		t.Fatalf("%d messages", len(msgs))
	}
	listen(t, p.server, "10.0.0.2:5000")
	echo(t, dial(t, p.client, "tcp", "10.0.0.2:5000"), "hello\n")
	if msgs := capture(t, p.server); len(msgs) != 0 {
		t.Fatalf("tracking is on: %s", conntrack.Describe(msgs[0]))
	}
}
