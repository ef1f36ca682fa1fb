package journal_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nsmigrate/nsmigrate/transfer/journal"
)

// clock is a time that stands still until it is set.
type clock struct{ now time.Time }

func newDir(t *testing.T) (journal.Dir, *clock) {
	t.Helper()
	c := &clock{time.Date(2026, 11, 22, 6, 0, 0, 0, time.UTC)}
	return journal.Dir{
		Path: filepath.Join(t.TempDir(), "state"),
		Boot: "boot-1",
		Now:  func() time.Time { return c.now },
	}, c
}

func create(t *testing.T, d journal.Dir, id string, role journal.Role) *journal.Journal {
	t.Helper()
	j, err := d.Create(id, role, map[string]string{"netns": "svc"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func steps(records []journal.Record) string {
	var s []string
	for _, r := range records {
		s = append(s, strings.TrimSpace(r.Step+" "+string(r.Data)))
	}
	return strings.Join(s, "\n")
}

func TestLifeOfAJournal(t *testing.T) {
	d, _ := newDir(t)
	id := journal.NewID()
	j := create(t, d, id, journal.Source)
	check(t, j.Append("link", map[string]string{"name": "veth-svc"}))
	check(t, j.Note("stopped", []int{7, 8}))
	check(t, j.Decide("released", nil, false))

	c, err := d.Read(id, journal.Source)
	check(t, err)
	want := `created {"version":1,"id":"` + id + `","role":"source","data":{"netns":"svc"}}
link {"name":"veth-svc"}
stopped [7,8]
released`
	if got := steps(c.Records); got != want {
		t.Errorf("read back:\n%s\nwant:\n%s", got, want)
	}
	if got := steps(j.Records); got != want {
		t.Errorf("the writer's view:\n%s\nwant:\n%s", got, want)
	}
	if string(c.Data) != `{"netns":"svc"}` || !c.Busy || c.Finished() || c.Rebooted() {
		t.Errorf("read back: data %s, busy %v, finished %v, rebooted %v", c.Data, c.Busy, c.Finished(), c.Rebooted())
	}
	if _, err := d.Open(id, journal.Source); !errors.Is(err, journal.ErrBusy) {
		t.Errorf("opened beside its writer: %v", err)
	}

	check(t, j.Close())
	if c, err := d.Read(id, journal.Source); err != nil || c.Busy {
		t.Errorf("left behind: busy %v, error %v", c.Busy, err)
	}
	j, err = d.Open(id, journal.Source)
	check(t, err)
	check(t, j.Decide("ended", nil, true))
	if got := steps(j.Records); got != want+"\nended" {
		t.Errorf("gone on:\n%s", got)
	}
	check(t, j.Finish(journal.NoTombstone))
	if _, err := d.Read(id, journal.Source); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("read after its end: %v", err)
	}
	if left, _ := os.ReadDir(d.Path); len(left) != 0 {
		t.Errorf("left after its end: %v", left)
	}
}

func TestBothRolesOnOneHost(t *testing.T) {
	d, _ := newDir(t)
	id := journal.NewID()
	create(t, d, id, journal.Source)
	create(t, d, id, journal.Destination)
	list, err := d.List()
	check(t, err)
	if len(list) != 2 {
		t.Errorf("%d journals, want 2", len(list))
	}
}

func TestIDIsUsedOnce(t *testing.T) {
	d, _ := newDir(t)
	id := journal.NewID()
	j := create(t, d, id, journal.Destination)
	if _, err := d.Create(id, journal.Destination, nil); !errors.Is(err, journal.ErrExists) {
		t.Errorf("beside a journal: %v", err)
	}
	check(t, j.Finish(journal.Aborted))
	if _, err := d.Create(id, journal.Destination, nil); !errors.Is(err, journal.ErrExists) {
		t.Errorf("beside a tombstone: %v", err)
	}
	if left, _ := os.ReadDir(d.Path); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}

func TestTombstone(t *testing.T) {
	d, clock := newDir(t)
	id := journal.NewID()
	j := create(t, d, id, journal.Destination)
	check(t, os.WriteFile(filepath.Join(j.Path(), "kept"), []byte("an older file"), 0o600))
	check(t, j.Finish(journal.Live))

	c, err := d.Read(id, journal.Destination)
	check(t, err)
	if c.Tombstone != journal.Live || !c.Finished() || c.Busy {
		t.Errorf("tombstone %q, finished %v, busy %v", c.Tombstone, c.Finished(), c.Busy)
	}
	if _, err := os.Stat(filepath.Join(c.Path(), "kept")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the journal's folder still has what was put there: %v", err)
	}
	if _, err := d.Open(id, journal.Destination); !errors.Is(err, journal.ErrFinished) {
		t.Errorf("opened a tombstone: %v", err)
	}

	clock.now = clock.now.Add(journal.Keep - time.Second)
	create(t, d, journal.NewID(), journal.Destination)
	if _, err := d.Read(id, journal.Destination); err != nil {
		t.Errorf("gone before its time: %v", err)
	}
	clock.now = clock.now.Add(time.Second)
	young := create(t, d, journal.NewID(), journal.Destination)
	if _, err := d.Read(id, journal.Destination); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stayed beyond its time: %v", err)
	}
	if _, err := d.Read(young.ID, journal.Destination); err != nil {
		t.Errorf("a journal was swept: %v", err)
	}
}

func TestSweepOfHalfMadeFolders(t *testing.T) {
	d, clock := newDir(t)
	create(t, d, journal.NewID(), journal.Source)
	for _, name := range []string{".new-1", ".old-1"} {
		check(t, os.Mkdir(filepath.Join(d.Path, name), 0o700))
	}
	clock.now = time.Now()
	create(t, d, journal.NewID(), journal.Source)
	if left, _ := filepath.Glob(filepath.Join(d.Path, ".*-1")); len(left) != 2 {
		t.Errorf("young ones: left %v", left)
	}
	clock.now = time.Now().Add(2 * time.Hour)
	create(t, d, journal.NewID(), journal.Source)
	if left, _ := filepath.Glob(filepath.Join(d.Path, ".*-1")); len(left) != 0 {
		t.Errorf("old ones: left %v", left)
	}
}

func TestReboot(t *testing.T) {
	d, _ := newDir(t)
	id := journal.NewID()
	check(t, create(t, d, id, journal.Source).Close())
	d.Boot = "boot-2"
	for range 2 { // also after the second life wrote to it
		j, err := d.Open(id, journal.Source)
		check(t, err)
		if !j.Rebooted() {
			t.Error("the reboot was not noticed")
		}
		check(t, j.Append("look", nil))
		check(t, j.Close())
	}
}

func TestBootIDOfTheKernel(t *testing.T) {
	d := journal.Dir{Path: filepath.Join(t.TempDir(), "state")}
	j := create(t, d, journal.NewID(), journal.Source)
	if len(j.Records[0].Boot) != 36 || j.Rebooted() {
		t.Errorf("boot ID %q, rebooted %v", j.Records[0].Boot, j.Rebooted())
	}
}

func TestModes(t *testing.T) {
	d, _ := newDir(t)
	j := create(t, d, journal.NewID(), journal.Source)
	for path, want := range map[string]fs.FileMode{
		d.Path: 0o700, j.Path(): 0o700, filepath.Join(j.Path(), "journal"): 0o600,
	} {
		info, err := os.Stat(path)
		check(t, err)
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %#o, want %#o", path, got, want)
		}
	}
}

func TestStateDirectoryOfOthers(t *testing.T) {
	d, _ := newDir(t)
	check(t, os.Mkdir(d.Path, 0o700))
	check(t, os.Chmod(d.Path, 0o777))
	if _, err := d.Create(journal.NewID(), journal.Source, nil); err == nil || !strings.Contains(err.Error(), "chmod") {
		t.Errorf("created in a directory that others write to: %v", err)
	}
}

func TestTornLine(t *testing.T) {
	d, _ := newDir(t)
	id := journal.NewID()
	j := create(t, d, id, journal.Source)
	check(t, j.Append("link", strings.Repeat("long", 100)))
	check(t, j.Append("name", strings.Repeat("longer", 100)))
	check(t, j.Close())
	path := filepath.Join(j.Path(), "journal")
	file, err := os.ReadFile(path)
	check(t, err)
	check(t, os.WriteFile(path, file[:len(file)-1], 0o600))

	j, err = d.Open(id, journal.Source)
	check(t, err)
	if n := len(j.Records); n != 2 {
		t.Fatalf("%d records, want 2", n)
	}
	check(t, j.Append("short", nil)) // shorter than what it overwrites
	check(t, j.Append("next", nil))
	c, err := d.Read(id, journal.Source)
	check(t, err)
	if n := len(c.Records); n != 4 || c.Records[2].Step != "short" || c.Records[3].Step != "next" {
		t.Errorf("after a torn line:\n%s", steps(c.Records))
	}
}

func TestDamage(t *testing.T) {
	id := journal.NewID()
	first := func(id string, role journal.Role, version int) journal.Record {
		data, _ := json.Marshal(map[string]any{"version": version, "id": id, "role": role})
		return journal.Record{Step: "created", Boot: "boot-1", Data: data}
	}
	good := first(id, journal.Source, 1)
	for name, test := range map[string]struct {
		file []byte
		want string
	}{
		"empty":             {nil, "no beginning"},
		"no beginning":      {journal.Lines(t, journal.Record{Step: "released"}), "no beginning"},
		"another version":   {journal.Lines(t, first(id, journal.Source, 2)), "version 2"},
		"another migration": {journal.Lines(t, first(journal.NewID(), journal.Source, 1)), "that of migration"},
		"another role":      {journal.Lines(t, first(id, journal.Destination, 1)), "on its destination"},
		"created twice":     {journal.Lines(t, good, good), `line 2 is "created"`},
		"on after its end": {
			journal.Lines(t, good, journal.Record{Step: "finished"}, journal.Record{Step: "on"}), `line 2 is "finished"`,
		},
		"no tombstone": {journal.Lines(t, good, journal.Record{Step: "finished"}), "its end is damaged"},
		"a bad line":   {append(journal.Lines(t, good), "00000000 {}\n"...), "line 2: its checksum"},
	} {
		d, _ := newDir(t)
		folder := filepath.Join(d.Path, id+".source")
		check(t, os.MkdirAll(folder, 0o700))
		check(t, os.WriteFile(filepath.Join(folder, "journal"), test.file, 0o600))
		for verb, do := range map[string]func() error{
			"open": func() error { _, err := d.Open(id, journal.Source); return err },
			"read": func() error { _, err := d.Read(id, journal.Source); return err },
			"list": func() error {
				list, err := d.List()
				check(t, err)
				return list[0].Err
			},
		} {
			if err := do(); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s, %s: error %v, want one with %q", name, verb, err, test.want)
			}
		}
		// It is left for a person to look at.
		create(t, d, journal.NewID(), journal.Source)
		if _, err := os.Stat(folder); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHostileID(t *testing.T) {
	d, _ := newDir(t)
	digits := strings.Repeat("a", 31)
	for _, id := range []string{"", ".", "../../etc", digits, digits + "A", digits + "a/x"} {
		_, err1 := d.Create(id, journal.Source, nil)
		_, err2 := d.Open(id, journal.Source)
		_, err3 := d.Read(id, journal.Source)
		_, err4 := d.Create(journal.NewID(), journal.Role(id), nil)
		for _, err := range []error{err1, err2, err3, err4} {
			if err == nil || !strings.Contains(err.Error(), "no ID") {
				t.Errorf("%q: %v", id, err)
			}
		}
	}
}

func TestListIsInOrderOfCreation(t *testing.T) {
	d, clock := newDir(t)
	if list, err := d.List(); err != nil || len(list) != 0 {
		t.Errorf("without a state directory: %v, %v", list, err)
	}
	var want []string
	for range 5 {
		clock.now = clock.now.Add(time.Minute)
		want = append(want, create(t, d, journal.NewID(), journal.Source).ID)
	}
	check(t, os.Mkdir(filepath.Join(d.Path, "somebody's"), 0o700))
	list, err := d.List()
	check(t, err)
	var got []string
	for _, c := range list {
		got = append(got, c.ID)
	}
	if !slices.Equal(got, want) {
		t.Errorf("listed %v, want %v", got, want)
	}
}

func TestReservedSteps(t *testing.T) {
	d, _ := newDir(t)
	j := create(t, d, journal.NewID(), journal.Source)
	for _, step := range []string{"created", "finished", ""} {
		if err := j.Append(step, nil); err == nil {
			t.Errorf("appended a step %q", step)
		}
	}
	if err := j.Append("giant", strings.Repeat("x", 1<<20)); err == nil {
		t.Error("appended a giant")
	}
	check(t, j.Append("link", nil))
	c, err := d.Read(j.ID, journal.Source)
	check(t, err)
	if len(c.Records) != 2 {
		t.Errorf("read:\n%s", steps(c.Records))
	}
}

// The journal of a process that was killed is free at once.
func TestKilledProcess(t *testing.T) {
	const variable = "NSMIGRATE_TEST_JOURNAL"
	if path := os.Getenv(variable); path != "" {
		j, err := journal.Dir{Path: path}.Create(journal.NewID(), journal.Destination, nil)
		check(t, err)
		check(t, j.Decide("prepared", nil, false))
		fmt.Println("ID", j.ID)
		select {}
	}
	d := journal.Dir{Path: filepath.Join(t.TempDir(), "state")}
	cmd := exec.Command(os.Args[0], "-test.run", "^TestKilledProcess$")
	cmd.Env = append(os.Environ(), variable+"="+d.Path)
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	defer cmd.Process.Kill()
	line, err := bufio.NewReader(out).ReadString('\n')
	check(t, err)
	id := strings.TrimSpace(strings.TrimPrefix(line, "ID "))

	if _, err := d.Open(id, journal.Destination); !errors.Is(err, journal.ErrBusy) {
		t.Errorf("opened beside the process: %v", err)
	}
	check(t, cmd.Process.Kill())
	cmd.Wait()
	j, err := d.Open(id, journal.Destination)
	check(t, err)
	if got := j.Records[len(j.Records)-1].Step; got != "prepared" {
		t.Errorf("the last step is %q", got)
	}
}

// The journal of a dump is one like the others, but nothing reminds of its end; what is in the way of a migration's is not in
// its own.
func TestLocal(t *testing.T) {
	d, _ := newDir(t)
	id := journal.NewID()
	j := create(t, d, id, journal.Dump)
	if _, err := d.Create(id, journal.Dump, nil); !errors.Is(err, journal.ErrExists) {
		t.Errorf("created twice: %v", err)
	}
	other := create(t, d, id, journal.Restore)
	check(t, j.Decide("whole", "tail", true))
	check(t, j.SaveJSON("service", map[string]int{"pid": 7}))
	check(t, j.Close())
	list, err := d.List()
	check(t, err)
	if len(list) != 2 || list[0].Role != journal.Dump || list[0].Busy || !list[1].Busy {
		t.Errorf("list %+v", list)
	}
	j, err = d.Open(id, journal.Dump)
	check(t, err)
	var saved map[string]int
	if ok, err := j.LoadJSON("service", &saved); !ok || err != nil || saved["pid"] != 7 {
		t.Errorf("loaded %v: %v, %v", saved, ok, err)
	}
	if ok, err := j.LoadJSON("nothing", &saved); ok || err != nil {
		t.Errorf("loaded what was not saved: %v, %v", ok, err)
	}
	check(t, j.Finish(journal.NoTombstone))
	check(t, other.Finish(journal.NoTombstone))
	if _, err := d.Open(id, journal.Dump); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open after its end: %v", err)
	}
	if left, _ := os.ReadDir(d.Path); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// What a creation left that was cut short is cleared away by who knows of it, and nothing else is.
func TestClear(t *testing.T) {
	d, _ := newDir(t)
	id, another := journal.NewID(), journal.NewID()
	create(t, d, another, journal.Dump)
	for _, name := range []string{".new-" + id + ".dump.123", ".new-" + id + ".restore.123", ".new-" + another + ".dump.1"} {
		check(t, os.Mkdir(filepath.Join(d.Path, name), 0o700))
	}
	check(t, d.Clear(id, journal.Dump))
	var left []string
	entries, err := os.ReadDir(d.Path)
	check(t, err)
	for _, e := range entries {
		left = append(left, strings.NewReplacer(id, "ID", another, "OTHER").Replace(e.Name()))
	}
	slices.Sort(left)
	if want := []string{".new-ID.restore.123", ".new-OTHER.dump.1", "OTHER.dump"}; !slices.Equal(left, want) {
		t.Errorf("left %v, want %v", left, want)
	}
}

// A dump's journal that the host lost is none; a migration's, which it can't have lost, is damaged.
func TestLostWithTheHost(t *testing.T) {
	d, _ := newDir(t)
	check(t, os.Mkdir(d.Path, 0o700))
	id := journal.NewID()
	for _, role := range []journal.Role{journal.Dump, journal.Source} {
		folder := filepath.Join(d.Path, id+"."+string(role))
		check(t, os.Mkdir(folder, 0o700))
		check(t, os.WriteFile(filepath.Join(folder, "journal"), make([]byte, 100), 0o600))
		if _, err := d.Open(id, role); err == nil || errors.Is(err, fs.ErrNotExist) != (role == journal.Dump) {
			t.Errorf("%s: %v", role, err)
		}
	}
	list, err := d.List()
	check(t, err)
	if len(list) != 1 || list[0].Role != journal.Source || list[0].Err == nil {
		t.Errorf("list %+v", list)
	}
	create(t, d, journal.NewID(), journal.Destination) // which sweeps
	if _, err := os.Stat(filepath.Join(d.Path, id+".dump")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is not swept away: %v", err)
	}
	if _, err := os.Stat(filepath.Join(d.Path, id+".source")); err != nil {
		t.Errorf("the damaged one is: %v", err)
	}
}
