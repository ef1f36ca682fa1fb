package transfer_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/transfer"
)

// part is a header of a tar and what follows it.
type part struct {
	header tar.Header
	data   []byte
}

// parts takes an archive without compression apart.
func parts(tb testing.TB, archive []byte) []part {
	tb.Helper()
	r := tar.NewReader(bytes.NewReader(archive))
	var all []part
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			tb.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			tb.Fatal(err)
		}
		all = append(all, part{*h, data})
	}
}

// join makes a tar of parts; of each header only the name, the type, the link and the mode count.
func join(tb testing.TB, all []part) []byte {
	tb.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, p := range all {
		h := tar.Header{
			Name: p.header.Name, Typeflag: p.header.Typeflag, Linkname: p.header.Linkname,
			Mode: p.header.Mode, Size: int64(len(p.data)),
		}
		if err := w.WriteHeader(&h); err != nil {
			tb.Fatal(err)
		}
		if _, err := w.Write(p.data); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// foreign compresses with other settings than ours.
func foreign(tb testing.TB, tar []byte, opts ...zstd.EOption) []byte {
	tb.Helper()
	w, err := zstd.NewWriter(nil, opts...)
	if err != nil {
		tb.Fatal(err)
	}
	return w.EncodeAll(tar, nil)
}

// TestHostile: an archive with a good seal, made by somebody who means harm or knows no better.
func TestHostile(t *testing.T) {
	dir, m := image(t, map[string]string{"checkpoint/core-1.img": "core", "config.dump": "{}"})
	good := parts(t, pack(t, dir, m, transfer.None))
	// 0 manifest.json 1 manifest.sha256 2 checkpoint/ 3 checkpoint/core-1.img 4 config.dump
	file := func(name, data string) part {
		return part{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600}, []byte(data)}
	}
	link := func(typ byte, name, to string) part {
		return part{tar.Header{Name: name, Typeflag: typ, Linkname: to, Mode: 0o777}, nil}
	}
	manifest := func(change func(m *checkpoint.Manifest)) []part {
		bad := *m
		bad.Entries = slices.Clone(m.Entries)
		change(&bad)
		data := jsonOf(t, &bad) // not through EncodeManifest, which would refuse it
		all := slices.Clone(good)
		all[0], all[1] = file(checkpoint.ManifestFile, data), file(checkpoint.SumFile, string(checkpoint.SumLine([]byte(data))))
		return all
	}
	replaced := func(i int, with ...part) []part {
		return slices.Replace(slices.Clone(good), i, i+1, with...)
	}
	tests := []struct {
		name, want string
		parts      []part
	}{
		{"path above", `damaged image: "../../etc/passwd": extra: the manifest wants "config.dump" here`, replaced(4, file("../../etc/passwd", "{}"))},
		{"absolute path", `damaged image: "/etc/passwd": extra: the manifest wants "config.dump" here`, replaced(4, file("/etc/passwd", "{}"))},
		{
			"path above in the manifest", `damaged image: manifest.json: malformed: entry "../config.dump": the name is not clean and relative`,
			manifest(func(m *checkpoint.Manifest) { m.Entries[0].Name = "../config.dump" }),
		},
		{"symbolic link", `damaged image: config.dump: altered: it has type '2', want '0'`, replaced(4, link(tar.TypeSymlink, "config.dump", "/etc/passwd"))},
		{"symbolic link as directory", `damaged image: "checkpoint": extra: the manifest wants "checkpoint/" here`, replaced(2, link(tar.TypeSymlink, "checkpoint", "/etc"))},
		{"hard link", `damaged image: config.dump: altered: it has type '1', want '0'`, replaced(4, link(tar.TypeLink, "config.dump", "/etc/passwd"))},
		{"device", `damaged image: config.dump: altered: it has type '4', want '0'`, replaced(4, link(tar.TypeBlock, "config.dump", ""))},
		{"named pipe", `damaged image: config.dump: altered: it has type '6', want '0'`, replaced(4, link(tar.TypeFifo, "config.dump", ""))},
		{"twice", `damaged image: "config.dump": extra: not in the manifest`, append(slices.Clone(good), good[4])},
		{
			"twice in the manifest", `damaged image: manifest.json: malformed: entry "checkpoint/core-1.img": listed twice`,
			manifest(func(m *checkpoint.Manifest) { m.Entries[1].Name = m.Entries[0].Name }),
		},
		{"extra", `damaged image: "config.dumq": extra: not in the manifest`, append(slices.Clone(good), file("config.dumq", ""))},
		{
			"extra directory", `damaged image: "netns/": extra: the manifest wants "config.dump" here`,
			slices.Insert(slices.Clone(good), 4, part{tar.Header{Name: "netns/", Typeflag: tar.TypeDir}, nil}),
		},
		{"missing", `damaged image: config.dump: truncated: the archive ends early`, good[:4]},
		{"other order", `damaged image: "config.dump": extra: the manifest wants "checkpoint/" here`, []part{good[0], good[1], good[4], good[2], good[3]}},
		{"manifest later", `damaged image: "checkpoint/": extra: the manifest wants "manifest.json" here`, []part{good[2], good[0], good[1], good[3], good[4]}},
		{"manifest twice", `damaged image: "manifest.json": extra: the manifest wants "config.dump" here`, replaced(4, good[0])},
		{"longer", `damaged image: config.dump: altered: 3 bytes, want 2`, replaced(4, file("config.dump", "{} "))},
		{"shorter", `damaged image: config.dump: altered: 1 bytes, want 2`, replaced(4, file("config.dump", "{"))},
		{"other content", `damaged image: config.dump: altered: its digest is not the manifest's`, replaced(4, file("config.dump", "[]"))},
		{"huge manifest", `damaged image: manifest.json: altered: 67108865 bytes, more than 67108864`, replaced(0, file("manifest.json", string(make([]byte, checkpoint.MaxManifest+1))))},
		{"huge digest", `damaged image: manifest.sha256: altered: 4096 bytes, more than 512`, replaced(1, file("manifest.sha256", string(make([]byte, 4096))))},
		{
			"major version", `image format not supported: the image is of format 3.0, this nsmigrate reads up to 2.x: a newer nsmigrate is needed`,
			manifest(func(m *checkpoint.Manifest) { m.Format.Major = 3 }),
		},
		{
			"older version", `image format not supported: the image is of format 1.0, this nsmigrate reads 2.x: the nsmigrate that made it restores it`,
			manifest(func(m *checkpoint.Manifest) { m.Format.Major = 1 }),
		},
		{"nothing", `damaged image: manifest.json: truncated: the archive ends early`, nil},
	}
	for _, test := range tests {
		for _, c := range []transfer.Compression{transfer.Zstd, transfer.None} {
			body := join(t, test.parts)
			if c == transfer.Zstd {
				body = transfer.Compressed(body)
			} else if len(test.parts) == 0 {
				continue // two blocks of zeros are no tar
			}
			err := refused(t, transfer.Sealed(c, body), filepath.Join(t.TempDir(), "image"))
			if err.Error() != "unpack image: "+test.want {
				t.Errorf("%s, %s: %v\nwant\n%s", test.name, c, err, test.want)
			}
		}
	}

	body := join(t, good)
	for name, archive := range map[string][]byte{
		"data behind the tar":   transfer.Sealed(transfer.None, append(bytes.Clone(body), make([]byte, 512)...)),
		"data behind the zstd":  transfer.Sealed(transfer.Zstd, append(transfer.Compressed(body), transfer.Compressed([]byte("x"))...)),
		"junk behind the zstd":  transfer.Sealed(transfer.Zstd, append(transfer.Compressed(body), 'x')),
		"checksum":              transfer.Sealed(transfer.Zstd, foreign(t, body)),
		"long frame":            transfer.Sealed(transfer.Zstd, foreign(t, append(bytes.Clone(body), make([]byte, 1<<20)...), zstd.WithEncoderCRC(false))),
		"skippable frame":       transfer.Sealed(transfer.Zstd, append(transfer.Compressed(body), "\x50\x2a\x4d\x18\x00\x00\x00\x00"...)),
		"reserved block":        transfer.Sealed(transfer.Zstd, []byte("\x28\xb5\x2f\xfd\x20\x01\x07\x00\x00"+strings.Repeat("x", 600))),
		"endless frame":         transfer.Sealed(transfer.Zstd, append([]byte("\x28\xb5\x2f\xfd\x20\x01"), make([]byte, 9<<20)...)),
		"seal of the other":     append(bytes.Clone(body), transfer.Sealed(transfer.Zstd, body)[len(body):]...),
		"no seal":               body,
		"no seal behind a zstd": transfer.Compressed(body),
		"empty":                 nil,
		"a text":                bytes.Repeat([]byte("hello\n"), 1000),
	} {
		if err := refused(t, archive, filepath.Join(t.TempDir(), "image")); !errors.Is(err, checkpoint.ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := transfer.Unpack(t.Context(), bytes.NewReader(transfer.Sealed(transfer.None, body)), filepath.Join(t.TempDir(), "image"), transfer.UnpackOptions{}); err != nil {
		t.Errorf("the good one: %v", err)
	}
}

// A zstd frame may claim a window that no host has the memory for.
func TestHugeWindow(t *testing.T) {
	frame := []byte("\x28\xb5\x2f\xfd\x00\xa8") // magic, descriptor, window of 2 GiB
	frame = append(frame, make([]byte, 1024)...)
	if err := refused(t, transfer.Sealed(transfer.Zstd, frame), filepath.Join(t.TempDir(), "image")); !errors.Is(err, checkpoint.ErrDamaged) {
		t.Error(err)
	}
}

// What fails besides the archive is not taken for damage, and leaves nothing behind either.
func TestUnpackFailures(t *testing.T) {
	compressions(t, func(t *testing.T, c transfer.Compression) {
		dir, m := image(t, small())
		archive := pack(t, dir, m, c)
		broken := errors.New("the line went dead")
		for _, n := range []int{0, 100, 700, len(archive) / 2, len(archive) - 10, len(archive)} {
			r := io.MultiReader(bytes.NewReader(archive[:n]), iotest.ErrReader(broken))
			to := filepath.Join(t.TempDir(), "image")
			_, err := transfer.Unpack(t.Context(), r, to, transfer.UnpackOptions{})
			if !errors.Is(err, broken) || errors.Is(err, checkpoint.ErrDamaged) {
				t.Errorf("after %d bytes: %v", n, err)
			}
			if _, err := os.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("after %d bytes: left behind: %v", n, err)
			}
		}

		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		to := t.TempDir() // empty: stays so
		_, err := transfer.Unpack(ctx, bytes.NewReader(archive), to, transfer.UnpackOptions{Progress: func(int64) { cancel() }})
		if list, _ := os.ReadDir(to); !errors.Is(err, context.Canceled) || len(list) != 0 {
			t.Errorf("cancelled: %v, left %v", err, list)
		}
		if _, err := transfer.Unpack(t.Context(), bytes.NewReader(archive), dir, transfer.UnpackOptions{}); !errors.Is(err, fs.ErrExist) {
			t.Errorf("into a full directory: %v", err)
		}

		to = filepath.Join(t.TempDir(), "part")
		_, err = transfer.Unpack(t.Context(), bytes.NewReader(archive), to, transfer.UnpackOptions{
			Want: func(name string) bool { return name == "config.dump" },
		})
		if got := tree(t, to); err != nil || len(got) != 3 || got["config.dump"] != "{}" {
			t.Errorf("one entry: %v, %v", got, err)
		}
	})
}

// A pipe whose other end does nothing must not keep an operation from being cancelled.
func TestStuck(t *testing.T) {
	compressions(t, func(t *testing.T, c transfer.Compression) {
		files := small()
		files["checkpoint/pages-1.img"] = string(memory("random", 4<<20))
		dir, m := image(t, files)
		archive := pack(t, dir, m, c)
		for _, n := range []int{0, 10, 600, len(archive) / 2, len(archive) - 1, len(archive)} {
			r, w := io.Pipe()
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				w.Write(archive[:n])
				cancel()
			}()
			to := filepath.Join(t.TempDir(), "image")
			if _, err := transfer.Unpack(ctx, r, to, transfer.UnpackOptions{}); !errors.Is(err, context.Canceled) || errors.Is(err, checkpoint.ErrDamaged) {
				t.Errorf("unpack, stuck after %d bytes: %v", n, err)
			}
			if _, err := os.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("stuck after %d bytes: left behind: %v", n, err)
			}
			r.Close()
		}
		for _, n := range []int{0, 1000, len(archive) / 2} {
			r, w := io.Pipe()
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				io.CopyN(io.Discard, r, int64(n))
				cancel()
			}()
			if err := transfer.Pack(ctx, w, dir, m, transfer.PackOptions{Compression: c}); !errors.Is(err, context.Canceled) {
				t.Errorf("pack, stuck after %d bytes: %v", n, err)
			}
			w.Close()
		}
		// damage is told at once, even if the other end neither goes on nor goes away
		r, w := io.Pipe()
		bad := bytes.Clone(archive)
		bad[len(bad)/4] ^= 1
		go w.Write(bad)
		if _, err := transfer.Unpack(t.Context(), r, filepath.Join(t.TempDir(), "image"), transfer.UnpackOptions{}); !errors.Is(err, checkpoint.ErrDamaged) {
			t.Errorf("altered: %v", err)
		}
		r.Close()
	})
}

func TestPackFailures(t *testing.T) {
	compressions(t, func(t *testing.T, c transfer.Compression) {
		dir, m := image(t, small())
		opts := transfer.PackOptions{Compression: c}
		full := errors.New("disk full")
		for n := range 3 {
			if err := transfer.Pack(t.Context(), &failingWriter{n * 100, full}, dir, m, opts); !errors.Is(err, full) {
				t.Errorf("%v", err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := transfer.Pack(ctx, io.Discard, dir, m, opts); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		if err := os.WriteFile(filepath.Join(dir, "config.dump"), []byte("changed"), 0o600); err != nil {
			t.Fatal(err)
		}
		want := "pack image: config.dump: changed since it was sealed: 7 bytes, not 2"
		if err := transfer.Pack(t.Context(), io.Discard, dir, m, opts); err == nil || err.Error() != want {
			t.Errorf("%v\nwant\n%s", err, want)
		}
		// the same size: the digest tells
		if err := os.WriteFile(filepath.Join(dir, "config.dump"), []byte("[]"), 0o600); err != nil {
			t.Fatal(err)
		}
		refused(t, pack(t, dir, m, c), filepath.Join(t.TempDir(), "image"))
		m.Entries[0].Name = "../x"
		if err := transfer.Pack(t.Context(), io.Discard, dir, m, opts); err == nil {
			t.Error("an invalid manifest is packed")
		}
	})
	dir, m := image(t, small())
	want := `pack image: compression "lzma": want "zstd" or "none"`
	if err := transfer.Pack(t.Context(), io.Discard, dir, m, transfer.PackOptions{Compression: "lzma"}); err == nil || err.Error() != want {
		t.Errorf("%v\nwant\n%s", err, want)
	}
}

// failingWriter takes so many bytes.
type failingWriter struct {
	left int
	err  error
}

func (w *failingWriter) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, w.err
	}
	return len(p), nil
}

// FuzzUnpack: what is accepted opens as a directory and comes back the same through another archive; whatever
// is refused leaves nothing behind, and nothing is ever written elsewhere.
func FuzzUnpack(f *testing.F) {
	dir, m := image(f, map[string]string{"checkpoint/core-1.img": "core", "config.dump": "{}"})
	body := pack(f, dir, m, transfer.None)
	body = body[:len(body)-512]
	f.Add(body, false)
	f.Add(transfer.Compressed(body), true)
	f.Fuzz(func(t *testing.T, body []byte, isZstd bool) {
		c := transfer.None
		if isZstd {
			c = transfer.Zstd
		}
		top := t.TempDir()
		to := filepath.Join(top, "image")
		m, err := transfer.Unpack(t.Context(), bytes.NewReader(transfer.Sealed(c, body)), to, transfer.UnpackOptions{})
		list, _ := os.ReadDir(top)
		if err != nil {
			if len(list) != 0 || m != nil {
				t.Errorf("%v left %v", err, list)
			}
			return
		}
		if len(list) != 1 {
			t.Errorf("written elsewhere: %v", list)
		}
		if _, err := checkpoint.OpenDir(t.Context(), to); err != nil {
			t.Error(err)
		}
		if m.Format.Minor > checkpoint.FormatMinor {
			return
		}
		once := pack(t, to, m, c)
		again := filepath.Join(top, "again")
		m, err = transfer.Unpack(t.Context(), bytes.NewReader(once), again, transfer.UnpackOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(once, pack(t, again, m, c)) {
			t.Error("another archive of the same image differs")
		}
	})
}
