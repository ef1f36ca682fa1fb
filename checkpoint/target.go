package checkpoint

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
)

// target is what a dump works on: one namespace, held open.
type target struct {
	ns   *ns.NS
	name string // below /run/netns; "" if it has none
	root int    // the tree asked for; 0 for all trees
}

// openTarget finds the namespace that a specification names. A target that can't be dumped at all, such as the
// host's own namespace, is refused with a [*RefusedError].
func openTarget(spec Spec) (*target, error) {
	t, err := openNamespace(spec)
	if err != nil {
		return nil, err
	}
	own, err := ns.Current()
	if err != nil {
		t.ns.Close()
		return nil, err
	}
	defer own.Close()
	if own.Inode() == t.ns.Inode() {
		t.ns.Close()
		return nil, refuseTarget(spec.String(), "it lives in the host's own network namespace, which can't leave the host",
			"start the service in a namespace of its own, e.g. with ip netns exec or NetworkNamespacePath=")
	}
	// Whoever holds it is told by the kernel, which ends the hold with the process.
	if err := unix.Flock(t.ns.Fd(), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		t.ns.Close()
		return nil, refuseTarget(spec.String(), "another nsmigrate is working on it", "wait for it to end")
	} else if err != nil {
		t.ns.Close()
		return nil, fmt.Errorf("take hold of the network namespace: %w", err)
	}
	return t, nil
}

// openNamespace is openTarget for any namespace.
func openNamespace(spec Spec) (*target, error) {
	t := &target{root: spec.PID}
	var err error
	if spec.NetNS != "" {
		t.ns, err = ns.Open(spec.NetNS)
	} else {
		t.ns, err = ns.OfPID(spec.PID)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist) && spec.NetNS != "":
		return nil, refuseTarget(fmt.Sprintf("netns %q", spec.NetNS), "there is no such network namespace", "ip netns list shows the names")
	case errors.Is(err, fs.ErrNotExist):
		return nil, refuseTarget(fmt.Sprintf("process %d", spec.PID), "there is no such process", "")
	case errors.Is(err, ns.ErrNotNetNS):
		return nil, refuseTarget(fmt.Sprintf("file %q", spec.NetNS), "it is not a network namespace", "name a namespace of ip netns list, or a file such as /proc/PID/ns/net")
	case err != nil:
		return nil, err
	}
	if t.name, err = t.ns.NameOf(); err != nil {
		t.ns.Close()
		return nil, err
	}
	return t, nil
}

func refuseTarget(object, reason, remedy string) error {
	return Refuse("dump", []Problem{{Kind: "target", Object: object, Reason: reason, Remedy: remedy}})
}

// String names the target as the user did.
func (s Spec) String() string {
	if s.NetNS != "" {
		return fmt.Sprintf("netns %q", s.NetNS)
	}
	return fmt.Sprintf("process %d", s.PID)
}

func (t *target) String() string {
	if t.name != "" {
		return fmt.Sprintf("netns %q", t.name)
	}
	return "the network namespace " + t.ns.String()
}
