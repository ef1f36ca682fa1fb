package rawnl_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

func TestAttrs(t *testing.T) {
	in := []rawnl.Attr{
		{Type: 1, Data: []byte("a")},
		{Type: 2 | 0x8000, Data: nil},
		{Type: 1, Data: []byte("longer")},
	}
	b := rawnl.EncodeAttrs(in)
	if len(b)%4 != 0 {
		t.Errorf("%d bytes are not aligned", len(b))
	}
	out, err := rawnl.ParseAttrs(b)
	if err != nil || len(out) != 3 || !out[1].Nested() || out[1].Kind() != 2 {
		t.Fatalf("got %v, %v", out, err)
	}
	if v, ok := rawnl.Find(out, 1); !ok || string(v) != "a" {
		t.Errorf("Find: %q %v", v, ok)
	}
	if rest := rawnl.Without(out, 1); len(rest) != 1 || len(out) != 3 {
		t.Errorf("Without: %v, and left %v", rest, out)
	}
	for _, bad := range [][]byte{{1}, {3, 0, 1, 0}, {9, 0, 1, 0, 0}} {
		if _, err := rawnl.ParseAttrs(bad); !errors.Is(err, rawnl.ErrMalformed) {
			t.Errorf("ParseAttrs(%v): %v", bad, err)
		}
	}
}

func TestDecode(t *testing.T) {
	msgs := []rawnl.Message{{Type: 16, Flags: 3, Data: []byte("abc")}, {Type: 17}}
	var b []byte
	for _, m := range msgs {
		b = m.Append(b, 0)
	}
	out, err := rawnl.Decode(b)
	if err != nil || len(out) != 2 || string(out[0].Data) != "abc" || out[0].Flags != 3 || out[1].Type != 17 {
		t.Fatalf("got %v, %v", out, err)
	}
	for _, c := range []struct {
		name string
		b    []byte
		want string
	}{
		{"sequence", msgs[0].Append(nil, 1), "stored form"},
		{"padding", func() []byte { b := msgs[0].Append(nil, 0); b[len(b)-1] = 1; return b }(), "padding"},
		{"no padding", msgs[0].Append(nil, 0)[:19], "stored form"},
		{"cut", msgs[0].Append(nil, 0)[:17], "message length"},
		{"header", []byte{1, 2, 3}, "header of 3 bytes"},
	} {
		if _, err := rawnl.Decode(c.b); !errors.Is(err, rawnl.ErrMalformed) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(rawnl.Message{Type: 16, Data: rawnl.EncodeAttrs([]rawnl.Attr{{Type: 3, Data: []byte("lo\x00")}})}.Append(nil, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		msgs, err := rawnl.Decode(b)
		if err != nil {
			return
		}
		var again []byte
		for _, m := range msgs {
			again = m.Append(again, 0)
		}
		if !bytes.Equal(b, again) {
			t.Fatal("accepted, and encoded differently")
		}
	})
}

func FuzzParseAttrs(f *testing.F) {
	f.Add(rawnl.EncodeAttrs([]rawnl.Attr{{Type: 3, Data: []byte("lo\x00")}, {Type: 0x8001, Data: make([]byte, 8)}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		attrs, err := rawnl.ParseAttrs(b)
		walked := 0
		for a := range rawnl.Each(b) {
			if walked < len(attrs) && (a.Type != attrs[walked].Type || !bytes.Equal(a.Data, attrs[walked].Data)) {
				t.Fatalf("attribute %d: %v and %v", walked, a, attrs[walked])
			}
			walked++
		}
		if err != nil {
			return
		}
		if walked != len(attrs) {
			t.Fatalf("%d attributes walked, %d parsed", walked, len(attrs))
		}
		again, err := rawnl.ParseAttrs(rawnl.EncodeAttrs(attrs))
		if err != nil || len(again) != len(attrs) {
			t.Fatalf("encoded and parsed again: %v, %v", again, err)
		}
	})
}
