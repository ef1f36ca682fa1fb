package journal_test

import (
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/transfer/journal"
)

// A word counts as long as whoever left it waits, and that it was taken is known beyond the journal's end.
func TestRequest(t *testing.T) {
	d, _ := newDir(t)
	id := journal.NewID()
	if _, err := d.Request(id, journal.Source, "live"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a word for nobody: %v", err)
	}
	j := create(t, d, id, journal.Source)
	for _, word := range []string{"", strings.Repeat("x", 65)} {
		if r, err := d.Request(id, journal.Source, word); err == nil {
			r.Close()
			t.Errorf("%q is a word", word)
		}
	}
	demand := func(want string) {
		t.Helper()
		if got := j.Requested(); got != want {
			t.Errorf("the word is %q, want %q", got, want)
		}
	}
	demand("")
	long, err := d.Request(id, journal.Source, "something long")
	check(t, err)
	demand("something long")
	if _, err := d.Request(id, journal.Source, "live"); !errors.Is(err, journal.ErrBusy) {
		t.Errorf("a second word: %v", err)
	}
	check(t, long.Close())
	demand("") // nobody waits any more

	r, err := d.Request(id, journal.Source, "live")
	check(t, err)
	demand("live")
	if r.Taken() {
		t.Error("it was taken by nobody")
	}
	check(t, j.Take("live"))
	demand("")
	check(t, j.Finish(journal.NoTombstone))
	if !r.Taken() {
		t.Error("it was taken")
	}
	check(t, r.Close())
}
