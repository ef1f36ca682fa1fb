package rawnl

import (
	"encoding/binary"
	"iter"

	"golang.org/x/sys/unix"
)

// Each yields the attributes of a run without allocating. It stops at the first malformed one: callers
// that must not lose anything have validated the run before. The data aliases b.
func Each(b []byte) iter.Seq[Attr] {
	return func(yield func(Attr) bool) {
		for len(b) >= unix.SizeofNlAttr {
			n := int(binary.NativeEndian.Uint16(b))
			if n < unix.SizeofNlAttr || n > len(b) {
				return
			}
			if !yield(Attr{Type: binary.NativeEndian.Uint16(b[2:]), Data: b[unix.SizeofNlAttr:n:n]}) {
				return
			}
			b = b[min(Align(n), len(b)):]
		}
	}
}

// Get returns the data of the first attribute of a kind in a run; nil if there is none.
func Get(b []byte, kind uint16) []byte {
	for a := range Each(b) {
		if a.Kind() == kind {
			return a.Data
		}
	}
	return nil
}

// Rewrite returns a run of attributes with each one replaced by what fn returns; fn drops one by returning
// false. It leaves b alone.
func Rewrite(b []byte, fn func(Attr) (Attr, bool)) []byte {
	out := make([]byte, 0, len(b))
	for a := range Each(b) {
		if a, keep := fn(a); keep {
			out = AppendAttr(out, a.Type, a.Data)
		}
	}
	return out
}
