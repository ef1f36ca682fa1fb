package offline_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/nsmigrate/nsmigrate/transfer/journal"
	"github.com/nsmigrate/nsmigrate/transfer/offline"
)

// Whatever stands in a journal, it is understood or refused.
func FuzzState(f *testing.F) {
	f.Add(true, "stage", []byte(`{"at":"/a","to":"/b"}`), []byte(`{"roots":[{"pid":1}]}`))
	f.Add(true, "whole", []byte(`{"tail":"AAAA"}`), []byte(`{"sockets":{}}`))
	f.Add(true, "whole", []byte(`null`), []byte(`null`))
	f.Add(false, "x", []byte(`7`), []byte(`{"image":"/a","record":{"live":true}}`))
	dir := journal.Dir{Path: filepath.Join(f.TempDir(), "state"), Boot: "boot-1"}
	f.Fuzz(func(t *testing.T, dump bool, step string, data, file []byte) {
		role, name := journal.Restore, "restore.json"
		if dump {
			role, name = journal.Dump, "service.json"
		}
		j, err := dir.Create(journal.NewID(), role, offline.About{})
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(j.Path())
		defer j.Close()
		j.Note(step, json.RawMessage(data)) // some are no steps
		if err := j.Save(name, file); err != nil {
			t.Fatal(err)
		}
		c, err := dir.Read(j.ID, role)
		if err != nil {
			t.Fatal(err)
		}
		if state, err := offline.State(c); err == nil && !slices.Contains([]string{"begun", "frozen", "whole", "building", "live"}, state) {
			t.Errorf("state %q", state)
		}
	})
}
