package tc_test

import (
	"bytes"
	"encoding/hex"
	"testing"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
	"github.com/nsmigrate/nsmigrate/netstate/tc"
)

// FuzzMessages: what Validate accepts can be planned, and nothing that looks at a message minds what it is.
func FuzzMessages(f *testing.F) {
	for typ, data := range map[uint16]string{
		36: "000000000a00000000000100ffffffff00000000080001006874620024000200180002001100030014000000300000000000000000000000080005004d000000",
		40: "000000000a00000030000100010001000000300008000100687462003400020030000100000100000000000048e80100000100000000000068890900400d0300409c0000d00700000000000003000000",
		44: "000000000b00000000080080f3ffffff00030700080001007533320008000b000500000078000200240005000100010000000000000000000000000000000000000000000000000000000000080002000000008008000b0000000000400007003c0001000b0001006d6972726564000006000600aabb000024000200200002004d00000000000000030000000200000001000000020000000a000000",
		48: "0000000028000180240001800b0001006d69727265640000140002801000020001000000000000000000000000",
	} {
		b, err := hex.DecodeString(data)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(typ, b)
	}
	f.Fuzz(func(t *testing.T, typ uint16, data []byte) {
		m := rawnl.Message{Type: typ, Data: data}
		valid := tc.Validate(m) == nil
		tc.Describe(m, name)
		tc.Losses([]rawnl.Message{m}, name)
		once := tc.Normalize(m)
		if twice := tc.Normalize(once); !bytes.Equal(once.Data, twice.Data) {
			t.Errorf("normalized %x, again %x", once.Data, twice.Data)
		}
		if _, err := tc.Plan([]rawnl.Message{m, m}); valid != (err == nil) {
			t.Errorf("valid %v, plan %v", valid, err)
		}
	})
}
