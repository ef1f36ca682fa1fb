// Package netfilter carries the named objects of netfilter that rules of xtables refer to and that belong to none of the
// larger families: the counters of nfacct(8) and the timeout policies of nfct(8), as messages of nfnetlink. They have to be
// there before such rules are. It also finds the tables of the legacy ebtables, which nobody carries.
package netfilter

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/nfnl"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Messages that make an object, and the commands for a dump (linux/netfilter/nfnetlink_acct.h, nfnetlink_cttimeout.h).
const (
	typeAccount = unix.NFNL_SUBSYS_ACCT << 8
	typeTimeout = unix.NFNL_SUBSYS_CTNETLINK_TIMEOUT << 8
	cmdGet      = 1

	attrName = 1 // of both; it ends with a zero
	nameMax  = 32

	acctPackets = 2
	acctBytes   = 3
	acctFlags   = 5
	acctQuota   = 6

	flagQuotaPackets = 1
	flagQuotaBytes   = 2

	timeoutL3   = 2
	timeoutL4   = 3
	timeoutData = 4
)

// Capture reads the objects of a namespace, in the order in which they were made. Where the kernel has no such there is
// nothing, which is no error; and a module that isn't loaded stays so.
func Capture(ctx context.Context, n *ns.NS) ([]rawnl.Message, error) {
	var all []rawnl.Message
	for _, f := range []struct {
		module string
		typ    uint16
	}{{"nfnetlink_acct", typeAccount}, {"nfnetlink_cttimeout", typeTimeout}} {
		if !answers(f.module) {
			continue
		}
		msgs, err := capture(ctx, n, f.typ)
		if err != nil {
			return nil, fmt.Errorf("capture netfilter: %s: %w", f.module, err)
		}
		all = append(all, msgs...)
	}
	return all, nil
}

func capture(ctx context.Context, n *ns.NS, typ uint16) ([]rawnl.Message, error) {
	c, err := rawnl.Dial(n, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	msgs, err := c.Dump(ctx, rawnl.Message{Type: typ | cmdGet, Data: make([]byte, nfnl.HeaderLen)})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil // the kernel has no such subsystem
	}
	if err != nil {
		return nil, err
	}
	for i, m := range msgs {
		msgs[i] = stated(m)
	}
	return msgs, nil
}

// stated returns a dumped object with what a request can state: not how many rules refer to it, and not that a quota was
// exceeded, which its counters tell.
func stated(m rawnl.Message) rawnl.Message {
	if len(m.Data) < nfnl.HeaderLen {
		return m
	}
	return rawnl.Message{Type: m.Type, Data: append(make([]byte, nfnl.HeaderLen), rawnl.Rewrite(m.Data[nfnl.HeaderLen:], func(a rawnl.Attr) (rawnl.Attr, bool) {
		if m.Type == typeAccount && a.Kind() == acctFlags && len(a.Data) == 4 {
			a.Data = binary.BigEndian.AppendUint32(nil, binary.BigEndian.Uint32(a.Data)&(flagQuotaPackets|flagQuotaBytes))
		}
		return a, slices.Contains(attrsOf(m.Type), a.Kind())
	})...)}
}

// attrsOf returns the attributes that state an object of a type.
func attrsOf(typ uint16) []uint16 {
	if typ == typeAccount {
		return []uint16{attrName, acctPackets, acctBytes, acctFlags, acctQuota}
	}
	return []uint16{attrName, timeoutL3, timeoutL4, timeoutData}
}

// answers reports whether the kernel can be asked for what a module has without loading it: it is loaded, or is part of the
// kernel, which has a list of such parts if it can load any.
func answers(module string) bool {
	if _, err := os.Stat("/sys/module/" + module); err == nil {
		return true
	}
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return true
	}
	list, err := os.ReadFile("/lib/modules/" + unix.ByteSliceToString(u.Release[:]) + "/modules.builtin")
	return err != nil || bytes.Contains(list, []byte("/"+module+".ko"))
}

// Plan turns a capture into the messages that make the same objects. The error is [rawnl.ErrMalformed] if the messages can't
// be a capture.
func Plan(msgs []rawnl.Message) ([]rawnl.Message, error) {
	plan := make([]rawnl.Message, len(msgs))
	for i, m := range msgs {
		if err := Validate(m); err != nil {
			return nil, fmt.Errorf("plan netfilter: %w", err)
		}
		m.Flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
		plan[i] = m
	}
	return plan, nil
}

// Apply makes the objects of a plan in a namespace that has none. It is not atomic: after an error some may have been made.
// The error wraps [*rawnl.Error] and names the object that was refused.
func Apply(ctx context.Context, n *ns.NS, plan []rawnl.Message) error {
	if err := rawnl.Replay(ctx, n, unix.NETLINK_NETFILTER, plan, func(m rawnl.Message) string { return "add " + Describe(m) }); err != nil {
		return fmt.Errorf("apply netfilter: %w", err)
	}
	return nil
}

// Validate reports whether a message can be one of a capture. Whether it makes sense is the kernel's to judge. The error is
// [rawnl.ErrMalformed].
func Validate(m rawnl.Message) error {
	if m.Type != typeAccount && m.Type != typeTimeout || m.Flags != 0 || len(m.Data) < nfnl.HeaderLen {
		return fmt.Errorf("%w: netfilter message of type %#x with flags %#x and %d bytes", rawnl.ErrMalformed, m.Type, m.Flags, len(m.Data))
	}
	attrs := m.Data[nfnl.HeaderLen:]
	nest := rawnl.Nest{}
	if m.Type == typeTimeout {
		nest[timeoutData] = rawnl.Flat()
	}
	if err := nest.Check(attrs); err != nil {
		return fmt.Errorf("netfilter: %w", err)
	}
	for a := range rawnl.Each(attrs) {
		if !slices.Contains(attrsOf(m.Type), a.Kind()) {
			return fmt.Errorf("%w: attribute %d of netfilter message %#x", rawnl.ErrMalformed, a.Kind(), m.Type)
		}
	}
	if name := rawnl.Get(attrs, attrName); len(name) < 2 || len(name) > nameMax || bytes.IndexByte(name, 0) != len(name)-1 {
		return fmt.Errorf("%w: name %q", rawnl.ErrMalformed, name)
	}
	return nil
}

// Normalize returns a message without what a running namespace changes: what an account has counted.
func Normalize(m rawnl.Message) rawnl.Message {
	if m.Type != typeAccount || len(m.Data) < nfnl.HeaderLen {
		return m.Clone()
	}
	attrs := rawnl.Rewrite(m.Data[nfnl.HeaderLen:], func(a rawnl.Attr) (rawnl.Attr, bool) {
		return a, a.Kind() != acctPackets && a.Kind() != acctBytes
	})
	return rawnl.Message{Type: m.Type, Flags: m.Flags, Data: append(slices.Clone(m.Data[:nfnl.HeaderLen]), attrs...)}
}

// Describe renders a message as one line in the words of nfacct(8) and nfct(8). It takes any message and is meant for
// people.
func Describe(m rawnl.Message) string {
	if len(m.Data) < nfnl.HeaderLen {
		return fmt.Sprintf("netfilter message %#x", m.Type)
	}
	attrs := m.Data[nfnl.HeaderLen:]
	name := rawnl.CString(rawnl.Get(attrs, attrName))
	switch m.Type {
	case typeAccount:
		quota := nfnl.Number(rawnl.Get(attrs, acctQuota))
		switch flags := nfnl.Number(rawnl.Get(attrs, acctFlags)); {
		case flags&flagQuotaPackets != 0:
			return fmt.Sprintf("nfacct %s packet %d", name, quota)
		case flags&flagQuotaBytes != 0:
			return fmt.Sprintf("nfacct %s byte %d", name, quota)
		}
		return "nfacct " + name
	case typeTimeout:
		l3, l4 := nfnl.Number(rawnl.Get(attrs, timeoutL3)), nfnl.Number(rawnl.Get(attrs, timeoutL4))
		parts := []string{"timeout", name, family(l3), protocol(l4)}
		for a := range rawnl.Each(rawnl.Get(attrs, timeoutData)) {
			parts = append(parts, state(l4, a.Kind()), fmt.Sprint(nfnl.Number(a.Data)))
		}
		return strings.Join(parts, " ")
	}
	return fmt.Sprintf("netfilter message %#x", m.Type)
}

func protocol(l4 uint64) string {
	if l4 == 255 {
		return "generic"
	}
	return cmp.Or(nfnl.Protocol(l4), fmt.Sprintf("protocol%d", l4))
}

func family(l3 uint64) string {
	switch l3 {
	case unix.NFPROTO_IPV4:
		return "inet"
	case unix.NFPROTO_IPV6:
		return "inet6"
	}
	return fmt.Sprintf("family%d", l3)
}

// state names a state of a protocol that has a timeout (enum ctattr_timeout_* of linux/netfilter/nfnetlink_cttimeout.h).
func state(l4 uint64, kind uint16) string {
	var names []string
	switch l4 {
	case unix.IPPROTO_TCP:
		names = []string{
			"syn_sent", "syn_recv", "established", "fin_wait", "close_wait", "last_ack", "time_wait", "close", "syn_sent2", "retrans", "unacknowledged",
		}
	case unix.IPPROTO_UDP, unix.IPPROTO_UDPLITE, unix.IPPROTO_GRE:
		names = []string{"unreplied", "replied"}
	}
	if int(kind) > len(names) || kind == 0 {
		return fmt.Sprintf("state%d", kind)
	}
	return names[kind-1]
}
