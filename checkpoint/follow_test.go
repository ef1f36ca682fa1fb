package checkpoint

import (
	"bytes"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// Memory that was digested while it was written has the digest of the whole file, however far that had come.
func TestFollow(t *testing.T) {
	dir, whole := t.TempDir(), t.TempDir()
	chunks := make(map[string]map[int][]byte)
	var mu sync.Mutex
	told := func(name string, index int, data []byte) bool {
		mu.Lock()
		defer mu.Unlock()
		if chunks[name] == nil {
			chunks[name] = make(map[int][]byte)
		}
		if _, ok := chunks[name][index]; ok {
			t.Errorf("chunk %d of %s was told twice", index, name)
		}
		chunks[name][index] = bytes.Clone(data)
		return false
	}
	f := follow(dir, told)
	names := []string{treeDir(0) + "/pages-1.img", treeDir(1) + "/pages-1.img"}
	var files []*os.File
	for _, name := range names {
		for _, d := range []string{dir, whole} {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(d, name)), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		file, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		files = append(files, file)
	}
	for i := range 10 {
		for _, file := range files {
			if _, err := file.Write(bytes.Repeat([]byte{byte(i)}, ChunkSize/4+i)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(followEvery) // how far it comes makes no difference
	}
	known := f.finish()
	for _, file := range files {
		if _, err := file.WriteString("the end"); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(whole, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var manifests [2]Manifest
	for i, d := range []string{dir, whole} {
		manifests[i] = Manifest{ID: NewID(), Source: SourceStopped, Created: time.Now()}
		if err := sealBegun(t.Context(), d, &manifests[i], known, told); err != nil {
			t.Fatal(err)
		}
		known, told = nil, nil
	}
	for i, e := range manifests[0].Entries {
		if e != manifests[1].Entries[i] {
			t.Errorf("%v was sealed as %v", manifests[1].Entries[i], e)
		}
	}
	for _, name := range names {
		want, err := os.ReadFile(filepath.Join(whole, name))
		if err != nil {
			t.Fatal(err)
		}
		var got []byte
		for i := range len(chunks[name]) {
			got = append(got, chunks[name][i]...)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes were told, or others than its %d", name, len(got), len(want))
		}
	}
}

// What somebody keeps takes no room any more, and its digest is that of what was there.
func TestSealKept(t *testing.T) {
	dir := t.TempDir()
	content := bytes.Repeat([]byte("memory of a service, "), ChunkSize/8)
	file := filepath.Join(dir, "pages-1.img")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	m := Manifest{ID: NewID(), Source: SourceStopped, Created: time.Now()}
	if err := sealBegun(t.Context(), dir, &m, nil, func(_ string, index int, _ []byte) bool { return index == 1 }); err != nil {
		t.Fatal(err)
	}
	var whole Digest
	for rest := content; len(rest) > 0; {
		n := min(len(rest), 77_777)
		whole.Write(rest[:n]) //nolint:errcheck // never fails
		rest = rest[n:]
	}
	if want := (Entry{Name: "pages-1.img", Size: int64(len(content)), Digest: whole.Sum()}); m.Entries[0] != want {
		t.Errorf("entry %v, want %v", m.Entries[0], want)
	}
	left, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(left) != len(content) || !bytes.Equal(left[:ChunkSize], content[:ChunkSize]) ||
		!bytes.Equal(left[2*ChunkSize:], content[2*ChunkSize:]) {
		t.Error("more than the chunk that was kept is gone")
	}
}
