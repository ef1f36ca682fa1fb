package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nsmigrate/nsmigrate/e2e/lab"
)

// moment is a point in an operation that a test can see from outside.
type moment struct {
	name string
	came func(w *world, h *lab.Host) bool
}

var dumpMoments = []moment{
	{"when criu is there", func(_ *world, h *lab.Host) bool { return criuPID(h) != 0 }},
	{"when the service is frozen", func(w *world, h *lab.Host) bool {
		state, err := os.ReadFile(h.Path(fmt.Sprintf("/proc/%d/status", w.servicePID)))
		return err == nil && lab.StatusField(state, "State") == "t (tracing stop)"
	}},
	{"when its memory is written", func(_ *world, h *lab.Host) bool {
		// The directory of its images may be one that only criu sees.
		found, _ := filepath.Glob(h.Path(fmt.Sprintf("/proc/%d/fd/*/pages-*.img", criuPID(h))))
		return len(found) > 0
	}},
}

var restoreMoments = []moment{
	{"when criu is there", dumpMoments[0].came},
	{"when the service's namespace is there", func(_ *world, h *lab.Host) bool {
		_, err := os.Lstat(h.Path("/run/netns/svc"))
		return err == nil
	}},
	{"when the service's process is there", func(w *world, h *lab.Host) bool {
		_, err := os.Lstat(h.Path(fmt.Sprintf("/proc/%d", w.servicePID)))
		return err == nil
	}},
}

// criuPID is the first of the processes of a CRIU that is at work, or 0.
func criuPID(h *lab.Host) int {
	for _, p := range h.Processes() {
		if strings.Contains(p.Command, "criu") && strings.HasSuffix(p.Command, " swrk "+lastWord(p.Command)) {
			return p.PID
		}
	}
	return 0
}

func lastWord(s string) string { return s[strings.LastIndex(s, " ")+1:] }

// await polls for a moment as fast as it can: the operation takes milliseconds. It is false if the program
// ended before.
func (r *running) await(h *lab.Host, m moment) bool {
	for {
		if m.came(r.w, h) {
			return true
		}
		select {
		case <-r.process.Done():
			return false
		default:
		}
	}
}

// harm is what a test does to the program in the middle of its work.
type harm struct {
	name string
	do   func(w *world, h *lab.Host, r *running)
	code int
}

func harms(failed int) []harm {
	return []harm{
		{"criu is killed", func(w *world, h *lab.Host, _ *running) { w.killCRIU(h) }, failed},
		{"SIGINT", func(_ *world, _ *lab.Host, r *running) { r.signal(syscall.SIGINT) }, exitInterrupted},
		{"SIGTERM", func(_ *world, _ *lab.Host, r *running) { r.signal(syscall.SIGTERM) }, exitInterrupted},
		{"SIGKILL", func(_ *world, _ *lab.Host, r *running) { r.signal(syscall.SIGKILL) }, 128 + int(syscall.SIGKILL)},
	}
}

// killCRIU kills whatever CRIU is at work on a host.
func (w *world) killCRIU(h *lab.Host) {
	w.Helper()
	for pid := criuPID(h); pid != 0; pid = criuPID(h) {
		if err := h.Kill(pid, syscall.SIGKILL); !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ESRCH) {
			w.check(err)
		}
	}
}

// A criu that is killed at any time while it holds the service frozen costs the service nothing: neither does a thread
// stay in criu's code, nor does one run while the connections are criu's.
func TestCRIUKilledAnyTime(t *testing.T) {
	w := newWorld(t)
	w.serve()
	c := w.echo("4", 5)
	w.servicePID = w.pid(w.A, "peer", "serve")
	at, to := w.A, w.B
	killed := 0
	for i := range 16 {
		before := w.snapshot(at)
		r := w.start(at, "dump", "--netns", "svc", "-e", w.image(at))
		r.await(at, dumpMoments[1])
		time.Sleep(time.Duration(i) * time.Millisecond) // the time itself is what is tested
		w.killCRIU(at)
		result := r.ended()
		w.removeLogs(at, result)
		if result.Code == exitOK { // it was complete before
			at, to = w.liveElsewhere(at, to)
		} else {
			killed++
			w.says(result, exitDumpFailed, "criu died", "the source is running as before")
			w.same(at, before)
			w.isAsBefore(at)
		}
		c.progress()
		w.unharmed()
	}
	if killed == 0 {
		t.Error("no dump was interrupted")
	}
	w.stopAll(c)
}

// liveElsewhere brings a service of which only an image is left to life on another host, and returns the two the other way
// round.
func (w *world) liveElsewhere(from, to *lab.Host) (at, other *lab.Host) {
	w.Helper()
	w.gone(from)
	w.carry(from, to)
	w.restore(to)
	w.check(os.Remove(w.image(to)))
	return to, from
}

func (w *world) isThere(path string) bool {
	w.Helper()
	_, err := os.Lstat(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		w.check(err)
	}
	return err == nil
}

// isAsBefore demands that nothing of CRIU is left in the service's memory.
func (w *world) isAsBefore(h *lab.Host) {
	w.Helper()
	maps, err := os.ReadFile(h.Path(fmt.Sprintf("/proc/%d/maps", w.servicePID)))
	w.check(err)
	if strings.Contains(string(maps), "CRIU") {
		w.Errorf("criu left its memory in the service:\n%s", maps)
	}
}

// A dump that fails at any moment leaves the service running and its connections alive. One that was done
// before the harm came left a complete image.
func TestDumpFails(t *testing.T) {
	for _, harm := range harms(exitDumpFailed) {
		for _, moment := range dumpMoments {
			t.Run(harm.name+" "+moment.name, func(t *testing.T) {
				w := newWorld(t)
				w.serve()
				loads := []*client{w.echo("4", 5), w.load("--mode", "bulk", "--size", "65536", "--connect", w.svc.Addr("6", 7000),
					"--first-id", "50", "--read-rate", "4000000", "--server-read-rate", "4000000")}
				w.servicePID = w.pid(w.A, "peer", "serve")
				before := w.snapshot(w.A)
				r := w.start(w.A, "dump", "--netns", "svc", "-e", w.image(w.A))
				hit := r.await(w.A, moment)
				harm.do(w, w.A, r)
				result := r.ended()
				t.Logf("the moment came: %v", hit)
				w.removeLogs(r.host, result)
				if w.isThere(w.image(w.A)) {
					w.gone(w.A)
					w.carry(w.A, w.B)
					w.restore(w.B)
				} else {
					w.says(result, harm.code)
					w.same(w.A, before)
					w.isAsBefore(w.A)
				}
				for _, c := range loads {
					c.progress()
				}
				w.unharmed()
				w.stopAll(loads...)
			})
		}
	}
}

// A restore that fails at any moment leaves nothing, and the image serves the next attempt, connections and all.
func TestRestoreFails(t *testing.T) {
	for _, harm := range harms(exitRestoreFailed) {
		for _, moment := range restoreMoments {
			t.Run(harm.name+" "+moment.name, func(t *testing.T) {
				w := newWorld(t)
				w.serve()
				c := w.echo("4", 5)
				w.servicePID = w.pid(w.A, "peer", "serve")
				w.dump(w.A)
				w.carry(w.A, w.B)
				digest, before := w.digest(w.image(w.B)), w.snapshot(w.B)
				r := w.start(w.B, "restore", "-i", w.image(w.B))
				hit := r.await(w.B, moment)
				harm.do(w, w.B, r)
				result := r.ended()
				t.Logf("the moment came: %v", hit)
				w.removeLogs(r.host, result)
				if result.Code != exitOK && !strings.Contains(result.Output(), "the service is live") {
					w.says(result, harm.code)
					w.same(w.B, before)
					if w.digest(w.image(w.B)) != digest {
						t.Error("the image is not what it was")
					}
					w.unharmed()
					w.restore(w.B)
				}
				c.progress()
				w.unharmed()
				w.stopAll(c)
			})
		}
	}
}

// Signals at evenly spread times, whatever the program is at.
func TestSignalAnyTime(t *testing.T) {
	for name, signal := range map[string]syscall.Signal{"SIGTERM": syscall.SIGTERM, "SIGKILL": syscall.SIGKILL} {
		t.Run(name, func(t *testing.T) { testSignalAnyTime(t, signal) })
	}
}

func testSignalAnyTime(t *testing.T, signal syscall.Signal) {
	w := newWorld(t)
	w.serve()
	c := w.echo("4", 5)
	w.servicePID = w.pid(w.A, "peer", "serve")
	at, to := w.A, w.B
	for i := range 12 {
		before := w.snapshot(at)
		r := w.start(at, "dump", "--netns", "svc", "-e", w.image(at))
		time.Sleep(time.Duration(i) * 15 * time.Millisecond) // the time itself is what is tested
		r.signal(signal)
		result := r.ended()
		w.removeLogs(at, result)
		if !w.isThere(w.image(at)) {
			w.interrupted(result)
			w.same(at, before)
		} else {
			w.gone(at)
			w.carry(at, to)
			before := w.snapshot(to)
			r := w.start(to, "restore", "-i", w.image(to))
			time.Sleep(time.Duration(i) * 15 * time.Millisecond)
			r.signal(signal)
			if result := r.ended(); result.Code != exitOK && !strings.Contains(result.Output(), "the service is live") {
				w.interrupted(result)
				w.removeLogs(to, result)
				w.same(to, before)
				w.restore(to)
			}
			w.check(os.Remove(w.image(to)))
			at, to = to, at
		}
		c.progress()
		w.unharmed()
	}
	w.stopAll(c)
}

// interrupted demands the outcome of a signal. One that came before the program was ready to handle it has
// killed it, when nothing had begun.
func (w *world) interrupted(r lab.Result) {
	w.Helper()
	if r.Code == 128+int(syscall.SIGKILL) {
		return
	}
	if r.Code == 128+int(syscall.SIGINT) || r.Code == 128+int(syscall.SIGTERM) && r.Output() == "" {
		return
	}
	w.says(r, exitInterrupted)
}

// A disk that fills up costs the image, not the service.
func TestDiskFull(t *testing.T) {
	for _, size := range []string{"16k", "200k"} {
		for _, to := range [][]string{{"--compress", "none", "--export"}, {"--images-dir"}} {
			t.Run(size+" "+strings.Join(to, " "), func(t *testing.T) {
				w := newWorld(t)
				w.serve()
				c := w.echo("4", 5)
				small := filepath.Join(w.A.Dir, "small")
				w.sh(w.A, "mkdir %[1]s; mount -t tmpfs -o size=%[2]s small %[1]s", small, size)
				before := w.snapshot(w.A)
				w.fails(w.A, exitDumpFailed, []string{"no space left", "running as before"},
					append(append([]string{"dump", "--netns", "svc"}, to...), filepath.Join(small, "image"))...)
				w.same(w.A, before)
				c.progress()
				w.unharmed()
				w.stopAll(c)
				w.sh(w.A, "umount %[1]s; rmdir %[1]s", small)
			})
		}
	}
}

// Nobody reads the image that goes to standard output.
func TestBrokenPipe(t *testing.T) {
	w := newWorld(t)
	w.serve()
	c := w.echo("4", 5)
	before := w.snapshot(w.A)
	r, err := w.A.Run(w.ctx, "bash", "-c", "set -o pipefail; "+w.nsmigrateBin()+" dump --netns svc -c none -e - | head -c 1000 >/dev/null")
	w.check(err)
	w.says(r, exitDumpFailed, "running as before")
	w.removeLogs(w.A, r)
	w.same(w.A, before)
	c.progress()
	w.unharmed()
	w.stopAll(c)
}

// The image may go through a pipe straight to the other host.
func TestPipe(t *testing.T) {
	w := newWorld(t)
	w.serve()
	c := w.echo("4", 5)
	w.check(w.pipe(w.ctx, []string{"dump", "--netns", "svc", "-e", "-"}, []string{"restore", "-i", "-"}))
	w.same(w.A, w.empty[w.A])
	c.progress()
	w.unharmed()
	w.stopAll(c)
}

// A time limit is kept, and the service resumed.
func TestTimeout(t *testing.T) {
	w := newWorld(t)
	w.serve()
	c := w.echo("4", 5)
	before := w.snapshot(w.A)
	w.fails(w.A, exitDumpFailed, []string{"running as before"}, "dump", "--netns", "svc", "--timeout", "20ms", "-e", w.image(w.A))
	w.same(w.A, before)
	c.progress()
	w.unharmed()
	w.stopAll(c)
}

// pipe runs the program on both hosts, A's output being B's input.
func (w *world) pipe(ctx context.Context, dump, restore []string) error {
	fifo := filepath.Join(w.Dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		return err
	}
	defer os.Remove(fifo)
	sender := w.shell(ctx, w.A, w.nsmigrateBin(), dump, ">"+fifo)
	receiver := w.shell(ctx, w.B, w.nsmigrateBin(), restore, "<"+fifo)
	return errors.Join(<-sender, <-receiver)
}

func (w *world) shell(ctx context.Context, h *lab.Host, program string, args []string, redirect string) <-chan error {
	done := make(chan error, 1)
	go func() {
		r, err := h.Run(ctx, append([]string{"sh", "-c", `"$@" ` + redirect, "sh", program}, args...)...)
		if err == nil && r.Code != 0 {
			err = errors.New(r.String())
		}
		done <- err
	}()
	return done
}
