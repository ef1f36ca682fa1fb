package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nsmigrate/nsmigrate/e2e/lab"
)

// trouble is something that goes wrong in one migration.
type trouble struct {
	source, destination string // NSMIGRATE_FAULT of either side
	link                string // what happens to it at a step that waits: cut (and mended again), corrupt, reorder or stall; "" is nothing
	byHand              bool   // a person has to call `nsmigrate recover`
}

func (t trouble) String() string {
	var parts []string
	for _, p := range []string{t.source, t.destination} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	if t.link != "" {
		parts = append(parts, t.link)
	}
	if t.byHand {
		parts = append(parts, "recovered by hand")
	}
	return strings.Join(parts, " ")
}

// step is a step of the protocol, right before an action.
type step struct{ Role, State, Event, Action string }

func (s step) String() string { return strings.Join([]string{s.Role, s.State, s.Event, s.Action}, "/") }

// goesWell says that a migration without trouble goes through the step.
func (s step) goesWell() bool {
	return slices.Contains([]string{"begin", "ready", "built", "prepared", "running", "offer", "build", "entry", "prepare", "released", "bye"}, s.Event)
}

// steps asks the program for all of them.
func (w *world) steps() (all []step) {
	w.Helper()
	w.check(w.A.JSON(w.ctx, &all, w.faultyBin(), "nssteps"))
	return all
}

// troubles is the crash matrix: every step of the protocol, as the code itself lists them.
func troubles(steps []step) []trouble {
	var list []trouble
	var source, destination []string
	for _, s := range steps {
		switch {
		case !s.goesWell():
		case s.Role == "source":
			source = append(source, s.String())
		default:
			destination = append(destination, s.String())
		}
	}
	for _, s := range source {
		// There is no guard before it begins, and nothing but the journal to clean up. What goes on from "released" is
		// the same step for the guard, which dies of it too.
		// What fails behind a service that has moved is told, and for a person.
		list = append(list, trouble{source: s + "=kill", byHand: strings.HasSuffix(s, "/begin") || strings.HasPrefix(s, "source/released/running/")},
			trouble{source: s + "=error", byHand: strings.HasPrefix(s, "source/released/running/")})
		for _, l := range linkTroubles(s) {
			list = append(list, trouble{source: s + "=wait", link: l})
		}
	}
	for _, s := range destination {
		list = append(list, trouble{destination: s + "=kill", byHand: strings.HasSuffix(s, "/begin")},
			trouble{destination: s + "=error", byHand: strings.HasPrefix(s, "destination/live/") || strings.HasSuffix(s, "/settle")})
		for _, l := range linkTroubles(s) {
			list = append(list, trouble{destination: s + "=wait", link: l})
		}
	}
	// What puts things back dies too: the guard first, or the program while it does it itself.
	before := map[string]string{
		"source/running": "source/running/built/precopy", "source/frozen": "source/frozen/prepared/enter-released",
		"source/released": "source/released/running/enter-ended", "source/ended": "source/released/running/end",
		"destination/building": "destination/building/prepare/prepare", "destination/prepared": "destination/prepared/released/enter-live",
		"destination/live": "destination/prepared/released/go-live",
	}
	for _, s := range steps {
		first, ok := before[s.Role+"/"+s.State]
		fault := first + "=kill," + s.String() + "=kill"
		switch {
		case !ok:
			continue
		case s.Event == "orphaned":
		case s.Event == "failed" && (s.State == "running" || s.State == "building"):
			fault = first + "=error," + s.String() + "=kill"
		default:
			continue
		}
		t := trouble{source: fault, byHand: s.Event == "orphaned"}
		if s.Role == "destination" {
			t.source, t.destination = "", fault
		}
		list = append(list, t)
	}
	return list
}

// linkTroubles are what happens to the link at a step: it is cut at every one, and what is sent at a step that sends is
// altered. That it stalls takes long ([TestLinkStalls]).
func linkTroubles(step string) []string {
	if strings.Contains(step, "/send-") {
		return []string{"cut", "corrupt", "reorder"}
	}
	return []string{"cut"}
}

// stalls is every step once more, from which on nothing moves on the link for longer than the hosts bear.
func stalls(steps []step) (list []trouble) {
	for _, s := range steps {
		x := trouble{link: "stall"}
		switch {
		case !s.goesWell():
			continue
		case s.Role == "source":
			x.source = s.String() + "=wait"
		default:
			x.destination = s.String() + "=wait"
		}
		list = append(list, x)
	}
	return list
}

// Whatever crashes and whatever is lost, at every step: one copy lives, its connections go on, nothing stays behind, and
// never do two copies speak.
func TestCrashMatrix(t *testing.T) {
	const worlds = 4 // a failure spoils what comes after it in the same world
	for i := range worlds {
		t.Run(fmt.Sprintf("part %d", i+1), func(t *testing.T) {
			m := newMatrix(t)
			m.sufferAll(troubles(m.steps()), i, worlds)
		})
	}
}

// A link on which nothing moves for longer than the hosts bear is as good as cut, at every step; when it moves again, the
// hosts find out by themselves what became of the service.
func TestLinkStalls(t *testing.T) {
	const worlds = 8 // all but idle
	for i := range worlds {
		t.Run(fmt.Sprintf("part %d", i+1), func(t *testing.T) {
			t.Parallel()
			m := newMatrix(t)
			m.sufferAll(stalls(m.steps()), i, worlds)
		})
	}
}

// newMatrix starts the service and those who watch it.
func newMatrix(t *testing.T) *matrix {
	w := newWorld(t)
	w.books()
	w.serve(keepsBooks...)
	m := &matrix{world: w, links: w.links(), client: w.echo("4", 3), at: w.A, voices: map[*lab.Host]*lab.Voice{}}
	mac, err := net.ParseMAC(strings.TrimSpace(w.output(w.A, "ip", "netns", "exec", "svc", "cat", "/sys/class/net/eth0/address")))
	w.check(err)
	for _, h := range w.Hosts() {
		m.voices[h], err = h.Hear(mac)
		w.check(err)
		w.Cleanup(func() { m.voices[h].Close() })
	}
	m.Cleanup(func() {
		if m.Failed() {
			for _, h := range m.Hosts() {
				logs, _ := h.Output(m.ctx, "sh", "-c", "tail -n 20 "+lab.StateDir+"/*/guard.log 2>/dev/null")
				m.Logf("%s's guards: %s", h.Name, logs)
			}
		}
	})
	return m
}

// sufferAll suffers those troubles of a list that fall to one world of several.
func (m *matrix) sufferAll(list []trouble, world, worlds int) {
	m.Helper()
	only := os.Getenv("NSMIGRATE_E2E_TROUBLE") // a part of the troubles' names, to look at some alone
	list = slices.DeleteFunc(list, func(x trouble) bool { return !strings.Contains(x.String(), only) })
	for i := world; i < len(list); i += worlds {
		m.suffer(list[i])
		if m.Failed() {
			m.FailNow()
		}
	}
	m.stopAll(m.client)
}

// matrix is a service that is migrated again and again, with a trouble each time.
type matrix struct {
	*world
	links  links
	voices map[*lab.Host]*lab.Voice
	client *client
	at     *lab.Host
}

func (w *world) output(h *lab.Host, args ...string) string {
	w.Helper()
	out, err := h.Output(w.ctx, args...)
	w.check(err)
	return out
}

func (m *matrix) suffer(x trouble) {
	m.Helper()
	from, to := m.at, m.Other(m.at)
	for _, v := range m.voices {
		v.Heard()
	}
	l := m.links[to]
	l.mend() // the trouble before may have ended sooner than that
	m.Logf("%s", x)
	files := m.contents(to)
	stop := filepath.Join(m.Dir, "stop")
	l.use(m.faultyBin(), "NSMIGRATE_FAULT="+strings.ReplaceAll(x.destination, "=wait", "=wait:"+stop))
	before := l.count()
	cmd := exec.Command(m.faultyBin(), "migrate", "--netns", m.svc.Name, "--to", l.address())
	cmd.Env = append(lab.Environ(), "NSMIGRATE_FAULT="+strings.ReplaceAll(x.source, "=wait", "=wait:"+stop))
	p, said := m.run(from, cmd)
	if x.link != "" {
		m.strike(x, l, before, stop, p)
	}
	select {
	case <-p.Done():
	case <-time.After(time.Minute):
		m.Fatalf("%s: migrate doesn't end", x)
	}
	m.Log(said)
	begun := time.Now()
	if x.byHand {
		m.recoverByHand()
	}
	m.noneUnfinished()
	took := time.Since(begun)
	m.at = m.oneLives(x)
	m.same(m.Other(m.at), m.empty[m.Other(m.at)])
	m.client.progress()
	m.unharmed()
	m.oneVoice(x, from, to)
	m.filesFollow(x, from, to, files)
	m.Logf("  lives on the %s, settled after %v", map[bool]string{true: "source", false: "destination"}[m.at == from], took.Round(time.Millisecond))
}

// filesFollow demands that the service's files are where it lives, that the source has all of them until it was frozen,
// and that a destination where it doesn't live has its own files back.
func (m *matrix) filesFollow(x trouble, from, to *lab.Host, before string) {
	m.Helper()
	left := m.entries(from)
	if m.at == to {
		if n := m.entries(to); n <= left {
			m.Errorf("%s: the service's files tell of %d exchanges on the source, and of %d on the destination", x, left, n)
		}
		return
	}
	if after := m.contents(to); after != before {
		m.Errorf("%s: the files of the destination were\n%s\nand are\n%s", x, before, after)
	}
}

// run starts a program and returns what it will have said.
func (w *world) run(h *lab.Host, cmd *exec.Cmd) (*lab.Process, *strings.Builder) {
	w.Helper()
	out := new(strings.Builder)
	cmd.Stdout, cmd.Stderr = out, out
	p, err := h.Start(cmd)
	w.check(err)
	return p, out
}

// strike waits until the step is reached and harms the connection there, of which the link had a number before.
func (m *matrix) strike(x trouble, l *link, before int, stop string, p *lab.Process) {
	m.Helper()
	m.check(lab.Eventually(m.limit(), func() error {
		select {
		case <-p.Done():
			return nil // the step does not come in this migration
		default:
		}
		_, err := os.Stat(stop)
		return err
	}))
	switch x.link {
	case "cut":
		l.sever()
		defer l.mendSoon()
	case "corrupt":
		l.alter(x.source != "", func(b []byte) { b[len(b)/2] ^= 0x10 })
	case "stall":
		receive := l.receiver(before)
		l.stall()
		os.Remove(stop)
		select { // who asks later shall be heard, but not before the destination has noticed
		case <-receive.Done():
		case <-m.limit().Done():
			m.Fatalf("%s: the destination doesn't notice", x)
		}
		l.flow()
	case "reorder":
		l.alter(x.source != "", func(b []byte) { copy(b, append(slices.Clone(b[len(b)/2:]), b[:len(b)/2]...)) })
	}
	os.Remove(stop)
}

// recoverByHand is what a person does: on either host, until nothing is left.
func (m *matrix) recoverByHand() {
	m.Helper()
	m.check(lab.Eventually(m.limit(), func() error {
		for _, h := range m.Hosts() {
			if r := m.nsmigrate(h, "recover", "--timeout", "5s"); r.Code != exitOK {
				return fmt.Errorf("%s: %v", h.Name, r)
			}
		}
		return nil
	}))
}

// oneLives returns the host on which the service lives, and demands that it does on one.
func (m *matrix) oneLives(x trouble) *lab.Host {
	m.Helper()
	var on []*lab.Host
	for _, h := range m.Hosts() {
		if slices.Contains(strings.Fields(m.output(h, "sh", "-c", "ls /run/netns 2>/dev/null || true")), m.svc.Name) {
			on = append(on, h)
		}
	}
	if len(on) != 1 {
		m.Fatalf("%s: the service is on %d hosts", x, len(on))
	}
	return on[0]
}

// oneVoice demands that the copies never spoke at the same time: the source's, then perhaps the destination's.
func (m *matrix) oneVoice(x trouble, from, to *lab.Host) {
	m.Helper()
	source, destination := m.voices[from].Heard(), m.voices[to].Heard()
	if m.at == from && len(destination) > 0 {
		m.Errorf("%s: the service lives on the source, but the destination spoke %d times", x, len(destination))
	}
	if m.at == to {
		for _, at := range source {
			if len(destination) > 0 && at.After(destination[0]) {
				m.Errorf("%s: the source spoke %v after the destination did", x, at.Sub(destination[0]))
				return
			}
		}
	}
}
