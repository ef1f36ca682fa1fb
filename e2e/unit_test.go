package e2e

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/e2e/lab"
)

// unitCapabilities are what the daemon's unit file leaves it, as setpriv(1) takes them.
func (w *world) unitCapabilities() string {
	w.Helper()
	unit, err := os.ReadFile("../transfer/transport/systemd/nsmigrate.service")
	w.check(err)
	set := "-all"
	for line := range strings.Lines(string(unit)) {
		if names, ok := strings.CutPrefix(line, "CapabilityBoundingSet="); ok {
			for name := range strings.FieldsSeq(names) {
				set += ",+" + strings.ToLower(strings.TrimPrefix(name, "CAP_"))
			}
		}
	}
	return set
}

// The daemon as systemd runs it: with the socket that it is given, and no more capabilities than its unit file leaves it. A
// service comes there that has no more than container engines give; one that has more can't come back with them.
func TestServeAsUnit(t *testing.T) {
	w := newWorld(t)
	capabilities := w.unitCapabilities()
	socket := filepath.Join(w.Dir, "serve.socket")
	l, err := net.Listen("unix", socket)
	w.check(err)
	defer l.Close()
	f, err := l.(*net.UnixListener).File()
	w.check(err)
	defer f.Close()
	log, err := os.Create(filepath.Join(w.Dir, "serve.log"))
	w.check(err)
	defer log.Close()
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec setpriv --bounding-set "$0" "$@"`,
		capabilities, w.nsmigrateBin(), "serve")
	cmd.Env = lab.Environ()
	cmd.ExtraFiles = []*os.File{f}
	cmd.Stdout, cmd.Stderr = log, log
	s := &server{w: w, host: w.B, log: log.Name()}
	s.process, err = w.B.Start(cmd)
	w.check(err)
	s.says("msg=listening address=" + socket)

	w.daemon(w.A, inSvc+"setpriv --inh-caps=-all --bounding-set=-all,+chown,+net_bind_service %s serve --quiet", w.peerBin())
	w.listening("7000")
	c := w.echo("4", 3)
	w.daemon(w.A, "sh -c 'ip netns add other; exec ip netns exec other sleep 1000'")
	w.pid(w.A, "sleep", "1000")
	before := w.snapshot(w.A)
	w.fails(w.A, exitRefused, []string{"on the destination: capability CAP_", " CAP_SYS_MODULE", "\"sleep\" has it", "all-capabilities.conf"},
		"migrate", "--netns", "other", "--to", "unix:"+socket)
	w.same(w.A, before)
	w.Log(w.ok(w.A, "migrate", "--netns", "svc", "--to", "unix:"+socket))
	s.terminate()
	s.ended()
	w.livesOnB(c)
	w.stopAll(c)
}
