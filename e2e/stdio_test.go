package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Wherever a service's standard streams go, the service goes. LOG is a file that both hosts see.
func TestStdio(t *testing.T) {
	for name, command := range map[string]string{
		"null":             inSvc + "PEER",
		"file":             inSvc + "PEER >>LOG 2>&1",
		"closed":           inSvc + "PEER <&- >&- 2>&-",
		"opened inside":    inSvc + "sh -c 'exec PEER </dev/null >>LOG 2>&1'",
		"deleted file":     inSvc + "sh -c 'exec >/dev/shm/gone; rm /dev/shm/gone; exec PEER'",
		"pipe to a logger": "sh -c '" + inSvc + "PEER 2>&1 | cat >>LOG'",
		"pty":              "env SHELL=/bin/bash script --quiet --command '" + inSvc + "PEER' /dev/null", // leads its session
		"pty of a shell":   "script --quiet --command 'sh -c \"" + inSvc + "PEER; true\"' /dev/null",
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			log := filepath.Join(w.Dir, "log")
			w.daemon(w.A, "%s", strings.NewReplacer("PEER", w.peerBin()+" serve", "LOG", log).Replace(command))
			w.listening("7000")
			c := w.echo("4", 5)
			w.moves(rounds, c)
			w.stopAll(c)
			if !strings.Contains(command, "LOG") {
				return
			}
			got, err := os.ReadFile(log)
			w.check(err)
			if string(got) != "listening on :7000\n" {
				t.Errorf("the log holds %q", got)
			}
		})
	}
}
