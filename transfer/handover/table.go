package handover

import (
	"slices"
	"strings"

	"github.com/nsmigrate/nsmigrate/transfer/journal"
)

// State is how far a host is in a migration.
type State string

// The states of both hosts. The journal has all but Idle, Offered and Agreed: until then nothing is changed on a host.
const (
	Idle State = "idle" // nobody asked for anything

	Offered  State = "offered"  // source: the destination thinks about it
	Running  State = "running"  // source: the service runs
	Frozen   State = "frozen"   // source: the service may be frozen; whatever fails resumes it
	Released State = "released" // source: it is frozen, and never resumed without asking the destination
	Ended    State = "ended"    // source: it lives on the destination, the frozen copy is to be removed
	Resumed  State = "resumed"  // source: it lives here, the migration failed

	Agreed   State = "agreed"   // destination: nothing stands in the way
	Building State = "building" // destination: parts of the service are here
	Prepared State = "prepared" // destination: all of it is here, stopped and mute
	Live     State = "live"     // destination: it lives here, or is about to; there is no way back
	Aborted  State = "aborted"  // destination: it never lived here, and never will by this migration

	Lost State = "lost" // either: the copy ended when the host was restarted
)

// event is what a host reacts to.
type event string

const (
	// On the source.
	onBegin    event = "begin"    // a user asks for a migration
	onReady    event = "ready"    // the destination sees no problem
	onBuilt    event = "built"    // the destination has the namespace
	onPrepared event = "prepared" // the destination has all of the service
	onRunning  event = "running"  // the destination says that the service lives there
	onAborted  event = "aborted"  // the destination says that it never will

	// On the destination.
	onOffer    event = "offer"    // a source asks for a migration
	onBuild    event = "build"    // the source wants the namespace
	onEntry    event = "entry"    // the source sends a piece of the service
	onPrepare  event = "prepare"  // the source sent all of it
	onReleased event = "released" // the source gives the service up
	onBye      event = "bye"      // the source is done, or nothing is heard of it

	// On either.
	onFailed     event = "failed"      // here, there or between: the migration can't go on
	onOrphaned   event = "orphaned"    // the process that worked on the migration is dead
	onRebooted   event = "rebooted"    // and its host was restarted
	onForceLive  event = "force-live"  // a person says that the service lives on the destination
	onForceAbort event = "force-abort" // a person says that it doesn't
)

// action is what a host does.
type action string

const (
	// On the source.
	doOffer      action = "offer"         // Service.Offer
	sendOffer    action = "send-offer"    // OFFER
	sendBuild    action = "send-build"    // BUILD
	doPrecopy    action = "precopy"       // Service.Precopy
	doFreeze     action = "freeze"        // Service.Freeze
	sendPrepare  action = "send-prepare"  // PREPARE
	doKeep       action = "keep"          // Service.Keep
	sendReleased action = "send-released" // RELEASED
	doAsk        action = "ask"           // QUERY, by another connection
	doEnd        action = "end"           // Service.End
	doResume     action = "resume"        // Service.Resume
	sendBye      action = "send-bye"      // BYE

	// On the destination.
	doCheck      action = "check"         // Host.Check
	sendReady    action = "send-ready"    // READY
	doBuild      action = "build"         // Host.Build
	sendBuilt    action = "send-built"    // BUILT
	doStore      action = "store"         // Host.Store
	doPrepare    action = "prepare"       // Host.Prepare
	sendPrepared action = "send-prepared" // PREPARED
	doGoLive     action = "go-live"       // Host.GoLive
	sendRunning  action = "send-running"  // RUNNING
	doSettle     action = "settle"        // Host.Settle
	doUndo       action = "undo"          // Host.Undo

	// On either.
	doBegin   action = "begin"      // Service.Begin or Host.Begin
	sendAbort action = "send-abort" // ABORT
	finish    action = "finish"     // the journal goes; on the destination a tombstone stays
)

const entering = "enter-"

// enter is the action of being in a state from now on. The journal has it before anything else happens.
func enter(s State) action { return action(entering + s) }

// enters returns the state that an action enters, if it is such an action.
func (a action) enters() (State, bool) {
	s, ok := strings.CutPrefix(string(a), entering)
	return State(s), ok
}

// optional says that a reaction goes on when the action fails: a message to somebody who may not hear it any more, or a
// record that only spares whoever comes next a question.
func (a action) optional() bool {
	return slices.Contains([]action{sendRunning, sendBye, sendAbort, enter(Resumed)}, a)
}

// reaction is a line of the protocol: what a role does in any of some states when something happens.
type reaction struct {
	role  journal.Role
	in    []State
	event event
	do    []action
}

// protocol returns the whole protocol: who does what, when, and in which order. The two hosts go by it, and so does
// the model in the tests, which explores all that can happen. What isn't in it is an error.
func protocol() []reaction {
	const source, destination = journal.Source, journal.Destination
	in := func(s ...State) []State { return s }
	do := func(a ...action) []action { return a }
	return []reaction{
		// As it should go.
		{source, in(Idle), onBegin, do(doOffer, sendOffer, enter(Offered))},
		{destination, in(Idle), onOffer, do(doCheck, sendReady, enter(Agreed))},
		{source, in(Offered), onReady, do(enter(Running), doBegin, sendBuild)},
		{destination, in(Agreed), onBuild, do(enter(Building), doBegin, doBuild, sendBuilt)},
		{source, in(Running), onBuilt, do(doPrecopy, enter(Frozen), doFreeze, sendPrepare, doKeep)},
		{destination, in(Building), onEntry, do(doStore)},
		{destination, in(Building), onPrepare, do(doPrepare, enter(Prepared), sendPrepared)},
		{source, in(Frozen), onPrepared, do(enter(Released), sendReleased)},
		{destination, in(Prepared), onReleased, do(enter(Live), doGoLive, sendRunning, doSettle)},
		{source, in(Released), onRunning, do(enter(Ended), sendBye, doEnd, finish)},
		{destination, in(Live), onBye, do(finish)},

		// Something fails, or the other side is lost. As long as the source hasn't released the service, it is
		// resumed; as long as the destination isn't live, it never will be. In between the source asks.
		{source, in(Running, Frozen), onFailed, do(enter(Resumed), doResume, sendAbort, finish)},
		{source, in(Released), onFailed, do(doAsk)},
		{source, in(Released), onAborted, do(enter(Resumed), doResume, finish)},
		{destination, in(Building, Prepared), onFailed, do(enter(Aborted), sendAbort, doUndo, finish)},

		// A process has died, another one finds its journal.
		{source, in(Running, Frozen, Resumed), onOrphaned, do(enter(Resumed), doResume, finish)},
		{source, in(Released), onOrphaned, do(doAsk)},
		{source, in(Ended), onOrphaned, do(doEnd, finish)},
		{destination, in(Building, Prepared, Aborted), onOrphaned, do(enter(Aborted), doUndo, finish)},
		{destination, in(Live), onOrphaned, do(doGoLive, doSettle, finish)},

		// A host was restarted, and whatever copy it had is gone.
		{source, in(Running, Frozen, Released, Resumed, Lost), onRebooted, do(enter(Lost), finish)},
		{source, in(Ended), onRebooted, do(finish)},
		{destination, in(Building, Prepared, Aborted), onRebooted, do(enter(Aborted), doUndo, finish)},
		{destination, in(Live, Lost), onRebooted, do(enter(Lost), doSettle, finish)},

		// A person who has seen both hosts decides.
		{source, in(Released), onForceLive, do(enter(Ended), doEnd, finish)},
		{source, in(Released), onForceAbort, do(enter(Resumed), doResume, finish)},
		{destination, in(Prepared), onForceLive, do(enter(Live), doGoLive, doSettle, finish)},
		{destination, in(Building, Prepared, Live), onForceAbort, do(enter(Aborted), doUndo, finish)},
	}
}

// find returns what a role does in a state when something happens; ok is false if that must not happen.
func find(protocol []reaction, role journal.Role, s State, e event) (do []action, ok bool) {
	for _, r := range protocol {
		if r.role == role && r.event == e && slices.Contains(r.in, s) {
			return r.do, true
		}
	}
	return nil, false
}

// tombstone returns what stays of a migration that finishes in a state.
func (s State) tombstone(role journal.Role) journal.Tombstone {
	switch {
	case role == journal.Source:
		return journal.NoTombstone
	case s == Live:
		return journal.Live
	case s == Lost:
		return journal.Lost
	}
	return journal.Aborted
}

// sync says that the journal must have a state on the disk before anything else happens. For the others the kernel's
// memory is enough: a copy of the service ends with it too, and a host that was restarted without them comes to the
// same end. Only what a source may be told of a destination that was restarted has to be on the disk.
func (s State) sync() bool { return s == Live || s == Aborted }

// journalled says that the journal has the state.
func (s State) journalled() bool { return s != Idle && s != Offered && s != Agreed }

// decided says that nobody on this host can stop the migration, or what undoes it, any more.
func (s State) decided() bool {
	return slices.Contains([]State{Released, Ended, Resumed, Live, Aborted, Lost}, s)
}

// Step is a moment at which a host can be stopped or killed: right before an action.
type Step struct {
	Role   journal.Role
	State  State  // in which the event found the host
	Event  string // what happened
	Action string // what the host is about to do
}

// String returns for example "source/frozen/prepared/enter-released".
func (s Step) String() string {
	return strings.Join([]string{string(s.Role), string(s.State), s.Event, s.Action}, "/")
}

// Steps returns all steps of a role, those of a migration that goes well first and in order.
func Steps(role journal.Role) []Step {
	var steps []Step
	for _, r := range protocol() {
		if r.role != role {
			continue
		}
		for _, s := range r.in {
			for _, a := range r.do {
				steps = append(steps, Step{role, s, string(r.event), string(a)})
			}
		}
	}
	return steps
}
