package nftables

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/nfnl"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Plan turns a capture into the messages of one transaction that builds the same ruleset where none of its
// tables exists. What only the kernel may write (handles, use counts, positions) is removed; counters,
// quotas and the remaining life of set elements stay. The order is that of dependency: tables, chains,
// objects, flowtables, sets, elements, rules; the rules of a chain keep theirs.
//
// Chains without a name ("jump { ... }") get theirs from the kernel, so they travel by number
// (NFTA_CHAIN_ID), and their rules come before all others. Rules with xtables matches or
// targets get the protocol that the extension wants to see beside the rule (NFTA_RULE_COMPAT), which the
// kernel takes but never shows; it is read from the rule's own comparison, as iptables-nft writes it.
//
// The error is [rawnl.ErrMalformed] if the messages can't be a capture.
func Plan(msgs []rawnl.Message) ([]rawnl.Message, error) {
	p := planner{bound: map[object]uint32{}}
	var size int
	groups := make(map[uint16][]rawnl.Message)
	for _, m := range msgs {
		if err := Validate(m); err != nil {
			return nil, fmt.Errorf("plan nftables: %w", err)
		}
		groups[kindOf(m)] = append(groups[kindOf(m)], m)
		size += len(m.Data) + 32
	}
	p.buf, p.out = make([]byte, 0, size), make([]rawnl.Message, 0, len(msgs))
	for _, m := range groups[unix.NFT_MSG_NEWTABLE] {
		p.table(m)
	}
	for _, m := range groups[unix.NFT_MSG_NEWCHAIN] {
		p.chain(m)
	}
	for _, m := range groups[unix.NFT_MSG_NEWOBJ] {
		p.object(m)
	}
	for _, m := range groups[unix.NFT_MSG_NEWFLOWTABLE] {
		p.add(m, unix.NLM_F_CREATE|unix.NLM_F_EXCL, flowtableUse, flowtableHandle)
	}
	for i, m := range groups[unix.NFT_MSG_NEWSET] {
		p.set(m, uint32(i+1))
	}
	for _, m := range groups[unix.NFT_MSG_NEWSETELEM] {
		p.elements(m)
	}
	p.rules(groups[unix.NFT_MSG_NEWRULE])
	return p.out, nil
}

// object identifies a chain; names are unique within a table, tables within a family.
type object struct {
	family      byte
	table, name string
}

// planner builds the messages. All of them share one buffer.
type planner struct {
	out   []rawnl.Message
	buf   []byte
	bound map[object]uint32 // chains without a name of their own, and the number each goes by
}

// add emits a message without the listed attributes and returns its data, which the caller may change in
// place, or extend with extend.
func (p *planner) add(m rawnl.Message, flags uint16, drop ...uint16) []byte {
	start := len(p.buf)
	p.buf = append(p.buf, m.Data[:nfnl.HeaderLen]...)
	for a := range rawnl.Each(nfnl.Attrs(m)) {
		if !slices.Contains(drop, a.Kind()) {
			p.buf = rawnl.AppendAttr(p.buf, a.Type, a.Data)
		}
	}
	p.out = append(p.out, rawnl.Message{Type: m.Type, Flags: flags, Data: p.buf[start:len(p.buf):len(p.buf)]})
	return p.out[len(p.out)-1].Data[nfnl.HeaderLen:]
}

// extend appends attributes to the message emitted last.
func (p *planner) extend(attrs []byte) {
	m := &p.out[len(p.out)-1]
	start := len(p.buf) - len(m.Data)
	p.buf = append(p.buf, attrs...)
	m.Data = p.buf[start:len(p.buf):len(p.buf)]
}

func (p *planner) table(m rawnl.Message) {
	attrs := p.add(m, unix.NLM_F_CREATE|unix.NLM_F_EXCL, unix.NFTA_TABLE_USE, tableHandle, tableOwner)
	// An owned table would vanish with our socket: the owner is whoever created it.
	clearFlag(rawnl.Get(attrs, unix.NFTA_TABLE_FLAGS), tableFlagOwner)
}

func (p *planner) chain(m rawnl.Message) {
	attrs := nfnl.Attrs(m)
	if nfnl.Number(rawnl.Get(attrs, chainFlags))&chainFlagBinding == 0 {
		p.add(m, unix.NLM_F_CREATE|unix.NLM_F_EXCL, unix.NFTA_CHAIN_HANDLE, unix.NFTA_CHAIN_USE)
		return
	}
	id := uint32(len(p.bound) + 1)
	p.bound[object{nfnl.Family(m), tableOf(m), text(attrs, unix.NFTA_CHAIN_NAME)}] = id
	p.add(m, unix.NLM_F_CREATE|unix.NLM_F_EXCL, unix.NFTA_CHAIN_HANDLE, unix.NFTA_CHAIN_USE, unix.NFTA_CHAIN_NAME)
	p.extend(appendUint32(nil, chainID, id))
}

func (p *planner) object(m rawnl.Message) {
	attrs := p.add(m, unix.NLM_F_CREATE|unix.NLM_F_EXCL, unix.NFTA_OBJ_USE, objHandle)
	if nfnl.Number(rawnl.Get(attrs, unix.NFTA_OBJ_TYPE)) == unix.NFT_OBJECT_QUOTA {
		clearDepleted(rawnl.Get(attrs, unix.NFTA_OBJ_DATA))
	}
}

func (p *planner) set(m rawnl.Message, id uint32) {
	attrs := p.add(m, unix.NLM_F_CREATE|unix.NLM_F_EXCL, setHandle, setType, setCount, unix.NFTA_SET_ID)
	settableExpr(rawnl.Get(attrs, setExpr))
	settableExprs(rawnl.Get(attrs, setExpressions))
	p.extend(appendUint32(nil, unix.NFTA_SET_ID, id))
}

func (p *planner) elements(m rawnl.Message) {
	if len(rawnl.Get(nfnl.Attrs(m), unix.NFTA_SET_ELEM_LIST_ELEMENTS)) == 0 {
		return
	}
	attrs := p.add(m, unix.NLM_F_CREATE, unix.NFTA_SET_ELEM_LIST_SET_ID)
	for e := range rawnl.Each(rawnl.Get(attrs, unix.NFTA_SET_ELEM_LIST_ELEMENTS)) {
		for f := range rawnl.Each(e.Data) {
			switch f.Kind() {
			case unix.NFTA_SET_ELEM_EXPR:
				settableExpr(f.Data)
			case elemExpressions:
				settableExprs(f.Data)
			}
		}
	}
}

// rules emits rules in order, those of chains without a name first: the kernel takes no more rules for a
// chain once a rule binds it (nf_tables_newrule), and lets no rule of such a chain bind another
// (nf_tables_bind_chain).
func (p *planner) rules(rules []rawnl.Message) {
	inBound := func(m rawnl.Message) bool {
		if len(p.bound) == 0 {
			return false
		}
		_, ok := p.bound[chainOf(m)]
		return ok
	}
	for _, m := range rules {
		if inBound(m) {
			p.rule(m)
		}
	}
	for _, m := range rules {
		if !inBound(m) {
			p.rule(m)
		}
	}
}

func chainOf(m rawnl.Message) object {
	return object{nfnl.Family(m), tableOf(m), text(nfnl.Attrs(m), unix.NFTA_RULE_CHAIN)}
}

func (p *planner) rule(m rawnl.Message) {
	const flags = unix.NLM_F_CREATE | unix.NLM_F_APPEND
	attrs := p.add(p.settable(m), flags, unix.NFTA_RULE_HANDLE, unix.NFTA_RULE_POSITION)
	exprs := rawnl.Get(attrs, unix.NFTA_RULE_EXPRESSIONS)
	settableExprs(exprs)
	if rawnl.Get(attrs, unix.NFTA_RULE_COMPAT) != nil {
		return
	}
	if proto, inverted, ok := compatProto(m.Data[0], exprs); ok {
		compat, at := openAttr(nil, unix.NFTA_RULE_COMPAT|unix.NLA_F_NESTED)
		compat = appendUint32(compat, unix.NFTA_RULE_COMPAT_PROTO, uint32(proto))
		var compatFlags uint32
		if inverted {
			compatFlags = compatFlagInverted
		}
		compat = appendUint32(compat, unix.NFTA_RULE_COMPAT_FLAGS, compatFlags)
		closeAttr(compat, at)
		p.extend(compat)
	}
}

// settable returns a rule whose references to chains without a name are numbers and whose expressions have
// only the attributes that the kernel takes.
func (p *planner) settable(m rawnl.Message) rawnl.Message {
	var id uint32
	var inBound bool
	if len(p.bound) > 0 {
		id, inBound = p.bound[chainOf(m)]
	}
	changes := inBound
	exprs := rawnl.Get(nfnl.Attrs(m), unix.NFTA_RULE_EXPRESSIONS)
	for e := range rawnl.Each(exprs) {
		changes = changes || isExpr(e.Data, "exthdr") || isExpr(e.Data, "osf") || len(p.bound) > 0 && isExpr(e.Data, "immediate")
	}
	if !changes {
		return m
	}
	data := rawnl.Rewrite(nfnl.Attrs(m), func(a rawnl.Attr) (rawnl.Attr, bool) {
		switch {
		case a.Kind() == unix.NFTA_RULE_CHAIN && inBound:
			return rawnl.Attr{Type: ruleChainID, Data: binary.BigEndian.AppendUint32(nil, id)}, true
		case a.Kind() == unix.NFTA_RULE_EXPRESSIONS:
			a.Data = rawnl.Rewrite(a.Data, func(e rawnl.Attr) (rawnl.Attr, bool) {
				switch {
				case isExpr(e.Data, "exthdr"):
					e.Data = inside(e.Data, settableExthdr, unix.NFTA_EXPR_DATA)
				case isExpr(e.Data, "osf"):
					e.Data = inside(e.Data, settableOsf, unix.NFTA_EXPR_DATA)
				case isExpr(e.Data, "immediate"):
					e.Data = inside(e.Data, func(verdict []byte) []byte { return p.byNumber(m, verdict) },
						unix.NFTA_EXPR_DATA, unix.NFTA_IMMEDIATE_DATA, unix.NFTA_DATA_VERDICT)
				}
				return e, true
			})
		}
		return a, true
	})
	return rawnl.Message{Type: m.Type, Flags: m.Flags, Data: append(slices.Clone(m.Data[:nfnl.HeaderLen]), data...)}
}

// inside returns a run of attributes with the payload at the end of a path of types replaced.
func inside(b []byte, fn func([]byte) []byte, path ...uint16) []byte {
	if len(path) == 0 {
		return fn(b)
	}
	return rawnl.Rewrite(b, func(a rawnl.Attr) (rawnl.Attr, bool) {
		if a.Kind() == path[0] {
			a.Data = inside(a.Data, fn, path[1:]...)
		}
		return a, true
	})
}

// byNumber returns a verdict of a rule that names a chain without a name by its number.
func (p *planner) byNumber(rule rawnl.Message, verdict []byte) []byte {
	return rawnl.Rewrite(verdict, func(a rawnl.Attr) (rawnl.Attr, bool) {
		if a.Kind() != unix.NFTA_VERDICT_CHAIN {
			return a, true
		}
		if id, ok := p.bound[object{nfnl.Family(rule), tableOf(rule), rawnl.CString(a.Data)}]; ok {
			return rawnl.Attr{Type: verdictChainID, Data: binary.BigEndian.AppendUint32(nil, id)}, true
		}
		return a, true
	})
}

// settableExthdr removes what the kernel shows of an expression that writes or strips a TCP option but
// does not take (nft_exthdr_tcp_set_init, nft_exthdr_tcp_strip_init in net/netfilter/nft_exthdr.c).
func settableExthdr(data []byte) []byte {
	if rawnl.Get(data, unix.NFTA_EXTHDR_DREG) != nil {
		return data
	}
	writes := rawnl.Get(data, unix.NFTA_EXTHDR_SREG) != nil
	return rawnl.Rewrite(data, func(a rawnl.Attr) (rawnl.Attr, bool) {
		switch a.Kind() {
		case unix.NFTA_EXTHDR_FLAGS:
			return a, false
		case unix.NFTA_EXTHDR_OFFSET, unix.NFTA_EXTHDR_LEN:
			return a, writes
		}
		return a, true
	})
}

// settableOsf removes flags of value 0, which the kernel shows but refuses (net/netfilter/nft_osf.c).
func settableOsf(data []byte) []byte {
	return rawnl.Rewrite(data, func(a rawnl.Attr) (rawnl.Attr, bool) {
		return a, a.Kind() != osfFlags || nfnl.Number(a.Data) != 0
	})
}

// isExpr reports whether an expression has the given name.
func isExpr(expr []byte, name string) bool {
	return string(trimNUL(rawnl.Get(expr, unix.NFTA_EXPR_NAME))) == name
}

// settableExprs changes a list of expressions in place into what the kernel accepts.
func settableExprs(list []byte) {
	for e := range rawnl.Each(list) {
		settableExpr(e.Data)
	}
}

func settableExpr(expr []byte) {
	data := rawnl.Get(expr, unix.NFTA_EXPR_DATA)
	switch name := trimNUL(rawnl.Get(expr, unix.NFTA_EXPR_NAME)); {
	case bytes.Equal(name, []byte("quota")):
		clearDepleted(data)
	case bytes.Equal(name, []byte("dynset")):
		settableExpr(rawnl.Get(data, unix.NFTA_DYNSET_EXPR))
		settableExprs(rawnl.Get(data, dynsetExpressions))
		settableDynset(data)
	}
}

// settableDynset undoes two peculiarities of how the kernel dumps the expression that adds to a set
// (nft_dynset_dump): it states a timeout of zero also for sets without timeouts, for which it refuses any, and
// leaves out the flag without which it refuses a list of expressions.
func settableDynset(data []byte) {
	const padding, flagExpr = 8, 2 // NFTA_DYNSET_PAD, NFT_DYNSET_F_EXPR
	if flags := rawnl.Get(data, unix.NFTA_DYNSET_FLAGS); len(flags) == 4 && rawnl.Get(data, dynsetExpressions) != nil {
		binary.BigEndian.PutUint32(flags, binary.BigEndian.Uint32(flags)|flagExpr)
	}
	if timeout := rawnl.Get(data, unix.NFTA_DYNSET_TIMEOUT); timeout == nil || nfnl.Number(timeout) != 0 {
		return
	}
	for b := data; len(b) >= unix.SizeofNlAttr; {
		n := int(binary.NativeEndian.Uint16(b))
		if binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER) == unix.NFTA_DYNSET_TIMEOUT {
			binary.NativeEndian.PutUint16(b[2:], padding)
		}
		b = b[min(max(rawnl.Align(n), unix.SizeofNlAttr), len(b)):]
	}
}

// clearDepleted removes the flag by which a quota tells that it is used up. The kernel refuses it and sets
// it again by itself: the bytes consumed are kept (net/netfilter/nft_quota.c).
func clearDepleted(quota []byte) {
	clearFlag(rawnl.Get(quota, unix.NFTA_QUOTA_FLAGS), quotaFlagDepleted)
}

func clearFlag(flags []byte, flag uint32) { //nolint:unparam // two flags that happen to have one value
	if len(flags) == 4 {
		binary.BigEndian.PutUint32(flags, binary.BigEndian.Uint32(flags)&^flag)
	}
}

// compatProto returns the protocol that a rule with xtables extensions compares, and whether it wants it
// to differ; ok is false for rules without extensions or without a protocol. Extensions check at creation
// that they stand in a rule for their protocol (net/netfilter/nft_compat.c).
func compatProto(family byte, exprs []byte) (proto uint16, inverted, ok bool) {
	var extension, found bool
	var reg uint64 // register that holds the protocol; 0 is the verdict's and so means none
	for e := range rawnl.Each(exprs) {
		data := rawnl.Get(e.Data, unix.NFTA_EXPR_DATA)
		switch string(trimNUL(rawnl.Get(e.Data, unix.NFTA_EXPR_NAME))) {
		case "match", "target":
			extension = true
		case "meta":
			if loadsProto(family, data) {
				reg = nfnl.Number(rawnl.Get(data, unix.NFTA_META_DREG))
			}
		case "payload":
			if readsProto(family, data) {
				reg = nfnl.Number(rawnl.Get(data, unix.NFTA_PAYLOAD_DREG))
			}
		case "cmp":
			op := nfnl.Number(rawnl.Get(data, unix.NFTA_CMP_OP))
			if found || reg == 0 || nfnl.Number(rawnl.Get(data, unix.NFTA_CMP_SREG)) != reg || op > unix.NFT_CMP_NEQ {
				continue
			}
			value := rawnl.Get(rawnl.Get(data, unix.NFTA_CMP_DATA), unix.NFTA_DATA_VALUE)
			if proto = uint16(nfnl.Number(value)); family == unix.NFPROTO_BRIDGE && len(value) == 2 {
				proto = binary.NativeEndian.Uint16(value) // struct ebt_entry has the EtherType as on the wire
			}
			inverted, found = op == unix.NFT_CMP_NEQ, true
		}
	}
	return proto, inverted, extension && found
}

// loadsProto reports whether a meta expression loads the protocol: that above IP, or in a bridge the
// EtherType.
func loadsProto(family byte, meta []byte) bool {
	key := nfnl.Number(rawnl.Get(meta, unix.NFTA_META_KEY))
	if family == unix.NFPROTO_BRIDGE {
		return key == unix.NFT_META_PROTOCOL
	}
	return key == unix.NFT_META_L4PROTO
}

// readsProto is loadsProto for the header's own field: iphdr.protocol, ip6_hdr.nexthdr, ethhdr.h_proto.
func readsProto(family byte, payload []byte) bool {
	base := nfnl.Number(rawnl.Get(payload, unix.NFTA_PAYLOAD_BASE))
	offset, length := nfnl.Number(rawnl.Get(payload, unix.NFTA_PAYLOAD_OFFSET)), nfnl.Number(rawnl.Get(payload, unix.NFTA_PAYLOAD_LEN))
	switch family {
	case unix.NFPROTO_IPV4:
		return base == unix.NFT_PAYLOAD_NETWORK_HEADER && offset == 9 && length == 1
	case unix.NFPROTO_IPV6:
		return base == unix.NFT_PAYLOAD_NETWORK_HEADER && offset == 6 && length == 1
	case unix.NFPROTO_BRIDGE:
		return base == unix.NFT_PAYLOAD_LL_HEADER && offset == 12 && length == 2
	}
	return false
}
