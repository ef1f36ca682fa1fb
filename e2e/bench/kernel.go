package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate"
	"github.com/nsmigrate/nsmigrate/netstate/nftables"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// What the kernel itself takes for the objects of a scene, by requests that are ready and answers that nobody looks at:
// no tool can be faster.

// query is a request for a dump.
type query struct {
	protocol int
	request  rawnl.Message
}

func route(typ uint16, header []byte) query {
	return query{unix.NETLINK_ROUTE, rawnl.Message{Type: typ, Data: header}}
}

// drain has the kernel dump objects, and throws them away.
func drain(n *ns.NS, queries []query) (took time.Duration, err error) {
	buf := make([]byte, 1<<16)
	for _, q := range queries {
		fd := -1
		err := n.Do(func() (err error) {
			fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, q.protocol)
			return err
		})
		if err != nil {
			return 0, fmt.Errorf("open netlink socket: %w", err)
		}
		start := time.Now()
		err = dump(fd, q.request, buf)
		took += time.Since(start)
		unix.Close(fd)
		if err != nil {
			return 0, fmt.Errorf("dump: %w", err)
		}
	}
	return took, nil
}

func dump(fd int, m rawnl.Message, buf []byte) error {
	m.Flags = unix.NLM_F_REQUEST | unix.NLM_F_DUMP
	if err := unix.Sendto(fd, m.Append(nil, 1), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return err
		}
		for b := buf[:n]; len(b) >= rawnl.HeaderLen; {
			switch binary.NativeEndian.Uint16(b[4:]) {
			case unix.NLMSG_DONE:
				return nil
			case unix.NLMSG_ERROR:
				return unix.Errno(-int32(binary.NativeEndian.Uint32(b[rawnl.HeaderLen:])))
			}
			b = b[min(max(rawnl.Align(int(binary.NativeEndian.Uint32(b))), rawnl.HeaderLen), len(b)):]
		}
	}
}

// bare sends the requests that make a scene's objects, in a namespace that has what must be there before.
func (b *bench) bare(ctx context.Context, s *scene, state *netstate.State) (time.Duration, error) {
	n, err := b.fresh()
	if err != nil {
		return 0, err
	}
	if s.kind == netstate.KindNFTables {
		plan, err := nftables.Plan(state.Messages[s.kind])
		if err != nil {
			return 0, err
		}
		start := time.Now()
		err = nftables.Apply(ctx, n, plan)
		return time.Since(start), err
	}
	if s.kind != netstate.KindLink {
		if err := b.shell(ctx, n, s.stage); err != nil {
			return 0, err
		}
	}
	batches, err := netstate.Plan(state, netstate.Site{Present: map[string]bool{"lo": true}})
	if err != nil {
		return 0, err
	}
	var msgs []rawnl.Message
	for _, batch := range batches {
		for _, op := range batch.Ops {
			if op.Kind == s.kind && len(op.Msg.Data) > 0 {
				msgs = append(msgs, op.Msg)
			}
		}
	}
	nl, err := rawnl.Dial(n, unix.NETLINK_ROUTE)
	if err != nil {
		return 0, err
	}
	defer nl.Close()
	refused := 0 // a few come with others
	start := time.Now()
	err = nl.ApplyEach(ctx, msgs, func(*rawnl.Error) { refused++ })
	took := time.Since(start)
	if err == nil && refused > 20 {
		err = fmt.Errorf("the kernel refused %d of %d requests", refused, len(msgs))
	}
	return took, err
}
