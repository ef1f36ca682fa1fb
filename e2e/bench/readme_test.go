package main

import "testing"

func TestAgain(t *testing.T) {
	for want, flags := range map[string][]string{
		"`make bench`": nil,
		"`make bench BENCH='-readme -run \"^1 conn|tail\"'`": {"-readme", "-run", "^1 conn|tail"},
	} {
		if got := again(flags); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

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
