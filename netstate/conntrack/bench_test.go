package conntrack_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/nsmigrate/nsmigrate/netstate/conntrack"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/ns/nstest"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// BenchmarkEntries measures 10,000 redirected connections.
func BenchmarkEntries(b *testing.B) {
	nstest.NeedRoot(b)
	var msgs []rawnl.Message
	for i := range 10_000 {
		m := entry(b, redirected)
		port := binary.BigEndian.AppendUint16(nil, uint16(10_000+i))
		m.Data = bytes.ReplaceAll(m.Data, []byte{0xba, 0xfe}, port)
		msgs = append(msgs, m)
	}
	plan, err := conntrack.Plan(msgs)
	if err != nil {
		b.Fatal(err)
	}
	full := nstest.New(b)
	if err := conntrack.Apply(b.Context(), full, plan); err != nil {
		b.Fatal(err)
	}
	b.Run("capture", func(b *testing.B) {
		for b.Loop() {
			if got, err := conntrack.Capture(b.Context(), full); err != nil || len(got) != len(msgs) {
				b.Fatal(len(got), err)
			}
		}
	})
	b.Run("capture-empty", func(b *testing.B) {
		empty := nstest.New(b)
		for b.Loop() {
			if _, err := conntrack.Capture(b.Context(), empty); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("plan", func(b *testing.B) {
		for b.Loop() {
			if _, err := conntrack.Plan(msgs); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("apply", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			n, err := ns.Create()
			if err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			if err := conntrack.Apply(b.Context(), n, plan); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			n.Close()
			b.StartTimer()
		}
	})
}
