package nftables_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/nftables"
	"github.com/nsmigrate/nsmigrate/netstate/ns/nstest"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// What nft's language of today can't say, or only newer nft, is built here attribute by attribute.

func message(kind uint16, attrs ...[]byte) rawnl.Message {
	m := rawnl.Message{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | kind, Data: []byte{unix.NFPROTO_IPV4, 0, 0, 0}}
	for _, a := range attrs {
		m.Data = append(m.Data, a...)
	}
	return m
}

func str(kind uint16, s string) []byte { return rawnl.AppendAttr(nil, kind, append([]byte(s), 0)) }

func u32(kind uint16, v uint32) []byte {
	return rawnl.AppendAttr(nil, kind, binary.BigEndian.AppendUint32(nil, v))
}

func u64(kind uint16, v uint64) []byte {
	return rawnl.AppendAttr(nil, kind, binary.BigEndian.AppendUint64(nil, v))
}

func nest(kind uint16, attrs ...[]byte) []byte {
	var b []byte
	for _, a := range attrs {
		b = append(b, a...)
	}
	return rawnl.AppendAttr(nil, kind|unix.NLA_F_NESTED, b)
}

func expr(name string, attrs ...[]byte) []byte {
	return nest(unix.NFTA_LIST_ELEM, str(unix.NFTA_EXPR_NAME, name), nest(unix.NFTA_EXPR_DATA, attrs...))
}

func jump(chain string) []byte {
	verdict := int32(unix.NFT_JUMP)
	return expr("immediate", u32(unix.NFTA_IMMEDIATE_DREG, 0),
		nest(unix.NFTA_IMMEDIATE_DATA, nest(unix.NFTA_DATA_VERDICT, u32(unix.NFTA_VERDICT_CODE, uint32(verdict)), str(unix.NFTA_VERDICT_CHAIN, chain))))
}

func rule(chain string, exprs ...[]byte) rawnl.Message {
	return message(unix.NFT_MSG_NEWRULE, str(unix.NFTA_RULE_TABLE, "t"), str(unix.NFTA_RULE_CHAIN, chain), u64(unix.NFTA_RULE_HANDLE, 7), nest(unix.NFTA_RULE_EXPRESSIONS, exprs...))
}

func table(name string) rawnl.Message {
	return message(unix.NFT_MSG_NEWTABLE, str(unix.NFTA_TABLE_NAME, name), u32(unix.NFTA_TABLE_FLAGS, 0))
}

func boundChain(table, name string) rawnl.Message {
	return message(unix.NFT_MSG_NEWCHAIN, str(unix.NFTA_CHAIN_TABLE, table), str(unix.NFTA_CHAIN_NAME, name), u32(10, 4)) // NFTA_CHAIN_FLAGS, NFT_CHAIN_BINDING
}

func namedChain(table, name string) rawnl.Message {
	return message(unix.NFT_MSG_NEWCHAIN, str(unix.NFTA_CHAIN_TABLE, table), str(unix.NFTA_CHAIN_NAME, name))
}

// bound is a ruleset with chains without a name and expressions that have a memory.
func bound() []rawnl.Message {
	return []rawnl.Message{
		table("t"),
		namedChain("t", "c"),
		boundChain("t", "__chain5"),
		boundChain("t", "__chain6"),
		rule("c", expr("last", u32(1, 1), u64(2, 5000)), jump("__chain5")),
		rule("c", expr("counter", u64(1, 10), u64(2, 1))),
		rule("__chain5", jump("c2")),
		rule("__chain6", expr("quota", u64(unix.NFTA_QUOTA_BYTES, 100), u32(unix.NFTA_QUOTA_FLAGS, 3), u64(unix.NFTA_QUOTA_CONSUMED, 100))),
		rule("c", jump("__chain6")),
		namedChain("t", "c2"),
	}
}

func TestPlanBoundChains(t *testing.T) {
	plan, err := nftables.Plan(bound())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range plan {
		got = append(got, nftables.Describe(m))
	}
	const want = `table ip t
chain ip t c
chain ip t #1
chain ip t #2
chain ip t c2
rule ip t #1 [ immediate reg 0 jump c2 ]
rule ip t #2 [ quota bytes 100 flags 1 consumed 100 ]
rule ip t c [ last set 1 ago 5000 ] [ immediate reg 0 jump #1 ]
rule ip t c [ counter bytes 10 packets 1 ]
rule ip t c [ immediate reg 0 jump #2 ]`
	if text := strings.Join(got, "\n"); text != want {
		t.Errorf("got:\n%s", text)
	}
}

func TestMoveBoundChains(t *testing.T) {
	nstest.NeedRoot(t)
	from, to := nstest.New(t), nstest.New(t)
	plan, err := nftables.Plan(bound())
	if err != nil {
		t.Fatal(err)
	}
	if err := nftables.Apply(t.Context(), from, plan); err != nil {
		t.Fatal(err)
	}
	before := move(t, from, to)
	after, err := nftables.Capture(t.Context(), to)
	if err != nil {
		t.Fatal(err)
	}
	want, got := normal(before), normal(after)
	if strings.Join(want, "\n") != strings.Join(got, "\n") {
		t.Errorf("before:\n%q\nafter:\n%q", want, got)
	}
	var text strings.Builder
	for _, m := range after {
		text.WriteString(nftables.Describe(m) + "\n")
	}
	for _, want := range []string{"[ last set 1 ago ", "consumed 100"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in:\n%s", want, text.String())
		}
	}
}

// TestMoveOwnedTable: the table outlives our socket, and the loss of its owner is told.
func TestMoveOwnedTable(t *testing.T) {
	nstest.NeedRoot(t)
	for name, flags := range map[string]uint32{"owner": 2, "owner,persist": 6} {
		from, to := nstest.New(t), nstest.New(t)
		c, err := rawnl.Dial(from, unix.NETLINK_NETFILTER)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		owned := message(unix.NFT_MSG_NEWTABLE, str(unix.NFTA_TABLE_NAME, "mine"), u32(unix.NFTA_TABLE_FLAGS, flags))
		owned.Flags = unix.NLM_F_CREATE
		if err := c.Transaction(t.Context(), unix.NFNL_SUBSYS_NFTABLES, []rawnl.Message{owned}); errors.Is(err, unix.EOPNOTSUPP) {
			continue // a kernel before persist
		} else if err != nil {
			t.Fatal(err)
		}
		before := move(t, from, to)
		after, err := nftables.Capture(t.Context(), to)
		if err != nil || len(after) != 1 {
			t.Fatalf("%s: %d messages, %v", name, len(after), err)
		}
		if want, got := normal(before)[0], normal(after)[0]; want != got {
			t.Errorf("%s: before %q, after %q", name, want, got)
		}
		if losses := nftables.Losses(before); len(losses) != 1 || !strings.HasPrefix(losses[0], "table ip mine: ") {
			t.Errorf("%s: losses %q", name, losses)
		}
	}
}

// TestApplyNamesTheCulprit: a refusal says which object it is about, and nothing is left behind.
func TestApplyNamesTheCulprit(t *testing.T) {
	nstest.NeedRoot(t)
	n := nstest.New(t)
	plan, err := nftables.Plan([]rawnl.Message{table("t"), namedChain("t", "c"), rule("c", jump("nowhere"))})
	if err != nil {
		t.Fatal(err)
	}
	err = nftables.Apply(t.Context(), n, plan)
	if !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "rule ip t c [ immediate reg 0 jump nowhere ]") {
		t.Errorf("got %v", err)
	}
	if left, err := nftables.Capture(t.Context(), n); err != nil || len(left) != 0 {
		t.Errorf("%d messages left, %v", len(left), err)
	}
}

// TestCaptureDuringChange: a capture sees a ruleset that existed at some moment, or says that it didn't.
func TestCaptureDuringChange(t *testing.T) {
	nstest.NeedRoot(t)
	n := nstest.New(t)
	c, err := rawnl.Dial(n, unix.NETLINK_NETFILTER)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// One of two tables exists, with as many chains as it has rules.
	replace := func(gone, come string) error {
		var batch []rawnl.Message
		if gone != "" {
			batch = append(batch, message(unix.NFT_MSG_DELTABLE, str(unix.NFTA_TABLE_NAME, gone)))
		}
		batch = append(batch, table(come))
		for i := range 20 {
			name := fmt.Sprint("c", i)
			batch = append(batch, namedChain(come, name), message(unix.NFT_MSG_NEWRULE, str(unix.NFTA_RULE_TABLE, come), str(unix.NFTA_RULE_CHAIN, name),
				nest(unix.NFTA_RULE_EXPRESSIONS, expr("counter"))))
		}
		for i := range batch {
			batch[i].Flags = unix.NLM_F_CREATE
		}
		return c.Transaction(t.Context(), unix.NFNL_SUBSYS_NFTABLES, batch)
	}
	if err := replace("", "a"); err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			for _, names := range [][2]string{{"a", "b"}, {"b", "a"}} {
				if err := replace(names[0], names[1]); err != nil {
					done <- err
					return
				}
			}
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
		}
	}()
	consistent := 0
	for range 50 {
		msgs, err := nftables.Capture(t.Context(), n)
		if errors.Is(err, rawnl.ErrInterrupted) {
			continue
		}
		if err != nil || len(msgs) != 41 {
			t.Errorf("%d messages, %v", len(msgs), err)
			break
		}
		consistent++
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
	t.Logf("%d of 50 captures were consistent, the others said so", consistent)
}

func TestSplit(t *testing.T) {
	msgs := readCapture(t, "testdata/sets.capture")
	var whole, parts strings.Builder
	for _, m := range msgs {
		if !strings.HasPrefix(nftables.Describe(m), "element inet s plain ") {
			continue
		}
		whole.WriteString(nftables.Describe(m))
		for _, part := range nftables.Split(m) {
			if err := nftables.Validate(part); err != nil {
				t.Error(err)
			}
			parts.WriteString(nftables.Describe(part) + "\n")
		}
	}
	const want = "element inet s plain { 0x0a000001 }\nelement inet s plain { 0x0a000002 comment \"two\" }\nelement inet s plain { 0x0a000003 }\n"
	if parts.String() != want {
		t.Errorf("%s was split into:\n%s", whole.String(), parts.String())
	}
}
