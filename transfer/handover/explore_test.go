package handover

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/transfer/journal"
)

// endless is more moments than any variant of the protocol has that comes to an end.
const endless = 100_000

// finding is what the explorer found.
type finding struct {
	states int
	moves  int
	wrong  string   // "" if nothing is
	trace  []string // how it came to that
}

func (f finding) String() string {
	return fmt.Sprintf("%s:\n  %s", f.wrong, strings.Join(f.trace, "\n  "))
}

// explore visits every moment that can be reached, and stops at the first that must not be. In the end it sees whether
// from each of them, when nothing fails any more, there is a way to a good end.
func (m model) explore() finding {
	type visit struct {
		from, move int32 // which move of which moment came here first
	}
	first := beginning()
	index := map[moment]int32{first: 0}
	moments := []moment{first}
	visits := []visit{{}}
	back := [][]int32{nil} // by moment: from where it is reached without a fault
	f := finding{}
	x, told := &explorer{model: m}, &explorer{model: m, talk: true}
	trace := func(i int32) []string {
		var t []string
		for ; i > 0; i = visits[i].from {
			t = append(t, told.moves(moments[visits[i].from])[visits[i].move].what)
		}
		slices.Reverse(t)
		return t
	}
	for i := int32(0); int(i) < len(moments); i++ {
		if len(moments) > endless {
			f.wrong, f.trace = "there is no end to it", trace(i)
			return f
		}
		for n, v := range x.moves(moments[i]) {
			f.moves++
			if v.wrong {
				f.wrong = told.moves(moments[i])[n].what
				f.trace = append(trace(i), f.wrong)
				return f
			}
			j, known := index[v.to]
			if !known {
				j = int32(len(moments))
				index[v.to] = j
				moments = append(moments, v.to)
				visits = append(visits, visit{i, int32(n)})
				back = append(back, nil)
				f.wrong = forbidden(v.to)
				if f.wrong == "" && m.tidy {
					f.wrong = untidy(v.to)
				}
				if f.wrong != "" {
					f.trace = trace(j)
					return f
				}
			}
			if !v.fault {
				back[j] = append(back[j], i)
			}
		}
	}
	f.states = len(moments)
	if i := m.bad(moments, index); i >= 0 {
		f.wrong, f.trace = "nothing fails, but the service does not move", trace(i)
		return f
	}

	ends := make([]bool, len(moments))
	var queue []int32
	for i, w := range moments {
		if good(w) {
			ends[i] = true
			queue = append(queue, int32(i))
		}
	}
	for ; len(queue) > 0; queue = queue[1:] {
		for _, i := range back[queue[0]] {
			if !ends[i] {
				ends[i] = true
				queue = append(queue, i)
			}
		}
	}
	if i := slices.Index(ends, false); i >= 0 {
		f.wrong, f.trace = "there is no way to a good end", trace(int32(i))
	}
	return f
}

// bad returns a moment in which everything ends without a fault and the service has not moved, or -1.
func (m model) bad(moments []moment, index map[moment]int32) int32 {
	seen := map[int32]bool{0: true}
	queue := []int32{0}
	x := &explorer{model: m}
	for ; len(queue) > 0; queue = queue[1:] {
		over := true
		for _, v := range x.moves(moments[queue[0]]) {
			if v.fault {
				continue
			}
			over = false
			if j := index[v.to]; !seen[j] {
				seen[j] = true
				queue = append(queue, j)
			}
		}
		if over && !moments[queue[0]].ran {
			return queue[0]
		}
	}
	return -1
}

func TestModel(t *testing.T) {
	for name, restarts := range map[string]bool{"without restarts": false, "with restarts": true} {
		t.Run(name, func(t *testing.T) {
			f := theModel(restarts).explore()
			if f.wrong != "" {
				t.Fatal(f)
			}
			t.Logf("%d states, %d moves", f.states, f.moves)
		})
	}
}

var _ = journal.Source

// Every line of the protocol is used by the model, but for those of a person's word.
func TestModelUsesTheProtocol(t *testing.T) {
	used := map[int8]bool{}
	x := &explorer{model: theModel(true)}
	seen := map[moment]bool{beginning(): true}
	queue := []moment{beginning()}
	for ; len(queue) > 0; queue = queue[1:] {
		for _, role := range roles {
			used[queue[0].on(role).proc.row] = true
		}
		for _, v := range x.moves(queue[0]) {
			if !seen[v.to] {
				seen[v.to] = true
				queue = append(queue, v.to)
			}
		}
	}
	for i, r := range x.protocol {
		forced := r.event == onForceLive || r.event == onForceAbort
		if !forced && !used[int8(i)] {
			t.Errorf("%s, %q: never happens", r.role, r.event)
		}
	}
}

// line returns the actions of the protocol's line for an event in a state, to be changed.
func (m *model) line(t *testing.T, role journal.Role, s State, e event) *reaction {
	t.Helper()
	for i, r := range m.protocol {
		if r.role == role && r.event == e && slices.Contains(r.in, s) {
			return &m.protocol[i]
		}
	}
	t.Fatalf("there is no line for a %s that is %s and %q", role, s, e)
	return nil
}

// The explorer finds what is wrong with a protocol that is.
func TestModelFindsMistakes(t *testing.T) {
	const source, destination = journal.Source, journal.Destination
	set := func(role journal.Role, s State, e event, a ...action) func(*testing.T, *model) {
		return func(t *testing.T, m *model) { m.line(t, role, s, e).do = a }
	}
	for name, test := range map[string]struct {
		change func(*testing.T, *model)
		want   string
	}{
		"a released source resumes without asking": {
			set(source, Released, onFailed, enter(Resumed), doResume, finish), "two copies run",
		},
		"a recovered source resumes without asking": {
			set(source, Released, onOrphaned, doResume, finish), "two copies run",
		},
		"the source says that it released before it is journalled": {
			set(source, Frozen, onPrepared, sendReleased, enter(Released)), "two copies run",
		},
		"the source releases what its end sets free": {
			set(source, Running, onBuilt, doPrecopy, enter(Frozen), doFreeze, sendPrepare), "two copies run",
		},
		"the source ends what it released": {
			set(source, Frozen, onPrepared, enter(Released), sendReleased, doEnd), "no copy is left",
		},
		"the source ends its copy when it is told that the other one never lived": {
			set(source, Released, onAborted, enter(Ended), doEnd, finish), "no copy is left",
		},
		"the source freezes before it is journalled": {
			// Nothing is lost by it: what a dead process left frozen, recovery resumes in any state before "released".
			set(source, Running, onBuilt, doPrecopy, doFreeze, enter(Frozen), sendPrepare, doKeep), "",
		},
		"the destination goes live before it is journalled": {
			set(destination, Prepared, onReleased, doGoLive, enter(Live), sendRunning, doSettle),
			"the service lived on the destination and was taken away",
		},
		"the destination says that it is live before it is": {
			set(destination, Prepared, onReleased, sendRunning, enter(Live), doGoLive, doSettle), "no copy is left",
		},
		"a prepared destination goes live when it loses the source": {
			set(destination, Prepared, onFailed, enter(Live), doGoLive, finish), "two copies run",
		},
		"a recovered destination goes live": {
			set(destination, Prepared, onOrphaned, enter(Live), doGoLive, finish), "two copies run",
		},
		"a live destination is undone by recovery": {
			set(destination, Live, onOrphaned, enter(Aborted), doUndo, finish),
			"the service lived on the destination and was taken away",
		},
		"a destination that lost its source waits": {
			set(destination, Prepared, onFailed), "there is no way to a good end",
		},
		"the destination tells that it aborts before it is journalled": {
			// Whatever its journal says, nobody makes a prepared copy live without RELEASED.
			set(destination, Prepared, onFailed, sendAbort, enter(Aborted), doUndo, finish), "two copies run",
		},
		"the destination leaves no tombstone": {
			func(_ *testing.T, m *model) {
				m.tombstone = func(State, journal.Role) journal.Tombstone { return journal.NoTombstone }
			},
			"the destination doesn't know the migration",
		},
		"an aborted destination leaves no tombstone": {
			func(_ *testing.T, m *model) {
				m.tombstone = func(s State, role journal.Role) journal.Tombstone {
					if s == Aborted {
						return journal.NoTombstone
					}
					return s.tombstone(role)
				}
			},
			"the destination doesn't know the migration",
		},
		"going live is not on the disk": {
			func(_ *testing.T, m *model) { m.sync = func(s State) bool { return s == Aborted } },
			"the source runs although the service has lived on the destination",
		},
		"aborting is not on the disk": {
			func(_ *testing.T, m *model) { m.sync = func(s State) bool { return s == Live } },
			"there is no way to a good end",
		},
		"the destination aborts although it can't journal it": {
			func(_ *testing.T, m *model) {
				m.optional = func(a action) bool { return a.optional() || a == enter(Aborted) }
			},
			"two copies run",
		},
		"the source ends its copy although it can't journal it": {
			func(_ *testing.T, m *model) {
				m.optional = func(a action) bool { return a.optional() || a == enter(Ended) }
			},
			"there is no way to a good end",
		},
		"a question is answered over the head of the process that works on it": {
			func(_ *testing.T, m *model) { m.unlocked = true }, "two copies run",
		},
		"busy is taken for aborted": {
			func(_ *testing.T, m *model) {
				m.verdict = func(v Verdict) (event, bool) {
					if v == VerdictBusy {
						return onAborted, false
					}
					return v.event()
				}
			},
			"two copies run",
		},
		"a service that ended with its host is taken for aborted": {
			func(_ *testing.T, m *model) {
				m.verdict = func(v Verdict) (event, bool) {
					if v == VerdictLost {
						return onAborted, false
					}
					return v.event()
				}
			},
			"the source runs although the service has lived on the destination",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := theModel(true)
			m.tidy = false // the worst is looked for, not the first
			test.change(t, &m)
			f := m.explore()
			if f.wrong != test.want {
				t.Errorf("found %q, want %q\n%v", f.wrong, test.want, f)
			}
		})
	}
}

// harmless are the changes of the protocol's order by which nothing can go wrong, and why the order is as it is.
func harmless() map[string]string {
	const (
		memory  = "the state is in memory only, and the other side waits"
		sooner  = "the service comes back sooner"
		spares  = "the record spares whoever comes next a question"
		told    = "the end of the connection, or an answer, says the same"
		shows   = "the record is for people, and for a person's word"
		restart = "after a restart there is no copy that anybody could bring to life"
	)
	return map[string]string{
		"source idle begin: enter-offered before send-offer":                memory,
		"destination idle offer: enter-agreed before send-ready":            memory,
		"source offered ready: send-build before begin":                     "nothing is changed yet",
		"destination agreed build: send-built before build":                 "PREPARE is read when it is built",
		"source running built: enter-frozen before precopy":                 shows,
		"source running built: freeze before enter-frozen":                  shows,
		"source running built: keep before send-prepare":                    "the destination works meanwhile",
		"destination building prepare: send-prepared before enter-prepared": shows,
		"destination prepared released: settle before send-running":         "settling takes time",
		"source released running: send-bye before enter-ended":              told,
		"source released running: without send-bye":                         told,
		"source released running: end before send-bye":                      "the destination is done sooner",
		"source running failed: resume before enter-resumed":                spares,
		"source running failed: send-abort before resume":                   sooner,
		"source running failed: without send-abort":                         told,
		"source running failed: finish before send-abort":                   told,
		"source released aborted: resume before enter-resumed":              spares,
		"source released aborted: without enter-resumed":                    spares,
		"destination building failed: without send-abort":                   told,
		"destination building failed: undo before send-abort":               sooner,
		"source running orphaned: resume before enter-resumed":              spares,
		"source running orphaned: without enter-resumed":                    spares,
		"source running rebooted: without enter-lost":                       shows,
		"destination building rebooted: without enter-aborted":              restart,
		"destination building rebooted: undo before enter-aborted":          restart,
		"destination live rebooted: without enter-lost":                     "the tombstone's boot ID says the same",
		"destination live rebooted: settle before enter-lost":               restart,
	}
}

// Each action of the protocol, and its place, is there for a reason: without it, or in another order, the explorer
// finds something wrong. The few exceptions are listed.
func TestModelNeedsEveryAction(t *testing.T) {
	harmless := harmless()
	change := func(i int, what string, do []action) {
		m := theModel(true)
		r := &m.protocol[i]
		r.do = do
		name := fmt.Sprintf("%s %s %s: %s", r.role, r.in[0], r.event, what)
		reason := harmless[name]
		delete(harmless, name)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := m.explore()
			switch {
			case f.wrong == "" && reason == "":
				t.Error("nothing is wrong with it: is the action needed, and there?")
			case f.wrong != "" && reason != "":
				t.Errorf("it is said to be harmless (%s), but %v", reason, f)
			}
		})
	}
	for i, r := range protocol() {
		if r.event == onForceLive || r.event == onForceAbort {
			continue
		}
		for j, a := range r.do {
			change(i, fmt.Sprintf("without %s", a), slices.Delete(slices.Clone(r.do), j, j+1))
			if j > 0 {
				do := slices.Clone(r.do)
				do[j-1], do[j] = do[j], do[j-1]
				change(i, fmt.Sprintf("%s before %s", a, r.do[j-1]), do)
			}
		}
	}
	for name := range harmless {
		t.Errorf("listed as harmless, but no change of the protocol: %s", name)
	}
}
