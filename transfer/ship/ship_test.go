package ship

import (
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Random trees, changed between the passes: in the end both hosts have the same, and an undo gives back what was there.
// NSMIGRATE_SEEDS says how many, or as "N-M" which ones.
func TestRandom(t *testing.T) {
	first, last := seeds(t)
	for seed := first; seed <= last; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			testRandom(t, seed)
		})
	}
}

func seeds(t *testing.T) (first, last uint64) {
	text := os.Getenv("NSMIGRATE_SEEDS")
	if text == "" {
		return 1, 40
	}
	from, to, found := strings.Cut(text, "-")
	if !found {
		from, to = "1", from
	}
	first, err := strconv.ParseUint(from, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if last, err = strconv.ParseUint(to, 10, 64); err != nil {
		t.Fatal(err)
	}
	return first, last
}

func testRandom(t *testing.T, seed uint64) {
	h := newHosts(t)
	h.stay = seed%4 == 0
	g := &gardener{t: t, r: rand.New(rand.NewPCG(seed, 0)), root: os.Geteuid() == 0}
	app, logs := filepath.Join(h.src, "srv/app"), filepath.Join(h.src, "var/log/app")
	g.check(os.MkdirAll(app, 0o755))
	g.check(os.MkdirAll(logs, 0o755))
	g.plant(app, 30)
	for i := range 3 {
		g.file(filepath.Join(logs, fmt.Sprintf("%d.log", i)))
	}
	switch g.r.IntN(4) {
	case 0: // nothing is there
	case 1: // something else is there
		g.check(os.MkdirAll(filepath.Join(h.dst, "srv/app"), 0o755))
		g.plant(filepath.Join(h.dst, "srv/app"), 20)
	case 2:
		g.clone(h.src, h.dst)
	case 3:
		g.clone(h.src, h.dst)
		g.change(filepath.Join(h.dst, "srv/app"), 12)
		g.change(filepath.Join(h.dst, "var/log/app"), 3)
	}
	put(t, filepath.Join(h.dst, "srv/other"), "not the service's")

	roots := []Root{{Path: "/srv/app"}}
	for i := range 3 {
		roots = append(roots, Root{Path: fmt.Sprintf("/var/log/app/%d.log", i), Held: true})
	}
	before := snapshot(t, h.dst)
	s, d := h.survey(roots), h.destination()
	g.change(app, g.r.IntN(3)) // between the survey and the sending
	h.first(s, d)
	for range 1 + g.r.IntN(3) {
		g.change(app, g.r.IntN(12))
		g.edit(filepath.Join(logs, "1.log"), 1000)
		if g.r.IntN(4) == 0 {
			os.Remove(filepath.Join(logs, "2.log"))
		}
		if g.r.IntN(4) == 0 {
			roots = append(roots, Root{Path: fmt.Sprintf("/var/log/new/%d.log", len(roots)), Held: true})
			p := filepath.Join(h.src, roots[len(roots)-1].Path)
			g.check(os.MkdirAll(filepath.Dir(p), 0o700))
			g.file(p)
		}
		h.update(s, d, roots)
	}
	h.unchanged("staged", before)
	if err := d.Install(context.Background()); err != nil {
		t.Fatal(err)
	}
	h.compare(roots)
	if g.r.IntN(3) == 0 {
		for range 2 {
			if err := Commit(context.Background(), h.dst, h.changes); err != nil {
				t.Fatal(err)
			}
			h.compare(roots)
			h.nothingHidden()
		}
		return
	}
	for range 2 {
		h.undone(before)
	}
}

// compare wants the same on both hosts.
func (h *hosts) compare(roots []Root) {
	h.t.Helper()
	for _, r := range roots {
		src, dst := filepath.Join(h.src, r.Path), filepath.Join(h.dst, r.Path)
		if _, err := os.Lstat(src); err == nil { // else it was removed
			expect(h.t, "installed "+r.Path, differences(snapshot(h.t, src), snapshot(h.t, dst), like))
		}
	}
}

// undone undoes and wants what was there before.
func (h *hosts) undone(before map[string]thing) {
	h.t.Helper()
	if err := Undo(context.Background(), h.dst, h.changes); err != nil {
		h.t.Fatal(err)
	}
	h.unchanged("undone", before)
	h.nothingHidden()
}

// unchanged wants what was there before, but for the times of directories that things were made in.
func (h *hosts) unchanged(when string, before map[string]thing) {
	h.t.Helper()
	expect(h.t, when, differences(before, snapshot(h.t, h.dst), func(p string, a, b thing) bool {
		if !strings.HasPrefix(p, "srv/app") || h.stay && when == "staged" {
			a.mtime = b.mtime
		}
		return exactly(p, a, b)
	}))
}

func (h *hosts) nothingHidden() {
	h.t.Helper()
	err := filepath.WalkDir(h.dst, func(p string, _ fs.DirEntry, err error) error {
		if strings.Contains(p, hiddenPrefix) {
			h.t.Errorf("left behind: %s", p)
		}
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
}

// crash is what a process that is killed leaves behind: nothing it would have done happens.
type crash struct{}

// crashing runs fn, which gets a step function that crashes at the given step. It reports whether it came so far.
func crashing(at int, fn func(step func(string))) (where string, crashed bool) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(crash); !ok {
				panic(r)
			}
		}
	}()
	n := 0
	fn(func(s string) {
		if n++; n == at {
			where, crashed = s, true
			panic(crash{})
		}
	})
	return where, crashed
}

// After a crash at any step, an undo that crashes at any step itself, and is repeated, gives back what was there.
func TestCrash(t *testing.T) {
	for _, stay := range []bool{false, true} {
		t.Run(fmt.Sprintf("stay=%v", stay), func(t *testing.T) {
			t.Parallel()
			for at := 1; ; at++ {
				if !testCrash(t, stay, at) {
					if at < 8 {
						t.Errorf("only %d steps", at)
					}
					break
				}
			}
		})
	}
}

func testCrash(t *testing.T, stay bool, at int) bool {
	h := newHosts(t)
	h.stay = stay
	for _, host := range []string{h.src, h.dst} {
		put(t, filepath.Join(host, "srv/app/same"), "the same on both hosts")
		put(t, filepath.Join(host, "srv/app/differs"), host)
		put(t, filepath.Join(host, "srv/app/dir/differs"), host)
		put(t, filepath.Join(host, "log"), host)
	}
	put(t, filepath.Join(h.src, "srv/app/only here"), "")
	put(t, filepath.Join(h.src, "new/dir/file"), "")
	put(t, filepath.Join(h.dst, "srv/app/extra/file"), "only there")
	if err := os.Chmod(filepath.Join(h.dst, "srv/app"), 0o711); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, h.dst)
	roots := []Root{{Path: "/srv/app"}, {Path: "/log", Held: true}, {Path: "/new/dir/file"}}
	s := h.survey(roots)
	where, crashed := crashing(at, func(step func(string)) {
		h.step = step
		d := h.destination()
		h.first(s, d)
		put(t, filepath.Join(h.src, "log"), "changed")
		put(t, filepath.Join(h.src, "srv/app/later"), "")
		roots = append(roots, Root{Path: "/other/log", Held: true})
		put(t, filepath.Join(h.src, "other/log"), "")
		h.update(s, d, roots)
		if err := d.Install(context.Background()); err != nil {
			t.Fatal(err)
		}
	})
	if crashed {
		h.undoing(before, where)
		return true
	}
	h.compare(roots)
	if !stay {
		h.undoing(before, "the end")
		return false
	}
	for again := 1; ; again++ {
		where, crashed := crashing(again, func(step func(string)) {
			if err := commit(context.Background(), h.dst, h.changes, step); err != nil {
				t.Fatal(err)
			}
		})
		h.compare(roots)
		if !crashed {
			break
		}
		t.Logf("commit crashed at %s", where)
	}
	h.nothingHidden()
	return false
}

// undoing undoes with crashes.
func (h *hosts) undoing(before map[string]thing, where string) {
	h.t.Helper()
	for again := 1; ; again++ {
		_, crashed := crashing(again, func(step func(string)) {
			if err := undo(context.Background(), h.dst, h.changes, step); err != nil {
				h.t.Fatalf("after a crash at %s: %v", where, err)
			}
		})
		if !crashed {
			break
		}
	}
	expect(h.t, "undone after a crash at "+where, differences(before, snapshot(h.t, h.dst), func(p string, a, b thing) bool {
		if !strings.HasPrefix(p, "srv/app") {
			a.mtime = b.mtime
		}
		return exactly(p, a, b)
	}))
	h.nothingHidden()
}
