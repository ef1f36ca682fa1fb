package vm

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// needed are the modules without which a guest can't reach its root: the rest is loaded from there.
var needed = []string{"virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"}

// writeInitrd writes an initial RAM disk that holds the given program as /init, and the needed modules in the
// order in which they are to be loaded.
func writeInitrd(path, program, modules string) error {
	list, err := closure(modules, needed)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	archive := cpio{out: &out}
	archive.dir("modules")
	for i, module := range list {
		if err := archive.file(fmt.Sprintf("modules/%02d-%s", i, filepath.Base(module)), filepath.Join(modules, module)); err != nil {
			return err
		}
	}
	// The kernel starts /init with these three open on /dev/console, if it is there.
	archive.dir("dev")
	archive.console()
	if err := archive.file("init", program); err != nil {
		return err
	}
	archive.end()
	return os.WriteFile(path, out.Bytes(), 0o644)
}

// closure returns the files of the named modules and of what they depend on, dependencies first. Modules that
// are part of the kernel itself are left out.
func closure(modules string, names []string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(modules, "modules.dep"))
	if err != nil {
		return nil, err
	}
	builtin, err := os.ReadFile(filepath.Join(modules, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	line := map[string][]string{} // by module name: its file and those it depends on
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		file, dependencies, _ := strings.Cut(lines.Text(), ":")
		line[moduleName(file)] = append([]string{file}, strings.Fields(dependencies)...)
	}
	inside := map[string]bool{}
	for file := range strings.Lines(string(builtin)) {
		inside[moduleName(strings.TrimSpace(file))] = true
	}
	var list []string
	for _, name := range names {
		files, ok := line[name]
		if !ok {
			if inside[name] {
				continue
			}
			return nil, fmt.Errorf("the kernel has no module %s", name)
		}
		for _, file := range slices.Backward(files) { // depmod lists what must come first last
			if !slices.Contains(list, file) {
				list = append(list, file)
			}
		}
	}
	return list, nil
}

func moduleName(file string) string {
	name, _, _ := strings.Cut(filepath.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// cpio writes the archive format of initial RAM disks: see Documentation/driver-api/early-userspace/buffer-format.rst
// of the kernel.
type cpio struct {
	out   *bytes.Buffer
	inode int
}

// Modes of the archive's entries (stat(2)).
const (
	modeDir     = 0o040755
	modeFile    = 0o100755
	modeCharDev = 0o020600
)

func (c *cpio) entry(name string, mode, major, minor int, data []byte) {
	c.inode++
	links := 1
	fmt.Fprintf(c.out, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		c.inode, mode, 0, 0, links, 0, len(data), 0, 0, major, minor, len(name)+1, 0, name)
	c.pad()
	c.out.Write(data)
	c.pad()
}

// pad fills up to a multiple of four bytes.
func (c *cpio) pad() {
	for c.out.Len()%4 != 0 {
		c.out.WriteByte(0)
	}
}

func (c *cpio) dir(name string) { c.entry(name, modeDir, 0, 0, nil) }

func (c *cpio) console() { c.entry("dev/console", modeCharDev, 5, 1, nil) }

func (c *cpio) file(name, from string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if len(data) == 0 {
		return errors.New(from + " is empty")
	}
	c.entry(name, modeFile, 0, 0, data)
	return nil
}

func (c *cpio) end() { c.entry("TRAILER!!!", 0, 0, 0, nil) }
