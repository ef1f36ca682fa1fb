package checkpoint

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Memory is a directory in memory that nobody but this process and who inherits its descriptors sees, and that is gone
// with them. The kernel gives its large files large pages: it needs half the time to write them, and a third less for
// CRIU to read them, than with those of a /dev/shm as distributions mount it.
type Memory struct {
	dir *os.File
}

// NewMemory makes such a directory for what would else be in the directory beside, a [Scratch]: as much fits in. It is nil
// where that is no memory, and on a kernel that knows no such directories, or no large pages.
func NewMemory(beside string) *Memory {
	var fs unix.Statfs_t
	if err := unix.Statfs(beside, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC {
		return nil
	}
	fd, err := mountMemory(max(int64(fs.Bavail), 1) * fs.Bsize) // 0 would be no bound
	if err != nil {
		return nil
	}
	return &Memory{os.NewFile(uintptr(fd), "memory")}
}

// mountMemory makes a tmpfs that is mounted nowhere.
func mountMemory(size int64) (int, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	for _, o := range [][2]string{
		{"mode", "0700"},
		{"size", strconv.FormatInt(size, 10)},
		{"huge", "within_size"}, // small files keep small pages
	} {
		if err := unix.FsconfigSetString(fs, o[0], o[1]); err != nil {
			return -1, err
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
}

// Path is what this process calls the directory.
func (m *Memory) Path() string { return fmt.Sprintf("/proc/self/fd/%d", m.dir.Fd()) }

// Close gives the memory back when nobody has a file of it open any more.
func (m *Memory) Close() error { return m.dir.Close() }
