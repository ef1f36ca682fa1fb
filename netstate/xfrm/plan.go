package xfrm

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Plan turns a capture into the messages that make the same states and policies where there are none: settings, then
// states, then policies, the oldest first. What [Losses] names is left out. The error is [rawnl.ErrMalformed] if the
// messages can't be a capture.
func Plan(msgs []rawnl.Message) ([]rawnl.Message, error) {
	var settings, states, policies []rawnl.Message
	for _, m := range slices.Backward(msgs) {
		if err := Validate(m); err != nil {
			return nil, fmt.Errorf("plan xfrm: %w", err)
		}
		if unusable(m) != "" {
			continue
		}
		switch m.Type {
		case typeState:
			if proto := m.Data[stateProto]; proto == unix.IPPROTO_IPIP || proto == unix.IPPROTO_IPV6 {
				continue // the kernel makes it along with a state of IPComp (net/ipv4/ipcomp.c)
			}
			states = append(states, state(m))
		case typePolicy:
			m.Flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
			policies = append(policies, m)
		default:
			settings = append(settings, m)
		}
	}
	return slices.Concat(settings, states, policies), nil
}

// state returns the message that makes a state. What counts against its lifetimes is taken from an attribute only
// (xfrm_update_ae_params in net/xfrm/xfrm_user.c).
func state(m rawnl.Message) rawnl.Message {
	lifetime := m.Data[stateLifetime : stateLifetime+lifetimeLen]
	made := rewrite(m, func(a rawnl.Attr) (rawnl.Attr, bool) { return a, a.Kind() != attrLifetime && a.Kind() != attrOffload })
	made.Data = rawnl.AppendAttr(made.Data, attrLifetime, lifetime)
	made.Flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	return made
}

// Losses returns one line for each object of a capture that [Plan] leaves out or changes: what it is, starting with
// "xfrm", a colon and the reason.
func Losses(msgs []rawnl.Message) []string {
	var lines []string
	for _, m := range msgs {
		reason := unusable(m)
		if reason == "" && rawnl.Get(attrsOf(m), attrOffload) != nil {
			reason = "it is offloaded to hardware, which stays with its host; the kernel will do the work"
		}
		if reason != "" {
			lines = append(lines, "xfrm "+Describe(m)+": "+reason)
		}
	}
	return lines
}

// unusable returns why an object can't be made again; "" if it can be.
func unusable(m rawnl.Message) string {
	if len(m.Data) < HeaderLen(m.Type) {
		return ""
	}
	switch m.Type {
	case typePolicy:
		if m.Data[policyDir] > dirMax {
			return "it belongs to a socket"
		}
	case typeState:
		transforms, hidden := 0, false
		for a := range rawnl.Each(attrsOf(m)) {
			switch a.Kind() {
			case attrComp:
				transforms++
			case attrAuth, attrCrypt, attrAEAD, attrAuthTrunc:
				transforms++
				hidden = hidden || keyHidden(a)
			}
		}
		switch proto := m.Data[stateProto]; {
		case transforms == 0 && (proto == unix.IPPROTO_ESP || proto == unix.IPPROTO_AH || proto == unix.IPPROTO_COMP):
			return "it is still being negotiated"
		case hidden:
			return "the kernel is locked down and does not show its keys"
		}
	}
	return ""
}

// Sizes of struct xfrm_algo, and of struct xfrm_algo_auth and struct xfrm_algo_aead, without the key.
const (
	algoLen     = 68
	algoLongLen = 72
)

// keyOf returns the key of an algorithm.
func keyOf(a rawnl.Attr) []byte {
	n := algoLen
	if a.Kind() == attrAEAD || a.Kind() == attrAuthTrunc {
		n = algoLongLen
	}
	return a.Data[min(n, len(a.Data)):]
}

// keyHidden reports whether a key is all zero: the kernel shows it so when it is locked down for confidentiality.
func keyHidden(a rawnl.Attr) bool {
	key := keyOf(a)
	return len(key) > 0 && !slices.ContainsFunc(key, func(b byte) bool { return b != 0 })
}
