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

// CheckLink returns why a link can't be carried; false if it can be.
func CheckLink(m rawnl.Message) (Loss, bool) {
	l, err := parseLink(m)
	if err != nil {
		return Loss{}, false
	}
	return checkLink(&l)
}
