package tc

import (
	"encoding/binary"
	"slices"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// tidy returns a dumped message without what is counted or can't be given back: statistics, the times of
// actions, what the hardware does, and numbers of references. Of the statistics of a qdisc or class it keeps
// that there is a rate estimator, for [Losses].
func tidy(m rawnl.Message) rawnl.Message {
	kind := kindOf(m)
	attrs := rawnl.Rewrite(attrsOf(m), func(a rawnl.Attr) (rawnl.Attr, bool) {
		switch a.Kind() {
		case tcaStats, tcaXStats, tcaPad, tcaHWOffload, tcaWarning:
			return a, false
		case tcaStats2:
			if m.Type == typeFilter || rawnl.Get(a.Data, statsRateEst) == nil {
				return a, false
			}
			a.Data = rawnl.AppendAttr(nil, statsRateEst, nil)
		case tcaOptions:
			if m.Type == typeFilter || m.Type == typeChain {
				a.Data = tidyFilter(kind, a.Data)
			} else if kind == "htb" {
				a.Data = tidyHTB(a.Data)
			}
		}
		return a, true
	})
	h := header(m)
	if m.Type == typeQdisc {
		h.info = 0 // the number of references
	}
	return message(m.Type, h, attrs)
}

// tidyHTB clears the count of packets that no class took (struct tc_htb_glob).
func tidyHTB(options []byte) []byte {
	return rawnl.Rewrite(options, func(a rawnl.Attr) (rawnl.Attr, bool) {
		if a.Kind() == htbInit && len(a.Data) == 20 {
			a.Data = slices.Clone(a.Data)
			binary.NativeEndian.PutUint32(a.Data[16:], 0)
		}
		return a, true
	})
}

func tidyFilter(kind string, options []byte) []byte {
	where := classifierOf(kind)
	if where.actions == 0 {
		return options
	}
	return rawnl.Rewrite(options, func(a rawnl.Attr) (rawnl.Attr, bool) {
		switch {
		case slices.Contains(where.counters, a.Kind()):
			return a, false
		case a.Kind() == where.actions:
			a.Data = rawnl.Rewrite(a.Data, func(act rawnl.Attr) (rawnl.Attr, bool) {
				act.Data = tidyAction(act.Data)
				return act, true
			})
		case where.police != 0 && a.Kind() == where.police:
			a.Data = tidyActionOptions("police", a.Data)
		case where.flags != 0 && a.Kind() == where.flags && len(a.Data) == 4:
			a.Data = u32(rawnl.Uint32(a.Data) &^ flagsInHW)
		}
		return a, true
	})
}

func tidyAction(act []byte) []byte {
	kind := rawnl.CString(rawnl.Get(act, actKind))
	return rawnl.Rewrite(act, func(a rawnl.Attr) (rawnl.Attr, bool) {
		switch a.Kind() {
		case actIndex, actStats, actPad, actUsedHWStats, actInHWCount:
			return a, false
		case actOptions:
			a.Data = tidyActionOptions(kind, a.Data)
		}
		return a, true
	})
}

func tidyActionOptions(kind string, options []byte) []byte {
	counters := countedBy(kind)
	return rawnl.Rewrite(options, func(a rawnl.Attr) (rawnl.Attr, bool) { return a, !slices.Contains(counters, a.Kind()) })
}

// Normalize returns a message without what may differ between two equal objects, for comparison: the numbers
// that the kernel gives to the root tables of u32 filters.
func Normalize(m rawnl.Message) rawnl.Message {
	if len(m.Data) < headerLen(m.Type) || m.Type == typeAction {
		return m.Clone()
	}
	m = tidy(m)
	if m.Type != typeFilter || kindOf(m) != "u32" {
		return m
	}
	h := header(m)
	h.handle = unnumbered(h.handle)
	return message(m.Type, h, inOptions(attrsOf(m), func(a rawnl.Attr) (rawnl.Attr, bool) {
		if a.Kind() == u32Hash && len(a.Data) == 4 {
			a.Data = u32(unnumbered(rawnl.Uint32(a.Data)))
		}
		return a, true
	}))
}

// inOptions rewrites the attributes in TCA_OPTIONS.
func inOptions(attrs []byte, fn func(rawnl.Attr) (rawnl.Attr, bool)) []byte {
	return rawnl.Rewrite(attrs, func(a rawnl.Attr) (rawnl.Attr, bool) {
		if a.Kind() == tcaOptions {
			a.Data = rawnl.Rewrite(a.Data, fn)
		}
		return a, true
	})
}

// The number of a u32 filter: 12 bits for the table, 8 for the bucket in it, 12 for the filter. Tables that the
// kernel numbers have the highest bit set (net/sched/cls_u32.c).
const (
	u32TableMask = 0xfff00000
	u32NodeMask  = 0x00000fff
	u32Generated = 0x80000000
)

func unnumbered(handle uint32) uint32 {
	if handle&u32Generated == 0 || handle&u32TableMask == u32RootTable {
		return handle
	}
	return handle&^u32TableMask | u32Generated
}
