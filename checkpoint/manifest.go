package checkpoint

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode"
)

// Names of the entries of an image, in a directory and in an archive alike. checkpointctl finds the
// upper group at these places; names of our own must not contain its names as substrings, or it takes them
// for its own.
const (
	ConfigFile  = "config.dump"    // container-like description that checkpointctl shows
	SpecFile    = "spec.dump"      // the OCI spec's part that checkpointctl reads
	NetworkFile = "network.status" // addresses by interface, podman's shape
	TreesDir    = "checkpoint"     // CRIU images of the first tree; further trees in tree-2, tree-3 ... below it

	ManifestFile = "manifest.json"
	SumFile      = "manifest.sha256" // of the manifest, as sha256sum(1) writes and checks it
	StateFile    = "netns/state.nsm" // the namespace: see netstate.State
	SocketsFile  = "sockets.json"    // the side-car: socket options that CRIU loses
	FilesDir     = "files"           // what else the trees need
)

// The version of the image format that is written. A reader refuses another major version, and ignores what
// a newer minor version added.
const (
	FormatMajor = 2
	FormatMinor = 0
)

// Bounds of what is read from an image, far above what a service needs and far below what hurts a host.
const (
	MaxManifest = 64 << 20 // bytes of the manifest's file
	MaxEntries  = 1 << 20
)

// Manifest describes an image. In a directory it is written last, so that an image with a valid manifest is
// whole; in an archive it comes first, so that a reader knows what to expect.
type Manifest struct {
	Format   Format    `json:"format"`
	ID       string    `json:"id"` // random, 32 hex digits; names the image in journals and messages
	Created  time.Time `json:"created"`
	Tool     string    `json:"tool"` // nsmigrate's version
	Host     Host      `json:"host"`
	Target   Target    `json:"target"`
	Source   Source    `json:"source"`
	TCPClose bool      `json:"tcp_close"`        // established connections were not saved
	Memory   int64     `json:"memory,omitempty"` // bytes that the service had in memory, when it was looked at, and in no file
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

	CPU []string `json:"cpu,omitempty"` // features of its processors, see [CPUFeatures]; empty if they are not known
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
	Dir        string     `json:"dir"`       // of its CRIU images, below the image's root
	Root       int        `json:"root"`      // pid of the root in its own pid namespace
	HostRoot   int        `json:"host_root"` // pid of the root as the source host saw it
	PIDNS      bool       `json:"pidns"`     // the tree has a pid namespace of its own, which CRIU rebuilds
	MountNS    MountNS    `json:"mountns"`
	IDs        []int      `json:"ids"`     // every pid, tid, pgid and sid in use, in the root's pid namespace
	Command    []string   `json:"command"` // of the root
	Cwd        string     `json:"cwd"`
	Binaries   []Binary   `json:"binaries"` // executables and libraries that must be the same on the other host
	Externals  []External `json:"externals,omitempty"`
	SkipMounts []string   `json:"skip_mounts,omitempty"` // mount points that mean nothing on another host (MountOwn)
	Places     []string   `json:"places,omitempty"`      // paths of the host that its mounts show or stand on (MountOwn)
	Terminals  []int      `json:"terminals,omitempty"`   // numbers of the pseudo terminals whose both ends are in the tree
	Stopped    []int      `json:"stopped,omitempty"`     // processes that their user had stopped; all others go on after a restore
	ShellJob   bool       `json:"shell_job,omitempty"`   // the root is no session leader: it joins the session of its restorer
	Files      []File     `json:"files,omitempty"`       // open or mapped files that must be there in the same size

	Capabilities uint64 `json:"capabilities,omitempty"` // that any of its processes has, a bit each (capabilities(7))
}

// Name is what people call the tree: the program of its root.
func (t *Tree) Name() string {
	title := strings.Fields(strings.Join(t.Command, " ")) // some services write one over their arguments
	if len(title) == 0 {
		return fmt.Sprintf("process %d", t.Root)
	}
	return path.Base(strings.TrimSuffix(title[0], ":"))
}

// SameSurroundings reports whether two descriptions of a tree ask for the same surroundings: what is made for a tree
// before its images are there. Its processes may differ.
func (t *Tree) SameSurroundings(o *Tree) bool {
	same := func(a, b External) bool {
		a.Pos = b.Pos // it follows the service
		return reflect.DeepEqual(a, b)
	}
	return t.Dir == o.Dir && t.Root == o.Root && t.PIDNS == o.PIDNS && t.MountNS == o.MountNS && t.ShellJob == o.ShellJob &&
		slices.Equal(t.SkipMounts, o.SkipMounts) && slices.EqualFunc(t.Externals, o.Externals, same)
}

// File is a regular file that a tree uses and that CRIU finds again by its path and size.
type File struct {
	Path string `json:"path"`
	Size int64  `json:"size"`
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

// KindDatagram is the kind of an [External] that CRIU is not told of: a unix datagram socket, such as syslog's, which
// is taken off its peer while CRIU looks, and connected again afterwards.
const KindDatagram = "datagram"

// External is an open file whose other end, or whose mount, lies outside the tree. CRIU knows it by key.
type External struct {
	Key   string `json:"key"`  // as in criu(8) --external: file[MNT:INO], tty[RDEV:DEV], unix[INO], pipe:[INO]
	Kind  string `json:"kind"` // "file", "tty", "pipe", "socket" or "datagram"
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
	Digest string `json:"digest"` // [SumPrefix] and 64 hex digits
}

var (
	// ErrDamaged means that an image is truncated, altered or malformed.
	ErrDamaged = errors.New("damaged image")
	// ErrFormat means that an image is of a version that this nsmigrate can't read.
	ErrFormat = errors.New("image format not supported")
)

// NewID returns a fresh [Manifest.ID].
func NewID() string {
	var id [16]byte
	rand.Read(id[:]) //nolint:errcheck // never fails, see crypto/rand
	return hex.EncodeToString(id[:])
}

// Bytes returns the size of all entries.
func (m *Manifest) Bytes() int64 {
	var n int64
	for _, e := range m.Entries {
		n += e.Size
	}
	return n
}

// EncodeManifest returns the content of [ManifestFile]. It refuses an invalid manifest, and one of a newer minor
// version, because what that version added would get lost.
func EncodeManifest(m *Manifest) ([]byte, error) {
	if m.Format.Minor > FormatMinor {
		return nil, fmt.Errorf("encode manifest: %w: the image is of format %v, this nsmigrate writes %d.%d",
			ErrFormat, m.Format, FormatMajor, FormatMinor)
	}
	if err := m.Validate(); err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	if len(data) >= MaxManifest {
		return nil, fmt.Errorf("encode manifest: %d bytes, more than %d", len(data), MaxManifest)
	}
	return append(data, '\n'), nil
}

// SumLine returns the content of [SumFile] for the content of [ManifestFile].
func SumLine(manifest []byte) []byte {
	return fmt.Appendf(nil, "%x  %s\n", sha256.Sum256(manifest), ManifestFile)
}

// ParseManifest decodes and validates the content of [ManifestFile] against that of [SumFile]. Errors wrap
// [ErrDamaged] or, for an image of an unknown major version, [ErrFormat].
func ParseManifest(manifest, sum []byte) (*Manifest, error) {
	if !bytes.Equal(sum, SumLine(manifest)) {
		return nil, fmt.Errorf("%w: %s: altered or truncated: digest differs from %s", ErrDamaged, ManifestFile, SumFile)
	}
	// The version comes first: nothing is known about the other fields of another major version.
	var version struct {
		Format Format `json:"format"`
	}
	if err := json.Unmarshal(manifest, &version); err != nil {
		return nil, fmt.Errorf("%w: %s: malformed: %w", ErrDamaged, ManifestFile, err)
	}
	if err := version.Format.validate(); errors.Is(err, ErrFormat) {
		return nil, err
	}
	m := new(Manifest)
	if err := json.Unmarshal(manifest, m); err != nil {
		return nil, fmt.Errorf("%w: %s: malformed: %w", ErrDamaged, ManifestFile, err)
	}
	if err := m.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %s: malformed: %w", ErrDamaged, ManifestFile, err)
	}
	return m, nil
}

func (f Format) String() string { return fmt.Sprintf("%d.%d", f.Major, f.Minor) }

func (f Format) validate() error {
	switch {
	case f.Major > FormatMajor:
		return fmt.Errorf("%w: the image is of format %v, this nsmigrate reads up to %d.x: a newer nsmigrate is needed",
			ErrFormat, f, FormatMajor)
	case f.Major == 1 && f.Minor == 0:
		return fmt.Errorf("%w: the image is of format %v, this nsmigrate reads %d.x: the nsmigrate that made it restores it",
			ErrFormat, f, FormatMajor)
	case f.Major < 1 || f.Minor < 0:
		return fmt.Errorf("format %v does not exist", f)
	}
	return nil
}

// Validate reports the first thing in m that no image has: it protects whoever acts on a manifest that came
// from another host. A major version that is too new is reported as [ErrFormat].
func (m *Manifest) Validate() error {
	if err := m.Format.validate(); err != nil {
		return err
	}
	if !hexOf(m.ID, 16) {
		return fmt.Errorf("id %q: want 32 hex digits", m.ID)
	}
	if m.Created.IsZero() {
		return errors.New("created: missing")
	}
	if y := m.Created.Year(); y < 1970 || y > 9999 {
		return fmt.Errorf("created: year %d", y)
	}
	if m.Source != SourceStopped && m.Source != SourceRunning {
		return fmt.Errorf("source %q: want %q or %q", m.Source, SourceStopped, SourceRunning)
	}
	if err := m.Host.validate(); err != nil {
		return fmt.Errorf("host: %w", err)
	}
	if m.Memory < 0 {
		return fmt.Errorf("memory: %d bytes", m.Memory)
	}
	if err := m.Target.validate(); err != nil {
		return fmt.Errorf("target: %w", err)
	}
	if err := validateTrees(m.Trees); err != nil {
		return err
	}
	return validateEntries(m.Entries)
}

// validate wants features of a processor to be words.
func (h Host) validate() error {
	for _, f := range h.CPU {
		if f == "" || len(f) > 64 || strings.Trim(f, "abcdefghijklmnopqrstuvwxyz0123456789_.") != "" {
			return fmt.Errorf("cpu: %.64q names no feature", f)
		}
	}
	return nil
}

// validate keeps the name of a namespace from leaving the directory of named namespaces.
func (t Target) validate() error {
	n := t.NetNS
	if n == "." || n == ".." || len(n) > 255 || strings.ContainsFunc(n, func(r rune) bool { return r == '/' || unicode.IsControl(r) }) {
		return fmt.Errorf("netns %q is not the name of a namespace", n)
	}
	return nil
}

func validateTrees(trees []Tree) error {
	dirs := make(map[string]bool)
	for i := range trees {
		t := &trees[i]
		if dirs[t.Dir] {
			return fmt.Errorf("tree %d: directory %q belongs to another tree", i, t.Dir)
		}
		dirs[t.Dir] = true
		if err := t.validate(); err != nil {
			return fmt.Errorf("tree %d: %w", i, err)
		}
	}
	return nil
}

func (t *Tree) validate() error {
	if !validName(t.Dir) || t.Dir != TreesDir && path.Dir(t.Dir) != TreesDir {
		return fmt.Errorf("directory %q is not %s or directly below it", t.Dir, TreesDir)
	}
	if t.Root <= 0 || t.HostRoot <= 0 {
		return fmt.Errorf("root pid %d, on the host %d: want positive ones", t.Root, t.HostRoot)
	}
	switch t.MountNS {
	case MountHost, MountNetns, MountPrivate, MountOwn:
	default:
		return fmt.Errorf("mount namespace %q: unknown", t.MountNS)
	}
	ids := make(map[int]bool, len(t.IDs))
	for _, id := range t.IDs {
		if id <= 0 || id > math.MaxInt32 {
			return fmt.Errorf("id %d: want a positive one", id)
		}
		if ids[id] {
			return fmt.Errorf("id %d: listed twice", id)
		}
		ids[id] = true
	}
	for _, p := range t.Places {
		if !path.IsAbs(p) {
			return fmt.Errorf("place %q: want an absolute path", p)
		}
	}
	for _, n := range t.Terminals {
		if n < 0 {
			return fmt.Errorf("terminal %d: want a number", n)
		}
	}
	for _, b := range t.Binaries {
		if err := b.validate(); err != nil {
			return fmt.Errorf("binary %q: %w", b.Path, err)
		}
	}
	for _, f := range t.Files {
		if err := validFile(f.Path, f.Size); err != nil {
			return fmt.Errorf("file %q: %w", f.Path, err)
		}
	}
	for _, e := range t.Externals {
		if err := e.validate(); err != nil {
			return fmt.Errorf("external %q: %w", e.Key, err)
		}
	}
	return nil
}

func (b Binary) validate() error {
	if err := validFile(b.Path, b.Size); err != nil {
		return err
	}
	switch {
	case b.BuildID != "" && !hexOf(b.BuildID, len(b.BuildID)/2):
		return fmt.Errorf("build id %q: want hex digits", b.BuildID)
	case b.Digest != "" && !validDigest(b.Digest, binaryPrefix):
		return fmt.Errorf("digest %q: want %s and 64 hex digits", b.Digest, binaryPrefix)
	}
	return nil
}

func validFile(name string, size int64) error {
	switch {
	case !path.IsAbs(name) || path.Clean(name) != name:
		return errors.New("path is not absolute and clean")
	case size < 0:
		return fmt.Errorf("size %d", size)
	}
	return nil
}

func (e External) validate() error {
	if e.Key == "" || e.Kind == "" {
		return errors.New("key or kind missing")
	}
	for _, fd := range e.FDs {
		if fd.PID <= 0 || fd.FD < 0 {
			return fmt.Errorf("descriptor %d of pid %d", fd.FD, fd.PID)
		}
	}
	return nil
}

// validateEntries wants each name once, in ascending order, none below another, and none of the manifest's own.
func validateEntries(entries []Entry) error {
	if len(entries) > MaxEntries {
		return fmt.Errorf("%d entries, more than %d", len(entries), MaxEntries)
	}
	files := make(map[string]bool, len(entries))
	last, total := "", int64(0)
	for _, e := range entries {
		switch {
		case !validName(e.Name):
			return fmt.Errorf("entry %q: the name is not clean and relative", e.Name)
		case e.Name == ManifestFile || e.Name == SumFile:
			return fmt.Errorf("entry %q: the manifest can't list itself", e.Name)
		case e.Name == last:
			return fmt.Errorf("entry %q: listed twice", e.Name)
		case e.Name < last:
			return fmt.Errorf("entry %q: listed after %q", e.Name, last)
		case e.Size < 0 || e.Size > math.MaxInt64-total:
			return fmt.Errorf("entry %q: size %d", e.Name, e.Size)
		case !validDigest(e.Digest, SumPrefix):
			return fmt.Errorf("entry %q: digest %q: want %s and 64 hex digits", e.Name, e.Digest, SumPrefix)
		}
		for dir := path.Dir(e.Name); dir != "."; dir = path.Dir(dir) {
			if files[dir] || dir == ManifestFile || dir == SumFile {
				return fmt.Errorf("entry %q: %q is a file", e.Name, dir)
			}
		}
		files[e.Name] = true
		last, total = e.Name, total+e.Size
	}
	return nil
}

// validName accepts what is the same file in a directory and in an archive, whatever reads it.
func validName(name string) bool {
	return fs.ValidPath(name) && name != "." && len(name) <= 1024 &&
		!strings.ContainsFunc(name, func(r rune) bool { return unicode.IsControl(r) || r == '\\' })
}

func validDigest(s, prefix string) bool {
	sum, ok := strings.CutPrefix(s, prefix)
	return ok && hexOf(sum, sha256.Size)
}

// hexOf reports whether s is n bytes in lower-case hex.
func hexOf(s string, n int) bool {
	return len(s) == 2*n && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'f')
	})
}
