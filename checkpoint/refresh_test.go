package checkpoint

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// A file that grew after the survey is described with its size at the freeze.
func TestRefresh(t *testing.T) {
	n := newNS(t)
	dir := t.TempDir()
	name := filepath.Join(dir, "data")
	if err := os.WriteFile(name, []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	serve(t, n, "file", []string{"DATA_FILE=" + name})
	found := Classify(survey(t, n), 0)
	tree := &found.Trees[0]
	before := tree.IDs
	if err := os.WriteFile(name, []byte("123456789"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := tree.refresh(&found.Scanned[0]); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(tree.Files, File{name, 9}) || !slices.Contains(tree.IDs, before[0]) {
		t.Errorf("%+v", tree)
	}
	os.Remove(name)
	if err := tree.refresh(&found.Scanned[0]); err != nil || len(tree.Files) > 0 {
		t.Errorf("%+v, %v", tree.Files, err)
	}
}
