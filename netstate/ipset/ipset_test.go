package ipset_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/netstate/ipset"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/ns/nstest"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

type testCase struct {
	name string
	full bool // needs what only the full kernel has
	sets string
}

func testCases() []testCase {
	return []testCase{
		{"nothing", false, ""},
		{"hash", false, `
create ip hash:ip hashsize 2048 maxelem 1000 timeout 3055 counters comment skbinfo
add ip 10.0.0.1 timeout 0 packets 7 bytes 900 comment "one, \o/ two" skbmark 0x10/0xff skbprio 1:2 skbqueue 5
add ip 10.0.0.2
add ip 10.0.0.3 timeout 100055
create masked hash:ip netmask 24
add masked 10.1.2.3
create ip6 hash:ip family inet6 forceadd
add ip6 fd00::1
create net hash:net bucketsize 8
add net 10.0.0.0/8
add net 10.1.0.0/16 nomatch
add net 0.0.0.0/1
create net6 hash:net family inet6
add net6 fd00::/8
create ipport hash:ip,port
add ipport 10.0.0.1,tcp:80
add ipport 10.0.0.1,udp:53
add ipport 10.0.0.1,icmp:echo-request
create ipportip hash:ip,port,ip
add ipportip 10.0.0.1,sctp:80,10.0.0.2
create ipportnet hash:ip,port,net
add ipportnet 10.0.0.1,80,10.0.0.0/9
create netport hash:net,port
add netport 10.0.0.0/8,80-90
create netiface hash:net,iface family inet
add netiface 10.0.0.0/8,eth0
add netiface 10.1.0.0/16,physdev:eth1
create empty hash:ip
`},
		{"bitmap", false, `
create ip bitmap:ip range 10.0.0.0-10.0.0.255 timeout 60055
add ip 10.0.0.7
create masked bitmap:ip range 10.0.0.0/16 netmask 24 counters
add masked 10.0.7.7
create mac bitmap:ip,mac range 10.0.0.0/24
add mac 10.0.0.7,02:00:00:00:00:01
add mac 10.0.0.8
create port bitmap:port range 0-1024 comment
add port 80 comment web
`},
		{"sets of sets, in their order", false, `
create both list:set size 4 timeout 0
create b hash:ip
create a hash:net
add b 10.0.0.1
add both b
add both a timeout 9999
create other list:set
add other a
add other b before a
create gone hash:ip
create last hash:ip
add other last
destroy gone
`},
		{"many elements", false, "create many hash:ip maxelem 200000\n" + many()},
		{"all types", true, `
create mac hash:mac
add mac 02:00:00:00:00:01
create ipmac hash:ip,mac
add ipmac 10.0.0.1,02:00:00:00:00:01
create ipmark hash:ip,mark markmask 0xff
add ipmark 10.0.0.1,0x10
create netnet hash:net,net
add netnet 10.0.0.0/8,11.0.0.0/9
create netportnet hash:net,port,net
add netportnet 10.0.0.0/8,tcp:80,11.0.0.0/9
create netiface hash:net,iface
add netiface 10.0.0.0/8,eth wildcard
create bits hash:ip bitmask 255.0.255.0
add bits 10.1.2.3
`},
	}
}

func many() string {
	var b strings.Builder
	for i := range 20_000 {
		fmt.Fprintf(&b, "add many 10.%d.%d.%d\n", i>>16, i>>8&0xff, i&0xff)
	}
	return b.String()
}

// save returns what ipset says of a namespace. What is left of a life may have become a little shorter.
// save is ipset save without the last two digits of what counts down; no test starts at a full hundred.
func save(t *testing.T, n *ns.NS) string {
	t.Helper()
	return regexp.MustCompile(`timeout (\d*)\d\d\b`).ReplaceAllString(nstest.Run(t, n, "ipset save | sort"), "timeout $1")
}

func capture(t *testing.T, n *ns.NS) []rawnl.Message {
	t.Helper()
	msgs, err := ipset.Capture(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	return msgs
}

func render(msgs []rawnl.Message) string {
	var b strings.Builder
	for _, m := range msgs {
		m = ipset.Normalize(m)
		fmt.Fprintf(&b, "%s [%x]\n", ipset.Describe(m), m.Data)
	}
	return b.String()
}

// numbers returns the numbers of the sets, by which rules refer to them.
func numbers(msgs []rawnl.Message) string {
	var b strings.Builder
	for _, m := range msgs {
		if index := rawnl.Get(m.Data[4:], 11); index != nil {
			fmt.Fprintf(&b, "%s %x\n", rawnl.CString(rawnl.Get(m.Data[4:], 2)), index)
		}
	}
	return b.String()
}

// TestReplay makes each case's sets a second time from what was captured.
func TestReplay(t *testing.T) {
	nstest.NeedRoot(t, "ipset")
	for _, c := range testCases() {
		t.Run(c.name, func(t *testing.T) {
			source, target := nstest.New(t), nstest.New(t)
			file := filepath.Join(t.TempDir(), "sets")
			if err := os.WriteFile(file, []byte(c.sets), 0o600); err != nil {
				t.Fatal(err)
			}
			script := "ipset restore < " + file
			if c.full {
				nstest.Arrange(t, source, script)
			} else {
				nstest.Run(t, source, script)
			}
			msgs := capture(t, source)
			plan, err := ipset.Plan(msgs)
			if err != nil {
				t.Fatal(err)
			}
			if err := ipset.Apply(t.Context(), target, plan); err != nil {
				t.Fatal(err)
			}
			again := capture(t, target)
			nstest.Compare(t, "capture", render(msgs), render(again))
			nstest.Compare(t, "numbers", numbers(msgs), numbers(again))
			nstest.Compare(t, "ipset save", save(t, source), save(t, target))
		})
	}
}

// TestRefusal: the error says which set or element the kernel refused, and why.
func TestRefusal(t *testing.T) {
	nstest.NeedRoot(t, "ipset")
	planOf := func(sets string) (n *ns.NS, plan []rawnl.Message) {
		n = nstest.New(t)
		nstest.Run(t, n, sets)
		plan, err := ipset.Plan(capture(t, n))
		if err != nil {
			t.Fatal(err)
		}
		return n, plan
	}
	there, same := planOf("ipset create a hash:ip; ipset add a 10.0.0.1")
	_, small := planOf("ipset create a hash:ip maxelem 2")
	_, large := planOf("ipset create a hash:ip; ipset add a 10.0.0.1; ipset add a 10.0.0.2; ipset add a 10.0.0.3")
	for _, c := range []struct {
		n          *ns.NS
		plan       []rawnl.Message
		what, want string
	}{
		{there, same, "create a hash:ip", "file exists"},
		{nstest.New(t), append(small, large[1:]...), "add a: 3 elements", ": the set is full"},
	} {
		if err := ipset.Apply(t.Context(), c.n, c.plan); err == nil || !strings.Contains(err.Error(), c.what) || !strings.HasSuffix(err.Error(), c.want) {
			t.Errorf("got %v, want %s ... %s", err, c.what, c.want)
		}
	}
}

func FuzzMessages(f *testing.F) {
	name := []byte{5, 0, 1, 0, 7, 0, 0, 0, 6, 0, 2, 0, 'a', 0, 0, 0}
	f.Add(uint16(0x602), append([]byte{2, 0, 0, 0}, name...))
	f.Add(uint16(0x609), append(append([]byte{2, 0, 0, 0}, name...), 16, 0, 7, 0x80, 12, 0, 1, 0x80, 8, 0, 1, 0, 10, 0, 0, 1))
	f.Fuzz(func(t *testing.T, typ uint16, data []byte) {
		m := rawnl.Message{Type: typ, Data: data}
		valid := ipset.Validate(m) == nil
		ipset.Describe(m)
		once := ipset.Normalize(m)
		if twice := ipset.Normalize(once); !bytes.Equal(once.Data, twice.Data) {
			t.Errorf("normalized %x, again %x", once.Data, twice.Data)
		}
		if _, err := ipset.Plan([]rawnl.Message{m}); valid != (err == nil) {
			t.Errorf("valid %v, plan %v", valid, err)
		}
		if valid {
			for _, c := range [][3][]rawnl.Message{{nil, {m}, {m}}, {{m}, nil, nil}, {{m}, {m}, {m}}} {
				if plan, err := ipset.Change(c[0], c[1], c[2]); err == nil {
					for _, p := range plan {
						ipset.Describe(p)
					}
				}
			}
		}
	})
}
