package ipset

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/nsmigrate/nsmigrate/netstate/nfnl"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Change turns the difference of two captures, the messages that are gone and those that came, into the messages that
// make the same elements of sets that are there: elements are deleted and added, and those of which only the counters
// or the rest of their life changed are added once more, which sets both. next is the whole second capture; it has the
// order of sets of sets, which are filled anew.
//
// An element that is there already, or not there any more, is no error: the messages don't have NLM_F_EXCL.
//
// Sets themselves are not made and not destroyed: the error names the one for which that would be needed.
func Change(gone, come, next []rawnl.Message) ([]rawnl.Message, error) {
	for _, m := range come {
		if err := Validate(m); err != nil {
			return nil, fmt.Errorf("plan ipset: %w", err)
		}
	}
	if err := sameSets(gone, come); err != nil {
		return nil, err
	}
	altered := map[string]bool{}
	for _, m := range slices.Concat(gone, come) {
		altered[nameOf(m)] = altered[nameOf(m)] || m.Type == typeElement
	}
	// Sets of sets have an order, and their elements are few.
	var flushes []rawnl.Message
	anew := map[string]bool{}
	for _, m := range next {
		if name := nameOf(m); m.Type == typeSet && isList(m) && altered[name] {
			anew[name] = true
			protocol := rawnl.Get(nfnl.Attrs(m), attrProtocol)[0]
			flushes = append(flushes, request(subsystem|cmdFlush, about(protocol, rawnl.Get(nfnl.Attrs(m), attrSetname))))
		}
	}
	one := func(m rawnl.Message) bool { return m.Type == typeElement && !anew[nameOf(m)] }
	all := func(m rawnl.Message) bool { return m.Type == typeElement && anew[nameOf(m)] }
	deletions := additions(filter(gone, one))
	for i := range deletions {
		deletions[i].Type = subsystem | cmdDelete
	}
	return slices.Concat(deletions, flushes, additions(filter(come, one)), additions(filter(next, all))), nil
}

func filter(msgs []rawnl.Message, keep func(rawnl.Message) bool) []rawnl.Message {
	return slices.DeleteFunc(slices.Clone(msgs), func(m rawnl.Message) bool { return !keep(m) })
}

func isList(m rawnl.Message) bool {
	return strings.HasPrefix(rawnl.CString(rawnl.Get(nfnl.Attrs(m), attrTypename)), "list:")
}

// sameSets compares the sets among the messages. The size of a set's table, which grows by itself, is no difference.
func sameSets(gone, come []rawnl.Message) error {
	sets := func(msgs []rawnl.Message) []rawnl.Message {
		return filter(msgs, func(m rawnl.Message) bool { return m.Type == typeSet })
	}
	was, is := sets(gone), sets(come)
	fixed := func(m rawnl.Message) []byte {
		return rawnl.Rewrite(nfnl.Attrs(m), func(a rawnl.Attr) (rawnl.Attr, bool) {
			if a.Kind() == attrData {
				a.Data = rawnl.Rewrite(a.Data, func(p rawnl.Attr) (rawnl.Attr, bool) { return p, p.Kind() != setHashsize })
			}
			return a, true
		})
	}
	for _, m := range was {
		i := slices.IndexFunc(is, func(o rawnl.Message) bool { return bytes.Equal(fixed(o), fixed(m)) })
		if i < 0 {
			return fmt.Errorf("set %q was altered or destroyed", nameOf(m))
		}
		is = slices.Delete(is, i, i+1)
	}
	if len(is) > 0 {
		return fmt.Errorf("set %q was made", nameOf(is[0]))
	}
	return nil
}
