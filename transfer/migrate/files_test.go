package migrate

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/nsmigrate/nsmigrate/transfer/journal"
	"github.com/nsmigrate/nsmigrate/transfer/ship"
)

// hosts are two directories that stand for the file systems of two hosts, with a file that is different on the
// destination. The destination's is the real one.
type hosts struct {
	source string // the directory that is the source's "/"
	path   string // of the file, on both
}

func newHosts(t *testing.T) hosts {
	t.Helper()
	h := hosts{source: t.TempDir(), path: filepath.Join(t.TempDir(), "file")}
	for path, content := range map[string]string{h.path: "old", filepath.Join(h.source, h.path): "new"} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// install has the source's file come to a destination, up to where the processes are to be restored.
func (h hosts) install(t *testing.T, j *journal.Journal) {
	t.Helper()
	ctx := context.Background()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	src, problems, err := ship.Survey(ctx, []ship.Root{{Path: h.path}}, ship.SurveyOptions{Root: h.source})
	check(err)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	c := &cargo{source: src, named: []string{h.path}}
	defer c.close()

	d := &Destination{journal: j}
	defer d.Close()
	r, err := c.attachment().Open()
	check(err)
	check(d.Store(ctx, ship.IndexEntry, -1, r))
	files, problems, err := d.compareFiles(ctx, j.ID)
	check(err)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	answer, err := json.Marshal(wants{Files: files})
	check(err)
	files, err = c.wanted(answer)
	check(err)
	if want := (FilesReport{Files: 1, Bytes: 3, Lacked: 3, Replaced: 1}); !sameCounts(c.report, want) {
		t.Errorf("report %+v, want %+v", c.report, want)
	}

	d.restored.Images = t.TempDir() // it is built
	check(c.send(ctx, files, d.sendTo))
	check(os.WriteFile(filepath.Join(h.source, h.path), []byte("newer"), 0o600))
	check(c.finish(ctx, d.sendTo))
	if got := h.content(t); got != "old" {
		t.Fatalf("it is %q before the service is frozen", got)
	}
	check(d.files.Install(ctx))
	if got := h.content(t); got != "newer" {
		t.Fatalf("it is %q when it is installed", got)
	}
}

// sendTo is a connection that is no longer than a call.
func (d *Destination) sendTo(ctx context.Context, name string, size int64, r io.Reader) error {
	return d.Store(ctx, name, size, r)
}

func sameCounts(a, b FilesReport) bool {
	return a.Files == b.Files && a.Bytes == b.Bytes && a.Lacked == b.Lacked && a.Shared == b.Shared && a.Replaced == b.Replaced && a.Removed == b.Removed
}

func (h hosts) content(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(h.path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Another process undoes or settles what was done to files by what the journal says, also after a restart of the host,
// and more than once.
func TestFilesOfAnotherProcess(t *testing.T) {
	settle := func(d *Destination, ctx context.Context) error { return d.Settle(ctx, func(error) {}) }
	for _, tt := range []struct {
		name, boot string
		finish     func(*Destination, context.Context) error
		want       string
	}{
		{"undo", "one", (*Destination).Undo, "old"},
		{"undo after a restart", "two", (*Destination).Undo, "old"},
		{"settle", "one", settle, "newer"},
		{"settle after a restart", "two", settle, "newer"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHosts(t)
			state := t.TempDir()
			j, err := journal.Dir{Path: state, Boot: "one"}.Create(journal.NewID(), journal.Destination, nil)
			if err != nil {
				t.Fatal(err)
			}
			h.install(t, j)
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				again, err := journal.Dir{Path: state, Boot: tt.boot}.Open(j.ID, journal.Destination)
				if err != nil {
					t.Fatal(err)
				}
				d, err := ReopenDestination(again)
				if err != nil {
					t.Fatal(err)
				}
				if err := tt.finish(d, context.Background()); err != nil {
					t.Fatal(err)
				}
				again.Close()
				if got := h.content(t); got != tt.want {
					t.Errorf("the file is %q, want %q", got, tt.want)
				}
				left, err := os.ReadDir(filepath.Dir(h.path))
				if err != nil || len(left) != 1 {
					t.Errorf("left behind: %v, %v", left, err)
				}
			}
		})
	}
}

// Whoever wants a large file to travel learns that the service will stand still for it, unless both hosts see it.
func TestLargeFileIsNoted(t *testing.T) {
	h := newHosts(t)
	src, _, err := ship.Survey(context.Background(), []ship.Root{{Path: h.path, Held: true}}, ship.SurveyOptions{Root: h.source})
	if err != nil {
		t.Fatal(err)
	}
	c := &cargo{source: src, random: map[string]bool{h.path: true}}
	defer c.close()
	x := src.Index()
	at := len(x.Entries) - 1
	x.Entries[at].Size, x.Entries[at].Data = 5<<30, []ship.Extent{{Offset: 1 << 30, Length: 3 << 30}}
	for _, same := range [][]ship.Run{{{First: int64(at), Count: 1}}, nil, nil} {
		b, err := json.Marshal(wants{Files: &ship.Wants{Same: same}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.wanted(b); err != nil {
			t.Fatal(err)
		}
		if noted := len(c.report.Notes) == 1; noted != (same == nil) {
			t.Errorf("shared %v: notes %q", same, c.report.Notes)
		}
	}
	if c.report.Bytes != 3<<30 || c.report.Files != 1 {
		t.Errorf("%+v", c.report)
	}
}

// The progress of what is sent never goes beyond its end, and comes to it.
func TestProgressOfFiles(t *testing.T) {
	var told []int64
	w := &watched{r: bytes.NewReader(make([]byte, 100)), total: 90, progress: teller(func(done, total int64) {
		told = append(told, done)
		if total != 90 {
			t.Errorf("the total is %d", total)
		}
	})}
	for _, n := range []int{60, 60} {
		w.told = time.Time{}
		if _, err := w.Read(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(told, []int64{60, 90}) {
		t.Errorf("told %v", told)
	}
}

type teller func(done, total int64)

func (teller) Phase(string)                 { panic("a phase") }
func (tell teller) Bytes(done, total int64) { tell(done, total) }

// A destination can't make the source count what it does not have, nor send what it is not to send.
func TestHostileWants(t *testing.T) {
	h := newHosts(t)
	src, _, err := ship.Survey(context.Background(), []ship.Root{{Path: h.path}}, ship.SurveyOptions{Root: h.source})
	if err != nil {
		t.Fatal(err)
	}
	c := &cargo{source: src}
	defer c.close()
	for _, answer := range []string{`{}`, ``, `{"files":null}`, `[]`, `{"files":{"same":7}}`} {
		if _, err := c.wanted([]byte(answer)); err == nil {
			t.Errorf("%s is accepted", answer)
		}
	}
	same := []ship.Run{{First: -5, Count: 3}, {First: 0, Count: -1}, {First: 1 << 62, Count: 1 << 62}, {First: -1 << 63, Count: 1<<63 - 1}}
	for n := 1; n <= len(same); n++ {
		b, err := json.Marshal(wants{Files: &ship.Wants{Same: same[:n]}})
		if err != nil {
			t.Fatal(err)
		}
		files, err := c.wanted(b)
		if err != nil {
			t.Fatal(err)
		}
		if c.report.Shared < 0 || c.report.Files > 1 {
			t.Errorf("%s: %+v", b, c.report)
		}
		err = c.send(context.Background(), files, func(_ context.Context, _ string, _ int64, r io.Reader) error {
			_, err := new(bytes.Buffer).ReadFrom(r)
			return err
		})
		if err == nil {
			t.Errorf("%s is obeyed", b)
		}
	}
}
