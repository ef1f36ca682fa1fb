package nftables_test

import (
	"bytes"
	"context"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nsmigrate/nsmigrate/netstate/iptables"
	"github.com/nsmigrate/nsmigrate/netstate/nftables"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/ns/nstest"
)

// The test suites of nftables and iptables hold hundreds of rulesets that their authors found worth a test.
// They are not part of this repository. NSMIGRATE_CORPUS is a directory with unpacked sources of both, or 1: then apt
// fetches and verifies what the mirror has that this machine is configured for, as `make corpus` does. Mirrors list
// sources that they don't hold, so what is not to be had is a skip, whatever the machine.

// needCorpus skips the test unless somebody asks for it.
func needCorpus(t *testing.T) (dir string) {
	t.Helper()
	switch dir = os.Getenv("NSMIGRATE_CORPUS"); dir {
	case "":
		t.Skip("NSMIGRATE_CORPUS is not set: make corpus")
	case "1":
		return ""
	}
	return dir
}

// source returns the unpacked source of a Debian package.
func source(t *testing.T, name string) string {
	t.Helper()
	if corpus := needCorpus(t); corpus != "" {
		found, err := filepath.Glob(filepath.Join(corpus, name+"*"))
		if err != nil || len(found) == 0 {
			t.Fatalf("no source of %s in %s, %v", name, corpus, err)
		}
		return found[0]
	}
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", aptSource, "bash", dir, name)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("apt has no source of %s here: %v\n%s", name, err, out)
	}
	return filepath.Join(dir, "source")
}

// aptSource fetches a source package with the machine's own sources and keys, in a state of apt of its own: only
// the kind of what is wanted differs.
const aptSource = `
	dir=$1
	mkdir -p "$dir"/{parts,lists/partial,cache/archives/partial}
	for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
		[ ! -e "$file" ] || sed -n 's/^deb /deb-src /p' "$file" >"$dir/parts/$(basename "$file" .list)-list.list"
	done
	for file in /etc/apt/sources.list.d/*.sources; do
		[ ! -e "$file" ] || sed 's/^Types:.*/Types: deb-src/' "$file" >"$dir/parts/$(basename "$file")"
	done
	apt() {
		apt-get -q -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$dir/parts" -o APT::Sandbox::User=root \
			-o Dir::State::Lists="$dir/lists" -o Dir::Cache="$dir/cache" "$@"
	}
	apt -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 -o Acquire::Retries=1 update
	apt source --download-only "$2"
	dpkg-source --no-check -x ./*.dsc source
`

// tally counts what became of the rulesets of a corpus.
type tally struct {
	total, loaded, same int
	others              map[string]int // why the rest did not come through
}

func newTally() *tally { return &tally{others: map[string]int{}} }

func (c *tally) fail(why string) { c.others[why]++ }

func (c *tally) report(t *testing.T, corpus string) {
	t.Logf("%s: %d rulesets, %d accepted by this kernel and tool, %d came through identically", corpus, c.total, c.loaded, c.same)
	for _, why := range slices.Sorted(maps.Keys(c.others)) {
		t.Logf("%6d %s", c.others[why], why)
	}
	if c.loaded == 0 {
		t.Errorf("%s: nothing was tested", corpus)
	}
}

// try runs a command inside a namespace that may refuse it, and returns its output.
func try(n *ns.NS, stdin string, name string, args ...string) (string, error) {
	var out bytes.Buffer
	err := n.Do(func() error {
		cmd := exec.Command(name, args...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &out
		return cmd.Run()
	})
	return out.String(), err
}

// transfer moves a ruleset and returns why the copy differs, or "".
func transfer(t *testing.T, from, to *ns.NS) string {
	ctx := context.Background()
	before, err := nftables.Capture(ctx, from)
	if err != nil {
		return "capture: " + err.Error()
	}
	for _, m := range before {
		if err := nftables.Validate(m); err != nil {
			return "validate: " + err.Error()
		}
	}
	plan, err := nftables.Plan(before)
	if err != nil {
		return "plan: " + err.Error()
	}
	if err := nftables.Apply(ctx, to, plan); err != nil {
		return "apply: " + err.Error()
	}
	after, err := nftables.Capture(ctx, to)
	if err != nil {
		return "capture: " + err.Error()
	}
	if !slices.Equal(normal(before), normal(after)) {
		return "the second capture differs:\n" + diff(strings.Join(normal(before), "\n"), strings.Join(normal(after), "\n"))
	}
	if want, got := list(t, from), list(t, to); want != got {
		return "nft lists another ruleset:\n" + diff(want, got)
	}
	return ""
}

// TestCorpusExamples moves the examples that nftables installs.
func TestCorpusExamples(t *testing.T) {
	needCorpus(t)
	nstest.NeedRoot(t, "nft", "ip")
	files, err := filepath.Glob("/usr/share/doc/nftables/examples/*.nft")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 { // as in many images of containers
		t.Skip("nftables was installed without its documentation, and so without its examples")
	}
	c := newTally()
	for _, file := range files {
		c.file(t, file)
	}
	c.report(t, "examples of nftables")
}

// TestCorpusNFTables moves the dumps of nftables' shell tests.
func TestCorpusNFTables(t *testing.T) {
	needCorpus(t)
	nstest.NeedRoot(t, "nft", "ip")
	dir := source(t, "nftables")
	c := newTally()
	err := filepath.WalkDir(filepath.Join(dir, "tests/shell/testcases"), func(path string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".nft" || filepath.Base(filepath.Dir(path)) != "dumps" {
			return err
		}
		c.file(t, path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	c.report(t, "tests of nftables")
}

// file moves the ruleset of a file.
func (c *tally) file(t *testing.T, path string) {
	c.total++
	from, to := nstest.New(t), nstest.New(t)
	defer from.Close()
	defer to.Close()
	for _, n := range []*ns.NS{from, to} {
		run(t, n, "sh", "-ec", "ip link set lo up; for d in d0 dummy0 veth0 eth0 eth1 test wlan0; do ip link add $d type ifb; ip link set $d up; done")
	}
	if out, err := try(from, "", "nft", "-f", path); err != nil {
		c.fail("refused by nft: " + reason(out))
		return
	}
	c.loaded++
	if why := transfer(t, from, to); why != "" {
		c.fail("NOT IDENTICAL")
		t.Errorf("%s: %s", filepath.Base(path), why)
		return
	}
	c.same++
}

// reason shortens what a tool says of a ruleset to what several rulesets have in common.
func reason(out string) string {
	line, _, _ := strings.Cut(out, "\n")
	if _, after, ok := strings.Cut(line, "rror: "); ok {
		line = after
	}
	if len(line) > 90 {
		line = line[:90]
	}
	return line
}

// extensionTest is a rule of iptables' test suite.
type extensionTest struct{ table, chain, rule string }

// extensionTests reads the rules of a file that are valid. A line is "rule; how it is listed; OK or FAIL", after
// one ":CHAIN,..." and "*table" that it belongs to.
func extensionTests(t *testing.T, file string) []extensionTest {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var tests []extensionTest
	at := extensionTest{table: "filter"}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '*':
			at.table = line[1:]
		case line[0] == ':':
			at.chain, _, _ = strings.Cut(line[1:], ",")
		default:
			if parts := strings.Split(line, ";"); len(parts) >= 3 && parts[2] == "OK" {
				at.rule = parts[0]
				tests = append(tests, at)
			}
		}
	}
	return tests
}

// TestCorpusIPTables moves the rules of iptables' extensions, made by its two implementations.
func TestCorpusIPTables(t *testing.T) {
	needCorpus(t)
	nstest.NeedRoot(t, "iptables-nft", "iptables-legacy")
	dir := source(t, "iptables")
	files, err := filepath.Glob(filepath.Join(dir, "extensions/*.t"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	moves := map[string]func(*testing.T, *ns.NS, *ns.NS) string{"nft": transfer, "legacy": transferLegacy}
	for _, kind := range []string{"nft", "legacy"} {
		c := newTally()
		for _, file := range files {
			for _, tool := range toolsFor(filepath.Base(file), kind) {
				from, to := nstest.New(t), nstest.New(t)
				loaded := 0
				for _, test := range extensionTests(t, file) {
					c.total++
					out, err := try(from, "*"+test.table+"\n-A "+test.chain+" "+test.rule+"\nCOMMIT\n", tool+"-restore", "--noflush")
					if err != nil {
						c.fail("refused by " + tool + ": " + reason(out))
						continue
					}
					loaded++
				}
				c.loaded += loaded
				if why := moves[kind](t, from, to); why != "" {
					c.others["NOT IDENTICAL"] += loaded
					t.Errorf("%s, %s: %s", filepath.Base(file), tool, why)
				} else {
					c.same += loaded
				}
				from.Close()
				to.Close()
			}
		}
		c.report(t, "iptables-"+kind)
	}
}

// toolsFor returns the tools that an extension's tests are for.
func toolsFor(file, kind string) []string {
	prefix, _, _ := strings.Cut(file, "_")
	switch {
	case prefix == "libipt":
		return []string{"iptables-" + kind}
	case prefix == "libip6t":
		return []string{"ip6tables-" + kind}
	case prefix == "libxt":
		return []string{"iptables-" + kind, "ip6tables-" + kind}
	case prefix == "libebt" && kind == "nft":
		return []string{"ebtables-nft"}
	case prefix == "libarpt" && kind == "nft":
		return []string{"arptables-nft"}
	}
	return nil
}

// transferLegacy is transfer for the tables of legacy iptables.
func transferLegacy(t *testing.T, from, to *ns.NS) string {
	ctx := context.Background()
	before, err := iptables.Capture(ctx, from)
	if err != nil {
		return "capture: " + err.Error()
	}
	if err := iptables.Apply(ctx, to, before); err != nil {
		return "apply: " + err.Error()
	}
	for _, tool := range []string{"iptables-legacy-save", "ip6tables-legacy-save"} {
		want, got := sortTables(run(t, from, tool)), sortTables(run(t, to, tool))
		if want != got && len(before) > 0 {
			return tool + " lists another ruleset:\n" + diff(want, got)
		}
	}
	return ""
}

// sortTables brings the tables of a ruleset, which are listed as they came to be, into one order.
func sortTables(text []byte) string {
	tables := strings.SplitAfter(iptables.Normalize(string(text)), "COMMIT\n")
	slices.Sort(tables)
	return strings.Join(tables, "")
}
