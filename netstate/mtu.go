package netstate

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// tooLarge finds uplinks that send larger packets than what they are to be attached to takes. Their connections would be
// established, and hang at the first full packet.
func (h *host) tooLarge(ctx context.Context, s *State, targets map[string]UplinkTarget) ([]Loss, error) {
	links, err := s.links()
	if err != nil {
		return nil, err
	}
	var problems []Loss
	for i := range s.uplinks {
		u := &s.uplinks[i]
		inner := find(links, u.Index)
		if inner == nil {
			continue
		}
		t := u.Target(targets)
		carrier, largest, err := h.largest(ctx, u, t, inner.mtu())
		if errors.Is(err, errNoLink) {
			continue // which is said elsewhere
		}
		if err != nil {
			return nil, err
		}
		if largest > 0 && largest < inner.mtu() {
			problems = append(problems, Loss{
				Kind: "uplink", Object: u.Name,
				Reason: fmt.Sprintf("its MTU is %d, and %s takes %d bytes at most", inner.mtu(), carrier, largest),
				Remedy: fmt.Sprintf("raise the MTU there, or lower that of %s before", u.Name),
			})
		}
	}
	return problems, nil
}

func find(links []link, index int32) *link {
	for i := range links {
		if links[i].index == index {
			return &links[i]
		}
	}
	return nil
}

// largest returns what an uplink's packets have to go through on this host, and the largest that it takes; 0 if nothing
// is known to limit them. wanted is what would be enough.
func (h *host) largest(ctx context.Context, u *Uplink, t UplinkTarget, wanted uint32) (carrier string, mtu uint32, err error) {
	switch {
	case !u.pair() && t.Parent != "":
		l, _, err := h.linkByName(ctx, t.Parent)
		return t.Parent, l.mtu(), err
	case !u.pair() || t.Bridge == "":
		return "", 0, nil
	}
	bridge, _, err := h.linkByName(ctx, t.Bridge)
	if err != nil || bridge.kind != "bridge" || bridge.mtu() >= wanted {
		return "", 0, err
	}
	// The bridge's own MTU follows its smallest port, and a full packet needs one that takes it.
	req := encodeLink(unix.AF_UNSPEC, 0, 0, 0, []rawnl.Attr{u32Attr(unix.IFLA_EXT_MASK, rtextFilterSkipStats)})
	req.Type = unix.RTM_GETLINK
	msgs, err := h.nl.Dump(ctx, req)
	if err != nil {
		return "", 0, fmt.Errorf("ports of %s: %w", t.Bridge, err)
	}
	for _, m := range msgs {
		if l, err := parseLink(m); err == nil && l.master == bridge.index {
			mtu = max(mtu, l.mtu())
		}
	}
	return "every port of " + t.Bridge, mtu, nil
}
