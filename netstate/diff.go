package netstate

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/iptables"
	"github.com/nsmigrate/nsmigrate/netstate/nftables"
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
// namespace and nobody altered, and the addresses that the kernel draws by lot.
func Diff(a, b *State) []Change {
	b = b.redrawn(a)
	a = a.redrawn(b) // where that of b is none
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
func identity(k Kind, m rawnl.Message) string { return string(appendIdentity(nil, k, m)) }

// appendIdentity appends what identity returns.
func appendIdentity(b []byte, k Kind, m rawnl.Message) []byte {
	m = normalize(k, m)
	return append(append(b, byte(m.Type), byte(m.Type>>8)), m.Data...)
}

func diffKind(k Kind, a, b *State) []Change {
	before, after := a.lasting(k), b.lasting(k)
	inBefore, inAfter := match(k, before, after)
	var changes []Change
	list := func(s, other *State, msgs []rawnl.Message, matched []bool, added bool) {
		names := s.names()
		var routes derived
		var addresses map[string]bool
		if k == KindRoute {
			routes, addresses = derive(s), other.identities(KindAddress)
		}
		for i, m := range msgs {
			if !matched[i] && (other != nil || !implicit(k, m)) && !spare(k, m) && !routes.explains(m, addresses) {
				changes = append(changes, Change{Kind: k.String(), Added: added, Text: describe(k, m, names)})
			}
		}
	}
	list(a, b, before, inBefore, false)
	list(b, a, after, inAfter, true)
	return changes
}

func (s *State) identities(k Kind) map[string]bool {
	ids := map[string]bool{}
	for _, m := range s.messages(k) {
		ids[identity(k, m)] = true
	}
	return ids
}

// match pairs the objects that two States have in common, and tells of each message whether it has a partner.
// Where order counts, of those that changed places as few as possible have none.
func match(k Kind, a, b []rawnl.Message) (inA, inB []bool) {
	inA, inB = make([]bool, len(a)), make([]bool, len(b))
	places := make(map[string][]int, len(a))
	for i, m := range a {
		key := identity(k, m)
		places[key] = append(places[key], i)
	}
	sequences := map[string][]pair{}
	for j, m := range b {
		key := identity(k, m)
		if len(places[key]) == 0 {
			continue
		}
		i := places[key][0]
		places[key] = places[key][1:]
		if seq := sequence(k, b, j); seq != "" {
			sequences[seq] = append(sequences[seq], pair{i, j})
		} else {
			inA[i], inB[j] = true, true
		}
	}
	for _, pairs := range sequences {
		for _, p := range increasing(pairs) {
			inA[p.a], inB[p.b] = true, true
		}
	}
	return inA, inB
}

// pair holds the places of one object in two lists.
type pair struct{ a, b int }

// sequence names the list in which an object's place has a meaning: a chain, the rules of one preference, the routes
// to one destination with one metric. It is empty for all others.
func sequence(k Kind, msgs []rawnl.Message, i int) string {
	m := msgs[i]
	switch k {
	case KindRoute:
		if i > 0 && sameList(msgs[i-1], m) || i+1 < len(msgs) && sameList(m, msgs[i+1]) {
			list, _ := routeListOf(m)
			return fmt.Sprint(list)
		}
	case KindNFTables:
		return nftables.Sequence(m)
	case KindRule:
		hdr, attrs, err := split(m, sizeofRuleHdr)
		if err != nil {
			return ""
		}
		pref, _ := rawnl.Find(attrs, unix.FRA_PRIORITY)
		return fmt.Sprint(hdr[0], pref)
	}
	return ""
}

// increasing returns a longest subsequence of pairs, which are sorted by b, that is sorted by a as well, from its end.
func increasing(pairs []pair) []pair {
	var ends []int // ends[n] is where the best subsequence of n+1 pairs ends
	before := make([]int, len(pairs))
	for i, p := range pairs {
		n, _ := slices.BinarySearchFunc(ends, p.a, func(end, a int) int { return pairs[end].a - a })
		before[i] = -1
		if n > 0 {
			before[i] = ends[n-1]
		}
		if n == len(ends) {
			ends = append(ends, i)
		} else {
			ends[n] = i
		}
	}
	if len(ends) == 0 {
		return nil
	}
	best := make([]pair, 0, len(ends))
	for i := ends[len(ends)-1]; i >= 0; i = before[i] {
		best = append(best, pairs[i])
	}
	return best
}

// lasting returns the messages of a kind as they are compared: without the entries of caches, which traffic
// adds and time removes (learned neighbours and forwarding entries), and each set element by itself.
func (s *State) lasting(k Kind) []rawnl.Message {
	msgs := s.messages(k)
	switch k {
	case KindNFTables:
		split := make([]rawnl.Message, 0, len(msgs))
		for _, m := range msgs {
			split = append(split, nftables.Split(m)...)
		}
		return split
	case KindNeigh, KindFDB:
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
	return msgs
}

// spare reports whether an object is a fallback device that nobody uses: one host has it and another has not.
func spare(k Kind, m rawnl.Message) bool {
	if k != KindLink {
		return false
	}
	l, err := parseLink(m)
	return err == nil && l.spare()
}

// implicit reports whether an object comes with every namespace: the loopback device, down; the rules for the
// tables local, main and default; the address labels of RFC 6724 as the kernel has them.
func implicit(k Kind, m rawnl.Message) bool {
	switch k {
	case KindLink:
		l, err := parseLink(m)
		return err == nil && l.loopback() && l.flags&iffUp == 0
	case KindRule:
		return slices.Contains([]string{
			"0: from all proto 2 lookup local", "32766: from all proto 2 lookup main", "32767: from all proto 2 lookup default",
			"0: inet6 from all proto 2 lookup local", "32766: inet6 from all proto 2 lookup main",
			"32767: ipmr from all proto 2 lookup default", "32767: ip6mr from all proto 2 lookup main",
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
	spares := s.spares()
	for _, c := range s.Sysctls {
		if (!c.Fresh || altered[c.Path]) && !spares[sysctlDevice(c.Path)] {
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
