package frozen_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
	"github.com/nsmigrate/nsmigrate/restore"
	"github.com/nsmigrate/nsmigrate/transfer/frozen"
	"github.com/nsmigrate/nsmigrate/transfer/journal"
)

func create(t *testing.T, d journal.Dir, role journal.Role) *journal.Journal {
	t.Helper()
	j, err := d.Create(journal.NewID(), role, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

// What is saved of a service is what is loaded.
func TestSave(t *testing.T) {
	d := journal.Dir{Path: filepath.Join(t.TempDir(), "state"), Boot: "boot-1"}
	j := create(t, d, journal.Dump)
	if r, err := frozen.Load(&j.Content); r != nil || err != nil {
		t.Errorf("before it was saved: %+v, %v", r, err)
	}
	if err := frozen.Save(j, &checkpoint.Record{NetNS: "svc", Inode: 7}); err != nil {
		t.Fatal(err)
	}
	if r, err := frozen.Load(&j.Content); err != nil || r.NetNS != "svc" || r.Inode != 7 || r.Contexts != nil {
		t.Errorf("saved: %+v, %v", r, err)
	}
	for _, c := range []checkpoint.Contexts{{nil, nil}, nil} {
		if err := frozen.SaveContexts(j, c); err != nil {
			t.Fatal(err)
		}
		if r, err := frozen.Load(&j.Content); err != nil || len(r.Contexts) != len(c) {
			t.Errorf("contexts: %+v, %v", r, err)
		}
	}
}

// A damaged journal stands in the way of its own service, and of no other.
func TestSaveBesideDamage(t *testing.T) {
	d := journal.Dir{Path: filepath.Join(t.TempDir(), "state"), Boot: "boot-1"}
	cut := create(t, d, journal.Source)
	service := proc.Ident{PID: 7, Start: 70}
	if err := frozen.Save(cut, &checkpoint.Record{Roots: []proc.Ident{service}}); err != nil {
		t.Fatal(err)
	}
	cut.Close()
	if err := os.WriteFile(filepath.Join(cut.Path(), "journal"), []byte("nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := frozen.Save(create(t, d, journal.Dump), &checkpoint.Record{Roots: []proc.Ident{{PID: 8}}}); err != nil {
		t.Errorf("another service: %v", err)
	}
	err := frozen.Save(create(t, d, journal.Dump), &checkpoint.Record{Roots: []proc.Ident{service}})
	if _, ok := errors.AsType[*checkpoint.RefusedError](err); !ok {
		t.Errorf("the same service: %v", err)
	}
}

// A service of which another operation was cut short is not touched: ended later, that one would let it go on.
func TestSaveRefuses(t *testing.T) {
	service, other := proc.Ident{PID: 7, Start: 70}, proc.Ident{PID: 7, Start: 71}
	dumped := func(j *journal.Journal, id proc.Ident) error {
		return frozen.Save(j, &checkpoint.Record{Roots: []proc.Ident{{PID: 5}, id}})
	}
	restored := func(j *journal.Journal, id proc.Ident) error {
		return j.SaveJSON(frozen.RestoreFile, map[string]any{"record": restore.Record{Processes: []proc.Ident{{PID: 6}, id}}})
	}
	for name, tt := range map[string]struct {
		role    journal.Role
		save    func(*journal.Journal, proc.Ident) error
		id      proc.Ident
		busy    bool
		boot    string
		refused bool
	}{
		"a dump":                     {journal.Dump, dumped, service, false, "boot-1", true},
		"a migration of it":          {journal.Source, dumped, service, false, "boot-1", true},
		"a restore":                  {journal.Restore, restored, service, false, "boot-1", true},
		"a migration to here":        {journal.Destination, restored, service, false, "boot-1", true},
		"of another service":         {journal.Dump, dumped, other, false, "boot-1", false},
		"of another restored one":    {journal.Restore, restored, other, false, "boot-1", false},
		"that somebody is busy with": {journal.Dump, dumped, service, true, "boot-1", false},
		"before the host restarted":  {journal.Dump, dumped, service, false, "boot-0", false},
	} {
		t.Run(name, func(t *testing.T) {
			d := journal.Dir{Path: filepath.Join(t.TempDir(), "state"), Boot: tt.boot}
			cut := create(t, d, tt.role)
			if err := tt.save(cut, tt.id); err != nil {
				t.Fatal(err)
			}
			if !tt.busy {
				cut.Close()
			}
			d.Boot = "boot-1"
			err := frozen.Save(create(t, d, journal.Dump), &checkpoint.Record{Roots: []proc.Ident{service}})
			refused, ok := errors.AsType[*checkpoint.RefusedError](err)
			if ok != tt.refused || err != nil && !ok {
				t.Fatalf("saved with %v, want a refusal: %v", err, tt.refused)
			}
			if ok && (len(refused.Problems) != 1 || !strings.Contains(refused.Problems[0].Remedy, "nsmigrate recover "+cut.ID)) {
				t.Errorf("refused: %v", refused)
			}
		})
	}
}
