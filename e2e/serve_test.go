package e2e

import (
	"bufio"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nsmigrate/nsmigrate/e2e/lab"
)

// server is `nsmigrate serve` on a host.
type server struct {
	w       *world
	host    *lab.Host
	log     string // path
	process *lab.Process
}

// server starts the daemon, and returns when it listens. It belongs to the host from then on.
func (w *world) server(h *lab.Host, program string, env []string, args ...string) *server {
	w.Helper()
	log, err := os.CreateTemp(w.Dir, "serve-*.log")
	w.check(err)
	defer log.Close()
	cmd := exec.Command(program, append([]string{"serve"}, args...)...)
	cmd.Env = append(lab.Environ(), env...)
	cmd.Stdout, cmd.Stderr = log, log
	s := &server{w: w, host: h, log: log.Name()}
	s.process, err = h.Start(cmd)
	w.check(err)
	w.Cleanup(func() {
		if w.Failed() {
			text, _ := os.ReadFile(s.log)
			w.Logf("%s's daemon said:\n%s", h.Name, text)
		}
	})
	s.says("msg=listening")
	return s
}

// resident has the daemon count as a part of its host.
func (s *server) resident() {
	s.w.Helper()
	for line := range s.w.snapshot(s.host) {
		if strings.Contains(line, s.w.Dir) && strings.HasPrefix(line, "process ") && strings.Contains(line, " serve ") {
			s.w.empty[s.host][line] = struct{}{}
		}
	}
}

// says waits until the daemon's log has a word.
func (s *server) says(word string) {
	s.w.Helper()
	s.w.check(lab.Eventually(s.w.limit(), func() error {
		text, err := os.ReadFile(s.log)
		if err == nil && !strings.Contains(string(text), word) {
			err = fmt.Errorf("%s's daemon doesn't say %q, but:\n%s", s.host.Name, word, text)
		}
		return err
	}))
}

// terminate asks the daemon to end, and waits until it has begun to.
func (s *server) terminate() {
	s.w.Helper()
	s.w.check(s.process.Signal(syscall.SIGTERM))
	s.says("stopping")
}

// ended waits for the daemon's end, which must be in order.
func (s *server) ended() {
	s.w.Helper()
	s.w.check(s.process.Wait(s.w.limit()))
}

// held is a migration that waits at a step.
type held struct {
	w       *world
	stop    string // exists while it waits
	process *lab.Process
	said    *strings.Builder
}

// hold starts a migration of the service from host A, and returns when it waits: at a step of the source, or if that is
// "" where the destination was told to wait with [world.stopFile].
func (w *world) hold(step string, args ...string) *held {
	w.Helper()
	h := &held{w: w, stop: w.stopFile()}
	cmd := exec.Command(w.faultyBin(), append([]string{"migrate", "--netns", w.svc.Name}, args...)...)
	cmd.Env = lab.Environ()
	if step != "" {
		cmd.Env = append(cmd.Env, "NSMIGRATE_FAULT="+step+"=wait:"+h.stop)
	}
	h.process, h.said = w.run(w.A, cmd)
	h.waits()
	return h
}

// stopFile is what exists while a migration waits.
func (w *world) stopFile() string { return filepath.Join(w.Dir, "stop") }

// waits returns when the migration waits at its step, on either host.
func (h *held) waits() {
	h.w.Helper()
	h.w.check(lab.Eventually(h.w.limit(), func() error {
		select {
		case <-h.process.Done():
			h.w.Fatalf("it ended before: %s", h.said)
		default:
		}
		_, err := os.Stat(h.stop)
		return err
	}))
}

// release lets it go on.
func (h *held) release() {
	h.w.Helper()
	h.w.check(os.Remove(h.stop))
}

// ends waits for its end, with a code and words.
func (h *held) ends(code int, words ...string) {
	h.w.Helper()
	ctx := h.w.limit()
	if h.process.Wait(ctx); ctx.Err() != nil {
		h.w.Fatalf("%v: migrate doesn't end: %s", ctx.Err(), h.said)
	}
	r := lab.Result{Args: h.process.Cmd.Args, Code: h.process.Cmd.ProcessState.ExitCode(), Stderr: h.said.String()}
	h.w.Log(r)
	h.w.says(r, code, words...)
}

// allowed are flags of a daemon that lets the two hosts in.
var allowed = []string{"--allow", "host-a.lab", "--allow", "host-b.lab"}

// Over TLS a service with live connections goes there and back. Who has a certificate that is not in order is sent away,
// or goes away, with the reason, and nothing is changed on either host.
func TestMigrateByTLS(t *testing.T) {
	w := newWorld(t)
	ca, stranger := w.authority("lab"), w.authority("stranger")
	good := map[*lab.Host][]string{w.A: ca.issue("host-a.lab", w.A.IPv4), w.B: ca.issue("host-b.lab", w.B.IPv4)}
	noneRevoked := ca.revoke("none.crl", false)
	revoked := ca.issue("host-a.lab", w.A.IPv4)
	oneRevoked := ca.revoke("one.crl", true)
	const port = ":8747"
	for _, h := range w.Hosts() {
		args := slices.Concat([]string{"--listen", h.IPv4 + port, "--tls-crl", oneRevoked}, good[h], allowed)
		w.server(h, w.nsmigrateBin(), nil, args...).resident()
	}
	// The same program on host B with certificates of its own that nobody should trust.
	impostors := []struct {
		port  string
		flags []string
	}{
		{":8001", append(stranger.issue("host-b.lab", w.B.IPv4)[2:], "--tls-ca", ca.path("ca"))},
		{":8002", ca.issue("host-b.lab", "10.77.0.99")},
		{":8003", ca.issue("host-b.lab", w.B.IPv4, func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		})},
		{":8004", ca.issue("host-b.lab", w.B.IPv4)},
	}
	impostorRevoked := ca.revoke("impostor.crl", true)
	for _, i := range impostors {
		w.server(w.B, w.nsmigrateBin(), nil, slices.Concat([]string{"--listen", w.B.IPv4 + i.port}, i.flags, allowed)...).resident()
	}
	w.serve()
	c := w.echo("4", 3)

	before := map[*lab.Host]lab.Snapshot{w.A: w.snapshot(w.A), w.B: w.snapshot(w.B)}
	expired := ca.issue("host-a.lab", w.A.IPv4, func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	})
	for _, x := range []struct {
		name, port string
		flags      []string
		code       int
		words      []string
	}{
		{"a client of another CA", port, append(stranger.issue("host-a.lab", w.A.IPv4)[2:], "--tls-ca", ca.path("ca")), exitError, []string{"is not from a CA that the other side trusts", "hint:"}},
		{"a client whose certificate has expired", port, expired, exitError, []string{"this side's certificate (host-a.lab, " + w.A.IPv4 + ") expired on", "hint: renew"}},
		{"a client whose certificate is revoked", port, revoked, exitRefused, []string{"host-a.lab", "was revoked on", "hint:"}},
		{"a client that is not on the list", port, ca.issue("host-c.lab", "10.77.0.3"), exitRefused, []string{"nobody called host-c.lab", "--allow"}},
		{"a client with a server's certificate", port, ca.issue("host-a.lab", w.A.IPv4, func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}), exitError, []string{"is not accepted by the other side", "hint: it must allow the authentication of clients"}},
		{"a server of another CA", ":8001", good[w.A], exitError, []string{"the other side's certificate (host-b.lab", "is not from a CA that is trusted here", "stranger"}},
		{"a server of another name", ":8002", good[w.A], exitError, []string{"is not for \"" + w.B.IPv4 + "\""}},
		{"a server with a client's certificate", ":8003", good[w.A], exitError, []string{"is not meant for this"}},
		{"a server whose certificate is revoked", ":8004", append([]string{"--tls-crl", impostorRevoked}, good[w.A]...), exitError, []string{"the other side's certificate (host-b.lab", "was revoked on"}},
		{"nobody there", ":8999", good[w.A], exitError, []string{"connection refused", "hint: see whether `nsmigrate serve` runs there"}},
	} {
		t.Log(x.name)
		args := append([]string{"migrate", "--netns", "svc", "--to", "tls://" + w.B.IPv4 + x.port}, x.flags...)
		w.fails(w.A, x.code, x.words, args...)
	}
	for h, was := range before {
		w.same(h, was)
	}
	w.fails(w.B, exitError, []string{"expired on"},
		slices.Concat([]string{"serve", "--listen", w.B.IPv4 + ":8005"}, expired, allowed)...)
	c.progress()
	w.unharmed()

	from, to := w.A, w.B
	for range 2 {
		args := append([]string{"migrate", "--netns", "svc", "--to", "tls://" + to.IPv4 + port, "--tls-crl", noneRevoked}, good[from]...)
		w.says(w.ok(from, append(args, "--dry-run")...), exitOK, "can be migrated")
		w.Log(w.ok(from, args...))
		w.same(from, w.empty[from])
		w.noneUnfinished()
		c.progress()
		w.unharmed()
		w.ordinary(from)
		w.ordinary(to)
		from, to = to, from
	}
	w.stopAll(c)
}

// A daemon takes in as many services at a time as it may. When it is told to end, what is arriving may finish; it is
// given up if that takes too long, but never when it was decided that it lives here.
func TestServeLimitAndEnd(t *testing.T) {
	w := newWorld(t)
	socket := filepath.Join(w.Dir, "serve.socket")
	start := func(program string, env []string, args ...string) *server {
		return w.server(w.B, program, env, append([]string{"--listen", "unix:" + socket}, args...)...)
	}
	w.serve()
	c := w.echo("4", 3)
	w.sh(w.A, "ip netns add other")
	w.daemon(w.A, "ip netns exec other sleep 1000")
	w.pid(w.A, "sleep", "1000")
	before := w.snapshot(w.A)
	to := []string{"--to", "unix:" + socket}
	const precopy = "source/running/built/precopy"

	s := start(w.nsmigrateBin(), nil, "--max-migrations", "1", "--grace", "1ms")
	h := w.hold(precopy, to...)
	w.fails(w.A, exitRefused, []string{"on the destination: daemon `nsmigrate serve`: 1 migration is running, which is the limit", "hint: try again later"},
		append([]string{"migrate", "--netns", "other"}, to...)...)
	s.terminate()
	s.ended()
	h.release()
	h.ends(exitDumpFailed, "the destination gave up", "the server is stopping and its patience is over", "running on this host as before")
	w.same(w.A, before)
	w.same(w.B, w.empty[w.B])
	w.noneUnfinished()
	c.progress()
	w.unharmed()

	s = start(w.nsmigrateBin(), nil)
	h = w.hold(precopy, to...)
	s.terminate()
	r := w.nsmigrate(w.A, append([]string{"migrate", "--netns", "other"}, to...)...)
	w.says(r, exitError, "connect to unix:"+socket)
	h.release()
	h.ends(exitOK)
	s.ended()
	w.livesOnB(c)

	// Back, the same way as any other.
	w.migrate(links{w.A: w.linkTo(w.A)}, w.B, w.A)
	s = start(w.faultyBin(), []string{"NSMIGRATE_FAULT=destination/prepared/released/go-live=wait:" + w.stopFile()}, "--grace", "1ms")
	h = w.hold("", to...)
	s.terminate()
	h.release()
	h.ends(exitOK)
	s.ended()
	w.livesOnB(c)
	w.stopAll(c)
}

// livesOnB demands that the service does, and that its connections went with it.
func (w *world) livesOnB(c *client) {
	w.Helper()
	for _, h := range w.Hosts() {
		lives := slices.Contains(strings.Fields(w.output(h, "sh", "-c", "ls /run/netns 2>/dev/null || true")), w.svc.Name)
		if lives != (h == w.B) {
			w.Errorf("the service is on %s: %v", h.Name, lives)
		}
	}
	w.noneUnfinished()
	c.progress()
	w.unharmed()
}

// The command that is to be run when the service is live is, over there, also if the daemon dies right before. One that
// fails is told, and costs nothing.
func TestOnLive(t *testing.T) {
	w := newWorld(t)
	w.serve()
	c := w.echo("4", 3)
	heard, socket := filepath.Join(w.Dir, "heard"), filepath.Join(w.Dir, "serve.socket")
	command := `echo "$(hostname) $NSMIGRATE_NETNS $(ip netns identify $NSMIGRATE_PID) $NSMIGRATE_ID" >>` + heard
	from, to := w.A, w.B
	for _, x := range []struct {
		fault, command string
		trouble        bool
		ends           func(s *server, id string)
	}{
		{"", command, false, func(s *server, _ string) {
			s.terminate()
			s.ended()
		}},
		{"", command + "; echo the router is away; exit 7", true, func(s *server, id string) {
			s.says("the router is away")
			s.says("nsmigrate recover " + id)
			w.says(w.ok(to, "recover", "--list"), exitOK, id, "live")
			w.ok(to, "recover", id)
			s.terminate()
			s.ended()
		}},
		{"destination/prepared/released/settle=kill", command, false, func(s *server, _ string) {
			if err := s.process.Wait(w.limit()); err == nil || !strings.Contains(err.Error(), "killed") {
				t.Errorf("the daemon should be dead: %v", err)
			}
		}},
	} {
		s := w.server(to, w.faultyBin(), []string{"NSMIGRATE_FAULT=" + x.fault}, "--listen", "unix:"+socket, "--on-live", x.command)
		var done struct {
			ID      string
			Trouble string `json:"peer_trouble"`
		}
		w.check(from.JSON(w.ctx, &done, w.nsmigrateBin(), "migrate", "--netns", "svc", "--to", "unix:"+socket, "--format", "json"))
		if trouble := strings.Contains(done.Trouble, "the router is away") && strings.Contains(done.Trouble, "nsmigrate recover "+done.ID); trouble != x.trouble {
			t.Errorf("the source is told of trouble: %q", done.Trouble)
		}
		x.ends(s, done.ID)
		w.same(from, w.empty[from])
		w.noneUnfinished()
		if got, want := w.read(to, heard), fmt.Sprintf("%s svc svc %s\n", to.Name, done.ID); got != want {
			t.Errorf("the command said %q, want %q", got, want)
		}
		w.check(os.Remove(heard))
		c.progress()
		w.unharmed()
		from, to = to, from
	}
	w.stopAll(c)
}

// A program that runs migrations reads how they go on, to the end. No more is sent a second than may be.
func TestMigrateProgressAndBandwidth(t *testing.T) {
	type event struct {
		Event, Status, Phase string
		Time                 time.Time
		Done, Total          int64
	}
	w := newWorld(t)
	w.serve()
	c := w.echo("4", 3)
	follow := func(args ...string) (all []event, done lab.Result) {
		read, write, err := os.Pipe()
		w.check(err)
		defer read.Close()
		cmd := exec.Command(w.nsmigrateBin(), append([]string{"migrate", "--netns", "svc", "--progress-fd", "3"}, args...)...)
		cmd.ExtraFiles = []*os.File{write}
		events := make(chan []event, 1)
		go func() {
			var list []event
			for lines := bufio.NewScanner(read); lines.Scan(); {
				var e event
				if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
					t.Errorf("%q: %v", lines.Text(), err)
				}
				list = append(list, e)
			}
			events <- list
		}()
		done, err = w.A.RunCmd(w.ctx, cmd)
		w.check(err)
		w.check(write.Close())
		return <-events, done
	}
	statuses := func(all []event) (s []string) {
		for i, e := range all {
			if e.Event == "status" {
				s = append(s, e.Status)
			} else if e.Event != "progress" || e.Done < 0 || e.Total != 0 && e.Done > e.Total {
				t.Errorf("event %d: %+v", i, e)
			}
			if i > 0 && e.Time.Before(all[i-1].Time) {
				t.Errorf("event %d is older than the one before", i)
			}
		}
		return slices.Compact(s)
	}

	all, r := follow("--to", "unix:"+filepath.Join(w.Dir, "nobody"))
	if got := statuses(all); r.Code != exitError || !slices.Equal(got, []string{"setup", "failed"}) {
		t.Errorf("%v of %v", got, r)
	}
	const bandwidth = 1_000_000
	all, r = follow("--to", w.linkTo(w.B).address(), "--bandwidth", fmt.Sprint(bandwidth), "--compress", "none", "--format", "json")
	if got, want := statuses(all), []string{"setup", "active", "pre-switchover", "device", "completed"}; r.Code != exitOK || !slices.Equal(got, want) {
		t.Fatalf("%v of %v", got, r)
	}
	var done struct {
		Total  time.Duration
		Stream struct {
			WireSent int64 `json:"wire_sent"`
		}
	}
	w.check(json.Unmarshal([]byte(r.Stdout), &done))
	least := time.Duration(float64(done.Stream.WireSent) / bandwidth * float64(time.Second))
	t.Logf("%d bytes sent in %v", done.Stream.WireSent, done.Total)
	if done.Stream.WireSent < bandwidth/2 || done.Total < least*3/4 {
		t.Errorf("%d bytes in %v are more than %d a second", done.Stream.WireSent, done.Total, bandwidth)
	}
	c.progress()
	w.unharmed()
	w.stopAll(c)
}
