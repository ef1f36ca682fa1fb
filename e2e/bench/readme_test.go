package main

import "testing"

func TestBetween(t *testing.T) {
	got, err := between("a\n"+beginMark+"old\n"+endMark+"b\n", "new\n")
	if want := "a\n" + beginMark + "new\n" + endMark + "b\n"; err != nil || got != want {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	for _, text := range []string{"", beginMark, endMark + beginMark} {
		if _, err := between(text, "new"); err == nil {
			t.Errorf("%q has no place for figures", text)
		}
	}
}
