package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

func command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, args[0], args[1:]...)
}

// NetNS describes a service's namespace as a user makes it with ip(8): one veth pair, its outer end in the
// host's bridge, fixed addresses, default routes.
type NetNS struct {
	Name string
	IPv4 string
	IPv6 string
}

// Service is the namespace that most tests use.
func Service() NetNS { return NetNS{Name: "svc", IPv4: "10.77.0.100", IPv6: "fd77::100"} }

// Uplink is the name of the outer end.
func (n NetNS) Uplink() string { return "veth-" + n.Name }

// Addr returns the address and port of a family ("4" or "6") in the form that programs take.
func (n NetNS) Addr(family string, port int) string {
	if family == "6" {
		return fmt.Sprintf("[%s]:%d", n.IPv6, port)
	}
	return fmt.Sprintf("%s:%d", n.IPv4, port)
}

// AddNetNS makes the namespace on a host.
func (h *Host) AddNetNS(ctx context.Context, n NetNS) error {
	return h.Script(ctx, fmt.Sprintf(`
		ip netns add %[1]s
		ip link add %[2]s type veth peer name eth0 netns %[1]s
		ip link set %[2]s master br0 up
		ip -n %[1]s link set lo up
		ip -n %[1]s link set eth0 up
		ip -n %[1]s address add %[3]s/24 dev eth0
		ip -n %[1]s address add %[4]s/64 dev eth0 nodad
		ip -n %[1]s route add default via %[5]s
		ip -n %[1]s route add default via %[6]s`,
		n.Name, n.Uplink(), n.IPv4, n.IPv6, GatewayIPv4, GatewayIPv6))
}

// InNetNS runs fn on a thread inside a named network namespace of the host, "" for the host's own. Sockets
// that fn opens belong to that namespace for good; files are the real machine's.
func (h *Host) InNetNS(name string, fn func() error) error {
	if name == "" {
		return h.doNet(fn)
	}
	f, err := os.Open(h.Path("/run/netns/" + name))
	if err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	defer f.Close()
	return onThread(func() error {
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("%s: enter namespace %s: %w", h.Name, name, err)
		}
		return fn()
	})
}
