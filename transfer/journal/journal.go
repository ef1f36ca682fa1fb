package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Content is what a journal says.
type Content struct {
	ID        string
	Role      Role
	Data      json.RawMessage // what [Dir.Create] was given
	Records   []Record        // oldest first; the first is that of the creation
	Tombstone Tombstone       // how it ended, if it did
	Busy      bool            // a process works on it; set by [Dir.Read] and [Dir.List]
	Err       error           // why the rest is empty; set by [Dir.List] and [Journal.Others]

	path string
	boot string
}

// Path returns the journal's folder. What else is put there is removed when the journal is finished.
func (c *Content) Path() string { return c.path }

// Created returns when the journal was created.
func (c *Content) Created() time.Time {
	if len(c.Records) == 0 {
		return time.Time{}
	}
	return c.Records[0].Time
}

// Finished says that nothing is left to be done.
func (c *Content) Finished() bool { return len(c.Records) > 0 && c.last().Step == stepFinished }

func (c *Content) last() Record { return c.Records[len(c.Records)-1] }

// Rebooted says that the host has been restarted since the journal was created: processes, namespaces and links that
// it speaks of are gone, and their names and numbers may be somebody else's.
func (c *Content) Rebooted() bool { return len(c.Records) > 0 && c.Records[0].Boot != c.boot }

// finish is the data of a journal's last record.
type finish struct {
	Tombstone Tombstone `json:"tombstone"`
}

func (c *Content) setTombstone() error {
	if !c.Finished() {
		return nil
	}
	var f finish
	if err := json.Unmarshal(c.last().Data, &f); err != nil {
		return fmt.Errorf("its end is damaged: %w", err)
	}
	c.Tombstone = f.Tombstone
	return nil
}

// Journal is a journal that this process works on. It is not safe for concurrent use.
type Journal struct {
	Content
	dir  Dir
	file *os.File

	size     int64 // of the whole lines
	reserved int64 // how much of the file has its place on the disk
	broken   error // a line could not be taken back
}

// A full disk must not keep a migration from being decided: the file has room for that in advance.
const (
	reserveStep = 64 << 10
	lastReserve = 16 << 10 // which only decisions use
)

type mode int

const (
	durable     mode = 1 << iota // on the disk when it returns
	fromReserve                  // the room kept for decisions may be used
)

// Append writes a step down before its effect; when it returns nil, that of a migration outlives the host's power. data is
// what it takes to undo or to finish the step, as JSON, of 1 MiB at most.
func (j *Journal) Append(step string, data any) error { return j.append(step, data, durable) }

// Note does the same for effects that a reboot undoes by itself (processes, links, rules): its records outlive this
// process, but not a crash of the host, and cost no write to the disk.
func (j *Journal) Note(step string, data any) error { return j.append(step, data, 0) }

// Decide writes down a step that must not fail for lack of space. sync makes it outlive the host's power, as
// [Journal.Append] does.
func (j *Journal) Decide(step string, data any, sync bool) error {
	if sync {
		return j.append(step, data, durable|fromReserve)
	}
	return j.append(step, data, fromReserve)
}

func (j *Journal) append(step string, data any, m mode) error {
	if step == "" || step == stepCreated || step == stepFinished {
		return fmt.Errorf("journal %q: the step is the journal's own", step)
	}
	if err := j.write(step, data, m); err != nil {
		return fmt.Errorf("journal %q: %w", step, err)
	}
	return nil
}

func (j *Journal) write(step string, data any, m mode) error {
	if j.broken != nil {
		return j.broken
	}
	r := Record{Step: step, Time: j.dir.now(), Boot: j.boot}
	if data != nil {
		var err error
		if r.Data, err = json.Marshal(data); err != nil {
			return err
		}
	}
	line, err := r.line()
	if err != nil {
		return err
	}
	if err := j.reserve(j.size+int64(len(line)), m); err != nil {
		return err
	}
	if _, err := j.file.WriteAt(line, j.size); err != nil {
		if undo := j.file.Truncate(j.size); undo != nil {
			j.broken = errors.Join(err, undo)
		}
		return err
	}
	j.size += int64(len(line))
	j.Records = append(j.Records, r)
	if m&durable == 0 || j.Role.local() {
		return nil
	}
	return j.file.Sync()
}

// reserve makes sure that the file can grow to size, and by the reserve beyond it.
func (j *Journal) reserve(size int64, m mode) error {
	if size > maxJournal {
		return fmt.Errorf("the journal has %d bytes, the most is %d", size, maxJournal)
	}
	if size+lastReserve <= j.reserved {
		return nil
	}
	err := unix.Fallocate(int(j.file.Fd()), unix.FALLOC_FL_KEEP_SIZE, j.size, size-j.size+reserveStep)
	switch {
	case err == nil:
		j.reserved = size + reserveStep
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS), m&fromReserve != 0:
		// Then the write tells, which may find room that a process before us reserved.
	default:
		return os.NewSyscallError("reserve space", err)
	}
	return nil
}

// Save replaces a file of the journal's folder, for what is too large for a record. It outlives this process, but not a
// crash of the host.
func (j *Journal) Save(name string, data []byte) error {
	path := filepath.Join(j.path, name)
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// SaveJSON is [Journal.Save] of a value.
func (j *Journal) SaveJSON(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return j.Save(name, b)
}

// LoadJSON reads what [Journal.SaveJSON] wrote. ok is false if it wrote nothing.
func (c *Content) LoadJSON(name string, v any) (ok bool, err error) {
	b, err := os.ReadFile(filepath.Join(c.path, name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		return false, fmt.Errorf("read %s of the journal: %w", name, err)
	}
	return true, nil
}

// Others returns the unfinished journals of the same state directory, without this one, that have one of the files. One
// that can't be read has its error in [Content.Err].
func (j *Journal) Others(files ...string) ([]*Content, error) {
	dir := Dir{Path: filepath.Dir(j.path), Boot: j.boot}
	names, err := dir.names()
	if err != nil {
		return nil, err
	}
	var list []*Content
	for _, name := range names {
		id, role, ok := parseFolderName(name)
		has := func(file string) bool {
			_, err := os.Lstat(filepath.Join(dir.Path, name, file))
			return err == nil
		}
		if !ok || id == j.ID && role == j.Role || !slices.ContainsFunc(files, has) {
			continue
		}
		c, err := dir.Read(id, role)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was finished meanwhile
		}
		if err != nil {
			c = &Content{ID: id, Role: role, Err: err, path: filepath.Join(dir.Path, name)}
		}
		if !c.Finished() {
			list = append(list, c)
		}
	}
	return list, nil
}

// Finish ends the journal and the work on it. With a tombstone that stays for a week; without one nothing is left.
func (j *Journal) Finish(t Tombstone) error {
	err := j.finish(t)
	if err != nil {
		return fmt.Errorf("finish the journal of %s %s: %w", j.Role.Operation(), j.ID, err)
	}
	return j.Close()
}

func (j *Journal) finish(t Tombstone) error {
	if t == NoTombstone {
		return j.Role.remove(j.path)
	}
	if err := j.write(stepFinished, finish{t}, durable|fromReserve); err != nil {
		return err
	}
	j.Tombstone = t
	entries, err := os.ReadDir(j.path)
	for _, e := range slices.DeleteFunc(entries, func(e os.DirEntry) bool { return e.Name() == fileName }) {
		err = errors.Join(err, os.RemoveAll(filepath.Join(j.path, e.Name())))
	}
	return err
}

// Close frees the journal as it is, for another process to work on.
func (j *Journal) Close() error { return j.file.Close() }
