package vm_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/nsmigrate/nsmigrate/e2e/everything"
	"github.com/nsmigrate/nsmigrate/e2e/vm"
)

// backup saves a namespace that has everything, removes it, rebuilds it, and expects no difference.
const backup = `
cp "$SHARE/nsmigrate" /tmp/nsmigrate; cd /tmp
sysctl -qw net.core.fb_tunnels_only_for_init_net=2
ip netns add all
FULL=1 ip netns exec all sh "$SHARE/everything.sh" >/tmp/log 2>&1 || { cat /tmp/log; exit 1; }
same() { ./nsmigrate diff was.nsm all >/tmp/log; }
# The kernel comes to an end: carriers come, addresses are no longer tentative.
for i in $(seq 100); do
	rm -f was.nsm
	./nsmigrate dump --netns all --no-processes -e was.nsm >/tmp/log
	sleep 1
	! same || break
done
ip netns del all
./nsmigrate restore -i was.nsm
for i in $(seq 100); do
	! same || break
	sleep 1
done
same || { cat /tmp/log; exit 1; }
./nsmigrate inspect -i was.nsm >/tmp/log
`

// testEverything saves and rebuilds a namespace with all kinds of links and objects that can be carried, by the program
// itself.
func testEverything(t *testing.T, l lane) {
	if err := os.WriteFile(filepath.Join(l.share, "everything.sh"), []byte(everything.Script), 0o644); err != nil {
		t.Fatal(err)
	}
	err := l.alone(t, func(ctx context.Context, m *vm.Machine) error {
		return m.Run(ctx, vm.Command{Args: []string{"bash", "-euc", backup}, Env: []string{"SHARE=" + l.share}, Output: t.Output()})
	})
	if err != nil {
		t.Error(err)
	}
}
