// Package lock makes a copy of a service mute: a packet filter of the whole namespace that lets nothing in
// or out, loopback and ARP included. It is put in place by one transaction on a socket that is already
// open, 0.1 ms, and belongs to that socket: should this process die, the kernel takes the filter away, so
// that a source which CRIU rolls back is never left mute.
package lock

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Table is the name of the lock's tables; netstate leaves it out of every state.
const Table = "nsmigrate_lock"

// TableSYN is the name of the table that holds back new connections while accept queues drain.
const TableSYN = "nsmigrate_lock_syn"

// TableKept is the name of the lock that outlives its holder.
const TableKept = "nsmigrate_lock_kept"

// criuMark is on the packets that CRIU makes up for itself to bring a closing socket into its state
// (soccr.h: SOCCR_MARK); they never leave the namespace.
const criuMark = 0xc114

// tableOwner is NFT_TABLE_F_OWNER of linux/netfilter/nf_tables.h (Linux 5.12).
const tableOwner = 0x2

// priority is before every filter, NAT and conntrack hook a user is likely to have.
const priority = -300

// LogPrefix marks the packets that a lock tells of: see [Lock.LogTo].
const LogPrefix = "nsmigrate_lock"

// Lock is the filter of one namespace. Open prepares it, Hold and Release switch it.
type Lock struct {
	conn *rawnl.Conn
	tell teller
	held bool
	kept bool
	syn  bool
}

// Open opens the lock's socket in the namespace and changes nothing yet.
func Open(n *ns.NS) (*Lock, error) {
	conn, err := rawnl.Dial(n, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	return &Lock{conn: conn, tell: teller{by: "log"}}, nil
}

// LogTo has every packet that comes from outside, and that the lock drops from now on, told to a group of
// nfnetlink_log, with [LogPrefix], exactly as it came: 0 is no group. It has to be called before the lock is first used.
func (l *Lock) LogTo(group uint16) { l.tell.group = group }

// Logs returns the group that the lock tells of what it drops: 0 if there is none, be it that the kernel has no nft_log.
func (l *Lock) Logs() uint16 { return l.tell.group }

// transaction applies messages that may tell of packets, without that if the kernel can't.
func (l *Lock) transaction(ctx context.Context, msgs func(teller) []rawnl.Message) error {
	err := l.conn.Transaction(ctx, unix.NFNL_SUBSYS_NFTABLES, msgs(l.tell))
	if l.tell.group != 0 && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP)) {
		l.tell.group = 0
		err = l.conn.Transaction(ctx, unix.NFNL_SUBSYS_NFTABLES, msgs(l.tell))
	}
	return err
}

// Hold makes the namespace mute. Holding a held lock does nothing.
func (l *Lock) Hold(ctx context.Context) error {
	if l.held {
		return nil
	}
	if err := l.transaction(ctx, func(to teller) []rawnl.Message { return filter(Table, tableOwner, to) }); err != nil {
		return fmt.Errorf("lock the namespace: %w", err)
	}
	l.held = true
	return nil
}

// Keep makes the namespace mute beyond the end of this process, until [Lock.Release] or [Drop]. Keeping a namespace that
// is kept already, be it by a process that died, does nothing.
func (l *Lock) Keep() error {
	if l.kept {
		return nil
	}
	// Not cancelled with the operation: it is part of every way back.
	err := l.transaction(context.Background(), func(to teller) []rawnl.Message { return filter(TableKept, 0, to) })
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("lock the namespace for good: %w", err)
	}
	l.kept = true
	return nil
}

// Drop releases what a process that died kept in a namespace. It is no error if there is nothing.
func Drop(n *ns.NS) error {
	l, err := Open(n)
	if err != nil {
		return err
	}
	defer l.Close()
	l.kept = true
	if err := l.Release(); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// filter is the transaction that makes a namespace mute.
func filter(table string, flags uint32, to teller) []rawnl.Message {
	var msgs []rawnl.Message
	for _, family := range []byte{unix.NFPROTO_INET, unix.NFPROTO_ARP} {
		msgs = append(msgs, newTable(family, table, flags))
		for _, h := range hooksOf(family) {
			msgs = append(msgs, newChain(family, table, h.name, h.num, nfDrop))
			if family == unix.NFPROTO_INET && h.num != unix.NF_INET_FORWARD {
				msgs = append(msgs, newRule(family, table, h.name, acceptMark(criuMark)))
			}
			if family == unix.NFPROTO_INET && h.num == unix.NF_INET_PRE_ROUTING && to.group != 0 {
				msgs = append(msgs, newRule(family, table, h.name, to.append(fromOutside(nil))))
			}
		}
	}
	return msgs
}

// Release lets packets pass again. Releasing a released lock does nothing.
func (l *Lock) Release() error {
	var msgs []rawnl.Message
	for table, there := range map[string]bool{Table: l.held, TableKept: l.kept} {
		if there {
			msgs = append(msgs, delTable(unix.NFPROTO_INET, table), delTable(unix.NFPROTO_ARP, table))
		}
	}
	if len(msgs) == 0 {
		return nil
	}
	// Not cancelled with the operation: it is part of every way back.
	if err := l.conn.Transaction(context.Background(), unix.NFNL_SUBSYS_NFTABLES, msgs); err != nil {
		return fmt.Errorf("unlock the namespace: %w", err)
	}
	l.held, l.kept = false, false
	return nil
}

// HoldNew drops the first packet of connections that come in, so that accept queues can drain: a client that is turned
// away tries again a second later, unless somebody keeps its packet ([Lock.LogTo]), and finds the live copy.
func (l *Lock) HoldNew(ctx context.Context) error {
	if l.syn {
		return nil
	}
	if err := l.transaction(ctx, func(to teller) []rawnl.Message {
		msgs := []rawnl.Message{
			newTable(unix.NFPROTO_INET, TableSYN, tableOwner),
			newChain(unix.NFPROTO_INET, TableSYN, "prerouting", unix.NF_INET_PRE_ROUTING, nfAccept),
		}
		if to.group != 0 {
			msgs = append(msgs, newRule(unix.NFPROTO_INET, TableSYN, "prerouting", to.append(matchSYN(fromOutside(nil)))))
		}
		return append(msgs, newRule(unix.NFPROTO_INET, TableSYN, "prerouting", appendVerdict(matchSYN(nil), nfDrop)))
	}); err != nil {
		return fmt.Errorf("hold back new connections: %w", err)
	}
	l.syn = true
	return nil
}

// HoldDatagrams drops UDP from outside until [Lock.ReleaseNew], if what is dropped is told to a group: they are not lost
// then, as those would be that a service has received but not read when it is frozen. It follows [Lock.HoldNew].
func (l *Lock) HoldDatagrams(ctx context.Context) error {
	if !l.syn || l.Logs() == 0 {
		return nil
	}
	match := func() []byte {
		b := appendExpr(fromOutside(nil), "meta", be32Attr(unix.NFTA_META_KEY, unix.NFT_META_L4PROTO), be32Attr(unix.NFTA_META_DREG, unix.NFT_REG_1))
		return appendCompare(b, []byte{unix.IPPROTO_UDP})
	}
	if err := l.conn.Transaction(ctx, unix.NFNL_SUBSYS_NFTABLES, []rawnl.Message{
		newRule(unix.NFPROTO_INET, TableSYN, "prerouting", l.tell.append(match())),
		newRule(unix.NFPROTO_INET, TableSYN, "prerouting", appendVerdict(match(), nfDrop)),
	}); err != nil {
		return fmt.Errorf("hold back datagrams: %w", err)
	}
	return nil
}

// ReleaseNew lets new connections, and datagrams, in again.
func (l *Lock) ReleaseNew() error {
	if !l.syn {
		return nil
	}
	if err := l.conn.Transaction(context.Background(), unix.NFNL_SUBSYS_NFTABLES, []rawnl.Message{
		delTable(unix.NFPROTO_INET, TableSYN),
	}); err != nil {
		return fmt.Errorf("let new connections in: %w", err)
	}
	l.syn = false
	return nil
}

// Close releases whatever is held: the kernel removes the tables with their socket.
func (l *Lock) Close() error { return l.conn.Close() }

type hook struct {
	name string
	num  uint32
}

func hooksOf(family byte) []hook {
	if family == unix.NFPROTO_ARP { // linux/netfilter_arp.h: NF_ARP_IN, NF_ARP_OUT
		return []hook{{"input", 0}, {"output", 1}}
	}
	// What comes in is stopped before connection tracking and address translation have seen it, so that it can come in
	// once more. A packet that is past this point when the lock comes is delivered still: it is not dropped unseen.
	return []hook{{"prerouting", unix.NF_INET_PRE_ROUTING}, {"output", unix.NF_INET_LOCAL_OUT}, {"forward", unix.NF_INET_FORWARD}}
}

// Verdicts of linux/netfilter.h.
const (
	nfDrop   = 0
	nfAccept = 1
)

func message(typ uint16, flags uint16, family byte, attrs []byte) rawnl.Message {
	return rawnl.Message{
		Type:  unix.NFNL_SUBSYS_NFTABLES<<8 | typ,
		Flags: flags,
		Data:  append([]byte{family, unix.NFNETLINK_V0, 0, 0}, attrs...),
	}
}

func newTable(family byte, name string, flags uint32) rawnl.Message {
	b := rawnl.AppendAttr(nil, unix.NFTA_TABLE_NAME, cstring(name))
	b = rawnl.AppendAttr(b, unix.NFTA_TABLE_FLAGS, be32(flags))
	return message(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, family, b)
}

func delTable(family byte, name string) rawnl.Message {
	return message(unix.NFT_MSG_DELTABLE, 0, family, rawnl.AppendAttr(nil, unix.NFTA_TABLE_NAME, cstring(name)))
}

func newChain(family byte, table, name string, hooknum uint32, policy uint32) rawnl.Message {
	prio := int32(priority)
	hook := rawnl.AppendAttr(nil, unix.NFTA_HOOK_HOOKNUM, be32(hooknum))
	hook = rawnl.AppendAttr(hook, unix.NFTA_HOOK_PRIORITY, be32(uint32(prio)))
	b := rawnl.AppendAttr(nil, unix.NFTA_CHAIN_TABLE, cstring(table))
	b = rawnl.AppendAttr(b, unix.NFTA_CHAIN_NAME, cstring(name))
	b = rawnl.AppendAttr(b, unix.NFTA_CHAIN_HOOK|unix.NLA_F_NESTED, hook)
	b = rawnl.AppendAttr(b, unix.NFTA_CHAIN_POLICY, be32(policy))
	b = rawnl.AppendAttr(b, unix.NFTA_CHAIN_TYPE, cstring("filter"))
	return message(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, family, b)
}

func newRule(family byte, table, chain string, exprs []byte) rawnl.Message {
	b := rawnl.AppendAttr(nil, unix.NFTA_RULE_TABLE, cstring(table))
	b = rawnl.AppendAttr(b, unix.NFTA_RULE_CHAIN, cstring(chain))
	b = rawnl.AppendAttr(b, unix.NFTA_RULE_EXPRESSIONS|unix.NLA_F_NESTED, exprs)
	return message(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, family, b)
}

// acceptMark is `meta mark MARK accept`.
func acceptMark(mark uint32) []byte {
	b := appendExpr(nil, "meta", be32Attr(unix.NFTA_META_KEY, unix.NFT_META_MARK), be32Attr(unix.NFTA_META_DREG, unix.NFT_REG_1))
	b = appendCompare(b, binary.NativeEndian.AppendUint32(nil, mark))
	return appendVerdict(b, nfAccept)
}

// fromOutside is `meta iiftype ether`: not the loopback device.
func fromOutside(b []byte) []byte {
	b = appendExpr(b, "meta", be32Attr(unix.NFTA_META_KEY, unix.NFT_META_IIFTYPE), be32Attr(unix.NFTA_META_DREG, unix.NFT_REG_1))
	return appendCompare(b, binary.NativeEndian.AppendUint16(nil, unix.ARPHRD_ETHER))
}

// matchSYN is `meta l4proto tcp tcp flags & (syn|ack) == syn`.
func matchSYN(b []byte) []byte {
	const flagsOffset, synAck, syn = 13, 0x12, 0x02 // of struct tcphdr
	b = appendExpr(b, "meta", be32Attr(unix.NFTA_META_KEY, unix.NFT_META_L4PROTO), be32Attr(unix.NFTA_META_DREG, unix.NFT_REG_1))
	b = appendCompare(b, []byte{unix.IPPROTO_TCP})
	b = appendExpr(b, "payload",
		be32Attr(unix.NFTA_PAYLOAD_DREG, unix.NFT_REG_1),
		be32Attr(unix.NFTA_PAYLOAD_BASE, unix.NFT_PAYLOAD_TRANSPORT_HEADER),
		be32Attr(unix.NFTA_PAYLOAD_OFFSET, flagsOffset),
		be32Attr(unix.NFTA_PAYLOAD_LEN, 1))
	b = appendExpr(b, "bitwise",
		be32Attr(unix.NFTA_BITWISE_SREG, unix.NFT_REG_1),
		be32Attr(unix.NFTA_BITWISE_DREG, unix.NFT_REG_1),
		be32Attr(unix.NFTA_BITWISE_LEN, 1),
		dataAttr(unix.NFTA_BITWISE_MASK, []byte{synAck}),
		dataAttr(unix.NFTA_BITWISE_XOR, []byte{0}))
	return appendCompare(b, []byte{syn})
}

// teller is what tells a group of packets.
type teller struct {
	group uint16 // 0 is none
	by    string // expression, which a kernel without nft_log does not know
}

// append appends `log group GROUP prefix PREFIX`.
func (to teller) append(b []byte) []byte {
	return appendExpr(b, to.by,
		rawnl.AppendAttr(nil, unix.NFTA_LOG_GROUP, binary.BigEndian.AppendUint16(nil, to.group)),
		rawnl.AppendAttr(nil, unix.NFTA_LOG_PREFIX, cstring(LogPrefix)))
}

func appendExpr(b []byte, name string, attrs ...[]byte) []byte {
	var data []byte
	for _, a := range attrs {
		data = append(data, a...)
	}
	e := rawnl.AppendAttr(nil, unix.NFTA_EXPR_NAME, cstring(name))
	e = rawnl.AppendAttr(e, unix.NFTA_EXPR_DATA|unix.NLA_F_NESTED, data)
	return rawnl.AppendAttr(b, unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, e)
}

func appendCompare(b, value []byte) []byte {
	return appendExpr(b, "cmp",
		be32Attr(unix.NFTA_CMP_SREG, unix.NFT_REG_1),
		be32Attr(unix.NFTA_CMP_OP, unix.NFT_CMP_EQ),
		dataAttr(unix.NFTA_CMP_DATA, value))
}

func appendVerdict(b []byte, verdict uint32) []byte {
	v := rawnl.AppendAttr(nil, unix.NFTA_VERDICT_CODE, be32(verdict))
	d := rawnl.AppendAttr(nil, unix.NFTA_DATA_VERDICT|unix.NLA_F_NESTED, v)
	return appendExpr(b, "immediate",
		be32Attr(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT),
		rawnl.AppendAttr(nil, unix.NFTA_IMMEDIATE_DATA|unix.NLA_F_NESTED, d))
}

func dataAttr(typ uint16, value []byte) []byte {
	return rawnl.AppendAttr(nil, typ|unix.NLA_F_NESTED, rawnl.AppendAttr(nil, unix.NFTA_DATA_VALUE, value))
}

func be32Attr(typ uint16, v uint32) []byte { return rawnl.AppendAttr(nil, typ, be32(v)) }
func be32(v uint32) []byte                 { return binary.BigEndian.AppendUint32(nil, v) }
func cstring(s string) []byte              { return append([]byte(s), 0) }
