package ipset

import (
	"errors"
	"testing"

	"github.com/nsmigrate/nsmigrate/netstate/nfnl"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// TestLowered: a set that another kernel made with a newer revision keeps what it does, or is refused.
func TestLowered(t *testing.T) {
	mask := rawnl.AppendAttr(nil, dataBitmask, []byte{1})
	netmask := rawnl.AppendAttr(nil, setNetmask, []byte{24})
	for _, c := range []struct {
		typename     string
		data         []byte
		have, newest byte
		want         byte // 0 is a refusal
	}{
		{"hash:ip", nil, 6, 6, 6},
		{"hash:ip", nil, 4, 6, 4},
		{"hash:ip", nil, 6, 5, 5},
		{"hash:ip", nil, 6, 4, 4},
		{"hash:ip", nil, 6, 3, 0},
		{"hash:ip", netmask, 6, 5, 5},
		{"hash:ip", mask, 6, 6, 6},
		{"hash:ip", mask, 6, 5, 0},
		{"hash:net,net", nil, 4, 3, 3},
		{"hash:net,net", netmask, 4, 3, 0},
		{"hash:ip,port", netmask, 7, 6, 0},
		{"hash:ip", nil, 9, 8, 0},
		{"list:set", nil, 4, 3, 0},
	} {
		attrs := about(protocolMax, []byte("a\x00"))
		attrs = rawnl.AppendAttr(attrs, attrTypename, append([]byte(c.typename), 0))
		attrs = rawnl.AppendAttr(rawnl.AppendAttr(attrs, attrRevision, []byte{c.have}), attrFamily, []byte{2})
		m := request(typeSet, rawnl.AppendAttr(attrs, attrData, c.data))
		got, err := lowered(m, c.newest)
		revision := rawnl.Get(nfnl.Attrs(got), attrRevision)[0]
		if (c.want == 0) != errors.Is(err, errRevision) || (c.want == 0) != (err != nil) || c.want != 0 && revision != c.want {
			t.Errorf("%+v: revision %d, %v", c, revision, err)
		}
		if got.Type != m.Type || len(got.Data) != len(m.Data) || m.Data[len(m.Data)-1] != got.Data[len(got.Data)-1] {
			t.Errorf("%+v: got %x from %x", c, got.Data, m.Data)
		}
	}
}
