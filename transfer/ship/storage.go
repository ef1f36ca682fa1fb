package ship

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
)

// volume is what is known of a mounted file system.
type volume struct {
	// name is the same on every host that has the storage, and means nothing else anywhere; "" if there is none.
	name string
	// remote file systems don't tell at once, or by which clock, that a file was changed.
	remote bool
	// pseudo file systems show the kernel's own data.
	pseudo bool
	// layered file systems can't rename a directory that comes from a lower layer.
	layered bool
}

// volumes knows the mounts of this host. It is not safe for concurrent use.
type volumes struct {
	boot   string // identifies this run of the kernel
	mounts []proc.Mount
	known  map[uint64]volume // by mount ID
}

func openVolumes() (*volumes, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("identify this host: %w", err)
	}
	mounts, err := proc.Default.Mounts(os.Getpid())
	if err != nil {
		return nil, err
	}
	return &volumes{boot: strings.TrimSpace(string(boot)), mounts: mounts, known: make(map[uint64]volume)}, nil
}

// of returns the volume that something at rel below p, or in p, lies on.
func (v *volumes) of(p *place, rel string, st *info) (volume, error) {
	if found, ok := v.known[st.mount]; ok {
		return found, nil
	}
	h, err := p.handle(rel)
	if err != nil {
		return volume{}, err
	}
	defer h.Close()
	var fs unix.Statfs_t
	if err := unix.Fstatfs(h.fd, &fs); err != nil {
		return volume{}, &os.PathError{Op: "statfs", Path: rel, Err: err}
	}
	found := classify(uint64(fs.Type) & 0xffffffff)
	if found.remote {
		found.name = v.remoteName(st.mount)
	} else {
		found.name = fmt.Sprintf("boot %s device %d:%d", v.boot, st.Dev_major, st.Dev_minor)
	}
	v.known[st.mount] = found
	return found, nil
}

// remoteName names a share as its servers do. Shares that are named otherwise are only copied in vain.
func (v *volumes) remoteName(mount uint64) string {
	i := slices.IndexFunc(v.mounts, func(m proc.Mount) bool { return uint64(m.ID) == mount })
	if i < 0 {
		return ""
	}
	m := v.mounts[i]
	named := []string{"nfs", "nfs4", "cifs", "smb3", "ceph", "lustre", "gpfs", "beegfs", "fuse.glusterfs"}
	if !slices.Contains(named, m.Type) {
		return ""
	}
	return fmt.Sprintf("%s %s", strings.TrimSuffix(m.Type, "4"), m.Source)
}

// Magic numbers that golang.org/x/sys/unix lacks, from the file systems' own headers.
const (
	cephMagic    = 0x00c36400
	lustreMagic  = 0x0bd00bd0
	gpfsMagic    = 0x47504653
	beegfsMagic  = 0x19830326
	gfs2Magic    = 0x01161970
	mqueueMagic  = 0x19800202
	configfs     = 0x62656570
	rpcPipefs    = 0x67596969
	fusectlMagic = 0x65735543
)

func classify(magic uint64) volume {
	switch magic {
	case unix.NFS_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.AFS_SUPER_MAGIC,
		unix.CODA_SUPER_MAGIC, unix.V9FS_MAGIC, unix.FUSE_SUPER_MAGIC, unix.OCFS2_SUPER_MAGIC,
		cephMagic, lustreMagic, gpfsMagic, beegfsMagic, gfs2Magic:
		return volume{remote: true}
	case unix.OVERLAYFS_SUPER_MAGIC:
		return volume{layered: true}
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC,
		unix.DEVPTS_SUPER_MAGIC, unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC, unix.SELINUX_MAGIC,
		unix.SMACK_MAGIC, unix.BPF_FS_MAGIC, unix.NSFS_MAGIC, unix.PSTOREFS_MAGIC, unix.EFIVARFS_MAGIC,
		unix.AUTOFS_SUPER_MAGIC, unix.BINFMTFS_MAGIC, unix.HUGETLBFS_MAGIC, unix.RDTGROUP_SUPER_MAGIC, unix.SOCKFS_MAGIC,
		mqueueMagic, configfs, rpcPipefs, fusectlMagic:
		return volume{pseudo: true}
	}
	return volume{}
}

// belongsToHost says why a directory can't come to be as it is on another host.
func belongsToHost(dir string) bool {
	switch dir {
	case "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib32", "/lib64", "/proc", "/root", "/run", "/sbin",
		"/sys", "/tmp", "/usr", "/var", "/dev/shm", "/run/lock", "/run/systemd", "/var/cache", "/var/lib", "/var/log",
		"/var/spool", "/var/tmp", "/etc/systemd":
		return true
	}
	return strings.HasPrefix(dir, "/proc/") || strings.HasPrefix(dir, "/sys/") ||
		strings.HasPrefix(dir, "/usr/") && !strings.HasPrefix(dir, "/usr/local/")
}
