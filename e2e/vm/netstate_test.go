package vm_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/e2e/vm"
)

// testKinds runs those of netstate's tests of moved namespaces that a pattern names where all kinds of links and
// objects are: those that the machine's own kernel lacks are skipped there.
func testKinds(pattern string) func(*testing.T, lane) {
	return func(t *testing.T, l lane) {
		// Each module of a tunnel puts a fallback device into every namespace that is made, whose parameters take
		// long to read: only their own test has them.
		l.test(t, "sysctl -qw net.core.fb_tunnels_only_for_init_net=1; modprobe -a fou fou6 mpls_iptunnel l2tp_eth ip_set ip_vs",
			testRun{"netstate", "^TestKinds$/" + pattern, "^TestKinds$/^fallback"})
	}
}

// testFallback runs those tests that need or change the fallback devices that each module of a tunnel puts into every
// namespace, and finds the programs that are attached to links of a kind that only such a kernel has.
func testFallback(t *testing.T, l lane) {
	l.test(t, "modprobe -a ip_gre ip6_gre ipip ip6_tunnel sit ip_vti ip6_vti mpls_iptunnel",
		testRun{"netstate", "^TestKinds$/^fallback", ""}, testRun{"netstate", "^TestFallbackDevices$", ""},
		testRun{"netstate", "^TestLossBPFNetkit$", ""})
}

// testFamilies runs the tests of the packages below netstate that carry a family of objects each: most qdiscs, IPsec,
// WireGuard and IPVS are not in the machine's own kernel.
func testFamilies(t *testing.T, l lane) {
	var runs []testRun
	for _, name := range families() {
		runs = append(runs, testRun{filepath.Base(name), ".", ""})
	}
	l.test(t, "modprobe -a fou fou6 ip_set ip_vs", runs...)
}

func families() []string {
	return []string{"netstate/tc", "netstate/ipset", "netstate/netfilter", "netstate/xfrm", "netstate/genl"}
}

// testRun is a run of a package's tests.
type testRun struct{ program, run, skip string }

// test runs tests in a guest, which a script prepares: it loads the modules that nothing loads when they are needed.
func (l lane) test(t *testing.T, prepare string, runs ...testRun) {
	for _, r := range runs {
		// A program is mapped from memory, not from the shared directory, which keeps nothing in memory.
		prepare += "; cp -u " + filepath.Join(l.share, r.program+".test") + " /tmp"
	}
	var outputs []*bytes.Buffer
	err := l.alone(t, func(ctx context.Context, m *vm.Machine) error {
		outputs = nil
		if _, err := m.Shell(ctx, prepare); err != nil {
			return err
		}
		var failed error
		for _, r := range runs {
			out := new(bytes.Buffer)
			outputs = append(outputs, out)
			err := m.Run(ctx, vm.Command{
				// More at a time than there are processors: most of the time they wait for the kernel.
				Args: []string{
					"/tmp/" + r.program + ".test", "-test.v=test2json", "-test.parallel=4", "-test.timeout=15m",
					"-test.run=" + r.run, "-test.skip=" + r.skip,
				},
				Env:    []string{"NSMIGRATE_VM=1", "CI=true"},
				Output: out,
			})
			if err != nil && !errors.As(err, new(*vm.ExitError)) {
				return err
			}
			failed = errors.Join(failed, err)
		}
		return failed
	})
	tests, failed := 0, false
	for i, out := range outputs {
		n, bad := report(t, runs[i].program, out.Bytes())
		tests, failed = tests+n, failed || bad
	}
	if err != nil && !(failed && errors.As(err, new(*vm.ExitError))) {
		t.Error(err)
	}
	if tests == 0 {
		t.Error("there was no test to run")
	}
}

// report makes a subtest of each test that ran in a guest. It returns how many ended, and whether one failed.
func report(t *testing.T, program string, output []byte) (ended int, failed bool) {
	cmd := exec.Command("go", "tool", "test2json")
	cmd.Stdin = bytes.NewReader(output)
	events, err := cmd.Output()
	if err != nil {
		t.Fatalf("test2json: %v", err)
	}
	text := map[string]*strings.Builder{}
	for in := json.NewDecoder(bytes.NewReader(events)); ; {
		var e struct{ Action, Test, Output string }
		if err := in.Decode(&e); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("test2json: %v", err)
		}
		if e.Test == "" {
			continue
		}
		if text[e.Test] == nil {
			text[e.Test] = &strings.Builder{}
		}
		text[e.Test].WriteString(e.Output)
		switch e.Action {
		case "pass", "fail", "skip":
			ended++
			failed = failed || e.Action == "fail"
			t.Run(program+"/"+e.Test, func(t *testing.T) {
				t.Log(text[e.Test].String())
				switch e.Action {
				case "fail":
					t.Fail()
				case "skip":
					t.SkipNow()
				}
			})
			delete(text, e.Test)
		}
	}
	for name, out := range text {
		t.Errorf("%s did not end:\n%s", name, out)
	}
	return ended, failed
}
