package conntrack

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/nfnl"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Validate reports whether a message can be one of a capture: an entry or an expectation of IPv4 or IPv6
// with its tuples, whose attributes are well-formed. The error is [rawnl.ErrMalformed].
func Validate(m rawnl.Message) error {
	required, nested := []uint16{ctaTupleOrig, ctaTupleReply}, []uint16{ctaTupleOrig, ctaTupleReply, ctaTupleMaster}
	flat := []uint16{ctaHelp, ctaSeqAdjOrig, ctaSeqAdjReply, ctaSynproxy}
	switch m.Type {
	case typeEntry:
		nested = append(nested, ctaProtoinfo)
	case typeExpect:
		required = []uint16{expectMaster, expectTuple, expectMask}
		nested, flat = required, nil
	default:
		return fmt.Errorf("%w: message type %#x is not of conntrack", rawnl.ErrMalformed, m.Type)
	}
	if len(m.Data) < nfnl.HeaderLen {
		return fmt.Errorf("%w: conntrack message of %d bytes", rawnl.ErrMalformed, len(m.Data))
	}
	if family := m.Data[0]; family != unix.AF_INET && family != unix.AF_INET6 {
		return fmt.Errorf("%w: conntrack family %d", rawnl.ErrMalformed, family)
	}
	attrs, err := rawnl.ParseAttrs(nfnl.Attrs(m))
	if err != nil {
		return fmt.Errorf("conntrack: %w", err)
	}
	for _, kind := range required {
		if _, ok := rawnl.Find(attrs, kind); !ok {
			return fmt.Errorf("%w: conntrack message without attribute %d", rawnl.ErrMalformed, kind)
		}
	}
	for _, a := range attrs {
		depth := 0
		switch {
		case slices.Contains(nested, a.Kind()):
			depth = 2
		case m.Type == typeExpect && a.Kind() == expectNAT:
			depth = 1
		case slices.Contains(flat, a.Kind()):
			depth = 1
		}
		if err := wellFormed(a.Data, depth); err != nil {
			return fmt.Errorf("conntrack attribute %d: %w", a.Kind(), err)
		}
	}
	return nil
}

// wellFormed checks a run of attributes that nest to the given depth. At the last level there may be
// bytes beside attributes; those of a tuple's zone are such.
func wellFormed(b []byte, depth int) error {
	if depth == 0 {
		return nil
	}
	attrs, err := rawnl.ParseAttrs(b)
	if err != nil {
		return err
	}
	for _, a := range attrs {
		if depth == 1 || a.Kind() == tupleZone && len(a.Data) == 2 {
			continue
		}
		if err := wellFormed(a.Data, depth-1); err != nil {
			return err
		}
	}
	return nil
}
