// Package seq makes streams of bytes that describe themselves: each byte follows from the stream's number and
// its own offset, so that a reader notices any byte that is lost, doubled or changed, without a copy.
package seq

import "encoding/binary"

// Stream numbers a stream.
type Stream uint64

// Fill writes the stream's bytes from the offset on into b.
func (s Stream) Fill(b []byte, off uint64) {
	var word [8]byte
	for i := 0; i < len(b); {
		at := off + uint64(i)
		binary.LittleEndian.PutUint64(word[:], s.word(at/8))
		i += copy(b[i:], word[at%8:])
	}
}

// Check compares b with the stream's bytes from the offset on. It returns the index of the first wrong byte,
// or -1.
func (s Stream) Check(b []byte, off uint64) int {
	var word [8]byte
	for i := 0; i < len(b); {
		at := off + uint64(i)
		binary.LittleEndian.PutUint64(word[:], s.word(at/8))
		for _, want := range word[at%8:] {
			if i == len(b) {
				break
			}
			if b[i] != want {
				return i
			}
			i++
		}
	}
	return -1
}

// word is the n-th eight bytes of the stream: a hash of both numbers (splitmix64's finalizer).
func (s Stream) word(n uint64) uint64 {
	x := (n + 1) * 0x9e3779b97f4a7c15
	x ^= uint64(s) * 0xd1342543de82ef95
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
