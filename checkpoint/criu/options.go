package criu

import (
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
)

// DumpOptions are the ways in which dumps differ. Common to all: established connections are saved, the
// network is not locked by CRIU, cgroups are left alone, file locks travel along.
type DumpOptions struct {
	PID          int      // root of the tree in criu's pid namespace
	LeaveRunning bool     // resume after post-dump instead of killing
	TCPClose     bool     // save established connections as closed
	External     []string // keys of resources whose other end stays outside
	SkipMounts   []string
	ShellJob     bool
	LogLevel     int // 0 is the default
}

// RestoreOptions are the ways in which restores differ.
type RestoreOptions struct {
	TCPClose   bool
	Root       string   // root file system for a mount namespace that CRIU rebuilds
	External   []string // mnt[KEY]:PATH
	SkipMounts []string
	ShellJob   bool
	Sibling    bool // make the tree's root a child of our process instead of criu's
	LogLevel   int
}

// defaultLogLevel is errors, from which failures are explained, and warnings. CRIU writes every other line by a system call of
// its own, ten or twenty of a connection: of a thousand connections that is a third of the time of a restore.
const defaultLogLevel = 2

// Dump asks criu to dump a tree. It returns at once; see [Session] for how it goes on.
func (p *Process) Dump(o DumpOptions) (*Session, error) {
	r := o.request()
	if p.pages != nil {
		r.Ps = &rpc.CriuPageServerInfo{Fd: p.pages}
	}
	return p.request("dump", rpc.CriuReqType_DUMP, r)
}

// Restore asks criu to restore the tree in its images directory.
func (p *Process) Restore(o RestoreOptions) (*Session, error) {
	keys := make([]string, 0, len(p.cmd.ExtraFiles))
	for _, in := range p.inherit {
		keys = append(keys, in.Key)
	}
	return p.request("restore", rpc.CriuReqType_RESTORE, o.request(keys))
}

func common(level int) *rpc.CriuOpts {
	if level == 0 {
		level = defaultLogLevel
	}
	return &rpc.CriuOpts{
		ImagesDirFd:       new(int32(-1)),
		ImagesDir:         new(fmt.Sprintf("/proc/self/fd/%d", fdImages)),
		ConfigFile:        new(fmt.Sprintf("/proc/self/fd/%d", fdConfig)),
		LogFile:           new(LogFile),
		LogLevel:          new(int32(level)),
		NotifyScripts:     new(true),
		NetworkLock:       new(rpc.CriuNetworkLockMethod_SKIP),
		ManageCgroups:     new(true),
		ManageCgroupsMode: new(rpc.CriuCgMode_IGNORE),
		FileLocks:         new(true),
		EvasiveDevices:    new(true),
		LinkRemap:         new(true),
	}
}

// request is pure: the same options give the same message.
func (o DumpOptions) request() *rpc.CriuOpts {
	r := common(o.LogLevel)
	r.Pid = new(int32(o.PID))
	r.TcpEstablished = new(!o.TCPClose)
	r.TcpClose = new(o.TCPClose)
	r.LeaveRunning = new(o.LeaveRunning)
	r.External = o.External
	r.SkipMnt = o.SkipMounts
	r.ShellJob = new(o.ShellJob)
	r.GhostLimit = new(uint32(ghostLimit))
	return r
}

// ghostLimit is the size up to which a deleted file that is still open goes into the image.
const ghostLimit = 1 << 30

func (o RestoreOptions) request(keys []string) *rpc.CriuOpts {
	r := common(o.LogLevel)
	r.TcpEstablished = new(!o.TCPClose)
	r.TcpClose = new(o.TCPClose)
	r.External = o.External
	r.SkipMnt = o.SkipMounts
	r.ShellJob = new(o.ShellJob)
	r.RstSibling = new(o.Sibling)
	if o.Root != "" {
		r.Root = new(o.Root)
	}
	for i, key := range keys {
		r.InheritFd = append(r.InheritFd, &rpc.InheritFd{Key: new(key), Fd: new(int32(fdInherit + i))})
	}
	return r
}
