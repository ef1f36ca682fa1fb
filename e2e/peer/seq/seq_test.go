package seq

import (
	"slices"
	"testing"
)

func TestStream(t *testing.T) {
	const size = 1000
	whole := make([]byte, size)
	Stream(7).Fill(whole, 0)
	for _, off := range []int{0, 1, 7, 8, 9, 500, 999} {
		part := make([]byte, size-off)
		Stream(7).Fill(part, uint64(off))
		if !slices.Equal(part, whole[off:]) {
			t.Errorf("offset %d is not a part of the whole", off)
		}
		if i := Stream(7).Check(whole[off:], uint64(off)); i != -1 {
			t.Errorf("offset %d: byte %d is called wrong", off, i)
		}
	}
}

func TestCheckNotices(t *testing.T) {
	b := make([]byte, 100)
	Stream(7).Fill(b, 3)
	changed := slices.Clone(b)
	changed[42] ^= 1
	lost := slices.Delete(slices.Clone(b), 42, 43)
	doubled := slices.Insert(slices.Clone(b), 42, b[41])
	for name, bad := range map[string][]byte{"changed": changed, "lost": lost, "doubled": doubled} {
		if i := Stream(7).Check(bad, 3); i < 42 || i > 44 {
			t.Errorf("%s byte 42: first wrong byte is %d", name, i)
		}
	}
	if Stream(8).Check(b, 3) == -1 || Stream(7).Check(b, 4) == -1 {
		t.Error("another stream or offset passes for the right one")
	}
}
