package conntrack_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/netstate/conntrack"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Entries as Linux 6.18 shows them.
const (
	typeEntry = 0x100
	// tcp 10.0.0.1:43708 -> 192.0.2.1:80, translated to 10.0.0.99:7777 -> 10.0.0.2:5000
	bothTranslated = "020000003400018014000180080001000a00000108000200c00002011c000280050001000600000006000200aabc000006000300005000003400028014000180080001000a000002080002000a0000631c00028005000100060000000600020013880000060003001e610000080003000000003e0800080000000077300004802c0001800500010003000000050002000a000000050003000a000000060004000300000006000500030000000800070000069780"
	// tcp [fd00::1]:47870 -> [fd00::2]:80, redirected to port 5000
	redirected = "0a0000004c0001802c00018014000300fd00000000000000000000000000000114000400fd0000000000000000000000000000021c000280050001000600000006000200bafe000006000300005000004c0002802c00018014000300fd00000000000000000000000000000214000400fd0000000000000000000000000000011c0002800500010006000000060002001388000006000300bafe0000080003000000002e0800080000000077300004802c0001800500010003000000050002000a000000050003000a000000060004000300000006000500030000000800070000069780"
)

func entry(t testing.TB, s string) rawnl.Message {
	t.Helper()
	data, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return rawnl.Message{Type: typeEntry, Data: data}
}

func TestPlan(t *testing.T) {
	plan, err := conntrack.Plan([]rawnl.Message{entry(t, bothTranslated), entry(t, redirected)})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"conntrack tcp ESTABLISHED src=10.0.0.1 dst=192.0.2.1 sport=43708 dport=80 reply src=192.0.2.1 dst=10.0.0.1 sport=80 dport=43708 dnat=10.0.0.2:5000 snat=10.0.0.99:7777 [SEEN_REPLY,ASSURED,SRC_NAT,DST_NAT] mark=119",
		"conntrack tcp ESTABLISHED src=fd00::1 dst=fd00::2 sport=47870 dport=80 reply src=fd00::2 dst=fd00::1 sport=80 dport=47870 dnat=[fd00::2]:5000 [SEEN_REPLY,ASSURED,DST_NAT] mark=119",
	}
	var got []string
	for _, m := range plan {
		got = append(got, conntrack.Describe(m))
	}
	if !slices.Equal(got, want) {
		t.Errorf("got:\n%s", strings.Join(got, "\n"))
	}
}

func TestFilter(t *testing.T) {
	msgs := []rawnl.Message{entry(t, bothTranslated), entry(t, redirected)}
	for _, c := range []struct {
		addr string
		n    int
	}{{"10.0.0.1", 1}, {"10.0.0.99", 1}, {"192.0.2.1", 1}, {"::ffff:10.0.0.2", 1}, {"fd00::2%eth0", 1}, {"10.0.0.3", 0}} {
		if got := conntrack.Filter(msgs, []netip.Addr{netip.MustParseAddr(c.addr)}); len(got) != c.n {
			t.Errorf("%s: %d entries, want %d", c.addr, len(got), c.n)
		}
	}
}

func TestValidate(t *testing.T) {
	good := entry(t, redirected)
	if err := conntrack.Validate(good); err != nil {
		t.Error(err)
	}
	short, family, typ := good.Clone(), good.Clone(), good.Clone()
	short.Data = short.Data[:len(short.Data)-1]
	family.Data[0] = 7
	typ.Type = 0xa00
	for _, m := range []rawnl.Message{short, family, typ, {Type: typeEntry}, {Type: typeEntry, Data: good.Data[:4]}} {
		if err := conntrack.Validate(m); !errors.Is(err, rawnl.ErrMalformed) {
			t.Errorf("%x: %v", m.Data, err)
		}
	}
}

func FuzzMessages(f *testing.F) {
	f.Add(uint16(typeEntry), entry(f, bothTranslated).Data)
	f.Add(uint16(typeEntry), entry(f, redirected).Data)
	f.Add(uint16(0x200), []byte{2, 0, 0, 0})
	f.Fuzz(func(t *testing.T, typ uint16, data []byte) {
		m := rawnl.Message{Type: typ, Data: data}
		valid := conntrack.Validate(m) == nil
		conntrack.Describe(m)
		conntrack.Filter([]rawnl.Message{m}, []netip.Addr{netip.MustParseAddr("10.0.0.1")})
		once := conntrack.Normalize(m)
		if twice := conntrack.Normalize(once); !bytes.Equal(once.Data, twice.Data) {
			t.Errorf("normalized %x, again %x", once.Data, twice.Data)
		}
		plan, err := conntrack.Plan([]rawnl.Message{m, m})
		if valid != (err == nil) {
			t.Errorf("valid %v, plan %v", valid, err)
		}
		for _, p := range plan {
			if conntrack.Validate(p) != nil {
				t.Errorf("planned %x", p.Data)
			}
		}
		if valid {
			for _, c := range [][3][]rawnl.Message{{nil, {m}, {m}}, {{m}, nil, nil}, {{m}, {m}, {m}}} {
				changes, err := conntrack.Change(c[0], c[1], c[2])
				if err != nil {
					t.Error(err)
				}
				for _, p := range changes {
					conntrack.Describe(p)
				}
			}
		}
	})
}
