package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/nsmigrate/nsmigrate/e2e/lab"
)

// Twenty services go to one daemon at the same time, each by a process of its own.
func TestMigrateManyAtOnce(t *testing.T) {
	const many = 20
	w := newWorld(t)
	socket := filepath.Join(w.Dir, "serve.socket")
	w.server(w.B, w.nsmigrateBin(), nil, "--listen", "unix:"+socket,
		"--max-migrations", fmt.Sprint(many), "--max-per-peer", fmt.Sprint(2*many)).resident()
	for i := 1; i < many; i++ {
		n := lab.NetNS{Name: fmt.Sprintf("svc%d", i), IPv4: fmt.Sprintf("10.77.0.%d", 100+i), IPv6: fmt.Sprintf("fd77::1%02d", i)}
		w.check(w.A.AddNetNS(w.ctx, n))
		w.all = append(w.all, n)
	}
	var loads []*client
	for i, n := range w.all {
		w.daemon(w.A, "ip netns exec %s %s serve --quiet", n.Name, w.peerBin())
		w.listeningIn(n.Name, "7000")
		loads = append(loads, w.load("--connect", n.Addr([]string{"4", "6"}[i%2], 7000), "--conns", "2", "--period", "50ms"))
	}
	results := make([]lab.Result, many)
	errs := make([]error, many)
	var all sync.WaitGroup
	for i, n := range w.all {
		all.Go(func() {
			results[i], errs[i] = w.A.RunCmd(w.ctx, exec.Command(w.nsmigrateBin(), "migrate", "--netns", n.Name, "--to", "unix:"+socket))
		})
	}
	all.Wait()
	for i, r := range results {
		w.check(errs[i])
		w.says(r, exitOK, "migrated "+w.all[i].Name)
		t.Log(strings.TrimSpace(r.Stdout))
	}
	w.same(w.A, w.empty[w.A])
	for _, c := range loads {
		c.progress()
	}
	w.unharmed()
	w.noneUnfinished()
	for _, c := range loads {
		c.stop()
	}
}
