package nftables_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/netstate/nftables"
	"github.com/nsmigrate/nsmigrate/netstate/ns/nstest"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// readCapture reads a stored capture.
func readCapture(t testing.TB, file string) []rawnl.Message {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	msgs, err := rawnl.Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	return msgs
}

// TestPlanGolden shows the plans of captures that Linux 6.18 made of the rulesets beside them. With
// UPDATE_GOLDEN set and as root the captures are made anew.
func TestPlanGolden(t *testing.T) {
	update := os.Getenv("UPDATE_GOLDEN") != ""
	for _, name := range []string{"families", "sets", "stateful", "expressions", "netdev"} {
		t.Run(name, func(t *testing.T) {
			stored, golden := filepath.Join("testdata", name+".capture"), filepath.Join("testdata", name+".plan")
			if update {
				nstest.NeedRoot(t, "nft")
				n := nstest.New(t)
				devices(t, n)
				run(t, n, "nft", "-f", filepath.Join("testdata", name+".nft"))
				msgs, err := nftables.Capture(t.Context(), n)
				if err != nil {
					t.Fatal(err)
				}
				var b []byte
				for _, m := range msgs {
					b = m.Append(b, 0)
				}
				if err := os.WriteFile(stored, b, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			plan, err := nftables.Plan(readCapture(t, stored))
			if err != nil {
				t.Fatal(err)
			}
			var got strings.Builder
			for _, m := range plan {
				got.WriteString(nftables.Describe(m) + "\n")
			}
			if update {
				if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got.String() != string(want) {
				t.Errorf("the plan differs:\n%s", diff(string(want), got.String()))
			}
		})
	}
}

func TestPlanRefuses(t *testing.T) {
	good := readCapture(t, "testdata/families.capture")
	for _, bad := range []rawnl.Message{
		{Type: 0x100, Data: good[0].Data},
		{Type: 0xa02, Data: good[0].Data},       // a deletion
		{Type: 0xa00, Data: []byte{2, 0, 0}},    // no header
		{Type: 0xa00, Data: []byte{2, 0, 0, 0}}, // no name
		{Type: 0xa00, Data: append([]byte{99}, good[0].Data[1:]...)},
		{Type: 0xa00, Data: good[0].Data[:len(good[0].Data)-5]},
	} {
		if _, err := nftables.Plan([]rawnl.Message{bad}); !errors.Is(err, rawnl.ErrMalformed) {
			t.Errorf("%x: %v", bad.Data, err)
		}
	}
}

func FuzzMessages(f *testing.F) {
	for _, name := range []string{"families", "sets", "stateful", "expressions"} {
		seen := map[uint16]int{}
		for _, m := range readCapture(f, "testdata/"+name+".capture") {
			if seen[m.Type]++; seen[m.Type] < 8 {
				f.Add(m.Type, m.Data)
			}
		}
	}
	f.Fuzz(func(t *testing.T, typ uint16, data []byte) {
		m := rawnl.Message{Type: typ, Data: data}
		valid := nftables.Validate(m) == nil
		nftables.Describe(m)
		nftables.Losses([]rawnl.Message{m})
		once := nftables.Normalize(m)
		if twice := nftables.Normalize(once); !bytes.Equal(once.Data, twice.Data) {
			t.Errorf("normalized %x, again %x", once.Data, twice.Data)
		}
		before := m.Clone()
		_, err := nftables.Plan([]rawnl.Message{m})
		if !valid && err == nil {
			t.Errorf("planned an invalid message")
		}
		for _, c := range [][2][]rawnl.Message{{nil, {m}}, {{m}, nil}, {{m}, {m, m}}} {
			if plan, err := nftables.Change(c[0], c[1]); valid && err == nil {
				for _, p := range plan {
					nftables.Describe(p)
				}
			}
		}
		if !bytes.Equal(before.Data, m.Data) {
			t.Errorf("the plan changed its input")
		}
	})
}
