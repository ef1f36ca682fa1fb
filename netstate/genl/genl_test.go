package genl_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/genl"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/ns/nstest"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

type testCase struct {
	name   string
	full   bool   // needs what only the full kernel has
	links  string // are there before and after
	script string
	list   string // prints the objects
}

func testCases() []testCase {
	return []testCase{
		{"nothing", false, "ip link set dev lo up", "", ""},
		{
			"mptcp", false, "ip link add name a index 7 type veth peer name b index 8; ip addr add 10.0.0.1/24 dev a; ip addr add 10.0.0.2/24 dev a; ip addr add fd00::1/64 dev a nodad; ip link set dev a up; ip link set dev b up",
			`ip mptcp endpoint add 10.0.0.1 signal; ip mptcp endpoint add 10.0.0.2 id 77 dev a subflow backup; ip mptcp endpoint add fd00::1 subflow fullmesh
			ip mptcp endpoint add 10.0.0.1 id 9 port 5555 signal; ip mptcp limits set subflows 5 add_addr_accepted 3`,
			"ip mptcp endpoint show; ip mptcp limits show",
		},
		{
			"ethtool", false, "ip link add name a index 7 numtxqueues 4 numrxqueues 4 type veth peer name b index 8; ip link add name c index 9 type ifb; ip link add name d index 10 type bridge; modprobe -q tun || true; ip tuntap add dev e mode tap; ip tuntap add dev f mode tun",
			"ethtool -K a tx off rx-gro-list on gro on; ethtool -K c tso off; ethtool -K d gso off; ethtool -L a rx 3 tx 2; ethtool -C e rx-frames 7; ethtool -s e speed 1000 duplex half port fibre",
			"for d in a b c d e f; do ethtool -k $d; ethtool -l $d || true; ethtool -c $d || true; ethtool $d || true; done 2>&1",
		},
		{
			"segment routing", false, "ip link set dev lo up",
			"ip sr tunsrc set fd00::7; printf 'secret\\nsecret\\n' | ip sr hmac set 17 sha256 >/dev/null; printf 'other\\nother\\n' | ip sr hmac set 18 sha1 >/dev/null",
			"ip sr tunsrc show; ip sr hmac show | sort",
		},
		{
			"ioam", false, "ip link set dev lo up",
			"ip ioam namespace add 7 data 0x10 wide 0x20; ip ioam namespace add 8; ip ioam schema add 5 abcd; ip ioam schema add 6 efgh; ip ioam namespace set 7 schema 5",
			"ip ioam namespace show | sort; ip ioam schema show | sort",
		},
		{
			"wireguard", true, "ip link add name wg0 index 7 type wireguard; ip link add name wg1 index 8 type wireguard; ip link set dev lo up",
			`umask 077; cd $(mktemp -d); for k in 1 2 3 4; do wg genkey > key$k; wg pubkey < key$k > pub$k; done; wg genpsk > psk
			wg set wg0 private-key key1 listen-port 5555 fwmark 0x77 peer $(cat pub2) preshared-key psk endpoint 192.0.2.1:7777 persistent-keepalive 25 allowed-ips 10.0.0.0/8,fd00::/8 peer $(cat pub3) endpoint '[2001:db8::1]:9' allowed-ips 192.0.2.0/24
			wg set wg0 peer $(cat pub4); wg set wg1 peer $(cat pub1) allowed-ips $(seq -s, -f 11.0.%g.0/24 1 250)
			for i in 1 2 3 4 5 6 7 8 9; do wg set wg1 peer $(wg genkey | wg pubkey) allowed-ips $(seq -s, -f 12.$i.%g.0/24 1 250); done`,
			"wg show all dump | sort; wg showconf wg0",
		},
		{
			"ila", true, "ip link add name a index 7 type dummy; ip link set dev a up",
			"modprobe -a ila; ip ila add loc_match 1:2:3:4 loc 5:6:7:8; ip ila add loc_match 2:2:3:4 loc 5:6:7:9 csum-mode neutral-map dev a",
			"ip ila list | awk '{ print $3, $4, $5 }' | sort", // it prints addresses of its own memory before
		},
		{
			"fou", true, "ip link set dev lo up",
			"ip fou add port 5555 ipproto 4; ip fou add port 5556 gue; ip -6 fou add port 5557 ipproto 41; ip fou add port 5558 gue local 127.0.0.1",
			"ip fou show | sort; ip -6 fou show | sort",
		},
		{
			"ipvs", true, "ip link set dev lo up; ip addr add 10.0.0.1/24 dev lo; ip addr add 127.0.0.1/8 dev lo || true",
			`ipvsadm -A -t 10.0.0.1:80 -s rr -p 77; ipvsadm -a -t 10.0.0.1:80 -r 10.0.0.2:8080 -m -w 3; ipvsadm -a -t 10.0.0.1:80 -r 10.0.0.3:80 -g -x 100 -y 50; ipvsadm -a -t 10.0.0.1:80 -r 10.0.0.4:80 -i
			ipvsadm -A -u 10.0.0.1:53 -s wlc -o; ipvsadm -a -u 10.0.0.1:53 -r 10.0.0.5 -m; ipvsadm -A -f 7 -s sh -b sh-fallback; ipvsadm -a -f 7 -r 10.0.0.6 -m
			ipvsadm -A -t [fd00::1]:80 -s lc; ipvsadm -a -t [fd00::1]:80 -r [fd00::2]:80 -m; ipvsadm --set 100 20 30
			ipvsadm --start-daemon master --mcast-interface lo --syncid 7`,
			"ipvsadm -S -n | sort; ipvsadm -L --timeout; ipvsadm -L --daemon; ipvsadm -L -n --thresholds | sort",
		},
	}
}

func name(index int32) string { return fmt.Sprintf("if%d", index) }

func capture(t *testing.T, n *ns.NS) []rawnl.Message {
	t.Helper()
	var list []struct {
		Index int32 `json:"ifindex"`
		Info  struct {
			Kind string `json:"info_kind"`
		} `json:"linkinfo"`
	}
	if err := json.Unmarshal([]byte(nstest.Run(t, n, "ip -d -j link show")), &list); err != nil {
		t.Fatal(err)
	}
	links := map[int32]string{}
	for _, l := range list {
		links[l.Index] = l.Info.Kind
	}
	msgs, err := genl.Capture(t.Context(), n, links)
	if err != nil {
		t.Fatal(err)
	}
	return msgs
}

func render(msgs []rawnl.Message) string {
	var b strings.Builder
	for _, m := range msgs {
		m = genl.Normalize(m)
		fmt.Fprintf(&b, "%s [%x]\n", genl.Describe(m, name), m.Data)
	}
	return b.String()
}

// TestReplay makes each case's objects a second time from what was captured.
func TestReplay(t *testing.T) {
	nstest.NeedRoot(t, "ip", "ethtool")
	for _, c := range testCases() {
		t.Run(c.name, func(t *testing.T) {
			source, target := nstest.New(t), nstest.New(t)
			if c.full {
				nstest.Arrange(t, source, c.links+"\n"+c.script)
			} else {
				nstest.Run(t, source, c.links+"\n"+c.script)
			}
			nstest.Run(t, target, c.links)
			msgs := capture(t, source)
			if losses := genl.Losses(msgs, name); len(losses) > 0 {
				t.Errorf("losses: %q", losses)
			}
			plan, err := genl.Plan(msgs)
			if err != nil {
				t.Fatal(err)
			}
			if c.script != "" && len(plan) == 0 {
				t.Fatal("nothing captured")
			}
			if err := genl.Apply(t.Context(), target, plan); err != nil {
				t.Fatal(err)
			}
			nstest.Compare(t, "capture", render(msgs), render(capture(t, target)))
			nstest.Compare(t, c.list, nstest.Run(t, source, c.list), nstest.Run(t, target, c.list))
		})
	}
}

// TestLosses makes one of each object that is seen and not carried.
func TestLosses(t *testing.T) {
	nstest.NeedRoot(t, "ip")
	for _, c := range []struct{ name, script, want string }{
		{"macsec", "ip link add name a type dummy; ip link add link a name m type macsec; ip macsec add m tx sa 0 pn 1 on key 01 12345678901234567890123456789012", "macsec associations of dev .*keys"},
		{"l2tp", "ip link set dev lo up; ip l2tp add tunnel tunnel_id 7 peer_tunnel_id 8 encap ip local 127.0.0.1 remote 127.0.0.2", "l2tp tunnel 7"},
		{"tipc", "modprobe tipc; ip link add name a type dummy; ip link set dev a up; tipc bearer enable media eth device a", "tipc node .*bearers"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := nstest.New(t)
			nstest.Arrange(t, n, c.script)
			losses := genl.Losses(capture(t, n), name)
			if len(losses) != 1 || !regexp.MustCompile(c.want).MatchString(losses[0]) {
				t.Errorf("got %q", losses)
			}
		})
	}
}

// TestLossSMC says of a device to which physical network it belongs.
func TestLossSMC(t *testing.T) {
	nstest.NeedRoot(t, "ip")
	n := nstest.New(t)
	nstest.Arrange(t, n, "modprobe smc; ip link add name a type dummy; genl ctrl list | grep -q SMC_PNETID")
	nl, err := rawnl.Dial(n, unix.NETLINK_GENERIC)
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	ask := rawnl.Message{Type: unix.GENL_ID_CTRL, Data: rawnl.AppendAttr([]byte{unix.CTRL_CMD_GETFAMILY, 1, 0, 0}, unix.CTRL_ATTR_FAMILY_NAME, []byte("SMC_PNETID\x00"))}
	answer, err := nl.Request(t.Context(), ask)
	if err != nil || len(answer) == 0 {
		t.Fatal(err)
	}
	const add, name, device = 2, 1, 2
	data := rawnl.AppendAttr([]byte{add, 1, 0, 0}, name, []byte("NET1\x00"))
	data = rawnl.AppendAttr(data, device, []byte("a\x00"))
	id := binary.NativeEndian.Uint16(rawnl.Get(answer[0].Data[4:], unix.CTRL_ATTR_FAMILY_ID))
	if err := nl.Apply(t.Context(), []rawnl.Message{{Type: id, Data: data}}); err != nil {
		t.Fatal(err)
	}
	losses := genl.Losses(capture(t, n), func(int32) string { return "" })
	if len(losses) != 1 || !strings.HasPrefix(losses[0], "smc physical network NET1 of dev a: ") {
		t.Errorf("got %q", losses)
	}
}

// TestWireGuardFromOutside: a link that was made in another namespace has its socket there.
func TestWireGuardFromOutside(t *testing.T) {
	nstest.NeedRoot(t, "ip")
	outside, inside := nstest.New(t), nstest.New(t)
	nstest.Arrange(t, outside, "ip link add name wg0 type wireguard; wg set wg0 listen-port 5555")
	nstest.Run(t, outside, fmt.Sprintf("ip link set dev wg0 netns /proc/%d/fd/%d", os.Getpid(), inside.Fd()))
	nstest.Run(t, inside, "ip link add name wg1 type wireguard; wg set wg1 listen-port 5556; ip link set dev wg0 up; ip link set dev wg1 up")
	losses := genl.Losses(capture(t, inside), func(index int32) string {
		return strings.TrimSpace(nstest.Run(t, inside, fmt.Sprintf("ip -o link | sed -n 's/^%d: \\([^:]*\\):.*/\\1/p'", index)))
	})
	if len(losses) != 1 || !strings.HasPrefix(losses[0], "wireguard dev wg0") {
		t.Errorf("got %q", losses)
	}
}

func FuzzMessages(f *testing.F) {
	for typ, data := range map[uint16]string{
		1: "010100001c000180060001000200000008000300" + "0a0000010800060001000000",
		2: "01010000080001000700000006000600b315000008000700770000000800050001000000",
		3: "010100001c0001800600010002000000060002000600000008000300" + "0a000001",
		4: "120100000c00018008000100070000000800060003000000",
	} {
		b, err := hex.DecodeString(data)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(typ, b)
	}
	f.Fuzz(func(t *testing.T, typ uint16, data []byte) {
		m := rawnl.Message{Type: typ, Data: data}
		valid := genl.Validate(m) == nil
		genl.Describe(m, name)
		genl.Losses([]rawnl.Message{m}, name)
		once := genl.Normalize(m)
		if twice := genl.Normalize(once); !bytes.Equal(once.Data, twice.Data) {
			t.Errorf("normalized %x, again %x", once.Data, twice.Data)
		}
		if _, err := genl.Plan([]rawnl.Message{m}); valid != (err == nil) {
			t.Errorf("valid %v, plan %v", valid, err)
		}
	})
}
