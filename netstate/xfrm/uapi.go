package xfrm

import (
	"encoding/binary"
	"slices"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Message types (linux/xfrm.h).
const (
	typeState     = 0x10 // XFRM_MSG_NEWSA
	getState      = 0x12
	typePolicy    = 0x13 // XFRM_MSG_NEWPOLICY
	getPolicy     = 0x15
	flushStates   = 0x1c
	flushPolicies = 0x1d
	typeThreshold = 0x24 // XFRM_MSG_NEWSPDINFO
	getThreshold  = 0x25
	typeDefault   = 0x27 // XFRM_MSG_SETDEFAULT
	getDefault    = 0x28
)

// Attributes (enum xfrm_attr_type_t).
const (
	attrAuth      = 1
	attrCrypt     = 2
	attrComp      = 3
	attrEncap     = 4
	attrTmpl      = 5
	attrSecCtx    = 8
	attrLifetime  = 9 // XFRMA_LTIME_VAL
	attrReplay    = 10
	attrLastUsed  = 15
	attrType      = 16
	attrAEAD      = 18
	attrAuthTrunc = 20
	attrMark      = 21
	attrReplayESN = 23
	attrPad       = 27
	attrOffload   = 28
	attrSetMark   = 29
	attrIfID      = 31

	thresholdV4 = 3 // XFRMA_SPD_IPV4_HTHRESH
	thresholdV6 = 4
)

// Offsets in struct xfrm_usersa_info, which precedes the attributes of a state.
const (
	stateLen      = 224
	stateDst      = 56
	stateSPI      = 72
	stateProto    = 76
	stateSrc      = 80
	stateLifetime = 160 // struct xfrm_lifetime_cur: bytes, packets, time of creation, time of first use
	stateStats    = 192 // struct xfrm_stats
	stateReqID    = 208
	stateFamily   = 212
	stateMode     = 214
)

// Offsets in struct xfrm_userpolicy_info, which precedes the attributes of a policy.
const (
	policyLen      = 168
	policyLifetime = 120
	policyPriority = 152
	policyIndex    = 156
	policyDir      = 160
	policyAction   = 161

	dirMax = 2 // XFRM_POLICY_FWD; what is above is of sockets
)

// Offsets in struct xfrm_selector, with which a policy begins.
const (
	selectorDst       = 0
	selectorSrc       = 16
	selectorFamily    = 40
	selectorDstPrefix = 42
	selectorSrcPrefix = 43
	selectorProto     = 44
)

const (
	lifetimeLen  = 32
	statsLen     = 12
	defaultLen   = 3 // struct xfrm_userpolicy_default
	thresholdLen = 4 // flags that nothing uses
	accept       = 2 // XFRM_USERPOLICY_ACCEPT
)

// HeaderLen returns the size of the structure with which a message of a type begins; 0 for other types.
func HeaderLen(typ uint16) int {
	switch typ {
	case typeState:
		return stateLen
	case typePolicy:
		return policyLen
	case typeThreshold:
		return thresholdLen
	case typeDefault:
		return defaultLen
	}
	return 0
}

func attrsOf(m rawnl.Message) []byte {
	if n := HeaderLen(m.Type); n > 0 && len(m.Data) > n {
		return m.Data[n:]
	}
	return nil
}

// rewrite returns a message with its attributes changed and some bytes of its header cleared.
func rewrite(m rawnl.Message, fn func(rawnl.Attr) (rawnl.Attr, bool), clear ...[2]int) rawnl.Message {
	head := slices.Clone(m.Data[:HeaderLen(m.Type)])
	for _, c := range clear {
		copy(head[c[0]:], make([]byte, c[1]))
	}
	return rawnl.Message{Type: m.Type, Data: append(head, rawnl.Rewrite(attrsOf(m), fn)...)}
}

func u32at(b []byte, at int) uint32 { return binary.NativeEndian.Uint32(b[at:]) }
