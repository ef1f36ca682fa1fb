// Package nstest helps tests that build network namespaces with the system's tools.
package nstest

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
)

// NeedRoot skips a test that lacks root or a tool. In CI the lack is a failure.
func NeedRoot(t testing.TB, tools ...string) {
	t.Helper()
	missing := ""
	if os.Geteuid() != 0 {
		missing = "root"
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			missing = tool
		}
	}
	switch {
	case missing == "":
	case os.Getenv("CI") == "true":
		t.Fatalf("CI lacks %s", missing)
	default:
		t.Skipf("needs %s", missing)
	}
}

// FullKernel reports whether the test runs on a kernel that has every kind of object: in the virtual machine that
// the end-to-end tests start. There nothing is skipped.
func FullKernel() bool { return os.Getenv("NSMIGRATE_VM") == "1" }

// New makes a namespace that ends with the test.
func New(t testing.TB) *ns.NS {
	t.Helper()
	n, err := ns.Create()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// Try runs shell commands inside a namespace.
func Try(n *ns.NS, script string) (string, error) {
	var out []byte
	err := n.Do(func() error {
		var err error
		out, err = exec.Command("sh", "-euc", script).CombinedOutput()
		return err
	})
	if err != nil {
		return string(out), fmt.Errorf("%s\n%s%w", script, out, err)
	}
	return string(out), nil
}

// Run is [Try] for commands that must succeed.
func Run(t testing.TB, n *ns.NS, script string) string {
	t.Helper()
	out, err := Try(n, script)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Arrange is [Run] for commands that need a kernel with more than the usual: the test is skipped if they fail,
// except on a full kernel.
func Arrange(t testing.TB, n *ns.NS, script string) {
	t.Helper()
	_, err := Try(n, script)
	switch {
	case err == nil:
	case FullKernel():
		t.Fatal(err)
	default:
		t.Skipf("this kernel can't: %v", err)
	}
}

// Compare reports the lines in which two texts differ.
func Compare(t testing.TB, what, before, after string) {
	t.Helper()
	if before == after {
		return
	}
	a, b := strings.Split(before, "\n"), strings.Split(after, "\n")
	var diff []string
	for _, l := range a {
		if !slices.Contains(b, l) {
			diff = append(diff, "- "+l)
		}
	}
	for _, l := range b {
		if !slices.Contains(a, l) {
			diff = append(diff, "+ "+l)
		}
	}
	if len(diff) == 0 {
		i := 0
		for i < len(a) && i < len(b) && a[i] == b[i] {
			i++
		}
		diff = []string{"the order or number of lines, from line", fmt.Sprint(i), strings.Join(a[i:min(i+3, len(a))], "\n"), "or", strings.Join(b[i:min(i+3, len(b))], "\n")}
	}
	t.Errorf("%s differs:\n%s", what, strings.Join(diff, "\n"))
}
