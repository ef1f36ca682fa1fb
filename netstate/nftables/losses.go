package nftables

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/nfnl"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Losses names what a plan of these messages does not bring back, or brings back with another meaning,
// one line each. What the kernel did not show comes first.
func Losses(msgs []rawnl.Message) []string {
	losses := hidden(msgs)
	for _, m := range msgs {
		switch kindOf(m) {
		case unix.NFT_MSG_NEWTABLE:
			if nfnl.Number(rawnl.Get(nfnl.Attrs(m), unix.NFTA_TABLE_FLAGS))&tableFlagOwner != 0 {
				losses = append(losses, nameOf(m)+": comes back without its owner, which is a process's netlink socket")
			}
		case unix.NFT_MSG_NEWRULE:
			for e := range rawnl.Each(rawnl.Get(nfnl.Attrs(m), unix.NFTA_RULE_EXPRESSIONS)) {
				if reason := exprLoss(e.Data); reason != "" {
					losses = append(losses, fmt.Sprintf("%s: %s", nameOf(m), reason))
				}
			}
		}
	}
	return losses
}

// exprLoss says what an expression refers to outside of the namespace or keeps to itself.
func exprLoss(expr []byte) string {
	data := rawnl.Get(expr, unix.NFTA_EXPR_DATA)
	switch name := string(trimNUL(rawnl.Get(expr, unix.NFTA_EXPR_NAME))); name {
	case "socket":
		if nfnl.Number(rawnl.Get(data, 1)) == 3 { // NFTA_SOCKET_KEY, NFT_SOCKET_CGROUPV2
			return "socket cgroupv2 compares ids of control groups, which differ on another host"
		}
	case "match", "target":
		switch extension := text(data, unix.NFTA_MATCH_NAME); extension {
		case "hashlimit", "recent", "quota", "connlimit", "rateest", "RATEEST":
			return "xtables extension " + extension + " starts anew: the kernel doesn't show what it counted"
		}
	}
	return ""
}
