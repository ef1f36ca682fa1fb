package tc

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Validate reports whether a message can be one of a capture: it makes a kind of object that traffic control has,
// it says which, and its attributes are well-formed as deep as their meaning is known. Whether the object makes
// sense is the kernel's to judge. The error is [rawnl.ErrMalformed].
func Validate(m rawnl.Message) error {
	var nest rawnl.Nest
	switch m.Type {
	case typeQdisc, typeClass:
		nest = rawnl.Nest{tcaStats2: rawnl.Flat(), tcaStab: rawnl.Flat()}
		if hasAttributes(m) {
			nest[tcaOptions] = rawnl.Flat()
		}
	case typeFilter, typeChain:
		nest = rawnl.Nest{tcaOptions: filterNest(kindOf(m))}
	case typeAction:
		nest = rawnl.Nest{rootTab: {rawnl.AnyAttr: actionNest()}}
	default:
		return fmt.Errorf("%w: message type %d is not of traffic control", rawnl.ErrMalformed, m.Type)
	}
	if m.Flags != 0 {
		return fmt.Errorf("%w: flags %#x", rawnl.ErrMalformed, m.Flags)
	}
	if len(m.Data) < headerLen(m.Type) {
		return fmt.Errorf("%w: traffic control message of %d bytes", rawnl.ErrMalformed, len(m.Data))
	}
	if m.Data[0] != unix.AF_UNSPEC {
		return fmt.Errorf("%w: traffic control family %d", rawnl.ErrMalformed, m.Data[0])
	}
	if err := nest.Check(attrsOf(m)); err != nil {
		return fmt.Errorf("traffic control: %w", err)
	}
	return validateObject(m)
}

func validateObject(m rawnl.Message) error {
	if m.Type == typeAction {
		attrs, err := rawnl.ParseAttrs(rawnl.Get(attrsOf(m), rootTab))
		if err != nil || len(attrs) != 1 || rawnl.CString(rawnl.Get(attrs[0].Data, actKind)) == "" {
			return fmt.Errorf("%w: not one action", rawnl.ErrMalformed)
		}
		return nil
	}
	h := header(m)
	onBlock := h.index == blockMagic && (m.Type == typeFilter || m.Type == typeChain)
	if h.index <= 0 && !onBlock {
		return fmt.Errorf("%w: interface index %d", rawnl.ErrMalformed, h.index)
	}
	if kindOf(m) == "" && m.Type != typeChain {
		return fmt.Errorf("%w: no kind", rawnl.ErrMalformed)
	}
	if h.handle == 0 && (m.Type == typeQdisc || m.Type == typeClass) {
		return fmt.Errorf("%w: no handle", rawnl.ErrMalformed)
	}
	return nil
}

// hasAttributes reports whether the options of a qdisc are a run of attributes that are looked into. Those of
// many kinds are a structure.
func hasAttributes(m rawnl.Message) bool {
	switch kindOf(m) {
	case "htb", "red", "choke", "tbf", "taprio", "codel", "fq_codel", "pie", "fq_pie":
		return true
	}
	return false
}

func filterNest(kind string) rawnl.Nest {
	nest := rawnl.Flat()
	where := classifierOf(kind)
	if where.actions != 0 {
		nest[where.actions] = rawnl.Nest{rawnl.AnyAttr: actionNest()}
	}
	if where.police != 0 {
		nest[where.police] = rawnl.Flat()
	}
	return nest
}

func actionNest() rawnl.Nest { return rawnl.Nest{actOptions: rawnl.Flat()} }
