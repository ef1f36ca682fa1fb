package ship

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// selinux is the attribute that holds a file's label, which means something only to a host with SELinux.
const selinux = "security.selinux"

// carriedXattr says which extended attributes travel. Others are a file system's own or are made by one host for
// itself (EVM's keyed digest, IMA's measurement, overlayfs' bookkeeping).
func carriedXattr(name string) bool {
	switch {
	case name == "security.evm", name == "security.ima", strings.HasPrefix(name, "trusted.overlay."):
		return false
	case name == "system.posix_acl_access", name == "system.posix_acl_default":
		return true
	}
	for _, prefix := range []string{"user.", "trusted.", "security."} {
		if len(name) > len(prefix) && strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// labels says whether this host labels files with SELinux.
func labels() bool {
	_, err := os.Stat("/sys/fs/selinux/enforce")
	return err == nil
}

// xattrs reads the extended attributes that travel, sorted by name.
func (p *place) xattrs() ([]Xattr, error) {
	names, err := p.xattrNames()
	if err != nil || len(names) == 0 {
		return nil, err
	}
	list := make([]Xattr, 0, len(names))
	for _, n := range names {
		value, err := grow(func(b []byte) (int, error) { return unix.Getxattr(p.proc(), n, b) })
		if errors.Is(err, unix.ENODATA) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("read extended attribute %s: %w", n, err)
		}
		list = append(list, Xattr{n, value})
	}
	return list, nil
}

func (p *place) xattrNames() ([]string, error) {
	b, err := grow(func(b []byte) (int, error) { return unix.Listxattr(p.proc(), b) })
	if errors.Is(err, unix.EOPNOTSUPP) || len(b) == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list extended attributes: %w", err)
	}
	names := strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
	names = slices.DeleteFunc(names, func(n string) bool { return !carriedXattr(n) })
	slices.Sort(names)
	return names, nil
}

// grow calls a function that fills a buffer until the buffer is large enough.
func grow(fill func([]byte) (int, error)) ([]byte, error) {
	for size := 256; ; size *= 4 {
		b := make([]byte, size)
		n, err := fill(b)
		if errors.Is(err, unix.ERANGE) && size <= maxXattr {
			continue
		}
		if err != nil {
			return nil, err
		}
		return b[:n], nil
	}
}

// metaOf completes what stat says of an open handle.
func (p *place) metaOf(st *info) (Meta, error) {
	x, err := p.xattrs()
	return Meta{
		Mode: uint32(st.Mode) & 0o7777, UID: st.Uid, GID: st.Gid, MTime: st.mtime(), Xattrs: x,
	}, err
}

// modeOf is [place.metaOf] for what has no mode of its own.
func modeOf(k Kind, m Meta) Meta {
	if k == Symlink {
		m.Mode = 0o777
	}
	return m
}

// apply makes the metadata of an open handle as wanted. It comes after the last change of the content, which would
// take set-user-id bits, capabilities and the time away.
func (p *place) apply(m *Meta, k Kind) error {
	st, err := p.stat("")
	if err != nil {
		return err
	}
	if st.Uid != m.UID || st.Gid != m.GID {
		if err := unix.Fchownat(p.fd, "", int(m.UID), int(m.GID), unix.AT_EMPTY_PATH); err != nil {
			return fmt.Errorf("give it to user %d and group %d: %w", m.UID, m.GID, err)
		}
	}
	if err := p.applyXattrs(m.Xattrs); err != nil {
		return err
	}
	if k != Symlink { // a chown takes bits of the mode away, and an ACL changes it
		if err := unix.Chmod(p.proc(), m.Mode); err != nil {
			return fmt.Errorf("set mode %#o: %w", m.Mode, err)
		}
	}
	return p.setTime(m.MTime)
}

// setTime sets the time of the last change of an open handle.
func (p *place) setTime(t Time) error {
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: t.Sec, Nsec: int64(t.Nsec)}}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, p.proc(), times, 0); err != nil {
		return fmt.Errorf("set the time: %w", err)
	}
	return nil
}

// applyXattrs also removes those that are not wanted, e.g. an ACL that the directory gave.
func (p *place) applyXattrs(want []Xattr) error {
	have, err := p.xattrs()
	if err != nil {
		return err
	}
	for _, x := range have {
		if x.Name == selinux || slices.ContainsFunc(want, func(w Xattr) bool { return w.Name == x.Name }) {
			continue
		}
		if err := unix.Removexattr(p.proc(), x.Name); err != nil && !errors.Is(err, unix.ENODATA) {
			return fmt.Errorf("remove extended attribute %s: %w", x.Name, err)
		}
	}
	for _, w := range want {
		if slices.ContainsFunc(have, func(x Xattr) bool { return x.Name == w.Name && string(x.Value) == string(w.Value) }) {
			continue
		}
		if err := unix.Setxattr(p.proc(), w.Name, w.Value, 0); err != nil {
			return fmt.Errorf("set extended attribute %s: %w", w.Name, err)
		}
	}
	return nil
}

// describe reads what is at rel, without content: false for what can't travel.
func (p *place) describe(rel string, st *info) (Entry, bool, error) {
	e := Entry{Kind: kindOf(st.kind()), Inode: st.Ino}
	if e.Kind == 0 {
		return e, false, nil
	}
	h, err := p.handle(rel)
	if err != nil {
		return e, false, err
	}
	defer h.Close()
	// What was looked at and what was opened may be two.
	if *st, err = h.stat(""); err != nil {
		return e, false, err
	}
	if e.Kind, e.Inode = kindOf(st.kind()), st.Ino; e.Kind == 0 {
		return e, false, nil
	}
	if e.Meta, err = h.metaOf(st); err != nil {
		return e, false, err
	}
	e.Meta = modeOf(e.Kind, e.Meta)
	if e.Kind == Symlink {
		b := make([]byte, maxPath+1)
		n, err := unix.Readlinkat(h.fd, "", b)
		if err != nil {
			return e, false, fmt.Errorf("read the link: %w", err)
		}
		e.Target = string(b[:n])
	}
	return e, true, nil
}

func kindOf(mode uint16) Kind {
	switch mode {
	case unix.S_IFREG:
		return Regular
	case unix.S_IFDIR:
		return Directory
	case unix.S_IFLNK:
		return Symlink
	case unix.S_IFIFO:
		return FIFO
	}
	return 0
}
