package netfilter_test

import (
	"encoding/binary"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/netfilter"
	"github.com/nsmigrate/nsmigrate/netstate/ns/nstest"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

const objects = `
	nfacct add web; nfacct add much byte 100000; nfacct add few packet 2
	nfct timeout add long inet tcp established 77777 close 7; nfct timeout add short inet6 udp unreplied 5 replied 6`

// TestReplay moves objects that have counted already, one of them beyond its quota.
func TestReplay(t *testing.T) {
	nstest.NeedRoot(t, "nfacct", "nfct", "iptables-legacy")
	from, to := nstest.New(t), nstest.New(t)
	nstest.Arrange(t, from, objects)
	nstest.Run(t, from, `ip link set lo up
		iptables-legacy -A OUTPUT -m nfacct --nfacct-name web; iptables-legacy -A OUTPUT -m nfacct --nfacct-name few
		ping -c 3 -i 0.002 127.0.0.1; iptables-legacy -F`)
	msgs, err := netfilter.Capture(t.Context(), from)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := netfilter.Plan(msgs)
	if err != nil {
		t.Fatal(err)
	}
	if err := netfilter.Apply(t.Context(), to, plan); err != nil {
		t.Fatal(err)
	}
	// That a quota was exceeded is told again to those who listen.
	const list = "nfacct list | sed 's/overquota = yes/overquota = no/'; nfct timeout list"
	before := nstest.Run(t, from, list)
	if !strings.Contains(before, "pkts = 00000000000000000006") {
		t.Errorf("nothing was counted:\n%s", before)
	}
	nstest.Compare(t, list, before, nstest.Run(t, to, list))
	var text []string
	for _, m := range msgs {
		text = append(text, netfilter.Describe(m))
	}
	want := []string{
		"nfacct web", "nfacct much byte 100000", "nfacct few packet 2",
		"timeout long inet tcp syn_sent 120 syn_recv 60 established 77777 fin_wait 120 close_wait 60 last_ack 30 time_wait 120 close 7 syn_sent2 120 retrans 300 unacknowledged 300",
		"timeout short inet6 udp unreplied 5 replied 6",
	}
	nstest.Compare(t, "descriptions", strings.Join(want, "\n"), strings.Join(text, "\n"))
	err = netfilter.Apply(t.Context(), to, plan[1:])
	if err == nil || !strings.HasPrefix(err.Error(), "apply netfilter: add nfacct much byte 100000: ") {
		t.Errorf("an object that is there: %v", err)
	}
}

func TestNothing(t *testing.T) {
	nstest.NeedRoot(t)
	n := nstest.New(t)
	msgs, err := netfilter.Capture(t.Context(), n)
	if err != nil || len(msgs) > 0 {
		t.Errorf("a fresh namespace: %v %v", msgs, err)
	}
	if tables, err := netfilter.EBTables(n); err != nil || len(tables) > 0 {
		t.Errorf("a fresh namespace: %v %v", tables, err)
	}
}

// account is the message of an account with its attributes.
func account(name string, attrs ...rawnl.Attr) rawnl.Message {
	attrs = append([]rawnl.Attr{{Type: 1, Data: append([]byte(name), 0)}}, attrs...)
	return rawnl.Message{Type: unix.NFNL_SUBSYS_ACCT << 8, Data: rawnl.AppendAttrs(make([]byte, 4), attrs)}
}

func TestValidate(t *testing.T) {
	if err := netfilter.Validate(account("web")); err != nil {
		t.Error(err)
	}
	other, flagged := account("web"), account("web")
	other.Type, flagged.Flags = unix.NFNL_SUBSYS_NFTABLES<<8, unix.NLM_F_REPLACE
	for what, m := range map[string]rawnl.Message{
		"no name": account(""), "a long name": account(strings.Repeat("x", 32)), "a zero in a name": account("a\x00b"),
		"an attribute of the kernel's": account("web", rawnl.Attr{Type: 4, Data: make([]byte, 4)}), "another type": other, "flags": flagged,
		"a short header": {Type: unix.NFNL_SUBSYS_ACCT << 8, Data: make([]byte, 3)},
	} {
		if netfilter.Validate(m) == nil {
			t.Errorf("%s passes", what)
		}
	}
}

// TestNormalize tells accounts from each other by what was set, not by what they counted.
func TestNormalize(t *testing.T) {
	counted := func(n uint64) rawnl.Attr {
		return rawnl.Attr{Type: 2, Data: binary.BigEndian.AppendUint64(nil, n)}
	}
	text := func(m rawnl.Message) string { return string(netfilter.Normalize(m).Data) }
	if text(account("web", counted(1))) != text(account("web", counted(2))) {
		t.Error("what was counted makes a difference")
	}
	quota := rawnl.Attr{Type: 6, Data: binary.BigEndian.AppendUint64(nil, 7)}
	if text(account("web", quota)) == text(account("web")) {
		t.Error("a quota makes no difference")
	}
}

// FuzzValidate looks at any bytes: what passes can be described and normalized, and passes then too.
func FuzzValidate(f *testing.F) {
	f.Add(uint16(unix.NFNL_SUBSYS_ACCT<<8), account("web").Data)
	policy := rawnl.EncodeAttrs([]rawnl.Attr{{Type: 3, Data: []byte{0, 0, 0, 9}}})
	f.Add(uint16(unix.NFNL_SUBSYS_CTNETLINK_TIMEOUT<<8), account("long", rawnl.Attr{Type: 3, Data: []byte{6}}, rawnl.Attr{Type: 4, Data: policy}).Data)
	f.Fuzz(func(t *testing.T, typ uint16, data []byte) {
		m := rawnl.Message{Type: typ, Data: data}
		if netfilter.Describe(m) == "" {
			t.Error("no description")
		}
		plan, err := netfilter.Plan([]rawnl.Message{m})
		if (err == nil) != (netfilter.Validate(m) == nil) || (err == nil) != (len(plan) == 1) {
			t.Fatalf("plan %v: %v", plan, err)
		}
		if err != nil {
			return
		}
		if err := netfilter.Validate(netfilter.Normalize(m)); err != nil {
			t.Error(err)
		}
	})
}
