package nfnl_test

import (
	"testing"

	"github.com/nsmigrate/nsmigrate/netstate/nfnl"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

func TestNumber(t *testing.T) {
	for _, c := range []struct {
		bytes []byte
		want  uint64
	}{
		{nil, 0},
		{[]byte{7}, 7},
		{[]byte{1, 2}, 0x102},
		{[]byte{1, 2, 3, 4}, 0x1020304},
		{[]byte{1, 2, 3, 4, 5, 6, 7, 8, 9}, 0x102030405060708},
	} {
		if got := nfnl.Number(c.bytes); got != c.want {
			t.Errorf("%x: %#x, want %#x", c.bytes, got, c.want)
		}
	}
}

// TestShort: what has no whole header has no attributes.
func TestShort(t *testing.T) {
	for _, data := range [][]byte{nil, {2}, {2, 0, 0}} {
		m := rawnl.Message{Data: data}
		if attrs := nfnl.Attrs(m); attrs != nil || len(data) > 0 && nfnl.Family(m) != 2 || len(data) == 0 && nfnl.Family(m) != 0 {
			t.Errorf("%x: attributes %x, family %d", data, attrs, nfnl.Family(m))
		}
	}
}
