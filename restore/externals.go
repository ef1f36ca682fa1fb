package restore

import (
	"fmt"
	"io"
	"net"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/checkpoint/criu"
)

// openExternals opens what takes the place of the tree's files whose other end stayed on the source host.
func (t *tree) openExternals(stdio []*os.File) error {
	for _, e := range t.facts.Externals {
		if e.Kind == checkpoint.KindDatagram {
			continue // connected later, from outside
		}
		f, err := t.replacement(e, stdio)
		if err != nil {
			return fmt.Errorf("open what takes the place of %s %s: %w", e.Kind, e.Path, err)
		}
		t.inherit = append(t.inherit, criu.Inherit{Key: e.Key, File: f})
	}
	return nil
}

// seek brings files that were opened while the service ran to where it was in them when it stopped.
func (t *tree) seek() error {
	for _, e := range t.facts.Externals {
		i := slices.IndexFunc(t.inherit, func(in criu.Inherit) bool { return in.Key == e.Key })
		if i < 0 || e.Kind != "file" {
			continue
		}
		if err := seekTo(t.inherit[i].File, e); err != nil {
			return err
		}
	}
	return nil
}

// seekTo goes to where the service was in a file, if that means anything: it does not for devices.
func seekTo(f *os.File, e checkpoint.External) error {
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() || e.Flags&unix.O_APPEND != 0 {
		return err
	}
	_, err = f.Seek(e.Pos, io.SeekStart)
	return err
}

func closeAll(list []criu.Inherit) {
	for _, in := range list {
		in.File.Close()
	}
}

func (t *tree) replacement(e checkpoint.External, stdio []*os.File) (*os.File, error) {
	switch e.Kind {
	case "file":
		return openFile(e)
	case "socket":
		return dialUnix(e.Path)
	case "tty":
		term, err := newTerminal()
		if err != nil {
			return nil, err
		}
		t.terminals = append(t.terminals, term)
		return dup(term.slave)
	}
	// A pipe: ours if there is one at the same descriptor, else nothing to read and nowhere to write.
	for _, fd := range e.FDs {
		if fd.FD < len(stdio) && stdio[fd.FD] != nil {
			return dup(stdio[fd.FD])
		}
	}
	return os.OpenFile(os.DevNull, os.O_RDWR, 0)
}

// openFile opens a file as the service had it. Descriptors that share a file share CRIU's key, whatever
// their access mode, so a device is opened for both; a log that does not exist here begins anew.
func openFile(e checkpoint.External) (*os.File, error) {
	flags := e.Flags &^ (unix.O_CREAT | unix.O_EXCL | unix.O_TRUNC)
	if st, err := os.Stat(e.Path); err == nil && st.Mode()&os.ModeDevice != 0 {
		flags = flags&^unix.O_ACCMODE | unix.O_RDWR
	} else if flags&unix.O_ACCMODE != unix.O_RDONLY {
		flags |= unix.O_CREAT
	}
	fd, err := unix.Open(e.Path, flags|unix.O_CLOEXEC|unix.O_NOCTTY, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: e.Path, Err: err}
	}
	f := os.NewFile(uintptr(fd), e.Path)
	if err := seekTo(f, e); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func dialUnix(path string) (*os.File, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	f, err := conn.File()
	if err != nil {
		return nil, err
	}
	// Go polls the socket; the service expects it to block unless it says otherwise.
	return f, unix.SetNonblock(int(f.Fd()), false)
}

func dup(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
