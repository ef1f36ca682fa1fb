package netstate

import "github.com/nsmigrate/nsmigrate/netstate/rawnl"

// LinkKinds says of each kind of link that has a rule whether it is made again.
func LinkKinds() map[string]bool {
	kinds := map[string]bool{}
	for kind, rule := range linkKinds {
		kinds[kind] = rule.how != replayNo
	}
	return kinds
}

// FallbackKinds returns the names of the devices that the kernel makes in every namespace.
func FallbackKinds() map[string]string { return fallbackKinds }

// Kinds returns the kinds of objects.
func Kinds() []Kind { return kinds() }

// Sift names what of a dump's answer can't be made again, on links of the given kinds by index, and says how much is
// left.
func Sift(k Kind, msgs []rawnl.Message, kinds map[int32]string) (left int, losses []Loss) {
	names := linkNames{}
	for index, kind := range kinds {
		names[index] = kind + "0"
	}
	msgs, losses = sift(k, msgs, names, kinds)
	return len(msgs), losses
}

// HiddenQdiscs names the queueing disciplines of which links tell and a dump does not.
func HiddenQdiscs(links, qdiscs []rawnl.Message) ([]Loss, error) {
	all, err := (&State{Messages: map[Kind][]rawnl.Message{KindLink: links}}).links()
	return hiddenRoots(withoutRoot(all, qdiscs)), err
}

// CheckLink returns why a link can't be carried; false if it can be.
func CheckLink(m rawnl.Message) (Loss, bool) {
	l, err := parseLink(m)
	if err != nil {
		return Loss{}, false
	}
	return checkLink(&l)
}

// Redrawn returns pairs of addresses that the kernel drew by lot for the same bridge: in s, and in the other State.
func Redrawn(s, other *State) []string {
	links, _ := s.links()
	others, _ := other.links()
	to := drawn(others)
	var pairs []string
	for index, mac := range drawn(links) {
		if to[index] != nil {
			pairs = append(pairs, mac.String(), to[index].String())
		}
	}
	return pairs
}

// PlanUpdate decides how a namespace is updated, without one.
func PlanUpdate(old, next *State) ([]Batch, error) {
	if err := rebuilt(old, next); err != nil {
		return nil, err
	}
	return planUpdate(old, next, Site{})
}

// Lacking tells which attributes of a run another one lacks; ok is false if they differ in another way.
func Lacking(less, more []byte) (missing []string, ok bool) {
	return lackingAttrs(KindLink, less, more, "")
}
