package vm_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"testing"

	"github.com/nsmigrate/nsmigrate/e2e/vm"
)

// TestFamilies runs the tests of the packages below netstate that carry a family of objects each, where all kinds
// of objects are: most qdiscs, IPsec, WireGuard and IPVS are not in the machine's own kernel.
func TestFamilies(t *testing.T) {
	needVM(t)
	share := t.TempDir()
	packages := []string{"tc", "ipset", "xfrm", "genl"}
	for _, name := range packages {
		build := exec.Command("go", "test", "-c", "-o", filepath.Join(share, name+".test"), "github.com/nsmigrate/nsmigrate/netstate/"+name)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build the tests: %v\n%s", err, out)
		}
	}
	outputs := map[string]*bytes.Buffer{}
	err := vm.Do(t.Context(), vm.Config{Share: share}, func(m *vm.Machine) error {
		// The modules are those that nothing loads when they are needed.
		if _, err := m.Shell(t.Context(), "modprobe -a fou fou6 ip_set ip_vs; cp "+share+"/*.test /tmp"); err != nil {
			return err
		}
		var failed error
		for _, name := range packages {
			outputs[name] = new(bytes.Buffer)
			err := m.Run(t.Context(), vm.Command{
				Args:   []string{path.Join("/tmp", name+".test"), "-test.v=test2json"},
				Env:    []string{"NSMIGRATE_VM=1", "CI=true"},
				Output: io.MultiWriter(outputs[name], progress{}),
			})
			if errors.Is(err, vm.ErrGone) {
				return err
			}
			failed = errors.Join(failed, err)
		}
		return failed
	})
	failed := false
	for _, name := range packages {
		if outputs[name] != nil {
			t.Run(name, func(t *testing.T) { failed = report(t, outputs[name].Bytes()) || failed })
		}
	}
	if exit := new(vm.ExitError); err != nil && (!errors.As(err, &exit) || !failed) {
		t.Error(err)
	}
}
