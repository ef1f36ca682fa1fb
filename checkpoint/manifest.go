package checkpoint

import (
	"errors"
	"fmt"
	"time"
)

// Names of the entries of an image, in a directory and in an archive alike. checkpointctl finds the
// upper group at these places; names of our own must not contain its names as substrings.
const (
	ConfigFile  = "config.dump"    // container-like description that checkpointctl shows
	SpecFile    = "spec.dump"      // the OCI spec's part that checkpointctl reads
	NetworkFile = "network.status" // addresses by interface, podman's shape
	TreesDir    = "checkpoint"     // CRIU images of the first tree; further trees in tree-2, tree-3 ... below it

	ManifestFile = "manifest.json"
	StateFile    = "netns/state.nsm" // the namespace: see netstate.State
	SocketsFile  = "sockets.json"    // the side-car: socket options that CRIU loses
	FilesDir     = "files"           // what else the trees need
)

// FormatMajor is the version of the image format. A reader refuses a larger one.
const FormatMajor = 1

// Manifest describes an image. It is the last entry written, so that an image with a valid manifest is whole.
type Manifest struct {
	Format   Format    `json:"format"`
	ID       string    `json:"id"` // random, 32 hex digits; names the image in journals and messages
	Created  time.Time `json:"created"`
	Tool     string    `json:"tool"` // nsmigrate's version
	Host     Host      `json:"host"`
	Target   Target    `json:"target"`
	Source   Source    `json:"source"`
	TCPClose bool      `json:"tcp_close"` // established connections were not saved
	Trees    []Tree    `json:"trees"`
	Losses   []Loss    `json:"losses,omitempty"` // what was left behind by the user's leave
	Entries  []Entry   `json:"entries"`          // every other entry of the image
}

// Format is the version of the image format: a new minor version adds what an old reader may ignore.
type Format struct {
	Major int `json:"major"`
	Minor int `json:"minor"`
}

// Host tells where an image was made.
type Host struct {
	Name   string `json:"name"`
	Kernel string `json:"kernel"`
	Arch   string `json:"arch"` // GOARCH
	CRIU   string `json:"criu"` // e.g. "4.2.1"
}

// Source is what became of the dumped service.
type Source string

const (
	// SourceStopped means that the service was killed at the dump without a packet: the image is the only
	// copy, and its connections can be continued.
	SourceStopped Source = "stopped"
	// SourceRunning marks a snapshot: the service went on running after the dump, so its peers' sequence
	// numbers moved on, and the connections of the image must be closed on restore.
	SourceRunning Source = "running"
)

// TargetNetNS and the other fields name what was dumped.
type Target struct {
	NetNS string `json:"netns,omitempty"` // the namespace's name, if it had one
	Inode uint64 `json:"inode"`           // of the namespace on the source host
}

// Tree is one process tree, dumped by CRIU in one go.
type Tree struct {
	Dir       string     `json:"dir"`       // of its CRIU images, below the image's root
	Root      int        `json:"root"`      // pid of the root in its own pid namespace
	HostRoot  int        `json:"host_root"` // pid of the root as the source host saw it
	PIDNS     bool       `json:"pidns"`     // the tree has a pid namespace of its own, which CRIU rebuilds
	MountNS   MountNS    `json:"mountns"`
	IDs       []int      `json:"ids"`     // every pid, tid, pgid and sid in use, in the root's pid namespace
	Command   []string   `json:"command"` // of the root
	Cwd       string     `json:"cwd"`
	Binaries  []Binary   `json:"binaries"` // executables and libraries that must be the same on the other host
	Externals []External `json:"externals,omitempty"`
}

// MountNS says which mount namespace a tree lives in, which decides where CRIU runs.
type MountNS string

const (
	MountHost    MountNS = "host"    // the host's
	MountNetns   MountNS = "netns"   // a private one whose /sys shows the namespace, as ip-netns(8) makes it
	MountPrivate MountNS = "private" // a private one with the host's mounts
	MountOwn     MountNS = "own"     // with a pid namespace and a /proc of its own: CRIU sees it from outside
)

// Binary is a file that the trees map executable.
type Binary struct {
	Path    string `json:"path"`
	Size    int64  `json:"size"`
	BuildID string `json:"build_id,omitempty"` // GNU build-id note in hex, if the file has one
	Digest  string `json:"digest,omitempty"`   // "sha256:...", if it has no build-id
}

// External is an open file whose other end, or whose mount, lies outside the tree. CRIU knows it by key.
type External struct {
	Key   string `json:"key"`  // as in criu(8) --external: file[MNT:INO], tty[RDEV:DEV], unix[INO], pipe:[INO]
	Kind  string `json:"kind"` // "file", "tty", "pipe", "socket"
	Path  string `json:"path,omitempty"`
	Flags int    `json:"flags"` // open(2) flags from fdinfo
	Pos   int64  `json:"pos"`
	FDs   []FD   `json:"fds"` // who holds it
}

// FD names a descriptor of a process, with the pid in the tree's own pid namespace.
type FD struct {
	PID int `json:"pid"`
	FD  int `json:"fd"`
}

// Loss is something that an image does not carry.
type Loss struct {
	Kind   string `json:"kind"`   // what --allow-loss takes, e.g. "link", "nft", "socket", "udp-queue"
	Object string `json:"object"` // in the words of ip(8), ss(8), nft(8)
	Reason string `json:"reason"`
	Remedy string `json:"remedy,omitempty"`
}

func (l Loss) String() string { return fmt.Sprintf("%s %s: %s", l.Kind, l.Object, l.Reason) }

// Entry is one file of an image.
type Entry struct {
	Name   string `json:"name"` // slash-separated, relative, clean
	Size   int64  `json:"size"`
	Digest string `json:"digest"` // "sha256:" and 64 hex digits
}

var (
	// ErrDamaged means that an image is truncated, altered or malformed.
	ErrDamaged = errors.New("damaged image")
	// ErrFormat means that an image is of a version that this nsmigrate can't read.
	ErrFormat = errors.New("image format not supported")
)
