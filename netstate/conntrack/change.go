package conntrack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/nfnl"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// changes are the requests that bring entries from one capture to the next.
type changes struct {
	deletes []rawnl.Message
	updates []rawnl.Message // of entries that are there; the request of the same place in creates makes such an entry
	creates []rawnl.Message // the updated entries first, then the new ones
	// forget are the expectations to remove, and expects those to make. That is all of them: their life passes, and
	// they end with their masters.
	forget, expects []rawnl.Message
}

// Update brings the entries and expectations of a namespace that has those of an earlier capture to the next one. gone
// are the messages that the next capture doesn't have, come are those that the earlier one doesn't have: an entry whose
// life was prolonged is in both. What is there already of new entries is replaced, and what is gone already is no
// error. It is not atomic. The error wraps [*rawnl.Error] and names the entry that was refused.
func Update(ctx context.Context, n *ns.NS, gone, come, next []rawnl.Message) error {
	plan, err := change(gone, come, next)
	if err != nil {
		return err
	}
	c, err := rawnl.Dial(n, unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("update conntrack: %w", err)
	}
	defer c.Leave()
	if err := plan.apply(ctx, c); err != nil {
		return fmt.Errorf("update conntrack: %w", err)
	}
	return nil
}

func (p *changes) apply(ctx context.Context, c *rawnl.Conn) error {
	creates := p.creates[len(p.updates):]
	refused := func(e *rawnl.Error) { creates = append(creates, p.creates[e.Index]) }
	if err := each(ctx, c, "delete", slices.Concat(p.forget, p.deletes), unix.ENOENT); err != nil {
		return err
	}
	// An entry that timed out here is made anew, and so is one that is another connection of the same ends by now: what
	// was agreed on in a connection can't be taken back.
	if err := c.ApplyEach(ctx, p.updates, refused); err != nil {
		return err
	}
	for range applyTries {
		var taken []rawnl.Message
		if err := c.ApplyEach(ctx, creates, func(e *rawnl.Error) { taken = append(taken, creates[e.Index]) }); err != nil {
			return err
		}
		if creates = taken; len(taken) == 0 {
			break
		}
		deletes := make([]rawnl.Message, len(taken))
		for i, m := range taken {
			deletes[i] = remove(m)
		}
		if err := each(ctx, c, "delete", deletes, unix.ENOENT); err != nil {
			return err
		}
	}
	if err := each(ctx, c, "add", creates, 0); err != nil {
		return err
	}
	return each(ctx, c, "add", p.expects, 0)
}

// each sends messages that do not depend on each other. The first refusal is the error, except for one that is as good
// as success.
func each(ctx context.Context, c *rawnl.Conn, verb string, msgs []rawnl.Message, good unix.Errno) error {
	var first error
	err := c.ApplyEach(ctx, msgs, func(e *rawnl.Error) {
		if e.Errno != good && first == nil {
			first = fmt.Errorf("%s %s: %w", verb, Describe(msgs[e.Index]), e)
		}
	})
	return errors.Join(err, first)
}

// change decides what to do with each entry.
func change(gone, come, next []rawnl.Message) (*changes, error) {
	for _, m := range come {
		if err := Validate(m); err != nil {
			return nil, fmt.Errorf("plan conntrack: %w", err)
		}
	}
	p := &changes{}
	was := make(map[string]rawnl.Message, len(gone))
	for _, m := range gone {
		if m.Type == typeEntry {
			was[string(key(m))] = m
		} else {
			p.forget = append(p.forget, remove(inMastersZone(m, next)))
		}
	}
	var made []rawnl.Message
	for _, m := range mastersFirst(come, next) {
		old, there := was[string(key(m))]
		delete(was, string(key(m)))
		switch {
		case there && alike(old, m):
			p.creates = append(p.creates, create(m))
			p.updates = append(p.updates, update(p.creates[len(p.creates)-1]))
		case there:
			p.deletes = append(p.deletes, remove(old))
			fallthrough
		default:
			made = append(made, create(m))
		}
	}
	p.creates = append(p.creates, made...)
	for _, m := range gone {
		if _, left := was[string(key(m))]; left && m.Type == typeEntry {
			p.deletes = append(p.deletes, remove(m))
		}
	}
	p.expects = expectations(next)
	for _, m := range p.expects {
		p.forget = append(p.forget, remove(m))
	}
	return p, nil
}

// alike reports whether a captured entry can become another one where it is: translation, helper and master can't be
// changed (ctnetlink_change_conntrack), and an attribute can't be taken away.
func alike(old, m rawnl.Message) bool {
	for a := range rawnl.Each(nfnl.Attrs(old)) {
		now := rawnl.Get(nfnl.Attrs(m), a.Kind())
		fixed := slices.Contains([]uint16{ctaTupleReply, ctaTupleMaster, ctaHelp}, a.Kind())
		if now == nil || fixed && !bytes.Equal(now, a.Data) {
			return false
		}
	}
	for _, kind := range []uint16{ctaTupleMaster, ctaHelp} {
		if rawnl.Get(nfnl.Attrs(m), kind) != nil && rawnl.Get(nfnl.Attrs(old), kind) == nil {
			return false
		}
	}
	return true
}

// update returns the request that changes an entry which is there into one that a request creates.
func update(create rawnl.Message) rawnl.Message {
	attrs := without(nfnl.Attrs(create), ctaTupleReply, ctaNATSrc, ctaNATDst, ctaTupleMaster, ctaHelp)
	return request(create.Type, nfnl.Family(create), rawnl.EncodeAttrs(attrs))
}

// remove returns the request that deletes an entry or expectation.
func remove(m rawnl.Message) rawnl.Message {
	tuple, zone := uint16(ctaTupleOrig), uint16(ctaZone)
	if m.Type == typeExpect {
		tuple, zone = expectTuple, expectZone
	}
	attrs := rawnl.AppendAttr(nil, tuple|unix.NLA_F_NESTED, rawnl.Get(nfnl.Attrs(m), tuple))
	if id := rawnl.Get(nfnl.Attrs(m), zone); id != nil {
		attrs = rawnl.AppendAttr(attrs, zone, id)
	}
	return request(m.Type|requestDelete, nfnl.Family(m), attrs)
}
