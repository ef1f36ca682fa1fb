package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/transfer/handover"
	"github.com/nsmigrate/nsmigrate/transfer/journal"
	"github.com/nsmigrate/nsmigrate/transfer/ship"
)

// Files says which files travel along with a service besides those that are named.
type Files string

// What can be said.
const (
	FilesAuto Files = "auto" // those that the service writes to
	FilesNone Files = "none"
)

// ParseFiles reads the value of a flag; "" is auto.
func ParseFiles(s string) (Files, error) {
	switch f := Files(s); f {
	case "":
		return FilesAuto, nil
	case FilesAuto, FilesNone:
		return f, nil
	}
	return "", fmt.Errorf("files %q: want auto or none", s)
}

// FilesReport tells which files travelled along, or would do so.
type FilesReport struct {
	Paths    []string `json:"paths"`    // what travels by itself or with all below it
	Files    int      `json:"files"`    // regular ones that are not shared
	Bytes    int64    `json:"bytes"`    // of their content, when they were looked at first
	Lacked   int64    `json:"lacked"`   // of these, what the destination did not have
	Shared   int      `json:"shared"`   // files and directories that both hosts see, and that are left alone
	Replaced int      `json:"replaced"` // files of the destination that were different
	Removed  int      `json:"removed"`  // what the destination had in the named directories and the source has not
	Examples []string `json:"examples,omitempty"`

	// What was sent, of a migration that took place.
	Sent         int64         `json:"sent,omitempty"`          // bytes of content
	SentFrozen   int64         `json:"sent_frozen,omitempty"`   // of these, while the service stood still
	FrozenTime   time.Duration `json:"frozen_time,omitempty"`   // for looking at them meanwhile
	Passes       int           `json:"passes,omitempty"`        // over them while it ran
	Notes        []string      `json:"notes,omitempty"`         // on what does not travel
	EntriesFinal int           `json:"entries_final,omitempty"` // that were new, changed or gone when it was frozen
}

// wants is the Wants of a [handover.Ready].
type wants struct {
	Files *ship.Wants `json:"files,omitempty"`
}

// cargo is the source's side of the files that travel along.
type cargo struct {
	service *checkpoint.Service
	auto    bool     // what the service writes to travels
	named   []string // this does too
	source  *ship.Source
	random  map[string]bool // files that the service can write to anywhere
	report  FilesReport

	progress checkpoint.Progress // may be nil
}

// roots lists what travels at this moment.
func (c *cargo) roots() ([]ship.Root, error) {
	var roots []ship.Root
	for _, p := range c.named {
		roots = append(roots, ship.Root{Path: p})
	}
	if !c.auto {
		return roots, nil
	}
	held, notes, err := c.service.Held()
	if err != nil {
		return nil, err
	}
	for _, n := range notes {
		c.note("%s", n)
	}
	for _, h := range held {
		if !slices.Contains(c.named, h.Path) {
			roots = append(roots, ship.Root{Path: h.Path, Held: true, Append: h.Append, Mapped: h.Mapped})
		}
	}
	return roots, nil
}

// note tells people something, once.
func (c *cargo) note(format string, args ...any) {
	if n := fmt.Sprintf(format, args...); !slices.Contains(c.report.Notes, n) {
		c.report.Notes = append(c.report.Notes, n)
	}
}

// survey looks at all that travels while the service runs.
func (c *cargo) survey(ctx context.Context) ([]checkpoint.Problem, error) {
	roots, err := c.roots()
	if err != nil {
		return nil, err
	}
	var problems []checkpoint.Problem
	if c.source, problems, err = ship.Survey(ctx, roots, ship.SurveyOptions{}); err != nil || len(problems) > 0 {
		return problems, err
	}
	c.report.Notes = append(c.report.Notes, c.source.Notes()...)
	c.random = make(map[string]bool)
	for _, r := range roots {
		c.report.Paths = append(c.report.Paths, r.Path)
		c.random[r.Path] = r.Held && !r.Append
	}
	return nil, nil
}

// long is how much is read in about a second.
const long = 1 << 30

func dataOf(e *ship.Entry) (n int64) {
	for _, d := range e.Data {
		n += d.Length
	}
	return n
}

// attachment is the list of what travels.
func (c *cargo) attachment() handover.Attachment {
	return handover.Attachment{Name: ship.IndexEntry, Size: -1, Open: func() (io.ReadCloser, error) {
		r, w := io.Pipe()
		go func() { w.CloseWithError(c.source.Index().Encode(w)) }()
		return r, nil
	}}
}

// wanted notes what the destination says of the list.
func (c *cargo) wanted(raw json.RawMessage) (*ship.Wants, error) {
	var w wants
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &w); err != nil {
			return nil, fmt.Errorf("the destination's wants are malformed: %w", err)
		}
	}
	if w.Files == nil {
		return nil, errors.New("the destination does not say which files it lacks")
	}
	r := &c.report
	r.Lacked, r.Replaced, r.Removed, r.Examples = w.Files.Bytes, w.Files.Replaced, w.Files.Removed, w.Files.Examples
	c.leaveShared(w.Files.Same)
	return w.Files, nil
}

// leaveShared counts what travels and what both hosts see.
func (c *cargo) leaveShared(same []ship.Run) {
	x, r := c.source.Index(), &c.report
	r.Shared, r.Files, r.Bytes = 0, 0, 0
	for i := range x.Entries {
		e := &x.Entries[i]
		for len(same) > 0 && int64(i)-same[0].First >= same[0].Count {
			same = same[1:]
		}
		switch {
		case len(same) > 0 && int64(i) >= same[0].First:
			r.Shared++
		case e.Kind == ship.Regular:
			n := dataOf(e)
			r.Files++
			r.Bytes += n
			if c.random[e.Path] && n >= long {
				c.note("%s has %d GiB, and the service can write anywhere in it: it is read once more while the service stands still",
					e.Path, n/long)
			}
		}
	}
}

// refuseShared refuses files that turn out to be the destination's too.
func (c *cargo) refuseShared(id string) error {
	problems, err := c.source.FindMarks(id)
	if err != nil {
		return err
	}
	return checkpoint.Refuse("shipping files", problems)
}

// How often the files are gone through while the service runs, which makes the last time short.
const (
	maxPasses   = 6
	shortEnough = 30 * time.Millisecond
)

// send sends what the destination lacks, and then what changes meanwhile, until little is left or it gets no less.
func (c *cargo) send(ctx context.Context, wants *ship.Wants, send handover.SendEntry) error {
	stats, err := c.source.Send(ctx, wants, func(ctx context.Context, name string, size int64, r io.Reader) error {
		return send(ctx, name, size, &watched{r: r, total: wants.Bytes, progress: c.progress})
	})
	if err != nil {
		return err
	}
	c.report.Sent = stats.Bytes
	for last := time.Duration(0); c.report.Passes < maxPasses; {
		begun := time.Now()
		stats, err := c.update(ctx, send)
		if err != nil {
			return err
		}
		c.report.Passes++
		took := time.Since(begun)
		if stats.Entries == 0 || took < shortEnough || last > 0 && took > last*3/4 {
			break
		}
		last = took
	}
	return nil
}

// watched tells how far the reading of a stream is. A stream has a little more than the content that total counts.
type watched struct {
	r           io.Reader
	done, total int64
	progress    checkpoint.Progress
	told        time.Time
}

// tellEvery is how often it is told.
const tellEvery = 100 * time.Millisecond

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	w.done += int64(n)
	if w.progress != nil && time.Since(w.told) >= tellEvery {
		w.progress.Bytes(min(w.done, w.total), w.total)
		w.told = time.Now()
	}
	return n, err
}

// finish sends what has changed until the service was frozen.
func (c *cargo) finish(ctx context.Context, send handover.SendEntry) error {
	begun := time.Now()
	stats, err := c.update(ctx, send)
	c.report.FrozenTime, c.report.SentFrozen, c.report.EntriesFinal = time.Since(begun), stats.Bytes, stats.Entries
	return err
}

func (c *cargo) update(ctx context.Context, send handover.SendEntry) (ship.Stats, error) {
	roots, err := c.roots()
	if err != nil {
		return ship.Stats{}, err
	}
	stats, err := c.source.Update(ctx, roots, ship.SendFunc(send))
	c.report.Sent += stats.Bytes
	return stats, err
}

func (c *cargo) close() {
	if c.source != nil {
		c.source.Close() //nolint:errcheck // it was only read
	}
}

// stepFiles is the step of the journal's records that hold a [ship.Change].
const stepFiles = "files"

// changesOf returns what a migration changed in this host's files.
func changesOf(j *journal.Journal) ([]ship.Change, error) {
	var list []ship.Change
	if j == nil {
		return nil, nil
	}
	for _, r := range j.Records {
		if r.Step != stepFiles {
			continue
		}
		var c ship.Change
		if err := json.Unmarshal(r.Data, &c); err != nil {
			return nil, fmt.Errorf("journal of migration %s: change of files: %w", j.ID, err)
		}
		list = append(list, c)
	}
	return list, nil
}

// compareFiles finds what this host lacks of the files that are to come.
func (d *Destination) compareFiles(ctx context.Context, id string) (*ship.Wants, []checkpoint.Problem, error) {
	var err error
	d.files, err = ship.NewDestination(ship.Options{ID: id, Record: func(c ship.Change) error {
		return d.journal.Append(stepFiles, c)
	}})
	if err != nil {
		return nil, nil, err
	}
	return d.files.Compare(ctx, d.index)
}

// storeFiles takes an entry of the files that come along; ok is false if it is none.
func (d *Destination) storeFiles(ctx context.Context, name string, r io.Reader) (ok bool, err error) {
	if d.files == nil {
		return false, nil
	}
	switch name {
	case ship.DataEntry:
		return true, d.files.Stage(ctx, r)
	case ship.ChangesEntry:
		return true, d.files.Update(ctx, r)
	}
	return false, nil
}

// placeFiles puts the files that came along into their places, and tells when they are on the disk.
func (d *Destination) placeFiles(ctx context.Context) (flushed <-chan error, err error) {
	done := make(chan error, 1)
	if d.files == nil {
		close(done)
		return done, nil
	}
	flush, err := d.files.Place(ctx)
	if err != nil {
		return nil, err
	}
	go func() { done <- flush(ctx) }()
	return done, nil
}

// undoFiles puts back what this host had. It is done after a restart of the host too.
func (d *Destination) undoFiles(ctx context.Context) error {
	changes, err := changesOf(d.journal)
	if err == nil {
		err = ship.Undo(ctx, "", changes)
	}
	return err
}

// commitFiles removes what was replaced: the service lives with what came.
func (d *Destination) commitFiles(ctx context.Context) error {
	changes, err := changesOf(d.journal)
	if err == nil {
		err = ship.Commit(ctx, "", changes)
	}
	return err
}
