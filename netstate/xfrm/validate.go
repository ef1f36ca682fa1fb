package xfrm

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Validate reports whether a message can be one of a capture: a state, a policy or a setting for policies, with
// well-formed attributes. Whether it makes sense is the kernel's to judge. The error is [rawnl.ErrMalformed].
func Validate(m rawnl.Message) error {
	size := HeaderLen(m.Type)
	if size == 0 {
		return fmt.Errorf("%w: message type %#x is not of xfrm", rawnl.ErrMalformed, m.Type)
	}
	if m.Flags != 0 || len(m.Data) < size || m.Type == typeDefault && len(m.Data) != size {
		return fmt.Errorf("%w: xfrm message of %d bytes with flags %#x", rawnl.ErrMalformed, len(m.Data), m.Flags)
	}
	if err := rawnl.Flat().Check(attrsOf(m)); err != nil {
		return fmt.Errorf("xfrm: %w", err)
	}
	for _, a := range []struct {
		typ uint16
		at  int
	}{{typeState, stateFamily}, {typePolicy, selectorFamily}} {
		if m.Type != a.typ {
			continue
		}
		// The selector of a policy for both families says so.
		if family := u32at(m.Data, a.at) & 0xffff; family != unix.AF_INET && family != unix.AF_INET6 && (m.Type == typeState || family != unix.AF_UNSPEC) {
			return fmt.Errorf("%w: xfrm family %d", rawnl.ErrMalformed, family)
		}
	}
	return nil
}

// Normalize returns a message without what may differ between two equal objects, for comparison: what was counted,
// the sequence numbers, and the times of creation and use.
func Normalize(m rawnl.Message) rawnl.Message {
	if HeaderLen(m.Type) == 0 || len(m.Data) < HeaderLen(m.Type) {
		return m.Clone()
	}
	var counted [][2]int
	switch m.Type {
	case typeState:
		counted = [][2]int{{stateLifetime, lifetimeLen}, {stateStats, statsLen}}
	case typePolicy:
		counted = [][2]int{{policyLifetime, lifetimeLen}}
	}
	return rewrite(m, func(a rawnl.Attr) (rawnl.Attr, bool) {
		switch a.Kind() {
		case attrLifetime, attrReplay, attrLastUsed:
			return a, m.Type == typeThreshold
		case attrReplayESN: // struct xfrm_replay_state_esn: the size of the window is set, the rest counts
			if len(a.Data) >= 24 {
				esn := make([]byte, len(a.Data))
				copy(esn, a.Data[:4])
				copy(esn[20:], a.Data[20:24])
				a.Data = esn
			}
		}
		return a, true
	}, counted...)
}
