package netstate

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/netfilter"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// findLosses looks for the objects that no kind of a State holds. It asks only what answers without loading a
// module: a subsystem that is not there has no objects.
func findLosses(ctx context.Context, n, host *ns.NS, nl *rawnl.Conn, links []link, uplinks []Uplink) ([]Loss, error) {
	routes, err := routeLosses(ctx, n, nl)
	if err != nil {
		return nil, err
	}
	bpf, err := bpfLosses(n, host, links, uplinks)
	if err != nil {
		return nil, err
	}
	tables, err := netfilter.EBTables(n)
	if err != nil {
		return nil, err
	}
	return slices.Concat(routes, bpf, ebtablesLosses(tables)), nil
}

// ebtablesLosses names tables of the legacy ebtables.
func ebtablesLosses(tables []string) []Loss {
	var losses []Loss
	for _, table := range tables {
		losses = append(losses, Loss{
			Kind: "ebtables", Object: "table " + table, Reason: "the rules of the legacy ebtables are not carried",
			Remedy: "move them to nftables, which is: ebtables-legacy-save | ebtables-nft-restore, then ebtables-legacy -t " + table + " -F",
		})
	}
	return losses
}

// routeLosses finds routes of families that are not carried.
func routeLosses(ctx context.Context, n *ns.NS, nl *rawnl.Conn) ([]Loss, error) {
	type family struct {
		family byte
		object string
		sign   string // is there if the kernel knows the family
		reason string
	}
	const daemon = "they belong to the open socket of a routing daemon, and the kernel removes them with it"
	families := []family{
		{rtnlFamilyIPMR, "IPv4 multicast routes", "/proc/thread-self/net/ip_mr_cache", daemon},
		{rtnlFamilyIP6MR, "IPv6 multicast routes", "/proc/thread-self/net/ip6_mr_cache", daemon},
		{unix.AF_CAN, "CAN gateway jobs", "/sys/module/can_gw", "they are not carried"},
		{unix.AF_PHONET, "Phonet routes", "/proc/thread-self/net/phonet", "they are not carried"},
	}
	// A family that the kernel lacks is answered with the routes of all families, which may be a million.
	err := n.Do(func() error {
		families = slices.DeleteFunc(families, func(f family) bool {
			_, err := os.Stat(f.sign)
			return errors.Is(err, os.ErrNotExist)
		})
		return nil
	})
	if err != nil {
		return nil, err
	}
	var losses []Loss
	for _, f := range families {
		req := rawnl.Message{Type: unix.RTM_GETROUTE, Data: make([]byte, unix.SizeofRtMsg)}
		req.Data[0] = f.family
		msgs, err := nl.Dump(ctx, req)
		if absent(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("dump %s: %w", f.object, err)
		}
		count := len(slices.DeleteFunc(msgs, func(m rawnl.Message) bool { return len(m.Data) == 0 || m.Data[0] != f.family }))
		if count > 0 {
			losses = append(losses, Loss{Kind: "route", Object: f.object, Reason: fmt.Sprintf("%d of them: %s", count, f.reason)})
		}
	}
	return losses, nil
}

// absent reports whether an error means that the kernel has no such subsystem.
func absent(err error) bool {
	for _, errno := range []unix.Errno{unix.EOPNOTSUPP, unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT, unix.ENOENT} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// sift removes from a dump's answer what can't be made again, and names that and what will not be quite the same.
// names and kinds are those of the namespace's links.
func sift(k Kind, msgs []rawnl.Message, names linkNames, kinds map[int32]string) ([]rawnl.Message, []Loss) {
	var losses []Loss
	msgs = slices.DeleteFunc(msgs, func(m rawnl.Message) bool {
		loss, gone := lost(k, m, names, kinds)
		if loss.Reason != "" {
			losses = append(losses, loss)
		}
		return gone
	})
	return msgs, losses
}

// lost returns what of a dumped object does not come back, or the empty Loss; gone says that nothing of it does.
func lost(k Kind, m rawnl.Message, names linkNames, kinds map[int32]string) (loss Loss, gone bool) {
	switch k {
	case KindAddress:
		a, err := parseAddress(m)
		switch {
		case err != nil:
		case a.family == unix.AF_INET6 && a.flags&unix.IFA_F_TEMPORARY != 0:
			return Loss{
				Kind: "address", Object: describe(k, m, names),
				Reason: "it comes back with its lifetimes, but not as a temporary address: only the kernel makes those",
				Remedy: "the kernel makes another one when the next router advertisement comes",
			}, false
		case !slices.Contains(familiesOf(k), a.family):
			return Loss{Kind: "address", Object: fmt.Sprintf("of family %d dev %s", a.family, names.of(a.index)), Reason: "the family is not carried"}, true
		}
	case KindRoute:
		if programmedRoute(m) {
			return programLoss(k, m, names), true
		}
	case KindNexthop:
		if len(m.Data) >= sizeofNhMsg && programmed(m.Data[sizeofNhMsg:]) {
			return programLoss(k, m, names), true
		}
	case KindBridgeVLAN:
		return bridgeLoss(m), false
	case KindMDB:
		if len(m.Data) >= sizeofBridgePortMsg && rawnl.Get(rawnl.Get(m.Data[sizeofBridgePortMsg:], mdbaMDB), mdbaMDBEntry) != nil {
			if index := int32(binary.NativeEndian.Uint32(m.Data[4:])); kinds[index] != "bridge" {
				return Loss{Kind: "mdb", Object: "dev " + names.of(index), Reason: "multicast forwarding entries of a vxlan are not carried"}, true
			}
		}
	}
	return Loss{}, false
}

func programLoss(k Kind, m rawnl.Message, names linkNames) Loss {
	return Loss{
		Kind: k.String(), Object: describe(k, m, names), Reason: "a BPF program makes its encapsulation, which is not carried",
		Remedy: "the program that loaded it can load it again after the move",
	}
}

// bridgeLoss names the protocols of a bridge or its port that are not carried.
func bridgeLoss(m rawnl.Message) Loss {
	_, attrs, err := split(m, unix.SizeofIfInfomsg)
	if err != nil {
		return Loss{}
	}
	spec, _ := rawnl.Find(attrs, unix.IFLA_AF_SPEC)
	name, _ := rawnl.Find(attrs, unix.IFLA_IFNAME)
	for _, p := range []struct {
		attr uint16
		kind string
		what string
	}{{iflaBridgeMRP, "mrp", "media redundancy"}, {iflaBridgeCFM, "cfm", "connectivity fault management"}, {iflaBridgeMST, "mst", "multiple spanning trees"}} {
		if len(rawnl.Get(spec, p.attr)) > 0 {
			return Loss{Kind: p.kind, Object: "dev " + rawnl.CString(name), Reason: p.what + " of bridges is not carried"}
		}
	}
	return Loss{}
}

// multicastAddresses reads from dev_mcast the link-layer addresses that somebody made a device listen to (ip maddr add) as
// the forwarding entries that make them: in the kernel's dumps they look like those that follow from the memberships of
// sockets. Devices with a forwarding table of another meaning, and those that are not Ethernet, can't have such.
func multicastAddresses(text string, links []link) (entries []rawnl.Message, losses []Loss) {
	for line := range strings.Lines(text) {
		// Index, name, users, users who added it globally, address.
		f := strings.Fields(line)
		if len(f) != 5 || f[3] == "0" {
			continue
		}
		mac, err := hex.DecodeString(f[4])
		i := slices.IndexFunc(links, func(l link) bool { return l.name == f[1] })
		if err != nil || i < 0 {
			continue
		}
		if l := &links[i]; l.arphrd != unix.ARPHRD_ETHER || slices.Contains([]string{"bridge", "vxlan", "macvlan", "macvtap"}, l.kind) {
			losses = append(losses, Loss{
				Kind: "multicast", Object: fmt.Sprintf("address %s dev %s", net.HardwareAddr(mac), l.name),
				Reason: "a link-layer address that ip maddr added to such a device is not carried", Remedy: "add it again after the move",
			})
			continue
		}
		entries = append(entries, multicastEntry(links[i].index, mac))
	}
	return entries, losses
}

// multicastEntry is the forwarding entry that makes a device listen to an address.
func multicastEntry(index int32, mac []byte) rawnl.Message {
	b := make([]byte, sizeofNdMsg)
	b[0], b[10] = unix.AF_BRIDGE, unix.NTF_SELF
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	binary.NativeEndian.PutUint16(b[8:], unix.NUD_PERMANENT)
	return rawnl.Message{Type: unix.RTM_NEWNEIGH, Data: rawnl.AppendAttr(b, unix.NDA_LLADDR, mac)}
}
