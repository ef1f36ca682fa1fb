package xfrm_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/ns/nstest"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
	"github.com/nsmigrate/nsmigrate/netstate/xfrm"
)

type testCase struct {
	name   string
	full   bool // needs what only the full kernel has
	script string
}

func testCases() []testCase {
	return []testCase{
		{"nothing", false, ""},
		{"policies", false, `
			ip xfrm policy add src 10.0.0.0/8 dst 192.0.2.0/24 dir out priority 7 tmpl src 10.0.0.1 dst 192.0.2.1 proto esp reqid 5 mode tunnel
			ip xfrm policy add src 10.0.0.0/8 dst 192.0.2.0/24 proto tcp dport 80 dir out index 1001 priority 7 mark 5 mask 0xff action block
			ip xfrm policy add src 192.0.2.0/24 dst 10.0.0.0/8 dir in tmpl src 192.0.2.1 dst 10.0.0.1 proto comp mode tunnel level use tmpl proto esp mode transport
			ip xfrm policy add src 192.0.2.0/24 dst 10.0.0.0/8 dir fwd if_id 77 limit time-soft 5000 limit byte-hard 1000000 flag icmp
			ip xfrm policy add src fd00::/8 dst ::/0 dir out ptype main priority 1 tmpl src fd00::1 dst fd00::2 proto ah spi 0x77 mode beet
			ip xfrm policy add src 0.0.0.0/0 dst 0.0.0.0/0 dir in ptype sub
			for i in $(seq 1 20); do ip xfrm policy add src 10.$i.0.0/16 dst 192.0.2.0/24 dir out priority 7; done
			ip xfrm policy set hthresh4 24 16 hthresh6 64 56
			ip xfrm policy setdefault in block fwd block out accept`},
		{"states", true, `
			K=0x0102030405060708090a0b0c0d0e0f10
			ip xfrm state add src 10.0.0.1 dst 192.0.2.1 proto esp spi 0x100 reqid 5 mode tunnel enc 'cbc(aes)' $K auth-trunc 'hmac(sha256)' ${K}1112131415161718191a1b1c1d1e1f20 128 replay-window 32 replay-seq 77 replay-oseq 99
			ip xfrm state add src 192.0.2.1 dst 10.0.0.1 proto esp spi 0x101 reqid 5 mode tunnel aead 'rfc4106(gcm(aes))' ${K}01020304 128 flag esn replay-window 128 replay-seq 5 replay-oseq 6 replay-seq-hi 1 replay-oseq-hi 2 sel src 10.0.0.0/8
			ip xfrm state add src 10.0.0.1 dst 192.0.2.2 proto esp spi 0x102 mode transport enc 'ecb(cipher_null)' '' auth 'hmac(sha1)' ${K}01020304 mark 7 mask 0xff output-mark 9 mask 0xf0 if_id 0x55 limit time-hard 5000 limit packet-soft 100 tfcpad 5 extra-flag dont-encap-dscp 2>/dev/null ||
			ip xfrm state add src 10.0.0.1 dst 192.0.2.2 proto esp spi 0x102 mode transport enc 'ecb(cipher_null)' '' auth 'hmac(sha1)' ${K}01020304 mark 7 mask 0xff output-mark 9 mask 0xf0 if_id 0x55 limit time-hard 5000 limit packet-soft 100 extra-flag dont-encap-dscp
			ip xfrm state add src 10.0.0.1 dst 192.0.2.3 proto esp spi 0x103 mode transport aead 'rfc4106(gcm(aes))' ${K}01020304 96 encap espinudp 4500 4501 0.0.0.0
			ip xfrm state add src 10.0.0.1 dst 192.0.2.4 proto ah spi 0x104 auth 'hmac(sha1)' ${K}01020304 mode transport flag align4
			ip xfrm state add src fd00::1 dst fd00::2 proto esp spi 0x106 enc 'cbc(aes)' $K mode tunnel flag decap-dscp nopmtudisc af-unspec
			ip xfrm policy add src 10.0.0.0/8 dst 192.0.2.0/24 dir out tmpl src 10.0.0.1 dst 192.0.2.1 proto esp reqid 5 mode tunnel`},
		{"compression", true, "ip xfrm state add src 10.0.0.1 dst 192.0.2.4 proto comp spi 0x105 comp deflate mode tunnel"},
	}
}

// list returns what ip says of a namespace. A policy's times of creation and use begin anew.
func list(t *testing.T, n *ns.NS) string {
	t.Helper()
	text := nstest.Run(t, n, "ip -s xfrm state; ip xfrm policy; ip xfrm policy getdefault; ip -s -s xfrm policy count")
	if strings.Contains(text, "proto comp") { // the kernel makes a state of its own with it, now
		text = regexp.MustCompile(`add .* use .*`).ReplaceAllString(text, "")
	}
	return regexp.MustCompile(`\n\s*lastused .*|SPD buckets: count \d+`).ReplaceAllString(text, "")
}

func capture(t *testing.T, n *ns.NS) []rawnl.Message {
	t.Helper()
	msgs, err := xfrm.Capture(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	return msgs
}

func render(msgs []rawnl.Message) string {
	var b strings.Builder
	for _, m := range msgs {
		m = xfrm.Normalize(m)
		fmt.Fprintf(&b, "%s [%x]\n", xfrm.Describe(m), m.Data)
	}
	return b.String()
}

// TestReplay makes each case's states and policies a second time from what was captured.
func TestReplay(t *testing.T) {
	nstest.NeedRoot(t, "ip")
	for _, c := range testCases() {
		t.Run(c.name, func(t *testing.T) {
			source, target := nstest.New(t), nstest.New(t)
			if c.full {
				nstest.Arrange(t, source, c.script)
			} else {
				nstest.Run(t, source, c.script)
			}
			replay(t, source, target)
		})
	}
}

func replay(t *testing.T, source, target *ns.NS) {
	t.Helper()
	msgs := capture(t, source)
	if losses := xfrm.Losses(msgs); len(losses) > 0 {
		t.Errorf("losses: %q", losses)
	}
	plan, err := xfrm.Plan(msgs)
	if err != nil {
		t.Fatal(err)
	}
	if err := xfrm.Apply(t.Context(), target, plan); err != nil {
		t.Fatal(err)
	}
	nstest.Compare(t, "capture", render(msgs), render(capture(t, target)))
	nstest.Compare(t, "ip xfrm", list(t, source), list(t, target))
}

// TestTunnelGoesOn: the other end accepts what the second incarnation of a tunnel's end sends, which it does only if
// the sequence numbers went on.
func TestTunnelGoesOn(t *testing.T) {
	nstest.NeedRoot(t, "ip")
	peer, first, second := nstest.New(t), nstest.New(t), nstest.New(t)
	const keys = `aead 'rfc4106(gcm(aes))' 0x0102030405060708090a0b0c0d0e0f1001020304 128`
	arrange := func(me, other string) string {
		return fmt.Sprintf(`ip link set dev lo up
			ip xfrm state add src 10.9.0.%s dst 10.9.0.%s proto esp spi 0x10%s reqid 1 mode transport %s replay-window 32
			ip xfrm state add src 10.9.0.%s dst 10.9.0.%s proto esp spi 0x10%s reqid 1 mode transport %s replay-window 32
			ip xfrm policy add src 10.9.0.%s dst 10.9.0.%s dir out tmpl proto esp reqid 1 mode transport
			ip xfrm policy add src 10.9.0.%s dst 10.9.0.%s dir in tmpl proto esp reqid 1 mode transport`, me, other, me, keys, other, me, other, keys, me, other, other, me)
	}
	nstest.Arrange(t, peer, arrange("1", "2"))
	nstest.Run(t, first, arrange("2", "1"))
	plug := func(n *ns.NS) {
		nstest.Run(t, peer, "ip link del dev p 2>/dev/null || true; ip link add name p type veth peer name q; ip addr add 10.9.0.1/24 dev p; ip link set dev p up")
		path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.Fd())
		nstest.Run(t, peer, "ip link set dev q netns "+path)
		nstest.Run(t, n, "ip link set dev lo up; ip addr add 10.9.0.2/24 dev q; ip link set dev q up")
	}
	plug(first)
	echo(t, peer, first)
	replay(t, first, second)
	plug(second)
	echo(t, peer, second)
	if text := nstest.Run(t, peer, "ip -s xfrm state list"); regexp.MustCompile(`replay [1-9]|failed [1-9]`).MatchString(text) {
		t.Errorf("the peer refused packets:\n%s", text)
	}
}

// echo sends some packets from n to the peer and back.
func echo(t *testing.T, peer, n *ns.NS) {
	t.Helper()
	var server *net.UDPConn
	err := peer.Do(func() (err error) {
		server, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 9, 0, 1)})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	var client *net.UDPConn
	err = n.Do(func() (err error) {
		client, err = net.DialUDP("udp4", nil, server.LocalAddr().(*net.UDPAddr))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	deadline := time.Now().Add(time.Minute)
	if err := errors.Join(server.SetDeadline(deadline), client.SetDeadline(deadline)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	for i := range 5 {
		if _, err := client.Write([]byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
		_, from, err := server.ReadFromUDP(buf)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := server.WriteToUDP(buf[:1], from); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Read(buf); err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzMessages(f *testing.F) {
	policy := make([]byte, 168)
	policy[40] = 2
	state := make([]byte, 224)
	state[212] = 2
	f.Add(uint16(0x13), append(policy, 8, 0, 31, 0, 1, 0, 0, 0))
	f.Add(uint16(0x10), append(state, 8, 0, 31, 0, 1, 0, 0, 0))
	f.Add(uint16(0x27), []byte{1, 1, 1})
	f.Add(uint16(0x24), []byte{0, 0, 0, 0, 6, 0, 3, 0, 24, 16, 0, 0})
	f.Fuzz(func(t *testing.T, typ uint16, data []byte) {
		m := rawnl.Message{Type: typ, Data: data}
		valid := xfrm.Validate(m) == nil
		xfrm.Describe(m)
		xfrm.Losses([]rawnl.Message{m})
		once := xfrm.Normalize(m)
		if twice := xfrm.Normalize(once); !bytes.Equal(once.Data, twice.Data) {
			t.Errorf("normalized %x, again %x", once.Data, twice.Data)
		}
		if _, err := xfrm.Plan([]rawnl.Message{m}); valid != (err == nil) {
			t.Errorf("valid %v, plan %v", valid, err)
		}
	})
}
