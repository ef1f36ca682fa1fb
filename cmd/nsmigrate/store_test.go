package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/transfer"
)

// sampleManifest describes a service that nobody dumped.
func sampleManifest() *checkpoint.Manifest {
	return &checkpoint.Manifest{
		ID:      "00112233445566778899aabbccddeeff",
		Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Tool:    "nsmigrate test",
		Host:    checkpoint.Host{Name: "old", Kernel: "6.18.0", Arch: "amd64", CRIU: "4.2.1"},
		Target:  checkpoint.Target{NetNS: "svc", Inode: 4026532000},
		Source:  checkpoint.SourceStopped,
		Trees: []checkpoint.Tree{{
			Dir: checkpoint.TreesDir, Root: 100, HostRoot: 100, MountNS: checkpoint.MountHost,
			IDs: []int{100, 101, 103}, Command: []string{"server", "--port", "80"}, Cwd: "/",
			Binaries: []checkpoint.Binary{{Path: "/usr/bin/server", Size: 123456, BuildID: "0123456789abcdef0123456789abcdef01234567"}},
		}},
	}
}

// sampleImage is a sealed image of it.
func sampleImage(t *testing.T) (string, *checkpoint.Manifest) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "image")
	m := sampleManifest()
	for name, content := range map[string]string{
		"checkpoint/inventory.img": "inventory", "checkpoint/pages-1.img": "memory", "sockets.json": "{}",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := checkpoint.Seal(context.Background(), dir, m); err != nil {
		t.Fatal(err)
	}
	return dir, m
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestPlaceStore: nothing bears the user's name before the image is published, and nothing else is left after.
func TestPlaceStore(t *testing.T) {
	ctx := context.Background()
	for name, dest := range map[string]destination{
		"directory": {dir: "svc"}, "zstd": {file: "svc", compress: true}, "plain": {file: "svc"},
	} {
		t.Run(name, func(t *testing.T) {
			where := t.TempDir()
			t.Chdir(where)
			u := newUI(nil, nil, nil)

			dir, m := sampleImage(t)
			s := u.store(dest, nil, nil, nil)
			if err := s.Stage(ctx, dir, m); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Lstat("svc"); err == nil {
				t.Fatal("a staged image has its name already")
			}
			if err := s.Discard(); err != nil || names(t, where) != nil {
				t.Fatalf("discarded: %v, %v left", err, names(t, where))
			}

			dir, m = sampleImage(t)
			s = u.store(dest, nil, nil, nil)
			if err := s.Stage(ctx, dir, m); err != nil {
				t.Fatal(err)
			}
			if err := s.Publish(); err != nil {
				t.Fatal(err)
			}
			if got := names(t, where); len(got) != 1 || got[0] != "svc" {
				t.Fatalf("published: %v", got)
			}
			src := source{dir: dest.dir, file: dest.file}
			_, got, done, err := u.open(ctx, src)
			if err != nil || got.ID != m.ID {
				t.Fatalf("opened: %v, %v", got, err)
			}
			done()
		})
	}
}

// TestPlaceStoreNameTaken: an image is not lost, and replaces no other, if its name was taken meanwhile.
func TestPlaceStoreNameTaken(t *testing.T) {
	t.Chdir(t.TempDir())
	u := newUI(nil, nil, nil)
	dir, m := sampleImage(t)
	s := u.store(destination{file: "svc"}, nil, nil, nil)
	if err := s.Stage(context.Background(), dir, m); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("svc", []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Publish(); err == nil {
		t.Error("an image replaced another file")
	}
	if b, _ := os.ReadFile("svc"); string(b) != "another" {
		t.Errorf("the other file holds %q", b)
	}
	if got := names(t, "."); len(got) != 2 {
		t.Errorf("files: %v, want the other one and the staged image", got)
	}
}

// TestStreamStore: what a reader has before the source is gone is no image.
func TestStreamStore(t *testing.T) {
	ctx := context.Background()
	var out bytes.Buffer
	u := newUI(&out, &out, nil)
	for _, compress := range []bool{true, false} {
		out.Reset()
		dir, m := sampleImage(t)
		s := u.store(destination{stdout: true, compress: compress}, nil, nil, nil)
		if err := s.Stage(ctx, dir, m); err != nil {
			t.Fatal(err)
		}
		_, err := transfer.Unpack(ctx, bytes.NewReader(out.Bytes()), filepath.Join(t.TempDir(), "early"), transfer.UnpackOptions{})
		if statusOf(err) != statusDamaged {
			t.Errorf("a staged stream unpacks with %v, want a damaged image", err)
		}
		if err := s.Publish(); err != nil {
			t.Fatal(err)
		}
		_, got, done, err := u.open(ctx, source{stdin: true})
		if err != nil || got.ID != m.ID {
			t.Fatalf("opened: %v, %v", got, err)
		}
		done()
	}
}
