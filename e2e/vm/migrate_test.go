package vm_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/e2e/vm"
)

// host makes a host of a guest: a bridge that the cable is plugged into, and sshd.
const host = `
modprobe -a veth bridge nf_tables inet_diag tcp_diag udp_diag unix_diag netlink_diag raw_diag af_packet_diag
ip link add br0 type bridge; ip link set br0 up; ip link set eth0 master br0 up; ip address add "$ADDRESS/24" dev br0
mkdir -p /run/sshd
/usr/sbin/sshd -f "$SHARE/ssh/config" -o "ListenAddress $ADDRESS"
`

// moves moves a redis, which has a connection all the time, from one kernel to the other and back.
const moves = `
attach() { # NAMESPACE ADDRESS
	ip netns add "$1"
	ip link add "veth-$1" type veth peer name eth0 netns "$1"
	ip link set "veth-$1" master br0 up
	ip -n "$1" link set lo up; ip -n "$1" link set eth0 up; ip -n "$1" address add "$2/24" dev eth0
}
attach cli 10.77.0.50
attach svc 10.77.0.100
ip netns exec svc setsid setpriv --reuid nobody --regid nogroup --clear-groups --no-new-privs \
	redis-server --bind 10.77.0.100 --protected-mode no --save "" --dir / </dev/null >/dev/null 2>&1 &

cat >/tmp/client <<'X'
	until { exec 3<>/dev/tcp/10.77.0.100/6379; } 2>/dev/null; do sleep 0.2; done
	while read -r _; do
		printf 'INCR n\r\n' >&3; read -r -t 300 answer <&3; echo "$answer"
	done
X
coproc client { ip netns exec cli bash /tmp/client; }
ask() {
	echo >&"${client[1]}"
	read -r -t 700 answer <&"${client[0]}"
	[ "$answer" = ":$1"$'\r' ] || { echo "got $answer instead of $1" >&2; exit 1; }
}
over=(-o "IdentityFile=$SHARE/ssh/client" -o "UserKnownHostsFile=$SHARE/ssh/known")
migrate() { # TO
	echo "\"$SHARE/nsmigrate\" migrate --netns svc --to ssh://root@$1 --remote-path '$SHARE/nsmigrate'" \
		"--ssh-option 'IdentityFile=$SHARE/ssh/client' --ssh-option 'UserKnownHostsFile=$SHARE/ssh/known'"
}
there() { ssh "${over[@]}" root@10.77.0.2 "$@"; }
until there true; do sleep 0.2; done
ask 1
eval "$(migrate 10.77.0.2)"
test ! -e /run/netns/svc
there test -e /run/netns/svc
ask 2
there "$(migrate 10.77.0.1)"
test -e /run/netns/svc
there test ! -e /run/netns/svc
ask 3
`

// testMigrate moves a service between two hosts with a kernel each, there and back, over ssh.
func testMigrate(t *testing.T, l lane) {
	keys(t, filepath.Join(l.share, "ssh"), "10.77.0.1,10.77.0.2")
	configs := []vm.Config{
		{Kernel: vm.Newest, Share: l.share, NICs: []vm.NIC{{MAC: "02:11:00:00:00:0a", Cable: "c"}}},
		{Kernel: vm.Older, Share: l.share, NICs: []vm.NIC{{MAC: "02:11:00:00:00:0b", Cable: "c"}}},
	}
	err := l.Do(t.Context(), configs, func(ctx context.Context, m []*vm.Machine) error {
		var releases []string
		for i, address := range []string{"10.77.0.1", "10.77.0.2"} {
			release, err := m[i].Shell(ctx, "uname -r")
			if err == nil {
				err = m[i].Run(ctx, vm.Command{Args: []string{"bash", "-euc", host}, Env: []string{"SHARE=" + l.share, "ADDRESS=" + address}, Output: t.Output()})
			}
			if err != nil {
				return err
			}
			releases = append(releases, release)
		}
		if releases[0] == releases[1] {
			return errors.New("both kernels are " + releases[0])
		}
		return m[0].Run(ctx, vm.Command{Args: []string{"bash", "-euc", moves}, Env: []string{"SHARE=" + l.share}, Output: t.Output()})
	})
	if err != nil {
		t.Error(err)
	}
}

// keys makes the files of an sshd for root, and of its clients, in a directory.
func keys(t *testing.T, dir, addresses string) {
	t.Helper()
	file := func(name string) string { return filepath.Join(dir, name) }
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"host", "client"} {
		if out, err := exec.CommandContext(t.Context(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file(name)).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v\n%s", err, out)
		}
	}
	key, err := os.ReadFile(file("host.pub"))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"known":  addresses + " " + string(key),
		"config": strings.Join([]string{"HostKey " + file("host"), "AuthorizedKeysFile " + file("client.pub"), "StrictModes no", "UsePAM no", ""}, "\n"),
	} {
		if err := os.WriteFile(file(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
