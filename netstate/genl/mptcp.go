package genl

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// linux/mptcp.h, linux/mptcp_pm.h.
const (
	mptcpAdd       = 1 // MPTCP_PM_CMD_ADD_ADDR
	mptcpGet       = 3
	mptcpSetLimits = 5
	mptcpGetLimits = 6

	mptcpAttrAddr     = 1
	mptcpAttrReceive  = 2 // MPTCP_PM_ATTR_RCV_ADD_ADDRS
	mptcpAttrSubflows = 3

	mptcpAddrID    = 2
	mptcpAddrV4    = 3
	mptcpAddrV6    = 4
	mptcpAddrPort  = 5
	mptcpAddrFlags = 6
	mptcpAddrIndex = 7

	mptcpImplicit = 1 << 4 // MPTCP_PM_ADDR_FLAG_IMPLICIT: the kernel made it for a connection
)

// mptcp carries the endpoints of the path manager and its limits, if they aren't those of a fresh namespace.
func mptcp() family {
	return family{
		number: familyMPTCP, name: "mptcp_pm", word: "mptcp", capture: captureMPTCP, describe: describeMPTCP,
		nests: map[byte]rawnl.Nest{mptcpAdd: {mptcpAttrAddr: rawnl.Flat()}, mptcpSetLimits: rawnl.Flat()},
	}
}

func captureMPTCP(ctx context.Context, c conn) ([]rawnl.Message, error) {
	endpoints, err := c.dump(ctx, mptcpGet)
	if err != nil {
		return nil, fmt.Errorf("dump endpoints: %w", err)
	}
	var msgs []rawnl.Message
	for _, attrs := range endpoints {
		if flags := rawnl.Get(rawnl.Get(attrs, mptcpAttrAddr), mptcpAddrFlags); rawnl.Uint32(flags)&mptcpImplicit == 0 {
			msgs = append(msgs, c.message(mptcpAdd, only(attrs, mptcpAttrAddr)))
		}
	}
	limits, err := c.request(ctx, mptcpGetLimits)
	if err != nil {
		return nil, fmt.Errorf("get limits: %w", err)
	}
	fresh := append(attr(mptcpAttrReceive, u32(0)), attr(mptcpAttrSubflows, u32(2))...)
	for _, attrs := range limits {
		if attrs = only(attrs, mptcpAttrReceive, mptcpAttrSubflows); !bytes.Equal(attrs, fresh) {
			msgs = append(msgs, c.message(mptcpSetLimits, attrs))
		}
	}
	return msgs, nil
}

func describeMPTCP(m rawnl.Message, name func(int32) string) string {
	if commandOf(m) == mptcpSetLimits {
		return fmt.Sprintf("limits add_addr_accepted %d subflows %d", rawnl.Uint32(rawnl.Get(attrsOf(m), mptcpAttrReceive)),
			rawnl.Uint32(rawnl.Get(attrsOf(m), mptcpAttrSubflows)))
	}
	parts := []string{"endpoint"}
	for a := range rawnl.Each(rawnl.Get(attrsOf(m), mptcpAttrAddr)) {
		switch a.Kind() {
		case mptcpAddrV4, mptcpAddrV6:
			addr, _ := netip.AddrFromSlice(a.Data)
			parts = append(parts, addr.String())
		case mptcpAddrID:
			parts = append(parts, fmt.Sprintf("id %x", a.Data))
		case mptcpAddrPort:
			if len(a.Data) == 2 {
				parts = append(parts, fmt.Sprintf("port %d", binary.NativeEndian.Uint16(a.Data)))
			}
		case mptcpAddrIndex:
			parts = append(parts, "dev "+name(int32(rawnl.Uint32(a.Data))))
		case mptcpAddrFlags:
			parts = append(parts, fmt.Sprintf("flags %#x", rawnl.Uint32(a.Data)))
		}
	}
	return strings.Join(parts, " ")
}
