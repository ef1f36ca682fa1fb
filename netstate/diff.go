package netstate

import (
	"fmt"
	"slices"
	"strings"

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
	for _, m := range a.messages(k) {
		left[identity(k, m)]++
	}
	var added, removed []Change
	names := b.names()
	for _, m := range b.messages(k) {
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
	for _, m := range slices.Backward(a.messages(k)) {
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

// implicit reports whether an object comes with every namespace.
func implicit(Kind, rawnl.Message) bool { return false }

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
