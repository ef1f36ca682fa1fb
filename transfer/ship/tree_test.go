package ship

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const testID = "0123456789abcdef0123456789abcdef"

// hosts are two directories that stand for the file systems of a source and of a destination.
type hosts struct {
	t        testing.TB
	src, dst string
	stay     bool     // as in Options
	recorded int      // bytes of the last record
	changes  []Change // the destination's journal
	sent     map[string][]byte
	step     func(string)
}

func newHosts(t testing.TB) *hosts {
	t.Helper()
	dir := t.TempDir()
	h := &hosts{t: t, src: filepath.Join(dir, "src"), dst: filepath.Join(dir, "dst"), sent: make(map[string][]byte), step: func(string) {}}
	for _, d := range []string{h.src, h.dst} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// record is the destination's journal. It holds JSON, as a journal does.
func (h *hosts) record(c Change) error {
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	h.recorded = len(b)
	var again Change
	if err := json.Unmarshal(b, &again); err != nil {
		return err
	}
	h.step("before the record of: " + c.String())
	h.changes = append(h.changes, again)
	h.step("behind the record of: " + c.String())
	return nil
}

// send takes an entry from the source.
func (h *hosts) send(_ context.Context, name string, _ int64, r io.Reader) error {
	b, err := io.ReadAll(r)
	h.sent[name] = b
	return err
}

func (h *hosts) survey(roots []Root) *Source {
	h.t.Helper()
	s, problems, err := Survey(context.Background(), roots, SurveyOptions{Root: h.src})
	if err != nil || len(problems) > 0 {
		h.t.Fatal(err, problems)
	}
	h.t.Cleanup(func() { s.Close() })
	return s
}

func (h *hosts) destination() *Destination {
	h.t.Helper()
	d, err := NewDestination(Options{Root: h.dst, ID: testID, Record: h.record, stay: h.stay})
	if err != nil {
		h.t.Fatal(err)
	}
	d.step = h.step
	h.t.Cleanup(func() { d.Close() })
	return d
}

// arrive brings an index over.
func (h *hosts) arrive(s *Source) *Index {
	h.t.Helper()
	var b bytes.Buffer
	if err := s.Index().Encode(&b); err != nil {
		h.t.Fatal(err)
	}
	x, err := ReadIndex(&b, Limits{})
	if err != nil {
		h.t.Fatal(err)
	}
	return x
}

// first is the first pass.
func (h *hosts) first(s *Source, d *Destination) *Wants {
	h.t.Helper()
	wants, problems, err := d.Compare(context.Background(), h.arrive(s))
	if err != nil || len(problems) > 0 {
		h.t.Fatal(err, problems)
	}
	if _, err := s.Send(context.Background(), wants, h.send); err != nil {
		h.t.Fatal(err)
	}
	if err := d.Stage(context.Background(), bytes.NewReader(h.sent[DataEntry])); err != nil {
		h.t.Fatal(err)
	}
	return wants
}

// update is a further pass.
func (h *hosts) update(s *Source, d *Destination, roots []Root) Stats {
	h.t.Helper()
	stats, err := s.Update(context.Background(), roots, h.send)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := d.Update(context.Background(), bytes.NewReader(h.sent[ChangesEntry])); err != nil {
		h.t.Fatal(err)
	}
	return stats
}

// put makes a file with its directories.
func put(t testing.TB, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// thing is all that can be seen of a file, in a form to compare and to print.
type thing struct {
	what  string // kind, owner, mode, attributes, content
	mtime string
	data  spans // where there is data
	inode uint64
	links string // the first name of the same file
}

// spans are pairs of offsets.
type spans [][2]int64

// snapshot looks at a directory with other means than those that are tested. It does not see what is staged.
func snapshot(t testing.TB, dir string) map[string]thing {
	t.Helper()
	all := make(map[string]thing)
	first := make(map[[2]uint64]string)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if hiddenName(d.Name()) {
			return fs.SkipDir
		}
		rel, _ := filepath.Rel(dir, path)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		x := thing{
			what:  fmt.Sprintf("%o %d:%d %s", st.Mode, st.Uid, st.Gid, attributes(t, path)),
			mtime: fmt.Sprintf("%d.%09d", st.Mtim.Sec, st.Mtim.Nsec), inode: st.Ino, links: rel,
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			x.what += fmt.Sprintf(" %d bytes %x", len(b), sha256.Sum256(b))
			x.data = dataOf(t, path)
			if name, ok := first[[2]uint64{st.Dev, st.Ino}]; ok {
				x.links = name
			} else {
				first[[2]uint64{st.Dev, st.Ino}] = rel
			}
		case unix.S_IFLNK:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			x.what += " -> " + to
		}
		all[rel] = x
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func attributes(t testing.TB, path string) string {
	t.Helper()
	b := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, b)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for name := range strings.SplitSeq(strings.TrimSuffix(string(b[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, fmt.Sprintf("%s=%x", name, value[:n]))
	}
	slices.Sort(list)
	return strings.Join(list, ",")
}

func dataOf(t testing.TB, path string) (list spans) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for at := int64(0); ; {
		from, err := f.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		if at, err = f.Seek(from, unix.SEEK_HOLE); err != nil {
			t.Fatal(err)
		}
		list = append(list, [2]int64{from, at})
	}
}

// differences tells two snapshots apart. Of what is looked at besides names, content, owner, mode and attributes,
// the caller decides.
func differences(want, got map[string]thing, same func(path string, a, b thing) bool) []string {
	var list []string
	for p, a := range want {
		b, ok := got[p]
		switch {
		case !ok:
			list = append(list, fmt.Sprintf("%q is missing: %+v", p, a))
		case a.what != b.what || !same(p, a, b):
			list = append(list, fmt.Sprintf("%q is\n%+v, want\n%+v", p, b, a))
		}
	}
	for p, b := range got {
		if _, ok := want[p]; !ok {
			list = append(list, fmt.Sprintf("%q is too much: %+v", p, b))
		}
	}
	slices.Sort(list)
	return list
}

// expect fails if there are differences.
func expect(t testing.TB, when string, list []string) {
	t.Helper()
	if len(list) > 0 {
		t.Fatalf("%s: %d differences:\n%s", when, len(list), strings.Join(list[:min(len(list), 12)], "\n"))
	}
}

// like is the comparison of two hosts: what is a hole on the source is one on the destination.
func like(_ string, src, dst thing) bool {
	return src.mtime == dst.mtime && src.links == dst.links && dst.data.inside(src.data)
}

// inside says that all data is where there is data too. Zeros that are no hole may be one on the other host.
func (d spans) inside(o spans) bool {
	for _, a := range d {
		if !slices.ContainsFunc(o, func(b [2]int64) bool { return b[0] <= a[0] && a[1] <= b[1] }) {
			return false
		}
	}
	return true
}

// exactly is the comparison of one host with itself before.
func exactly(_ string, a, b thing) bool {
	return a.mtime == b.mtime && a.inode == b.inode && a.links == b.links && slices.Equal(a.data, b.data)
}

// gardener makes random trees, and random changes of them.
type gardener struct {
	t    testing.TB
	r    *rand.Rand
	root bool
	n    int
}

func (g *gardener) check(err error) {
	g.t.Helper()
	if err != nil {
		g.t.Fatal(err)
	}
}

func (g *gardener) name() string {
	g.n++
	odd := []string{"", " ", "\n", "\xff", "é", "-", "\\"}
	return fmt.Sprintf("%c%s%d", 'a'+g.r.IntN(6), odd[g.r.IntN(len(odd))], g.n)
}

// plant fills a directory.
func (g *gardener) plant(dir string, size int) {
	dirs := []string{dir}
	for range size {
		in := dirs[g.r.IntN(len(dirs))]
		p := filepath.Join(in, g.name())
		switch g.r.IntN(10) {
		case 0, 1, 2:
			g.check(os.Mkdir(p, 0o755))
			dirs = append(dirs, p)
		case 3:
			g.check(os.Symlink([]string{"/nowhere", "a", "..", "/"}[g.r.IntN(4)], p))
		case 4:
			g.check(unix.Mkfifo(p, 0o600))
		case 5:
			files := g.files(dir)
			if len(files) == 0 || os.Link(files[g.r.IntN(len(files))], p) != nil {
				continue
			}
		default:
			g.file(p)
		}
		g.attributes(p)
	}
	for _, d := range dirs {
		g.time(d)
	}
}

// files lists the regular files below a directory.
func (g *gardener) files(dir string) []string {
	return g.list(dir, func(d fs.DirEntry) bool { return d.Type().IsRegular() })
}

func (g *gardener) list(dir string, want func(fs.DirEntry) bool) []string {
	var list []string
	g.check(filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && p != dir && want(d) {
			list = append(list, p)
		}
		return err
	}))
	return list
}

// file makes a file with holes.
func (g *gardener) file(p string) {
	f, err := os.Create(p)
	g.check(err)
	defer f.Close()
	sizes := []int{0, 1, 5000, 70_000, 200_000, 700_000}
	size := sizes[g.r.IntN(len(sizes))]
	g.check(f.Truncate(int64(size)))
	for range g.r.IntN(4) {
		g.scribble(f, size)
	}
}

func (g *gardener) scribble(f *os.File, size int) {
	b := make([]byte, g.r.IntN(30_000))
	if g.r.IntN(4) > 0 { // else zeros, which are data too
		for i := range b {
			b[i] = byte(g.r.Uint32())
		}
	}
	_, err := f.WriteAt(b, int64(g.r.IntN(size+1)))
	g.check(err)
}

func (g *gardener) attributes(p string) {
	st, err := os.Lstat(p)
	g.check(err)
	if g.root && g.r.IntN(3) == 0 {
		g.check(os.Lchown(p, g.r.IntN(3)*1000, g.r.IntN(3)*1000))
	}
	if st.Mode()&fs.ModeSymlink == 0 {
		modes := []uint32{0o755, 0o4755, 0o2711, 0o700}
		if !st.IsDir() {
			modes = append(modes, 0o644, 0o600, 0o666)
		}
		if g.root {
			modes = append(modes, 0o400, 0)
		}
		g.check(unix.Chmod(p, modes[g.r.IntN(len(modes))]))
	}
	if st.Mode().IsRegular() || st.IsDir() {
		if g.r.IntN(3) == 0 {
			g.check(unix.Setxattr(p, "user.test", []byte(g.name()), 0))
		}
		if g.root && g.r.IntN(6) == 0 {
			g.check(unix.Setxattr(p, "trusted.test", []byte(g.name()), 0))
		}
	}
	if g.root && st.Mode().IsRegular() && g.r.IntN(6) == 0 { // cap_net_raw+ep
		g.check(unix.Setxattr(p, "security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	}
	if st.IsDir() && g.r.IntN(6) == 0 { // an ACL that children inherit: user::rwx user:1000:r-x group::r-x mask::r-x other::---
		acl := "\x02\x00\x00\x00" + "\x01\x00\x07\x00\xff\xff\xff\xff" + "\x02\x00\x05\x00\xe8\x03\x00\x00" +
			"\x04\x00\x05\x00\xff\xff\xff\xff" + "\x10\x00\x05\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"
		g.check(unix.Setxattr(p, "system.posix_acl_default", []byte(acl), 0))
	}
	g.time(p)
}

func (g *gardener) time(p string) {
	at := time.Unix(1_600_000_000+int64(g.r.IntN(1000)), int64(g.r.IntN(1e9)))
	ts := []unix.Timespec{unix.NsecToTimespec(at.UnixNano()), unix.NsecToTimespec(at.UnixNano())}
	g.check(unix.UtimesNanoAt(unix.AT_FDCWD, p, ts, unix.AT_SYMLINK_NOFOLLOW))
}

// change does something to a tree, as services and their users do.
func (g *gardener) change(dir string, times int) {
	for range times {
		all := g.list(dir, func(fs.DirEntry) bool { return true })
		if len(all) == 0 {
			g.plant(dir, 3)
			continue
		}
		p := all[g.r.IntN(len(all))]
		st, err := os.Lstat(p)
		g.check(err)
		switch op := g.r.IntN(10); {
		case op < 4 && st.Mode().IsRegular():
			g.edit(p, st.Size())
		case op == 4:
			g.check(os.RemoveAll(p))
		case op == 5:
			to := filepath.Join(filepath.Dir(all[g.r.IntN(len(all))]), g.name())
			if !strings.HasPrefix(to, p+"/") {
				g.check(os.Rename(p, to))
			}
		case op == 6: // something else under the same name
			g.check(os.RemoveAll(p))
			if g.r.IntN(2) == 0 {
				g.check(os.Mkdir(p, 0o700))
				g.plant(p, 3)
			} else {
				g.file(p)
			}
		case op == 7 && st.IsDir():
			g.plant(p, 4)
		default:
			g.attributes(p)
		}
	}
}

func (g *gardener) edit(p string, size int64) {
	f, err := os.OpenFile(p, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrPermission) {
		return // not root
	}
	g.check(err)
	defer f.Close()
	switch g.r.IntN(4) {
	case 0:
		g.check(f.Truncate(int64(g.r.IntN(int(size)*2 + 1))))
	case 1:
		_, err := f.WriteAt([]byte("appended"), size)
		g.check(err)
	case 2:
		if size > 0 {
			g.check(unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(g.r.IntN(int(size))), 100_000))
		}
	default:
		g.scribble(f, int(size))
	}
}

// clone copies a tree with other means than those that are tested.
func (g *gardener) clone(from, to string) {
	links := make(map[uint64]string)
	g.check(filepath.WalkDir(from, func(p string, _ fs.DirEntry, err error) error {
		g.check(err)
		rel, _ := filepath.Rel(from, p)
		q := filepath.Join(to, rel)
		var st unix.Stat_t
		g.check(unix.Lstat(p, &st))
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			g.check(os.MkdirAll(q, 0o755))
		case unix.S_IFLNK:
			l, err := os.Readlink(p)
			g.check(err)
			g.check(os.Symlink(l, q))
		case unix.S_IFIFO:
			g.check(unix.Mkfifo(q, 0o600))
		default:
			if first, ok := links[st.Ino]; ok {
				g.check(os.Link(first, q))
				return nil
			}
			links[st.Ino] = q
			g.copyFile(p, q)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFLNK {
			g.check(os.Chown(q, int(st.Uid), int(st.Gid)))
			g.check(unix.Chmod(q, st.Mode&0o7777))
			g.cloneAttributes(p, q)
		}
		return nil
	}))
	for _, p := range append(g.list(from, func(fs.DirEntry) bool { return true }), from) {
		rel, _ := filepath.Rel(from, p)
		var st unix.Stat_t
		g.check(unix.Lstat(p, &st))
		ts := []unix.Timespec{st.Mtim, st.Mtim}
		g.check(unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(to, rel), ts, unix.AT_SYMLINK_NOFOLLOW))
	}
}

func (g *gardener) copyFile(p, q string) {
	b, err := os.ReadFile(p)
	g.check(err)
	f, err := os.Create(q)
	g.check(err)
	defer f.Close()
	g.check(f.Truncate(int64(len(b))))
	for _, d := range dataOf(g.t, p) {
		_, err = f.WriteAt(b[d[0]:d[1]], d[0])
		g.check(err)
	}
}

func (g *gardener) cloneAttributes(p, q string) {
	b := make([]byte, 4096)
	n, err := unix.Listxattr(p, b)
	g.check(err)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(b[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		v := make([]byte, 4096)
		n, err := unix.Getxattr(p, name, v)
		g.check(err)
		g.check(unix.Setxattr(q, name, v[:n], 0))
	}
}
