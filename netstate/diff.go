package netstate

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/iptables"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Change is one difference between two States. An object that was altered is two Changes.
type Change struct {
	Kind  string `json:"kind"`
	Added bool   `json:"added"` // the object is in the second State only; else in the first only
	Text  string `json:"text"`  // the object in the words of ip(8)
}

// String renders the change as a line of a diff.
func (c Change) String() string {
	sign := "-"
	if c.Added {
		sign = "+"
	}
	return fmt.Sprintf("%s %s %s", sign, c.Kind, c.Text)
}

// Diff returns what must be changed in a to make it b, kind by kind. nil is a fresh namespace. What changes
// without anybody setting it is left out, see [normalize]; so are parameters that each host gives to every
// namespace and nobody altered.
func Diff(a, b *State) []Change {
	var changes []Change
	for _, k := range kinds() {
		changes = append(changes, diffKind(k, a, b)...)
	}
	changes = append(changes, diffLines("sysctl", a.sysctlLines(b), b.sysctlLines(a))...)
	changes = append(changes, diffLines("iptables", a.tableLines(), b.tableLines())...)
	return changes
}

func (s *State) messages(k Kind) []rawnl.Message {
	if s == nil {
		return nil
	}
	return s.Messages[k]
}

// identity returns what two captures of the same object have in common.
func identity(k Kind, m rawnl.Message) string {
	m = normalize(k, m)
	return string([]byte{byte(m.Type), byte(m.Type >> 8)}) + string(m.Data)
}

func diffKind(k Kind, a, b *State) []Change {
	left := map[string]int{}
	for _, m := range a.lasting(k) {
		left[identity(k, m)]++
	}
	var added, removed []Change
	names := b.names()
	for _, m := range b.lasting(k) {
		key := identity(k, m)
		if left[key] > 0 {
			left[key]--
			continue
		}
		if a != nil || !implicit(k, m) {
			added = append(added, Change{Kind: k.String(), Added: true, Text: describe(k, m, names)})
		}
	}
	names = a.names()
	for _, m := range slices.Backward(a.lasting(k)) {
		key := identity(k, m)
		if left[key] > 0 {
			left[key]--
			if b != nil || !implicit(k, m) {
				removed = append(removed, Change{Kind: k.String(), Text: describe(k, m, names)})
			}
		}
	}
	slices.Reverse(removed)
	return append(removed, added...)
}

// lasting returns the messages of a kind without the entries of caches, which traffic adds and time removes:
// learned neighbours and forwarding entries.
func (s *State) lasting(k Kind) []rawnl.Message {
	msgs := s.messages(k)
	if k != KindNeigh && k != KindFDB {
		return msgs
	}
	return slices.DeleteFunc(slices.Clone(msgs), func(m rawnl.Message) bool {
		n, err := parseNeigh(m)
		if err != nil {
			return false
		}
		if k == KindFDB {
			return learnedFDB(&n)
		}
		return !n.permanent() && !n.proxy() && n.flags()&unix.NTF_EXT_LEARNED == 0
	})
}

// implicit reports whether an object comes with every namespace: the loopback device, down; the rules for the
// tables local, main and default; the address labels of RFC 6724 as the kernel has them.
func implicit(k Kind, m rawnl.Message) bool {
	switch k {
	case KindLink:
		l, err := parseLink(m)
		return err == nil && (l.loopback() || l.fallback()) && l.flags&iffUp == 0
	case KindRule:
		return slices.Contains([]string{
			"0: from all proto 2 lookup local", "32766: from all proto 2 lookup main", "32767: from all proto 2 lookup default",
			"0: inet6 from all proto 2 lookup local", "32766: inet6 from all proto 2 lookup main",
		}, describe(k, m, nil))
	case KindAddrLabel:
		return slices.Contains([]string{
			"prefix ::1 label 0 prefixlen 128", "prefix :: label 3 prefixlen 96", "prefix ::ffff:0.0.0.0 label 4 prefixlen 96",
			"prefix 2001:: label 6 prefixlen 32", "prefix 2001:10:: label 7 prefixlen 28", "prefix 3ffe:: label 12 prefixlen 16",
			"prefix 2002:: label 2 prefixlen 16", "prefix fec0:: label 11 prefixlen 10", "prefix fc00:: label 5 prefixlen 7",
			"prefix :: label 1 prefixlen 0",
		}, describe(k, m, nil))
	}
	return false
}

func diffLines(kind string, a, b []string) []Change {
	left := map[string]int{}
	for _, l := range a {
		left[l]++
	}
	var changes, added []Change
	for _, l := range b {
		if left[l] > 0 {
			left[l]--
		} else {
			added = append(added, Change{Kind: kind, Added: true, Text: l})
		}
	}
	for _, l := range a {
		if left[l] > 0 {
			left[l]--
			changes = append(changes, Change{Kind: kind, Text: l})
		}
	}
	return append(changes, added...)
}

// sysctlLines returns a line for each parameter that was altered here or in the other State.
func (s *State) sysctlLines(other *State) []string {
	if s == nil {
		return nil
	}
	altered := map[string]bool{}
	if other != nil {
		for _, c := range other.Sysctls {
			altered[c.Path] = !c.Fresh
		}
	}
	var lines []string
	for _, c := range s.Sysctls {
		if !c.Fresh || altered[c.Path] {
			lines = append(lines, sysctlName(c.Path)+" = "+c.Value)
		}
	}
	return lines
}

func (s *State) tableLines() []string {
	if s == nil {
		return nil
	}
	var lines []string
	for _, t := range s.Tables {
		for line := range strings.Lines(iptables.Normalize(t.Text)) {
			lines = append(lines, t.Tool+" "+strings.TrimSuffix(line, "\n"))
		}
	}
	return lines
}
