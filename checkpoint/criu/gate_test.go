package criu

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// awaiting starts something in criu's place that reads the first image into a file, as criu with the given path would.
func awaiting(t *testing.T) (p *Process, images, read string) {
	t.Helper()
	images, read = t.TempDir(), filepath.Join(t.TempDir(), "read")
	path := script(t, "exec cat /proc/self/fd/4/"+inventory+" >"+read)
	dir, err := os.Open(images)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if !Waits(images) {
		t.Fatal("nobody waits for images that are not there")
	}
	if p, err = Start(Config{Path: path, Images: dir, Work: dir, Await: true}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p, images, read
}

// Images may come when criu has begun: it reads the first of them when all are there.
func TestArrived(t *testing.T) {
	p, images, read := awaiting(t)
	if err := p.Arrived(); err == nil {
		t.Fatal("images that are not there have arrived")
	}
	want := []byte("an inventory")
	if err := os.WriteFile(filepath.Join(images, StoreAs(inventory)), want, 0o600); err != nil {
		t.Fatal(err)
	}
	if !Waits(images) {
		t.Error("who starts now could not read them")
	}
	if err := p.Arrived(); err != nil {
		t.Fatal(err)
	}
	<-p.exited
	if got, err := os.ReadFile(read); err != nil || !bytes.Equal(got, want) {
		t.Errorf("criu read %q, %v", got, err)
	}
}

// A criu whose images don't come ends.
func TestNeverArrived(t *testing.T) {
	p, _, read := awaiting(t)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(read); err != nil || len(got) > 0 {
		t.Errorf("criu read %q, %v", got, err)
	}
}

// A criu that has ended before its images came says itself why.
func TestArrivedTooLate(t *testing.T) {
	p, images, _ := awaiting(t)
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-p.exited
	if err := os.WriteFile(filepath.Join(images, StoreAs(inventory)), []byte("an inventory"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.Arrived(); err != nil {
		t.Error(err)
	}
}

// What comes from another host does not fill the pipe, which would block.
func TestArrivedTooLarge(t *testing.T) {
	p, images, _ := awaiting(t)
	if err := os.WriteFile(filepath.Join(images, StoreAs(inventory)), make([]byte, maxInventory+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.Arrived(); err == nil {
		t.Error("a huge inventory arrived")
	}
}

// Images that were there before are read where they are.
func TestWaits(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, inventory), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if Waits(dir) {
		t.Error("somebody waits for images that are there")
	}
}

// Only the first image has another name on its way.
func TestStoreAs(t *testing.T) {
	for name, want := range map[string]string{
		"criu/inventory.img": "criu/inventory.img.arrived", "inventory.img": "inventory.img.arrived",
		"criu/pstree.img": "criu/pstree.img", "criu/inventory.img/x": "criu/inventory.img/x",
	} {
		if got := StoreAs(name); got != want {
			t.Errorf("StoreAs(%q) = %q, want %q", name, got, want)
		}
	}
}
