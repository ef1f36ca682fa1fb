package genl

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// linux/wireguard.h.
const (
	wgGet = 0
	wgSet = 1

	wgAttrIndex   = 1
	wgAttrKey     = 3
	wgAttrFlags   = 5
	wgAttrPort    = 6
	wgAttrFwmark  = 7
	wgAttrPeers   = 8
	wgAttrOutside = 0x3fff // ours: the socket is in another namespace; never sent

	wgPeerKey       = 1
	wgPeerPSK       = 2
	wgPeerFlags     = 3
	wgPeerEndpoint  = 4
	wgPeerKeepalive = 5
	wgPeerAllowed   = 9

	wgAllowedAddr = 2
	wgAllowedMask = 3

	wgReplacePeers   = 1 // WGDEVICE_F_REPLACE_PEERS
	wgReplaceAllowed = 2 // WGPEER_F_REPLACE_ALLOWEDIPS
)

// wireguard carries the keys, the port and the peers of WireGuard links: a message for each link, then one for each
// peer. Sessions are not shown; the peers shake hands anew. A link's UDP socket is in the namespace in which the link
// was made, which the kernel doesn't tell: if a link that is up has none here, it can't be carried.
func wireguard() family {
	peer := rawnl.Nest{wgPeerAllowed: {rawnl.AnyAttr: rawnl.Flat()}}
	return family{
		number: familyWireGuard, name: "wireguard", word: "wireguard", capture: captureWireGuard, describe: describeWireGuard,
		nests: map[byte]rawnl.Nest{wgSet: {wgAttrPeers: {rawnl.AnyAttr: peer}}},
		volatile: func(m rawnl.Message) rawnl.Message {
			// A peer that moves tells so by sending from another address.
			return eachPeer(m, func(a rawnl.Attr) (rawnl.Attr, bool) { return a, a.Kind() != wgPeerEndpoint })
		},
		loss: func(m rawnl.Message) string {
			if rawnl.Get(attrsOf(m), wgAttrOutside) != nil {
				return "its UDP socket is in the namespace where it was made, which is not this one"
			}
			return ""
		},
	}
}

func eachPeer(m rawnl.Message, fn func(rawnl.Attr) (rawnl.Attr, bool)) rawnl.Message {
	return message(m.Type, commandOf(m), rawnl.Rewrite(attrsOf(m), func(a rawnl.Attr) (rawnl.Attr, bool) {
		if a.Kind() == wgAttrPeers {
			a.Data = rawnl.Rewrite(a.Data, func(peer rawnl.Attr) (rawnl.Attr, bool) {
				peer.Data = rawnl.Rewrite(peer.Data, fn)
				return peer, true
			})
		}
		return a, true
	}))
}

func captureWireGuard(ctx context.Context, c conn) ([]rawnl.Message, error) {
	var msgs []rawnl.Message
	for _, index := range c.linksOf("wireguard") {
		parts, err := c.dump(ctx, wgGet, attr(wgAttrIndex, u32(index)))
		if err != nil {
			return nil, fmt.Errorf("get link %d: %w", index, err)
		}
		some, err := wgLink(c, index, parts)
		if err != nil {
			return nil, err
		}
		msgs = append(msgs, some...)
	}
	return msgs, nil
}

// wgLink returns the messages for one link, whose answer comes in parts when there are many peers; a peer with many
// addresses can be in several.
func wgLink(c conn, index uint32, parts [][]byte) ([]rawnl.Message, error) {
	if len(parts) == 0 {
		return nil, nil
	}
	link := only(parts[0], wgAttrIndex, wgAttrKey, wgAttrPort, wgAttrFwmark)
	link = append(link, attr(wgAttrFlags, u32(wgReplacePeers))...)
	if port := rawnl.Get(link, wgAttrPort); len(port) == 2 {
		outside, err := wgOutside(c.n, index, binary.NativeEndian.Uint16(port))
		if err != nil {
			return nil, fmt.Errorf("look for the socket of link %d: %w", index, err)
		}
		if outside {
			link = append(link, attr(wgAttrOutside, []byte{1})...)
		}
	}
	msgs := []rawnl.Message{c.message(wgSet, link)}
	for _, p := range wgPeers(parts) {
		id, set := attr(wgPeerKey, p.key), append(attr(wgPeerFlags, u32(wgReplaceAllowed)), p.set...)
		for first := true; first || len(p.allowed) > 0; first = false {
			var some []byte
			for len(p.allowed) > 0 && len(some)+len(p.allowed[0]) < wgAllowedMax {
				some, p.allowed = append(some, p.allowed[0]...), p.allowed[1:]
			}
			msgs = append(msgs, c.message(wgSet, attr(wgAttrIndex, u32(index)),
				nest(wgAttrPeers, nest(0, id, set, nest(wgPeerAllowed, some)))))
			set = nil // what follows adds addresses
		}
	}
	return msgs, nil
}

// wgAllowedMax bounds the addresses of a peer in one message: an attribute's length has 16 bits.
const wgAllowedMax = 60_000

// wgPeer is one peer: its properties but for the addresses, and the addresses each as an attribute.
type wgPeer struct {
	key, set []byte
	allowed  [][]byte
}

// wgPeers returns the peers in the order in which they were added.
func wgPeers(parts [][]byte) []wgPeer {
	var peers []wgPeer
	for _, part := range parts {
		for a := range rawnl.Each(rawnl.Get(part, wgAttrPeers)) {
			key := rawnl.Get(a.Data, wgPeerKey)
			if len(peers) == 0 || !bytes.Equal(peers[len(peers)-1].key, key) {
				peers = append(peers, wgPeer{key: key, set: only(a.Data, wgPeerPSK, wgPeerEndpoint, wgPeerKeepalive)})
			}
			p := &peers[len(peers)-1]
			for allowed := range rawnl.Each(rawnl.Get(a.Data, wgPeerAllowed)) {
				p.allowed = append(p.allowed, attr(allowed.Type, allowed.Data))
			}
		}
	}
	return peers
}

// wgOutside reports whether a link is up and its namespace has no UDP socket on its port.
func wgOutside(n *ns.NS, index uint32, port uint16) (outside bool, err error) {
	err = n.Do(func() error {
		up, err := linkUp(index)
		if err != nil || !up {
			return err
		}
		outside = true
		for _, file := range []string{"/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"} {
			table, err := os.ReadFile(file)
			if err != nil {
				continue // a kernel without IPv6
			}
			if strings.Contains(string(table), fmt.Sprintf(":%04X 0", port)) {
				outside = false
			}
		}
		return nil
	})
	return outside, err
}

// linkUp reports whether a link of the calling thread's namespace is up.
func linkUp(index uint32) (bool, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return false, err
	}
	ifr.SetUint32(index)
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFNAME, ifr); err != nil {
		return false, err
	}
	if ifr, err = unix.NewIfreq(ifr.Name()); err != nil {
		return false, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr); err != nil {
		return false, err
	}
	return ifr.Uint16()&unix.IFF_UP != 0, nil
}

func describeWireGuard(m rawnl.Message, name func(int32) string) string {
	attrs := attrsOf(m)
	parts := []string{"dev " + name(int32(rawnl.Uint32(rawnl.Get(attrs, wgAttrIndex))))}
	if port := rawnl.Get(attrs, wgAttrPort); len(port) == 2 {
		parts = append(parts, fmt.Sprintf("listen-port %d", binary.NativeEndian.Uint16(port)))
	}
	if mark := rawnl.Uint32(rawnl.Get(attrs, wgAttrFwmark)); mark != 0 {
		parts = append(parts, fmt.Sprintf("fwmark %#x", mark))
	}
	if rawnl.Get(attrs, wgAttrKey) != nil {
		parts = append(parts, "private-key (hidden)")
	}
	for peer := range rawnl.Each(rawnl.Get(attrs, wgAttrPeers)) {
		for a := range rawnl.Each(peer.Data) {
			switch a.Kind() {
			case wgPeerKey:
				parts = append(parts, "peer "+base64.StdEncoding.EncodeToString(a.Data))
			case wgPeerPSK:
				if slices.ContainsFunc(a.Data, func(b byte) bool { return b != 0 }) {
					parts = append(parts, "preshared-key (hidden)")
				}
			case wgPeerEndpoint:
				parts = append(parts, "endpoint "+sockaddrText(a.Data))
			case wgPeerKeepalive:
				if len(a.Data) == 2 && binary.NativeEndian.Uint16(a.Data) != 0 {
					parts = append(parts, fmt.Sprintf("persistent-keepalive %d", binary.NativeEndian.Uint16(a.Data)))
				}
			case wgPeerAllowed:
				for allowed := range rawnl.Each(a.Data) {
					addr, _ := netip.AddrFromSlice(rawnl.Get(allowed.Data, wgAllowedAddr))
					mask := rawnl.Get(allowed.Data, wgAllowedMask)
					if len(mask) == 1 {
						parts = append(parts, fmt.Sprintf("allowed %s/%d", addr, mask[0]))
					}
				}
			}
		}
	}
	return strings.Join(parts, " ")
}

// sockaddrText renders struct sockaddr_in or sockaddr_in6.
func sockaddrText(b []byte) string {
	if len(b) < 8 {
		return "?"
	}
	addr, _ := netip.AddrFromSlice(b[4:8])
	if binary.NativeEndian.Uint16(b) == unix.AF_INET6 && len(b) >= 24 {
		addr, _ = netip.AddrFromSlice(b[8:24])
	}
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(b[2:])).String()
}
