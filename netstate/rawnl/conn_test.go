package rawnl_test

import (
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns/nstest"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// dial opens a route socket in a new namespace.
func dial(tb testing.TB) *rawnl.Conn {
	tb.Helper()
	nstest.NeedRoot(tb)
	n := nstest.New(tb)
	c, err := rawnl.Dial(n, unix.NETLINK_ROUTE)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

func addLink(name, kind string) rawnl.Message {
	b := make([]byte, unix.SizeofIfInfomsg)
	b = rawnl.AppendAttr(b, unix.IFLA_IFNAME, append([]byte(name), 0))
	b = rawnl.AppendAttr(b, unix.IFLA_LINKINFO, rawnl.AppendAttr(nil, unix.IFLA_INFO_KIND, []byte(kind)))
	return rawnl.Message{Type: unix.RTM_NEWLINK, Flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, Data: b}
}

// loRoute is a route to 10.x.y.0/24 through lo.
func loRoute(n int) rawnl.Message {
	b := make([]byte, unix.SizeofRtMsg)
	b[0], b[1], b[4], b[5], b[6], b[7] = unix.AF_INET, 24, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, unix.RT_SCOPE_LINK, unix.RTN_UNICAST
	b = rawnl.AppendAttr(b, unix.RTA_DST, []byte{10, byte(n >> 8), byte(n), 0})
	b = rawnl.AppendAttr(b, unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, 1))
	return rawnl.Message{Type: unix.RTM_NEWROUTE, Flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, Data: b}
}

func TestApplyAndDump(t *testing.T) {
	c, ctx := dial(t), context.Background()
	up := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(up[4:], 1)
	binary.NativeEndian.PutUint32(up[8:], unix.IFF_UP)
	binary.NativeEndian.PutUint32(up[12:], unix.IFF_UP)
	msgs := []rawnl.Message{{Type: unix.RTM_NEWLINK, Data: up}}
	const routes = 20000 // several system calls of requests, many datagrams of acknowledgements
	for i := range routes {
		msgs = append(msgs, loRoute(i))
	}
	if err := c.Apply(ctx, msgs); err != nil {
		t.Fatal(err)
	}
	req := rawnl.Message{Type: unix.RTM_GETROUTE, Data: make([]byte, unix.SizeofRtMsg)}
	req.Data[0] = unix.AF_INET
	have, err := c.Dump(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, m := range have {
		if m.Data[5] == unix.RTPROT_STATIC {
			count++
		}
	}
	if count != routes {
		t.Errorf("%d routes dumped of %d", count, routes)
	}
}

func TestApplyRefused(t *testing.T) {
	c, ctx := dial(t), context.Background()
	bad := addLink("b0", "bridge")
	msgs := []rawnl.Message{addLink("a0", "bridge"), bad, bad, addLink("c0", "no-such-kind"), addLink("d0", "bridge")}
	err := c.Apply(ctx, msgs)
	refused, ok := errors.AsType[*rawnl.Error](err)
	if !ok || refused.Index != 2 || !errors.Is(err, unix.EEXIST) {
		t.Errorf("got %v, want EEXIST of message 2", err)
	}
	var all []int
	err = c.ApplyEach(ctx, msgs[2:], func(e *rawnl.Error) {
		all = append(all, e.Index)
		if e.Index == 1 && !strings.Contains(e.Error(), "Unknown device type") {
			t.Errorf("no text of the kernel in %q", e)
		}
	})
	if err != nil || len(all) != 3 {
		t.Errorf("refused %v, %v; want messages 0, 1 and 2", all, err)
	}
}

func TestRequest(t *testing.T) {
	c, ctx := dial(t), context.Background()
	get := func(index uint32) rawnl.Message {
		b := make([]byte, unix.SizeofIfInfomsg)
		binary.NativeEndian.PutUint32(b[4:], index)
		return rawnl.Message{Type: unix.RTM_GETLINK, Data: b}
	}
	msgs, err := c.Request(ctx, get(1))
	if err != nil || len(msgs) != 1 || rawnl.CString(rawnl.Get(msgs[0].Data[unix.SizeofIfInfomsg:], unix.IFLA_IFNAME)) != "lo" {
		t.Errorf("got %v, %v", msgs, err)
	}
	if _, err := c.Request(ctx, get(99)); !errors.Is(err, unix.ENODEV) {
		t.Errorf("got %v, want ENODEV", err)
	}
	done, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := c.Request(done, get(1)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want that it was cancelled", err)
	}
	if _, err := c.Request(ctx, get(1)); err != nil { // the abandoned answer is skipped
		t.Error(err)
	}
}

// TestDumpTooLarge: where the kernel says that it can't show an object, so does the error.
func TestDumpTooLarge(t *testing.T) {
	c, ctx := dial(t), context.Background()
	up := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(up[4:], 1)
	binary.NativeEndian.PutUint32(up[8:], unix.IFF_UP)
	binary.NativeEndian.PutUint32(up[12:], unix.IFF_UP)
	msgs := []rawnl.Message{{Type: unix.RTM_NEWLINK, Data: up}}
	nexthop := func(family byte, id uint32, kind uint16, value []byte) {
		b := []byte{family, 0, unix.RTPROT_STATIC, 0, 0, 0, 0, 0} // struct nhmsg
		b = rawnl.AppendAttr(b, unix.NHA_ID, binary.NativeEndian.AppendUint32(nil, id))
		msgs = append(msgs, rawnl.Message{Type: unix.RTM_NEWNEXTHOP, Flags: unix.NLM_F_CREATE, Data: rawnl.AppendAttr(b, kind, value)})
	}
	var group []byte // of struct nexthop_grp
	for id := uint32(1); id <= 5000; id++ {
		nexthop(unix.AF_INET, id, unix.NHA_OIF, []byte{1, 0, 0, 0})
		group = append(binary.NativeEndian.AppendUint32(group, id), 0, 0, 0, 0)
	}
	nexthop(unix.AF_UNSPEC, 6000, unix.NHA_GROUP, group)
	if err := c.Apply(ctx, msgs); err != nil {
		t.Fatal(err)
	}
	_, err := c.Dump(ctx, rawnl.Message{Type: unix.RTM_GETNEXTHOP, Data: make([]byte, 8)})
	if !errors.Is(err, unix.EMSGSIZE) || !strings.Contains(err.Error(), "larger than the largest message") {
		t.Errorf("error %v", err)
	}
}
