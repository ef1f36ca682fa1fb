package journal_test

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/nsmigrate/nsmigrate/transfer/journal"
)

func someRecords() []journal.Record {
	at := time.Date(2026, 11, 22, 6, 0, 0, 0, time.UTC)
	return []journal.Record{
		{Step: "created", Time: at, Boot: "one", Data: json.RawMessage(`{"version":1}`)},
		{Step: "link", Time: at.Add(time.Second), Boot: "one", Data: json.RawMessage(`{"name":"veth-svc","note":"a\nb"}`)},
		{Step: "released", Time: at.Add(2 * time.Second), Boot: "one"},
	}
}

func TestParseCut(t *testing.T) {
	records := someRecords()
	file := journal.Lines(t, records...)
	for cut := range len(file) + 1 {
		got, whole, err := journal.Parse(file[:cut])
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		lines := bytes.Count(file[:cut], []byte("\n"))
		if want := records[:lines]; len(got) != lines || lines > 0 && !reflect.DeepEqual(got, want) {
			t.Errorf("cut at %d: got %v, want %v", cut, got, want)
		}
		if want := bytes.LastIndexByte(file[:cut], '\n') + 1; whole != want {
			t.Errorf("cut at %d: %d bytes are whole, want %d", cut, whole, want)
		}
	}
}

// A changed bit never changes what is read, but for the last newline, whose loss is that of the last line.
func TestParseFlippedBit(t *testing.T) {
	records := someRecords()
	file := journal.Lines(t, records...)
	for i := range file {
		for bit := range 8 {
			damaged := bytes.Clone(file)
			damaged[i] ^= 1 << bit
			got, _, err := journal.Parse(damaged)
			if err == nil && i != len(file)-1 {
				t.Errorf("bit %d of byte %d changed: no error, read %v", bit, i, got)
			}
			for k, r := range got {
				if !reflect.DeepEqual(r, records[k]) {
					t.Errorf("bit %d of byte %d changed: record %d is %v", bit, i, k, r)
				}
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	file := journal.Lines(f, someRecords()...)
	f.Add(file)
	f.Add(file[:len(file)-5])
	f.Add([]byte("00000000 {}\n"))
	f.Add([]byte("\n\n"))
	extra := journal.Record{Step: "extra", Boot: "two"}
	line := journal.Lines(f, extra)
	f.Fuzz(func(t *testing.T, data []byte) {
		records, whole, err := journal.Parse(data)
		if whole > len(data) || bytes.Count(data[:whole], []byte("\n")) != len(records) {
			t.Fatalf("%d records in %d bytes of %d", len(records), whole, len(data))
		}
		if err != nil {
			return
		}
		if bytes.IndexByte(data[whole:], '\n') >= 0 {
			t.Fatal("a line was passed over")
		}
		// The next writer goes on where the whole lines end.
		again, _, err := journal.Parse(append(bytes.Clone(data[:whole]), line...))
		if err != nil || !reflect.DeepEqual(again, append(records, extra)) {
			t.Fatalf("with a record more: %v, %v", again, err)
		}
	})
}
