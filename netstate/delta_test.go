package netstate_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/netstate"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

func readStored(tb testing.TB, name string) *netstate.State {
	tb.Helper()
	s, err := netstate.ReadState(bytes.NewReader(stored(tb)[name]))
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// edited returns a copy of a state whose routes are what fn makes of them.
func edited(s *netstate.State, fn func([]rawnl.Message) []rawnl.Message) *netstate.State {
	c := *s
	c.Messages = maps.Clone(s.Messages)
	msgs := slices.Clone(s.Messages[netstate.KindRoute])
	for i := range msgs {
		msgs[i] = msgs[i].Clone()
	}
	c.Messages[netstate.KindRoute] = fn(msgs)
	return &c
}

func delta(tb testing.TB, old, next *netstate.State) ([]byte, *netstate.Delta) {
	tb.Helper()
	d, err := netstate.Difference(old, next)
	if err != nil {
		tb.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := d.WriteTo(&b); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes(), d
}

// TestDelta: applied, a difference makes the second state to the byte; where little changed it is small.
func TestDelta(t *testing.T) {
	base := readStored(t, "routes")
	routes := base.Messages[netstate.KindRoute]
	for _, c := range []struct {
		name string
		next *netstate.State
		most int // bytes
	}{
		{"nothing", base, 24},
		{"a copy", edited(base, func(m []rawnl.Message) []rawnl.Message { return m }), 24},
		{"one number", edited(base, func(m []rawnl.Message) []rawnl.Message {
			m[3].Data[len(m[3].Data)-1]++
			return m
		}), 24 + 24},
		{"one number in each", edited(base, func(m []rawnl.Message) []rawnl.Message {
			for i := range m {
				m[i].Data[len(m[i].Data)-1]++
			}
			return m
		}), 24 + 16 + 6*len(routes)},
		{"one gone", edited(base, func(m []rawnl.Message) []rawnl.Message { return slices.Delete(m, 4, 5) }), 24 + 22},
		{"one more", edited(base, func(m []rawnl.Message) []rawnl.Message {
			return slices.Insert(m, 7, rawnl.Message{Type: m[0].Type, Data: append([]byte{2, 32}, m[0].Data[2:]...)})
		}), 24 + 32 + len(routes[0].Data)},
		{"the last one first", edited(base, func(m []rawnl.Message) []rawnl.Message {
			return append(m[len(m)-1:], m[:len(m)-1]...)
		}), 24 + 32 + len(routes[len(routes)-1].Data)},
		{"none", edited(base, func([]rawnl.Message) []rawnl.Message { return nil }), 24 + 22},
		{"another state", readStored(t, "bridge"), 1 << 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, d := delta(t, base, c.next)
			if len(b) > c.most {
				t.Errorf("%d bytes, more than %d", len(b), c.most)
			}
			if d.Empty() != bytes.Equal(written(t, base), written(t, c.next)) {
				t.Errorf("empty: %v", d.Empty())
			}
			again, err := netstate.ReadDelta(bytes.NewReader(b))
			if err != nil {
				t.Fatal(err)
			}
			got, err := again.Apply(base)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(written(t, got), written(t, c.next)) {
				t.Error("another state came out")
			}
		})
	}
	for _, c := range [][2]*netstate.State{{nil, nil}, {nil, base}} {
		_, d := delta(t, c[0], c[1])
		if got, err := d.Apply(c[0]); err != nil || c[1] != nil && !bytes.Equal(written(t, got), written(t, c[1])) {
			t.Errorf("from a fresh namespace: %v", err)
		}
	}
}

// TestDeltaRandom does so for lists that were altered in any way.
func TestDeltaRandom(t *testing.T) {
	base := readStored(t, "routes")
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 0))
		next := edited(base, func(m []rawnl.Message) []rawnl.Message {
			for range r.IntN(20) {
				switch i := r.IntN(len(m)); r.IntN(5) {
				case 0:
					m[i].Data[12+r.IntN(len(m[i].Data)-12)&^3]++ // the length of an attribute, perhaps
				case 1:
					m = slices.Delete(m, i, i+1)
				case 2:
					m = slices.Insert(m, i, m[r.IntN(len(m))].Clone())
				case 3:
					j := r.IntN(len(m))
					m[i], m[j] = m[j], m[i]
				case 4:
					m[i].Data = rawnl.AppendAttr(m[i].Data, uint16(r.IntN(99)), make([]byte, r.IntN(9)))
				}
			}
			return slices.DeleteFunc(m, func(m rawnl.Message) bool { return !wellFormed(m) })
		})
		_, d := delta(t, base, next)
		got, err := d.Apply(base)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if !bytes.Equal(written(t, got), written(t, next)) {
			t.Fatalf("seed %d: another state came out", seed)
		}
	}
}

func wellFormed(m rawnl.Message) bool {
	one := netstate.State{Kernel: "x", Messages: map[netstate.Kind][]rawnl.Message{netstate.KindRoute: {m}}}
	return one.Validate() == nil
}

// TestDeltaMalformed: what a peer sends is believed in nothing.
func TestDeltaMalformed(t *testing.T) {
	base := readStored(t, "container")
	next := edited(base, func(m []rawnl.Message) []rawnl.Message { return m[1:] })
	whole, _ := delta(t, base, next)
	count := len(base.Messages[netstate.KindRoute])
	// section returns a difference with this one section.
	section := func(kind netstate.Kind, steps ...byte) []byte {
		n := uint32(len(base.Messages[kind]))
		body := append(binary.LittleEndian.AppendUint32(nil, n), 0, 0, 0, 0)
		body = append(body, steps...)
		b := slices.Clone(whole[:16])
		b = binary.LittleEndian.AppendUint16(b, uint16(kind))
		b = binary.LittleEndian.AppendUint32(append(b, 0, 0), uint32(len(body)))
		return append(append(b, body...), whole[len(whole)-8:]...)
	}
	route := netstate.KindRoute
	patch := func(head, tail, middle uint64) []byte {
		b := binary.AppendUvarint(nil, head<<2|2)
		return section(route, binary.AppendUvarint(binary.AppendUvarint(b, tail), middle)...)
	}
	for _, c := range []struct {
		name string
		b    []byte
		want error
		text string
	}{
		{"empty", nil, netstate.ErrMalformed, "truncated"},
		{"a state", stored(t)["container"], netstate.ErrMalformed, "no magic number"},
		{"cut", whole[:len(whole)-1], netstate.ErrMalformed, "truncated"},
		{"unknown kind", section(99), netstate.ErrVersion, "section 99"},
		{"too few steps", section(route), netstate.ErrMalformed, "another state"},
		{"too many steps", section(route, byte(count)<<2|1, 1<<2), netstate.ErrMalformed, "another state"},
		{"copy nothing", section(route, 0), netstate.ErrMalformed, "another state"},
		{"checksum", section(route, byte(count)<<2), netstate.ErrMalformed, "another state"},
		{"endless number", section(route, bytes.Repeat([]byte{0xff}, 11)...), netstate.ErrMalformed, "truncated step"},
		{"patch beyond", patch(999, 0, 0), netstate.ErrMalformed, "another state"},
		{"patch over itself", patch(12, 1<<40, 0), netstate.ErrMalformed, "another state"},
		{"patch with what isn't there", patch(0, 0, 1<<40), netstate.ErrMalformed, "truncated step"},
		{"patch to nothing", patch(0, 0, 0), netstate.ErrMalformed, "shorter than its header"},
		{"insert what isn't there", section(route, 0xff, 0xff, 0x03), netstate.ErrMalformed, "truncated step"},
		{"insert a link as a route", section(route, 3, 16, 0, 0, 0), netstate.ErrMalformed, "message of type 16"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := netstate.ReadDelta(bytes.NewReader(c.b))
			if err == nil {
				var s *netstate.State
				if s, err = d.Apply(base); s != nil && err != nil {
					t.Error("a state with an error")
				}
			}
			if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.text) {
				t.Errorf("got %v, want %v with %q", err, c.want, c.text)
			}
		})
	}
	if _, d := delta(t, base, next); d != nil {
		if _, err := d.Apply(next); !errors.Is(err, netstate.ErrMalformed) {
			t.Errorf("applied to another state: %v", err)
		}
	}
}

// FuzzDelta: a difference that is accepted makes a state that would be accepted from a file.
func FuzzDelta(f *testing.F) {
	states := map[string]*netstate.State{}
	for name := range stored(f) {
		states[name] = readStored(f, name)
	}
	for _, a := range states {
		for _, b := range states {
			d, _ := delta(f, a, b)
			f.Add(d)
		}
	}
	base := states["container"]
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := netstate.ReadDelta(bytes.NewReader(b))
		if err != nil {
			return
		}
		var again bytes.Buffer
		if _, err := d.WriteTo(&again); err != nil || !bytes.Equal(b, again.Bytes()) {
			t.Fatalf("accepted, and written differently: %v", err)
		}
		next, err := d.Apply(base)
		if err != nil {
			return
		}
		if _, err := netstate.ReadState(bytes.NewReader(written(t, next))); err != nil {
			t.Fatalf("accepted, and refused as a state: %v", err)
		}
		if plan, err := netstate.PlanUpdate(base, next); err == nil {
			for _, batch := range plan {
				_ = batch.Text(next)
			}
		}
		_, d = delta(t, base, next)
		if same, err := d.Apply(base); err != nil || !bytes.Equal(written(t, same), written(t, next)) {
			t.Fatalf("the difference that it makes is another one: %v", err)
		}
	})
}
