package netstate

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Uplink is one link that ties the namespace to its host, with the host's side of it.
type Uplink struct {
	Name  string `json:"name"`  // of the link inside the namespace
	Index int32  `json:"index"` // of the link inside the namespace
	Kind  string `json:"kind"`  // "veth", "netkit", "vxcan": Peer and what follows it are set; else Parent is

	Parent string `json:"parent,omitempty"` // host device below a macvlan and the like

	Peer      string    `json:"peer,omitempty"`       // host-side name of a pair; "" if the peer is not on the host
	PeerIndex int32     `json:"peer_index,omitempty"` // on the source host
	MAC       string    `json:"mac,omitempty"`        // of the peer
	MTU       uint32    `json:"mtu,omitempty"`        // of the peer
	Up        bool      `json:"up,omitempty"`         // the peer is administratively up
	Bridge    string    `json:"bridge,omitempty"`     // name of the peer's master
	BridgeMAC string    `json:"bridge_mac,omitempty"`
	Link      []byte    `json:"link,omitempty"`      // the peer's RTM_NEWLINK message without its header
	Addresses [][]byte  `json:"addresses,omitempty"` // RTM_NEWADDR messages of the peer
	Routes    [][]byte  `json:"routes,omitempty"`    // RTM_NEWROUTE messages of the host through the peer
	Neighs    [][]byte  `json:"neighs,omitempty"`    // permanent and proxy entries of the host on the peer
	Sysctls   []Setting `json:"sysctls,omitempty"`   // of the peer, where they differ from the host's default
}

// Setting is a per-device parameter with the device left out, e.g. "ipv4/conf/proxy_arp".
type Setting struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// UplinkTarget says where an uplink is attached on the destination. Empty fields mean as on the source host.
type UplinkTarget struct {
	Peer   string // host-side name of a pair
	Bridge string // master of the peer
	Parent string // device below a macvlan and the like
}

// Target returns where the uplink is attached, with targets by inner interface name; what they leave open is as
// on the source host.
func (u *Uplink) Target(m map[string]UplinkTarget) UplinkTarget {
	t := m[u.Name]
	if u.pair() {
		if t.Peer == "" {
			t.Peer = u.Peer
		}
		if t.Bridge == "" {
			t.Bridge = u.Bridge
		}
	} else if t.Parent == "" {
		t.Parent = u.Parent
		if t.Peer != "" { // --uplink eth0=enp3s0
			t.Parent = t.Peer
		}
	}
	return t
}

// pair reports whether an uplink's other end is a link of its own on the host.
func (u *Uplink) pair() bool { return linkKinds[u.Kind].how == replayPair }

// host reads the host's side of uplinks.
type host struct {
	ns *ns.NS
	nl *rawnl.Conn
}

func openHost(n *ns.NS) (*host, error) {
	h := &host{ns: n}
	var err error
	if n == nil {
		if h.ns, err = ns.Current(); err != nil {
			return nil, err
		}
	}
	if h.nl, err = rawnl.Dial(h.ns, unix.NETLINK_ROUTE); err != nil {
		if n == nil {
			h.ns.Close()
		}
		return nil, fmt.Errorf("host: %w", err)
	}
	return h, nil
}

func (h *host) close(given *ns.NS) {
	h.nl.Close()
	if given == nil {
		h.ns.Close()
	}
}

// errNoLink means that the host has no link of a name or an index.
var errNoLink = errors.New("no such link")

func (h *host) link(ctx context.Context, index int32) (link, rawnl.Message, error) {
	return h.getLink(ctx, index)
}

func (h *host) linkByName(ctx context.Context, name string) (link, rawnl.Message, error) {
	return h.getLink(ctx, 0, strAttr(unix.IFLA_IFNAME, name))
}

func (h *host) getLink(ctx context.Context, index int32, attrs ...rawnl.Attr) (link, rawnl.Message, error) {
	req := encodeLink(unix.AF_UNSPEC, index, 0, 0, append(attrs, u32Attr(unix.IFLA_EXT_MASK, rtextFilterSkipStats)))
	req.Type = unix.RTM_GETLINK
	msgs, err := h.nl.Request(ctx, req)
	if errors.Is(err, unix.ENODEV) {
		return link{}, rawnl.Message{}, errNoLink
	}
	if err != nil {
		return link{}, rawnl.Message{}, err
	}
	if len(msgs) != 1 {
		return link{}, rawnl.Message{}, errNoLink
	}
	m := tidyLink(msgs[0])
	l, err := parseLink(m)
	return l, m, err
}

// nsid returns the identifier by which the namespace n knows the namespace other, or -1 if it does not.
func nsid(ctx context.Context, nl *rawnl.Conn, other *ns.NS) (int32, error) {
	req := rawnl.Message{Type: unix.RTM_GETNSID, Data: rawnl.AppendAttr([]byte{unix.AF_UNSPEC, 0, 0, 0}, unix.NETNSA_FD, binary.NativeEndian.AppendUint32(nil, uint32(other.Fd())))}
	msgs, err := nl.Request(ctx, req)
	if err != nil {
		return -1, fmt.Errorf("look up the number of a namespace: %w", err)
	}
	for _, m := range msgs {
		if len(m.Data) < 4 {
			continue
		}
		attrs, err := rawnl.ParseAttrs(m.Data[4:])
		if err != nil {
			return -1, err
		}
		if b, ok := rawnl.Find(attrs, unix.NETNSA_NSID); ok {
			return int32(rawnl.Uint32(b)), nil
		}
	}
	return -1, nil
}

// captureUplinks describes the host's side of every link whose peer or lower device is outside.
func captureUplinks(ctx context.Context, inside *rawnl.Conn, given *ns.NS, links []link) ([]Uplink, error) {
	if !slices.ContainsFunc(links, func(l link) bool { return l.outside }) {
		return nil, nil
	}
	h, err := openHost(given)
	if err != nil {
		return nil, err
	}
	defer h.close(given)
	id, err := nsid(ctx, inside, h.ns)
	if err != nil {
		return nil, err
	}
	var uplinks []Uplink
	for i := range links {
		l := &links[i]
		if !l.outside || l.leftOut() {
			continue
		}
		u := Uplink{Name: l.name, Index: l.index, Kind: l.kind}
		if l.nsid == id && id >= 0 {
			if err := h.describe(ctx, &u, l); err != nil {
				return nil, fmt.Errorf("uplink %s: %w", l.name, err)
			}
		}
		uplinks = append(uplinks, u)
	}
	return uplinks, nil
}

func (h *host) describe(ctx context.Context, u *Uplink, l *link) error {
	outer, msg, err := h.link(ctx, l.lower)
	if err != nil {
		return fmt.Errorf("device %d of the host: %w", l.lower, err)
	}
	if !l.pair() {
		u.Parent = outer.name
		return nil
	}
	u.Peer, u.PeerIndex, u.MAC = outer.name, outer.index, outer.mac().String()
	u.MTU = rawnl.Uint32(outer.attr(unix.IFLA_MTU))
	u.Up = outer.flags&iffUp != 0
	u.Link = msg.Data
	if outer.master != 0 {
		master, _, err := h.link(ctx, outer.master)
		if err != nil {
			return fmt.Errorf("bridge of %s: %w", outer.name, err)
		}
		u.Bridge, u.BridgeMAC = master.name, master.mac().String()
	}
	return h.describeLayer3(ctx, u, outer)
}

// describeLayer3 records the addresses, routes, neighbours and parameters that the host has on a peer. The
// kernel filters the dumps by device, so a host with many routes costs nothing.
func (h *host) describeLayer3(ctx context.Context, u *Uplink, outer link) error {
	index := binary.NativeEndian.AppendUint32(nil, uint32(outer.index))
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		msgs, err := h.nl.Dump(ctx, rawnl.Message{Type: unix.RTM_GETADDR, Data: append([]byte{family, 0, 0, 0}, index...)})
		if err != nil {
			return fmt.Errorf("addresses of %s: %w", outer.name, err)
		}
		for _, m := range msgs {
			u.Addresses = append(u.Addresses, m.Data)
		}
		req := rawnl.Message{Type: unix.RTM_GETROUTE, Data: make([]byte, unix.SizeofRtMsg)}
		req.Data[0] = family
		req.Data = rawnl.AppendAttr(req.Data, unix.RTA_OIF, index)
		if msgs, err = h.nl.Dump(ctx, req); err != nil {
			return fmt.Errorf("routes through %s: %w", outer.name, err)
		}
		for _, m := range msgs {
			if r, err := parseRoute(m); err == nil && r.protocol() != unix.RTPROT_KERNEL {
				u.Routes = append(u.Routes, m.Data)
			}
		}
		for _, proxy := range []byte{0, unix.NTF_PROXY} {
			req := rawnl.Message{Type: unix.RTM_GETNEIGH, Data: make([]byte, sizeofNdMsg)}
			req.Data[0], req.Data[10] = family, proxy
			if proxy == 0 { // the dump of proxy entries takes no filter
				req.Data = rawnl.AppendAttr(req.Data, unix.NDA_IFINDEX, index)
			}
			if msgs, err = h.nl.Dump(ctx, req); err != nil {
				return fmt.Errorf("neighbours on %s: %w", outer.name, err)
			}
			for _, m := range msgs {
				if n, err := parseNeigh(m); err == nil && n.index() == outer.index && (n.proxy() || n.permanent()) {
					u.Neighs = append(u.Neighs, m.Data)
				}
			}
		}
	}
	return h.ns.Do(func() error {
		u.Sysctls = deviceSettings(outer.name, toldOf(outer))
		return nil
	})
}

// deviceSettings reads what differs from default for a device in the thread's namespace.
func deviceSettings(dev string, t told) []Setting {
	var list []Setting
	r := newSysctlReader(t)
	for _, dir := range []string{"ipv4/conf", "ipv6/conf"} {
		defaults := map[string]string{}
		r.device("default", dir, func(name, value string) { defaults[name] = value })
		r.device(dev, dir, func(name, value string) {
			if v, ok := defaults[name]; ok && v != value && !isLinkMTU(dir+"/"+dev+"/"+name) {
				list = append(list, Setting{Name: dir + "/" + name, Value: value})
			}
		})
	}
	return list
}

// path returns the setting's parameter for a device.
func (c Setting) path(dev string) string {
	i := strings.LastIndexByte(c.Name, '/')
	return c.Name[:i+1] + dev + c.Name[i:]
}

// hardwareAddr parses a MAC address; nil if there is none.
func hardwareAddr(s string) net.HardwareAddr {
	mac, err := net.ParseMAC(s)
	if err != nil {
		return nil
	}
	return mac
}
