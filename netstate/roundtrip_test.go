package netstate_test

import (
	"bytes"
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/nsmigrate/nsmigrate/netstate"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/ns/nstest"
)

// patience is how long a test waits for what the kernel does by itself: more than it takes on a busy machine, and in a
// virtual machine without hardware acceleration.
const patience = 3 * time.Minute

// needRoot skips a test that makes namespaces. In CI the lack of root is a failure.
func needRoot(tb testing.TB) { tb.Helper(); nstest.NeedRoot(tb) }

// newNS makes a namespace for the test.
func newNS(tb testing.TB) *ns.NS {
	tb.Helper()
	n, err := ns.Create()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { n.Close() })
	return n
}

// sh runs shell commands inside a namespace; further namespaces are open as descriptors 3, 4 ...
func sh(tb testing.TB, n *ns.NS, script string, others ...*ns.NS) string {
	tb.Helper()
	var out []byte
	err := n.Do(func() error {
		cmd := exec.Command("sh", "-euc", script)
		for _, o := range others {
			cmd.ExtraFiles = append(cmd.ExtraFiles, o.File())
		}
		var err error
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil {
		tb.Fatalf("%s\n%s: %v", script, out, err)
	}
	return string(out)
}

func capture(tb testing.TB, n, host *ns.NS) *netstate.State {
	tb.Helper()
	s, err := netstate.Capture(context.Background(), n, netstate.CaptureOptions{Host: host})
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// reread writes and reads a state, as it travels.
func reread(tb testing.TB, s *netstate.State) *netstate.State {
	tb.Helper()
	var b bytes.Buffer
	if _, err := s.WriteTo(&b); err != nil {
		tb.Fatal(err)
	}
	again, err := netstate.ReadState(&b)
	if err != nil {
		tb.Fatal(err)
	}
	return again
}

// checkDiff compares two captures; the second is repeated for a while, because the kernel finishes some of
// its own work (local routes of IPv6 addresses, carrier) a little later.
func checkDiff(tb testing.TB, want *netstate.State, again func() *netstate.State) {
	tb.Helper()
	var changes []netstate.Change
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if changes = netstate.Diff(want, again()); len(changes) == 0 {
			return
		}
	}
	var lines []string
	for _, c := range changes {
		lines = append(lines, c.String())
	}
	tb.Errorf("the states differ:\n%s", strings.Join(lines, "\n"))
}
