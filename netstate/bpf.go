package netstate

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
)

// Attachments of netkit devices (enum bpf_attach_type of linux/bpf.h). The kernel tells those of both ends at the
// primary one.
const (
	bpfNetkitPrimary = 54
	bpfNetkitPeer    = 55
)

// bpfLosses finds BPF programs that are attached to links (tcx, netkit) or to the namespace itself: they live by a file
// descriptor or a link of their loader, which no dump shows. XDP is found with the links. host is where uplinks end; nil
// is the caller's own namespace.
func bpfLosses(n, host *ns.NS, links []link, uplinks []Uplink) ([]Loss, error) {
	var losses []Loss
	lost := func(object string, count uint32) {
		if count > 0 {
			losses = append(losses, Loss{
				Kind: "bpf", Object: object, Reason: fmt.Sprintf("%d programs are attached, which are not carried", count),
				Remedy: "the program that loaded them can load them again after the move",
			})
		}
	}
	err := n.Do(func() error { // an interface index means one in the namespace of the caller
		for i := range links {
			index := uint32(links[i].index)
			lost("tcx ingress dev "+links[i].name, attachedPrograms(index, unix.BPF_TCX_INGRESS))
			lost("tcx egress dev "+links[i].name, attachedPrograms(index, unix.BPF_TCX_EGRESS))
			if links[i].kind == "netkit" {
				lost("netkit dev "+links[i].name, attachedPrograms(index, bpfNetkitPrimary))
				lost("netkit peer of dev "+links[i].name, attachedPrograms(index, bpfNetkitPeer))
			}
		}
		lost("flow dissector", attachedPrograms(uint32(n.Fd()), unix.BPF_FLOW_DISSECTOR))
		lost("socket lookup", attachedPrograms(uint32(n.Fd()), unix.BPF_SK_LOOKUP))
		return nil
	})
	if err != nil {
		return nil, err
	}
	outside := func() error { // a netkit in the namespace has its programs at the primary end, which the host has
		for _, u := range uplinks {
			if u.Kind == "netkit" && u.PeerIndex != 0 {
				lost("netkit dev "+u.Name, attachedPrograms(uint32(u.PeerIndex), bpfNetkitPeer))
			}
		}
		return nil
	}
	if host == nil {
		return losses, outside()
	}
	err = host.Do(outside)
	return losses, err
}

// attachedPrograms returns how many programs are attached to an interface index or a descriptor (BPF_PROG_QUERY
// of bpf(2)). A kernel that does not know the attachment has none.
func attachedPrograms(target, attachType uint32) uint32 {
	// union bpf_attr, query: target, attach type, query flags, attach flags, 8 bytes of program ids, count ...
	var attr [64]byte
	binary.NativeEndian.PutUint32(attr[0:], target)
	binary.NativeEndian.PutUint32(attr[4:], attachType)
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_QUERY, uintptr(unsafe.Pointer(&attr)), uintptr(len(attr)))
	if errno != 0 {
		return 0
	}
	return binary.NativeEndian.Uint32(attr[24:])
}
