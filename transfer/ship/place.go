package ship

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// place is a directory below which files are named. No symbolic link below it is ever followed, and no name leads
// out of it, so that nobody who can write there decides which files are read or changed.
type place struct{ fd int }

// openPlace opens a directory that the user chose: symbolic links on the way to it are followed.
func openPlace(dir string) (*place, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return &place{fd}, nil
}

func (p *place) Close() error { return unix.Close(p.fd) }

// openat2 opens what is named relative to a place: "" is the place itself.
func (p *place) openat2(rel string, flags int, mode uint32) (int, error) {
	if rel == "" {
		rel = "."
	}
	how := unix.OpenHow{
		Flags: uint64(flags | unix.O_CLOEXEC), Mode: uint64(mode),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(p.fd, rel, &how)
		switch {
		case err == nil:
			return fd, nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue // somebody renamed a directory meanwhile
		case errors.Is(err, unix.ENOSYS):
			return -1, fmt.Errorf("open %q: openat2(2) is missing: Linux 5.6 is needed", rel)
		}
		return -1, &os.PathError{Op: "open", Path: rel, Err: err}
	}
}

// sub opens a directory below the place.
func (p *place) sub(rel string) (*place, error) {
	fd, err := p.openat2(rel, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	return &place{fd}, nil
}

// handle opens anything for its metadata, a symbolic link too.
func (p *place) handle(rel string) (*place, error) {
	fd, err := p.openat2(rel, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	return &place{fd}, nil
}

// file opens a regular file.
func (p *place) file(rel string, flags int, mode uint32) (*os.File, error) {
	fd, err := p.openat2(rel, flags|unix.O_NOFOLLOW|unix.O_NOCTTY|unix.O_NONBLOCK, mode)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		if err == nil {
			err = errNotRegular
		}
		return nil, &os.PathError{Op: "open", Path: rel, Err: err}
	}
	return os.NewFile(uintptr(fd), rel), nil
}

var errNotRegular = errors.New("not a regular file")

// read opens a regular file to read it. Its access time stays, if we may say so.
func (p *place) read(rel string) (*os.File, error) {
	f, err := p.file(rel, unix.O_RDONLY|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) {
		return p.file(rel, unix.O_RDONLY, 0)
	}
	return f, err
}

// in opens the directory that rel is in and calls fn with it and with the last name.
func (p *place) in(rel string, fn func(dir int, base string) error) error {
	dir, base := path.Split(rel)
	d, err := p.sub(strings.TrimSuffix(dir, "/"))
	if err != nil {
		return err
	}
	defer d.Close()
	if err := fn(d.fd, base); err != nil {
		return &os.PathError{Op: "change", Path: rel, Err: err}
	}
	return nil
}

func (p *place) mkdir(rel string) error {
	return p.in(rel, func(dir int, base string) error { return unix.Mkdirat(dir, base, 0o700) })
}

func (p *place) symlink(target, rel string) error {
	return p.in(rel, func(dir int, base string) error { return unix.Symlinkat(target, dir, base) })
}

func (p *place) mkfifo(rel string) error {
	return p.in(rel, func(dir int, base string) error { return unix.Mknodat(dir, base, unix.S_IFIFO|0o600, 0) })
}

func (p *place) unlink(rel string) error {
	return p.in(rel, func(dir int, base string) error { return unix.Unlinkat(dir, base, 0) })
}

func (p *place) rmdir(rel string) error {
	return p.in(rel, func(dir int, base string) error { return unix.Unlinkat(dir, base, unix.AT_REMOVEDIR) })
}

// link gives the file at from, below p, another name below to.
func (p *place) link(from string, to *place, rel string) error {
	return p.in(from, func(fromDir int, fromBase string) error {
		return to.in(rel, func(toDir int, toBase string) error {
			return unix.Linkat(fromDir, fromBase, toDir, toBase, 0)
		})
	})
}

// rename moves what is at from, below p, to a name below to that is not taken.
func (p *place) rename(from string, to *place, rel string) error {
	return p.in(from, func(fromDir int, fromBase string) error {
		return to.in(rel, func(toDir int, toBase string) error {
			err := unix.Renameat2(fromDir, fromBase, toDir, toBase, unix.RENAME_NOREPLACE)
			if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
				return err
			}
			// A file system that can't promise it (NFS): look first.
			var st unix.Stat_t
			if err := unix.Fstatat(toDir, toBase, &st, unix.AT_SYMLINK_NOFOLLOW); !errors.Is(err, unix.ENOENT) {
				return errors.Join(err, unix.EEXIST)
			}
			return unix.Renameat(fromDir, fromBase, toDir, toBase)
		})
	})
}

// names lists the place.
func (p *place) names() ([]string, error) {
	fd, err := p.openat2("", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "directory")
	defer f.Close()
	return f.Readdirnames(-1)
}

// sync makes a file or directory durable.
func (p *place) sync(rel string) error {
	fd, err := p.openat2(rel, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fsync(fd); err != nil {
		return &os.PathError{Op: "fsync", Path: rel, Err: err}
	}
	return nil
}

// syncAll makes everything on the place's file system durable.
func (p *place) syncAll() error {
	fd, err := p.openat2("", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return os.NewSyscallError("syncfs", unix.Syncfs(fd))
}

// removeAll removes what is at rel and below. It spares what is mounted there and fails.
func (p *place) removeAll(rel string) error {
	st, err := p.stat(rel)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return p.unlink(rel)
	}
	var up info
	if up, err = p.stat(dirOf(rel)); err != nil {
		return err
	}
	if up.mount != st.mount {
		return &os.PathError{Op: "remove", Path: rel, Err: errors.New("something is mounted here")}
	}
	d, err := p.sub(rel)
	if err != nil {
		return err
	}
	defer d.Close()
	names, err := d.names()
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := d.removeAll(n); err != nil {
			return fmt.Errorf("remove %s: %w", rel, err)
		}
	}
	return p.rmdir(rel)
}

// dirOf is the place that a relative path is in.
func dirOf(rel string) string {
	dir, _ := path.Split(rel)
	return strings.TrimSuffix(dir, "/")
}

// proc is a path of the open place itself, for system calls that take no descriptor of this sort.
func (p *place) proc() string { return "/proc/self/fd/" + strconv.Itoa(p.fd) }

// info is what stat(2) says.
type info struct {
	unix.Statx_t
	mount uint64 // ID of the mount, or some number that stands for the device
}

const statxMask = unix.STATX_BASIC_STATS | unix.STATX_BTIME | unix.STATX_MNT_ID

// stat looks at what is at rel, be it a symbolic link. The error wraps ENOENT if there is nothing.
func (p *place) stat(rel string) (info, error) {
	if rel == "" {
		return statx(p.fd, "", unix.AT_EMPTY_PATH)
	}
	if !strings.Contains(rel, "/") {
		return statx(p.fd, rel, unix.AT_SYMLINK_NOFOLLOW)
	}
	h, err := p.handle(rel)
	if err != nil {
		return info{}, err
	}
	defer h.Close()
	return statx(h.fd, "", unix.AT_EMPTY_PATH)
}

func statx(fd int, rel string, flags int) (info, error) {
	var i info
	for {
		err := unix.Statx(fd, rel, flags|unix.AT_NO_AUTOMOUNT, statxMask, &i.Statx_t)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return i, &os.PathError{Op: "stat", Path: rel, Err: err}
		}
		i.mount = i.Mnt_id
		if i.Mask&unix.STATX_MNT_ID == 0 { // Linux < 5.8
			i.mount = 1<<63 | i.dev()
		}
		return i, nil
	}
}

func (i *info) kind() uint16    { return i.Mode & unix.S_IFMT }
func (i *info) dir() bool       { return i.kind() == unix.S_IFDIR }
func (i *info) regular() bool   { return i.kind() == unix.S_IFREG }
func (i *info) dev() uint64     { return unix.Mkdev(i.Dev_major, i.Dev_minor) }
func (i *info) mtime() Time     { return Time{i.Mtime.Sec, i.Mtime.Nsec} }
func (i *info) mountRoot() bool { return i.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 }

// fixed says that the file can't be renamed or changed, by chattr(1).
func (i *info) fixed() bool {
	return i.Attributes&(unix.STATX_ATTR_IMMUTABLE|unix.STATX_ATTR_APPEND) != 0
}

// identity tells a file from every other one that exists on its file system at the same time, and from most that ever
// will.
type identity struct {
	Inode uint64 `json:"inode"`
	Birth *Time  `json:"birth,omitempty"`
}

func (i *info) identity() identity {
	id := identity{Inode: i.Ino}
	if i.Mask&unix.STATX_BTIME != 0 {
		id.Birth = &Time{i.Btime.Sec, i.Btime.Nsec}
	}
	return id
}

func (a identity) is(b identity) bool {
	return a.Inode == b.Inode && (a.Birth == nil || b.Birth == nil || *a.Birth == *b.Birth)
}
