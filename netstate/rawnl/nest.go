package rawnl

import "fmt"

// Nest says which attributes of a run hold a run of attributes themselves. The key [AnyAttr] stands for all
// that have no key of their own. A kind whose Nest is nil, or that isn't there, holds bytes.
type Nest map[uint16]Nest

// AnyAttr is no kind that an attribute can have.
const AnyAttr = 0xffff

// Flat is the Nest of a run whose attributes hold bytes.
func Flat() Nest { return Nest{} }

// Check reports whether a run is well-formed as deep as n describes. The error is [ErrMalformed].
func (n Nest) Check(b []byte) error {
	attrs, err := ParseAttrs(b)
	if err != nil {
		return err
	}
	for _, a := range attrs {
		inner, ok := n[a.Kind()]
		if !ok {
			inner = n[AnyAttr]
		}
		if inner == nil {
			continue
		}
		if err := inner.Check(a.Data); err != nil {
			return fmt.Errorf("attribute %d: %w", a.Kind(), err)
		}
	}
	return nil
}
