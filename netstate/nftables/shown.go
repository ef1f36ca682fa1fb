package nftables

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/nfnl"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// hidden names the tables and chains of a capture that have more in them than it holds, one line each, in the order of
// the messages. A dump ends, without an error, at an object that is larger than a datagram: a rule with two dozen
// matches of u32, after which the kernel shows no rule of any chain. But it counts what uses a table or chain.
func hidden(msgs []rawnl.Message) []string {
	shown := map[owner]int{}
	var in owner // rules come chain by chain
	for _, m := range msgs {
		switch kindOf(m) {
		case unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_NEWSET, unix.NFT_MSG_NEWOBJ, unix.NFT_MSG_NEWFLOWTABLE:
			shown[ownerOf(m, nil)]++
		case unix.NFT_MSG_NEWRULE:
			if chain := rawnl.Get(nfnl.Attrs(m), unix.NFTA_RULE_CHAIN); !in.is(m, chain) {
				in = ownerOf(m, chain)
			}
			shown[in]++
		}
	}
	var jumps map[owner]int // to a chain, from rules and maps
	var lines []string
	for _, m := range msgs {
		attrs := nfnl.Attrs(m)
		var key owner
		var uses uint64
		switch kindOf(m) {
		case unix.NFT_MSG_NEWTABLE:
			key, uses = ownerOf(m, nil), nfnl.Number(rawnl.Get(attrs, unix.NFTA_TABLE_USE))
		case unix.NFT_MSG_NEWCHAIN:
			key, uses = ownerOf(m, rawnl.Get(attrs, unix.NFTA_CHAIN_NAME)), nfnl.Number(rawnl.Get(attrs, unix.NFTA_CHAIN_USE))
		default:
			continue
		}
		missing := int(uses) - shown[key]
		if missing > 0 && kindOf(m) == unix.NFT_MSG_NEWCHAIN {
			if jumps == nil {
				jumps = jumpsOf(msgs)
			}
			missing -= jumps[key]
			if nfnl.Number(rawnl.Get(attrs, chainFlags))&chainFlagBinding != 0 {
				missing-- // a rule that is bound to a chain counts twice (nf_tables_bind_chain)
			}
		}
		if missing > 0 {
			lines = append(lines, fmt.Sprintf("%s: the kernel does not show %d of the objects that use it, because one is larger than a netlink message", nameOf(m), missing))
		}
	}
	return lines
}

// owner is a chain within a namespace, or without its name a table.
type owner struct {
	family       byte
	table, chain string // with the zeros that end them
}

func ownerOf(m rawnl.Message, chain []byte) owner {
	return owner{nfnl.Family(m), string(rawnl.Get(nfnl.Attrs(m), unix.NFTA_TABLE_NAME)), string(chain)}
}

func (o *owner) is(m rawnl.Message, chain []byte) bool {
	return o.family == nfnl.Family(m) && o.chain == string(chain) && o.table == string(rawnl.Get(nfnl.Attrs(m), unix.NFTA_TABLE_NAME))
}

// jumpsOf counts the verdicts that name each chain.
func jumpsOf(msgs []rawnl.Message) map[owner]int {
	jumps := map[owner]int{}
	count := func(m rawnl.Message, data []byte) {
		if chain := rawnl.Get(rawnl.Get(data, unix.NFTA_DATA_VERDICT), unix.NFTA_VERDICT_CHAIN); chain != nil {
			jumps[ownerOf(m, chain)]++
		}
	}
	for _, m := range msgs {
		switch kindOf(m) {
		case unix.NFT_MSG_NEWRULE:
			for e := range rawnl.Each(rawnl.Get(nfnl.Attrs(m), unix.NFTA_RULE_EXPRESSIONS)) {
				if text(e.Data, unix.NFTA_EXPR_NAME) == "immediate" {
					count(m, rawnl.Get(rawnl.Get(e.Data, unix.NFTA_EXPR_DATA), unix.NFTA_IMMEDIATE_DATA))
				}
			}
		case unix.NFT_MSG_NEWSETELEM:
			for e := range rawnl.Each(rawnl.Get(nfnl.Attrs(m), unix.NFTA_SET_ELEM_LIST_ELEMENTS)) {
				count(m, rawnl.Get(e.Data, unix.NFTA_SET_ELEM_DATA))
			}
		}
	}
	return jumps
}
