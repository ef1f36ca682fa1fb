package nftables

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Attribute types and flags of linux/netfilter/nf_tables.h that package unix lacks.
const (
	tableHandle   = 4
	tableUserdata = 6
	tableOwner    = 7

	chainFlags    = 10
	chainID       = 11
	chainUserdata = 12

	hookDevs = 4

	ruleChainID = 11

	setHandle      = 16
	setExpr        = 17
	setExpressions = 18
	setType        = 19
	setCount       = 20

	elemKeyEnd      = 10
	elemExpressions = 11

	verdictChainID = 3

	dynsetExpressions = 10
	innerExpr         = 5

	osfFlags = 3

	objHandle   = 6
	objUserdata = 8

	flowtableTable  = 1
	flowtableName   = 2
	flowtableHook   = 3
	flowtableUse    = 4
	flowtableHandle = 5
	flowtableFlags  = 7

	tableFlagOwner     = 0x2
	setFlagObject      = 0x40
	setFlagConcat      = 0x80
	chainFlagBinding   = 0x4
	quotaFlagDepleted  = 0x2
	compatFlagInverted = 0x2
	elemFlagCatchall   = 0x2
)

// nfgenLen is the size of struct nfgenmsg, which precedes the attributes of every message.
const nfgenLen = 4

func text(b []byte, kind uint16) string { return rawnl.CString(rawnl.Get(b, kind)) }

// number reads an integer of 1, 2, 4 or 8 bytes in network byte order, the only order nf_tables uses.
func number(b []byte) uint64 {
	switch {
	case len(b) >= 8:
		return binary.BigEndian.Uint64(b)
	case len(b) >= 4:
		return uint64(binary.BigEndian.Uint32(b))
	case len(b) >= 2:
		return uint64(binary.BigEndian.Uint16(b))
	case len(b) == 1:
		return uint64(b[0])
	}
	return 0
}

func appendUint32(b []byte, kind uint16, v uint32) []byte {
	return rawnl.AppendAttr(b, kind, binary.BigEndian.AppendUint32(make([]byte, 0, 4), v))
}

// openAttr starts an attribute whose payload the caller appends; closeAttr ends it.
func openAttr(b []byte, typ uint16) (out []byte, at int) {
	return rawnl.AppendAttr(b, typ, nil), len(b)
}

func closeAttr(b []byte, at int) {
	binary.NativeEndian.PutUint16(b[at:], uint16(len(b)-at))
}

// kindOf returns the message's nf_tables type (unix.NFT_MSG_NEWTABLE ...), without the subsystem.
func kindOf(m rawnl.Message) uint16 { return m.Type & 0xff }

func typeOf(kind uint16) uint16 { return unix.NFNL_SUBSYS_NFTABLES<<8 | kind }

// attrsOf returns the attributes of a message; none if it is too short for its header.
func attrsOf(m rawnl.Message) []byte {
	if len(m.Data) < nfgenLen {
		return nil
	}
	return m.Data[nfgenLen:]
}

func familyOf(m rawnl.Message) byte {
	if len(m.Data) == 0 {
		return 0
	}
	return m.Data[0]
}

// tableOf returns the name of the table that a message belongs to. Its attribute has the same type in
// all messages.
func tableOf(m rawnl.Message) string { return text(attrsOf(m), unix.NFTA_TABLE_NAME) }
