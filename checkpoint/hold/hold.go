// Package hold keeps the packets that reach a service while no copy of it lives, so that the live copy gets them
// instead of their senders having to wait for a retransmission timer. The lock tells of every packet that it drops
// (nfnetlink_log), the kernel keeps what it was told on a socket until somebody asks, and the frames are sent once
// more, from the host's end of the uplink that they came by, when the service is unlocked.
//
// All of it is a courtesy: a packet that is not held, or gets lost on its way, is lost as it would be without.
package hold

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/lock"
	"github.com/nsmigrate/nsmigrate/netstate"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Uplink is a link of a namespace that packets can be held from and given back to.
type Uplink struct {
	Index int32            // inside the namespace, the same on every host
	MAC   net.HardwareAddr // of the link inside
	MTU   int
	Peer  string // name of the host's end
}

// Uplinks are those of a namespace of which both ends are Ethernet links, the outer one on this host. What comes by
// others, a macvlan for example, can't be given back.
func Uplinks(state *netstate.State, targets map[string]netstate.UplinkTarget) []Uplink {
	var list []Uplink
	for _, u := range state.Uplinks() {
		mac, peer := state.MAC(u.Name), u.Target(targets).Peer
		if u.Kind == "veth" && len(mac) == 6 && peer != "" {
			list = append(list, Uplink{Index: u.Index, MAC: mac, MTU: int(u.MTU), Peer: peer})
		}
	}
	return list
}

// Stats count packets. A sender's large segment that the kernel did not split counts as one, however many frames it is.
type Stats struct {
	Packets int   `json:"packets"` // that came while no copy lived, and were kept
	Bytes   int64 `json:"bytes"`   // of them
	Dropped int   `json:"dropped"` // that could not be kept
	Given   int   `json:"given"`   // frames of them that the copy on this host got, because it goes on
}

// bufferSize bounds what the kernel keeps, its own overhead included.
const bufferSize = 32 << 20

// Holder keeps the packets of one namespace.
type Holder struct {
	conn    *rawnl.Conn
	group   uint16
	uplinks []Uplink
	seq     uint32 // of the next message
	stats   Stats
}

// Groups that are tried: others may be somebody's.
const (
	firstGroup = 0xc114
	lastGroup  = firstGroup + 64
)

// Messages and attributes of linux/netfilter/nfnetlink_log.h.
const (
	msgPacket = 0
	msgConfig = 1

	cfgCmd        = 1
	cfgMode       = 2
	cfgBufferSize = 3
	cfgThreshold  = 5
	cfgFlags      = 6

	cmdBind    = 1
	copyPacket = 2
	flagSeq    = 1

	attrIndev    = 4
	attrPayload  = 9
	attrPrefix   = 10
	attrSeq      = 12
	attrHWHeader = 16
)

// Open begins to keep what the lock of a namespace tells of; the group is for [lock.Lock.LogTo]. Close ends it.
func Open(ctx context.Context, n *ns.NS, uplinks []Uplink) (*Holder, error) {
	conn, err := rawnl.Dial(n, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("hold packets: %w", err)
	}
	h := &Holder{conn: conn, uplinks: uplinks}
	if err := h.open(ctx); err != nil {
		conn.Close()
		return nil, fmt.Errorf("hold packets: %w", err)
	}
	return h, nil
}

func (h *Holder) open(ctx context.Context) error {
	if err := h.conn.Queue(bufferSize); err != nil {
		return err
	}
	for group := firstGroup; group < lastGroup; group++ {
		h.group = uint16(group)
		err := h.configure(ctx, rawnl.AppendAttr(nil, cfgCmd, []byte{cmdBind}))
		if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EPERM) { // it is bound, to another socket
			continue
		}
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // nfnetlink knows no such subsystem
			return fmt.Errorf("this kernel has no nfnetlink_log: %w", err)
		}
		if err != nil {
			return err
		}
		var b []byte
		b = rawnl.AppendAttr(b, cfgMode, []byte{0xff, 0xff, 0xff, 0xff, copyPacket, 0})
		b = rawnl.AppendAttr(b, cfgBufferSize, be32(1)) // as large as the packet
		b = rawnl.AppendAttr(b, cfgThreshold, be32(1))  // each at once
		b = rawnl.AppendAttr(b, cfgFlags, binary.BigEndian.AppendUint16(nil, flagSeq))
		return h.configure(ctx, b)
	}
	return errors.New("all groups of nfnetlink_log that it could be are taken")
}

func (h *Holder) configure(ctx context.Context, attrs []byte) error {
	data := []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0}
	data = append(binary.BigEndian.AppendUint16(data, h.group), attrs...)
	_, err := h.conn.Request(ctx, rawnl.Message{Type: unix.NFNL_SUBSYS_ULOG<<8 | msgConfig, Data: data})
	return err
}

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

// Group is where the lock has to tell of packets.
func (h *Holder) Group() uint16 { return h.group }

// Stats counts what was taken.
func (h *Holder) Stats() Stats { return h.stats }

// Take returns what has come since it was last called, in order, and does not wait for more.
func (h *Holder) Take() ([]Frame, error) {
	var frames []Frame
	err := h.conn.Drain(func(m rawnl.Message) {
		if m.Type != unix.NFNL_SUBSYS_ULOG<<8|msgPacket {
			return
		}
		p, ok := parseLogged(m.Data)
		if !ok || p.prefix != lock.LogPrefix {
			return
		}
		h.stats.Dropped += int(p.seq - h.seq) // for which there was no room
		h.seq = p.seq + 1
		made := h.frames(p)
		if len(made) == 0 {
			h.stats.Dropped++
			return
		}
		h.stats.Packets++
		h.stats.Bytes += int64(len(p.payload))
		frames = append(frames, made...)
	})
	if err != nil {
		return frames, fmt.Errorf("take held packets: %w", err)
	}
	return frames, nil
}

// logged is a packet as nfnetlink_log tells of it.
type logged struct {
	prefix   string
	seq      uint32
	index    int32 // of the device that it came by
	hardware []byte
	payload  []byte
}

func parseLogged(data []byte) (p logged, ok bool) {
	const header = 4 // struct nfgenmsg
	if len(data) < header {
		return p, false
	}
	attrs, err := rawnl.ParseAttrs(data[header:])
	if err != nil {
		return p, false
	}
	for _, a := range attrs {
		switch a.Kind() {
		case attrPrefix:
			p.prefix = rawnl.CString(a.Data)
		case attrSeq:
			if len(a.Data) == 4 {
				p.seq = binary.BigEndian.Uint32(a.Data)
			}
		case attrIndev:
			if len(a.Data) == 4 {
				p.index = int32(binary.BigEndian.Uint32(a.Data))
			}
		case attrHWHeader:
			p.hardware = a.Data
		case attrPayload:
			p.payload = a.Data
		}
	}
	return p, true
}

// frames are those that a packet came in as, or could have; none if it is not fit to be given back.
func (h *Holder) frames(p logged) []Frame {
	for i := range h.uplinks {
		if u := &h.uplinks[i]; u.Index == p.index {
			return u.frames(p.hardware, p.payload)
		}
	}
	return nil
}

// Close ends it. What nobody took is lost.
func (h *Holder) Close() error { return h.conn.Close() }
