package e2e

import (
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/nsmigrate/nsmigrate/e2e/lab"
)

// However little room the destination has for its journal: the service runs on as before and nothing is left of it over
// there, or it has moved.
func TestDestinationJournalFull(t *testing.T) {
	w := newWorld(t)
	w.serve()
	c := w.echo("4", 3)
	before := w.snapshot(w.A)
	l := w.linkTo(w.B)
	for kib, moved := 4, false; !moved; kib *= 2 {
		w.sh(w.B, "mount -t tmpfs -o size=%dk,mode=700 small %s", kib, lab.StateDir)
		r := w.nsmigrate(w.A, "migrate", "--netns", "svc", "--to", l.address())
		t.Logf("%d KiB: %v", kib, r)
		c.progress()
		w.unharmed()
		w.noneUnfinished()
		if moved = r.Code == exitOK; moved {
			w.same(w.A, w.empty[w.A])
			if kib == 4 {
				t.Errorf("%d KiB were enough", kib)
			}
		} else {
			w.says(r, exitDumpFailed, lab.StateDir, "no space left on device", "the service is running on this host as before")
			w.same(w.A, before)
			w.same(w.B, w.empty[w.B])
		}
		w.sh(w.B, "umount -l %s", lab.StateDir)
	}
	w.stopAll(c)
}

// Where the destination gathers the service's images, too little room is seen before anything is done; and when it fills
// up later, the service runs on as before.
func TestDestinationMemoryFull(t *testing.T) {
	w := newWorld(t)
	w.serve()
	c := w.echo("4", 3)
	before := w.snapshot(w.A)
	l := w.linkTo(w.B)
	const dir, fill = "/dev/shm", "/dev/shm/fill"
	for _, size := range []string{"64k", "64m"} {
		w.sh(w.B, "mount -t tmpfs -o size=%s small %s", size, dir)
		empty := w.snapshot(w.B)
		if size == "64k" {
			w.fails(w.A, exitRefused, []string{"on the destination: memory " + dir, "are free", "make room there"},
				"migrate", "--netns", "svc", "--to", l.address())
		} else {
			h := w.hold("source/offered/ready/send-build", "--to", l.address()) // then it takes what room there is
			w.fillUp(w.B, fill)
			h.release()
			h.ends(exitDumpFailed, dir, "no space left on device", "the service is running on this host as before")
			w.sh(w.B, "rm %s", fill)
		}
		w.untouched(before, empty, c)
		w.sh(w.B, "umount -l %s", dir)
	}
	w.stopAll(c)
}

// A file that is shipped needs room over there: too little is seen before anything is done, and when the disk fills up later,
// the service runs on as before and nothing of the file stays.
func TestShipOntoFullDisk(t *testing.T) {
	w := newWorld(t)
	const dir, data, fill = "/tmp/app", "/tmp/app/data", "/tmp/app/fill"
	w.sh(w.A, "mkdir %s; head -c 4000000 /dev/urandom >%s", dir, data)
	w.Cleanup(func() { w.sh(w.A, "rm -r %s", dir) })
	w.serve()
	c := w.echo("4", 3)
	before := w.snapshot(w.A)
	l := w.linkTo(w.B)
	w.sh(w.B, "mkdir %s", dir)
	w.Cleanup(func() { w.sh(w.B, "rmdir %s", dir) })
	for _, size := range []string{"2m", "6m"} {
		w.sh(w.B, "mount -t tmpfs -o size=%s small %s", size, dir)
		empty := w.snapshot(w.B)
		if size == "2m" {
			w.fails(w.A, exitRefused, []string{"on the destination: ", dir, "MiB free, and the files to ship need 3.8 MiB"},
				"migrate", "--netns", "svc", "--to", l.address(), "--ship", data)
		} else {
			h := w.hold("source/running/built/precopy", "--to", l.address(), "--ship", data)
			w.fillUp(w.B, fill)
			h.release()
			h.ends(exitDumpFailed, data, "no space left on device", "the service is running on this host as before")
			w.sh(w.B, "rm %s", fill)
		}
		w.untouched(before, empty, c)
		w.sh(w.B, "umount %s", dir)
	}
	w.stopAll(c)
}

// untouched demands that a migration that was not to be has left both hosts as they were, and the service's clients in peace.
func (w *world) untouched(a, b lab.Snapshot, c *client) {
	w.Helper()
	w.noneUnfinished()
	w.same(w.A, a)
	w.same(w.B, b)
	c.progress()
	w.unharmed()
}

// fillUp leaves no room in a file system of a host.
func (w *world) fillUp(h *lab.Host, path string) {
	w.Helper()
	w.sh(h, "cat /dev/zero >%[1]s 2>/dev/null || test $(stat -c %%s %[1]s) -gt 100000", path)
}

// On the source, too, what is full ends a migration before the service is lost: where images are gathered, and where the
// journal is.
func TestSourceFull(t *testing.T) {
	for _, dir := range []string{"/dev/shm", lab.StateDir} {
		t.Run(dir, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.serve()
			c := w.echo("4", 3)
			l := w.linkTo(w.B)
			w.sh(w.A, "mount -t tmpfs -o size=64m,mode=700 small %s", dir)
			before := w.snapshot(w.A)
			h := w.hold("source/running/built/precopy", "--to", l.address())
			fill := dir + "/fill"
			w.fillUp(w.A, fill)
			h.release()
			h.ends(exitDumpFailed, "o space left on device", "the service is running on this host as before")
			w.sh(w.A, "rm %s", fill)
			w.untouched(before, w.empty[w.B], c)
			w.sh(w.A, "umount -l %s", dir)
			w.stopAll(c)
		})
	}
}

// A cable between the hosts that swaps, repeats, loses and alters frames costs a migration time, and nothing else.
func TestBadCable(t *testing.T) {
	w := newWorld(t)
	cable, err := w.LayCable(w.ctx)
	w.check(err)
	ends := func(change func(host lab.Snapshot, line string)) {
		for _, h := range w.Hosts() {
			for line := range w.snapshot(h) {
				if strings.Contains(line, lab.CableName) {
					change(w.empty[h], line)
				}
			}
		}
	}
	ends(func(host lab.Snapshot, line string) { host[line] = struct{}{} })
	w.Cleanup(func() {
		ends(func(host lab.Snapshot, line string) { delete(host, line) })
		w.check(cable.Close())
	})
	ca := w.authority("lab")
	files := map[*lab.Host][]string{w.A: ca.issue("host-a.lab", cable.IPv4[w.A]), w.B: ca.issue("host-b.lab", cable.IPv4[w.B])}
	for _, h := range w.Hosts() {
		w.server(h, w.nsmigrateBin(), nil, slices.Concat([]string{"--listen", cable.IPv4[h] + ":8747"}, files[h], allowed)...).resident()
	}
	w.serve()
	c := w.echo("4", 3)
	from, to := w.A, w.B
	for range 2 {
		w.Log(w.ok(from, append([]string{"migrate", "--netns", "svc", "--to", "tls://" + cable.IPv4[to], "--compress", "none"}, files[from]...)...))
		w.same(from, w.empty[from])
		w.noneUnfinished()
		c.progress()
		w.unharmed()
		from, to = to, from
	}
	happened := cable.Troubles()
	t.Log(happened)
	for _, what := range []string{"swapped", "repeated", "lost", "altered"} {
		if happened[what] == 0 {
			t.Errorf("no frame was %s", what)
		}
	}
	w.stopAll(c)
}

// The programs that a migration runs are killed: ssh, and criu on either side. The service goes on where it is decided.
func TestHelperKilled(t *testing.T) {
	const precopy, released, bye = "source/running/built/precopy", "source/frozen/prepared/send-released", "source/released/running/send-bye"
	ssh := func(w *world) { w.killSSH(w.A) }
	for _, x := range []struct {
		name, step string
		kill       func(w *world)
		moves      bool
	}{
		{"ssh", precopy, ssh, false},
		{"ssh", released, ssh, false},
		{"ssh", bye, ssh, true},
		{"criu of the source", released, func(w *world) { w.killCRIU(w.A) }, true},
		{"criu of the destination", precopy, func(w *world) { w.killCRIU(w.B) }, false},
	} {
		t.Run(x.name+" "+strings.ReplaceAll(x.step, "/", " "), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			options, err := w.B.SSHD(w.ctx)
			w.check(err)
			w.empty[w.B] = w.snapshot(w.B)
			w.serve()
			c := w.echo("4", 3)
			before := w.snapshot(w.A)
			args := []string{"--to", "ssh://root@" + w.B.IPv4, "--remote-path", w.nsmigrateBin()}
			for _, o := range options {
				args = append(args, "--ssh-option", o)
			}
			h := w.hold(x.step, args...)
			x.kill(w)
			h.release()
			if x.moves {
				h.ends(exitOK, "migrated svc")
				w.same(w.A, w.empty[w.A])
			} else {
				h.ends(exitDumpFailed, "the service is running on this host as before")
				w.removeLogs(w.A, lab.Result{Stderr: h.said.String()})
				w.same(w.A, before)
				w.same(w.B, w.empty[w.B])
			}
			w.noneUnfinished()
			c.progress()
			w.unharmed()
			w.stopAll(c)
		})
	}
}

// killSSH kills the ssh that runs on a host.
func (w *world) killSSH(h *lab.Host) {
	w.Helper()
	for _, p := range h.Processes() {
		if p.Name == "ssh" {
			w.check(h.Kill(p.PID, syscall.SIGKILL))
			return
		}
	}
	w.Fatalf("%s runs no ssh: %+v", h.Name, h.Processes())
}
