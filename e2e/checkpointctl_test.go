package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// An image opens in the unmodified checkpointctl.
func TestCheckpointctl(t *testing.T) {
	cmd := exec.Command("go", "install", "github.com/checkpoint-restore/checkpointctl@v1.4.0")
	dir := t.TempDir()
	tool := filepath.Join(dir, "checkpointctl")
	cmd.Env = append(os.Environ(), "GOBIN="+dir, "CGO_ENABLED=0", "GOFLAGS=-mod=mod")
	cmd.Dir = dir // outside of any module
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("install checkpointctl: %v\n%s", err, out)
	}
	for _, compress := range []string{"zstd", "none"} {
		t.Run(compress, func(t *testing.T) {
			w := newWorld(t)
			w.serve()
			c := w.echo("4", 2)
			w.ok(w.A, "dump", "--netns", "svc", "-R", "-c", compress, "-e", w.image(w.A))
			c.progress()
			show, err := exec.Command(tool, "show", w.image(w.A)).CombinedOutput()
			if err != nil || !strings.Contains(string(show), "svc") {
				t.Errorf("show: %v\n%s", err, show)
			}
			inspect, err := exec.Command(tool, "inspect", "--format", "json", "--all", w.image(w.A)).CombinedOutput()
			var document []map[string]any
			if err != nil || json.Unmarshal(inspect, &document) != nil || len(document) != 1 {
				t.Errorf("inspect: %v\n%s", err, inspect)
			}
			if !strings.Contains(string(inspect), "peer") {
				t.Errorf("inspect shows no process:\n%s", inspect)
			}
			w.stopAll(c)
		})
	}
}
