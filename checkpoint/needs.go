package checkpoint

import (
	"context"
	"errors"
	"os"

	"github.com/nsmigrate/nsmigrate/checkpoint/criu"
	"github.com/nsmigrate/nsmigrate/netstate"
)

// RequireRoot refuses an operation to a caller that is not root.
func RequireRoot(op string) error {
	if os.Geteuid() == 0 {
		return nil
	}
	return Refuse(op, []Problem{{
		Kind: "privilege", Object: "this user",
		Reason: "only root can enter namespaces and read other processes",
		Remedy: "run it as root, for example with sudo",
	}})
}

// FindCRIU returns the criu to use and its version. One that is missing, too old or broken is a refusal.
func FindCRIU(ctx context.Context, op, explicit string) (string, criu.Version, error) {
	path, version, err := criu.FindRequired(ctx, explicit)
	if err == nil || ctx.Err() != nil {
		return path, version, err
	}
	remedy := criu.InstallRemedy
	var known interface{ Remedy() string }
	if errors.As(err, &known) {
		remedy = known.Remedy()
	}
	return "", version, Refuse(op, []Problem{{Kind: "criu", Object: "program", Reason: err.Error(), Remedy: remedy}})
}

// CheckLoopback refuses a namespace in which CRIU could not find out what it must know of the kernel: it connects to
// itself over the loopback device, unless it has kept from another time what it found.
func CheckLoopback(state *netstate.State) []Problem {
	if criu.Cached() {
		return nil
	}
	for _, a := range state.Addresses() {
		if a.Device == "lo" {
			return nil
		}
	}
	return []Problem{{
		Kind: "link", Object: "lo", Reason: "it is down, and CRIU needs it where /run is not on tmpfs",
		Remedy: "ip link set lo up in the namespace, or mount a tmpfs on /run",
	}}
}
