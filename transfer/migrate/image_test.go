package migrate

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// piece is an entry on its way.
type piece struct {
	name string
	data []byte
}

// An image that was sent is there, byte by byte, whatever the size of its files.
func TestImage(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	random := rand.New(rand.NewPCG(1, 2))
	files := map[string]int{
		"sockets.json": 100, "checkpoint/core-1.img": 1, "checkpoint/empty.img": 0, "checkpoint/tree-2/small.img": smallFile,
		"checkpoint/ghost-file-1.img": smallFile + 1,
	}
	for i := range 2 * together / smallFile {
		files[filepath.Join("checkpoint/many", string(rune('a'+i)))] = smallFile - i
	}
	if err := os.MkdirAll(filepath.Join(from, "checkpoint"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(from, "checkpoint/core-2.img"), nil, 0o600); err != nil { // which was sent before
		t.Fatal(err)
	}
	content := make(map[string][]byte)
	for name, size := range files {
		content[name] = make([]byte, size)
		for i := range content[name] {
			content[name][i] = byte(random.Uint32())
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(from, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(from, name), content[name], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var sent []piece
	err := sendImage(t.Context(), from, map[string]bool{"checkpoint/core-2.img": true}, func(_ context.Context, name string, size int64, r io.Reader) error {
		b, err := io.ReadAll(r)
		if err == nil && int64(len(b)) != size {
			t.Errorf("%s has %d bytes, not %d", name, len(b), size)
		}
		sent = append(sent, piece{name, b})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(sent) >= len(files)/2 {
		t.Errorf("%d files travelled as %d entries", len(files), len(sent))
	}
	for _, p := range sent {
		if err := storeImage(to, p.name, bytes.NewReader(p.data)); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range content {
		if got, err := os.ReadFile(filepath.Join(to, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v, or other bytes", name, err)
		}
	}
}

// Files of connections and their sockets' options travel when they are written, others don't, and none travels twice.
func TestImageEarly(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	if err := os.Mkdir(filepath.Join(from, "checkpoint"), 0o700); err != nil {
		t.Fatal(err)
	}
	arrived := make(chan struct{}, 3)
	send := func(_ context.Context, name string, _ int64, r io.Reader) error {
		defer func() { arrived <- struct{}{} }()
		return storeImage(to, name, r)
	}
	e := sendEarly(t.Context(), from, []string{".", "checkpoint"}, send)
	want := make(map[string][]byte)
	write := func(name string, data []byte) {
		want[name] = data
		if err := os.WriteFile(filepath.Join(from, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("sockets.json", []byte("{}"))
	write("other.json", []byte("{}"))
	write("checkpoint/core-1.img", []byte("core"))
	write("checkpoint/tcp-stream-1.img", bytes.Repeat([]byte{1}, soon))
	write("checkpoint/tcp-stream-2.img", []byte("two"))
	<-arrived
	before, err := e.finish()
	if err != nil {
		t.Fatal(err)
	}
	if !before["checkpoint/tcp-stream-1.img"] || !before["sockets.json"] || before["checkpoint/core-1.img"] || before["other.json"] {
		t.Errorf("sent early: %v", before)
	}
	if err := sendImage(t.Context(), from, before, send); err != nil {
		t.Fatal(err)
	}
	for name, data := range want {
		if got, err := os.ReadFile(filepath.Join(to, name)); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %v, or other bytes", name, err)
		}
	}
}

// Memory comes in pieces, and what is zero takes no room.
func TestImagePages(t *testing.T) {
	dir := t.TempDir()
	const name = "checkpoint/pages-1.img"
	full, zero := bytes.Repeat([]byte{7}, pageSize), make([]byte, pageSize)
	var want []byte
	for _, pages := range [][][]byte{{}, {zero, full, zero, zero, full, full, zero}, {zero}, {full}, {zero, zero}} {
		data := slices.Concat(pages...)
		want = append(want, data...)
		if err := storeImage(dir, name, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("after %d pages: %d bytes, %v", len(want)/pageSize, len(got), err)
		}
	}
	if err := storeImage(dir, "../pages-1.img", bytes.NewReader(full)); err == nil {
		t.Error("memory went out of the image")
	}
}

func FuzzStoreFiles(f *testing.F) {
	files := func(names ...string) []byte {
		var b []byte
		for _, name := range names {
			b = binary.BigEndian.AppendUint16(b, uint16(len(name)))
			b = binary.BigEndian.AppendUint32(b, 3)
			b = append(b, name+"abc"...)
		}
		return b
	}
	f.Add(files("a", "b/c"))
	f.Add(files("../a"))
	f.Add(files("/a"))
	f.Add(files("a", "a/b", "a"))
	f.Add(files("a\x00b", ""))
	f.Add(files("a")[:8])
	f.Add([]byte("\x00\x01\xff\xff\xff\xffa"))
	f.Fuzz(func(t *testing.T, data []byte) {
		top := t.TempDir()
		dir := filepath.Join(top, "image")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		storeImage(dir, filesEntry, bytes.NewReader(data)) //nolint:errcheck // it may fail, but not go out of the image
		entries, err := os.ReadDir(top)
		if err != nil || len(entries) != 1 {
			t.Fatalf("beside the image: %v, %v", entries, err)
		}
		err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() && !d.Type().IsRegular() {
				t.Errorf("%s is %v", path, d.Type())
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
