package handover

import (
	"context"
	"encoding/json"
	"io"
	"time"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/transfer/journal"
)

// Conn is a connection between the two hosts that keeps messages and entries in order and detects their damage and
// their loss, as that of package stream does. One goroutine sends and one receives.
type Conn interface {
	Send(ctx context.Context, typ string, body any) error
	SendEntry(ctx context.Context, name string, size int64, r io.Reader) error
	Receive(ctx context.Context) (*Message, error)
	// Close makes sure that what was sent is not lost by the closing. Send and Receive fail from then on.
	Close() error
}

// Message is a message or, if Entry isn't nil, the beginning of an entry.
type Message struct {
	Type  string
	Body  json.RawMessage
	Entry *Entry
}

// Entry is a named piece of the service, to be read to its end before the next message. io.EOF says that all of it
// arrived as it was sent.
type Entry struct {
	Name string // a clean relative path
	Size int64  // -1 if the sender didn't know it
	io.Reader
}

// SendEntry sends a named piece of the service; size is -1 if it is not known.
type SendEntry func(ctx context.Context, name string, size int64, r io.Reader) error

// Service is the service on the source. Its methods are called one at a time, in the order in which they stand here
// as far as a migration gets. A method whose context ends must return soon.
type Service interface {
	// Offer looks at the service, which runs, and changes nothing.
	Offer(ctx context.Context) (*Offer, error)
	// Begin is told of the journal, which from now on gets every change of this host before it is made. A guard can
	// be started now.
	Begin(ctx context.Context, j *journal.Journal) error
	// Precopy sends what can be sent while the service runs. wants is from the destination's [Ready].
	Precopy(ctx context.Context, wants json.RawMessage, send SendEntry) error
	// Freeze makes the service stand still and mute, and sends the rest of it. final is for [Host.Prepare].
	Freeze(ctx context.Context, send SendEntry) (final json.RawMessage, err error)
	// Keep makes sure that the service stands still and mute even when this process has ended.
	Keep(ctx context.Context) error
	// Held returns what reached the service, to be passed on to [Host.Deliver], since it stood still or since Held was last
	// called; nil if nothing did. Nothing depends on it but how soon its sender gets an answer.
	Held(ctx context.Context) []byte
	// Resume brings the service back as it was before Begin, whatever of the above was done or half done. It can be
	// called again.
	Resume(ctx context.Context) error
	// End removes the frozen service without a packet, and what the migration left on this host. It can be called
	// again.
	End(ctx context.Context) error
}

// Host is the destination. Its methods are called one at a time, in the order in which they stand here as far as a
// migration gets; Store at any time between Check and Prepare, and before Check for the offer's attachments. A method
// whose context ends must return soon.
type Host interface {
	// Check compares the offer with this host and changes nothing: attachments that were stored before are to be kept
	// in memory. An error is one of the check itself.
	Check(ctx context.Context, o *Offer) (*Ready, error)
	// Begin is told of the journal, which from now on gets every change of this host before it is made. A guard can
	// be started now.
	Begin(ctx context.Context, j *journal.Journal) error
	// Build makes what can be made while the service runs on the source.
	Build(ctx context.Context) error
	// Store takes a piece of the service and reads it to its end.
	Store(ctx context.Context, name string, size int64, r io.Reader) error
	// Prepare has the service complete, stopped and mute, even when this process has ended.
	Prepare(ctx context.Context, final json.RawMessage) error
	// GoLive lets it run and answer, and announces it. It can be called again, and is until it returns nil. The report
	// is for the source.
	GoLive(ctx context.Context) (report json.RawMessage, err error)
	// Deliver gives the live service what reached it on the source, and reads it to its end. It may be called while
	// Settle runs.
	Deliver(ctx context.Context, r io.Reader) error
	// Settle does what has time until the service is live. It can be called again. As soon as it knows whether there is
	// anything that the source's user should see to, it tells that, or nil. After a restart of the host
	// ([journal.Content.Rebooted]), which has ended the service, it must touch nothing but what outlives one.
	Settle(ctx context.Context, tell func(error)) error
	// Undo removes whatever Begin to Prepare did or half did. It can be called again. After a restart of the host
	// ([journal.Content.Rebooted]) it must touch nothing but what outlives one.
	Undo(ctx context.Context) error
}

// Offer is what a source wants to hand over.
type Offer struct {
	ID          string          `json:"id"` // of the migration; set by [Send]
	DryRun      bool            `json:"dry_run,omitempty"`
	Manifest    json.RawMessage `json:"manifest"`
	Attachments []Attachment    `json:"attachments,omitempty"` // sent along, for [Host.Store]

	Problems []checkpoint.Problem `json:"-"` // what stands in the way on the source; the destination is asked nevertheless

	// About is for the journals of both hosts, and for people who look at them: what is moved, from where to where.
	About json.RawMessage `json:"about,omitempty"`
}

// Attachment is a piece of an offer.
type Attachment struct {
	Name string `json:"name"` // a clean relative path
	Size int64  `json:"size"` // -1 if it is not known

	Open func() (io.ReadCloser, error) `json:"-"`
}

// Ready is what a destination answers to an offer.
type Ready struct {
	Problems []checkpoint.Problem // what stands in the way, all of it
	Wants    json.RawMessage      // for [Service.Precopy], e.g. which files differ
}

// Options of both sides. The zero value is useful.
type Options struct {
	DryRun   bool                // source: stop when the destination has answered
	Frozen   time.Duration       // source: the longest time from the freeze to the release; 0 is two minutes
	AskFor   time.Duration       // source: how long to ask a destination that doesn't decide; 0 is two minutes
	Patience time.Duration       // how long to wait for the other side to go on; 0 is ten minutes
	Progress checkpoint.Progress // nil reports nothing
	Clock    *checkpoint.Clock   // gets the phases, also those of the Service or Host; nil makes one for Progress

	// Redial makes a new connection to the destination, to ask it. nil: there is no way to ask.
	Redial func(ctx context.Context) (Conn, error)

	// Reopen returns the Host of a journal that a process left behind, for a source that asks what became of it.
	Reopen func(ctx context.Context, j *journal.Journal) (Host, error)

	// At is called right before every step. Its error is that of the step. For tests.
	At func(ctx context.Context, s Step) error
}

// Outcome says where the service lives after a migration.
type Outcome string

// Outcomes, with the same words on both hosts.
const (
	Undecided Outcome = ""        // it is frozen on the source, until it is known what the destination did
	Checked   Outcome = "checked" // on the source: nothing was to be done
	Moved     Outcome = "moved"   // on the destination
	Stayed    Outcome = "stayed"  // on the source
	Gone      Outcome = "gone"    // it ended when the host was restarted
)

// Report tells how a migration went.
type Report struct {
	ID       string             `json:"id"`
	Outcome  Outcome            `json:"outcome"`
	Phases   []checkpoint.Phase `json:"phases"`
	Blackout time.Duration      `json:"blackout"` // how long the service stood still, as this host saw it
	Total    time.Duration      `json:"total"`

	// From the other host, on the source.
	PeerPhases []checkpoint.Phase `json:"peer_phases,omitempty"`
	PeerReport json.RawMessage    `json:"peer_report,omitempty"` // of [Host.GoLive]

	// Wants is that of the destination's [Ready], on a source that only asked ([Options].DryRun).
	Wants json.RawMessage `json:"-"`

	// PeerTrouble is what the destination could not do when the service was live there, with what its user can do.
	PeerTrouble string `json:"peer_trouble,omitempty"`

	// Leftover is what could not be removed behind a service that has moved; "nsmigrate recover" tries again.
	Leftover error `json:"-"`

	// Answered is set if the other side only asked for what became of a migration.
	Answered Verdict `json:"answered,omitempty"`
}
