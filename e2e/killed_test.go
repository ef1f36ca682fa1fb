package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nsmigrate/nsmigrate/e2e/lab"
)

// killWithGuard kills the program together with the process that would put things right.
func (r *running) killWithGuard() {
	r.w.Helper()
	for _, p := range r.host.Processes() {
		if strings.Contains(p.Command, " nsguard ") {
			if err := r.host.Kill(p.PID, syscall.SIGKILL); !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ESRCH) {
				r.w.check(err)
			}
		}
	}
	r.signal(syscall.SIGKILL)
}

// recovered has a person bring to its end what was killed, if there is anything, and returns what became of it; "" if there
// was nothing.
func (w *world) recovered(h *lab.Host, role string) string {
	w.Helper()
	var list []struct{ ID, Role, Service, State, To, From string }
	w.check(h.JSON(w.ctx, &list, w.nsmigrateBin(), "recover", "--list", "--format", "json"))
	w.Logf("unfinished: %+v", list)
	if len(list) == 0 {
		return ""
	}
	if image := list[0].To + list[0].From; len(list) > 1 || list[0].Role != role || image != w.image(h) {
		w.Fatalf("unfinished: %+v", list)
	}
	w.says(w.ok(h, "recover", "--list"), exitOK, list[0].ID, list[0].State, w.image(h))
	r := w.ok(h, "recover", list[0].ID)
	w.Log(r)
	w.says(r, exitOK, role+" "+list[0].ID)
	w.says(w.ok(h, "recover"), exitOK, "nothing is unfinished on this host")
	return r.Stdout
}

// journalled is the moment at which a file of a journal says something.
func journalled(file, text string) moment {
	return moment{"when the journal says " + text, func(_ *world, h *lab.Host) bool {
		files, _ := filepath.Glob(h.Path(filepath.Join(lab.StateDir, "*", file))) // the pattern is well-formed
		return slices.ContainsFunc(files, func(path string) bool {
			b, err := os.ReadFile(path)
			return err == nil && strings.Contains(string(b), text)
		})
	}}
}

// notAgain demands that a service of which a dump was cut short is not dumped: whoever ended the first dump would let it go on
// in the middle of the second.
func (w *world) notAgain(h *lab.Host, args []string) {
	w.Helper()
	w.check(lab.Eventually(w.limit(), func() error {
		if pid := criuPID(h); pid != 0 {
			return fmt.Errorf("criu, process %d, is still there", pid)
		}
		return nil
	}))
	if w.isThere(h.Path(fmt.Sprintf("/proc/%d", w.servicePID))) {
		w.fails(h, exitRefused, []string{"was cut short", "nsmigrate recover"}, args...)
	}
}

// A dump whose process is killed together with its guard leaves a source that stands still, at worst; `nsmigrate recover`
// puts it back, connections and all, or ends it if the image is complete.
func TestDumpKilledWithGuard(t *testing.T) {
	w := newWorld(t)
	w.serve()
	c := w.echo("4", 5)
	w.servicePID = w.pid(w.A, "peer", "serve")
	at, to := w.A, w.B
	moments := append(slices.Clone(dumpMoments), journalled("journal", `"step":"whole"`), moment{"when the service is gone", func(w *world, h *lab.Host) bool {
		_, err := os.Lstat(h.Path(fmt.Sprintf("/proc/%d", w.servicePID)))
		return err != nil
	}})
	recovered := 0
	for _, flag := range []string{"", "--leave-running"} {
		for _, m := range moments {
			before := w.snapshot(at)
			args := []string{"dump", "--netns", "svc", "-e", w.image(at)}
			if flag != "" {
				args = append(args, flag)
			}
			r := w.start(at, args...)
			hit := r.await(at, m)
			r.killWithGuard()
			r.ended()
			t.Logf("%s %s: %v", flag, m.name, hit)
			if m.name == dumpMoments[1].name && flag == "" {
				w.notAgain(at, args)
			}
			did := w.recovered(at, "dump")
			if did != "" {
				recovered++
			}
			switch {
			case flag != "":
				// Whatever becomes of the snapshot, the service runs.
				if w.isThere(w.image(at)) {
					w.check(os.Remove(w.image(at)))
				}
				w.same(at, before)
				w.isAsBefore(at)
			case w.isThere(w.image(at)):
				if did != "" && !strings.Contains(did, "the image "+w.image(at)+" is complete, the source is removed") {
					t.Errorf("there is an image, and it said %s", did)
				}
				at, to = w.liveElsewhere(at, to)
			default:
				if !strings.Contains(did, "the source is running as before") {
					t.Errorf("there is no image, and it said %s", did)
				}
				w.same(at, before)
				w.isAsBefore(at)
			}
			c.progress()
			w.unharmed()
		}
	}
	if recovered == 0 {
		t.Error("no dump was cut short")
	}
	w.noneUnfinished()
	w.stopAll(c)
}

// A restore whose process is killed together with its guard leaves half a service; `nsmigrate recover` removes it, or lets it
// live if it is whole and may have been heard. The image serves the next attempt.
func TestRestoreKilledWithGuard(t *testing.T) {
	w := newWorld(t)
	w.serve()
	c := w.echo("4", 5)
	w.servicePID = w.pid(w.A, "peer", "serve")
	at, to := w.A, w.B
	recovered := 0
	for _, m := range append(slices.Clone(restoreMoments), journalled("restore.json", `"live":true`)) {
		w.dump(at)
		w.carry(at, to)
		digest, before := w.digest(w.image(to)), w.snapshot(to)
		r := w.start(to, "restore", "-i", w.image(to))
		hit := r.await(to, m)
		r.killWithGuard()
		result := r.ended()
		t.Logf("%s: %v", m.name, hit)
		did := w.recovered(to, "restore")
		if did != "" {
			recovered++
		}
		if result.Code != exitOK && did != "" && !strings.Contains(did, "the service is live") {
			if !strings.Contains(did, "nothing is left of the restore on this host, the image is intact") {
				t.Errorf("it said %q", did)
			}
			w.same(to, before)
			if w.digest(w.image(to)) != digest {
				t.Error("the image is not what it was")
			}
			w.unharmed()
			w.restore(to)
		}
		w.check(os.Remove(w.image(to)))
		at, to = to, at
		c.progress()
		w.unharmed()
	}
	if recovered == 0 {
		t.Error("no restore was cut short")
	}
	w.noneUnfinished()
	w.stopAll(c)
}

// endCRIU kills whatever CRIU is at work on a host, and waits until the kernel has ended its hold on the service: before that
// a thread of the service can run, if the files that criu shares with it are closed.
func (w *world) endCRIU(h *lab.Host) {
	w.Helper()
	for pid := criuPID(h); pid != 0; pid = criuPID(h) {
		if err := h.Kill(pid, syscall.SIGKILL); !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ESRCH) {
			w.check(err)
		}
		w.check(lab.Eventually(w.limit(), func() error {
			status, err := os.ReadFile(h.Path(fmt.Sprintf("/proc/%d/status", pid)))
			if err == nil && !strings.HasPrefix(lab.StatusField(status, "State"), "Z") {
				return fmt.Errorf("criu, process %d, is not at its end: %s", pid, status)
			}
			return nil
		}))
	}
}

// All of it is killed at any time while the service is frozen, criu first: what that had in the service's threads and
// connections is known from the journal, and put right.
func TestAllKilledAnyTime(t *testing.T) {
	w := newWorld(t)
	w.serve()
	c := w.echo("4", 5)
	w.servicePID = w.pid(w.A, "peer", "serve")
	at, to := w.A, w.B
	recovered := 0
	for i := range 8 {
		before := w.snapshot(at)
		r := w.start(at, "dump", "--netns", "svc", "-e", w.image(at))
		r.await(at, dumpMoments[1])
		time.Sleep(time.Duration(2*i) * time.Millisecond) // the time itself is what is tested
		r.signal(syscall.SIGSTOP)                         // so that it does nothing about the end of criu
		w.endCRIU(at)
		r.killWithGuard()
		r.ended()
		did := w.recovered(at, "dump")
		if did != "" {
			recovered++
		}
		if w.isThere(w.image(at)) {
			at, to = w.liveElsewhere(at, to)
		} else {
			w.same(at, before)
			w.isAsBefore(at)
		}
		c.progress()
		w.unharmed()
	}
	if recovered == 0 {
		t.Error("no dump was cut short")
	}
	w.noneUnfinished()
	w.stopAll(c)
}
