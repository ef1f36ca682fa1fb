package netstate

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/conntrack"
	"github.com/nsmigrate/nsmigrate/netstate/genl"
	"github.com/nsmigrate/nsmigrate/netstate/ipset"
	"github.com/nsmigrate/nsmigrate/netstate/netfilter"
	"github.com/nsmigrate/nsmigrate/netstate/nftables"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
	"github.com/nsmigrate/nsmigrate/netstate/tc"
	"github.com/nsmigrate/nsmigrate/netstate/xfrm"
)

// item is one property of an object for people and programs. Its value is a string, a number or []item.
type item struct {
	key   string // in JSON
	word  string // in text, before the value; "" if the value stands alone
	value any
}

// form is how an attribute's bytes are shown.
type form int

const (
	formHex form = iota
	formNumber
	formBigEndian // a number in network order
	formString
	formAddr // an IP or link-layer address, by length
	formDev  // an interface index
	formNest
	formLabels // a stack of MPLS labels
)

// field describes one attribute. Attributes that no table names are shown by number, so that two different
// objects never look the same.
type field struct {
	attr  uint16
	name  string
	form  form
	inner []field
}

// items decodes attributes by a table.
func items(attrs []rawnl.Attr, fields []field, names linkNames) []item {
	list := make([]item, 0, len(attrs))
	for _, a := range attrs {
		f := field{attr: a.Kind(), name: fmt.Sprintf("attr%d", a.Kind())}
		for _, known := range fields {
			if known.attr == f.attr {
				f = known
			}
		}
		list = append(list, item{f.name, f.name, f.value(a.Data, names)})
	}
	return list
}

func (f *field) value(b []byte, names linkNames) any {
	switch f.form {
	case formNumber, formBigEndian:
		if v, ok := number(b, f.form == formBigEndian); ok {
			return v
		}
	case formString:
		return strings.TrimRight(string(b), "\x00")
	case formAddr:
		return addrText(b)
	case formDev:
		if len(b) == 4 {
			return names.of(int32(rawnl.Uint32(b)))
		}
	case formLabels:
		return labelText(b)
	case formNest:
		if attrs, err := rawnl.ParseAttrs(b); err == nil {
			return items(attrs, f.inner, names)
		}
	}
	return hex.EncodeToString(b)
}

func number(b []byte, bigEndian bool) (uint64, bool) {
	var order binary.ByteOrder = binary.NativeEndian
	if bigEndian {
		order = binary.BigEndian
	}
	switch len(b) {
	case 1:
		return uint64(b[0]), true
	case 2:
		return uint64(order.Uint16(b)), true
	case 4:
		return uint64(order.Uint32(b)), true
	case 8:
		return order.Uint64(b), true
	}
	return 0, false
}

func addrText(b []byte) string {
	if len(b) == 4 || len(b) == 16 {
		a, _ := netip.AddrFromSlice(b)
		return a.String()
	}
	if len(b) == 6 || len(b) == 8 {
		return net.HardwareAddr(b).String()
	}
	return hex.EncodeToString(b)
}

// labelText renders a stack of MPLS labels, which are in the upper 20 bits of 4 bytes each.
func labelText(b []byte) string {
	var labels []string
	for ; len(b) >= 4; b = b[4:] {
		labels = append(labels, fmt.Sprint(binary.BigEndian.Uint32(b)>>12))
	}
	return strings.Join(labels, "/")
}

// lineOf renders items as ip(8) does: words and values on one line.
func lineOf(list []item) string {
	var b strings.Builder
	writeItems(&b, list)
	return b.String()
}

func writeItems(b *strings.Builder, list []item) {
	for _, i := range list {
		if i.value == "" && i.word == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		if i.word != "" {
			b.WriteString(i.word)
			if i.value == "" {
				continue
			}
			b.WriteByte(' ')
		}
		if inner, ok := i.value.([]item); ok {
			b.WriteString("{")
			writeItems(b, inner)
			b.WriteString(" }")
			continue
		}
		fmt.Fprint(b, i.value)
	}
}

// object is a list of items as a JSON object. A key that comes twice makes an array.
type object []item

// MarshalJSON keeps the order of the items.
func (o object) MarshalJSON() ([]byte, error) {
	var keys []string
	values := map[string][]any{}
	for _, i := range o {
		if i.value == "" && i.word == "" {
			continue
		}
		v := i.value
		if inner, ok := v.([]item); ok {
			v = object(inner)
		}
		if v == "" {
			v = true
		}
		if _, ok := values[i.key]; !ok {
			keys = append(keys, i.key)
		}
		values[i.key] = append(values[i.key], v)
	}
	out := []byte{'{'}
	for n, key := range keys {
		if n > 0 {
			out = append(out, ',')
		}
		var v any = values[key]
		if len(values[key]) == 1 {
			v = values[key][0]
		}
		b, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		k, err := json.Marshal(key)
		if err != nil {
			return nil, err
		}
		out = append(append(append(out, k...), ':'), b...)
	}
	return append(out, '}'), nil
}

// decode returns the properties of a message of a kind.
func decode(kind Kind, m rawnl.Message, names linkNames) []item {
	switch kind {
	case KindNFTables:
		return []item{{"text", "", nftables.Describe(m)}}
	case KindConntrack:
		return []item{{"text", "", conntrack.Describe(m)}}
	case KindTC:
		return []item{{"text", "", tc.Describe(m, names.of)}}
	case KindIPSet:
		return []item{{"text", "", ipset.Describe(m)}}
	case KindXFRM:
		return []item{{"text", "", xfrm.Describe(m)}}
	case KindNetfilter:
		return []item{{"text", "", netfilter.Describe(m)}}
	case KindGeneric:
		return []item{{"text", "", genl.Describe(m, names.of)}}
	}
	size, _ := headerOf(kind)
	hdr, attrs, err := split(m, size)
	if err != nil || size == 0 {
		return []item{{"hex", "", hex.EncodeToString(m.Data)}}
	}
	switch kind {
	case KindLink, KindBridgeVLAN:
		return decodeLink(m, names)
	case KindAddress:
		return decodeAddressItems(m, names)
	case KindRoute:
		return decodeRoute(m, names)
	case KindNexthop:
		list := append([]item{{"family", "", familyText(hdr[0])}}, items(attrs, nexthopFields(), names)...)
		return append(list, item{"protocol", "proto", protoText(hdr[2])}, flagsItem(binary.NativeEndian.Uint32(hdr[4:]), nexthopFlags()))
	case KindRule:
		return decodeRule(hdr, attrs, names)
	case KindNeigh, KindFDB:
		return decodeNeigh(hdr, attrs, names)
	case KindMDB:
		list := []item{{"dev", "dev", names.of(int32(binary.NativeEndian.Uint32(hdr[4:])))}}
		return append(list, items(attrs, nil, names)...)
	case KindVLANOption, KindVNI:
		list := []item{{"dev", "dev", names.of(int32(binary.NativeEndian.Uint32(hdr[4:])))}}
		return append(list, items(attrs, nil, names)...)
	case KindAddrLabel:
		list := items(attrs, []field{{unix.IFAL_ADDRESS, "prefix", formAddr, nil}, {unix.IFAL_LABEL, "label", formNumber, nil}}, names)
		list = append(list, item{"prefixlen", "prefixlen", uint64(hdr[2])})
		if index := int32(binary.NativeEndian.Uint32(hdr[4:])); index != 0 {
			list = append(list, item{"dev", "dev", names.of(index)})
		}
		return list
	}
	return nil
}

// describe renders an object on one line.
func describe(kind Kind, m rawnl.Message, names linkNames) string {
	return lineOf(decode(kind, normalize(kind, m), names))
}

// text renders an operation in the words of ip(8).
func (o *Op) text(names linkNames) string {
	switch {
	case o.Tun != nil:
		return fmt.Sprintf("%s tuntap %s flags %#x user %d group %d", o.Verb, o.Tun.Name, o.Tun.Flags, int32(o.Tun.Owner), int32(o.Tun.Group))
	case o.Sysctl != nil:
		return fmt.Sprintf("%s sysctl %s = %s", o.Verb, sysctlName(o.Sysctl.Path), o.Sysctl.Value)
	case o.Kind == KindLink:
		if l, err := parseLink(o.Object); err == nil {
			return strings.TrimSuffix(fmt.Sprintf("%s link %s type %s", o.Verb, l.name, l.kind), " type ")
		}
	}
	return fmt.Sprintf("%s %s %s", o.Verb, o.Kind, describe(o.Kind, o.Object, names))
}

// flag names one bit.
type flag struct {
	bit  uint32
	name string
}

// flagsItem renders set bits by name, unknown ones in hex.
func flagsItem(v uint32, known []flag) item {
	var set []string
	for _, f := range known {
		if v&f.bit != 0 {
			set = append(set, f.name)
			v &^= f.bit
		}
	}
	if v != 0 {
		set = append(set, fmt.Sprintf("%#x", v))
	}
	return item{"flags", "", strings.Join(set, " ")}
}

func nexthopFlags() []flag {
	return []flag{{unix.RTNH_F_ONLINK, "onlink"}, {unix.RTNH_F_PERVASIVE, "pervasive"}, {unix.RTNH_F_DEAD, "dead"}, {unix.RTNH_F_LINKDOWN, "linkdown"}}
}

func familyText(f byte) string {
	switch f {
	case unix.AF_INET:
		return "inet"
	case unix.AF_INET6:
		return "inet6"
	case unix.AF_BRIDGE:
		return "bridge"
	case unix.AF_MPLS:
		return "mpls"
	case rtnlFamilyIPMR:
		return "ipmr"
	case rtnlFamilyIP6MR:
		return "ip6mr"
	case unix.AF_UNSPEC:
		return ""
	}
	return fmt.Sprintf("family%d", f)
}

// protoText names the origin of a route (rt_protos of iproute2 has the same names).
func protoText(p byte) string {
	switch p {
	case unix.RTPROT_UNSPEC:
		return "unspec"
	case unix.RTPROT_REDIRECT:
		return "redirect"
	case unix.RTPROT_KERNEL:
		return "kernel"
	case unix.RTPROT_BOOT:
		return "boot"
	case unix.RTPROT_STATIC:
		return "static"
	case unix.RTPROT_RA:
		return "ra"
	case unix.RTPROT_DHCP:
		return "dhcp"
	}
	return fmt.Sprint(p)
}

func tableText(t uint32) string {
	switch t {
	case unix.RT_TABLE_MAIN:
		return "main"
	case unix.RT_TABLE_LOCAL:
		return "local"
	case unix.RT_TABLE_DEFAULT:
		return "default"
	}
	return fmt.Sprint(t)
}

func scopeText(s byte) string {
	switch s {
	case unix.RT_SCOPE_UNIVERSE:
		return "global"
	case unix.RT_SCOPE_SITE:
		return "site"
	case unix.RT_SCOPE_LINK:
		return "link"
	case unix.RT_SCOPE_HOST:
		return "host"
	case unix.RT_SCOPE_NOWHERE:
		return "nowhere"
	}
	return fmt.Sprint(s)
}

func routeTypeText(t byte) string {
	names := []string{"unspec", "unicast", "local", "broadcast", "anycast", "multicast", "blackhole", "unreachable", "prohibit", "throw", "nat", "xresolve"}
	if int(t) < len(names) {
		return names[t]
	}
	return fmt.Sprintf("type%d", t)
}

// prefixText renders a destination with its prefix length, which is left out for host addresses.
func prefixText(attrs []rawnl.Attr, kind uint16, bits byte) string {
	b, ok := rawnl.Find(attrs, kind)
	if !ok {
		if bits == 0 {
			return ""
		}
		return fmt.Sprintf("0/%d", bits)
	}
	if int(bits) == 8*len(b) {
		return addrText(b)
	}
	return fmt.Sprintf("%s/%d", addrText(b), bits)
}

func decodeRoute(m rawnl.Message, names linkNames) []item {
	r, err := parseRoute(m)
	if err != nil {
		return nil
	}
	var list []item
	if r.typ() != unix.RTN_UNICAST {
		list = append(list, item{"type", "", routeTypeText(r.typ())})
	}
	attrs := r.list()
	dst := prefixText(attrs, unix.RTA_DST, r.hdr[1])
	if dst == "" {
		dst = "default"
	}
	if b := r.attr(unix.RTA_DST); b != nil && r.family() == unix.AF_MPLS {
		dst = labelText(b)
	}
	list = append(list, item{"dst", "", dst})
	if src := prefixText(attrs, unix.RTA_SRC, r.hdr[2]); src != "" {
		list = append(list, item{"from", "from", src})
	}
	if r.family() != unix.AF_INET {
		list = append(list, item{"family", "", familyText(r.family())})
	}
	if r.hdr[3] != 0 {
		list = append(list, item{"tos", "tos", fmt.Sprintf("%#x", r.hdr[3])})
	}
	rest := rawnl.Without(attrs, unix.RTA_DST, unix.RTA_SRC, unix.RTA_TABLE, unix.RTA_MULTIPATH, unix.RTA_PREF)
	list = append(list, items(rest, routeFields(), names)...)
	if b := r.attr(unix.RTA_PREF); len(b) == 1 && b[0] != 0 {
		list = append(list, item{"pref", "pref", []string{"medium", "high", "invalid", "low"}[b[0]&3]})
	}
	list = append(list, item{"table", "table", tableText(r.table())}, item{"protocol", "proto", protoText(r.protocol())})
	if r.scope() != unix.RT_SCOPE_UNIVERSE {
		list = append(list, item{"scope", "scope", scopeText(r.scope())})
	}
	list = append(list, flagsItem(binary.NativeEndian.Uint32(r.hdr[8:]), nexthopFlags()))
	return append(list, decodeMultipath(r.attr(unix.RTA_MULTIPATH), names)...)
}

func decodeMultipath(b []byte, names linkNames) []item {
	var list []item
	for b := range nexthopsOf(b) {
		var hop []item
		if attrs, err := rawnl.ParseAttrs(b[unix.SizeofRtNexthop:]); err == nil {
			hop = items(attrs, routeFields(), names)
		}
		hop = append(hop, item{"dev", "dev", names.of(int32(binary.NativeEndian.Uint32(b[4:])))}, item{"weight", "weight", uint64(b[3]) + 1},
			flagsItem(uint32(b[2]), nexthopFlags()))
		list = append(list, item{"nexthop", "nexthop", hop})
	}
	return list
}

func decodeAddressItems(m rawnl.Message, names linkNames) []item {
	a, err := parseAddress(m)
	if err != nil {
		return nil
	}
	addr, peer := a.local()
	own := fmt.Sprintf("%s/%d", addr, a.bits)
	list := []item{{"family", "", familyText(a.family)}}
	if peer.IsValid() {
		list = append(list, item{"local", "", addr.String()}, item{"peer", "peer", fmt.Sprintf("%s/%d", peer, a.bits)})
	} else {
		list = append(list, item{"local", "", own})
	}
	list = append(list, item{"dev", "dev", names.of(a.index)}, item{"scope", "scope", scopeText(a.scope)})
	list = append(list, items(rawnl.Without(a.attrs, unix.IFA_LOCAL, unix.IFA_ADDRESS, unix.IFA_FLAGS), addressFields(), names)...)
	return append(list, flagsItem(a.flags&^unix.IFA_F_PERMANENT, []flag{
		{unix.IFA_F_SECONDARY, "secondary"},
		{unix.IFA_F_NODAD, "nodad"},
		{unix.IFA_F_OPTIMISTIC, "optimistic"},
		{unix.IFA_F_DADFAILED, "dadfailed"},
		{unix.IFA_F_HOMEADDRESS, "home"},
		{unix.IFA_F_DEPRECATED, "deprecated"},
		{unix.IFA_F_TENTATIVE, "tentative"},
		{unix.IFA_F_MANAGETEMPADDR, "mngtmpaddr"},
		{unix.IFA_F_NOPREFIXROUTE, "noprefixroute"},
		{unix.IFA_F_MCAUTOJOIN, "autojoin"},
		{unix.IFA_F_STABLE_PRIVACY, "stable-privacy"},
	}))
}

func decodeRule(hdr []byte, attrs []rawnl.Attr, names linkNames) []item {
	list := []item{}
	if b, ok := rawnl.Find(attrs, unix.FRA_PRIORITY); ok {
		list = append(list, item{"priority", "", fmt.Sprintf("%d:", rawnl.Uint32(b))})
	} else {
		list = append(list, item{"priority", "", "0:"})
	}
	if hdr[0] != unix.AF_INET {
		list = append(list, item{"family", "", familyText(hdr[0])})
	}
	flags := binary.NativeEndian.Uint32(hdr[8:])
	if flags&fibRuleInvert != 0 {
		list = append(list, item{"not", "not", ""})
	}
	from := prefixText(attrs, unix.FRA_SRC, hdr[2])
	if from == "" {
		from = "all"
	}
	list = append(list, item{"src", "from", from})
	if to := prefixText(attrs, unix.FRA_DST, hdr[1]); to != "" {
		list = append(list, item{"dst", "to", to})
	}
	if hdr[3] != 0 {
		list = append(list, item{"tos", "tos", fmt.Sprintf("%#x", hdr[3])})
	}
	table := uint32(hdr[4])
	if b, ok := rawnl.Find(attrs, unix.FRA_TABLE); ok {
		table = rawnl.Uint32(b)
	}
	rest := rawnl.Without(attrs, unix.FRA_PRIORITY, unix.FRA_SRC, unix.FRA_DST, unix.FRA_TABLE)
	if b, ok := rawnl.Find(rest, unix.FRA_SUPPRESS_PREFIXLEN); ok && rawnl.Uint32(b) == 1<<32-1 {
		rest = rawnl.Without(rest, unix.FRA_SUPPRESS_PREFIXLEN) // none
	}
	list = append(list, items(rest, ruleFields(), names)...)
	actions := []string{"unspec", "", "goto", "nop", "", "", "blackhole", "unreachable", "prohibit"}
	if action := hdr[7]; int(action) < len(actions) {
		list = append(list, item{"action", "", actions[action]})
	} else {
		list = append(list, item{"action", "action", uint64(action)})
	}
	if table != 0 {
		list = append(list, item{"table", "lookup", tableText(table)})
	}
	return append(list, flagsItem(flags&^fibRuleInvert, []flag{{fibRulePermanent, "permanent"}, {fibRuleFindSaddr, "find-saddr"}}))
}

func decodeNeigh(hdr []byte, attrs []rawnl.Attr, names linkNames) []item {
	n := neighMsg{hdr: hdr}
	var list []item
	if n.family() == unix.AF_BRIDGE {
		lladdr, _ := rawnl.Find(attrs, unix.NDA_LLADDR)
		list = append(list, item{"lladdr", "", addrText(lladdr)})
		attrs = rawnl.Without(attrs, unix.NDA_LLADDR)
	} else {
		dst, _ := rawnl.Find(attrs, unix.NDA_DST)
		list = append(list, item{"dst", "", addrText(dst)})
		attrs = rawnl.Without(attrs, unix.NDA_DST)
	}
	if index := n.index(); index != 0 {
		list = append(list, item{"dev", "dev", names.of(index)})
	}
	list = append(list, items(attrs, neighFields(), names)...)
	state := flagsItem(uint32(n.state()), []flag{
		{unix.NUD_INCOMPLETE, "incomplete"},
		{unix.NUD_REACHABLE, "reachable"},
		{unix.NUD_STALE, "stale"},
		{unix.NUD_DELAY, "delay"},
		{unix.NUD_PROBE, "probe"},
		{unix.NUD_FAILED, "failed"},
		{unix.NUD_NOARP, "noarp"},
		{unix.NUD_PERMANENT, "permanent"},
	})
	state.key = "state"
	flags := flagsItem(uint32(n.flags()), []flag{
		{unix.NTF_USE, "use"},
		{unix.NTF_SELF, "self"},
		{unix.NTF_MASTER, "master"},
		{unix.NTF_PROXY, "proxy"},
		{unix.NTF_EXT_LEARNED, "extern_learn"},
		{unix.NTF_OFFLOADED, "offload"},
		{ntfSticky, "sticky"},
		{unix.NTF_ROUTER, "router"},
	})
	return append(list, state, flags)
}

func decodeLink(m rawnl.Message, names linkNames) []item {
	l, err := parseLink(m)
	if err != nil {
		return nil
	}
	list := []item{
		{"index", "", fmt.Sprintf("%d:", l.index)},
		{"name", "", l.name},
		flagsItem(l.flags, []flag{
			{iffUp, "up"},
			{iffDebug, "debug"},
			{iffLoopback, "loopback"},
			{iffNoTrailers, "notrailers"},
			{iffNoARP, "noarp"},
			{iffPromisc, "promisc"},
			{iffAllmulti, "allmulti"},
			{iffMulticast, "multicast"},
			{iffPortsel, "portsel"},
			{iffAutomedia, "automedia"},
			{iffDynamic, "dynamic"},
			{0x2, "broadcast"},
			{0x10, "pointopoint"},
			{0x40, "running"},
			{0x400, "master"},
			{0x800, "slave"},
			{0x10000, "lower_up"},
			{0x20000, "dormant"},
		}),
	}
	return append(list, items(rawnl.Without(l.attrs, unix.IFLA_IFNAME), linkFields(l.kind, l.slave), names)...)
}

// Render writes a State for people: a section for each kind, a line for each object.
func Render(w io.Writer, s *State) error {
	var b strings.Builder
	names := s.names()
	section := func(title string, lines []string) {
		if len(lines) == 0 {
			return
		}
		fmt.Fprintf(&b, "%s\n", title)
		for _, l := range lines {
			fmt.Fprintf(&b, "  %s\n", l)
		}
	}
	for _, k := range kinds() {
		var lines []string
		for _, m := range s.messages(k) {
			lines = append(lines, describe(k, m, names))
		}
		section(k.plural(), lines)
	}
	section("sysctls that were altered", s.sysctlLines(nil))
	section("legacy iptables", s.tableLines())
	if s != nil {
		var lines []string
		for i := range s.uplinks {
			lines = append(lines, s.uplinks[i].String())
		}
		section("uplinks", lines)
		lines = nil
		for _, l := range s.losses {
			lines = append(lines, l.String())
		}
		section("not carried", lines)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("render network state: %w", err)
	}
	return nil
}

// MarshalJSON returns the decoded view of a State, for programs that look at it. It can't be read back.
func (s *State) MarshalJSON() ([]byte, error) {
	view := map[string]any{}
	if s == nil {
		return json.Marshal(view)
	}
	names := s.names()
	for _, k := range kinds() {
		objects := make([]object, 0, len(s.Messages[k]))
		for _, m := range s.Messages[k] {
			objects = append(objects, decode(k, normalize(k, m), names))
		}
		view[strings.ReplaceAll(k.plural(), " ", "_")] = objects
	}
	view["kernel"] = s.Kernel
	altered := []Sysctl{}
	for _, c := range s.Sysctls {
		if !c.Fresh {
			altered = append(altered, c)
		}
	}
	view["sysctls"] = altered
	view["iptables"] = s.Tables
	uplinks := make([]object, len(s.uplinks))
	for i := range s.uplinks {
		uplinks[i] = s.uplinks[i].items()
	}
	view["uplinks"] = uplinks
	view["losses"] = s.losses
	return json.Marshal(view)
}

// items decodes an uplink.
func (u *Uplink) items() []item {
	list := []item{{"name", "", u.Name}, {"kind", "kind", u.Kind}}
	if !u.pair() {
		return append(list, item{"parent", "parent", u.Parent})
	}
	list = append(list, item{"peer", "peer", u.Peer}, item{"mac", "address", u.MAC}, item{"mtu", "mtu", uint64(u.MTU)})
	if u.Bridge != "" {
		list = append(list, item{"bridge", "master", u.Bridge})
	}
	if u.Up {
		list = append(list, item{"up", "up", ""})
	}
	names := linkNames{u.PeerIndex: u.Peer}
	for _, part := range []struct {
		kind Kind
		list [][]byte
	}{{KindAddress, u.Addresses}, {KindRoute, u.Routes}, {KindNeigh, u.Neighs}} {
		_, typ := headerOf(part.kind)
		for _, b := range part.list {
			m := normalize(part.kind, rawnl.Message{Type: typ, Data: b})
			list = append(list, item{part.kind.String(), part.kind.String(), decode(part.kind, m, names)})
		}
	}
	for _, c := range u.Sysctls {
		list = append(list, item{"sysctl", "sysctl", c.Name + "=" + c.Value})
	}
	return list
}

// String renders an uplink on one line.
func (u *Uplink) String() string { return lineOf(u.items()) }
