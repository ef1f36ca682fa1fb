// Package genl carries the objects of a network namespace that are spoken of over generic netlink: MPTCP endpoints
// and limits, the keys and peers of WireGuard, IPVS services, offloads and channels of devices as ethtool(8) sets
// them, FOU ports, segment routing and IOAM settings. Each family has a file that says what its kernel shows in
// another form than it takes.
//
// A message of a State is the request that makes an object. Its type is the family's number in this package: the
// kernel deals its own numbers out anew at every boot.
//
// What has no request to make it and so isn't carried: TCP metrics, which are a cache of what connections measured.
// Families whose settings are not carried, TIPC and the table of physical networks of SMC, are named if they are in use.
package genl

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Numbers of the families. They are in files, so they are never reused.
const (
	familyMPTCP     = 1
	familyWireGuard = 2
	familyIPVS      = 3
	familyEthtool   = 4
	familyFOU       = 5
	familySEG6      = 6
	familyIOAM6     = 7
	familyMACsec    = 8
	familyL2TP      = 9
	familyILA       = 10
	familyTIPC      = 11
	familySMC       = 12
)

// family is what this package knows of one generic netlink family.
type family struct {
	number uint16
	name   string // in the kernel
	word   string // for people
	// capture reads the family's objects as requests that make them. It is called only if the kernel has the family.
	capture func(context.Context, conn) ([]rawnl.Message, error)
	// nests says for each command that a State may hold which attributes are nested.
	nests map[byte]rawnl.Nest
	// volatile removes from a message what changes without anybody setting it; nil if there is nothing.
	volatile func(rawnl.Message) rawnl.Message
	// describe renders a message; nil for a rendering in hex.
	describe func(m rawnl.Message, name func(int32) string) string
	// loss returns why an object can't be made; "" if it can be. nil if all can be.
	loss func(rawnl.Message) string
}

// families lists the families in the order in which their objects are made.
var families = []family{ethtool(), wireguard(), mptcp(), fou(), seg6(), ioam6(), ipvs(), ila(), macsec(), l2tp(), tipc(), smc()}

func lookup(number uint16) (family, bool) {
	if i := slices.IndexFunc(families, func(f family) bool { return f.number == number }); i >= 0 {
		return families[i], true
	}
	return family{}, false
}

// Capture reads the objects of all families in a namespace. links has the kinds of the namespace's links by index. A
// family that the kernel hasn't loaded has no objects.
func Capture(ctx context.Context, n *ns.NS, links map[int32]string) ([]rawnl.Message, error) {
	msgs, err := capture(ctx, n, links)
	if err != nil {
		return nil, fmt.Errorf("capture %w", err)
	}
	return msgs, nil
}

func capture(ctx context.Context, n *ns.NS, links map[int32]string) ([]rawnl.Message, error) {
	nl, err := rawnl.Dial(n, unix.NETLINK_GENERIC)
	if err != nil {
		return nil, err
	}
	defer nl.Close()
	ids, err := present(ctx, nl)
	if err != nil {
		return nil, err
	}
	var msgs []rawnl.Message
	for _, f := range families {
		id, ok := ids[f.name]
		if !ok {
			continue
		}
		some, err := f.capture(ctx, conn{n: n, nl: nl, id: id, family: f.number, links: links})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.word, err)
		}
		msgs = append(msgs, some...)
	}
	return msgs, nil
}

// Device returns the link whose settings a message holds; false if it is about something else. Such settings are made
// best before the link is up: some take its carrier away for a moment.
func Device(m rawnl.Message) (index int32, ok bool) {
	switch m.Type {
	case familyEthtool:
		return int32(rawnl.Uint32(rawnl.Get(rawnl.Get(attrsOf(m), ethtoolHeader), headerIndex))), true
	case familyWireGuard:
		return int32(rawnl.Uint32(rawnl.Get(attrsOf(m), wgAttrIndex))), true
	}
	return 0, false
}

// Plan turns a capture into the messages that make the same objects, on links that are there. What [Losses] names is
// left out. The error is [rawnl.ErrMalformed] if the messages can't be a capture.
func Plan(msgs []rawnl.Message) ([]rawnl.Message, error) {
	var plan []rawnl.Message
	for _, m := range msgs {
		if err := Validate(m); err != nil {
			return nil, fmt.Errorf("plan: %w", err)
		}
		if lossOf(m) == "" {
			plan = append(plan, m)
		}
	}
	return plan, nil
}

// Apply makes the objects of a plan. It is not atomic: after an error some objects may have been made. The error wraps
// [*rawnl.Error] and names the object that was refused.
func Apply(ctx context.Context, n *ns.NS, plan []rawnl.Message) error {
	if len(plan) == 0 {
		return nil
	}
	nl, err := rawnl.Dial(n, unix.NETLINK_GENERIC)
	if err != nil {
		return fmt.Errorf("apply: %w", err)
	}
	defer nl.Close()
	requests := slices.Clone(plan)
	ids := map[uint16]uint16{}
	for i, m := range plan {
		id, ok := ids[m.Type]
		if !ok {
			f, known := lookup(m.Type)
			if !known {
				return fmt.Errorf("apply: %w: family %d", rawnl.ErrMalformed, m.Type)
			}
			if id, err = resolve(ctx, nl, f.name); err != nil {
				return fmt.Errorf("apply %s: %w", f.word, err)
			}
			ids[m.Type] = id
		}
		requests[i].Type = id
	}
	if err := nl.Apply(ctx, requests); err != nil {
		return fmt.Errorf("apply: %w", rawnl.Named(err, plan, func(m rawnl.Message) string { return Describe(m, n.LinkName) }))
	}
	return nil
}

// Validate reports whether a message can be one of a capture: a request that makes an object of a family that this
// package carries, with well-formed attributes. Whether it makes sense is the kernel's to judge. The error is
// [rawnl.ErrMalformed].
func Validate(m rawnl.Message) error {
	f, ok := lookup(m.Type)
	if !ok {
		return fmt.Errorf("%w: generic netlink family %d", rawnl.ErrMalformed, m.Type)
	}
	if m.Flags != 0 || len(m.Data) < headerLen {
		return fmt.Errorf("%w: %s message of %d bytes with flags %#x", rawnl.ErrMalformed, f.word, len(m.Data), m.Flags)
	}
	nest, ok := f.nests[m.Data[0]]
	if !ok || m.Data[1] != 1 || m.Data[2] != 0 || m.Data[3] != 0 {
		return fmt.Errorf("%w: %s command % x", rawnl.ErrMalformed, f.word, m.Data[:headerLen])
	}
	if err := nest.Check(attrsOf(m)); err != nil {
		return fmt.Errorf("%s: %w", f.word, err)
	}
	return nil
}

// Normalize returns a message without what may differ between two equal objects, for comparison: what was counted or
// learned from packets.
func Normalize(m rawnl.Message) rawnl.Message {
	if f, ok := lookup(m.Type); ok && f.volatile != nil && len(m.Data) >= headerLen {
		return f.volatile(m)
	}
	return m.Clone()
}

// Describe renders a message as one line that starts with the family's word. Keys are not shown. name gives the names
// of devices. It takes any message and is meant for people.
func Describe(m rawnl.Message, name func(index int32) string) string {
	f, ok := lookup(m.Type)
	switch {
	case !ok || len(m.Data) < headerLen:
		return fmt.Sprintf("generic netlink message of family %d", m.Type)
	case f.describe == nil:
		return fmt.Sprintf("%s command %d %s", f.word, commandOf(m), hex.EncodeToString(attrsOf(m)))
	}
	return f.word + " " + f.describe(m, name)
}

// Losses returns one line for each object of a capture that [Plan] leaves out: what it is, starting with the family's
// word, a colon and the reason.
func Losses(msgs []rawnl.Message, name func(index int32) string) []string {
	var lines []string
	for _, m := range msgs {
		if reason := lossOf(m); reason != "" {
			lines = append(lines, strings.TrimSpace(Describe(m, name))+": "+reason)
		}
	}
	return lines
}

func lossOf(m rawnl.Message) string {
	f, ok := lookup(m.Type)
	if !ok || f.loss == nil || len(m.Data) < headerLen {
		return ""
	}
	return f.loss(m)
}

// Families returns the words of the families that are known, as [Describe] begins with them.
func Families() []string {
	var words []string
	for _, f := range families {
		words = append(words, f.word)
	}
	return words
}
