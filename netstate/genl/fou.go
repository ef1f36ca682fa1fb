package genl

import (
	"context"
	"fmt"
	"slices"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// linux/fou.h.
const (
	fouAdd = 1
	fouGet = 3

	fouAttrProtocol = 3
	fouAttrPeerV4   = 8
	fouAttrPeerV6   = 9
	fouAttrPeerPort = 10
	fouAttrIndex    = 11
)

// fou carries the ports on which foo-over-UDP and GUE packets are received.
func fou() family {
	return family{
		number: familyFOU, name: "fou", word: "fou", nests: map[byte]rawnl.Nest{fouAdd: rawnl.Flat()},
		capture: func(ctx context.Context, c conn) ([]rawnl.Message, error) {
			ports, err := c.dump(ctx, fouGet)
			if err != nil {
				return nil, fmt.Errorf("dump ports: %w", err)
			}
			msgs := make([]rawnl.Message, len(ports))
			slices.Reverse(ports) // the newest is shown first
			for i, attrs := range ports {
				msgs[i] = c.message(fouAdd, rawnl.Rewrite(attrs, func(a rawnl.Attr) (rawnl.Attr, bool) {
					// No protocol, peer or device is shown as 0 and taken only by being absent.
					none := !slices.ContainsFunc(a.Data, func(b byte) bool { return b != 0 })
					return a, !none || !slices.Contains([]uint16{fouAttrProtocol, fouAttrPeerV4, fouAttrPeerV6, fouAttrPeerPort, fouAttrIndex}, a.Kind())
				}))
			}
			return msgs, nil
		},
	}
}
