package journal

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultPath is the state directory. It has to outlive a reboot.
const DefaultPath = "/var/lib/nsmigrate"

// Keep is how long tombstones stay.
const Keep = 7 * 24 * time.Hour

// Role is the part that a host plays in an operation.
type Role string

// The two hosts of a migration, and the one of a dump and of a restore.
const (
	Source      Role = "source"
	Destination Role = "destination"
	Dump        Role = "dump"
	Restore     Role = "restore"
)

// local says that the operation concerns this host alone. What its journal speaks of ends with the host, and nobody else
// asks about it: it need not outlive the host's power, and costs no write to the disk.
func (r Role) local() bool { return r == Dump || r == Restore }

// Operation is what the role is a part of, in people's words.
func (r Role) Operation() string {
	if r.local() {
		return string(r)
	}
	return "migration"
}

// Tombstone says how a migration ended on a host.
type Tombstone string

// How it ended. A journal that finishes with NoTombstone is removed.
const (
	NoTombstone Tombstone = ""
	Live        Tombstone = "live"    // the service went live here
	Aborted     Tombstone = "aborted" // it never did, and never will by this migration
	Lost        Tombstone = "lost"    // it went live here and ended with the host
)

// Errors that callers tell apart.
var (
	ErrBusy     = errors.New("another process works on it")
	ErrExists   = errors.New("there is one of this ID already")
	ErrFinished = errors.New("it is finished")
	// There is no journal: fs.ErrNotExist.
)

// errUnwritten says that the host went down before a journal that need not outlive it was on the disk. As long as the host
// is up, every journal has a beginning.
var errUnwritten = fmt.Errorf("it was lost with the host: %w", fs.ErrNotExist)

// Dir is a state directory. The zero value is that of the host.
type Dir struct {
	Path string           // "" is [DefaultPath]
	Boot string           // the boot ID; "" asks the kernel
	Now  func() time.Time // nil is time.Now
}

const (
	fileName = "journal"
	idLength = 16

	stepCreated  = "created"
	stepFinished = "finished"

	newPrefix = ".new-" // a folder that doesn't have its name yet
	oldPrefix = ".old-" // a folder that has it no more
)

// NewID returns the ID of a new operation. Who knows that of a migration can ask what became of it, so it can't be guessed.
func NewID() string {
	raw := make([]byte, idLength)
	rand.Read(raw) // never fails
	return hex.EncodeToString(raw)
}

func folderName(id string, role Role) string { return id + "." + string(role) }

// parseFolderName is the way back; ok is false for names that are none of ours.
func parseFolderName(name string) (id string, role Role, ok bool) {
	id, r, _ := strings.Cut(name, ".")
	role = Role(r)
	return id, role, ValidID(id) && slices.Contains([]Role{Source, Destination, Dump, Restore}, role)
}

func (d Dir) path() string {
	if d.Path == "" {
		return DefaultPath
	}
	return d.Path
}

func (d Dir) now() time.Time {
	if d.Now == nil {
		return time.Now().UTC().Truncate(time.Microsecond)
	}
	return d.Now()
}

func (d Dir) boot() (string, error) {
	if d.Boot != "" {
		return d.Boot, nil
	}
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot ID: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}

// created is the data of a journal's first record.
type created struct {
	Version int             `json:"version"`
	ID      string          `json:"id"`
	Role    Role            `json:"role"`
	Data    json.RawMessage `json:"data,omitempty"`
}

// version is that of the format. A journal with another one is refused: it belongs to another release.
const version = 1

// Create begins the journal of an operation, locked. That of a migration is durable when it returns, and tombstones that
// are older than [Keep] are removed. data is what a later process needs to know of the operation as a whole. Errors:
// [ErrExists] if this host knows the ID in this role, be it by a tombstone.
func (d Dir) Create(id string, role Role, data any) (*Journal, error) {
	j, err := d.create(id, role, data)
	if err != nil {
		return nil, fmt.Errorf("create the journal of %s %s: %w", role.Operation(), id, err)
	}
	return j, nil
}

func (d Dir) create(id string, role Role, data any) (_ *Journal, err error) {
	name := folderName(id, role)
	if _, _, ok := parseFolderName(name); !ok {
		return nil, fmt.Errorf("%q is no ID of a migration", name)
	}
	if err := d.make(role); err != nil {
		return nil, err
	}
	if !role.local() {
		if err := d.sweep(); err != nil {
			return nil, err
		}
	}
	boot, err := d.boot()
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(data)
	if err != nil {
		return nil, err
	}
	first := created{Version: version, ID: id, Role: role, Data: raw}

	// A folder gets its name when there is a whole, locked journal in it: nobody ever sees less.
	staged, err := os.MkdirTemp(d.path(), newPrefix+name+".") // mode 0700
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(staged))
		}
	}()
	f, err := os.OpenFile(filepath.Join(staged, fileName), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	j := &Journal{Content: Content{ID: id, Role: role, Data: raw, path: staged, boot: boot}, dir: d, file: f}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if err := lock(f); err != nil {
		return nil, err
	}
	if err := j.write(stepCreated, first, durable|fromReserve); err != nil {
		return nil, err
	}
	if err := role.sync(staged); err != nil {
		return nil, err
	}
	j.path = filepath.Join(d.path(), name)
	if err := os.Rename(staged, j.path); errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOTEMPTY) {
		return nil, ErrExists
	} else if err != nil {
		return nil, err
	}
	if err := role.sync(d.path()); err != nil {
		staged = j.path // which is to be removed now
		return nil, err
	}
	return j, nil
}

// make makes sure of the state directory: nobody else may write what recovery acts upon.
func (d Dir) make(role Role) error {
	err := os.MkdirAll(d.path(), 0o700)
	if err != nil {
		return err
	}
	info, err := os.Stat(d.path())
	if err != nil {
		return err
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; owner != 0 && int(owner) != os.Geteuid() {
		return fmt.Errorf("the state directory %s belongs to user %d: chown it", d.path(), owner)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("others can write to the state directory %s (%s): chmod go-w it", d.path(), info.Mode())
	}
	return role.sync(filepath.Dir(d.path()))
}

// Clear removes what a [Dir.Create] left that was cut short: a folder that did not get its name.
func (d Dir) Clear(id string, role Role) error {
	left, err := filepath.Glob(filepath.Join(d.path(), newPrefix+folderName(id, role)+".*"))
	for _, path := range left {
		err = errors.Join(err, os.RemoveAll(path))
	}
	return err
}

// sweep removes tombstones whose time has come, and what a crash left half made or half removed.
func (d Dir) sweep() error {
	names, err := d.names()
	if err != nil {
		return err
	}
	for _, name := range names {
		path := filepath.Join(d.path(), name)
		if strings.HasPrefix(name, newPrefix) || strings.HasPrefix(name, oldPrefix) {
			// Young ones may be somebody's who has just begun.
			if info, err := os.Stat(path); err == nil && d.now().Sub(info.ModTime()) > time.Hour {
				if err := os.RemoveAll(path); err != nil {
					return err
				}
			}
			continue
		}
		id, role, ok := parseFolderName(name)
		if !ok {
			continue
		}
		c, err := d.Read(id, role)
		if errors.Is(err, errUnwritten) {
			if err := role.remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			continue
		}
		if err != nil || !c.Finished() || d.now().Sub(c.last().Time) < Keep {
			continue // what can't be read is a person's
		}
		if err := role.remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (d Dir) names() ([]string, error) {
	entries, err := os.ReadDir(d.path())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// Read returns a journal's content without its lock: who works on it may add to it. Errors: fs.ErrNotExist if this
// host doesn't know the migration, or no more.
func (d Dir) Read(id string, role Role) (*Content, error) {
	f, c, err := d.open(id, role, os.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("read the journal of %s %s: %w", role.Operation(), id, err)
	}
	defer f.Close()
	if c.Busy, err = locked(f); err != nil {
		return nil, fmt.Errorf("read the journal of %s %s: %w", role.Operation(), id, err)
	}
	if _, err := c.read(f); err != nil {
		return nil, fmt.Errorf("read the journal of %s %s: %w", role.Operation(), id, err)
	}
	return c, nil
}

// Open takes a journal that a process left behind. Errors: [ErrBusy] if a process works on it, fs.ErrNotExist if
// this host doesn't know the migration, and [ErrFinished] if there is only its tombstone, which [Dir.Read] tells.
func (d Dir) Open(id string, role Role) (*Journal, error) {
	j, err := d.take(id, role)
	if err != nil {
		return nil, fmt.Errorf("open the journal of %s %s: %w", role.Operation(), id, err)
	}
	return j, nil
}

func (d Dir) take(id string, role Role) (_ *Journal, err error) {
	f, c, err := d.open(id, role, os.O_RDWR)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if err := lock(f); err != nil {
		return nil, err
	}
	// The folder may have been removed between its opening and its locking.
	opened, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if named, err := os.Stat(filepath.Join(c.path, fileName)); err != nil {
		return nil, err
	} else if !os.SameFile(opened, named) {
		return nil, fs.ErrNotExist
	}
	whole, err := c.read(f)
	if err != nil {
		return nil, err
	}
	if c.Finished() {
		return nil, ErrFinished
	}
	// What is behind the whole lines, without a newline, is overwritten; to truncate it would give up the reserve.
	return &Journal{Content: *c, dir: d, file: f, size: int64(whole)}, nil
}

func (d Dir) open(id string, role Role, flags int) (*os.File, *Content, error) {
	name := folderName(id, role)
	if _, _, ok := parseFolderName(name); !ok {
		return nil, nil, fmt.Errorf("%q is no ID of a migration", name)
	}
	boot, err := d.boot()
	if err != nil {
		return nil, nil, err
	}
	c := &Content{ID: id, Role: role, path: filepath.Join(d.path(), name), boot: boot}
	f, err := os.OpenFile(filepath.Join(c.path, fileName), flags, 0)
	return f, c, err
}

// List returns all journals and tombstones of this host, oldest first. One that can't be read has its error in
// [Content.Err].
func (d Dir) List() ([]*Content, error) {
	names, err := d.names()
	if err != nil {
		return nil, fmt.Errorf("list the journals: %w", err)
	}
	var list []*Content
	for _, name := range names {
		id, role, ok := parseFolderName(name)
		if !ok {
			continue
		}
		c, err := d.Read(id, role)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // it was finished meanwhile
		case err != nil:
			c = &Content{ID: id, Role: role, Err: err, path: filepath.Join(d.path(), name)}
		}
		list = append(list, c)
	}
	slices.SortStableFunc(list, func(a, b *Content) int { return a.Created().Compare(b.Created()) })
	return list, nil
}

// read fills in the records of a file, and returns the length of the whole ones.
func (c *Content) read(f *os.File) (whole int, err error) {
	data, err := io.ReadAll(io.LimitReader(f, maxJournal+1))
	if err != nil {
		return 0, err
	}
	if len(data) > maxJournal {
		return 0, fmt.Errorf("%s has more than %d bytes", f.Name(), maxJournal)
	}
	records, whole, err := Parse(data)
	if err != nil {
		return 0, fmt.Errorf("%s is damaged: %w", f.Name(), err)
	}
	if len(records) == 0 && c.Role.local() {
		return 0, errUnwritten
	}
	if len(records) == 0 || records[0].Step != stepCreated {
		return 0, fmt.Errorf("%s is damaged: it has no beginning", f.Name())
	}
	for i, r := range records[1:] {
		if r.Step == stepCreated || r.Step == stepFinished && i+2 < len(records) {
			return 0, fmt.Errorf("%s is damaged: line %d is %q", f.Name(), i+2, r.Step)
		}
	}
	var first created
	if err := json.Unmarshal(records[0].Data, &first); err != nil {
		return 0, fmt.Errorf("%s is damaged: %w", f.Name(), err)
	}
	if first.Version != version {
		return 0, fmt.Errorf("%s has version %d of the format, this program has %d", f.Name(), first.Version, version)
	}
	if first.ID != c.ID || first.Role != c.Role {
		return 0, fmt.Errorf("%s is that of migration %s on its %s", f.Name(), first.ID, first.Role)
	}
	c.Data, c.Records = first.Data, records
	return whole, c.setTombstone()
}

// remove takes the folder's name away at once, and then the folder.
func (r Role) remove(path string) error {
	old := filepath.Join(filepath.Dir(path), oldPrefix+filepath.Base(path))
	if err := os.Rename(path, old); err != nil {
		return err
	}
	if err := r.sync(filepath.Dir(path)); err != nil {
		return err
	}
	return os.RemoveAll(old)
}

// sync makes the entries of a directory durable, if the role's journal has to be.
func (r Role) sync(path string) error {
	if r.local() {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
