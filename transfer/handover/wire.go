package handover

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"unicode"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/transfer/journal"
)

// Types of messages.
const (
	msgOffer    = "offer"    // source: the Offer, whose attachments follow
	msgReady    = "ready"    // destination: nothing stands in the way
	msgProblems = "problems" // destination: that is what stands in the way
	msgBuild    = "build"    // source: go on
	msgBuilt    = "built"    // destination
	msgPrepare  = "prepare"  // source: all was sent
	msgPrepared = "prepared" // destination
	msgReleased = "released" // source
	msgRunning  = "running"  // destination
	msgBye      = "bye"      // source
	msgSettled  = "settled"  // destination: whether there is trouble with what it does when the service is live; nobody depends on it
	msgAbort    = "abort"    // either: the migration is over, for this reason
	msgQuery    = "query"    // source, on a connection of its own: what became of the migration?
	msgAnswer   = "answer"   // destination: that
)

// heldEntry is the source's, once after RELEASED and once before BYE: [Service.Held]. It is left out if there is nothing.
const heldEntry = "held"

// LargeMessages returns the types of messages that can be larger than the 1 MiB a connection allows by itself, with
// the most bytes of each.
func LargeMessages() map[string]int {
	return map[string]int{msgOffer: 64 << 20, msgReady: 64 << 20, msgPrepare: 64 << 20, msgProblems: 4 << 20}
}

// body is that of every message but OFFER. All of them name the migration, so that none is taken for another's.
type body struct {
	ID       string               `json:"id"`
	Problems []checkpoint.Problem `json:"problems,omitempty"` // PROBLEMS, ABORT
	Wants    json.RawMessage      `json:"wants,omitempty"`    // READY
	Final    json.RawMessage      `json:"final,omitempty"`    // PREPARE
	Report   json.RawMessage      `json:"report,omitempty"`   // RUNNING
	Phases   []checkpoint.Phase   `json:"phases,omitempty"`   // RUNNING
	Reason   string               `json:"reason,omitempty"`   // ABORT, ANSWER, SETTLED
	Verdict  Verdict              `json:"verdict,omitempty"`  // ANSWER
}

// Verdict is what a destination answers to a source that asks what became of a migration.
type Verdict string

// The answers.
const (
	VerdictLive    Verdict = "live"    // the service lives here
	VerdictAborted Verdict = "aborted" // it never lived here, and never will
	VerdictBusy    Verdict = "busy"    // a process works on it
	VerdictStuck   Verdict = "stuck"   // it is to live here, but something fails
	VerdictLost    Verdict = "lost"    // it lived here and ended when the host was restarted
	VerdictUnknown Verdict = "unknown" // nothing is known of the migration
)

// event returns what an answer means to the source, or that it has to ask again; if neither, a person has to decide.
func (v Verdict) event() (e event, again bool) {
	switch v {
	case VerdictLive:
		return onRunning, false
	case VerdictAborted:
		return onAborted, false
	case VerdictBusy, VerdictStuck:
		return "", true
	}
	return "", false
}

// Bounds of what another host can make us keep or print.
const (
	maxReason      = 4 << 10
	maxProblems    = 1000
	maxAttachments = 1000
)

// decode reads the body of a message and makes sure that it is about the right migration.
func decode(m *Message, ids ...string) (*body, error) {
	var b body
	if err := json.Unmarshal(m.Body, &b); err != nil {
		return nil, &ProtocolError{Reason: fmt.Sprintf("message %q: %v", m.Type, err)}
	}
	if !slices.Contains(ids, b.ID) {
		return nil, &ProtocolError{Reason: fmt.Sprintf("message %q is about another migration: %.64q", m.Type, b.ID)}
	}
	b.clean()
	return &b, nil
}

// clean makes what another host says fit to be printed.
func (b *body) clean() {
	b.Reason = printable(b.Reason)
	b.Problems = b.Problems[:min(len(b.Problems), maxProblems)]
	for i, p := range b.Problems {
		p.Kind, p.Object = printable(p.Kind), printable(p.Object)
		p.Reason, p.Remedy = printable(p.Reason), printable(p.Remedy)
		b.Problems[i] = p
	}
}

// printable leaves out what a terminal would obey.
func printable(s string) string {
	if len(s) > maxReason {
		s = s[:maxReason] + "..."
	}
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, strings.ToValidUTF8(s, string(unicode.ReplacementChar)))
}

// decodeOffer reads an offer.
func decodeOffer(m *Message) (*Offer, error) {
	var o Offer
	if err := json.Unmarshal(m.Body, &o); err != nil {
		return nil, &ProtocolError{Reason: fmt.Sprintf("message %q: %v", m.Type, err)}
	}
	if !journal.ValidID(o.ID) {
		return nil, &ProtocolError{Reason: fmt.Sprintf("%.64q is no ID of a migration", o.ID)}
	}
	if len(o.Attachments) > maxAttachments {
		return nil, &ProtocolError{Reason: fmt.Sprintf("an offer with %d attachments", len(o.Attachments))}
	}
	for _, a := range o.Attachments {
		if !fs.ValidPath(a.Name) || a.Name == "." || a.Size < -1 {
			return nil, &ProtocolError{Reason: fmt.Sprintf("an attachment %.64q of %d bytes", a.Name, a.Size)}
		}
	}
	return &o, nil
}
