package host

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
)

type remediedError struct{ error }

func (remediedError) Remedy() string { return "its own remedy" }

func TestTry(t *testing.T) {
	fail := errors.New("missing")
	for _, tt := range []struct {
		name string
		p    probe
		err  error
		want Probe
	}{
		{"ok", probe{needed: true, remedy: "r"}, nil, Probe{Status: OK, Needed: true, Detail: "fine"}},
		{"needed", probe{needed: true, lack: "sad", remedy: "r"}, fail, Probe{Status: Fail, Needed: true, Detail: "missing: sad", Remedy: "r"}},
		{"not needed", probe{lack: "sad", remedy: "r"}, fail, Probe{Status: Warn, Detail: "missing: sad", Remedy: "r"}},
		{"error with a remedy", probe{remedy: "r"}, remediedError{fail}, Probe{Status: Warn, Detail: "missing", Remedy: "its own remedy"}},
		{"skipped", probe{needed: true, remedy: "r"}, skip("no reason"), Probe{Status: Skip, Needed: true, Detail: "not tried, no reason"}},
	} {
		tt.p.run = func(context.Context) (string, error) { return "fine", tt.err }
		if got := tt.p.try(context.Background()); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

func TestReady(t *testing.T) {
	probes := []Probe{{Name: "a", Needed: true, Status: OK}, {Name: "b", Status: Warn}}
	if missing, ok := Ready(probes); !ok || missing != nil {
		t.Errorf("Ready = %v, %v; want ready", missing, ok)
	}
	probes = append(probes, Probe{Name: "c", Needed: true, Status: Fail}, Probe{Name: "d", Needed: true, Status: Skip})
	if missing, ok := Ready(probes); ok || !reflect.DeepEqual(missing, []string{"c", "d"}) {
		t.Errorf("Ready = %v, %v; want c and d missing", missing, ok)
	}
}

// TestProbesAreComplete: a probe that can fail says what to do about it.
func TestProbesAreComplete(t *testing.T) {
	seen := map[string]bool{}
	for _, table := range [][]probe{privilegeProbes, criuProbes(""), kernelProbes, machineProbes} {
		for _, p := range table {
			if p.name == "" || seen[p.name] || p.remedy == "" || p.run == nil {
				t.Errorf("probe %q: unnamed, named twice or without a remedy", p.name)
			}
			seen[p.name] = true
		}
	}
}

// TestCheckHere runs the real probes: as root, on a kernel that this project supports, those of the kernel
// that are needed succeed.
func TestCheckHere(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	criu := filepath.Join(dir, "criu")
	if err := os.WriteFile(criu, []byte("#!/bin/sh\n[ \"$1\" = --version ] && echo Version: 4.2.1\nexit 0\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	probes := Check(context.Background(), Options{CRIU: criu})
	for _, p := range probes {
		t.Logf("%-4s %s: %s", p.Status, p.Name, p.Detail)
		if p.Detail == "" || p.Status != OK && p.Status != Skip && p.Remedy == "" {
			t.Errorf("%s: no detail or no remedy", p.Name)
		}
	}
	missing, _ := Ready(probes)
	if _, ok := isTmpfs("/run"); !ok { // as in many containers
		missing = slices.DeleteFunc(missing, func(name string) bool { return name == "run-tmpfs" })
	}
	if len(missing) > 0 {
		t.Errorf("this host lacks %v", missing)
	}

	broken := Check(context.Background(), Options{CRIU: criu + "-missing"})
	if missing, _ := Ready(broken); len(missing) < 2 || missing[0] != "criu" || missing[1] != "criu-check" {
		t.Errorf("without criu %v is missing, want criu and criu-check first", missing)
	}
}
