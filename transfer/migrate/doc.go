// Package migrate is what a live migration moves: it stands between the handover, which decides on which host the
// service lives, and the rooms that know processes and networks. [Source] is the service where it comes from, on a
// [checkpoint.Service]; [Destination] is the host it goes to, with a [restore.Restoration].
//
// The network state travels with the offer, and the destination builds the namespace from it while the service runs. At
// the freeze a [netstate.Delta] follows, by which the namespace is updated where it stands, half a millisecond as a rule;
// what can't be updated (a link that was altered) has it built anew, some 40 ms of the blackout, which the report tells.
//
// Both can also be made from the journal of a process that has died. They then do what is left to be done: bring the
// service back, end it, let it live.
package migrate

import (
	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/netstate"
	"github.com/nsmigrate/nsmigrate/restore"
	"github.com/nsmigrate/nsmigrate/transfer/handover"
	"github.com/nsmigrate/nsmigrate/transfer/journal"
)

// Wish is what the user of the source wants of the destination.
type Wish struct {
	NetNS     string                           `json:"netns,omitempty"` // name of the namespace; "" is the one it has
	Uplinks   map[string]netstate.UplinkTarget `json:"uplinks,omitempty"`
	PIDNS     restore.PIDNS                    `json:"pidns,omitempty"`
	TCPClose  bool                             `json:"tcp_close,omitempty"`
	Force     bool                             `json:"force,omitempty"`
	AllowLoss []string                         `json:"allow_loss,omitempty"` // kinds of objects and features that may be left behind
}

// offer is the Manifest of a [handover.Offer].
type offer struct {
	Service *checkpoint.Manifest `json:"service"`
	Wish    Wish                 `json:"wish"`
}

// Files of a journal's folder.
const (
	stateFile = "netns.state" // the network state that was offered; with the difference it is what goes live
	deltaFile = "netns.delta" // netstate.Delta to the state of the frozen service
)

// Guard watches over a migration: it is another process, which recovers from the journal when this one dies.
type Guard interface {
	// Dismiss ends the guard, because all is done or this process does what is left to be done.
	Dismiss()
}

// StartGuard starts a guard for a journal, nil starts none.
type StartGuard func(j *journal.Journal) (Guard, error)

func (start StartGuard) start(j *journal.Journal) (Guard, error) {
	if start == nil {
		return nobody{}, nil
	}
	return start(j)
}

type nobody struct{}

func (nobody) Dismiss() {}

var (
	_ handover.Service = (*Source)(nil)
	_ handover.Host    = (*Destination)(nil)
)
