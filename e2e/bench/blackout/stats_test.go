package blackout

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// statsFile is a file of statistics with one entry.
func statsFile(entry protowire.Number, numbers map[protowire.Number]uint64) []byte {
	var inner []byte
	for n, v := range numbers {
		inner = protowire.AppendVarint(protowire.AppendTag(inner, n, protowire.VarintType), v)
	}
	message := protowire.AppendBytes(protowire.AppendTag(nil, entry, protowire.BytesType), inner)
	file := binary.LittleEndian.AppendUint32(make([]byte, 8), uint32(len(message)))
	return append(file, message...)
}

func TestStatistics(t *testing.T) {
	file := statsFile(1, map[protowire.Number]uint64{1: 70, 2: 29748, 3: 131})
	got, err := statistics(file, 1)
	if err != nil || got[2] != 29748*time.Microsecond || got[3] != 131*time.Microsecond {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := statistics(file, 2); err != nil || len(got) != 0 {
		t.Errorf("of an entry that isn't there: %v, %v", got, err)
	}
	for n := range file {
		if _, err := statistics(file[:n], 1); !errors.Is(err, errStatistics) {
			t.Errorf("cut after %d bytes: %v", n, err)
		}
	}
}

func FuzzStatistics(f *testing.F) {
	f.Add(statsFile(1, map[protowire.Number]uint64{2: 1, 3: 1 << 40}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := statistics(b, 1); err != nil && !errors.Is(err, errStatistics) {
			t.Errorf("%v is not what it is", err)
		}
	})
}
