package netstate

import (
	"bytes"
	"hash/maphash"
	"iter"
	"slices"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// same reports whether two lists of messages are equal. It costs nothing if they are one list.
func same(a, b []rawnl.Message) bool {
	if len(a) != len(b) {
		return false
	}
	if len(a) == 0 || &a[0] == &b[0] {
		return true
	}
	for i := range a {
		if !equal(a[i], b[i]) {
			return false
		}
	}
	return true
}

func equal(a, b rawnl.Message) bool {
	return a.Type == b.Type && a.Flags == b.Flags && bytes.Equal(a.Data, b.Data)
}

// align goes through two captures of one kind side by side and yields the places of messages that are likely about
// the same object, and -1 in place of a partner that a message doesn't have. The places in each list are in order.
//
// Messages are taken for those of one object if their first bytes are equal, and else for want of a better one. Where
// that is wrong, nothing worse happens than that a difference is larger than it need be.
func align(a, b []rawnl.Message) iter.Seq2[int, int] {
	return func(yield func(i, j int) bool) {
		lead := 0
		for lead < len(a) && lead < len(b) && equal(a[lead], b[lead]) {
			if !yield(lead, lead) {
				return
			}
			lead++
		}
		tail := 0
		for tail < len(a)-lead && tail < len(b)-lead && equal(a[len(a)-1-tail], b[len(b)-1-tail]) {
			tail++
		}
		i, j := lead, lead
		next := func(p pair) bool { // the messages before p, which look like no others
			for i < p.a || j < p.b {
				x, y := i, j
				if i == p.a {
					x = -1
				}
				if j == p.b {
					y = -1
				}
				i, j = min(i+1, p.a), min(j+1, p.b)
				if !yield(x, y) {
					return false
				}
			}
			return true
		}
		for _, p := range partners(a[lead:len(a)-tail], b[lead:len(b)-tail]) {
			if p = (pair{p.a + lead, p.b + lead}); !next(p) || !yield(p.a, p.b) {
				return
			}
			i, j = p.a+1, p.b+1
		}
		if !next(pair{len(a) - tail, len(b) - tail}) {
			return
		}
		for ; i < len(a); i, j = i+1, j+1 {
			if !yield(i, j) {
				return
			}
		}
	}
}

// headLen is how many bytes of a message tell objects apart: the tuple of a connection of IPv6 is longest.
const headLen = 112

// partners pairs messages whose first bytes are equal, as many as there are in the same order in both lists.
func partners(a, b []rawnl.Message) []pair {
	if len(a) == 0 || len(b) == 0 {
		return nil
	}
	seed := maphash.MakeSeed()
	head := func(m rawnl.Message) uint64 { return maphash.Bytes(seed, m.Data[:min(headLen, len(m.Data))]) }
	first := make(map[uint64]int, len(a)) // place of the first message of a head that has no partner yet
	after := make([]int, len(a))          // place of the next one of the same head
	for i := len(a) - 1; i >= 0; i-- {
		h := head(a[i])
		next, ok := first[h]
		if !ok {
			next = -1
		}
		first[h], after[i] = i, next
	}
	var pairs []pair
	for j, m := range b {
		h := head(m)
		if i, ok := first[h]; ok && i >= 0 {
			first[h] = after[i]
			pairs = append(pairs, pair{i, j})
		}
	}
	pairs = increasing(pairs)
	slices.Reverse(pairs)
	return pairs
}

// unequal returns the messages of a that b does not have and those of b that a does not have, each in its order.
func unequal(a, b []rawnl.Message) (gone, come []rawnl.Message) {
	if same(a, b) {
		return nil, nil
	}
	for i, j := range align(a, b) {
		if i >= 0 && j >= 0 && equal(a[i], b[j]) {
			continue
		}
		if i >= 0 {
			gone = append(gone, a[i])
		}
		if j >= 0 {
			come = append(come, b[j])
		}
	}
	return gone, come
}
