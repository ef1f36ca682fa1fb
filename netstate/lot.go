package netstate

import (
	"bytes"
	"context"
	"maps"
	"net"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Addresses by lot. A new bridge has an address that the kernel drew by lot, which it gives up for that of its first port,
// and no address in its identifier. If anybody states its address, it has that for good, and in its identifier too; and a
// bridge without ports loses its carrier (br_stp_change_bridge_id and br_port_state_selection in net/bridge), and with it
// its nexthops and the use of the routes through it. So the address of a bridge whose identifier has none is not stated:
// the kernel draws another one, and whatever else has the old one (VLANs on the bridge, forwarding entries) gets the new
// one. The address of a bridge without ports is on no wire, and the first port that it gets changes it anyway. A bridge that
// lost its last port has an address of zeros, which nobody can state.

// drawn returns the bridges whose address the kernel drew, with the address, by index.
func drawn(links []link) map[int32]net.HardwareAddr {
	var lots map[int32]net.HardwareAddr
	for i := range links {
		l := &links[i]
		id, _ := rawnl.Find(l.data, unix.IFLA_BR_BRIDGE_ID) // the priority, and the address
		if l.kind != "bridge" || len(id) != 8 || !allZero(id[2:]) || len(l.mac()) == 0 {
			continue
		}
		if lots == nil {
			lots = map[int32]net.HardwareAddr{}
		}
		lots[l.index] = l.mac()
	}
	return lots
}

// inherited reports whether a link has an address that a bridge drew.
func inherited(lots map[int32]net.HardwareAddr, l *link) bool {
	for _, mac := range lots {
		if bytes.Equal(mac, l.mac()) {
			return true
		}
	}
	return false
}

func (l *link) carrier() bool {
	b := l.attr(unix.IFLA_CARRIER)
	return len(b) == 1 && b[0] != 0
}

// readdress returns messages with the addresses of one draw in the place of those of another.
func readdress(m rawnl.Message, from, to map[int32]net.HardwareAddr) rawnl.Message {
	for index, mac := range from {
		if other := to[index]; len(other) == len(mac) && !allZero(mac) && bytes.Contains(m.Data, mac) {
			m.Data = bytes.ReplaceAll(m.Data, mac, other)
		}
	}
	return m
}

// redrawn returns the State with the addresses that the kernel drew for bridges which the other State has too
// replaced by those of the other.
func (s *State) redrawn(other *State) *State {
	if s == nil || other == nil {
		return s
	}
	links, err := s.links()
	if err != nil {
		return s
	}
	from := drawn(links)
	if len(from) == 0 {
		return s
	}
	if links, err = other.links(); err != nil {
		return s
	}
	to := drawn(links)
	if maps.EqualFunc(from, to, func(a, b net.HardwareAddr) bool { return bytes.Equal(a, b) }) {
		return s
	}
	same := *s
	same.Messages = make(map[Kind][]rawnl.Message, len(s.Messages))
	for k, msgs := range s.Messages {
		msgs = slices.Clone(msgs)
		for i, m := range msgs {
			msgs[i] = readdress(m, from, to)
		}
		same.Messages[k] = msgs
	}
	return &same
}

// readdress gives operations the addresses that the kernel drew for the bridges of this namespace, once these are
// made.
func (b *builder) readdress(ctx context.Context, ops []Op) ([]Op, error) {
	if len(b.lots) == 0 || len(ops) == 0 {
		return ops, nil
	}
	if b.redrawn == nil {
		links, err := dumpLinks(ctx, b.nl)
		if err != nil {
			return nil, err
		}
		to := drawn(links)
		for index := range b.lots {
			if to[index] == nil {
				return ops, nil
			}
		}
		b.redrawn = to
		for index, mac := range to {
			if !bytes.Equal(mac, b.lots[index]) {
				b.log.Info("a bridge without ports has another address", "link", b.names[index], "address", mac, "source", b.lots[index])
			}
		}
	}
	ops = slices.Clone(ops)
	for i := range ops {
		ops[i].Msg, ops[i].Object = readdress(ops[i].Msg, b.lots, b.redrawn), readdress(ops[i].Object, b.lots, b.redrawn)
	}
	return ops, nil
}
