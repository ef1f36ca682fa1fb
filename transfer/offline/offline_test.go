package offline_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
	"github.com/nsmigrate/nsmigrate/restore"
	"github.com/nsmigrate/nsmigrate/transfer/journal"
	"github.com/nsmigrate/nsmigrate/transfer/offline"
)

// ended is a process that was: no process has ever started at the host's boot.
var ended = proc.Ident{PID: 1 << 21}

// cut is an operation that is cut short.
type cut struct {
	*testing.T
	dir journal.Dir
	id  string
	op  *offline.Operation
	at  string // where its images stand
}

func begin(t *testing.T, role journal.Role, a offline.About) *cut {
	t.Helper()
	c := &cut{T: t, dir: journal.Dir{Path: filepath.Join(t.TempDir(), "state"), Boot: "boot-1"}, id: journal.NewID(), at: t.TempDir()}
	a.Image = c.path("image")
	var err error
	c.op, err = offline.Begin(c.dir, c.id, role, a)
	c.check(err)
	t.Cleanup(func() { os.RemoveAll(c.op.Scratch) })
	return c
}

func (c *cut) check(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

func (c *cut) path(name string) string { return filepath.Join(c.at, name) }

func (c *cut) write(name string) {
	c.Helper()
	c.check(os.WriteFile(c.path(name), []byte(name), 0o600))
}

// staged tells the journal what a dump to a file does, up to the complete image.
func (c *cut) staged() {
	c.Helper()
	c.check(c.op.Staging(c.path(".image.staged"), c.path("image")))
	c.write("..image.staged.123.tmp")
	c.check(os.Rename(c.path("..image.staged.123.tmp"), c.path(".image.staged")))
}

// die leaves the journal as the end of the process does.
func (c *cut) die() {
	c.Helper()
	scratch := c.op.Scratch
	c.check(c.op.Leave())
	c.check(os.MkdirAll(scratch, 0o700))
}

// recover demands that nothing is left of the operation but files at the place of its images.
func (c *cut) recover(want offline.Result, files ...string) {
	c.Helper()
	j, err := c.dir.Open(c.id, c.role())
	c.check(err)
	got, err := offline.Recover(context.Background(), j, c.deliver)
	c.check(err)
	if got != want {
		c.Errorf("recovered: %+v, want %+v", got, want)
	}
	c.left(files...)
	if _, err := os.Stat(c.op.Scratch); !errors.Is(err, fs.ErrNotExist) {
		c.Errorf("the scratch directory: %v", err)
	}
	if list, err := c.dir.List(); err != nil || len(list) != 0 {
		c.Errorf("journals: %v, %v", list, err)
	}
}

func (c *cut) role() journal.Role {
	c.Helper()
	list, err := c.dir.List()
	c.check(err)
	if len(list) != 1 {
		c.Fatalf("%d journals", len(list))
	}
	return list[0].Role
}

func (c *cut) deliver([]byte) error { return errors.New("nothing is to be delivered") }

func (c *cut) left(want ...string) {
	c.Helper()
	entries, err := os.ReadDir(c.at)
	c.check(err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if got := strings.Join(names, " "); got != strings.Join(want, " ") {
		c.Errorf("files: %s, want %s", got, strings.Join(want, " "))
	}
}

// state demands what `nsmigrate recover --list` says.
func (c *cut) state(want string) {
	c.Helper()
	list, err := c.dir.List()
	c.check(err)
	if got, err := offline.State(list[0]); got != want || err != nil {
		c.Errorf("state %q, %v, want %q", got, err, want)
	}
}

// dumped is the record of a service that is there no more.
func dumped() *checkpoint.Record { return &checkpoint.Record{Roots: []proc.Ident{ended}} }

// Before the service is touched nothing is to be put back.
func TestDumpBegun(t *testing.T) {
	c := begin(t, journal.Dump, offline.About{Service: "svc"})
	c.state("begun")
	c.die()
	c.recover(offline.Result{Outcome: offline.Resumed})
}

// An image that was not complete is none, under which name ever its beginning is found.
func TestDumpUnfinished(t *testing.T) {
	for _, name := range []string{"..image.staged.123.tmp", ".image.staged"} {
		c := begin(t, journal.Dump, offline.About{Service: "svc"})
		c.check(c.op.Dumping(dumped()))
		c.state("frozen")
		c.check(c.op.Staging(c.path(".image.staged"), c.path("image")))
		c.write(name)
		c.write("..another.staged.123.tmp")
		c.die()
		c.recover(offline.Result{Outcome: offline.Gone}, "..another.staged.123.tmp")
	}
}

// The source's end has begun: the image gets its name, if that was not done already.
func TestDumpEnded(t *testing.T) {
	for _, published := range []bool{false, true} {
		c := begin(t, journal.Dump, offline.About{Service: "svc"})
		c.check(c.op.Dumping(dumped()))
		c.staged()
		c.check(c.op.Whole(nil))
		c.state("whole")
		if published {
			c.check(os.Rename(c.path(".image.staged"), c.path("image")))
		}
		c.die()
		c.recover(offline.Result{Outcome: offline.Removed, Image: c.path("image")}, "image")
	}
}

// The name was taken meanwhile: the source is ended nevertheless, the image stays where it is, and is told to be there, until
// there is room for it.
func TestDumpNameTaken(t *testing.T) {
	c := begin(t, journal.Dump, offline.About{Service: "svc"})
	r := dumped()
	r.Scratch = c.path("of-criu")
	c.write("of-criu")
	c.check(c.op.Dumping(r))
	c.staged()
	c.check(c.op.Whole(nil))
	c.write("image")
	c.die()
	for range 2 {
		j, err := c.dir.Open(c.id, journal.Dump)
		c.check(err)
		_, err = offline.Recover(context.Background(), j, c.deliver)
		if err == nil || !strings.Contains(err.Error(), "the image is at "+c.path(".image.staged")) {
			t.Errorf("recovered: %v", err)
		}
		c.left(".image.staged", "image") // and nothing of criu's
	}
	c.check(os.Remove(c.path("image")))
	c.recover(offline.Result{Outcome: offline.Removed, Image: c.path("image")}, "image")
	if b, err := os.ReadFile(c.path("image")); string(b) != "..image.staged.123.tmp" {
		t.Errorf("the image holds %q, %v", b, err)
	}
}

// The end of an image that went to a stream is delivered once.
func TestDumpStream(t *testing.T) {
	for _, published := range []bool{false, true} {
		c := begin(t, journal.Dump, offline.About{Service: "svc"})
		c.check(c.op.Dumping(dumped()))
		c.check(c.op.Whole([]byte("the end")))
		if published {
			c.check(c.op.Published())
		}
		c.die()
		var got []string
		broken := !published
		for again := true; again; {
			j, err := c.dir.Open(c.id, journal.Dump)
			c.check(err)
			r, err := offline.Recover(context.Background(), j, func(tail []byte) error {
				if broken {
					return fs.ErrClosed
				}
				got = append(got, string(tail))
				return nil
			})
			again = broken
			switch {
			case broken && !errors.Is(err, fs.ErrClosed):
				t.Errorf("recovered with %v", err)
			case !broken && (err != nil || r.Outcome != offline.Removed):
				t.Errorf("recovered: %+v, %v", r, err)
			}
			broken = false
		}
		if want := map[bool]string{false: "the end", true: ""}[published]; strings.Join(got, "|") != want {
			t.Errorf("delivered %q, want %q", got, want)
		}
	}
}

// A snapshot's source is never ended. What was published stays, and is told; what was not is removed.
func TestSnapshot(t *testing.T) {
	for _, published := range []bool{false, true} {
		c := begin(t, journal.Dump, offline.About{Service: "svc", Snapshot: true})
		c.check(c.op.Dumping(dumped()))
		c.staged()
		c.check(c.op.Whole(nil))
		if published {
			c.check(os.Rename(c.path(".image.staged"), c.path("image")))
		}
		c.die()
		if published {
			c.recover(offline.Result{Outcome: offline.Gone, Image: c.path("image")}, "image")
		} else {
			c.recover(offline.Result{Outcome: offline.Gone})
		}
	}
}

// After a reboot the names in the journal are somebody else's. An image that is complete is the service, whether the journal
// knows that it is or not.
func TestDumpRebooted(t *testing.T) {
	for _, complete := range []bool{false, true} {
		c := begin(t, journal.Dump, offline.About{Service: "svc"})
		me, err := proc.Default.Ident(os.Getpid())
		c.check(err)
		c.check(c.op.Dumping(&checkpoint.Record{Roots: []proc.Ident{ended}, CRIU: []proc.Ident{me}}))
		c.staged()
		if !complete {
			c.check(os.Rename(c.path(".image.staged"), c.path("..image.staged.123.tmp")))
		}
		c.die()
		c.dir.Boot = "boot-2"
		if complete {
			c.recover(offline.Result{Outcome: offline.Gone, Image: c.path("image")}, "image")
		} else {
			c.recover(offline.Result{Outcome: offline.Gone})
		}
	}
}

func TestRestore(t *testing.T) {
	restoring := func(c *cut, live bool) {
		c.write("pidfile")
		c.write("of-criu")
		c.check(c.op.Restoring(c.path("image"), nil, &restore.Record{PIDFile: c.path("pidfile"), Scratch: c.path("of-criu"), Live: live}))
	}
	t.Run("begun", func(t *testing.T) {
		c := begin(t, journal.Restore, offline.About{Service: "svc"})
		c.state("begun")
		c.die()
		c.recover(offline.Result{Outcome: offline.Undone})
	})
	t.Run("building", func(t *testing.T) {
		c := begin(t, journal.Restore, offline.About{Service: "svc"})
		restoring(c, false)
		c.state("building")
		c.die()
		c.recover(offline.Result{Outcome: offline.Undone})
	})
	t.Run("live", func(t *testing.T) {
		c := begin(t, journal.Restore, offline.About{Service: "svc"})
		restoring(c, true)
		c.state("live")
		c.die()
		j, err := c.dir.Open(c.id, journal.Restore)
		c.check(err)
		// Without the image it can't be told what is to be heard: nothing is touched.
		if r, err := offline.Recover(context.Background(), j, nil); err == nil {
			t.Errorf("recovered: %+v", r)
		}
		c.left("of-criu", "pidfile")
	})
	t.Run("rebooted", func(t *testing.T) {
		for live, want := range map[bool]offline.Outcome{false: offline.Undone, true: offline.Gone} {
			c := begin(t, journal.Restore, offline.About{Service: "svc"})
			restoring(c, live)
			c.die()
			c.dir.Boot = "boot-2"
			c.recover(offline.Result{Outcome: want}, "pidfile") // another restore's, perhaps
		}
	})
}

// An operation that can't begin leaves nothing.
func TestBeginFails(t *testing.T) {
	dir := journal.Dir{Path: filepath.Join(t.TempDir(), "state"), Boot: "boot-1"}
	id := journal.NewID()
	scratch := filepath.Join(checkpoint.ScratchDir(""), "nsmigrate-"+id)
	if err := os.WriteFile(scratch, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(scratch)
	if _, err := offline.Begin(dir, id, journal.Dump, offline.About{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("began: %v", err)
	}
	if list, err := dir.List(); err != nil || len(list) != 0 {
		t.Errorf("journals: %v, %v", list, err)
	}
}

// Without a journal nothing is written down.
func TestNobody(t *testing.T) {
	var o *offline.Operation
	if err := errors.Join(o.Staging("a", "b"), o.Whole(nil), o.Published()); err != nil {
		t.Error(err)
	}
}
