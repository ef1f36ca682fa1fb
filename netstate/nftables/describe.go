package nftables

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/nfnl"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Describe renders a message as one line in nft's words: for objects close to nft's syntax, for rules the
// list of expressions as `nft --debug=netlink` shows them. It takes any message and is meant for people;
// two different messages can have the same line.
func Describe(m rawnl.Message) string {
	b := nfnl.Attrs(m)
	switch kindOf(m) {
	case unix.NFT_MSG_DELTABLE, unix.NFT_MSG_DELRULE, unix.NFT_MSG_DELOBJ, unix.NFT_MSG_DELSETELEM:
		made := m
		made.Type -= 2 // each kind of object has three: to make, get and delete one
		return nameOf(made)
	case unix.NFT_MSG_NEWTABLE:
		return nameOf(m) + describeTable(b)
	case unix.NFT_MSG_NEWCHAIN:
		return nameOf(m) + describeChain(nfnl.Family(m), b)
	case unix.NFT_MSG_NEWRULE:
		return nameOf(m) + describeExprs(rawnl.Get(b, unix.NFTA_RULE_EXPRESSIONS)) + describeCompat(b) +
			describeComment(rawnl.Get(b, unix.NFTA_RULE_USERDATA))
	case unix.NFT_MSG_NEWSET:
		return nameOf(m) + describeSet(b)
	case unix.NFT_MSG_NEWSETELEM:
		return nameOf(m) + describeElements(rawnl.Get(b, unix.NFTA_SET_ELEM_LIST_ELEMENTS))
	case unix.NFT_MSG_NEWOBJ:
		kind := objectName(nfnl.Number(rawnl.Get(b, unix.NFTA_OBJ_TYPE)))
		return nameOf(m) + " { " + describeFields(strings.ReplaceAll(kind, " ", "_"), rawnl.Get(b, unix.NFTA_OBJ_DATA)) + " }" +
			describeComment(rawnl.Get(b, objUserdata))
	case unix.NFT_MSG_NEWFLOWTABLE:
		return nameOf(m) + describeHook(nfnl.Family(m), rawnl.Get(b, flowtableHook))
	}
	return fmt.Sprintf("nftables message %#x", m.Type)
}

// nameOf returns the object's noun and name: "chain ip filter input".
func nameOf(m rawnl.Message) string {
	b := nfnl.Attrs(m)
	parts := []string{nounOf(kindOf(m)), familyName(nfnl.Family(m)), tableOf(m)}
	switch kindOf(m) {
	case unix.NFT_MSG_NEWCHAIN:
		parts = append(parts, textOrID(b, unix.NFTA_CHAIN_NAME, chainID))
	case unix.NFT_MSG_NEWRULE:
		parts = append(parts, textOrID(b, unix.NFTA_RULE_CHAIN, ruleChainID))
	case unix.NFT_MSG_NEWSET:
		parts = append(parts, text(b, unix.NFTA_SET_NAME))
	case unix.NFT_MSG_NEWSETELEM:
		parts = append(parts, text(b, unix.NFTA_SET_ELEM_LIST_SET))
	case unix.NFT_MSG_NEWOBJ:
		parts[0] = objectName(nfnl.Number(rawnl.Get(b, unix.NFTA_OBJ_TYPE)))
		parts = append(parts, text(b, unix.NFTA_OBJ_NAME))
	case unix.NFT_MSG_NEWFLOWTABLE:
		parts = append(parts, text(b, flowtableName))
	}
	return strings.Join(parts, " ")
}

// textOrID returns a name, or "#N" for what goes by a number within its transaction.
func textOrID(b []byte, name, id uint16) string {
	if n := rawnl.Get(b, name); n != nil {
		return rawnl.CString(n)
	}
	return "#" + strconv.FormatUint(nfnl.Number(rawnl.Get(b, id)), 10)
}

func nounOf(kind uint16) string {
	switch kind {
	case unix.NFT_MSG_NEWTABLE:
		return "table"
	case unix.NFT_MSG_NEWCHAIN:
		return "chain"
	case unix.NFT_MSG_NEWRULE:
		return "rule"
	case unix.NFT_MSG_NEWSET:
		return "set"
	case unix.NFT_MSG_NEWSETELEM:
		return "element"
	case unix.NFT_MSG_NEWOBJ:
		return "object"
	case unix.NFT_MSG_NEWFLOWTABLE:
		return "flowtable"
	}
	return fmt.Sprintf("message %d", kind)
}

func familyName(family byte) string {
	switch family {
	case unix.NFPROTO_INET:
		return "inet"
	case unix.NFPROTO_IPV4:
		return "ip"
	case unix.NFPROTO_IPV6:
		return "ip6"
	case unix.NFPROTO_ARP:
		return "arp"
	case unix.NFPROTO_BRIDGE:
		return "bridge"
	case unix.NFPROTO_NETDEV:
		return "netdev"
	}
	return ""
}

func objectName(kind uint64) string {
	return pick(kind, "object", "counter", "quota", "ct helper", "limit", "ct limit", "tunnel", "ct timeout", "secmark", "ct expectation", "synproxy")
}

// pick returns the name of an enumerator, or its number.
func pick(v uint64, names ...string) string {
	if v < uint64(len(names)) {
		return names[v]
	}
	return strconv.FormatUint(v, 10)
}

// flagNames lists the flags that are set, bit 0 first.
func flagNames(v uint64, names ...string) string {
	var set []string
	for i, name := range names {
		if v&(1<<i) != 0 && name != "" {
			set = append(set, name)
		}
	}
	return strings.Join(set, ",")
}

func describeTable(b []byte) string {
	var s string
	if flags := flagNames(nfnl.Number(rawnl.Get(b, unix.NFTA_TABLE_FLAGS)), "dormant", "owner", "persist"); flags != "" {
		s = " { flags " + flags + "; }"
	}
	return s + describeComment(rawnl.Get(b, tableUserdata))
}

func describeChain(family byte, b []byte) string {
	comment := describeComment(rawnl.Get(b, chainUserdata))
	hook := rawnl.Get(b, unix.NFTA_CHAIN_HOOK)
	if hook == nil {
		return comment
	}
	s := " { type " + text(b, unix.NFTA_CHAIN_TYPE) + describeHook(family, hook)
	if policy := rawnl.Get(b, unix.NFTA_CHAIN_POLICY); policy != nil {
		s += " policy " + pick(nfnl.Number(policy), "drop", "accept") + ";"
	}
	if counters := rawnl.Get(b, unix.NFTA_CHAIN_COUNTERS); counters != nil {
		s += " counter " + describeFields("counter", counters) + ";"
	}
	return s + " }" + comment
}

func describeHook(family byte, hook []byte) string {
	s := " hook " + hookName(family, nfnl.Number(rawnl.Get(hook, unix.NFTA_HOOK_HOOKNUM)))
	devs := rawnl.Get(hook, hookDevs)
	if devs == nil {
		devs = rawnl.Get(hook, 3) // NFTA_FLOWTABLE_HOOK_DEVS, or a chain's one NFTA_HOOK_DEV
	}
	var names []string
	for a := range rawnl.Each(devs) {
		if a.Kind() == 1 || a.Kind() == 2 { // NFTA_DEVICE_NAME, NFTA_DEVICE_PREFIX
			names = append(names, rawnl.CString(a.Data))
		}
	}
	if len(names) > 0 {
		s += " devices = { " + strings.Join(names, ", ") + " }"
	}
	return s + fmt.Sprintf(" priority %d;", int32(nfnl.Number(rawnl.Get(hook, unix.NFTA_HOOK_PRIORITY))))
}

func hookName(family byte, hook uint64) string {
	switch family {
	case unix.NFPROTO_NETDEV:
		return pick(hook, "ingress", "egress")
	case unix.NFPROTO_ARP:
		return pick(hook, "input", "output", "forward")
	default:
		return pick(hook, "prerouting", "input", "forward", "output", "postrouting", "ingress")
	}
}

func describeSet(b []byte) string {
	flags := nfnl.Number(rawnl.Get(b, unix.NFTA_SET_FLAGS))
	s := fmt.Sprintf(" { type %#x len %d;", nfnl.Number(rawnl.Get(b, unix.NFTA_SET_KEY_TYPE)), nfnl.Number(rawnl.Get(b, unix.NFTA_SET_KEY_LEN)))
	if names := flagNames(flags, "anonymous", "constant", "interval", "map", "timeout", "dynamic", "object", "concat", "expr"); names != "" {
		s += " flags " + names + ";"
	}
	if flags&unix.NFT_SET_MAP != 0 {
		s += fmt.Sprintf(" data %#x len %d;", nfnl.Number(rawnl.Get(b, unix.NFTA_SET_DATA_TYPE)), nfnl.Number(rawnl.Get(b, unix.NFTA_SET_DATA_LEN)))
	}
	if flags&unix.NFT_SET_OBJECT != 0 {
		s += " objects " + objectName(nfnl.Number(rawnl.Get(b, unix.NFTA_SET_OBJ_TYPE))) + ";"
	}
	if size := rawnl.Get(rawnl.Get(b, unix.NFTA_SET_DESC), unix.NFTA_SET_DESC_SIZE); size != nil {
		s += fmt.Sprintf(" size %d;", nfnl.Number(size))
	}
	if timeout := rawnl.Get(b, unix.NFTA_SET_TIMEOUT); timeout != nil {
		s += fmt.Sprintf(" timeout %dms;", nfnl.Number(timeout))
	}
	if gc := rawnl.Get(b, unix.NFTA_SET_GC_INTERVAL); gc != nil {
		s += fmt.Sprintf(" gc-interval %dms;", nfnl.Number(gc))
	}
	return s + describeStateful(rawnl.Get(b, setExpr), rawnl.Get(b, setExpressions)) + " }"
}

// describeStateful renders the expressions that a set attaches to its elements.
func describeStateful(one, list []byte) string {
	if one != nil {
		return " " + describeExpr(one, 0)
	}
	return describeExprs(list)
}

// elementsShown bounds the elements in one line.
const elementsShown = 8

func describeElements(list []byte) string {
	var shown []string
	n := 0
	for e := range rawnl.Each(list) {
		if n++; n <= elementsShown {
			shown = append(shown, describeElement(e.Data))
		}
	}
	if n > elementsShown {
		shown = append(shown, fmt.Sprintf("... %d more", n-elementsShown))
	}
	return " { " + strings.Join(shown, ", ") + " }"
}

func describeElement(b []byte) string {
	s := "*"
	flags := nfnl.Number(rawnl.Get(b, unix.NFTA_SET_ELEM_FLAGS))
	if flags&elemFlagCatchall == 0 {
		s = describeData(rawnl.Get(b, unix.NFTA_SET_ELEM_KEY))
	}
	if end := rawnl.Get(b, elemKeyEnd); end != nil {
		s += "-" + describeData(end)
	}
	if flags&unix.NFT_SET_ELEM_INTERVAL_END != 0 {
		s += " end"
	}
	if timeout := rawnl.Get(b, unix.NFTA_SET_ELEM_TIMEOUT); timeout != nil {
		s += fmt.Sprintf(" timeout %dms", nfnl.Number(timeout))
	}
	if expires := rawnl.Get(b, unix.NFTA_SET_ELEM_EXPIRATION); expires != nil {
		s += fmt.Sprintf(" expires %dms", nfnl.Number(expires))
	}
	s += describeStateful(rawnl.Get(b, unix.NFTA_SET_ELEM_EXPR), rawnl.Get(b, elemExpressions))
	if data := rawnl.Get(b, unix.NFTA_SET_ELEM_DATA); data != nil {
		s += " : " + describeData(data)
	}
	if name := rawnl.Get(b, unix.NFTA_SET_ELEM_OBJREF); name != nil {
		s += " : " + strconv.Quote(rawnl.CString(name))
	}
	return s + describeComment(rawnl.Get(b, unix.NFTA_SET_ELEM_USERDATA))
}

// describeData renders struct nft_data: a value in hexadecimal, or a verdict.
func describeData(b []byte) string {
	if verdict := rawnl.Get(b, unix.NFTA_DATA_VERDICT); verdict != nil {
		code := int32(nfnl.Number(rawnl.Get(verdict, unix.NFTA_VERDICT_CODE)))
		switch code {
		case unix.NFT_CONTINUE:
			return "continue"
		case unix.NFT_BREAK:
			return "break"
		case unix.NFT_JUMP:
			return "jump " + textOrID(verdict, unix.NFTA_VERDICT_CHAIN, verdictChainID)
		case unix.NFT_GOTO:
			return "goto " + textOrID(verdict, unix.NFTA_VERDICT_CHAIN, verdictChainID)
		case unix.NFT_RETURN:
			return "return"
		}
		return pick(uint64(uint32(code)), "drop", "accept", "stolen", "queue", "repeat")
	}
	return "0x" + hex.EncodeToString(rawnl.Get(b, unix.NFTA_DATA_VALUE))
}

// describeCompat renders the protocol that only a plan carries.
func describeCompat(rule []byte) string {
	compat := rawnl.Get(rule, unix.NFTA_RULE_COMPAT)
	if compat == nil {
		return ""
	}
	not := ""
	if nfnl.Number(rawnl.Get(compat, unix.NFTA_RULE_COMPAT_FLAGS))&compatFlagInverted != 0 {
		not = "!"
	}
	return fmt.Sprintf(" compat %s%d", not, nfnl.Number(rawnl.Get(compat, unix.NFTA_RULE_COMPAT_PROTO)))
}

// describeComment finds a comment in user data, which libnftnl writes as entries of type, length, value.
func describeComment(b []byte) string {
	const comment = 0 // the type of a comment, of tables, chains, rules, sets and objects alike
	for len(b) >= 2 && len(b) >= 2+int(b[1]) {
		if b[0] == comment {
			return " comment " + strconv.Quote(rawnl.CString(b[2:2+int(b[1])]))
		}
		b = b[2+int(b[1]):]
	}
	return ""
}

func describeExprs(list []byte) string {
	var s strings.Builder
	for e := range rawnl.Each(list) {
		s.WriteByte(' ')
		s.WriteString(describeExpr(e.Data, 0))
	}
	return s.String()
}

func describeExpr(expr []byte, depth int) string {
	name := rawnl.CString(rawnl.Get(expr, unix.NFTA_EXPR_NAME))
	data := rawnl.Get(expr, unix.NFTA_EXPR_DATA)
	s := "[ " + name
	if fields := describeFields(name, data); fields != "" {
		s += " " + fields
	}
	if depth > depthMax {
		return s + " ... ]"
	}
	switch name {
	case "dynset":
		if one := rawnl.Get(data, unix.NFTA_DYNSET_EXPR); one != nil {
			s += " " + describeExpr(one, depth+1)
		}
		for e := range rawnl.Each(rawnl.Get(data, dynsetExpressions)) {
			s += " " + describeExpr(e.Data, depth+1)
		}
	case "inner":
		if one := rawnl.Get(data, innerExpr); one != nil {
			s += " " + describeExpr(one, depth+1)
		}
	}
	return s + " ]"
}

// form says how an attribute's value is written.
type form uint8

const (
	formUnknown form = iota
	formNumber
	formText
	formData
	formHex
	formSkip
)

// describeFields renders the attributes of an expression or object as "label value" in their order.
// Attributes that are not named here come as "N=0x...": nothing is left out.
func describeFields(name string, b []byte) string {
	var parts []string
	fields := fieldsOf(name)
	for a := range rawnl.Each(b) {
		f := field{label: strconv.Itoa(int(a.Kind())) + "=", form: formHex}
		if k := int(a.Kind()); k < len(fields) && fields[k].form != formUnknown {
			f = fields[k]
		}
		var value string
		switch f.form {
		case formSkip:
			continue
		case formNumber:
			value = pick(nfnl.Number(a.Data), f.names...)
		case formText:
			value = strconv.Quote(rawnl.CString(a.Data))
		case formData:
			value = describeData(a.Data)
		case formHex:
			value = "0x" + hex.EncodeToString(a.Data)
		}
		if f.label != "" && !strings.HasSuffix(f.label, "=") {
			parts = append(parts, f.label)
			f.label = ""
		}
		parts = append(parts, f.label+value)
	}
	return strings.Join(parts, " ")
}
