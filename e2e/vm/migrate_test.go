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
sysctl -qw net.core.fb_tunnels_only_for_init_net=2 # or a module of tunnels takes the indexes of links in every namespace
rm -f ~/.bashrc # bash reads it when ssh runs a command, and there is no telling what is in it
mkdir -p /run/sshd
/usr/sbin/sshd -f "$SHARE/ssh/config" -o "ListenAddress $ADDRESS"
`

// prelude has the words of what follows: there COMMAND runs it on the other host, attach NAMESPACE ADDRESS hangs a new
// namespace on the bridge, and migrate NAMESPACE TO [OPTION]... prints the command that does.
const prelude = `
nsmigrate=$SHARE/nsmigrate
there() { ssh -o "IdentityFile=$SHARE/ssh/client" -o "UserKnownHostsFile=$SHARE/ssh/known" root@10.77.0.2 "$@"; }
until there true; do sleep 0.2; done
attach() {
	ip netns add "$1"
	ip link add "veth-$1" type veth peer name eth0 netns "$1"
	ip link set "veth-$1" master br0 up
	ip -n "$1" link set lo up; ip -n "$1" link set eth0 up; ip -n "$1" address add "$2/24" dev eth0
}
migrate() {
	echo "'$nsmigrate' migrate --netns $1 --to ssh://root@$2 --remote-path '$nsmigrate'" \
		"--ssh-option 'IdentityFile=$SHARE/ssh/client' --ssh-option 'UserKnownHostsFile=$SHARE/ssh/known'" "${@:3}"
}
`

// states carries a namespace without processes to the other kernel, and what became of it there back, where it must be
// what it was: in between it lacks what an older kernel does not know.
const states = prelude + `
ip netns add lab
ip netns exec lab sh -eu <<-'X'
	sysctl -qw net.ipv6.conf.default.addr_gen_mode=1 # no addresses that come later
	ip link set lo up; ip addr add 192.0.2.1/32 dev lo
	ip link add d0 address 02:00:00:00:00:01 type dummy; ip link add d1 address 02:00:00:00:00:02 type dummy
	ip link add bond0 address 02:00:00:00:00:03 type bond mode active-backup miimon 100; ip link set d0 master bond0; ip link set d1 master bond0; ip link set bond0 up
	ip link add br0 address 02:00:00:00:00:04 type bridge vlan_filtering 1 vlan_default_pvid 7; ip link set br0 up
	ip link add link bond0 name v10 type vlan id 10; ip link set v10 master br0; ip link set v10 up; bridge vlan add dev v10 vid 20-30
	ip link add vx0 address 02:00:00:00:00:05 type vxlan id 77 dstport 4789 local 192.0.2.1; ip link set vx0 up; bridge fdb append 00:00:00:00:00:00 dev vx0 dst 192.0.2.9
	ip link add blue type vrf table 70; ip link set blue up
	ip link add e0 address 02:00:00:00:00:06 type veth peer name e1 address 02:00:00:00:00:07; ip link set e0 master blue; ip link set e0 up; ip link set e1 up
	ip link add g0 type gre local 192.0.2.1 remote 192.0.2.2 key 5; ip link add mv0 link br0 address 02:00:00:00:00:08 type macvlan mode bridge
	ip addr add 10.1.0.1/24 dev br0; ip addr add 2001:db8:1::1/64 dev br0 nodad; ip addr add 10.2.0.1/24 dev e0
	ip nexthop add id 1 via 10.1.0.2 dev br0; ip nexthop add id 2 via 10.1.0.3 dev br0; ip nexthop add id 3 group 1/2,2
	ip route add 198.51.100.0/24 nhid 3; ip route add 203.0.113.0/24 via 10.1.0.9 mtu 1400 metric 7; ip route add default via 10.2.0.2 vrf blue
	ip -6 route add 2001:db8:2::/48 via 2001:db8:1::2; ip rule add from 10.3.0.0/16 lookup 70 pref 100; ip neigh add 10.1.0.2 lladdr 02:00:00:00:01:02 dev br0
	tc qdisc add dev e1 root handle 1: htb default 20; tc class add dev e1 parent 1: classid 1:20 htb rate 10mbit; tc qdisc add dev e1 parent 1:20 handle 20: fq_codel
	tc qdisc add dev e0 clsact; tc filter add dev e0 ingress protocol ip prio 1 flower dst_ip 10.9.0.0/16 action drop
	nft -f - <<'Y'
		table inet filter {
			set bad { type ipv4_addr; flags interval; elements = { 10.66.0.0/16, 192.0.2.66 }; }
			map ports { type inet_service : verdict; elements = { 22 : accept, 80 : drop }; }
			chain own { type filter hook output priority raw; meta l4proto { igmp, ipv6-icmp } notrack; }
			chain input { type filter hook input priority filter; policy accept; ct state established accept; ip saddr @bad counter drop; tcp dport vmap @ports; }
		}
		table ip nat { chain post { type nat hook postrouting priority srcnat; oifname "br0" masquerade; }; }
	Y
	ipset create hosts hash:ip; ipset add hosts 192.0.2.7
	sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.br0.rp_filter=2 net.ipv6.conf.e1.accept_ra=0 net.ipv4.tcp_syncookies=0
X
until ip -n lab link show dev br0 | grep -q LOWER_UP; do sleep 0.1; done
rm -f "$SHARE"/*.nsm # of an attempt before
"$nsmigrate" dump --netns lab --no-processes -e "$SHARE/there.nsm"
ip netns del lab
there "'$nsmigrate' restore -i '$SHARE/there.nsm'; '$nsmigrate' dump --netns lab --no-processes -e '$SHARE/back.nsm'; ip netns del lab"
"$nsmigrate" restore -i "$SHARE/back.nsm"
late=$((SECONDS + 300))
until "$nsmigrate" diff "$SHARE/there.nsm" lab; do [ $SECONDS -lt $late ]; sleep 0.2; done
ip netns del lab
`

// moves moves a redis, which has a connection all the time, from one kernel to the other and back.
const moves = prelude + `
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
ask 1
eval "$(migrate svc 10.77.0.2)"
test ! -e /run/netns/svc
there test -e /run/netns/svc
ask 2
there "$(migrate svc 10.77.0.1)"
test -e /run/netns/svc
there test ! -e /run/netns/svc
ask 3
`

// database moves a PostgreSQL with its data from one kernel to the other, back and there again, while pgbench changes balances over four
// connections, and another client has a transaction open all the time. In the end no connection was lost, no transaction,
// and no page of the database is damaged.
const database = prelude + `
pg=$(ls -d /usr/lib/postgresql/*/bin | tail -n 1)
data=/tmp/db
as="setpriv --reuid postgres --regid postgres --clear-groups" # it refuses to be root's
attach db 10.77.0.101
install -d -o postgres -g postgres -m 700 $data
$as "$pg/initdb" --pgdata=$data --auth=trust --data-checksums --no-sync --wal-segsize=1 >/dev/null
echo 'host all all 10.77.0.0/24 trust' >>$data/pg_hba.conf
cat >>$data/postgresql.conf <<-X
	listen_addresses = '10.77.0.101'
	unix_socket_directories = ''
	shared_buffers = 8MB
	min_wal_size = 2MB
	max_wal_size = 8MB
X
# In an IPC namespace of its own, for its System V shared memory.
ip netns exec db setsid unshare --ipc $as "$pg/postgres" -D $data </dev/null >$data/log 2>&1 &
client() { ip netns exec cli env PGHOST=10.77.0.101 PGUSER=postgres PGDATABASE=postgres "$@"; }
query() { client psql -qAtc "$1"; }
until client "$pg/pg_isready" -q; do sleep 0.2; done
# What isn't needed and would travel along.
query "UPDATE pg_database SET datistemplate = false"
query "DROP DATABASE template0"; query "DROP DATABASE template1"
client "$pg/pgbench" --initialize --quiet 2>/dev/null
query "CREATE TABLE kept (n int)"

client "$pg/pgbench" --no-vacuum --client=4 --rate=5 --time=3600 >/tmp/pgbench 2>&1 &
bench=$!
coproc open { client psql -qAt; }
say() { # a statement of the open transaction
	echo "$1; SELECT count(*) FROM kept;" >&"${open[1]}"
	read -r -t 300 answer <&"${open[0]}"
	[ "$answer" = "$2" ] || { echo "the open transaction has $answer rows instead of $2" >&2; exit 1; }
}
count() { query "SELECT count(*) FROM pgbench_history"; }
goes_on() {
	local n; n=$(count)
	until [ "$(count)" -gt "$n" ]; do kill -0 $bench; done
}
say "BEGIN; INSERT INTO kept VALUES (0)" 1
backends() { query "SELECT pid, backend_start FROM pg_stat_activity WHERE application_name = 'pgbench' ORDER BY 1"; }
before=$(backends)
test "$(wc -l <<<"$before")" = 4
goes_on
eval "$(migrate db 10.77.0.2 --ship $data)"
say "INSERT INTO kept VALUES (1)" 2
goes_on
there "$(migrate db 10.77.0.1 --ship $data)"
say "INSERT INTO kept VALUES (2)" 3
goes_on
eval "$(migrate db 10.77.0.2 --ship $data)"
say "INSERT INTO kept VALUES (3)" 4
goes_on
test "$(backends)" = "$before"
test "$(query 'SELECT count(*) FROM kept')" = 0
say COMMIT 4
test "$(query 'SELECT count(*) FROM kept')" = 4

pkill -ALRM -x pgbench # its time is over
wait $bench
cat /tmp/pgbench
processed=$(sed -n 's/^number of transactions actually processed: \([0-9]*\).*/\1/p' /tmp/pgbench)
test "$(count)" = "$processed"
sums=$(query "SELECT sum(abalance) FROM pgbench_accounts UNION ALL SELECT sum(bbalance) FROM pgbench_branches
	UNION ALL SELECT sum(tbalance) FROM pgbench_tellers UNION ALL SELECT sum(delta) FROM pgbench_history")
test "$(wc -l <<<"$sums")" = 4
test "$(sort -u <<<"$sums" | wc -l)" = 1 || { echo "the balances are" $sums >&2; exit 1; }
there "cd /; ! grep -E 'ERROR|FATAL|PANIC' $data/log"
there "cd /; $as $pg/pg_ctl --pgdata=$data --mode=fast --silent stop && $as $pg/pg_checksums --pgdata=$data --check"
`

// testMigrate moves a namespace alone, in an image, and live services, over ssh, between two hosts with a kernel each,
// there and back.
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
		for _, script := range []string{states, moves, database} {
			if err := m[0].Run(ctx, vm.Command{Args: []string{"bash", "-euc", script}, Env: []string{"SHARE=" + l.share}, Output: t.Output()}); err != nil {
				return err
			}
		}
		return nil
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
