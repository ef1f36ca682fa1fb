package ipset

import (
	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/nfnl"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Commands and the attributes of messages (linux/netfilter/ipset/ip_set.h).
const (
	subsystem = unix.NFNL_SUBSYS_IPSET << 8

	cmdProtocol = 1
	cmdCreate   = 2
	cmdDestroy  = 3
	cmdFlush    = 4
	cmdList     = 7
	cmdAdd      = 9
	cmdDelete   = 10
	cmdType     = 13
	cmdByName   = 14

	attrProtocol    = 1
	attrSetname     = 2
	attrTypename    = 3
	attrRevision    = 4
	attrFamily      = 5
	attrData        = 7
	attrList        = 8 // IPSET_ATTR_ADT
	attrLine        = 9
	attrProtocolMin = 10
	attrIndex       = 11
)

// Attributes of a set or an element, in IPSET_ATTR_DATA.
const (
	dataIP      = 1
	dataIPTo    = 2
	dataCIDR    = 3
	dataPort    = 4
	dataPortTo  = 5
	dataTimeout = 6
	dataProto   = 7
	dataFlags   = 8
	dataMark    = 10

	dataMarkmask = 11
	dataBitmask  = 12

	setInitval    = 17
	setHashsize   = 18
	setMaxelem    = 19
	setNetmask    = 20
	setBucketsize = 21
	setSize       = 23
	setElements   = 24
	setReferences = 25
	setMemsize    = 26

	elemEther   = 17
	elemName    = 18
	elemIP2     = 20
	elemCIDR2   = 21
	elemIP2To   = 22
	elemIface   = 23
	elemBytes   = 24
	elemPackets = 25
	elemComment = 26

	addrV4 = 1
	addrV6 = 2

	flagNomatch = 1 << 2 // IPSET_FLAG_NOMATCH
)

// Message types of a capture.
const (
	typeSet     = subsystem | cmdCreate
	typeElement = subsystem | cmdAdd
)

// The versions of the protocol that this package speaks. Version 7 came with Linux 4.20 and added the numbers of
// sets.
const (
	protocolMax = 7
	protocolMin = 6
)

// request returns a message with attributes.
func request(typ uint16, attrs []byte) rawnl.Message {
	return rawnl.Message{Type: typ, Data: append([]byte{unix.AF_INET, unix.NFNETLINK_V0, 0, 0}, attrs...)}
}

// about returns the attributes with which every message about a set begins.
func about(protocol byte, set []byte) []byte {
	return rawnl.AppendAttr(rawnl.AppendAttr(nil, attrProtocol, []byte{protocol}), attrSetname, set)
}

func nameOf(m rawnl.Message) string { return rawnl.CString(rawnl.Get(nfnl.Attrs(m), attrSetname)) }
