package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/nsmigrate/nsmigrate/e2e/lab"
)

// The link is cut for good when the source has released the service, and all who could decide are dead: the copies are
// frozen on both hosts, and a person's word is done on either.
func TestRecoverByForce(t *testing.T) {
	for _, lives := range []bool{true, false} {
		t.Run(fmt.Sprintf("lives on the destination %v", lives), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.serve()
			c := w.echo("4", 3)
			before := w.snapshot(w.A)
			id := w.undecided()
			force, told := "--force-abort", "it goes on on the source"
			if lives {
				force, told = "--force-live", "it lives on the destination"
			}

			w.fails(w.B, exitUsage, []string{force + " must stand before"}, "recover", id, force)
			// The destination first, by which the service lives again, if it is to live there.
			w.says(w.ok(w.B, "recover", force, id), exitOK, id, told)
			if lives {
				c.progress()
			} else {
				w.same(w.B, w.empty[w.B])
			}
			w.says(w.ok(w.A, "recover", force, id), exitOK, id, told)
			if lives {
				w.same(w.A, w.empty[w.A])
			} else {
				w.same(w.A, before)
			}
			c.progress()
			w.unharmed()
			w.noneUnfinished()
			w.fails(w.A, exitUsage, []string{"nothing with the ID " + id + " is unfinished"}, "recover", force, id)
			w.stopAll(c)
		})
	}
}

// A person who has decided need not wait until the migration, which asks the other host in vain, gives up: it does as it is
// told, with all that it has in its hands, and says so.
func TestRecoverWhileAsking(t *testing.T) {
	for _, lives := range []bool{true, false} {
		t.Run(fmt.Sprintf("lives on the destination %v", lives), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.serve()
			c := w.echo("4", 3)
			before := w.snapshot(w.A)
			h, id := w.inTheAir()
			if lives {
				w.ok(w.B, "recover", "--force-live", id)
				c.progress()
				w.says(w.ok(w.A, "recover", "--force-live", id), exitOK, "migration "+id+" of netns \"svc\" (source)", "it lives on the destination")
				h.ends(exitOK, "migrated netns \"svc\"")
				w.same(w.A, w.empty[w.A])
			} else {
				w.ok(w.B, "recover", "--force-abort", id)
				w.says(w.ok(w.A, "recover", "--force-abort", id), exitOK, "migration "+id+" of netns \"svc\" (source)", "it goes on on the source")
				h.ends(exitDumpFailed, "the service is running on this host as before")
				w.same(w.A, before)
				w.same(w.B, w.empty[w.B])
			}
			c.progress()
			w.unharmed()
			w.noneUnfinished()
			w.stopAll(c)
		})
	}
}

// undecided has a migration to host B end in the air, and returns its ID.
func (w *world) undecided() string {
	w.Helper()
	h, id := w.inTheAir()
	w.check(h.process.Signal(syscall.SIGKILL))
	// The source's guard asks in vain, and says what a person can do and risks by it.
	log := w.A.Path(filepath.Join(lab.StateDir, "*", "guard.log"))
	w.check(lab.Eventually(w.limit(), func() error {
		text := w.readAll(log)
		for _, word := range []string{
			"it is not known whether the service lives on the destination", "the copy here is frozen and mute",
			"nsmigrate recover --force-live " + id, "no copy is left", "nsmigrate recover --force-abort " + id, "two copies live",
		} {
			if !strings.Contains(text, word) {
				return fmt.Errorf("the guard doesn't say %q: %s", word, text)
			}
		}
		return nil
	}))
	return id
}

// inTheAir has the link of a migration to host B cut for good when the source has released the service, and those who work
// on it there killed. It returns the source, which asks in vain, and the ID.
func (w *world) inTheAir() (h *held, id string) {
	w.Helper()
	l := w.linkTo(w.B)
	l.use(w.faultyBin(), "NSMIGRATE_FAULT=destination/prepared/released/enter-live=wait:"+w.stopFile())
	h = w.hold("", "--to", l.address())
	receiver := l.receiver(0)
	l.sever()
	w.killGuard(w.B)
	w.check(receiver.Signal(syscall.SIGKILL))
	w.check(os.Remove(h.stop))
	states := map[*lab.Host]string{w.A: "released", w.B: "prepared"}
	for _, host := range w.Hosts() {
		var list []struct {
			ID, Role, State, Service string
		}
		w.check(host.JSON(w.ctx, &list, w.nsmigrateBin(), "recover", "--list", "--format", "json"))
		if len(list) != 1 || list[0].State != states[host] || id != "" && list[0].ID != id {
			w.Fatalf("%s: %+v", host.Name, list)
		}
		id = list[0].ID
	}
	return h, id
}

// readAll returns all that is in the files of a pattern.
func (w *world) readAll(pattern string) string {
	w.Helper()
	files, err := filepath.Glob(pattern)
	w.check(err)
	var all strings.Builder
	for _, f := range files {
		text, err := os.ReadFile(f)
		w.check(err)
		all.Write(text)
	}
	return all.String()
}

// killGuard kills the process that would recover on a host.
func (w *world) killGuard(h *lab.Host) {
	w.Helper()
	for _, p := range h.Processes() {
		if strings.Contains(p.Command, " nsguard ") {
			w.check(h.Kill(p.PID, syscall.SIGKILL))
			return
		}
	}
	w.Fatalf("%s has no guard: %+v", h.Name, h.Processes())
}
