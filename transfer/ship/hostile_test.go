package ship

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/checkpoint"
)

// encoded makes a stream of records.
func encoded(fill func(e *encoder)) []byte {
	var b bytes.Buffer
	e := newEncoder(&b)
	fill(e)
	if err := e.end(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func file(path string, size int64) *Entry {
	e := &Entry{Path: path, Kind: Regular, Size: size, Block: minBlock, Meta: Meta{Mode: 0o600}}
	if size > 0 {
		e.Data = []Extent{{0, size}}
	}
	e.Sums = make([]Sum, e.blockCount())
	return e
}

func dir(path string) *Entry {
	return &Entry{Path: path, Kind: Directory, Meta: Meta{Mode: 0o755}}
}

// What no host that means well says is refused, with memory bounded by what was sent.
func TestHostileIndex(t *testing.T) {
	with := func(change func(e *Entry)) func(*encoder) {
		return func(enc *encoder) {
			e := file("/a", 100)
			change(e)
			enc.entry(e)
		}
	}
	for name, fill := range map[string]func(*encoder){
		"relative path":           with(func(e *Entry) { e.Path = "a" }),
		"path out of the root":    with(func(e *Entry) { e.Path = "/../a" }),
		"path with a dot":         with(func(e *Entry) { e.Path = "/./a" }),
		"path with a zero":        with(func(e *Entry) { e.Path = "/a\x00b" }),
		"the root":                with(func(e *Entry) { e.Path, e.Kind = "/", Directory }),
		"long name":               with(func(e *Entry) { e.Path = "/" + strings.Repeat("a", 256) }),
		"long path":               with(func(e *Entry) { e.Path = strings.Repeat("/a", 2100) }),
		"name of a migration":     with(func(e *Entry) { e.Path = "/" + hiddenPrefix + testID }),
		"no such kind":            with(func(e *Entry) { e.Kind = 'c' }),
		"mode of a device":        with(func(e *Entry) { e.Mode = 0o20666 }),
		"half a nanosecond":       with(func(e *Entry) { e.MTime.Nsec = 1e9 }),
		"negative size":           with(func(e *Entry) { e.Size = -1 }),
		"giant size":              with(func(e *Entry) { e.Size = 1 << 62 }),
		"data behind the end":     with(func(e *Entry) { e.Data = []Extent{{50, 51}} }),
		"data that touches":       with(func(e *Entry) { e.Data = []Extent{{0, 50}, {50, 50}} }),
		"empty data":              with(func(e *Entry) { e.Data = []Extent{{0, 0}} }),
		"tiny blocks":             with(func(e *Entry) { e.Block = 1 }),
		"odd blocks":              with(func(e *Entry) { e.Block = minBlock + 1 }),
		"no digests":              with(func(e *Entry) { e.Sums = nil }),
		"digest of nothing":       with(func(e *Entry) { e.Sums = make([]Sum, 2) }),
		"directory with content":  with(func(e *Entry) { e.Kind = Directory }),
		"link to nowhere":         with(func(e *Entry) { *e = Entry{Path: "/a", Kind: Symlink} }),
		"hard link to nowhere":    with(func(e *Entry) { *e = Entry{Path: "/b", Kind: Hardlink, Target: "/a"} }),
		"hard link to itself":     with(func(e *Entry) { *e = Entry{Path: "/b", Kind: Hardlink, Target: "/b"} }),
		"fifo with a target":      with(func(e *Entry) { *e = Entry{Path: "/b", Kind: FIFO, Target: "/b"} }),
		"implied file":            with(func(e *Entry) { e.Implied = true }),
		"xattr of the kernel":     with(func(e *Entry) { e.Xattrs = []Xattr{{"security.evm", nil}} }),
		"xattr of a file system":  with(func(e *Entry) { e.Xattrs = []Xattr{{"trusted.overlay.opaque", []byte("y")}} }),
		"xattrs twice":            with(func(e *Entry) { e.Xattrs = []Xattr{{"user.a", nil}, {"user.a", nil}} }),
		"long xattr":              with(func(e *Entry) { e.Xattrs = []Xattr{{"user.a", make([]byte, maxXattr+1)}} }),
		"storage that is unknown": with(func(e *Entry) { e.Storage = 1 }),
		"no directory":            func(e *encoder) { e.entry(file("/a/b", 0)) },
		"twice":                   func(e *encoder) { e.entry(file("/a", 0)); e.entry(file("/a", 0)) },
		"not sorted":              func(e *encoder) { e.entry(file("/b", 0)); e.entry(file("/a", 0)) },
		"content in the index":    func(e *encoder) { e.entry(file("/a", 1)); e.data(0, []byte("x")) },
		"late storage":            func(e *encoder) { e.entry(file("/a", 1)); e.storage("x") },
		"unknown record":          func(e *encoder) { e.record('?') },
		"half an entry":           func(e *encoder) { e.record(recEntry, appendEntry(nil, file("/a", 5))[:9]) },
		"more than an entry":      func(e *encoder) { e.record(recEntry, append(appendEntry(nil, file("/a", 5)), 0)) },
		"many extents": func(e *encoder) {
			e.record(recEntry, []byte("f\x02/a\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x05\x80\x80\x04\xff\xff\xff\xff\x0f"))
		},
		"too many entries": func(e *encoder) {
			for i := range 200 {
				e.entry(file(fmt.Sprintf("/%03d", i), 0))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ReadIndex(bytes.NewReader(encoded(fill)), Limits{Entries: 100})
			if !errors.Is(err, ErrMalformed) {
				t.Errorf("error %v, want ErrMalformed", err)
			}
		})
	}
	good := encoded(func(e *encoder) { e.storage("s"); e.entry(dir("/d")); e.entry(file("/d/a", 70_000)) })
	if _, err := ReadIndex(bytes.NewReader(good), Limits{}); err != nil {
		t.Errorf("a good index: %v", err)
	}
	for i := range good {
		if _, err := ReadIndex(bytes.NewReader(good[:i]), Limits{}); !errors.Is(err, ErrMalformed) {
			t.Errorf("truncated to %d bytes: error %v, want ErrMalformed", i, err)
		}
	}
	if _, err := ReadIndex(bytes.NewReader(append(good, 0)), Limits{}); !errors.Is(err, ErrMalformed) {
		t.Errorf("data behind the end: error %v, want ErrMalformed", err)
	}
	if _, err := ReadIndex(bytes.NewReader(good), Limits{Metadata: 300}); !errors.Is(err, ErrMalformed) {
		t.Errorf("more metadata than allowed: error %v, want ErrMalformed", err)
	}
}

// endless claims a length and then sends as much.
type endless struct {
	head io.Reader
	sent int64
}

func (e *endless) Read(b []byte) (int, error) {
	if n, err := e.head.Read(b); err == nil {
		return n, nil
	}
	e.sent += int64(len(b))
	return len(b), nil
}

// A record that claims to be giant is refused before it is read.
func TestGiantRecord(t *testing.T) {
	for _, head := range []string{
		magic + "E\xff\xff\xff\xff\xff\xff\xff\xff\x7f", magic + "D\xff\xff\xff\x7f", magic + "S\xff\xff\xff\xff\x7f",
		magic + "E\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
	} {
		r := &endless{head: strings.NewReader(head)}
		if _, err := ReadIndex(r, Limits{}); err == nil {
			t.Errorf("%q was read", head)
		}
		if r.sent > pieceSize {
			t.Errorf("%q: %d bytes were read of a record that can't be", head, r.sent)
		}
	}
}

// What is accepted means the same when it is written again.
func FuzzReadIndex(f *testing.F) {
	f.Add(encoded(func(e *encoder) {
		e.storage("boot x")
		e.entry(dir("/d"))
		a := file("/d/a", 200_000)
		a.Data = []Extent{{0, 4096}, {8192, 100}, {150_000, 50_000}}
		a.Sums = make([]Sum, a.blockCount())
		a.Xattrs = []Xattr{{"system.posix_acl_access", []byte{2}}, {"user.x", []byte("y")}}
		a.Held, a.Storage, a.Inode = true, 1, 77
		e.entry(a)
		e.entry(&Entry{Path: "/d/h", Kind: Hardlink, Target: "/d/a"})
		e.entry(&Entry{Path: "/d/l", Kind: Symlink, Target: "../\xff"})
		e.entry(&Entry{Path: "/d/p", Kind: FIFO, Meta: Meta{MTime: Time{-5, 7}}})
	}))
	f.Add([]byte(magic + "Z\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := ReadIndex(bytes.NewReader(b), Limits{Entries: 1000, Metadata: 1 << 20})
		if err != nil {
			if x != nil {
				t.Error("an index and an error")
			}
			return
		}
		var out bytes.Buffer
		if err := x.Encode(&out); err != nil {
			t.Fatal(err)
		}
		again, err := ReadIndex(&out, Limits{Entries: 1000, Metadata: 2 << 20})
		if err != nil || !reflect.DeepEqual(x, again) {
			t.Errorf("%v: %+v is %+v when it is written again", err, x, again)
		}
	})
}

// arena is a destination with traps, whose traps and whose outside can be compared with before.
func arena(t testing.TB) (h *hosts, before map[string]thing) {
	h = newHosts(t)
	outside := filepath.Join(filepath.Dir(h.dst), "outside")
	put(t, filepath.Join(outside, "secret"), "not to be touched")
	put(t, filepath.Join(h.dst, "app/a"), "old a")
	put(t, filepath.Join(h.dst, "app/sub/b"), "old b")
	for _, link := range []string{"trap", "app/trap", "app/sub/trap"} {
		if err := os.Symlink(outside, filepath.Join(h.dst, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("app", filepath.Join(h.dst, "inner")); err != nil {
		t.Fatal(err)
	}
	return h, snapshot(t, filepath.Dir(h.dst))
}

// attack lets a destination take what another host sends, as far as it does, and wants nothing to be different when
// it is undone.
func (h *hosts) attack(before map[string]thing, index, data, changes []byte) error {
	h.t.Helper()
	h.changes = nil
	d := h.destination()
	defer d.Close()
	err := func() error {
		ctx, limits := context.Background(), Limits{Entries: 100, Metadata: 1 << 20, Bytes: 1 << 22}
		d.opts.Limits = limits
		x, err := ReadIndex(bytes.NewReader(index), limits)
		if err != nil {
			return err
		}
		_, problems, err := d.Compare(ctx, x)
		if err != nil {
			return err
		}
		if err := checkpoint.Refuse("taking files", problems); err != nil {
			return err
		}
		if err := d.Stage(ctx, bytes.NewReader(data)); err != nil {
			return err
		}
		if err := d.Update(ctx, bytes.NewReader(changes)); err != nil {
			return err
		}
		return d.Install(ctx)
	}()
	if uerr := Undo(context.Background(), h.dst, h.changes); uerr != nil {
		h.t.Fatalf("undo after %v: %v", err, uerr)
	}
	expect(h.t, fmt.Sprintf("undone after %v", err), differences(before, snapshot(h.t, filepath.Dir(h.dst)), func(p string, a, b thing) bool {
		if strings.HasPrefix(a.what, "4") { // a directory that only leads to something
			a.mtime = b.mtime
		}
		return exactly(p, a, b)
	}))
	h.nothingHidden()
	return err
}

// Symbolic links on the destination lead nowhere, and content goes only where it may.
func TestHostileStreams(t *testing.T) {
	empty := encoded(func(*encoder) {})
	app := encoded(func(e *encoder) { e.entry(dir("/app")); e.entry(file("/app/a", 5)) })
	for _, test := range []struct {
		name    string
		index   []byte
		data    []byte
		changes []byte
		want    string // in the error; "" is none
	}{
		{name: "good", index: app, data: encoded(func(e *encoder) { e.of(1); e.data(0, []byte("new a")) }), changes: empty},
		{
			name: "through a link", want: "symbolic link here", data: empty, changes: empty,
			index: encoded(func(e *encoder) {
				up := dir("/trap")
				up.Implied = true
				e.entry(up)
				e.entry(file("/trap/secret", 1))
			}),
		},
		{
			name: "through a link in an update", index: app, data: empty, want: "symbolic link here",
			changes: encoded(func(e *encoder) {
				up := dir("/inner")
				up.Implied = true
				e.entry(up)
				e.entry(file("/inner/a", 1))
			}),
		},
		{
			name: "below a link that travels", index: app, data: empty, want: "without its directory",
			changes: encoded(func(e *encoder) {
				e.entry(&Entry{Path: "/app/l", Kind: Symlink, Target: "/"})
				e.entry(file("/app/l/x", 1))
			}),
		},
		{name: "in place of a link", index: encoded(func(e *encoder) { e.entry(file("/trap", 0)) }), data: empty, changes: empty},
		{name: "content behind the end", index: app, data: encoded(func(e *encoder) { e.of(1); e.data(1, []byte("xxxxx")) }), want: "where it has none"},
		{name: "content of a directory", index: app, data: encoded(func(e *encoder) { e.of(0); e.data(0, []byte("x")) }), want: "content of entry 0"},
		{name: "content of nothing", index: app, data: encoded(func(e *encoder) { e.data(0, []byte("x")) }), want: "content of no file"},
		{name: "content of an unknown entry", index: app, data: encoded(func(e *encoder) { e.of(2) }), want: "content of entry 2"},
		{name: "an index as content", index: app, data: app, want: "in the content of files"},
		{name: "no content at all", index: app, data: nil, want: "it ends early"},
		{name: "content as an update", index: app, data: empty, changes: encoded(func(e *encoder) { e.of(1) }), want: "in an update"},
		{name: "removal of what was never there", index: app, data: empty, changes: encoded(func(e *encoder) { e.removed("/app/sub") }), want: "was never there"},
		{name: "removal of everything", index: app, data: empty, changes: encoded(func(e *encoder) { e.removed("/app") })},
		{name: "a file becomes a directory", index: app, data: empty, changes: encoded(func(e *encoder) { e.entry(dir("/app/a")) }), want: "without being removed"},
		{
			name: "growth beyond the limit", index: app, data: empty, want: "grew to 4.0 MiB, this host takes 4.0 MiB",
			changes: encoded(func(e *encoder) { e.entry(file("/app/a", 1<<22+1)) }),
		},
		{name: "more than the limit", index: encoded(func(e *encoder) { e.entry(file("/x", 1<<23)) }), want: "they have 8.0 MiB, this host takes 4.0 MiB"},
		{name: "the host's own directories", index: encoded(func(e *encoder) { e.entry(dir("/etc")) }), want: "it belongs to the host"},
		{name: "an unknown hard link", index: app, data: empty, changes: encoded(func(e *encoder) { e.entry(&Entry{Path: "/app/z", Kind: Hardlink, Target: "/app/y"}) }), want: "hard link to nothing"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h, before := arena(t)
			err := h.attack(before, test.index, test.data, test.changes)
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
}

// Whatever the other host sends, an undo gives back what was there, and nothing outside is touched.
func FuzzUpdate(f *testing.F) {
	app := encoded(func(e *encoder) {
		e.entry(dir("/app"))
		e.entry(file("/app/a", 5))
		e.entry(&Entry{Path: "/app/h", Kind: Hardlink, Target: "/app/a"})
	})
	f.Add(app, encoded(func(e *encoder) { e.of(1); e.data(0, []byte("new a")) }), encoded(func(e *encoder) {
		e.removed("/app/h")
		e.entry(file("/app/a", 70_000))
		e.data(5, []byte("more"))
		e.entry(dir("/app/sub"))
		e.entry(&Entry{Path: "/app/trap", Kind: Symlink, Target: "/"})
		e.entry(dir("/trap"))
		e.entry(file("/trap/secret", 3))
	}))
	f.Add(app, encoded(func(*encoder) {}), encoded(func(e *encoder) { e.removed("/app"); e.entry(file("/app", 0)) }))
	f.Fuzz(func(t *testing.T, index, data, changes []byte) {
		h, before := arena(t)
		_ = h.attack(before, index, data, changes)
	})
}

// The source answers only for what it has offered.
func TestHostileWants(t *testing.T) {
	x := &Index{Entries: []Entry{*dir("/d"), *file("/d/a", 100)}}
	for _, w := range []Wants{
		{Files: []Want{{Index: -1}}},
		{Files: []Want{{Index: 2}}},
		{Files: []Want{{Index: 0}}},
		{Files: []Want{{Index: 1}, {Index: 1}}},
		{Files: []Want{{Index: 1, Blocks: []Run{{-1, 1}}}}},
		{Files: []Want{{Index: 1, Blocks: []Run{{0, 0}}}}},
		{Files: []Want{{Index: 1, Blocks: []Run{{5, 1}, {4, 1}}}}},
		{Files: []Want{{Index: 1, Blocks: []Run{{1, 1<<63 - 1}}}}},
		{Same: []Run{{0, 3}}},
		{Same: []Run{{1, 1}, {0, 1}}},
	} {
		if err := w.validate(x); err == nil {
			t.Errorf("%+v was accepted", w)
		}
	}
	good := Wants{Files: []Want{{Index: 1, Blocks: []Run{{0, 1}, {7, 2}}}}, Same: []Run{{0, 2}}}
	if err := good.validate(x); err != nil {
		t.Error(err)
	}
}

// A damaged journal does no harm.
func TestHostileChanges(t *testing.T) {
	h, before := arena(t)
	id := &identity{Inode: 1}
	for _, c := range []Change{
		{Op: opStage, Dir: "/", Hidden: "app"},
		{Op: opStage, Dir: "/app/..", Hidden: hiddenPrefix + testID},
		{Op: opStage, Dir: "/trap", Hidden: hiddenPrefix + testID},
		{Op: opStage, Dir: "/nowhere", Hidden: hiddenPrefix + testID},
		{Op: opInstall, Hidden: "app", Swaps: []swap{{Path: "/app/a", New: id}}},
		{Op: opInstall, Hidden: hiddenPrefix + testID, Swaps: []swap{{Path: "/trap/secret", New: id, Old: id}}},
		{Op: opInstall, Hidden: hiddenPrefix + testID, Swaps: []swap{{Path: "/app/a"}}},
		{Op: opInstall, Hidden: hiddenPrefix + testID, Swaps: []swap{{Path: "app/a", New: id}}},
		{Op: "format the disk", Hidden: hiddenPrefix + testID},
	} {
		_ = Undo(context.Background(), h.dst, []Change{c})
		_ = Commit(context.Background(), h.dst, []Change{c})
		expect(t, c.String(), differences(before, snapshot(t, filepath.Dir(h.dst)), exactly))
	}
}

// Streams that are well formed and make no sense.
func TestHostileRandom(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		h, before := arena(t)
		h.stay = r.IntN(2) == 0
		index := encoded(func(e *encoder) {
			e.entry(dir("/app"))
			for _, p := range []string{"/app/a", "/app/sub"} {
				if r.IntN(2) == 0 {
					e.entry(nonsense(r, p))
				}
			}
		})
		_ = h.attack(before, index, encoded(func(e *encoder) { nonsenses(r, e, recOf) }), encoded(func(e *encoder) { nonsenses(r, e, recEntry) }))
	}
}

func nonsenses(r *rand.Rand, e *encoder, most byte) {
	for range r.IntN(12) {
		switch k := r.IntN(10); {
		case k == 0:
			e.removed(somePath(r))
		case k < 4:
			e.data(int64(r.IntN(4)), make([]byte, 1+r.IntN(5)))
		case most == recOf:
			e.of(r.IntN(4))
		default:
			e.entry(nonsense(r, somePath(r)))
		}
	}
}

func somePath(r *rand.Rand) string {
	paths := []string{
		"/app", "/app/a", "/app/a/x", "/app/sub", "/app/sub/b", "/app/sub/trap", "/app/trap", "/app/trap/secret", "/trap",
		"/trap/secret", "/inner", "/inner/a", "/new", "/new/x", "/new/x/y",
	}
	return paths[r.IntN(len(paths))]
}

func nonsense(r *rand.Rand, path string) *Entry {
	switch r.IntN(6) {
	case 0:
		return &Entry{Path: path, Kind: Symlink, Target: somePath(r)}
	case 1:
		return &Entry{Path: path, Kind: FIFO}
	case 2:
		if target := somePath(r); target < path {
			return &Entry{Path: path, Kind: Hardlink, Target: target}
		}
		return file(path, 3)
	case 3:
		e := dir(path)
		e.Implied = r.IntN(2) == 0
		return e
	}
	return file(path, int64(r.IntN(9)))
}
