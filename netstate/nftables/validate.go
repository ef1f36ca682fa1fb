package nftables

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/nfnl"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// shape says how the payload of an attribute is built: bytes, or a run of attributes of some kind.
type shape uint8

const (
	opaque shape = iota
	flat         // attributes without known attributes inside
	tableShape
	chainShape
	hookShape
	ruleShape
	setShape
	setDescShape
	setFieldsShape
	elemListShape
	elemsShape
	elemShape
	objShape
	flowtableShape
	exprsShape
	exprShape
	dataShape

	// Payloads of expressions that have attributes inside.
	immediateShape
	cmpShape
	bitwiseShape
	rangeShape
	dynsetShape
	innerShape
)

// child returns the shape of an attribute inside a run of shape s.
func (s shape) child(kind uint16) shape {
	switch s {
	case chainShape:
		switch kind {
		case unix.NFTA_CHAIN_HOOK:
			return hookShape
		case unix.NFTA_CHAIN_COUNTERS:
			return flat
		}
	case hookShape:
		if kind == hookDevs {
			return flat
		}
	case ruleShape:
		switch kind {
		case unix.NFTA_RULE_EXPRESSIONS:
			return exprsShape
		case unix.NFTA_RULE_COMPAT:
			return flat
		}
	case setShape:
		switch kind {
		case unix.NFTA_SET_DESC:
			return setDescShape
		case setExpr:
			return exprShape
		case setExpressions:
			return exprsShape
		}
	case setDescShape:
		if kind == 2 { // NFTA_SET_DESC_CONCAT
			return setFieldsShape
		}
	case setFieldsShape:
		return flat
	case elemListShape:
		if kind == unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			return elemsShape
		}
	case elemsShape:
		return elemShape
	case elemShape:
		switch kind {
		case unix.NFTA_SET_ELEM_KEY, elemKeyEnd, unix.NFTA_SET_ELEM_DATA:
			return dataShape
		case unix.NFTA_SET_ELEM_EXPR:
			return exprShape
		case elemExpressions:
			return exprsShape
		}
	case objShape:
		if kind == unix.NFTA_OBJ_DATA {
			return flat
		}
	case flowtableShape:
		if kind == flowtableHook {
			return hookShape
		}
	case exprsShape:
		return exprShape
	case dataShape:
		if kind == unix.NFTA_DATA_VERDICT {
			return flat
		}
	case immediateShape:
		if kind == unix.NFTA_IMMEDIATE_DATA {
			return dataShape
		}
	case cmpShape:
		if kind == unix.NFTA_CMP_DATA {
			return dataShape
		}
	case bitwiseShape:
		if kind == unix.NFTA_BITWISE_MASK || kind == unix.NFTA_BITWISE_XOR || kind == 7 { // NFTA_BITWISE_DATA
			return dataShape
		}
	case rangeShape:
		if kind == 3 || kind == 4 { // NFTA_RANGE_FROM_DATA, NFTA_RANGE_TO_DATA
			return dataShape
		}
	case dynsetShape:
		switch kind {
		case unix.NFTA_DYNSET_EXPR:
			return exprShape
		case dynsetExpressions:
			return exprsShape
		}
	case innerShape:
		if kind == innerExpr {
			return exprShape
		}
	}
	return opaque
}

// exprDataShape returns the shape of an expression's payload.
func exprDataShape(name []byte) shape {
	switch string(trimNUL(name)) {
	case "immediate":
		return immediateShape
	case "cmp":
		return cmpShape
	case "bitwise":
		return bitwiseShape
	case "range":
		return rangeShape
	case "dynset":
		return dynsetShape
	case "inner":
		return innerShape
	}
	return flat
}

func trimNUL(b []byte) []byte {
	for i, c := range b {
		if c == 0 {
			return b[:i]
		}
	}
	return b
}

// messageShape returns the shape of a captured message and the attributes that name its object besides
// the table.
func messageShape(kind uint16) (s shape, required []uint16) {
	switch kind {
	case unix.NFT_MSG_NEWTABLE:
		return tableShape, nil
	case unix.NFT_MSG_NEWCHAIN:
		return chainShape, []uint16{unix.NFTA_CHAIN_NAME}
	case unix.NFT_MSG_NEWRULE:
		return ruleShape, []uint16{unix.NFTA_RULE_CHAIN}
	case unix.NFT_MSG_NEWSET:
		return setShape, []uint16{unix.NFTA_SET_NAME, unix.NFTA_SET_KEY_LEN}
	case unix.NFT_MSG_NEWSETELEM:
		return elemListShape, []uint16{unix.NFTA_SET_ELEM_LIST_SET}
	case unix.NFT_MSG_NEWOBJ:
		return objShape, []uint16{unix.NFTA_OBJ_NAME, unix.NFTA_OBJ_TYPE}
	case unix.NFT_MSG_NEWFLOWTABLE:
		return flowtableShape, []uint16{flowtableName}
	}
	return opaque, nil
}

// depthMax bounds the nesting of attributes. The kernel's own limit is lower (a dynset or inner
// expression holds one more expression, and that is all).
const depthMax = 16

// Validate reports whether a message can be one of a capture: it is of nf_tables and makes a known kind
// of object in a known family, the object is named, and the attributes are well-formed as deep as their
// meaning is known. Whether the object makes sense is the kernel's to judge. The error is
// [rawnl.ErrMalformed].
func Validate(m rawnl.Message) error {
	if m.Type>>8 != unix.NFNL_SUBSYS_NFTABLES {
		return fmt.Errorf("%w: message type %#x is not of nf_tables", rawnl.ErrMalformed, m.Type)
	}
	s, required := messageShape(kindOf(m))
	if s == opaque {
		return fmt.Errorf("%w: nf_tables message type %d", rawnl.ErrMalformed, kindOf(m))
	}
	if len(m.Data) < nfnl.HeaderLen {
		return fmt.Errorf("%w: nf_tables message of %d bytes", rawnl.ErrMalformed, len(m.Data))
	}
	if familyName(m.Data[0]) == "" {
		return fmt.Errorf("%w: nf_tables family %d", rawnl.ErrMalformed, m.Data[0])
	}
	if err := s.check(nfnl.Attrs(m), 0); err != nil {
		return fmt.Errorf("nf_tables %s: %w", nounOf(kindOf(m)), err)
	}
	if len(trimNUL(rawnl.Get(nfnl.Attrs(m), unix.NFTA_TABLE_NAME))) == 0 {
		return fmt.Errorf("%w: nf_tables %s without its table", rawnl.ErrMalformed, nounOf(kindOf(m)))
	}
	for _, kind := range required {
		if len(rawnl.Get(nfnl.Attrs(m), kind)) == 0 {
			return fmt.Errorf("%w: nf_tables %s without attribute %d", rawnl.ErrMalformed, nounOf(kindOf(m)), kind)
		}
	}
	return nil
}

func (s shape) check(b []byte, depth int) error {
	if s == opaque {
		return nil
	}
	if depth > depthMax {
		return fmt.Errorf("%w: attributes nested deeper than %d", rawnl.ErrMalformed, depthMax)
	}
	used := 0
	var name []byte
	for a := range rawnl.Each(b) {
		used += rawnl.Align(unix.SizeofNlAttr + len(a.Data))
		inner := s.child(a.Kind())
		if s == exprShape { // the kernel writes the name first
			switch a.Kind() {
			case unix.NFTA_EXPR_NAME:
				name = a.Data
			case unix.NFTA_EXPR_DATA:
				inner = exprDataShape(name)
			}
		}
		if err := inner.check(a.Data, depth+1); err != nil {
			return err
		}
	}
	if used < len(b) {
		return fmt.Errorf("%w: attribute at byte %d of %d", rawnl.ErrMalformed, used, len(b))
	}
	return nil
}
