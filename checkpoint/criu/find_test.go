package criu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestParseVersion(t *testing.T) {
	for _, tt := range []struct {
		out  string
		want string
	}{
		{"Version: 4.2.1\nGitID: v4.2.1\n", "4.2.1"},
		{"Version: 4.2\n", "4.2"},
		{"Version: 3.17.1 (gitid 0)\n", "3.17.1"},
		{"Version: 4.3-rc1\n", "4.3"},
		{"4.2", "4.2"},
	} {
		v, err := ParseVersion(tt.out)
		if err != nil || v.String() != tt.want {
			t.Errorf("ParseVersion(%q) = %v, %v; want %s", tt.out, v, err, tt.want)
		}
	}
	for _, out := range []string{"", "Version: ", "Version: 4", "Version: x.y", "Version: 1.2.3.4", "Version: 4.-2"} {
		if v, err := ParseVersion(out); err == nil {
			t.Errorf("ParseVersion(%q) = %v, want an error", out, v)
		}
	}
}

func TestVersionLess(t *testing.T) {
	ordered := []Version{{3, 17, 1}, {4, 0, 0}, {4, 1, 1}, {4, 2, 0}, {4, 2, 1}, {5, 0, 0}}
	for i, a := range ordered {
		for j, b := range ordered {
			if got := a.Less(b); got != (i < j) {
				t.Errorf("%v.Less(%v) = %v", a, b, got)
			}
		}
	}
}

// script installs a program named criu that answers as given.
func script(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "criu")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFind(t *testing.T) {
	path := script(t, "")
	if got, err := Find(path); err != nil || got != path {
		t.Errorf("Find(%q) = %q, %v", path, got, err)
	}

	_, err := Find(path + "-missing")
	var missing *NotFoundError
	if !errors.As(err, &missing) || !errors.Is(err, os.ErrNotExist) || missing.Remedy() == "" {
		t.Errorf("a missing explicit path gave %v, want a NotFoundError with a remedy", err)
	}

	if _, err := os.Stat(PrivatePath); err != nil {
		t.Setenv("PATH", filepath.Dir(path))
		if got, err := Find(""); err != nil || got != path {
			t.Errorf("Find(\"\") = %q, %v; want the one on PATH", got, err)
		}
	}
}

func TestRequire(t *testing.T) {
	v, err := Require(context.Background(), script(t, "echo Version: 4.2.1"))
	if err != nil || v != (Version{4, 2, 1}) {
		t.Errorf("Require = %v, %v", v, err)
	}

	_, err = Require(context.Background(), script(t, "echo Version: 3.17.1"))
	var old *TooOldError
	if !errors.As(err, &old) || old.Remedy() == "" {
		t.Errorf("an old criu gave %v, want a TooOldError with a remedy", err)
	}

	_, err = Require(context.Background(), script(t, "echo no such library >&2; exit 127"))
	if err == nil || errors.As(err, &old) && old.Have != (Version{3, 17, 1}) {
		t.Errorf("a broken criu gave %v", err)
	}
}
