package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// bin is where the programs under test are built, once a test run. NSMIGRATE_E2E_BINARY names a nsmigrate to
// test instead. The faulty one makes trouble when it is told to.
var bin = struct{ dir, nsmigrate, faulty, peer string }{}

// inCI turns every missing need from a reason to skip into a failure.
var inCI = os.Getenv("CI") == "true"

// rounds is how many times in a row a service is moved.
var rounds = envInt("NSMIGRATE_E2E_ROUNDS", 3)

// soak is how many times the test of endurance moves one.
var soak = envInt("NSMIGRATE_E2E_SOAK", 8)

func envInt(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil && n > 0 {
		return n
	}
	return otherwise
}

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if err := needs(); err != nil {
		if inCI {
			return 1, err
		}
		fmt.Println("e2e: skipped:", err)
		return 0, nil
	}
	if bin.dir, err = os.MkdirTemp("", "nsmigrate-e2e-"); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(bin.dir)) }()
	if bin.nsmigrate = os.Getenv("NSMIGRATE_E2E_BINARY"); bin.nsmigrate == "" {
		if bin.nsmigrate, err = build("../cmd/nsmigrate"); err != nil {
			return 1, err
		}
	}
	if bin.faulty, err = build("../cmd/nsmigrate", "-tags", "faults"); err != nil {
		return 1, err
	}
	if bin.peer, err = build("./peer"); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// needs lists what this machine lacks.
func needs() error {
	if os.Geteuid() != 0 {
		return errors.New("hosts of namespaces and CRIU need root")
	}
	var missing []string
	for _, tool := range []string{"ip", "nft", "nsenter", "unshare", "setsid", "script", "ss", "sysctl", "conntrack", "redis-server", "nginx"} {
		if _, err := exec.LookPath(tool); err != nil {
			missing = append(missing, tool)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("missing: %s (make deps)", strings.Join(missing, ", "))
	}
	return nil
}

// build compiles a package to a static program.
func build(pkg string, flags ...string) (string, error) {
	out := filepath.Join(bin.dir, filepath.Base(pkg))
	if len(flags) > 0 {
		out += "-" + flags[len(flags)-1]
	}
	cmd := exec.Command("go", append(append([]string{"build", "-o", out}, flags...), pkg)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", pkg, err, b)
	}
	return out, nil
}
