package nftables

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/nfnl"
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

func text(b []byte, kind uint16) string { return rawnl.CString(rawnl.Get(b, kind)) }

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

// tableOf returns the name of the table that a message belongs to. Its attribute has the same type in
// all messages.
func tableOf(m rawnl.Message) string { return text(nfnl.Attrs(m), unix.NFTA_TABLE_NAME) }
