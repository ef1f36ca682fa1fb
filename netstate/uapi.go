package netstate

// Constants of the kernel's uapi headers that golang.org/x/sys/unix lacks.
const (
	vethInfoPeer      = 1 // linux/veth.h
	vxcanInfoPeer     = 1 // linux/can/vxcan.h
	hsrProtocolPRP    = 1 // linux/if_link.h
	macvlanMacaddrSet = 3 // linux/if_link.h MACVLAN_MACADDR_SET

	vlanFlags     = 0x1f // linux/if_vlan.h enum vlan_flags, all of them
	iflaGRERemote = 7    // linux/if_tunnel.h IFLA_GRE_REMOTE

	iflaIPTunFlags = 8 // linux/if_tunnel.h IFLA_IPTUN_FLAGS
	sitISATAP      = 1

	rtmNewVLAN                = 112 // linux/rtnetlink.h
	rtmGetVLAN                = 114
	rtmNewTunnel              = 120
	rtmGetTunnel              = 122
	bridgeVLANInfoOnlyOptions = 1 << 7 // linux/if_bridge.h BRIDGE_VLAN_INFO_ONLY_OPTS, BRIDGE_VLANDB_*
	vlandbDumpFlags           = 1
	vlandbDumpGlobal          = 1 << 1
	vlandbEntry               = 1
	vlandbGlobalOptions       = 2
	vlandbInfo                = 1
	vlandbRange               = 2
	vlandbState               = 3
	vlandbMcastRouter         = 6
	vlandbMcastMaxGroups      = 8
	vlandbNeighSuppress       = 9
	vlandbGlobalID            = 1
	vlandbGlobalRange         = 2
	vxlanVNIFilterEntryStats  = 5 // linux/if_link.h

	bondModeRoundRobin   = 0 // linux/if_bonding.h
	bondModeActiveBackup = 1
	bondMode8023AD       = 4
	bondModeTLB          = 5
	bondModeALB          = 6

	rtextFilterBRVlan    = 1 << 1 // linux/rtnetlink.h RTEXT_FILTER_*
	rtextFilterSkipStats = 1 << 3
	rtextFilterMRP       = 1 << 4
	rtextFilterCFM       = 1 << 5
	rtextFilterMST       = 1 << 7

	ifaProto = 11 // linux/if_addr.h

	lwtunnelSEG6Local = 7 // linux/lwtunnel.h LWTUNNEL_ENCAP_SEG6_LOCAL
	seg6LocalBPF      = 8 // linux/seg6_local.h

	iflaProtoDownReason  = 55 // linux/if_link.h
	protoDownReasonValue = 2

	linkModeDormant = 1      // linux/if.h IF_LINK_MODE_DORMANT
	operDormant     = "\x05" // IF_OPER_DORMANT
	operUp          = "\x06" // IF_OPER_UP

	rtaNHID            = 30 // linux/rtnetlink.h
	sizeofRtaCacheinfo = 32

	nhaFDB      = 11 // linux/nexthop.h
	nhaResGroup = 12
	nhaOpFlags  = 14

	nhaResGroupUnbalancedTime = 4

	ndaProtocol    = 12 // linux/neighbour.h
	ndaNHID        = 13
	ndaFDBExtAttrs = 14
	ndaFlagsExt    = 15

	ntfSticky = 1 << 6

	fibRulePermanent = 1 // linux/fib_rules.h
	fibRuleInvert    = 2
	fibRuleFindSaddr = 0x10000

	iflaDPLLPin           = 65 // linux/if_link.h
	iflaMaxPacingHorizon  = 66
	iflaNetnsImmutable    = 67
	iflaHeadroom          = 68
	iflaTailroom          = 69
	iflaDevlinkPort       = 62
	iflaGSOIPv4MaxSize    = 63
	iflaGROIPv4MaxSize    = 64
	inet6AddrGenModeEUI64 = 0 // enum in6_addr_gen_mode
	inet6AddrGenModeNone  = 1

	mdbaMDB               = 1 // linux/if_bridge.h
	mdbaMDBEntry          = 1
	mdbaMDBEntryInfo      = 1
	mdbaSetEntry          = 1
	mdbaSetEntryAttrs     = 2
	mdbPermanent          = 1
	bridgeFlagsSelf       = 2 // BRIDGE_FLAGS_SELF
	iflaBridgeFlags       = 0
	iflaBridgeVlanInfo    = 2
	iflaBridgeVlanTunnel  = 3
	iflaBridgeMRP         = 4
	iflaBridgeCFM         = 5
	iflaBridgeMST         = 6
	sizeofBridgePortMsg   = 8  // struct br_port_msg
	sizeofBridgeMDBEntry  = 28 // struct br_mdb_entry
	mdbaMDBEattrTimer     = 1
	mdbaMDBEattrGroupMode = 3
	mdbaMDBEattrSource    = 4
	mdbaMDBEattrSrcList   = 2
	mdbaMDBEattrRtprot    = 5
	mdbeAttrSource        = 1
	mdbeAttrSrcList       = 2
	mdbeAttrGroupMode     = 3
	mdbeAttrRtprot        = 4
	mdbSourceAddress      = 1 // MDBA_MDB_SRCATTR_ADDRESS and MDBE_SRCATTR_ADDRESS

	rtnlFamilyIPMR  = 128 // linux/rtnetlink.h
	rtnlFamilyIP6MR = 129

	tunOwnerNone = 0xffffffff // linux/if_tun.h: no owner set
)

// settableFlags are the interface flags that a user sets; the others follow from the device.
const settableFlags = iffUp | iffDebug | iffNoTrailers | iffNoARP | iffPromisc | iffAllmulti | iffMulticast |
	iffPortsel | iffAutomedia | iffDynamic

// linux/if.h, typed for arithmetic with ifi_flags.
const (
	iffUp         uint32 = 0x1
	iffDebug      uint32 = 0x4
	iffLoopback   uint32 = 0x8
	iffNoTrailers uint32 = 0x20
	iffNoARP      uint32 = 0x80
	iffPromisc    uint32 = 0x100
	iffAllmulti   uint32 = 0x200
	iffMulticast  uint32 = 0x1000
	iffPortsel    uint32 = 0x2000
	iffAutomedia  uint32 = 0x4000
	iffDynamic    uint32 = 0x8000
)

// linux/rtnetlink.h, linux/pkt_sched.h.
const (
	sizeofTCMsg        = 20
	tcRoot      uint32 = 0xffffffff // the parent of a device's queueing discipline
)

// Attributes of linux/neighbour.h and linux/if_link.h: the parameters of neighbour tables and of devices.
const (
	sizeofNdtMsg       = 4
	ndtaParms          = 6
	ndtpaIfindex       = 1
	ndtpaRefcnt        = 2
	ndtpaReachableTime = 3
	iflaInetConf       = 1
	iflaInet6Conf      = 2
)
