package conntrack

import (
	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Message types: those of connections and those of expectations have a subsystem each
// (linux/netfilter/nfnetlink_conntrack.h).
const (
	typeEntry     = unix.NFNL_SUBSYS_CTNETLINK << 8     // IPCTNL_MSG_CT_NEW
	typeExpect    = unix.NFNL_SUBSYS_CTNETLINK_EXP << 8 // IPCTNL_MSG_EXP_NEW
	requestGet    = 1
	requestDelete = 2
)

// enum ctattr_type.
const (
	ctaTupleOrig     = 1
	ctaTupleReply    = 2
	ctaStatus        = 3
	ctaProtoinfo     = 4
	ctaHelp          = 5
	ctaNATSrc        = 6
	ctaTimeout       = 7
	ctaMark          = 8
	ctaCountersOrig  = 9
	ctaCountersReply = 10
	ctaUse           = 11
	ctaID            = 12
	ctaNATDst        = 13
	ctaTupleMaster   = 14
	ctaSeqAdjOrig    = 15
	ctaSeqAdjReply   = 16
	ctaSecmark       = 17
	ctaZone          = 18
	ctaSecctx        = 19
	ctaTimestamp     = 20
	ctaLabels        = 22
	ctaSynproxy      = 24
)

// enum ctattr_tuple, ctattr_ip, ctattr_l4proto.
const (
	tupleIP    = 1
	tupleProto = 2
	tupleZone  = 3

	ipV4Src = 1
	ipV4Dst = 2
	ipV6Src = 3
	ipV6Dst = 4

	protoNum       = 1
	protoSrcPort   = 2
	protoDstPort   = 3
	protoICMPID    = 4
	protoICMPType  = 5
	protoICMPCode  = 6
	protoICMPv6ID  = 7
	protoICMPv6Typ = 8
	protoICMPv6Cod = 9
)

// enum ctattr_protoinfo, ctattr_protoinfo_tcp, ctattr_nat, ctattr_protonat, ctattr_help.
const (
	protoinfoTCP = 1

	tcpState      = 1
	tcpFlagsOrig  = 4
	tcpFlagsReply = 5

	natV4Min = 1
	natV4Max = 2
	natProto = 3
	natV6Min = 4
	natV6Max = 5

	natPortMin = 1
	natPortMax = 2

	helpName = 1
)

// enum ctattr_expect.
const (
	expectMaster  = 1
	expectTuple   = 2
	expectMask    = 3
	expectTimeout = 4
	expectID      = 5
	expectHelper  = 6
	expectZone    = 7
	expectNAT     = 10
)

// enum ip_conntrack_status.
const (
	statusExpected    = 1 << 0
	statusSeenReply   = 1 << 1
	statusAssured     = 1 << 2
	statusConfirmed   = 1 << 3
	statusSrcNAT      = 1 << 4
	statusDstNAT      = 1 << 5
	statusSeqAdjust   = 1 << 6
	statusSrcNATDone  = 1 << 7
	statusDstNATDone  = 1 << 8
	statusDying       = 1 << 9
	statusFixedTime   = 1 << 10
	statusTemplate    = 1 << 11
	statusUntracked   = 1 << 12
	statusHelper      = 1 << 13
	statusOffload     = 1 << 14
	statusHWOffload   = 1 << 15
	statusNotOurs     = statusExpected | statusDying | statusTemplate | statusUntracked | statusOffload | statusHWOffload
	tcpEstablished    = 3      // TCP_CONNTRACK_ESTABLISHED
	tcpFlagBeLiberal  = 1 << 3 // IP_CT_TCP_FLAG_*
	tcpFlagUnacked    = 1 << 4
	tcpFlagMaxACKSet  = 1 << 5
	tcpFlagChallenged = 1 << 6
)

// request returns a message of a family with attributes.
func request(typ uint16, family byte, attrs []byte) rawnl.Message {
	return rawnl.Message{Type: typ, Data: append([]byte{family, unix.NFNETLINK_V0, 0, 0}, attrs...)}
}
