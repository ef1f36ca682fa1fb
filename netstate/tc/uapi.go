package tc

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Message types (linux/rtnetlink.h). That of the request for a dump is two higher.
const (
	typeQdisc  = unix.RTM_NEWQDISC
	typeClass  = unix.RTM_NEWTCLASS
	typeFilter = unix.RTM_NEWTFILTER
	typeAction = unix.RTM_NEWACTION
	typeChain  = 100 // RTM_NEWCHAIN
	get        = 2
)

// Attributes of a qdisc, class, filter or chain (linux/rtnetlink.h).
const (
	tcaKind         = 1
	tcaOptions      = 2
	tcaStats        = 3
	tcaXStats       = 4
	tcaStats2       = 7
	tcaStab         = 8
	tcaPad          = 9
	tcaChain        = 11
	tcaHWOffload    = 12
	tcaIngressBlock = 13
	tcaEgressBlock  = 14
	tcaWarning      = 16

	statsRateEst = 2 // TCA_STATS_RATE_EST in TCA_STATS2

	stabBase = 1
	stabData = 2
)

// Attributes of actions (linux/pkt_cls.h, linux/rtnetlink.h).
const (
	rootTab       = 1
	rootFlags     = 2
	flagLargeDump = 1

	actKind        = 1
	actOptions     = 2
	actIndex       = 3
	actStats       = 4
	actPad         = 5
	actUsedHWStats = 9
	actInHWCount   = 10

	gateEntries = 5

	policeTBF  = 1
	policeRate = 2
	policePeak = 3
	policeTM   = 6

	policeRateSpec = 20 // offsets in struct tc_police
	policePeakSpec = 32
	policeGeneral  = 44
	policeLen      = 56
)

// Attributes of qdiscs (linux/pkt_sched.h).
const (
	redParms          = 1 // those of choke have the same numbers
	redStab           = 2
	redFlags          = 4
	redEarlyDropBlock = 5
	redMarkBlock      = 6

	htbInit = 2

	tbfParms  = 1
	tbfRate64 = 4
	tbfBurst  = 6

	taprioAdminSched = 7

	codelTarget      = 1 // those of fq_codel have the same numbers
	codelInterval    = 3
	codelThreshold   = 5
	fqCodelThreshold = 7
	pieTarget        = 1
	fqPieTarget      = 3

	mqprioLen = 84 // struct tc_mqprio_qopt, aligned
	mqprioHW  = 17
)

// Values of struct tcmsg (linux/pkt_sched.h, linux/rtnetlink.h).
const (
	root       = 0xffffffff // TC_H_ROOT
	ingress    = 0xfffffff1 // TC_H_INGRESS, TC_H_CLSACT
	clsIngress = 0xfffffff2 // TC_H_CLSACT with TC_H_MIN_INGRESS
	clsEgress  = 0xfffffff3 // TC_H_CLSACT with TC_H_MIN_EGRESS
	blockMagic = -1         // TCM_IFINDEX_MAGIC_BLOCK: tcm_parent is the number of a shared block
)

const (
	tcmsgLen  = 20
	tcamsgLen = 4
)

// tcmsg is struct tcmsg.
type tcmsg struct {
	index  int32  // of the device, or blockMagic
	handle uint32 // of the object
	parent uint32 // where it is attached; of filters of a shared block, the number of the block
	info   uint32 // of a filter: priority and protocol; of others nothing that is set
}

func header(m rawnl.Message) tcmsg {
	if len(m.Data) < tcmsgLen {
		return tcmsg{}
	}
	return tcmsg{
		index:  int32(binary.NativeEndian.Uint32(m.Data[4:])),
		handle: binary.NativeEndian.Uint32(m.Data[8:]),
		parent: binary.NativeEndian.Uint32(m.Data[12:]),
		info:   binary.NativeEndian.Uint32(m.Data[16:]),
	}
}

// message returns a message of a type with header and attributes.
func message(typ uint16, h tcmsg, attrs []byte) rawnl.Message {
	b := make([]byte, tcmsgLen, tcmsgLen+len(attrs))
	binary.NativeEndian.PutUint32(b[4:], uint32(h.index))
	binary.NativeEndian.PutUint32(b[8:], h.handle)
	binary.NativeEndian.PutUint32(b[12:], h.parent)
	binary.NativeEndian.PutUint32(b[16:], h.info)
	return rawnl.Message{Type: typ, Data: append(b, attrs...)}
}

// headerLen returns the size of the fixed header of a type of message.
func headerLen(typ uint16) int {
	if typ == typeAction {
		return tcamsgLen
	}
	return tcmsgLen
}

func attrsOf(m rawnl.Message) []byte {
	if n := headerLen(m.Type); len(m.Data) >= n {
		return m.Data[n:]
	}
	return nil
}

func kindOf(m rawnl.Message) string { return rawnl.CString(rawnl.Get(attrsOf(m), tcaKind)) }

func u32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// classifier says where a kind of filter keeps what is common to all: the actions, an action in the form of
// the time before there were actions, the flags, and the counters.
type classifier struct {
	actions, police, flags uint16
	counters               []uint16
}

// classifierOf returns the attribute numbers of a kind of filter (linux/pkt_cls.h).
func classifierOf(kind string) classifier {
	switch kind {
	case "u32":
		return classifier{actions: 7, police: 6, flags: 11, counters: []uint16{9, 12}}
	case "flower":
		return classifier{actions: 3, flags: 22, counters: []uint16{86}}
	case "matchall":
		return classifier{actions: 2, flags: 3, counters: []uint16{4, 5}}
	case "basic":
		return classifier{actions: 3, police: 4, counters: []uint16{5, 6}}
	case "fw":
		return classifier{actions: 4, police: 2}
	case "route":
		return classifier{actions: 6, police: 5}
	case "flow":
		return classifier{actions: 9, police: 10}
	case "cgroup":
		return classifier{actions: 1, police: 2}
	case "bpf":
		return classifier{actions: 1, police: 2, flags: 9}
	}
	return classifier{}
}

// flags of a filter that say what the hardware did with it (TCA_CLS_FLAGS_IN_HW, TCA_CLS_FLAGS_NOT_IN_HW).
const flagsInHW = 1<<2 | 1<<3

// u32 filters (TCA_U32_*).
const (
	u32Hash    = 2
	u32Link    = 3
	u32Divisor = 4

	u32RootTable = 0xfff00000 // TC_U32_ROOT
)

// Flower filters (TCA_FLOWER_KEY_*).
const (
	flowerEthType      = 8
	flowerVLANID       = 23
	flowerVLANPrio     = 24
	flowerVLANEthType  = 25
	flowerCVLANEthType = 79
)

// BPF filters (TCA_BPF_*) and actions (TCA_ACT_BPF_*).
const (
	bpfOpsLen  = 4
	bpfOps     = 5
	bpfFD      = 6
	bpfName    = 7
	bpfTag     = 10
	bpfID      = 11
	actBPFOps  = 4
	actBPFFD   = 5
	actBPFName = 6
	actBPFTag  = 8
	actBPFID   = 9
)

// countedBy returns the attributes in which an action of a kind tells when it was made and used, and how often
// (linux/tc_act/*.h).
func countedBy(kind string) []uint16 {
	switch kind {
	case "gact", "mirred", "bpf", "simple", "gate", "mpls", "pedit", "sample", "skbedit", "skbmod", "tunnel_key", "vlan":
		return []uint16{1}
	case "connmark", "csum", "ct", "ife", "nat":
		return []uint16{2}
	case "ctinfo":
		return []uint16{2, 8, 9, 10}
	case "police":
		return []uint16{policeTM}
	}
	return nil
}

// actionKinds lists the kinds of actions that the kernel has (net/sched/act_*.c).
func actionKinds() []string {
	return []string{
		"gact", "mirred", "police", "pedit", "simple", "skbedit", "csum", "vlan", "nat", "ct", "ctinfo", "tunnel_key",
		"connmark", "sample", "skbmod", "ife", "mpls", "gate", "bpf",
	}
}
