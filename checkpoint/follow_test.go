package checkpoint

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Memory that was digested while it was written has the digest of the whole file, however far that had come.
func TestFollow(t *testing.T) {
	dir, whole := t.TempDir(), t.TempDir()
	f := follow(dir)
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
			if _, err := file.Write(bytes.Repeat([]byte{byte(i)}, followFrom/4+i)); err != nil {
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
		if err := sealBegun(t.Context(), d, &manifests[i], known); err != nil {
			t.Fatal(err)
		}
		known = nil
	}
	for i, e := range manifests[0].Entries {
		if e != manifests[1].Entries[i] {
			t.Errorf("%v was sealed as %v", manifests[1].Entries[i], e)
		}
	}
}
