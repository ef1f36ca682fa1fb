package ship

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math"
	"path"
	"slices"
	"strings"
	"unicode/utf8"
)

// Bounds of what is taken from the other host; far above what services have.
const (
	maxPath     = 4095     // PATH_MAX without the final zero
	maxName     = 255      // NAME_MAX
	maxXattr    = 64 << 10 // XATTR_SIZE_MAX, of a value
	maxXattrs   = 1 << 10  // of an entry; a list of names is at most 64 KiB (XATTR_LIST_MAX)
	maxSize     = 1 << 60  // bytes of a file
	maxStorages = 1 << 10
	minBlock    = 64 << 10
	maxBlock    = 4 << 20
)

// Kind is what an entry is.
type Kind byte

// The kinds of entries that travel. Sockets are made anew by who listens on them, and devices belong to a host.
const (
	Regular   Kind = 'f'
	Directory Kind = 'd'
	Symlink   Kind = 'l'
	FIFO      Kind = 'p'
	Hardlink  Kind = 'h' // a further name of a regular file
)

func (k Kind) String() string {
	switch k {
	case Regular:
		return "file"
	case Directory:
		return "directory"
	case Symlink:
		return "symbolic link"
	case FIFO:
		return "fifo"
	case Hardlink:
		return "hard link"
	}
	return fmt.Sprintf("kind %q", byte(k))
}

// Time is a moment as a file system keeps it.
type Time struct {
	Sec  int64  `json:"s"`
	Nsec uint32 `json:"ns"`
}

// Xattr is an extended attribute, e.g. an ACL ("system.posix_acl_access") or capabilities ("security.capability").
type Xattr struct {
	Name  string `json:"name"`
	Value []byte `json:"value"`
}

// Meta is what there is to an entry besides its content. Access times do not travel.
type Meta struct {
	Mode   uint32  `json:"mode"` // the 12 bits of chmod(2)
	UID    uint32  `json:"uid"`
	GID    uint32  `json:"gid"`
	MTime  Time    `json:"mtime"`
	Xattrs []Xattr `json:"xattrs,omitempty"` // by name
}

func (m *Meta) equal(o *Meta) bool {
	return m.Mode == o.Mode && m.UID == o.UID && m.GID == o.GID && m.MTime == o.MTime &&
		slices.EqualFunc(m.Xattrs, o.Xattrs, func(a, b Xattr) bool {
			return a.Name == b.Name && bytes.Equal(a.Value, b.Value)
		})
}

// Extent is a run of bytes that are not a hole.
type Extent struct{ Offset, Length int64 }

func (e Extent) end() int64 { return e.Offset + e.Length }

// Sum is the digest of a block's content, holes read as zeros.
type Sum [sha256.Size]byte

// Entry is one thing that travels.
type Entry struct {
	Path string // absolute and clean, any bytes but zero
	Kind Kind
	// Implied says that the directory is only on the way to what travels: it is made if it is missing, and else left
	// alone.
	Implied bool
	// Held says that the service has the file open for writing: it is likely to change.
	Held bool
	Meta
	Target string // what a symbolic link holds; the path of a hard link's first name

	Size  int64
	Block int64    // bytes of a block: a power of two
	Data  []Extent // ascending, not touching each other; the rest is holes
	Sums  []Sum    // of the blocks with data, ascending; empty if they are not known

	// Storage and Inode identify the file itself, so that hosts that share it leave it alone: an index into
	// [Index.Storages] plus one, or 0.
	Storage int
	Inode   uint64
}

// Index is what a source has to ship, sorted by path. A directory comes before what is in it, and the first name of a
// file before its hard links.
type Index struct {
	Storages []string // names that mean the same storage on every host that has it
	Entries  []Entry
}

// Bytes returns how much data there is, without holes.
func (x *Index) Bytes() int64 {
	var n int64
	for i := range x.Entries {
		n = plus(n, x.Entries[i].bytes())
	}
	return n
}

// plus adds sizes that another host named, which may be beyond all measure.
func plus(a, b int64) int64 {
	if b > 0 && a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// Has reports whether a path travels. Such a file need not be on the destination yet.
func (x *Index) Has(name string) bool {
	i, ok := slices.BinarySearchFunc(x.Entries, name, func(e Entry, name string) int { return cmp.Compare(e.Path, name) })
	return ok && !x.Entries[i].Implied
}

func (e *Entry) bytes() int64 {
	var n int64
	for _, d := range e.Data {
		n += d.Length
	}
	return n
}

// blocks yields the numbers of the blocks with data.
func (e *Entry) blocks() iter.Seq[int64] { return blocksOf(e.Data, e.Block) }

func blocksOf(data []Extent, block int64) iter.Seq[int64] {
	return func(yield func(int64) bool) {
		next := int64(0)
		for _, d := range data {
			for b := max(next, d.Offset/block); b*block < d.end(); b++ {
				if !yield(b) {
					return
				}
				next = b + 1
			}
		}
	}
}

// blockCount is the number of blocks that [Entry.blocks] yields, without going through them.
func (e *Entry) blockCount() int64 {
	var n, next int64
	if e.Kind != Regular {
		return 0
	}
	for _, d := range e.Data {
		first, end := max(next, d.Offset/e.Block), (d.end()+e.Block-1)/e.Block
		n += max(end-first, 0)
		next = max(next, end)
	}
	return n
}

// within returns the parts of data that lie in a run of bytes. data is ascending.
func within(data []Extent, run Extent) []Extent {
	i, _ := slices.BinarySearchFunc(data, run.Offset, func(e Extent, at int64) int { return cmp.Compare(e.end(), at+1) })
	var parts []Extent
	for ; i < len(data) && data[i].Offset < run.end(); i++ {
		from, to := max(data[i].Offset, run.Offset), min(data[i].end(), run.end())
		if to > from {
			parts = append(parts, Extent{from, to - from})
		}
	}
	return parts
}

// blockSize keeps the sums of a file in proportion to it: 32 bytes for 64 KiB, and for more of a huge one.
func blockSize(size int64) int64 {
	block := int64(minBlock)
	for block < maxBlock && size/block > 1<<16 {
		block *= 2
	}
	return block
}

// validate protects from what the other host says.
func (e *Entry) validate() error {
	if err := validPath(e.Path); err != nil {
		return err
	}
	if e.Mode&^0o7777 != 0 {
		return fmt.Errorf("mode %#o", e.Mode)
	}
	if e.MTime.Nsec >= 1e9 {
		return fmt.Errorf("time with %d nanoseconds", e.MTime.Nsec)
	}
	if err := validXattrs(e.Xattrs); err != nil {
		return err
	}
	if e.Implied && e.Kind != Directory || e.Held && e.Kind != Regular {
		return fmt.Errorf("a %v with flags that it can't have", e.Kind)
	}
	switch e.Kind {
	case Regular:
		return e.validData()
	case Directory, FIFO:
		if e.Target != "" {
			return fmt.Errorf("a %v with a target", e.Kind)
		}
	case Symlink:
		if e.Target == "" || len(e.Target) > maxPath || strings.Contains(e.Target, "\x00") {
			return errors.New("malformed target of a symbolic link")
		}
	case Hardlink:
		if err := validPath(e.Target); err != nil {
			return fmt.Errorf("hard link: %w", err)
		}
		if e.Target >= e.Path {
			return errors.New("hard link to a later name")
		}
	default:
		return fmt.Errorf("unknown %v", e.Kind)
	}
	if e.Size != 0 || e.Block != 0 || len(e.Data) > 0 || len(e.Sums) > 0 {
		return fmt.Errorf("a %v with content", e.Kind)
	}
	return nil
}

func (e *Entry) validData() error {
	switch {
	case e.Target != "":
		return errors.New("a file with a target")
	case e.Size < 0 || e.Size > maxSize:
		return fmt.Errorf("size %d", e.Size)
	case e.Block < minBlock || e.Block > maxBlock || e.Block&(e.Block-1) != 0:
		return fmt.Errorf("block size %d", e.Block)
	}
	end := int64(-1)
	for _, d := range e.Data {
		if d.Length <= 0 || d.Offset <= end || d.Offset > e.Size || d.Length > e.Size-d.Offset {
			return fmt.Errorf("data of %d bytes at %d", d.Length, d.Offset)
		}
		end = d.end()
	}
	if n := int64(len(e.Sums)); n != 0 && n != e.blockCount() {
		return fmt.Errorf("%d digests of %d blocks", n, e.blockCount())
	}
	return nil
}

func validPath(p string) error {
	switch {
	case len(p) > maxPath:
		return fmt.Errorf("path of %d bytes", len(p))
	case !path.IsAbs(p) || path.Clean(p) != p || p == "/" || strings.Contains(p, "\x00"):
		return fmt.Errorf("path %q is not absolute and clean", p)
	}
	for name := range strings.SplitSeq(p, "/") {
		if len(name) > maxName {
			return fmt.Errorf("name of %d bytes", len(name))
		}
		if hiddenName(name) {
			return fmt.Errorf("path %q belongs to a migration", p)
		}
	}
	return nil
}

func validXattrs(list []Xattr) error {
	if len(list) > maxXattrs {
		return fmt.Errorf("%d extended attributes", len(list))
	}
	last := ""
	for _, x := range list {
		if x.Name <= last || len(x.Name) > maxName || len(x.Value) > maxXattr || !carriedXattr(x.Name) {
			return fmt.Errorf("extended attribute %q of %d bytes", x.Name, len(x.Value))
		}
		last = x.Name
	}
	return nil
}

// validate checks what no entry can say of itself.
func (x *Index) validate() error {
	kinds := map[string]Kind{"/": Directory}
	last := ""
	for i := range x.Entries {
		e := &x.Entries[i]
		if e.Path <= last {
			return fmt.Errorf("%q comes after %q", e.Path, last)
		}
		if err := validPlace(e, kinds); err != nil {
			return fmt.Errorf("%q: %w", e.Path, err)
		}
		kinds[e.Path], last = e.Kind, e.Path
		if e.Storage < 0 || e.Storage > len(x.Storages) {
			return fmt.Errorf("%q: storage %d", e.Path, e.Storage)
		}
		// Who goes through the blocks of a file must not do more than who has listed them.
		if n := e.blockCount(); n != int64(len(e.Sums)) {
			return fmt.Errorf("%q: %d digests of %d blocks", e.Path, len(e.Sums), n)
		}
	}
	return nil
}

// validPlace checks an entry against those before it.
func validPlace(e *Entry, kinds map[string]Kind) error {
	if kinds[path.Dir(e.Path)] != Directory {
		return errors.New("its directory is not listed")
	}
	if e.Kind == Hardlink && kinds[e.Target] != Regular {
		return fmt.Errorf("%q is not listed as a file", e.Target)
	}
	return nil
}

// name is a path in JSON, which has no strings of arbitrary bytes.
type name string

func (n name) MarshalJSON() ([]byte, error) {
	if utf8.ValidString(string(n)) {
		return json.Marshal(string(n))
	}
	return json.Marshal(rawName{Base64: []byte(n)})
}

type rawName struct {
	Base64 []byte `json:"base64"`
}

func (n *name) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) == nil {
		*n = name(s)
		return nil
	}
	var raw rawName
	if err := json.Unmarshal(b, &raw); err != nil {
		return err
	}
	*n = name(raw.Base64)
	return nil
}
