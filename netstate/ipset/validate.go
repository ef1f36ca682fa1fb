package ipset

import (
	"fmt"

	"github.com/nsmigrate/nsmigrate/netstate/nfnl"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Validate reports whether a message can be one of a capture: a set with its type, or one element. Whether it makes
// sense is the kernel's to judge. The error is [rawnl.ErrMalformed].
func Validate(m rawnl.Message) error {
	required := []uint16{attrProtocol, attrSetname, attrData}
	nest := rawnl.Nest{attrData: {dataIP: rawnl.Flat(), dataIPTo: rawnl.Flat()}}
	switch m.Type {
	case typeSet:
		required = append(required, attrTypename, attrRevision, attrFamily)
	case typeElement:
		nest[attrData][elemIP2] = rawnl.Flat()
	default:
		return fmt.Errorf("%w: message type %#x is not of ipset", rawnl.ErrMalformed, m.Type)
	}
	if m.Flags != 0 || len(m.Data) < nfnl.HeaderLen {
		return fmt.Errorf("%w: ipset message of %d bytes with flags %#x", rawnl.ErrMalformed, len(m.Data), m.Flags)
	}
	if err := nest.Check(nfnl.Attrs(m)); err != nil {
		return fmt.Errorf("ipset: %w", err)
	}
	for _, kind := range required {
		if len(rawnl.Get(nfnl.Attrs(m), kind)) == 0 && kind != attrData {
			return fmt.Errorf("%w: ipset message without attribute %d", rawnl.ErrMalformed, kind)
		}
	}
	for a := range rawnl.Each(nfnl.Attrs(m)) {
		switch a.Kind() {
		case attrProtocol:
			if v := nfnl.Number(a.Data); v < protocolMin || v > protocolMax {
				return fmt.Errorf("%w: version %d of the ipset protocol", rawnl.ErrMalformed, v)
			}
		case attrList:
			return fmt.Errorf("%w: a list of elements", rawnl.ErrMalformed)
		case attrIndex:
			if len(a.Data) != 2 {
				return fmt.Errorf("%w: number of a set in %d bytes", rawnl.ErrMalformed, len(a.Data))
			}
		}
	}
	return nil
}
