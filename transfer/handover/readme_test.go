package handover

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/transfer/journal"
)

// goesWell are the events of a migration that goes well.
func goesWell() []event {
	return []event{
		onBegin, onReady, onBuilt, onPrepared, onRunning, // on the source
		onOffer, onBuild, onEntry, onPrepare, onReleased, onBye,
	}
}

// row is a state in which trouble can find a host, and what the host does in it.
type row struct {
	role  journal.Role
	state State
	steps []string
}

// rows are those of a migration that goes well, in order. A step after one that enters a state belongs to that state.
func rows() (list []row, steps int) {
	for _, role := range []journal.Role{journal.Source, journal.Destination} {
		for _, r := range protocol() {
			if r.role != role || !slices.Contains(goesWell(), r.event) {
				continue
			}
			in := r.in[0]
			for _, a := range r.do {
				i := slices.IndexFunc(list, func(x row) bool { return x.role == role && x.state == in })
				if i < 0 {
					i, list = len(list), append(list, row{role: role, state: in})
				}
				list[i].steps = append(list[i].steps, string(a))
				steps++
				if s, ok := a.enters(); ok {
					in = s
				}
			}
		}
	}
	return list, steps
}

// becomes tells people what the protocol makes of an event.
func (r row) becomes(e event) string {
	do, ok := find(protocol(), r.role, r.state, e)
	has := func(a action) bool { return slices.Contains(do, a) }
	switch {
	case !r.state.journalled():
		return "the service was not touched"
	case !ok:
		return "it lives on the destination, or will; `nsmigrate recover` does what is left"
	case e == onRebooted && r.state == Released:
		return "the frozen copy ended with its host; it lives on the destination if that has heard so"
	case e == onRebooted && r.state == Ended:
		return "the frozen copy ended with its host; it lives on the destination"
	case has(enter(Lost)):
		return "it ended with its host"
	case has(enter(Resumed)):
		return "it goes on on the source"
	case has(doAsk):
		return "frozen and mute, the source asks: it goes by the answer"
	case has(enter(Aborted)):
		return "all of it is removed here; it goes on on the source"
	case has(doGoLive):
		return "it is brought to life on the destination"
	}
	return "it lives on the destination; the frozen copy is removed"
}

// matrix is the README's table of what becomes of a service.
func matrix(t *testing.T) string {
	var b strings.Builder
	b.WriteString("| host | state | before each of these steps | killed | a step fails; the link is cut, stalls, corrupts, reorders | the host is restarted |\n")
	b.WriteString("|---|---|---|---|---|---|\n")
	list, steps := rows()
	for _, r := range list {
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", r.role, r.state, strings.Join(r.steps, ", "),
			r.becomes(onOrphaned), r.becomes(onFailed), r.becomes(onRebooted))
	}
	var states, moves int
	for _, restarts := range []bool{false, true} {
		f := theModel(restarts).explore()
		if f.wrong != "" {
			t.Fatal(f)
		}
		states, moves = states+f.states, moves+f.moves
	}
	fmt.Fprintf(&b, "\n%d steps; the model of it has %d states and %d moves between them, all of which are looked at.\n", steps, states, moves)
	return b.String()
}

// The README says what the protocol does.
func TestReadme(t *testing.T) {
	const path, begin, end = "../../README.md", "<!-- what becomes of a service: go test ./transfer/handover -run TestReadme -update -->\n", "<!-- end -->\n"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	has, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		t.Fatalf("%s has no place for the table", path)
	}
	want := matrix(t)
	if has == want {
		return
	}
	if flag.Lookup("update").Value.String() != "true" {
		t.Fatalf("%s says\n%s\nthe protocol is\n%s", path, has, want)
	}
	if err := os.WriteFile(path, []byte(before+begin+want+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}
