package netstate

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Fallback devices: each module of a tunnel puts one into every namespace, when it is loaded or when the namespace
// is made. They can't be removed, and they get the lowest free interface indexes, which are not the same ones on
// two hosts that loaded their modules in another order. One that is down was never asked for, and is left out
// where the new namespace does not have it at its place.

// fallback reports whether the kernel makes this link by itself in every fresh namespace while the module
// of its kind is loaded.
func (l *link) fallback() bool {
	return l.kind != "" && fallbackKinds[l.name] == l.kind
}

// fallbackKinds has the kinds of the fallback devices, by name.
var fallbackKinds = map[string]string{
	"tunl0": "ipip", "gre0": "gre", "gretap0": "gretap", "erspan0": "erspan", "ip_vti0": "vti", "ip6_vti0": "vti6",
	"sit0": "sit", "ip6tnl0": "ip6tnl", "ip6gre0": "ip6gre",
}

// spare reports whether a link is a fallback device that nobody uses.
func (l *link) spare() bool { return l.fallback() && l.flags&iffUp == 0 }

// spares returns the names of the fallback devices that nobody uses.
func (s *State) spares() map[string]bool {
	names := map[string]bool{}
	links, _ := s.links()
	for i := range links {
		if links[i].spare() {
			names[links[i].name] = true
		}
	}
	return names
}

// freshLinks returns the links that a namespace has when it was just made.
func freshLinks(ctx context.Context) ([]link, error) {
	n, err := ns.Create()
	if err != nil {
		return nil, err
	}
	defer n.Close()
	nl, err := rawnl.Dial(n, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer nl.Close()
	return dumpLinks(ctx, nl)
}

func dumpLinks(ctx context.Context, nl *rawnl.Conn) ([]link, error) {
	msgs, err := take(ctx, nl, linkDump())
	if err != nil {
		return nil, err
	}
	return (&State{Messages: map[Kind][]rawnl.Message{KindLink: msgs}}).links()
}

// misplaced returns the State's links that can't have their index in a fresh namespace.
func (s *State) misplaced(fresh []link) ([]Loss, error) {
	links, err := s.links()
	if err != nil {
		return nil, err
	}
	at, named := map[int32]*link{}, map[string]*link{}
	for i := range fresh {
		at[fresh[i].index], named[fresh[i].name] = &fresh[i], &fresh[i]
	}
	var losses []Loss
	for i := range links {
		l := &links[i]
		loss := Loss{Kind: "link", Object: l.name}
		switch other := at[l.index]; {
		case l.spare() || other != nil && other.name == l.name:
			continue
		case other != nil:
			loss.Reason = fmt.Sprintf("its interface index %d is that of %s, which this host puts into every namespace", l.index, other.name)
			loss.Remedy = "sysctl -w net.core.fb_tunnels_only_for_init_net=2, or unload the module of " + other.kind
		case l.fallback() && named[l.name] != nil:
			loss.Reason = fmt.Sprintf("it is in use with the interface index %d, and has the index %d on this host", l.index, named[l.name].index)
			loss.Remedy = "use a link of a name of its own instead"
		case l.fallback():
			loss.Reason = "it is in use, and this host puts none into its namespaces"
			loss.Remedy = "load the module of " + l.kind
		default:
			continue
		}
		losses = append(losses, loss)
	}
	return losses, nil
}
