package ship

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint"
)

// needRoot skips a test that mounts or makes devices, except in CI, where it must run.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("CI lacks root")
	}
	t.Skip("needs root")
}

func mount(t *testing.T, source, target, typ, options string) {
	t.Helper()
	if err := os.MkdirAll(target, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(source, target, typ, 0, options); err != nil {
		t.Fatalf("mount %s: %v", target, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// move is a whole migration up to the installation.
func (h *hosts) move(roots []Root, meanwhile func()) {
	h.t.Helper()
	s, d := h.survey(roots), h.destination()
	h.first(s, d)
	meanwhile()
	h.update(s, d, roots)
	if err := d.Install(context.Background()); err != nil {
		h.t.Fatal(err)
	}
	h.compare(roots)
}

func (h *hosts) problems(roots []Root) []string {
	h.t.Helper()
	s, problems, err := Survey(context.Background(), roots, SurveyOptions{Root: h.src, Limits: Limits{Entries: 100, Bytes: 1 << 20}})
	if err != nil {
		h.t.Fatal(err)
	}
	if s != nil {
		s.Close()
	}
	return texts(problems)
}

func texts(problems []checkpoint.Problem) []string {
	var list []string
	for _, p := range problems {
		list = append(list, p.String())
	}
	slices.Sort(list)
	return list
}

// What can't travel is told in the survey, all of it.
func TestSurveyProblems(t *testing.T) {
	h := newHosts(t)
	put(t, filepath.Join(h.src, "srv/app/file"), "x")
	put(t, filepath.Join(h.src, "real/file"), "x")
	link := func(to, at string) {
		if err := os.Symlink(to, filepath.Join(h.src, at)); err != nil {
			t.Fatal(err)
		}
	}
	link("real", "alias")
	link("../real", "srv/current")
	l, err := net.Listen("unix", filepath.Join(h.src, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for i := range 101 {
		put(t, filepath.Join(h.src, fmt.Sprintf("many/%d", i)), "")
	}
	put(t, filepath.Join(h.src, "large"), strings.Repeat("x", 1<<20+1))
	for _, test := range []struct {
		name  string
		roots []Root
		want  []string
	}{
		{"good", []Root{{Path: "/srv/app"}, {Path: "/srv/app/file", Held: true}}, nil},
		{"missing", []Root{{Path: "/none"}}, []string{"file /none: it does not exist"}},
		{"deleted meanwhile", []Root{{Path: "/none", Held: true}}, nil},
		{"no directory any more", []Root{{Path: "/large/x"}}, []string{"file /large/x: it can't be read: not a directory"}},
		{"of the host", []Root{{Path: "/"}, {Path: "/etc"}, {Path: "/usr/bin"}, {Path: "/proc/self"}}, []string{
			"file /: it belongs to the host, not to a service\n  hint: name the service's own files and directories",
			"file /etc: it belongs to the host, not to a service\n  hint: name the service's own files and directories",
			"file /proc/self: it belongs to the host, not to a service\n  hint: name the service's own files and directories",
			"file /usr/bin: it belongs to the host, not to a service\n  hint: name the service's own files and directories",
		}},
		{"not clean", []Root{{Path: "/srv/../x"}}, []string{"file /srv/../x: path \"/srv/../x\" is not absolute and clean\n  hint: name the service's own files and directories"}},
		{"through a link", []Root{{Path: "/alias/file"}}, []string{"file /alias/file: a directory in its path is a symbolic link\n  hint: name it by a path without symbolic links"}},
		{"a link alone", []Root{{Path: "/srv/current"}}, []string{"file /srv/current: it is a symbolic link to /real, which would not travel with it\n  hint: name /real instead, or both"}},
		{"a link and its target", []Root{{Path: "/srv/current"}, {Path: "/real"}}, nil},
		{"a socket", []Root{{Path: "/socket"}}, []string{"file /socket: sockets and devices don't travel\n  hint: name the files beside it one by one"}},
		{"too many", []Root{{Path: "/many"}}, []string{"file the files to ship: they are more than 100\n  hint: name smaller directories, or put the data on storage that both hosts have"}},
		{"too large", []Root{{Path: "/large"}}, []string{"file the files to ship: they have 1.0 MiB, the limit is 1.0 MiB\n  hint: put the data on storage that both hosts have, or raise the limit"}},
		{"two views", []Root{{Path: "/real/file", Held: true}, {Path: "/real/file", Held: true, From: h.dst}}, []string{"file /real/file: two trees see different files under this path\n  hint: ship it yourself before"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := h.problems(test.roots); !slices.Equal(got, test.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(test.want, "\n"))
			}
		})
	}
	s := h.survey([]Root{{Path: "/srv/app"}, {Path: "/real"}})
	if len(s.Notes()) > 0 {
		t.Errorf("notes %q", s.Notes())
	}
}

// Sockets in a directory are left out with a note, devices are refused.
func TestSurveySpecial(t *testing.T) {
	h := newHosts(t)
	put(t, filepath.Join(h.src, "app/file"), "x")
	l, err := net.Listen("unix", filepath.Join(h.src, "app/socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Mkdir(filepath.Join(h.src, "app", hiddenPrefix+testID), 0o700); err != nil {
		t.Fatal(err)
	}
	s := h.survey([]Root{{Path: "/app"}})
	notes := slices.Sorted(slices.Values(s.Notes()))
	if len(notes) != 2 || !strings.Contains(notes[0], "a migration that has not ended") || !strings.Contains(notes[1], "/app/socket does not travel") {
		t.Errorf("notes %q", notes)
	}
	if !s.Index().Has("/app/file") || s.Index().Has("/app/socket") {
		t.Errorf("index %+v", s.Index())
	}
	needRoot(t)
	if err := unix.Mknod(filepath.Join(h.src, "app/null"), unix.S_IFCHR, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	if got := h.problems([]Root{{Path: "/app"}}); len(got) != 1 || !strings.Contains(got[0], "/app/null: sockets and devices don't travel") {
		t.Errorf("problems %q", got)
	}
	mount(t, "proc", filepath.Join(h.src, "app/proc"), "proc", "")
	if got := h.problems([]Root{{Path: "/app"}}); len(got) != 2 || !strings.Contains(got[1], "/app/proc: it lies on a file system of the kernel") {
		t.Errorf("problems %q", got)
	}
}

// What stands in the way on the destination is told before anything is changed.
func TestCompareProblems(t *testing.T) {
	h := newHosts(t)
	put(t, filepath.Join(h.src, "a/dir/file"), "x")
	put(t, filepath.Join(h.src, "b/file"), "x")
	put(t, filepath.Join(h.src, "c/file"), "x")
	put(t, filepath.Join(h.dst, "a"), "a file")
	put(t, filepath.Join(h.dst, "c", hiddenPrefix+strings.Repeat("f", 32), "1.old"), "of another migration")
	if err := os.Symlink("/etc", filepath.Join(h.dst, "b")); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, h.dst)
	s := h.survey([]Root{{Path: "/a/dir"}, {Path: "/b/file"}, {Path: "/c"}})
	_, problems, err := h.destination().Compare(context.Background(), h.arrive(s))
	want := []string{
		"file /a: it is no directory here\n  hint: move it away",
		"file /b: it is a symbolic link here and a directory on the source\n  hint: give both hosts the same layout of directories",
		"file /c/" + hiddenPrefix + strings.Repeat("f", 32) + ": a migration that has not ended keeps files here\n  hint: finish or undo it with: nsmigrate recover",
	}
	if got := texts(problems); err != nil || !slices.Equal(got, want) {
		t.Errorf("error %v, problems\n%s\nwant\n%s", err, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	d, err := NewDestination(Options{Root: h.dst, ID: testID, Within: []string{"/srv"}})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	_, problems, err = d.Compare(context.Background(), h.arrive(s))
	if got := texts(problems); err != nil || len(got) != 5 || !strings.Contains(got[0], "this host takes no files there\n  hint: it takes them below /srv") {
		t.Errorf("error %v, problems %q", err, got)
	}
	expect(t, "compared", differences(before, snapshot(t, h.dst), exactly))
}

// A disk that is too small is told with numbers, and one that fills up meanwhile ends in an error and an undo.
func TestSpace(t *testing.T) {
	needRoot(t)
	h := newHosts(t)
	mount(t, "tmpfs", filepath.Join(h.dst, "srv"), "tmpfs", "size=1m,nr_inodes=50")
	put(t, filepath.Join(h.src, "srv/app/a"), strings.Repeat("x", 700<<10))
	put(t, filepath.Join(h.src, "srv/app/b"), strings.Repeat("x", 700<<10))
	compare := func() []string {
		_, problems, err := h.destination().Compare(context.Background(), h.arrive(h.survey([]Root{{Path: "/srv/app"}})))
		if err != nil {
			t.Fatal(err)
		}
		return texts(problems)
	}
	want := "file /srv: its file system has 1.0 MiB free, and the files to ship need 1.4 MiB until the migration is over\n" +
		"  hint: make room there, or put the data on storage that both hosts have"
	if got := compare(); len(got) != 1 || got[0] != want {
		t.Errorf("problems %q", got)
	}
	if err := os.Remove(filepath.Join(h.src, "srv/app/b")); err != nil {
		t.Fatal(err)
	}
	for i := range 60 {
		put(t, filepath.Join(h.src, fmt.Sprintf("srv/app/%d", i)), "")
	}
	if got := compare(); len(got) != 1 || !strings.Contains(got[0], "room for 49 more files, 62 are to come") {
		t.Errorf("problems %q", got)
	}
	for i := range 60 {
		os.Remove(filepath.Join(h.src, fmt.Sprintf("srv/app/%d", i)))
	}
	before := snapshot(t, h.dst)
	s, d := h.survey([]Root{{Path: "/srv/app"}}), h.destination()
	h.first(s, d)
	put(t, filepath.Join(h.src, "srv/app/b"), strings.Repeat("x", 700<<10))
	if _, err := s.Update(context.Background(), []Root{{Path: "/srv/app"}}, h.send); err != nil {
		t.Fatal(err)
	}
	if err := d.Update(context.Background(), bytes.NewReader(h.sent[ChangesEntry])); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("error %v, want ENOSPC", err)
	}
	h.undone(before)
}

// Mounted directories stay, and so do those that something is mounted in.
func TestMounts(t *testing.T) {
	needRoot(t)
	h := newHosts(t)
	mount(t, "tmpfs", filepath.Join(h.dst, "srv/app"), "tmpfs", "")
	mount(t, "tmpfs", filepath.Join(h.dst, "srv/app/deep/volume"), "tmpfs", "")
	for _, host := range []string{h.src, h.dst} {
		put(t, filepath.Join(host, "srv/app/differs"), host)
		put(t, filepath.Join(host, "srv/app/dir/differs"), host)
		put(t, filepath.Join(host, "srv/app/deep/differs"), host)
		put(t, filepath.Join(host, "srv/app/deep/volume/differs"), host)
		put(t, filepath.Join(host, "srv/app/deep/volume/dir/differs"), host)
		put(t, filepath.Join(host, "srv/app/deep/volume/dir/same"), "same")
	}
	put(t, filepath.Join(h.dst, "srv/app/deep/volume/extra/file"), "")
	put(t, filepath.Join(h.dst, "srv/app/extra"), "")
	for _, p := range []string{"srv/app", "srv/app/deep/volume"} {
		if err := os.Chmod(filepath.Join(h.dst, p), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	before := snapshot(t, h.dst)
	h.move([]Root{{Path: "/srv/app"}}, func() {
		put(t, filepath.Join(h.src, "srv/app/deep/volume/later/file"), "")
		os.Remove(filepath.Join(h.src, "srv/app/differs"))
	})
	h.undone(before)
	h.changes = nil
	h.move([]Root{{Path: "/srv/app"}}, func() {})
	if err := Commit(context.Background(), h.dst, h.changes); err != nil {
		t.Fatal(err)
	}
	h.compare([]Root{{Path: "/srv/app"}})
	h.nothingHidden()

	// What the source has no more is a problem if it can't go.
	if err := os.RemoveAll(filepath.Join(h.src, "srv/app/deep/volume")); err != nil {
		t.Fatal(err)
	}
	_, problems, err := h.destination().Compare(context.Background(), h.arrive(h.survey([]Root{{Path: "/srv/app"}})))
	if got := texts(problems); err != nil || len(got) != 1 || !strings.Contains(got[0], "/srv/app/deep/volume: it is mounted or protected here, and the source does not have it") {
		t.Errorf("error %v, problems %q", err, got)
	}
}

// On an overlay a directory of a lower layer can't be renamed; what is in it can be.
func TestOverlay(t *testing.T) {
	needRoot(t)
	h := newHosts(t)
	layers := t.TempDir()
	for _, d := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(layers, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	lower := filepath.Join(layers, "lower")
	put(t, filepath.Join(lower, "srv/app/old"), "of the lower layer")
	put(t, filepath.Join(lower, "srv/app/differs"), "of the lower layer")
	put(t, filepath.Join(lower, "srv/app/dir/differs"), "of the lower layer")
	put(t, filepath.Join(lower, "srv/app/dir/same"), "same")
	mount(t, "overlay", h.dst, "overlay", fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, filepath.Join(layers, "upper"), filepath.Join(layers, "work")))
	put(t, filepath.Join(h.src, "srv/app/differs"), "new")
	put(t, filepath.Join(h.src, "srv/app/dir/differs"), "new")
	put(t, filepath.Join(h.src, "srv/app/dir/same"), "same")
	before := snapshot(t, h.dst)
	h.move([]Root{{Path: "/srv/app"}}, func() { put(t, filepath.Join(h.src, "srv/app/dir/later"), "") })
	if err := Undo(context.Background(), h.dst, h.changes); err != nil {
		t.Fatal(err)
	}
	expect(t, "undone", differences(before, snapshot(t, h.dst), func(_ string, a, b thing) bool {
		return true // an overlay gives what it copies up another inode
	}))
	h.nothingHidden()
}

// Hosts with the same storage leave it alone.
func TestSameStorage(t *testing.T) {
	h := newHosts(t)
	put(t, filepath.Join(h.src, "srv/app/file"), "x")
	put(t, filepath.Join(h.src, "srv/app/dir/file"), "x")
	put(t, filepath.Join(h.src, "log"), "x")
	h.dst = h.src
	roots := []Root{{Path: "/srv/app"}, {Path: "/log", Held: true}, {Path: "/log.2", Held: true}}
	before := snapshot(t, h.dst)
	s, d := h.survey(roots), h.destination()
	wants := h.first(s, d)
	if wants.Bytes != 0 || len(wants.Files) != 0 {
		t.Errorf("wants %+v", wants)
	}
	expect(t, "staged", differences(before, snapshot(t, h.dst), exactly))
	// The service goes on: its log is rotated, its data changes.
	put(t, filepath.Join(h.src, "srv/app/dir/later"), "x")
	if err := os.Remove(filepath.Join(h.src, "srv/app/file")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(h.src, "log"), filepath.Join(h.src, "log.1")); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(h.src, "log"), "y")
	put(t, filepath.Join(h.src, "log.2"), "z")
	before = snapshot(t, h.dst)
	h.update(s, d, roots)
	if err := d.Install(context.Background()); err != nil {
		t.Fatal(err)
	}
	expect(t, "installed", differences(before, snapshot(t, h.dst), exactly))
	if len(h.changes) > 0 {
		t.Errorf("changes %v", h.changes)
	}
}

// On storage that both hosts see and that nobody can tell so of (fuse, 9p), a file is replaced by a copy of itself, while
// its writer has the original: neither is ever cut off.
func TestSameStorageUnknown(t *testing.T) {
	for _, commit := range []bool{true, false} {
		h := newHosts(t)
		log := filepath.Join(h.src, "log")
		put(t, log, "")
		h.dst = h.src
		f, err := os.OpenFile(log, os.O_RDWR|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		want := ""
		holds := func(when string) {
			t.Helper()
			held := make([]byte, 100)
			n, _ := f.ReadAt(held, 0)
			named, err := os.ReadFile(log)
			if err != nil || string(held[:n]) != want || string(named) != want {
				t.Errorf("commit %v, %s: the service's file has %q, that of its name %q, %v, want %q", commit, when, held[:n], named, err, want)
			}
		}
		write := func(line string) {
			t.Helper()
			if _, err := f.WriteString(line); err != nil {
				t.Fatal(err)
			}
			want += line
		}
		write("first\n")
		roots := []Root{{Path: "/log", Held: true, Append: true}}
		s, d := h.survey(roots), h.destination()
		for mount := range s.volumes.known {
			s.volumes.known[mount] = volume{remote: true}
		}
		s.storages = nil
		s.index.Storages = nil
		for i := range s.index.Entries {
			s.index.Entries[i].Storage, s.index.Entries[i].Inode = 0, 0
		}
		s.tracked["/log"].unnamed = true
		write("second\n")
		h.first(s, d)
		if problems, err := s.FindMarks(strings.Repeat("0f", 16)); err != nil || len(problems) > 0 {
			t.Errorf("of another migration: %v, %v", problems, err)
		}
		if problems, err := s.FindMarks(testID); err != nil || len(problems) != 1 || problems[0].Object != "/" {
			t.Errorf("what travels onto itself is not seen: %v, %v", problems, err)
		}
		write("third\n")
		h.update(s, d, roots)
		holds("while it runs")
		write("fourth\n")
		h.update(s, d, roots)
		if err := d.Install(context.Background()); err != nil {
			t.Fatal(err)
		}
		holds("installed")
		finish := Undo
		if commit {
			finish = Commit
		}
		if err := finish(context.Background(), h.dst, h.changes); err != nil {
			t.Fatal(err)
		}
		holds("at the end")
		h.nothingHidden()
		held, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		named, err := os.Stat(log)
		if err != nil || os.SameFile(held, named) == commit {
			t.Errorf("commit %v: the name is the original's: %v, %v", commit, !commit, err)
		}
	}
}

// What is on storage that perhaps both hosts see is marked before anything is staged, and nothing else is.
func TestMark(t *testing.T) {
	for _, unnamed := range []bool{true, false} {
		for _, shared := range []bool{true, false} {
			h := newHosts(t)
			for _, host := range []string{h.src, h.dst} {
				put(t, filepath.Join(host, "srv/app/file"), host)
				put(t, filepath.Join(host, "log/file"), host)
			}
			if shared {
				h.dst = h.src
			}
			before := snapshot(t, h.dst)
			s, d := h.survey([]Root{{Path: "/srv/app"}, {Path: "/log/file", Held: true}}), h.destination()
			blur := func(v *volumes) {
				for mount := range v.known {
					v.known[mount] = volume{remote: true}
				}
			}
			x := h.arrive(s)
			if unnamed {
				blur(s.volumes)
				for _, t := range s.tracked {
					t.unnamed = !t.Implied
				}
				x.Storages = nil
				for i := range x.Entries {
					x.Entries[i].Storage, x.Entries[i].Inode = 0, 0
				}
			}
			if _, problems, err := d.Compare(context.Background(), x); err != nil || len(problems) > 0 {
				t.Fatal(problems, err)
			}
			if unnamed {
				blur(d.volumes)
			}
			expect(t, "compared", differences(before, snapshot(t, h.dst), exactly))
			if err := d.Mark(context.Background()); err != nil {
				t.Fatal(err)
			}
			problems, err := s.FindMarks(testID)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, p := range problems {
				got = append(got, p.Object)
			}
			var want []string
			if unnamed && shared {
				want = []string{"/log", "/srv"}
			}
			if !slices.Equal(got, want) {
				t.Errorf("unnamed %v, shared %v: found in %q, want %q", unnamed, shared, got, want)
			}
			if (len(h.changes) > 0) != unnamed {
				t.Errorf("unnamed %v, shared %v: changes %v", unnamed, shared, h.changes)
			}
			h.undone(before)
		}
	}
}

// later makes times sure: nothing was changed a moment ago.
func later(s *Source) {
	s.opts.now = func() time.Time { return time.Now().Add(time.Hour) }
}

// What is the same as before is not read again, and of what only grew nothing but the growth.
func TestReadsLittle(t *testing.T) {
	h := newHosts(t)
	const size = 4 << 20
	random := func() []byte {
		b := make([]byte, size)
		r := rand.NewChaCha8([32]byte{1})
		if _, err := r.Read(b); err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, name := range []string{"still", "log", "mapped", "random"} {
		if err := os.WriteFile(filepath.Join(h.src, name), random(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	roots := []Root{
		{Path: "/still", Held: true},
		{Path: "/log", Held: true, Append: true},
		{Path: "/mapped", Held: true, Mapped: true},
		{Path: "/random", Held: true},
	}
	s, d := h.survey(roots), h.destination()
	h.first(s, d)
	later(s)
	h.update(s, d, roots) // everything once more: it was changed a moment ago

	change := func(name string, at int64, text string) {
		t.Helper()
		f, err := os.OpenFile(filepath.Join(h.src, name), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte(text), at); err != nil {
			t.Fatal(err)
		}
	}
	step := func(name string, bytes, least, most int64) {
		t.Helper()
		stats := h.update(s, d, roots)
		stats.Read -= size // the mapped one
		if stats.Bytes != bytes || stats.Read < least || stats.Read > most {
			t.Errorf("%s: %+v, want %d bytes, and %d to %d read", name, stats, bytes, least, most)
		}
	}
	step("nothing", 0, 0, 0)
	change("random", 3<<20, "x")
	step("a byte", minBlock, size, size)
	change("log", size, "appended")
	step("growth", 8, samples/2*minBlock, samples*minBlock)
	change("log", size+8, strings.Repeat("x", 100_000))
	step("more growth", 100_008, samples/2*minBlock, 9*minBlock)

	// Cut off and written again beyond its former length.
	if err := os.WriteFile(filepath.Join(h.src, "log"), make([]byte, size+200_000), 0o600); err != nil {
		t.Fatal(err)
	}
	step("cut off", size+200_000, size, size+20*minBlock)
	if err := d.Install(context.Background()); err != nil {
		t.Fatal(err)
	}
	h.compare(roots)
}

// A mapping writes without a trace: tmpfs keeps no time of it.
func TestMapped(t *testing.T) {
	h := newHosts(t)
	dir, err := os.MkdirTemp("/dev/shm", "ship-*")
	if err != nil {
		t.Skip(err)
	}
	defer os.RemoveAll(dir)
	h.src = dir
	name := filepath.Join(dir, "shared")
	if err := os.WriteFile(name, make([]byte, 100_000), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, 100_000, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(m)
	roots := []Root{{Path: "/shared", Held: true, Mapped: true}}
	s, d := h.survey(roots), h.destination()
	later(s)
	h.first(s, d)
	h.update(s, d, roots)
	m[70_000] = 'x'
	h.update(s, d, roots)
	if err := d.Install(context.Background()); err != nil {
		t.Fatal(err)
	}
	h.compare(roots)
}

// What somebody else changes on the destination is not overwritten unseen.
func TestInterference(t *testing.T) {
	prepared := func(t *testing.T) (*hosts, *Destination) {
		h := newHosts(t)
		for _, host := range []string{h.src, h.dst} {
			put(t, filepath.Join(host, "app/same"), "same")
			put(t, filepath.Join(host, "app/differs"), host)
			put(t, filepath.Join(host, "log"), host)
			put(t, filepath.Join(host, "lazy"), "same")
			for _, p := range []string{"app/same", "lazy"} {
				if err := os.Chtimes(filepath.Join(host, p), time.Unix(1e9, 0), time.Unix(1e9, 0)); err != nil {
					t.Fatal(err)
				}
			}
		}
		d := h.destination()
		h.first(h.survey([]Root{{Path: "/app"}, {Path: "/log", Held: true}, {Path: "/lazy"}}), d)
		return h, d
	}
	for name, change := range map[string]func(h *hosts) error{
		"a file that serves both":  func(h *hosts) error { return os.WriteFile(filepath.Join(h.dst, "app/same"), []byte("x"), 0o600) },
		"a file that was the same": func(h *hosts) error { return os.WriteFile(filepath.Join(h.dst, "lazy"), []byte("x"), 0o600) },
		"another directory":        func(h *hosts) error { return replace(filepath.Join(h.dst, "app")) },
		"another file":             func(h *hosts) error { return replace(filepath.Join(h.dst, "log")) },
		"no file any more":         func(h *hosts) error { return os.Remove(filepath.Join(h.dst, "log")) },
	} {
		t.Run(name, func(t *testing.T) {
			h, d := prepared(t)
			if err := change(h); err != nil {
				t.Fatal(err)
			}
			before := snapshot(t, h.dst)
			if err := d.Install(context.Background()); !errors.Is(err, errChanged) {
				t.Errorf("error %v, want %v", err, errChanged)
			}
			if err := Undo(context.Background(), h.dst, h.changes); err != nil {
				t.Fatal(err)
			}
			expect(t, "undone", differences(before, snapshot(t, h.dst), func(_ string, a, b thing) bool { return a.inode == b.inode }))
			h.nothingHidden()
		})
	}
	t.Run("a stranger in the place", func(t *testing.T) {
		h, d := prepared(t)
		before := snapshot(t, h.dst)
		if err := d.Install(context.Background()); err != nil {
			t.Fatal(err)
		}
		place := filepath.Join(h.dst, "log")
		if err := replace(place); err != nil {
			t.Fatal(err)
		}
		err := Undo(context.Background(), h.dst, h.changes)
		if err == nil || !strings.Contains(err.Error(), "/log: somebody has put another file there; what was there before the migration is /"+hiddenPrefix) {
			t.Errorf("error %v", err)
		}
		if b, err := os.ReadFile(place); err != nil || string(b) != "stranger" {
			t.Errorf("the stranger is %q, %v", b, err)
		}
		for _, p := range []string{place, place + ".moved"} {
			if err := os.Remove(p); err != nil {
				t.Fatal(err)
			}
		}
		h.sameInodes(before)
	})
	t.Run("commit of what was not installed", func(t *testing.T) {
		h, d := prepared(t)
		d.step = func(s string) {
			if s == "moving in /log" {
				panic(crash{})
			}
		}
		before := snapshot(t, h.dst)
		crashing(-1, func(func(string)) { _ = d.Install(context.Background()) })
		if err := Commit(context.Background(), h.dst, h.changes); err == nil || !strings.Contains(err.Error(), "/log was not installed") {
			t.Errorf("error %v", err)
		}
		h.sameInodes(before)
	})
}

// sameInodes undoes and wants every name to be that of the file that it was before.
func (h *hosts) sameInodes(before map[string]thing) {
	h.t.Helper()
	if err := Undo(context.Background(), h.dst, h.changes); err != nil {
		h.t.Fatal(err)
	}
	expect(h.t, "undone", differences(before, snapshot(h.t, h.dst), func(_ string, a, b thing) bool { return a.inode == b.inode }))
	h.nothingHidden()
}

// replace puts another file, or directory, in the place of one.
func replace(path string) error {
	if err := os.Rename(path, path+".moved"); err != nil {
		return err
	}
	return os.WriteFile(path, []byte("stranger"), 0o600)
}

// A service that never stops writing: the frozen pass makes both the same.
func TestLive(t *testing.T) {
	h := newHosts(t)
	g := &gardener{t: t, r: rand.New(rand.NewPCG(7, 7)), root: os.Geteuid() == 0}
	app := filepath.Join(h.src, "app")
	if err := os.Mkdir(app, 0o755); err != nil {
		t.Fatal(err)
	}
	g.plant(app, 60)
	var stop atomic.Bool
	var changes int
	var service sync.WaitGroup
	service.Go(func() {
		for ; !stop.Load(); changes++ {
			g.change(app, 1)
		}
	})
	end := func() {
		stop.Store(true)
		service.Wait()
	}
	defer end()
	roots := []Root{{Path: "/app"}}
	s, d := h.survey(roots), h.destination()
	h.first(s, d)
	for range 10 {
		h.update(s, d, roots)
	}
	end()
	if changes < 10 {
		t.Errorf("only %d changes", changes)
	}
	h.update(s, d, roots)
	if err := d.Install(context.Background()); err != nil {
		t.Fatal(err)
	}
	h.compare(roots)
}

// A connection that breaks, or a user who gives up, ends a pass with that error.
func TestBrokenOff(t *testing.T) {
	h := newHosts(t)
	put(t, filepath.Join(h.src, "app/file"), strings.Repeat("x", 3<<20))
	roots := []Root{{Path: "/app"}}
	s := h.survey(roots)
	wants, _, err := h.destination().Compare(context.Background(), h.arrive(s))
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	if _, err := s.Send(context.Background(), wants, func(_ context.Context, _ string, _ int64, r io.Reader) error {
		_, _ = io.CopyN(io.Discard, r, 1<<20)
		return broken
	}); !errors.Is(err, broken) {
		t.Errorf("error %v, want %v", err, broken)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if _, err := s.Send(ctx, wants, func(_ context.Context, _ string, _ int64, r io.Reader) error {
		_, _ = io.CopyN(io.Discard, r, 1<<20)
		cancel()
		_, err := io.Copy(io.Discard, r)
		return err
	}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
	if _, err := s.Send(context.Background(), wants, func(context.Context, string, int64, io.Reader) error { return nil }); !errors.Is(err, errNotRead) {
		t.Errorf("error %v, want %v", err, errNotRead)
	}
	// The data comes behind the file's own change; what it was to be is brought by the next pass.
	if err := os.Remove(filepath.Join(h.src, "app/file")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Send(context.Background(), wants, h.send); err != nil {
		t.Error(err)
	}
}

// The changes of a large installation fit records of a journal.
func TestSplit(t *testing.T) {
	long := strings.Repeat("/\xff"+strings.Repeat("x", 200), 18)
	swaps := make([]swap, 2000)
	for i := range swaps {
		swaps[i] = swap{Path: name(fmt.Sprintf("%s%d", long, i)), New: &identity{1 << 60, &Time{1 << 40, 1e8}}, Old: &identity{1 << 60, &Time{1 << 40, 1e8}}}
	}
	metas := []metaChange{{Path: "/x", New: Meta{Xattrs: []Xattr{{"user.x", make([]byte, maxXattr)}}}}}
	h := newHosts(t)
	n := 0
	for _, c := range split(hiddenPrefix+testID, swaps, metas) {
		if size := h.recordSize(c); size > 1<<20 {
			t.Errorf("a record of %d bytes", size)
		}
		n += len(c.Swaps) + len(c.Metas)
	}
	if n != len(swaps)+1 {
		t.Errorf("%d of %d changes", n, len(swaps)+1)
	}
	if got := string(h.changes[0].Swaps[0].Path); got != long+"0" {
		t.Errorf("path %q", got)
	}
}

func (h *hosts) recordSize(c Change) int {
	h.t.Helper()
	if err := h.record(c); err != nil {
		h.t.Fatal(err)
	}
	return h.recorded
}
