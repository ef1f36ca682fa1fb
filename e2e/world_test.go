package e2e

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nsmigrate/nsmigrate/e2e/lab"
	"github.com/nsmigrate/nsmigrate/e2e/peer/control"
)

// world is a lab with the namespace "svc" on host A, and the words that tests are written in. A word that
// doesn't succeed ends the test.
type world struct {
	*testing.T
	*lab.Lab
	ctx context.Context
	svc lab.NetNS
	all []lab.NetNS // svc, and others that a test makes

	wire      *lab.Wire // the client's
	forgotten int       // segments seen there that are in order
	expected  func(lab.Closing) bool

	servicePID int // in its host, where a test needs it

	empty map[*lab.Host]lab.Snapshot // before there was a service
}

// testTimeout bounds a test; a move takes a second or two.
var testTimeout = 4*time.Minute + time.Duration(max(rounds, soak))*10*time.Second

// newWorld builds the world. When the test ends, wherever the service is then, it is removed as a user would
// do it, and both hosts must be as they were before there was one.
func newWorld(t *testing.T, o ...lab.Options) *world {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	t.Cleanup(cancel)
	l, err := lab.New(ctx, append(o, lab.Options{})[0])
	if err != nil {
		t.Fatal(err)
	}
	w := &world{T: t, Lab: l, ctx: ctx, svc: lab.Service(), all: []lab.NetNS{lab.Service()}, empty: map[*lab.Host]lab.Snapshot{}}
	t.Cleanup(func() { w.check(l.Close()) })
	w.programs()
	for _, h := range l.Hosts() {
		w.empty[h] = w.snapshot(h)
	}
	w.check(l.A.AddNetNS(ctx, w.svc))
	w.wire, err = l.Client.Watch("eth0")
	w.check(err)
	t.Cleanup(func() { w.wire.Close() })
	t.Cleanup(w.tearDown)
	return w
}

// programs gives the hosts, whose /tmp is their own, the programs under test.
func (w *world) programs() {
	for _, path := range []string{bin.nsmigrate, bin.faulty, bin.peer} {
		w.copyFile(path, filepath.Join(w.Dir, filepath.Base(path)))
	}
}

func (w *world) nsmigrateBin() string { return filepath.Join(w.Dir, filepath.Base(bin.nsmigrate)) }
func (w *world) faultyBin() string    { return filepath.Join(w.Dir, filepath.Base(bin.faulty)) }
func (w *world) peerBin() string      { return filepath.Join(w.Dir, filepath.Base(bin.peer)) }

func (w *world) tearDown() {
	for _, h := range w.Hosts() {
		h.Run(w.ctx, "sh", "-c", "for n in $(ls /run/netns); do ip netns pids $n | xargs -r kill -9; ip netns del $n; done")
		for _, image := range w.glob(h, "*") {
			w.check(os.RemoveAll(image))
		}
	}
	for _, h := range w.Hosts() {
		if !w.Failed() {
			w.same(h, w.empty[h])
		}
	}
}

func (w *world) glob(h *lab.Host, pattern string) []string {
	files, err := filepath.Glob(filepath.Join(h.Dir, pattern))
	w.check(err)
	return files
}

func (w *world) check(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// limit bounds a wait for something that takes a moment at most, even on a busy machine.
func (w *world) limit() context.Context {
	ctx, cancel := context.WithTimeout(w.ctx, time.Minute)
	w.Cleanup(cancel)
	return ctx
}

func (w *world) snapshot(h *lab.Host) lab.Snapshot {
	w.Helper()
	s, err := h.Snapshot(w.ctx)
	w.check(err)
	return s
}

// same demands that a host becomes and stays what it was.
func (w *world) same(h *lab.Host, want lab.Snapshot) {
	w.Helper()
	w.check(h.Same(w.limit(), want))
}

// sh runs lines of shell on a host.
func (w *world) sh(h *lab.Host, format string, args ...any) {
	w.Helper()
	w.check(h.Script(w.ctx, fmt.Sprintf(format, args...)))
}

// daemon runs a shell command on a host in the background, as an orphan in a session of its own. Redirections
// in the command override the default of /dev/null for its streams.
func (w *world) daemon(h *lab.Host, format string, args ...any) {
	w.Helper()
	cmd := fmt.Sprintf(format, args...)
	r, err := h.Run(w.ctx, "setsid", "--fork", "sh", "-c", "exec </dev/null >/dev/null 2>&1; exec "+cmd)
	w.check(err)
	if r.Code != 0 {
		w.Fatal(r)
	}
}

// inSvc is how most services are started.
const inSvc = "ip netns exec svc "

// serve starts the peer's service in the namespace on host A, and returns when it listens.
func (w *world) serve(args ...string) {
	w.Helper()
	w.daemon(w.A, inSvc+"%s serve --quiet %s", w.peerBin(), strings.Join(args, " "))
	port := "7000"
	if i := slices.Index(args, "--listen"); i >= 0 {
		port = strings.TrimPrefix(args[i+1], ":")
	}
	w.listening(port)
}

// listening waits until the port is open on host A, so that no attempt to connect is answered with a RST.
func (w *world) listening(port string) {
	w.Helper()
	w.listeningIn(w.svc.Name, port)
}

// listeningIn is listening for a namespace.
func (w *world) listeningIn(netns, port string) {
	w.Helper()
	w.check(lab.Eventually(w.limit(), func() error {
		out, err := w.A.Output(w.ctx, "ip", "netns", "exec", netns, "ss", "-tlnH", "sport", "=", ":"+port)
		if err == nil && out == "" {
			err = fmt.Errorf("nobody listens on port %s", port)
		}
		return err
	}))
}

// pid waits for the process of a program whose arguments contain a word, and returns its id in the host.
func (w *world) pid(h *lab.Host, program, word string) int {
	w.Helper()
	var pid int
	w.check(lab.Eventually(w.limit(), func() error {
		for _, p := range h.Processes() {
			if p.Name == program && strings.Contains(p.Command, word) {
				pid = p.PID
				return nil
			}
		}
		return fmt.Errorf("%s: no %q %q runs", h.Name, program, word)
	}))
	return pid
}

// client is a load on the client host.
type client struct {
	w *world
	*control.Client
}

// load starts connections from the client host, and returns when all of them have been answered.
func (w *world) load(args ...string) *client {
	w.Helper()
	cmd := exec.CommandContext(w.ctx, w.peerBin(), append([]string{"load"}, args...)...)
	cmd.Stderr = os.Stderr
	c, err := control.Attach(cmd)
	w.check(err)
	_, err = w.Client.Start(cmd)
	w.check(err)
	report, err := c.Ready(w.limit())
	w.check(err)
	w.check(report.Err())
	return &client{w: w, Client: c}
}

// echo is a load of numbered requests and answers over connections of a family, "4" or "6".
func (w *world) echo(family string, conns int, args ...string) *client {
	w.Helper()
	period := time.Duration(max(5, conns/2)) * time.Millisecond // about 2,000 exchanges a second at most
	return w.load(append([]string{"--connect", w.svc.Addr(family, 7000), "--conns", fmt.Sprint(conns), "--period", period.String()}, args...)...)
}

func (c *client) order(order string) control.Report {
	c.w.Helper()
	ctx, cancel := context.WithTimeout(c.w.ctx, time.Minute)
	defer cancel()
	r, err := c.Order(ctx, order)
	if err != nil {
		c.w.Fatalf("%v; segments that end connections: %v", err, c.w.closings())
	}
	return r
}

// progress demands that every connection carries new data, and that all of it was right so far.
func (c *client) progress() {
	c.w.Helper()
	c.w.check(c.order(control.Progress).Err())
}

// stop ends the connections in order and demands that the totals agree.
func (c *client) stop() control.Report {
	c.w.Helper()
	r := c.order(control.Stop)
	c.w.check(r.Err())
	return r
}

// died demands that the connections were ended by the service's side, and the load with them.
func (c *client) died() {
	c.w.Helper()
	r := c.order(control.Progress)
	if r.Alive != 0 || r.Mismatches > 0 {
		c.w.Fatalf("connections should be closed: %+v", r)
	}
}

// unharmed demands that no segment on the client's wire has ended a connection of the service.
func (w *world) unharmed() {
	w.Helper()
	if bad := w.closings(); len(bad) > 0 {
		w.Fatalf("segments that end connections: %v", bad)
	}
}

// closings are the segments that have ended connections of the service unexpectedly.
func (w *world) closings() []lab.Closing {
	w.Helper()
	all, err := w.wire.Closings()
	w.check(err)
	return slices.DeleteFunc(all[w.forgotten:], func(c lab.Closing) bool {
		return !w.isService(c.Src.Addr()) && !w.isService(c.Dst.Addr()) || w.expected != nil && w.expected(c)
	})
}

// forgetClosings begins anew: what was seen so far is in order.
func (w *world) forgetClosings() {
	w.Helper()
	all, err := w.wire.Closings()
	w.check(err)
	w.forgotten = len(all)
}

func (w *world) isService(a netip.Addr) bool {
	return slices.ContainsFunc(w.all, func(n lab.NetNS) bool { return a.String() == n.IPv4 || a.String() == n.IPv6 })
}

// ask asks the peer's service at an address for an exchange over all links inside its tree.
func (w *world) ask(addr string) control.Inner {
	w.Helper()
	var inner control.Inner
	w.check(w.Client.JSON(w.limit(), &inner, w.peerBin(), "ask", "--connect", addr))
	if len(inner.Errors) > 0 {
		w.Fatalf("links inside the tree: %v", inner.Errors)
	}
	return inner
}

// knows asks the peer's service what it knows of a connection.
func (w *world) knows(id int) control.Knowledge {
	w.Helper()
	var k control.Knowledge
	w.check(w.Client.JSON(w.limit(), &k, w.peerBin(), "ask", "--connect", w.svc.Addr("4", 7000), "--id", fmt.Sprint(id)))
	if !k.Known || k.Problem != "" {
		w.Fatalf("connection %d: %+v", id, k)
	}
	return k
}

// nsmigrate runs the program on a host, with any outcome.
func (w *world) nsmigrate(h *lab.Host, args ...string) lab.Result {
	w.Helper()
	r, err := h.Run(w.ctx, append([]string{w.nsmigrateBin()}, args...)...)
	w.check(err)
	return r
}

// ok runs the program, which has to succeed.
func (w *world) ok(h *lab.Host, args ...string) lab.Result {
	w.Helper()
	r := w.nsmigrate(h, args...)
	if r.Code != exitOK {
		w.Fatalf("on %s: %v", h.Name, r)
	}
	return r
}

// Exit codes are part of the program's interface.
const (
	exitOK            = 0
	exitError         = 1
	exitUsage         = 2
	exitRefused       = 3
	exitDumpFailed    = 4
	exitRestoreFailed = 6
	exitDamaged       = 8
	exitInterrupted   = 130
)

// fails runs the program, which has to end with a code, and say all the words.
func (w *world) fails(h *lab.Host, code int, words []string, args ...string) {
	w.Helper()
	r := w.nsmigrate(h, args...)
	w.Log(r)
	w.says(r, code, words...)
	w.removeLogs(h, r)
}

var keptLogs = regexp.MustCompile(`criu's log is in (\S+)`)

// removeLogs removes what a failure leaves on purpose and names: CRIU's logs.
func (w *world) removeLogs(h *lab.Host, r lab.Result) {
	w.Helper()
	for _, kept := range keptLogs.FindAllStringSubmatch(r.Output(), -1) {
		w.sh(h, "ls %[1]s/* >/dev/null && rm -r %[1]s", kept[1])
	}
}

func (w *world) says(r lab.Result, code int, words ...string) {
	w.Helper()
	if r.Code != code {
		w.Errorf("exit code %d, want %d: %v", r.Code, code, r)
	}
	for _, word := range words {
		if !strings.Contains(r.Output(), word) {
			w.Errorf("it does not say %q: %v", word, r)
		}
	}
}

func (w *world) image(h *lab.Host) string { return filepath.Join(h.Dir, "svc.nsm") }

// dump takes the service from a host, of which nothing may stay but the image.
func (w *world) dump(from *lab.Host, args ...string) {
	w.Helper()
	w.ok(from, append([]string{"dump", "--netns", w.svc.Name, "-e", w.image(from)}, args...)...)
	w.gone(from)
}

// gone demands that a host is empty but for the image.
func (w *world) gone(h *lab.Host) {
	w.Helper()
	want := lab.Snapshot{"file " + w.image(h): {}}
	for line := range w.empty[h] {
		want[line] = struct{}{}
	}
	w.same(h, want)
}

// carry copies the image to the other host.
func (w *world) carry(from, to *lab.Host) {
	w.Helper()
	w.copyFile(w.image(from), w.image(to))
	w.check(os.Remove(w.image(from)))
}

func (w *world) restore(to *lab.Host) {
	w.Helper()
	w.ok(to, "restore", "-i", w.image(to))
}

// move takes the service from one host to the other.
func (w *world) move(from, to *lab.Host) {
	w.Helper()
	w.dump(from)
	w.carry(from, to)
	w.restore(to)
	w.check(os.Remove(w.image(to)))
}

// moves takes the service back and forth, and demands after each move that the loads go on unharmed.
func (w *world) moves(n int, loads ...*client) {
	w.Helper()
	from, to := w.A, w.B
	for round := range n {
		w.move(from, to)
		for _, c := range loads {
			c.progress()
		}
		w.unharmed()
		if w.Failed() {
			w.Fatalf("in round %d", round+1)
		}
		from, to = to, from
	}
}

func (w *world) stopAll(loads ...*client) {
	w.Helper()
	for _, c := range loads {
		r := c.stop()
		w.Logf("%d connections, %d exchanges, %d bytes checked, longest gap %.0f ms",
			r.Connections, r.Exchanges, r.Received, r.LongestGap)
	}
}

func (w *world) copyFile(from, to string) {
	w.Helper()
	in, err := os.Open(from)
	w.check(err)
	defer in.Close()
	info, err := in.Stat()
	w.check(err)
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, info.Mode())
	w.check(err)
	_, err = io.Copy(out, in)
	w.check(err)
	w.check(out.Close())
}

// start runs the program in the background.
func (w *world) start(h *lab.Host, args ...string) *running {
	w.Helper()
	r := &running{w: w, host: h}
	cmd := exec.CommandContext(w.ctx, w.nsmigrateBin(), args...)
	cmd.Stdout, cmd.Stderr = &r.out, &r.out
	var err error
	r.process, err = h.Start(cmd)
	w.check(err)
	return r
}

// running is the program while it runs.
type running struct {
	w       *world
	host    *lab.Host
	process *lab.Process
	out     strings.Builder
}

func (r *running) signal(sig syscall.Signal) { r.w.check(r.process.Signal(sig)) }

// ended waits for the end.
func (r *running) ended() lab.Result {
	r.w.Helper()
	ctx, cancel := context.WithTimeout(r.w.ctx, time.Minute)
	defer cancel()
	if r.process.Wait(ctx); ctx.Err() != nil {
		r.w.Fatalf("on %s the program does not end; there run:\n%+v", r.host.Name, r.host.Processes())
	}
	state := r.process.Cmd.ProcessState.Sys().(syscall.WaitStatus)
	code := state.ExitStatus()
	if state.Signaled() {
		code = 128 + int(state.Signal())
	}
	result := lab.Result{Args: r.process.Cmd.Args, Code: code, Stderr: r.out.String()}
	r.w.Log(result)
	return result
}
