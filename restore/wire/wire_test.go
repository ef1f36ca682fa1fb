package wire

import (
	"encoding/hex"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
)

var mac = net.HardwareAddr{2, 0, 0, 0, 0, 1}

// The frames as hex, a field to a word.
func TestFrames(t *testing.T) {
	for _, c := range []struct {
		name string
		got  []byte
		want string
	}{
		{
			"gratuitous ARP", announcement(netip.MustParseAddr("192.0.2.1"), mac),
			"ffffffffffff 020000000001 0806 0001 0800 06 04 0001 020000000001 c0000201 000000000000 c0000201",
		},
		{
			"ARP probe", probe(netip.MustParseAddr("192.0.2.1"), mac),
			"ffffffffffff 020000000001 0806 0001 0800 06 04 0001 020000000001 00000000 000000000000 c0000201",
		},
		{
			"neighbour advertisement", announcement(netip.MustParseAddr("2001:db8::1"), mac),
			"333300000001 020000000001 86dd 60000000 0020 3a ff 20010db8000000000000000000000001 ff020000000000000000000000000001" +
				" 88 00 f92a 20000000 20010db8000000000000000000000001 02 01 020000000001",
		},
		{
			"duplicate address probe", probe(netip.MustParseAddr("2001:db8::1"), mac),
			"3333ff000001 020000000001 86dd 60000000 0018 3a ff 00000000000000000000000000000000 ff0200000000000000000001ff000001" +
				" 87 00 4ced 00000000 20010db8000000000000000000000001",
		},
	} {
		if got, want := hex.EncodeToString(c.got), strings.ReplaceAll(c.want, " ", ""); got != want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, want)
		}
	}
}

func TestClaim(t *testing.T) {
	for _, a := range []string{"192.0.2.1", "2001:db8::1"} {
		addr, from, ok := claim(announcement(netip.MustParseAddr(a), mac))
		if !ok || addr.String() != a || from.String() != mac.String() {
			t.Errorf("claim of %s read as %v %v %v", a, addr, from, ok)
		}
		if addr, _, ok := claim(probe(netip.MustParseAddr(a), mac)); ok {
			t.Errorf("a probe for %s was read as a claim of %s", a, addr)
		}
	}
}

func FuzzClaim(f *testing.F) {
	f.Add(announcement(netip.MustParseAddr("192.0.2.1"), mac))
	f.Add(announcement(netip.MustParseAddr("2001:db8::1"), mac))
	f.Fuzz(func(t *testing.T, b []byte) {
		if addr, from, ok := claim(b); ok && (!addr.IsValid() || len(from) != 6) {
			t.Errorf("claim(%x) = %v %v", b, addr, from)
		}
	})
}

// TestProbe asks for addresses that a neighbour has, and for some that nobody has.
func TestProbe(t *testing.T) {
	host, neighbour := pair(t)
	_ = neighbour
	var holders []Holder
	err := host.Do(func() (err error) {
		holders, err = probeDevice(t.Context(), "p0", []netip.Addr{
			netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3"),
			netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("2001:db8::3"),
		})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, h := range holders {
		got = append(got, h.Addr.String()+" "+h.MAC.String())
	}
	want := "192.0.2.2 02:00:00:00:00:02, 2001:db8::2 02:00:00:00:00:02"
	if s := strings.Join(got, ", "); s != want {
		t.Errorf("holders: %s\n   want: %s", s, want)
	}
}

// TestAnnounce shows that a neighbour's stale entry follows an announcement.
func TestAnnounce(t *testing.T) {
	host, neighbour := pair(t)
	for _, addr := range []string{"192.0.2.1", "2001:db8::1"} {
		in(t, neighbour, "ip", "neigh", "replace", addr, "lladdr", "02:00:00:00:00:99", "dev", "p1", "nud", "stale")
	}
	a, err := NewAnnouncer(host, []Address{
		{"p0", netip.MustParseAddr("192.0.2.1")},
		{"p0", netip.MustParseAddr("2001:db8::1")},
		{"lo", netip.MustParseAddr("127.0.0.1")},
		{"gone", netip.MustParseAddr("192.0.2.9")},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if len(a.frames) != 2 {
		t.Fatalf("%d announcements, want 2", len(a.frames))
	}
	if err := a.Send(); err != nil {
		t.Fatal(err)
	}
	if err := a.Repeat(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, addr := range []string{"192.0.2.1", "2001:db8::1"} {
		if out := in(t, neighbour, "ip", "neigh", "show", addr); !strings.Contains(out, "02:00:00:00:00:01") {
			t.Errorf("the neighbour still knows %s", out)
		}
	}
}

// pair makes two namespaces joined by a link, with addresses 1 and 2.
func pair(t *testing.T) (a, b *ns.NS) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("root is needed")
		}
		t.Skip("root is needed")
	}
	a, b = create(t), create(t)
	err := a.Do(func() error {
		if err := exec.Command("ip", "link", "add", "p0", "address", "02:00:00:00:00:01", "type", "veth", "peer", "name", "p1", "address", "02:00:00:00:00:02").Run(); err != nil {
			return err
		}
		return moveLink("p1", b)
	})
	if err != nil {
		t.Fatal(err)
	}
	for dev, n := range map[string]*ns.NS{"p0": a, "p1": b} {
		id := map[string]string{"p0": "1", "p1": "2"}[dev]
		in(t, n, "ip", "link", "set", dev, "up")
		in(t, n, "ip", "addr", "add", "192.0.2."+id+"/24", "dev", dev)
		in(t, n, "ip", "addr", "add", "2001:db8::"+id+"/64", "dev", dev, "nodad")
	}
	awaitUp(t, a, "p0")
	awaitUp(t, b, "p1")
	return a, b
}

// awaitUp waits until the kernel has noticed the link's carrier: before that it answers for no IPv6 address of it.
func awaitUp(t *testing.T, n *ns.NS, dev string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !strings.Contains(in(t, n, "ip", "-o", "link", "show", dev), "state UP"); {
		if time.Now().After(end) {
			t.Fatalf("%s does not come up", dev)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func create(t *testing.T) *ns.NS {
	t.Helper()
	n, err := ns.Create()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// moveLink moves a link by a descriptor of the namespace, which has no name.
func moveLink(dev string, to *ns.NS) error {
	cmd := exec.Command("ip", "link", "set", dev, "netns", "/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{to.File()}
	return cmd.Run()
}

func in(t *testing.T, n *ns.NS, args ...string) string {
	t.Helper()
	var out []byte
	if err := n.Do(func() (err error) {
		out, err = exec.Command(args[0], args[1:]...).CombinedOutput()
		return err
	}); err != nil {
		t.Fatalf("%v: %v: %s", args, err, out)
	}
	return string(out)
}
