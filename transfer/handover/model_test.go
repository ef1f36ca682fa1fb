package handover

import (
	"fmt"
	"slices"
	"strings"

	"github.com/nsmigrate/nsmigrate/transfer/journal"
)

// The model is the protocol, line by line as the hosts use it, between two hosts whose every move is explored: which
// process goes on, which message arrives, which is lost with its connection, which action fails before or after it
// took effect, which process is killed between any two actions, which host is restarted and how much of its journal
// was on the disk by then. Faults are not counted: there can be any number of them, in any order.

// model is what is explored; the tests change it, to see that the explorer finds out.
type model struct {
	protocol  []reaction
	optional  func(action) bool
	sync      func(State) bool
	tombstone func(State, journal.Role) journal.Tombstone
	verdict   func(Verdict) (event, bool)
	unlocked  bool // an answer doesn't care for the journal's lock
	restarts  bool // hosts are restarted, too
	tidy      bool // the journals have to fit what is on the hosts
}

func theModel(restarts bool) model {
	return model{
		protocol: protocol(), optional: action.optional, sync: State.sync, tombstone: State.tombstone,
		verdict: Verdict.event, restarts: restarts, tidy: true,
	}
}

// Moments are small and without pointers, since there are many: what they hold of words are numbers.

var vocabulary = slices.Concat([]string{
	"", msgOffer, msgReady, msgBuild, msgBuilt, anEntry, msgPrepare, msgPrepared, msgReleased, msgRunning, msgBye,
	msgAbort,
}, stringsOf(
	Idle, Offered, Running, Frozen, Released, Ended, Resumed, Agreed, Building, Prepared, Live, Aborted, Lost,
), stringsOf(
	VerdictLive, VerdictAborted, VerdictBusy, VerdictStuck, VerdictLost, VerdictUnknown,
), stringsOf(journal.Live, journal.Aborted, journal.Lost))

func stringsOf[T ~string](list ...T) []string {
	var s []string
	for _, v := range list {
		s = append(s, string(v))
	}
	return s
}

// number is that of a word.
type number[T ~string] uint8

func numberOf[T ~string](word T) number[T] {
	n := slices.Index(vocabulary, string(word))
	if n < 0 {
		panic("a word without a number: " + word)
	}
	return number[T](n)
}

func (n number[T]) word() T { return T(vocabulary[n]) }

// list is a list of words.
type list[T ~string] struct {
	n     uint8
	words [6]number[T]
}

// add returns the list with a word more, if there is room.
func (l list[T]) add(word T) (_ list[T], ok bool) {
	if int(l.n) == len(l.words) {
		return l, false
	}
	l.words[l.n] = numberOf(word)
	l.n++
	return l, true
}

// head returns the first n words.
func (l list[T]) head(n uint8) list[T] {
	clear(l.words[n:])
	l.n = n
	return l
}

// tail returns all but the first word.
func (l list[T]) tail() list[T] {
	copy(l.words[:], l.words[1:])
	return l.head(l.n - 1)
}

func (l list[T]) String() string {
	var s []string
	for _, w := range l.words[:l.n] {
		s = append(s, string(w.word()))
	}
	return strings.Join(s, ",")
}

var roles = [...]journal.Role{journal.Source, journal.Destination}

// copyOf is what a copy of the service does.
type copyOf uint8

const (
	none    copyOf = iota
	partial        // and mute
	stopped        // and mute, as long as the process that holds it is alive
	kept           // stopped and mute, whatever ends
	runs
)

// proc is a process that works on the migration.
type proc struct {
	alive   bool
	main    bool          // it has the connection; else it recovers
	in      number[State] // in its memory
	row     int8          // of the protocol, what it is doing; -1 if it waits
	action  int8          // the next one of that row
	lives   bool          // it saw the service go live
	done    things
	queried bool // the source waits for what comes of it
}

// things are what a process has done, or has, without changing its host.
type things uint8

const (
	anOffer  things = 1 << iota // is made or judged
	aBegin                      // the service or host was told of the journal
	aPrecopy                    // all was sent that could be while the service ran
	pieces                      // of the service: entries were stored
)

func (p proc) state() State { return p.in.word() }

func (p *proc) become(s State) { p.in = numberOf(s) }

// paper is a journal.
type paper struct {
	states   list[State] // none if there is no journal
	synced   uint8       // how many of them are on the disk
	rebooted bool        // the host was restarted since it was created
	grave    number[journal.Tombstone]
}

func (p paper) exists() bool { return p.states.n > 0 }

func (p paper) last() State { return p.states.words[p.states.n-1].word() }

func (p paper) tombstone() journal.Tombstone { return p.grave.word() }

// unfinished says that there is something to be done.
func (p paper) unfinished() bool { return p.exists() && p.tombstone() == journal.NoTombstone }

func (p paper) append(s State, sync bool) (_ paper, ok bool) {
	if ok = p.exists() && p.last() == s; !ok { // else it says nothing new
		p.states, ok = p.states.add(s)
	}
	if sync || p.states.n == 1 { // it is created durably
		p.synced = p.states.n
	}
	return p, ok
}

// side is a host.
type side struct {
	proc    proc
	journal paper
	copy    copyOf
	files   bool         // there is something of the service that outlives a restart
	hungUp  bool         // it closed its end of the connection
	mail    list[string] // what is on the way to it
}

func (s *side) read() (message string) {
	message = s.mail.words[0].word()
	s.mail = s.mail.tail()
	return message
}

type asking uint8

const (
	notAsking asking = iota
	asked            // QUERY is on its way
	pending          // the destination works on the answer
	answered         // ANSWER is on its way
)

// moment is a state of the whole world.
type moment struct {
	source, destination         side
	cut                         bool // the connection is
	ask                         asking
	said                        number[Verdict] // the answer
	ran                         bool            // the service, on the destination
	settled                     bool            // what had time until then is done
	sourceDied, destinationDied bool            // the host was restarted
}

func beginning() moment {
	p := proc{alive: true, main: true, in: numberOf(Idle), row: -1}
	return moment{source: side{copy: runs, proc: p}, destination: side{proc: p}}
}

func (w *moment) on(role journal.Role) *side {
	if role == journal.Source {
		return &w.source
	}
	return &w.destination
}

// end is what is left of a process, however it ended.
func (w moment) end(role journal.Role) moment {
	s := w.on(role)
	if s.proc.main {
		s.hungUp, s.mail = true, list[string]{}
	}
	if role == journal.Source {
		w.ask, w.said, w.destination.proc.queried = notAsking, 0, false
		if s.copy == stopped {
			s.copy = runs
		}
	} else if s.proc.queried { // the source sees its connection end, and asks again
		w.ask = asked
	}
	s.proc = proc{row: -1}
	return w
}

// move is a way from a moment to another.
type move struct {
	what  string // only if it is asked for
	fault bool   // it doesn't happen when everything works
	to    moment
	wrong bool // it must not be possible
}

// explorer collects the moves from a moment.
type explorer struct {
	model
	talk bool
	all  []move
}

// moves returns all that can happen next, in words if the explorer talks. The slice is used again by the next call.
func (x *explorer) moves(from moment) []move {
	x.all = x.all[:0]
	for _, role := range roles {
		s := from.on(role)
		switch {
		case !s.proc.alive && s.journal.unfinished():
			x.recover(from, role, false)
		case s.proc.alive:
			x.add(true, from.end(role), "%s: the process is killed", role)
			x.goesOn(from, role)
		}
	}
	x.question(from)
	x.cable(from)
	if x.restarts {
		x.restart(from)
	}
	return x.all
}

func (x *explorer) add(fault bool, to moment, format string, args ...any) {
	x.all = append(x.all, move{what: x.words(format, args...), fault: fault, to: to})
}

func (x *explorer) wrong(at moment, format string, args ...any) {
	x.all = append(x.all, move{what: x.words(format, args...), to: at, wrong: true})
}

func (x *explorer) words(format string, args ...any) string {
	if !x.talk {
		return ""
	}
	return fmt.Sprintf(format, args...)
}

// reacts adds that a process reacts to an event.
func (x *explorer) reacts(fault bool, w moment, role journal.Role, e event, why string) {
	p := &w.on(role).proc
	for i, r := range x.protocol {
		if r.role == role && r.event == e && slices.Contains(r.in, p.state()) {
			p.row, p.action = int8(i), 0
			x.add(fault, w, "%s: %s: %q", role, why, e)
			return
		}
	}
	x.wrong(w, "%s: %s: %q can't happen when it is %s", role, why, e, p.state())
}

// recover adds that a guard or a person finds the journal of a dead process.
func (x *explorer) recover(w moment, role journal.Role, queried bool) {
	s := w.on(role)
	s.proc = proc{alive: true, in: numberOf(s.journal.last()), row: -1, queried: queried}
	e := onOrphaned
	if s.journal.rebooted {
		e = onRebooted
	}
	x.reacts(false, w, role, e, "recovery")
}

// goesOn adds what a living process can do.
func (x *explorer) goesOn(w moment, role journal.Role) {
	p := w.on(role).proc
	switch {
	case w.ask != notAsking && role == journal.Source:
		x.add(true, w.end(role), "source: is tired of asking")
	case p.row >= 0 && int(p.action) < len(x.protocol[p.row].do):
		x.acts(w, role, x.protocol[p.row].do[p.action])
	case p.row >= 0:
		x.done(w, role)
	case role == journal.Source && p.state() == Idle:
		x.reacts(false, w, role, onBegin, "a user")
	default:
		x.waits(w, role)
	}
}

// anEntry stands for all the entries that are sent with the freeze.
const anEntry = "entry"

// events are what messages are to those who get them.
func events(role journal.Role) map[string]event {
	if role == journal.Source {
		return map[string]event{msgReady: onReady, msgBuilt: onBuilt, msgPrepared: onPrepared, msgRunning: onRunning}
	}
	return map[string]event{
		msgOffer: onOffer, msgBuild: onBuild, anEntry: onEntry, msgPrepare: onPrepare, msgReleased: onReleased,
		msgBye: onBye,
	}
}

// waits adds what a process that waits can get to know.
func (x *explorer) waits(w moment, role journal.Role) {
	x.loses(true, w, role, "gives up waiting")
	s, peer := w.on(role), w.on(other(role))
	if s.mail.n == 0 {
		if w.cut || peer.hungUp {
			x.loses(false, w, role, "the connection ended")
		}
		return
	}
	m := s.read()
	switch {
	case m != msgAbort:
		x.reacts(false, w, role, events(role)[m], "message "+m)
	case s.proc.state() == Live:
		x.wrong(w, "the source aborted when the destination is live")
	case s.proc.state() == Released:
		x.reacts(false, w, role, onAborted, "message abort")
	default:
		x.loses(false, w, role, "message abort")
	}
}

// loses adds that a waiting process can't count on the other side any more.
func (x *explorer) loses(fault bool, w moment, role journal.Role, why string) {
	switch w.on(role).proc.state() {
	case Idle, Offered, Agreed:
		x.add(fault, w.end(role), "%s: %s, nothing was begun", role, why)
	case Live:
		x.reacts(fault, w, role, onBye, why)
	default:
		x.reacts(fault, w, role, onFailed, why)
	}
}

// acts adds how the next action of a process can go.
func (x *explorer) acts(w moment, role journal.Role, a action) {
	to, ok := x.effect(w, role, a)
	if !ok {
		x.fails(false, w, role, a, "because it can't be done")
		if a == doFreeze {
			half := w
			half.on(role).copy = stopped
			x.fails(false, half, role, a, "because what is frozen can't be sent")
		}
		return
	}
	if a == doAsk {
		x.add(false, to, "%s: %s", role, a)
		return
	}
	without := w
	if strings.HasPrefix(string(a), "send-") { // that's how it is known
		without.cut = true
	}
	x.fails(true, without, role, a, "without effect")
	half := to // the world has changed, the process doesn't know
	half.on(role).proc = w.on(role).proc
	if half != w {
		x.fails(true, half, role, a, "after it took effect")
	}
	p := &to.on(role).proc
	if p.action++; a == doGoLive {
		p.lives = true
	}
	if s, ok := a.enters(); ok {
		p.become(s)
	}
	x.add(false, to, "%s: %s", role, a)
}

// fails adds what a process does when an action of its has failed.
func (x *explorer) fails(fault bool, w moment, role journal.Role, a action, how string) {
	p := &w.on(role).proc
	why := x.words("%s fails %s", a, how)
	if x.optional(a) {
		if s, ok := a.enters(); ok {
			p.become(s)
		}
		p.action++
		x.add(fault, w, "%s: %s, no matter", role, why)
		return
	}
	during := x.protocol[p.row].event
	p.row = -1
	switch {
	case p.main && (p.state() == Running || p.state() == Frozen || p.state() == Building || p.state() == Prepared),
		p.main && p.state() == Released && during == onPrepared:
		x.reacts(fault, w, role, onFailed, why)
	default:
		x.add(fault, x.reply(w, role).end(role), "%s: %s, for recovery to see to", role, why)
	}
}

// done adds what a process does when it has reacted.
func (x *explorer) done(w moment, role journal.Role) {
	s := w.on(role)
	s.proc.row = -1
	if s.journal.unfinished() && s.proc.main || s.proc.state() == Offered || s.proc.state() == Agreed {
		x.add(false, w, "%s: waits", role)
		return
	}
	x.add(false, x.reply(w, role).end(role), "%s: is done", role)
}

// reply is the answer of a destination that was asked and has recovered.
func (x *explorer) reply(w moment, role journal.Role) moment {
	p := &w.on(role).proc
	if !p.queried {
		return w
	}
	p.queried = false
	w.ask = answered
	switch {
	case p.state() == Aborted:
		w.said = numberOf(VerdictAborted)
	case p.state() == Lost:
		w.said = numberOf(VerdictLost)
	case p.state() == Live && p.lives:
		w.said = numberOf(VerdictLive)
	default:
		w.said = numberOf(VerdictStuck)
	}
	return w
}

// effect is what an action changes in the world; ok is false if it can't be done.
func (x *explorer) effect(w moment, role journal.Role, a action) (_ moment, ok bool) {
	s, peer := w.on(role), w.on(other(role))
	if state, ok := a.enters(); ok {
		if state.journalled() {
			s.journal, ok = s.journal.append(state, x.sync(state))
		}
		return w, ok
	}
	send := func(m string) (ok bool) {
		peer.mail, ok = peer.mail.add(m)
		return ok && s.proc.main && !w.cut && !s.hungUp && !peer.hungUp
	}
	if m, ok := strings.CutPrefix(string(a), "send-"); ok {
		return w, send(m) && (a != sendOffer && a != sendReady || s.proc.done&anOffer != 0)
	}
	did := &s.proc.done
	ok = true
	switch a {
	case doOffer, doCheck:
		*did |= anOffer
	case doBegin:
		ok = s.journal.unfinished()
		*did |= aBegin
	case doPrecopy:
		ok = *did&aBegin != 0
		*did |= aPrecopy
	case doFreeze:
		s.copy = stopped
		return w, send(anEntry) && *did&aPrecopy != 0
	case doKeep:
		ok = s.copy == stopped
		s.copy = kept
	case doResume:
		if s.copy != none {
			s.copy = runs
		}
	case doEnd:
		s.copy = none
	case doBuild:
		ok = *did&aBegin != 0
		s.copy = partial
	case doStore:
		ok = s.copy == partial
		*did |= pieces
		s.files = true
	case doPrepare:
		ok = *did&pieces != 0
		s.copy = kept
	case doGoLive:
		ok = s.copy == kept || s.copy == runs
		s.copy, w.ran = runs, true
	case doSettle:
		ok = s.copy == runs || s.journal.rebooted
		w.settled = true
	case doUndo:
		s.copy, s.files = none, false
	case doAsk:
		s.hungUp, s.mail = true, list[string]{}
		w.ask = asked
	case finish:
		ok = s.journal.unfinished()
		t := x.tombstone(s.proc.state(), role)
		if t == journal.NoTombstone {
			s.journal = paper{}
		} else {
			s.journal.grave, s.journal.synced = numberOf(t), s.journal.states.n
		}
	}
	return w, ok
}

// question adds what can happen to a source's question.
func (x *explorer) question(w moment) {
	switch w.ask {
	case asked:
		x.answers(w)
	case answered:
		lost := w
		lost.ask, lost.said = asked, 0
		x.add(true, lost, "the answer is lost")
		v := w.said.word()
		e, again := x.verdict(v)
		switch {
		case v == VerdictUnknown:
			x.wrong(w, "the destination doesn't know the migration")
		case v == VerdictLost && !w.destinationDied:
			x.wrong(w, "the destination says that it was restarted")
		case again:
			x.add(false, lost, "source: is told that it is %s", v)
		case e == "":
			x.add(false, w.end(journal.Source), "source: is told that it is %s: a person has to decide", v)
		default:
			w.ask, w.said = notAsking, 0
			x.reacts(false, w, journal.Source, e, "is told that it is "+string(v))
		}
	}
}

// answers adds what the destination does with a question.
func (x *explorer) answers(w moment) {
	d := &w.destination
	v := VerdictUnknown
	switch {
	case d.journal.unfinished() && d.proc.alive && x.unlocked:
		v = VerdictAborted
	case d.journal.unfinished() && d.proc.alive:
		v = VerdictBusy
	case d.journal.unfinished():
		w.ask = pending
		x.recover(w, journal.Destination, true)
		return
	case d.journal.exists():
		v = tombstoneVerdict(d.journal.tombstone(), d.journal.rebooted)
	}
	w.ask, w.said = answered, numberOf(v)
	x.add(false, w, "destination: answers %s", v)
}

// cable adds what can happen to the connection: it breaks, and of what was on the way only the first arrives.
func (x *explorer) cable(w moment) {
	if w.cut || w.source.hungUp && w.destination.hungUp {
		return
	}
	for s := range w.source.mail.n + 1 {
		for d := range w.destination.mail.n + 1 {
			to := w
			to.cut, to.source.mail, to.destination.mail = true, w.source.mail.head(s), w.destination.mail.head(d)
			x.add(true, to, "the cable is cut, %q and %q still arrive", to.source.mail, to.destination.mail)
		}
	}
}

// restart adds that a host is restarted: what is on its disk is left.
func (x *explorer) restart(w moment) {
	for _, role := range roles {
		s := w.on(role)
		if role == journal.Source && w.sourceDied && !s.proc.alive || s.journal.rebooted && !s.proc.alive {
			continue // nothing would change
		}
		cut := w
		cut.cut = true
		states := s.journal.states
		for n := s.journal.synced; n <= states.n; n++ {
			to := cut.end(role)
			s := to.on(role)
			s.copy = none
			s.journal.states = states.head(n)
			s.journal.rebooted = s.journal.rebooted || n > 0
			if role == journal.Source {
				to.sourceDied = true
			} else {
				to.destinationDied = true
			}
			x.add(true, to, "%s: the host is restarted, %q is left of its journal", role, s.journal.states)
		}
	}
}

// forbidden returns what is wrong with a moment, whatever comes next; "" if nothing is.
func forbidden(w moment) string {
	s, d := w.source.copy, w.destination.copy
	switch {
	case s == runs && d == runs:
		return "two copies run"
	case s == runs && w.ran:
		return "the source runs although the service has lived on the destination"
	case w.ran && d != runs && !w.destinationDied:
		return "the service lived on the destination and was taken away"
	case s == none && !w.sourceDied && !w.ran:
		return "no copy is left"
	}
	return ""
}

// untidy returns what is wrong with the journals of a moment.
func untidy(w moment) string {
	s, d := w.source, w.destination
	switch {
	case !s.journal.unfinished() && (s.copy == stopped || s.copy == kept):
		return "the source is changed and has no journal"
	case !d.journal.unfinished() && (d.copy == partial || d.copy == kept),
		!d.journal.exists() && d.files, d.journal.tombstone() == journal.Aborted && d.files:
		return "the destination is changed and has no journal"
	case (d.journal.tombstone() == journal.Live || d.journal.tombstone() == journal.Lost) && !w.settled:
		return "the destination has not settled and has no journal"
	case d.journal.unfinished() && d.journal.last() == Prepared && d.copy != kept && !d.journal.rebooted:
		return "the destination says that it is prepared, and isn't"
	}
	return ""
}

// good says that the migration is over, and as it must be.
func good(w moment) bool {
	if w.source.proc.alive || w.destination.proc.alive || w.destination.journal.unfinished() {
		return false
	}
	s, d, grave := w.source.copy, w.destination.copy, w.destination.journal
	switch {
	case w.source.journal.unfinished() && tombstoneVerdict(grave.tombstone(), grave.rebooted) == VerdictLost:
		return s == kept && d == none // until a person says what is to be done
	case w.source.journal.unfinished():
		return false
	case w.ran:
		return s == none && (d == runs && w.settled || w.destinationDied)
	default:
		return (s == runs || w.sourceDied) && d == none
	}
}
