package e2e

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/e2e/lab"
)

// Socket options of a connection and of a listener are what they were: as the service itself reads them, and
// as ss(8) shows them.
func TestSocketOptions(t *testing.T) {
	w := newWorld(t)
	var args []string
	for _, option := range []string{
		"user_timeout=45000", "congestion=" + otherCongestionControl(t), "keepalive=1", "keepidle=11", "keepintvl=7",
		"keepcnt=5", "nodelay=0", "notsent_lowat=16384", "linger2=33", "priority=5", "mark=66", "tos=16", "thin_lto=1",
	} {
		args = append(args, "--sockopt", option)
	}
	w.serve(append(args, "--reuseport")...)
	// Idle connections: their only timer is the keepalive's.
	idle := func(family, id string) *client {
		return w.load("--connect", w.svc.Addr(family, 7000), "--period", "0", "--conns", "2", "--first-id", id)
	}
	loads := []*client{idle("4", "1"), idle("6", "3")}
	options := map[int]map[string]string{}
	for id := 1; id <= 4; id++ {
		options[id] = w.knows(id).Options
	}
	var sockets []string
	w.check(lab.Eventually(w.limit(), func() error {
		sockets = w.ss(w.A)
		if n := strings.Count(strings.Join(sockets, "\n"), "timer:(keepalive"); n != len(options) {
			return fmt.Errorf("%d of %d keepalive timers", n, len(options))
		}
		return nil
	}))
	from, to := w.A, w.B
	for range rounds {
		w.forgetClosings() // of the questions
		w.move(from, to)
		for _, c := range loads {
			c.progress()
		}
		w.unharmed()
		w.check(lab.Eventually(w.limit(), func() error {
			if got := w.ss(to); !slices.Equal(got, sockets) {
				return fmt.Errorf("ss shows\n%s\nwas\n%s", strings.Join(got, "\n"), strings.Join(sockets, "\n"))
			}
			return nil
		}))
		for id, want := range options {
			got := w.knows(id).Options
			for _, name := range slices.Sorted(maps.Keys(want)) {
				if got[name] != want[name] {
					t.Errorf("connection %d: %s was %s, is %s", id, name, want[name], got[name])
				}
			}
		}
		from, to = to, from
	}
	w.stopAll(loads...)
}

func otherCongestionControl(t *testing.T) string {
	b, err := os.ReadFile("/proc/sys/net/ipv4/tcp_available_congestion_control")
	if err != nil {
		t.Fatal(err)
	}
	current, err := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control")
	if err != nil {
		t.Fatal(err)
	}
	for name := range strings.FieldsSeq(string(b)) {
		if name != strings.TrimSpace(string(current)) {
			return name
		}
	}
	return strings.TrimSpace(string(current))
}

// lasting are the parts of a line of ss(8) that don't change by themselves; of a timer it is the kind. advmss
// is not among them: CRIU forgets that timestamps take 12 bytes of it, which only sizes the first window.
var lasting = regexp.MustCompile(`^(LISTEN|ESTAB)|\s(\*|[\[\]:.0-9a-f]+):[0-9]+\s|\b(mss|wscale):\S+|\b(reno|cubic|bbr|sack|ts)\b|timer:\(\w+`)

// ss shows the service's listening and established TCP sockets on a host.
func (w *world) ss(h *lab.Host) []string {
	w.Helper()
	out, err := h.Output(w.ctx, "ip", "netns", "exec", "svc", "ss", "-tainmoOH", "state", "listening", "state", "established")
	w.check(err)
	var lines []string
	for line := range strings.Lines(out) {
		lines = append(lines, strings.Join(lasting.FindAllString(line, -1), " "))
	}
	slices.Sort(lines)
	return lines
}
