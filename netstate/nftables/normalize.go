package nftables

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/nfnl"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Normalize returns a message without what may differ between two equal rulesets, for comparison:
//
//   - handles, positions, use counts, transaction numbers: the kernel deals them out anew;
//   - set backend and element count: they follow from the rest;
//   - values that packets and time change: counters, bytes consumed of quotas, last use, remaining life of
//     elements. They are carried, but a ruleset that counts is no other ruleset;
//   - the owner of a table, which is a socket;
//   - the numbers in the kernel-made names of chains without a name.
//
// The set of elements is kept, also where packets add them. A malformed message comes back cut short.
func Normalize(m rawnl.Message) rawnl.Message {
	if len(m.Data) < nfnl.HeaderLen {
		return m.Clone()
	}
	s, _ := messageShape(kindOf(m))
	data := make([]byte, nfnl.HeaderLen, len(m.Data))
	copy(data, m.Data[:2]) // res_id is the generation of the dump
	return rawnl.Message{Type: m.Type, Data: append(data, s.normalize(nfnl.Attrs(m), 0)...)}
}

// chainPrefix begins the names that the kernel gives to chains without one (nf_tables_addchain).
const chainPrefix = "__chain"

func (s shape) normalize(b []byte, depth int) []byte {
	if depth > depthMax {
		return nil
	}
	var name []byte
	return rawnl.Rewrite(b, func(a rawnl.Attr) (rawnl.Attr, bool) {
		kind := a.Kind()
		if s.volatile(kind) {
			return a, false
		}
		inner := s.child(kind)
		switch {
		case s == exprShape && kind == unix.NFTA_EXPR_NAME:
			name = trimNUL(a.Data)
		case s == exprShape && kind == unix.NFTA_EXPR_DATA:
			inner = exprDataShape(name)
			if inner == flat {
				a.Data = normalizeStateful(string(name), a.Data)
				return a, true
			}
		case s == objShape && kind == unix.NFTA_OBJ_DATA:
			a.Data = normalizeStateful(objectName(nfnl.Number(rawnl.Get(b, unix.NFTA_OBJ_TYPE))), a.Data)
			return a, true
		case s == chainShape && kind == unix.NFTA_CHAIN_COUNTERS:
			a.Data = nil
			return a, true
		case s == tableShape && kind == unix.NFTA_TABLE_FLAGS:
			a.Data = slices.Clone(a.Data)
			clearFlag(a.Data, tableFlagOwner)
			return a, true
		case (s == chainShape && kind == unix.NFTA_CHAIN_NAME || s == ruleShape && kind == unix.NFTA_RULE_CHAIN) &&
			strings.HasPrefix(rawnl.CString(a.Data), chainPrefix):
			a.Data = []byte(chainPrefix + "\x00")
			return a, true
		case s == dataShape && kind == unix.NFTA_DATA_VERDICT:
			a.Data = rawnl.Rewrite(a.Data, func(f rawnl.Attr) (rawnl.Attr, bool) {
				if f.Kind() == unix.NFTA_VERDICT_CHAIN && strings.HasPrefix(rawnl.CString(f.Data), chainPrefix) {
					f.Data = []byte(chainPrefix + "\x00")
				}
				return f, f.Kind() != verdictChainID
			})
			return a, true
		}
		if inner != opaque {
			a.Data = inner.normalize(a.Data, depth+1)
		}
		return a, true
	})
}

// volatile reports whether an attribute of a run of shape s is left out of comparisons.
func (s shape) volatile(kind uint16) bool {
	switch s {
	case tableShape:
		return kind == unix.NFTA_TABLE_USE || kind == tableHandle || kind == tableOwner
	case chainShape:
		return kind == unix.NFTA_CHAIN_HANDLE || kind == unix.NFTA_CHAIN_USE || kind == chainID
	case ruleShape:
		return kind == unix.NFTA_RULE_HANDLE || kind == unix.NFTA_RULE_POSITION || kind == unix.NFTA_RULE_COMPAT || kind == ruleChainID
	case setShape:
		return kind == setHandle || kind == setType || kind == setCount || kind == unix.NFTA_SET_ID
	case elemListShape:
		return kind == unix.NFTA_SET_ELEM_LIST_SET_ID
	case elemShape:
		return kind == unix.NFTA_SET_ELEM_EXPIRATION
	case objShape:
		return kind == unix.NFTA_OBJ_USE || kind == objHandle
	case flowtableShape:
		return kind == flowtableUse || kind == flowtableHandle
	}
	return false
}

// normalizeStateful removes what packets change from the payload of an expression or object.
func normalizeStateful(name string, data []byte) []byte {
	switch name {
	case "counter", "last":
		return nil
	case "quota":
		return rawnl.Rewrite(data, func(a rawnl.Attr) (rawnl.Attr, bool) {
			if a.Kind() == unix.NFTA_QUOTA_FLAGS {
				a.Data = slices.Clone(a.Data)
				clearFlag(a.Data, quotaFlagDepleted)
			}
			return a, a.Kind() != unix.NFTA_QUOTA_CONSUMED
		})
	}
	return data
}
