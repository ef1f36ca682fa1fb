package tc

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Plan turns a capture into the messages that build the same traffic control on devices that have what the
// kernel gives them: shared actions, qdiscs and classes each after what it is attached to, chains, filters.
// Everything gets the handle that it had. What [Losses] names is left out. The error is [rawnl.ErrMalformed] if
// the messages can't be a capture.
func Plan(msgs []rawnl.Message) ([]rawnl.Message, error) {
	for _, m := range msgs {
		if err := Validate(m); err != nil {
			return nil, fmt.Errorf("plan traffic control: %w", err)
		}
	}
	var actions, chains []rawnl.Message
	for _, m := range msgs {
		switch {
		case lossOf(m) != "":
		case m.Type == typeAction:
			actions = append(actions, action(settableAction(actionOf(m))))
		case m.Type == typeChain:
			chains = append(chains, m)
		}
	}
	plan := slices.Concat(actions, parentsFirst(msgs), chains, filters(msgs))
	for i := range plan {
		plan[i].Flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	}
	return plan, nil
}

// Device returns the device that an object is attached to; false for a shared action and for what is in a shared block
// of filters.
func Device(m rawnl.Message) (index int32, ok bool) {
	index = header(m).index
	return index, m.Type != typeAction && index != blockMagic
}

// node identifies a qdisc (whose minor number is 0) or a class.
type node struct {
	index  int32
	handle uint32
}

// parentsFirst returns the messages that make qdiscs and classes, each after its parent.
func parentsFirst(msgs []rawnl.Message) []rawnl.Message {
	byNode := map[node]rawnl.Message{}
	for _, m := range msgs {
		if m.Type == typeQdisc || m.Type == typeClass {
			byNode[node{header(m).index, header(m).handle}] = m
		}
	}
	var ordered []rawnl.Message
	done := map[node]bool{}
	var visit func(n node)
	visit = func(n node) {
		m, ok := byNode[n]
		if !ok || done[n] {
			return
		}
		done[n] = true
		h := header(m)
		visit(node{n.index, n.handle &^ 0xffff}) // the qdisc of a class
		if h.parent < ingress {
			visit(node{n.index, h.parent &^ 0xffff})
			visit(node{n.index, h.parent})
		}
		if lossOf(m) == "" {
			ordered = append(ordered, settable(m))
		}
	}
	for _, m := range msgs {
		if m.Type == typeQdisc || m.Type == typeClass {
			visit(node{header(m).index, header(m).handle})
		}
	}
	return ordered
}

// settable returns the message that makes a qdisc or class.
func settable(m rawnl.Message) rawnl.Message {
	h := header(m)
	h.info = 0
	kind := kindOf(m)
	attrs := rawnl.Rewrite(attrsOf(m), func(a rawnl.Attr) (rawnl.Attr, bool) {
		switch a.Kind() {
		case tcaStats2:
			return a, false
		case tcaStab:
			a.Data = sizeTable(a.Data)
		case tcaOptions:
			a.Type |= unix.NLA_F_NESTED // some kinds insist, none objects
			if m.Type == typeQdisc {
				a.Data = settableQdisc(kind, a.Data)
			}
		}
		return a, true
	})
	return message(m.Type, h, attrs)
}

// settableQdisc changes what a kind of qdisc shows in another form than it takes.
func settableQdisc(kind string, options []byte) []byte {
	switch kind {
	case "htb":
		// The version is shown with its minor part and taken without (htb_init, htb_dump in net/sched/sch_htb.c).
		return rawnl.Rewrite(options, func(a rawnl.Attr) (rawnl.Attr, bool) {
			if a.Kind() == htbInit && len(a.Data) == 20 {
				a.Data = slices.Clone(a.Data)
				binary.NativeEndian.PutUint32(a.Data, binary.NativeEndian.Uint32(a.Data)>>16)
			}
			return a, true
		})
	case "red", "choke":
		return settableRED(options)
	case "tbf":
		if parms := rawnl.Get(options, tbfParms); len(parms) == 36 && rawnl.Get(options, tbfBurst) == nil {
			rate := uint64(binary.NativeEndian.Uint32(parms[8:]))
			if b := rawnl.Get(options, tbfRate64); len(b) == 8 {
				rate = binary.NativeEndian.Uint64(b)
			}
			overhead := uint64(binary.NativeEndian.Uint16(parms[2:]))
			if size, ok := burst(binary.NativeEndian.Uint32(parms[28:]), rate, overhead); ok && parms[1]&0xf == 1 {
				return rawnl.AppendAttr(slices.Clone(options), tbfBurst, u32(size))
			}
		}
	case "taprio":
		return rawnl.Rewrite(options, func(a rawnl.Attr) (rawnl.Attr, bool) { return a, a.Kind() != taprioAdminSched })
	case "mqprio":
		// Without hardware, the kernel shows attributes that it takes for hardware only.
		if len(options) > mqprioLen && options[mqprioHW] == 0 {
			return options[:mqprioLen]
		}
	case "sfq":
		return settableSFQ(options)
	case "codel":
		return microseconds(options, codelUp, codelTarget, codelInterval, codelThreshold)
	case "fq_codel":
		return microseconds(options, codelUp, codelTarget, codelInterval, fqCodelThreshold)
	case "pie":
		return microseconds(options, pieUp, pieTarget)
	case "fq_pie":
		return microseconds(options, pieUp, fqPieTarget)
	}
	return options
}

// microseconds changes times that the kernel keeps in units of its own and shows rounded down: taken as shown,
// they would become shorter with every move.
func microseconds(options []byte, up func(uint32) uint32, times ...uint16) []byte {
	return rawnl.Rewrite(options, func(a rawnl.Attr) (rawnl.Attr, bool) {
		if slices.Contains(times, a.Kind()) && len(a.Data) == 4 {
			a.Data = u32(up(rawnl.Uint32(a.Data)))
		}
		return a, true
	})
}

// codelUp returns a time that the kernel shows as us: it keeps units of 1024 ns (include/net/codel.h).
func codelUp(us uint32) uint32 { return min(us, math.MaxUint32-1) + 1 }

// pieUp is codelUp for the units of 64 ns that pie keeps: only a multiple of 8 us is one of them.
func pieUp(us uint32) uint32 {
	if us%8 == 0 {
		return us
	}
	return codelUp(us)
}

// settableSFQ leaves the limit and number of flows out where they are the defaults of the kernel, which refuses them
// in this combination (sfq_change in net/sched/sch_sfq.c, struct tc_sfq_qopt).
func settableSFQ(options []byte) []byte {
	const limitAt, flowsAt = 8, 16
	if len(options) < flowsAt+4 || binary.NativeEndian.Uint32(options[flowsAt:]) <= binary.NativeEndian.Uint32(options[limitAt:]) {
		return options
	}
	out := slices.Clone(options)
	binary.NativeEndian.PutUint32(out[limitAt:], 0)
	binary.NativeEndian.PutUint32(out[flowsAt:], 0)
	return out
}

// settableRED adds the table that the kernel doesn't show, and leaves the flags in one of the two places where it
// shows them (red_get_flags in include/net/red.h).
func settableRED(options []byte) []byte {
	twice := rawnl.Get(options, redFlags) != nil
	out := rawnl.Rewrite(options, func(a rawnl.Attr) (rawnl.Attr, bool) {
		if a.Kind() == redParms && len(a.Data) == 16 && twice {
			a.Data = append(slices.Clone(a.Data[:15]), 0)
		}
		return a, a.Kind() != redStab
	})
	return rawnl.AppendAttr(out, redStab, idleTable())
}

// burst returns the largest bucket, in bytes, that fills at a rate in the given time (in ticks of 64 ns). The
// kernel shows the time only, rounded down: computed back from it, a bucket of just one packet would be too
// small for the packet (tbf_change in net/sched/sch_tbf.c).
func burst(ticks uint32, rate, overhead uint64) (uint32, bool) {
	hi, lo := bits.Mul64(uint64(ticks)<<6+63, rate)
	if hi >= 1e9 {
		return 0, false
	}
	size, _ := bits.Div64(hi, lo, 1e9)
	if size <= overhead || size-overhead > 1<<31 {
		return 0, false
	}
	return uint32(size - overhead), true
}

// idleTable returns the table by which red's average queue decays while the queue is idle: how far, as a power
// of two, after each of 256 cells of time. The kernel shows the size of a cell but not the table; a decay by
// 31 powers of two takes between 256 and 512 cells (red_calc_qavg_from_idle_time in include/net/red.h), the
// middle is taken.
func idleTable() []byte {
	table := make([]byte, 256)
	for i := range table {
		table[i] = byte(i * 31 / 384)
	}
	table[255] = 31
	return table
}

// sizeTable completes the table by which a qdisc computes the length of packets on the wire. The kernel shows
// how it is made (struct tc_sizespec) and not its content.
func sizeTable(stab []byte) []byte {
	base := rawnl.Get(stab, stabBase)
	if len(base) != 24 {
		return stab
	}
	cell, size := base[0], base[1]
	const linkATM = 2 // TC_LINKLAYER_ATM
	layer, mpu, n := binary.NativeEndian.Uint32(base[8:]), binary.NativeEndian.Uint32(base[12:]), binary.NativeEndian.Uint32(base[20:])
	if n == 0 || n > stabMax || cell > 31 || size > 31 || rawnl.Get(stab, stabData) != nil {
		return stab
	}
	table := make([]byte, 0, 2*n)
	for i := range n {
		length := max((i+1)<<cell, mpu)
		if layer == linkATM {
			length = (length + 47) / 48 * 53
		}
		table = binary.NativeEndian.AppendUint16(table, uint16(length>>size))
	}
	return rawnl.AppendAttr(slices.Clone(stab), stabData, table)
}

// stabMax bounds the entries of a table: an attribute holds 64 KiB.
const stabMax = 32_000

// band identifies the filters of one priority in one chain at one place.
type band struct {
	index               int32
	parent, chain, info uint32
}

func bandOf(m rawnl.Message) band {
	h := header(m)
	return band{h.index, h.parent, chainOf(m), h.info}
}

// isTable reports whether a message is about a table of u32 filters and not about a filter.
func isTable(m rawnl.Message) bool {
	return kindOf(m) == "u32" && header(m).handle&^u32TableMask == 0
}

// linked returns 1 for a u32 filter that refers to a table, which can be of another priority; else 0.
func linked(m rawnl.Message) int {
	if kindOf(m) == "u32" && rawnl.Uint32(rawnl.Get(rawnl.Get(attrsOf(m), tcaOptions), u32Link)) != 0 {
		return 1
	}
	return 0
}

// filters returns the messages that make the filters. The kernel makes the root table of each priority of u32
// filters and numbers it, so priorities are made in the order of these numbers and filters in a root table name no
// table. Other tables are made before the filters that refer to them. Basic filters are put before those that are
// there (net/sched/cls_u32.c, cls_basic.c).
func filters(msgs []rawnl.Message) []rawnl.Message {
	roots := map[band]uint32{}
	var list []rawnl.Message
	for _, m := range msgs {
		if m.Type != typeFilter || lossOf(m) != "" {
			continue
		}
		list = append(list, m)
		table := header(m).handle & u32TableMask
		if kindOf(m) != "u32" || table&u32Generated == 0 {
			continue
		}
		if root, ok := roots[bandOf(m)]; !ok || table < root {
			roots[bandOf(m)] = table
		}
	}
	list = slices.DeleteFunc(list, func(m rawnl.Message) bool { return isTable(m) && header(m).handle == roots[bandOf(m)] })
	slices.SortStableFunc(list, func(a, b rawnl.Message) int {
		if c := cmp.Compare(linked(a), linked(b)); c != 0 {
			return c
		}
		if c := cmp.Compare(roots[bandOf(a)], roots[bandOf(b)]); c != 0 || isTable(a) == isTable(b) {
			return c
		}
		if isTable(a) {
			return -1
		}
		return 1
	})
	for i := 0; i < len(list); {
		n := i + 1
		for n < len(list) && kindOf(list[i]) == "basic" && kindOf(list[n]) == "basic" && bandOf(list[n]) == bandOf(list[i]) {
			n++
		}
		slices.Reverse(list[i:n])
		i = n
	}
	plan := make([]rawnl.Message, len(list))
	for i, m := range list {
		plan[i] = settableFilter(m, roots[bandOf(m)])
	}
	return plan
}

// settableFilter returns the message that makes a filter. table is the root table of its band, if it is a u32
// filter.
func settableFilter(m rawnl.Message, table uint32) rawnl.Message {
	h := header(m)
	kind := kindOf(m)
	where := classifierOf(kind)
	inRoot := kind == "u32" && table != 0 && h.handle&u32TableMask == table
	if inRoot {
		h.handle &= u32NodeMask
	}
	tagged := kind == "flower" && hasVLAN(rawnl.Get(attrsOf(m), tcaOptions))
	return message(m.Type, h, inOptions(attrsOf(m), func(a rawnl.Attr) (rawnl.Attr, bool) {
		switch {
		case tagged && a.Kind() == flowerEthType && len(a.Data) == 2:
			// Shown is the protocol behind the tags, wanted the one before them, which is the filter's.
			a.Data = binary.NativeEndian.AppendUint16(nil, uint16(h.info))
		case inRoot && a.Kind() == u32Hash:
			a.Data = u32(u32RootTable)
		case where.actions != 0 && a.Kind() == where.actions:
			a.Data = rawnl.Rewrite(a.Data, func(act rawnl.Attr) (rawnl.Attr, bool) {
				act.Data = settableAction(act.Data)
				return act, true
			})
		case where.police != 0 && a.Kind() == where.police:
			a.Data = settablePolice(a.Data)
		case kind == "bpf" && slices.Contains([]uint16{bpfFD, bpfName, bpfTag, bpfID}, a.Kind()):
			return a, false
		}
		return a, true
	}))
}

// hasVLAN reports whether a flower filter looks at a VLAN tag.
func hasVLAN(options []byte) bool {
	for _, kind := range []uint16{flowerVLANID, flowerVLANPrio, flowerVLANEthType, flowerCVLANEthType} {
		if rawnl.Get(options, kind) != nil {
			return true
		}
	}
	return false
}

// settableAction returns the attributes that make an action. One that has the index of an action that exists is
// that action.
func settableAction(act []byte) []byte {
	kind := rawnl.CString(rawnl.Get(act, actKind))
	return rawnl.Rewrite(act, func(a rawnl.Attr) (rawnl.Attr, bool) {
		if a.Kind() != actOptions {
			return a, true
		}
		a.Type |= unix.NLA_F_NESTED
		switch kind {
		case "police":
			a.Data = settablePolice(a.Data)
		case "gate":
			a.Data = rawnl.Rewrite(a.Data, func(f rawnl.Attr) (rawnl.Attr, bool) {
				if f.Kind() == gateEntries {
					f = marked(f)
				}
				return f, true
			})
		case "bpf":
			a.Data = rawnl.Rewrite(a.Data, func(f rawnl.Attr) (rawnl.Attr, bool) {
				return f, !slices.Contains([]uint16{actBPFFD, actBPFName, actBPFTag, actBPFID}, f.Kind())
			})
		}
		return a, true
	})
}

// marked returns a nested attribute that says so, as do those in it. The kernel insists on the marks that it leaves
// out itself.
func marked(a rawnl.Attr) rawnl.Attr {
	return rawnl.Attr{Type: a.Type | unix.NLA_F_NESTED, Data: rawnl.Rewrite(a.Data, func(inner rawnl.Attr) (rawnl.Attr, bool) {
		inner.Type |= unix.NLA_F_NESTED
		return inner, true
	})}
}

// settablePolice adds the tables that the kernel wants with a rate and makes no use of: it computes from the
// rate itself (tcf_police_init in net/sched/act_police.c, qdisc_get_rtab in net/sched/sch_api.c).
func settablePolice(options []byte) []byte {
	parms := slices.Clone(rawnl.Get(options, policeTBF))
	if len(parms) < policeLen {
		return options
	}
	out := options
	for _, table := range []struct {
		at   int
		kind uint16
	}{{policeRateSpec, policeRate}, {policePeakSpec, policePeak}} {
		if rate := binary.NativeEndian.Uint32(parms[table.at+8:]); rate == 0 || rawnl.Get(options, table.kind) != nil {
			continue
		}
		if parms[table.at] == 0 {
			parms[table.at] = 1
		}
		out = rawnl.AppendAttr(slices.Clone(out), table.kind, make([]byte, 1024))
	}
	return rawnl.Rewrite(out, func(a rawnl.Attr) (rawnl.Attr, bool) {
		if a.Kind() == policeTBF {
			a.Data = parms
		}
		return a, true
	})
}
