package netstate

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
)

// bpfLosses finds BPF programs that are attached to links (tcx) or to the namespace itself: they live by a file
// descriptor or a link of their loader, which no dump shows. XDP is found with the links.
func bpfLosses(n *ns.NS, links []link) ([]Loss, error) {
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
			lost("tcx ingress dev "+links[i].name, attachedPrograms(uint32(links[i].index), unix.BPF_TCX_INGRESS))
			lost("tcx egress dev "+links[i].name, attachedPrograms(uint32(links[i].index), unix.BPF_TCX_EGRESS))
		}
		lost("flow dissector", attachedPrograms(uint32(n.Fd()), unix.BPF_FLOW_DISSECTOR))
		lost("socket lookup", attachedPrograms(uint32(n.Fd()), unix.BPF_SK_LOOKUP))
		return nil
	})
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
