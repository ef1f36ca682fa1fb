package genl

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Families whose objects are seen and not carried. The messages are the kernel's own answers.

// linux/if_macsec.h.
const (
	macsecGet = 0 // MACSEC_CMD_GET_TXSC

	macsecAttrIndex = 1
	macsecAttrTxSAs = 5
	macsecAttrRxSCs = 6
)

// macsec names the links that have associations or channels: the kernel doesn't show their keys.
func macsec() family {
	return family{
		number: familyMACsec, name: "macsec", word: "macsec", nests: map[byte]rawnl.Nest{macsecGet: rawnl.Flat()},
		capture: func(ctx context.Context, c conn) ([]rawnl.Message, error) {
			links, err := c.dump(ctx, macsecGet)
			if err != nil {
				return nil, fmt.Errorf("dump links: %w", err)
			}
			var msgs []rawnl.Message
			for _, attrs := range links {
				if len(rawnl.Get(attrs, macsecAttrTxSAs)) > 0 || len(rawnl.Get(attrs, macsecAttrRxSCs)) > 0 {
					msgs = append(msgs, c.message(macsecGet, only(attrs, macsecAttrIndex)))
				}
			}
			return msgs, nil
		},
		describe: func(m rawnl.Message, name func(int32) string) string {
			return "associations of dev " + name(int32(rawnl.Uint32(rawnl.Get(attrsOf(m), macsecAttrIndex))))
		},
		loss: func(rawnl.Message) string { return "the kernel does not show their keys" },
	}
}

// linux/l2tp.h.
const (
	l2tpTunnelGet = 4

	l2tpAttrTunnelID = 9 // L2TP_ATTR_CONN_ID
)

// l2tp names the tunnels: a tunnel's socket is often a process's, and of a session the kernel tells all but its
// L2-specific sublayer (l2tp_nl_session_send of net/l2tp/l2tp_netlink.c), without which the peers don't understand
// each other.
func l2tp() family {
	return family{
		number: familyL2TP, name: "l2tp", word: "l2tp", nests: map[byte]rawnl.Nest{l2tpTunnelGet: rawnl.Flat()},
		capture: func(ctx context.Context, c conn) ([]rawnl.Message, error) {
			tunnels, err := c.dump(ctx, l2tpTunnelGet)
			if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
				return nil, fmt.Errorf("dump tunnels: %w", err)
			}
			var msgs []rawnl.Message
			for _, attrs := range tunnels {
				msgs = append(msgs, c.message(l2tpTunnelGet, only(attrs, l2tpAttrTunnelID)))
			}
			return msgs, nil
		},
		describe: func(m rawnl.Message, _ func(int32) string) string {
			return fmt.Sprintf("tunnel %d with its sessions", rawnl.Uint32(rawnl.Get(attrsOf(m), l2tpAttrTunnelID)))
		},
		loss: func(rawnl.Message) string {
			return "the kernel does not tell whether the packets of a session have a sublayer"
		},
	}
}

// linux/tipc_netlink.h.
const (
	tipcBearerGet = 4
	tipcNetGet    = 14

	tipcAttrNet = 7
	tipcNetAddr = 2
)

// tipc names a namespace that takes part in TIPC: its identity, bearers and links are not carried.
func tipc() family {
	return family{
		number: familyTIPC, name: "TIPCv2", word: "tipc", nests: map[byte]rawnl.Nest{tipcNetGet: {tipcAttrNet: rawnl.Flat()}},
		capture: func(ctx context.Context, c conn) ([]rawnl.Message, error) {
			bearers, err := c.dump(ctx, tipcBearerGet)
			if err != nil {
				return nil, fmt.Errorf("dump bearers: %w", err)
			}
			networks, err := c.dump(ctx, tipcNetGet)
			if err != nil {
				return nil, fmt.Errorf("dump networks: %w", err)
			}
			var msgs []rawnl.Message
			for _, attrs := range networks {
				if addr := only(rawnl.Get(attrs, tipcAttrNet), tipcNetAddr); len(bearers) > 0 || rawnl.Uint32(rawnl.Get(addr, tipcNetAddr)) != 0 {
					msgs = append(msgs, c.message(tipcNetGet, nest(tipcAttrNet, addr)))
				}
			}
			return msgs, nil
		},
		describe: func(m rawnl.Message, _ func(int32) string) string {
			return fmt.Sprintf("node %x", rawnl.Uint32(rawnl.Get(rawnl.Get(attrsOf(m), tipcAttrNet), tipcNetAddr)))
		},
		loss: func(rawnl.Message) string { return "its identity, bearers and links are not carried" },
	}
}

// linux/smc.h.
const (
	smcPNetGet = 1

	smcPNetName   = 1
	smcPNetDevice = 2 // SMC_PNETID_ETHNAME
)

// smc names the entries of the table that says which device belongs to which physical network.
func smc() family {
	return family{
		number: familySMC, name: "SMC_PNETID", word: "smc", nests: map[byte]rawnl.Nest{smcPNetGet: rawnl.Flat()},
		capture: func(ctx context.Context, c conn) ([]rawnl.Message, error) {
			entries, err := c.dump(ctx, smcPNetGet)
			if err != nil {
				return nil, fmt.Errorf("dump physical networks: %w", err)
			}
			var msgs []rawnl.Message
			for _, attrs := range entries {
				msgs = append(msgs, c.message(smcPNetGet, only(attrs, smcPNetName, smcPNetDevice)))
			}
			return msgs, nil
		},
		describe: func(m rawnl.Message, _ func(int32) string) string {
			return fmt.Sprintf("physical network %s of dev %s", rawnl.CString(rawnl.Get(attrsOf(m), smcPNetName)), rawnl.CString(rawnl.Get(attrsOf(m), smcPNetDevice)))
		},
		loss: func(rawnl.Message) string { return "the table of physical networks is not carried" },
	}
}
