package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// millionFlag makes the bench a process that moves routes and does nothing else, so that its peak of memory is
// that of the move.
const millionFlag = "move-routes"

// peakMax is how much memory a million routes may take.
const peakMax = 512

// moved is what that process tells.
type moved struct {
	Capture, Write, Read, Build float64 // milliseconds
	Captured, Peak              float64 // MiB that the process had at most, after the capture and in the end
}

// many moves very many routes, once: with so many objects one round is a mean already.
func (b *bench) many(ctx context.Context) ([]Result, error) {
	source, err := b.fresh()
	if err != nil {
		return nil, err
	}
	if err := b.shell(ctx, source, twoEnds); err != nil {
		return nil, err
	}
	if err := addRoutes(ctx, source, b.routes); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, "-"+millionFlag, strconv.Itoa(b.routes))
	cmd.ExtraFiles = []*os.File{source.File()}
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, err
	}
	var m moved
	if err := json.Unmarshal(out, &m); err != nil {
		return nil, err
	}
	one := func(v float64) Sample { return sampleOf([]float64{v}) }
	name := fmt.Sprintf("%d routes: ", b.routes)
	return []Result{
		{Name: name + "capture", Unit: "ms", Ours: one(m.Capture)},
		{Name: name + "write", Unit: "ms", Ours: one(m.Write)},
		{Name: name + "read", Unit: "ms", Ours: one(m.Read)},
		{Name: name + "build", Unit: "ms", Ours: one(m.Build)},
		within(name+"peak memory of capture", "MiB", one(m.Captured), peakMax),
		within(name+"peak memory in all", "MiB", one(m.Peak), peakMax),
	}, nil
}

// addRoutes fills a namespace; ip -batch would take half a minute.
func addRoutes(ctx context.Context, n *ns.NS, count int) error {
	nl, err := rawnl.Dial(n, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer nl.Close()
	var msgs []rawnl.Message
	for i := range count {
		m := rawnl.Message{Type: unix.RTM_NEWROUTE, Flags: unix.NLM_F_CREATE, Data: []byte{
			unix.AF_INET, 28, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST, 0, 0, 0, 0,
		}}
		m.Data = rawnl.AppendAttr(m.Data, unix.RTA_DST, binary.BigEndian.AppendUint32(nil, 100<<24+uint32(i)<<4))
		m.Data = rawnl.AppendAttr(m.Data, unix.RTA_GATEWAY, []byte{10, 0, 0, 9})
		msgs = append(msgs, m)
		if len(msgs) == 10_000 || i == count-1 {
			if err := nl.Apply(ctx, msgs); err != nil {
				return err
			}
			msgs = msgs[:0]
		}
	}
	return nil
}

// moveMany captures the namespace at descriptor 3, stores the state in a file, reads it again and builds it, each
// step with nothing left over from the one before.
func moveMany(ctx context.Context, count int, out io.Writer) error {
	source, err := ns.Open("/proc/self/fd/3")
	if err != nil {
		return err
	}
	defer source.Close()
	host, err := ns.Create()
	if err != nil {
		return err
	}
	defer host.Close()
	target, err := ns.Create()
	if err != nil {
		return err
	}
	defer target.Close()
	file, err := os.CreateTemp("", "nsmigrate-bench")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	defer file.Close()

	var m moved
	var s *netstate.State
	steps := []struct {
		took *float64
		run  func() error
	}{
		{&m.Capture, func() (err error) {
			s, err = netstate.Capture(ctx, source, netstate.CaptureOptions{Host: host})
			return err
		}},
		{&m.Write, func() error {
			m.Captured, err = peak()
			_, werr := s.WriteTo(file)
			return errors.Join(err, werr)
		}},
		{&m.Read, func() (err error) {
			if _, err := file.Seek(0, io.SeekStart); err != nil {
				return err
			}
			s = nil
			s, err = netstate.ReadState(file)
			return err
		}},
		{&m.Build, func() error { return netstate.Build(ctx, target, s, netstate.BuildOptions{Host: host}) }},
	}
	for _, step := range steps {
		start := time.Now()
		if err := step.run(); err != nil {
			return err
		}
		*step.took = float64(time.Since(start)) / float64(time.Millisecond)
	}
	if n := len(s.Messages[netstate.KindRoute]); n < count {
		return fmt.Errorf("moved %d of %d routes", n, count)
	}
	if m.Peak, err = peak(); err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(m)
}

// peak returns the most memory that this process ever had, in MiB.
func peak() (float64, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	found := regexp.MustCompile(`VmHWM:\s*(\d+) kB`).FindSubmatch(bytes.TrimSpace(status))
	if found == nil {
		return 0, errors.New("the kernel does not tell the peak of memory")
	}
	kb, err := strconv.ParseFloat(string(found[1]), 64)
	return kb / 1024, err
}
