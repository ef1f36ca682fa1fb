package transfer_test

import (
	"bytes"
	"crypto/sha256"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/transfer"
)

// What was packed ahead need not be in the image's directory any more, and comes back with all else.
func TestAhead(t *testing.T) {
	files := small()
	files["checkpoint/pages-1.img"] = strings.Repeat("page of memory\x00", 1<<18) + "end"
	files["checkpoint/pages-2.img"] = string(memory("random", 3<<20+4096))
	files["checkpoint/pages-3.img"] = string(memory("random", 1<<20)) + strings.Repeat("x", 1<<20) // one that shrinks, one that does not
	files["checkpoint/pages-4.img"] = strings.Repeat("\x00", 5<<20)
	dir, m := image(t, files)
	ahead, err := transfer.NewAhead()
	if err != nil {
		t.Fatal(err)
	}
	defer ahead.Close()
	for name, data := range files {
		for i := 0; i*checkpoint.ChunkSize < len(data); i++ {
			chunk := []byte(data[i*checkpoint.ChunkSize : min(len(data), (i+1)*checkpoint.ChunkSize)])
			if !ahead.Chunk(name, i, chunk) {
				continue
			}
			f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt(make([]byte, len(chunk)), int64(i)*checkpoint.ChunkSize); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	var archive bytes.Buffer
	var done int64
	opts := transfer.PackOptions{Ahead: ahead, Progress: func(n int64) { done = n }}
	if err := transfer.Pack(t.Context(), &archive, dir, m, opts); err != nil {
		t.Fatal(err)
	}
	if done != m.Bytes() {
		t.Errorf("%d bytes were done of %d", done, m.Bytes())
	}
	to := filepath.Join(t.TempDir(), "image")
	if _, err := transfer.Unpack(t.Context(), bytes.NewReader(archive.Bytes()), to, transfer.UnpackOptions{}); err != nil {
		t.Fatal(err)
	}
	got := tree(t, to)
	for name, data := range files {
		if sha256.Sum256([]byte(got[name])) != sha256.Sum256([]byte(data)) {
			t.Errorf("%s came back as other %d bytes", name, len(got[name]))
		}
	}
	if most := 5 << 20; archive.Len() > most {
		t.Errorf("the archive has %d bytes, more than %d", archive.Len(), most)
	}
}

// Where there is no room for what is packed ahead, it is packed later.
func TestAheadFull(t *testing.T) {
	files := map[string]string{"checkpoint/pages-1.img": strings.Repeat("page of memory\x00", 1<<18)}
	dir, m := image(t, files)
	ahead, err := transfer.NewAhead()
	if err != nil {
		t.Fatal(err)
	}
	ahead.Close() // it can't write
	data := files["checkpoint/pages-1.img"]
	for i := 0; i*checkpoint.ChunkSize < len(data); i++ {
		if ahead.Chunk("checkpoint/pages-1.img", i, []byte(data[i*checkpoint.ChunkSize:min(len(data), (i+1)*checkpoint.ChunkSize)])) {
			t.Errorf("chunk %d was kept", i)
		}
	}
	var archive bytes.Buffer
	if err := transfer.Pack(t.Context(), &archive, dir, m, transfer.PackOptions{Ahead: ahead}); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "image")
	if _, err := transfer.Unpack(t.Context(), &archive, to, transfer.UnpackOptions{}); err != nil {
		t.Fatal(err)
	}
	if tree(t, to)["checkpoint/pages-1.img"] != data {
		t.Error("it came back as something else")
	}
}
