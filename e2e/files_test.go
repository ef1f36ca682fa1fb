package e2e

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/e2e/lab"
)

// The books of the peer's service, on each host's own /tmp.
const (
	booksDir  = "/tmp/books"
	booksLog  = booksDir + "/log"
	booksData = booksDir + "/data"
	booksMap  = booksDir + "/mapped"
)

var keepsBooks = []string{"--log", booksLog, "--data", booksData, "--mapped", booksMap}

// books gives host A a place for the service's books, and host B other files of the same names.
func (w *world) books() {
	w.Helper()
	w.sh(w.A, "mkdir %s; : > %s; : > %s; : > %s; chmod 640 %[3]s", booksDir, booksLog, booksData, booksMap)
	w.sh(w.B, "mkdir %s; echo other > %s; echo 1 > %s; echo 2 > %s; chmod 604 %[2]s; touch -d 2001-01-01 %[3]s",
		booksDir, booksLog, booksData, booksMap)
	w.keepBooks()
	w.Cleanup(func() {
		for _, h := range w.Hosts() {
			w.sh(h, "rm -rf %s", booksDir)
			for line := range w.empty[h] {
				if strings.HasPrefix(line, "file "+booksDir) {
					delete(w.empty[h], line)
				}
			}
		}
	})
}

// keepBooks lets the books stay on the hosts when the service has gone.
func (w *world) keepBooks() {
	w.Helper()
	for _, h := range w.Hosts() {
		for line := range w.snapshot(h) {
			if strings.HasPrefix(line, "file "+booksDir) {
				w.empty[h][line] = struct{}{}
			}
		}
	}
}

// entries demands that the books on a host are in order, and returns how many exchanges they tell of. They may go on
// meanwhile.
func (w *world) entries(h *lab.Host) int {
	w.Helper()
	log := w.read(h, booksLog)
	log = log[:strings.LastIndex(log, "\n")+1] // of a line that is being written
	n := 0
	for line := range strings.Lines(log) {
		n++
		if line != strconv.Itoa(n)+"\n" {
			w.Fatalf("%s: line %d of the log is %q", h.Name, n, line)
		}
	}
	data := w.read(h, booksData)
	if hole := strings.Trim(data[:1<<20], "\x00"); hole != "" {
		w.Fatalf("%s: the data file begins with %q", h.Name, hole)
	}
	inData, err := strconv.Atoi(data[1<<20:])
	w.check(err)
	mapped := int(binary.LittleEndian.Uint64([]byte(w.read(h, booksMap))))
	if inData < n || mapped < inData { // they are read, and written, in this order
		w.Fatalf("%s: %d exchanges in the log, then %d in the data file, then %d in the mapped one", h.Name, n, inData, mapped)
	}
	return n
}

func (w *world) read(h *lab.Host, path string) string {
	w.Helper()
	b, err := os.ReadFile(h.Path(path))
	w.check(err)
	return string(b)
}

// contents is all that there is to the files in the books' place on a host.
func (w *world) contents(h *lab.Host) string {
	w.Helper()
	return w.output(h, "sh", "-euc", fmt.Sprintf("cd %s; stat -c '%%n %%a %%u:%%g %%s %%y %%i' *; stat -c '%%n %%a %%u:%%g %%i' .; sha256sum *", booksDir))
}

// The files that a service writes to go where it goes: its log, its data, and what it writes to through memory.
func TestMigrateFiles(t *testing.T) {
	w := newWorld(t)
	w.books()
	before := w.contents(w.B)
	w.serve(keepsBooks...)
	c := w.echo("4", 3)
	ls := w.links()

	r := w.ok(w.A, "migrate", "--netns", "svc", "--to", ls[w.B].address(), "--dry-run")
	w.says(r, exitOK, "3 files would travel along", "3 different ones over there would be replaced", booksLog)
	if after := w.contents(w.B); after != before {
		t.Errorf("after a dry run the destination has\n%s\nbefore it had\n%s", after, before)
	}

	from, to := w.A, w.B
	for range rounds {
		w.entries(from)
		r := w.migrate(ls, from, to, "--print-stats")
		w.Log(r)
		w.says(r, exitOK, "3 files travelled along")
		left := w.entries(from)
		c.progress()
		if n := w.entries(to); n <= left {
			t.Fatalf("%d exchanges on the source, and %d after it on the destination", left, n)
		}
		if used := strings.TrimSpace(w.output(to, "stat", "-c", "%b", booksData)); len(used) > 2 { // units of 512 bytes
			t.Fatalf("the hole was filled: %s blocks", used)
		}
		if mode := w.output(to, "stat", "-c", "%a", booksData); mode != "640\n" {
			t.Fatalf("mode %q", mode)
		}
		w.unharmed()
		from, to = to, from
	}
	w.stopAll(c)
}

// A log that the shell opened before the service had a mount namespace of its own is written on where it ended.
func TestMigrateRedirectedLog(t *testing.T) {
	w := newWorld(t)
	w.books()
	w.daemon(w.A, inSvc+"%s serve --quiet --data %s --mapped %s --log - > %s", w.peerBin(), booksData, booksMap, booksLog)
	w.listening("7000")
	c := w.echo("4", 3)
	ls := w.links()
	from, to := w.A, w.B
	for range 2 {
		w.migrate(ls, from, to)
		left := w.entries(from)
		c.progress()
		if n := w.entries(to); n <= left {
			t.Fatalf("%d exchanges on the source, and %d after it on the destination", left, n)
		}
		from, to = to, from
	}
	w.stopAll(c)
}

// What was replaced is put back when a migration fails, by whatever process is left to do it.
func TestMigrateFilesBack(t *testing.T) {
	for _, fault := range []string{
		"destination/building/prepare/enter-prepared=error", "destination/building/prepare/enter-prepared=kill",
		"destination/prepared/released/enter-live=kill", "destination/building/entry/store=error",
	} {
		t.Run(strings.ReplaceAll(fault, "/", " "), func(t *testing.T) {
			w := newWorld(t)
			w.books()
			before := w.contents(w.B)
			w.serve(keepsBooks...)
			c := w.echo("4", 3)
			l := w.linkTo(w.B)
			l.use(w.faultyBin(), "NSMIGRATE_FAULT="+fault)
			r := w.nsmigrate(w.A, "migrate", "--netns", "svc", "--to", l.address())
			w.Log(r)
			w.removeLogs(w.A, r)
			if r.Code == exitOK {
				t.Fatal("it should have failed")
			}
			w.noneUnfinished()
			w.same(w.B, w.empty[w.B])
			if after := w.contents(w.B); after != before {
				t.Errorf("the destination has\n%s\nbefore it had\n%s", after, before)
			}
			n := w.entries(w.A)
			c.progress()
			if w.entries(w.A) <= n {
				t.Error("the service does not go on with its books")
			}
			w.unharmed()
			w.stopAll(c)
		})
	}
}

// Without files the destination has to have them, in the same size.
func TestMigrateNoFiles(t *testing.T) {
	w := newWorld(t)
	w.books()
	w.serve("--data", booksData)
	c := w.echo("4", 1)
	w.fails(w.A, exitRefused, []string{booksData, "bytes here"},
		"migrate", "--netns", "svc", "--to", w.linkTo(w.B).address(), "--files", "none")
	c.progress()
	w.stopAll(c)
}

// A named directory becomes on the destination what it is on the source, programs in it included.
func TestMigrateShip(t *testing.T) {
	w := newWorld(t)
	w.books()
	w.sh(w.A, `mkdir -p %[1]s/app/sub; cp %[2]s %[1]s/app/peer; echo conf > %[1]s/app/sub/conf; ln -s sub/conf %[1]s/app/link
		mkfifo -m 622 %[1]s/app/fifo; touch -d 2002-02-02 %[1]s/app/sub; : > %[1]s/app/log`, booksDir, w.peerBin())
	w.sh(w.B, "mkdir %[1]s/app; echo mine > %[1]s/app/only-here", booksDir)
	w.keepBooks()
	w.daemon(w.A, inSvc+"%s/app/peer serve --quiet --log %[1]s/app/log", booksDir)
	w.listening("7000")
	c := w.echo("4", 1)
	ls := w.links()

	w.fails(w.A, exitRefused, []string{booksDir + "/app/peer", "missing here"},
		"migrate", "--netns", "svc", "--to", ls[w.B].address())
	args := []string{"--ship", booksDir + "/app"}
	r := w.ok(w.A, append([]string{"migrate", "--netns", "svc", "--to", ls[w.B].address(), "--dry-run"}, args...)...)
	w.says(r, exitOK, "1 that only the destination had would be removed", booksDir+"/app/only-here")
	w.Log(w.migrate(ls, w.A, w.B, args...))
	c.progress()
	tree := fmt.Sprintf("cd %s/app; find . ! -name log -printf '%%p %%y %%m %%s %%l %%T@\\n' | sort; cat sub/conf", booksDir)
	if a, b := w.output(w.A, "sh", "-euc", tree), w.output(w.B, "sh", "-euc", tree); a != b {
		t.Errorf("the source has\n%s\nthe destination\n%s", a, b)
	}
	w.unharmed()
	w.stopAll(c)
}

// The same file on both hosts is no file to be shipped: nobody may put a copy in its place.
func TestMigrateSharedFile(t *testing.T) {
	w := newWorld(t)
	log := w.Dir + "/log"
	w.sh(w.A, ": > %s", log)
	inode := w.output(w.A, "stat", "-c", "%d:%i", log)
	w.serve("--log", log)
	c := w.echo("4", 1)
	ls := w.links()
	r := w.ok(w.A, "migrate", "--netns", "svc", "--to", ls[w.B].address(), "--dry-run")
	w.says(r, exitOK, "is on storage that both hosts see")
	w.migrate(ls, w.A, w.B)
	c.progress()
	if now := w.output(w.B, "stat", "-c", "%d:%i", log); now != inode {
		t.Errorf("it was %s and is %s", inode, now)
	}
	lines := strings.Split(w.read(w.B, log), "\n")
	for i, line := range lines[:len(lines)-1] {
		if line != strconv.Itoa(i+1) {
			t.Fatalf("line %d is %q", i+1, line)
		}
	}
	w.stopAll(c)
}
