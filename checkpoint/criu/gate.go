package criu

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The image that criu reads first of all, when it has found out what it has to know of the kernel (check_img_inventory
// of criu/image.c).
const inventory = "inventory.img"

// maxInventory bounds its size: what a pipe takes at once.
const maxInventory = 4 << 10

// StoreAs returns the name under which an image of a restore that is on its way is stored: see [Process.Arrived].
func StoreAs(name string) string {
	if filepath.Base(name) == inventory {
		return name + ".arrived"
	}
	return name
}

// makeGate has criu find a pipe where it looks for its first image. An end of it that is read in a process that died, as
// all of this one's are, is the end of an image that is too short, and the end of criu. theirs is to become the descriptor
// fd of criu.
func (p *Process) makeGate(fd int) (theirs *os.File, err error) {
	path := filepath.Join(p.images, inventory)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := os.Symlink(fmt.Sprintf("/proc/self/fd/%d", fd), path); err != nil {
		return nil, err
	}
	if theirs, p.gate, err = os.Pipe(); err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	p.files = append(p.files, p.gate)
	return theirs, nil
}

// Arrived lets a criu that was started with Await go on: all images are there now, stored as [StoreAs] says. It could take
// up its request before, which saves it a millisecond when a service waits. For one that was started without Await, or has
// ended, nothing is to be done.
func (p *Process) Arrived() error {
	if p.gate == nil {
		return nil
	}
	f, err := os.Open(filepath.Join(p.images, StoreAs(inventory)))
	if err != nil {
		return fmt.Errorf("criu restore: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxInventory+1))
	if err == nil && len(b) > maxInventory {
		err = fmt.Errorf("%s has more than %d bytes", f.Name(), maxInventory)
	}
	if err == nil {
		_, err = p.gate.Write(b)
	}
	if err != nil && !errors.Is(err, unix.EPIPE) { // then criu has ended, and what it says tells why
		return fmt.Errorf("criu restore: %w", err)
	}
	return p.gate.Close()
}

// Waits reports whether an image in dir is on its way still, or came so that only a process with Await can restore it.
func Waits(dir string) bool {
	st, err := os.Lstat(filepath.Join(dir, inventory))
	return err != nil || !st.Mode().IsRegular()
}
