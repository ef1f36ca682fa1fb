package vm_test

import (
	"context"
	"testing"

	"github.com/nsmigrate/nsmigrate/e2e/vm"
)

// users moves services whose processes are not root's, which takes a root with all capabilities. It dumps and
// restores each on the same host, with a client whose connection is used before and after.
const users = `
cd "$SHARE"
modprobe -a veth bridge nf_tables inet_diag tcp_diag udp_diag unix_diag netlink_diag raw_diag af_packet_diag
ip link add br0 type bridge; ip link set br0 up
attach() { # NAMESPACE ADDRESS
	ip netns add "$1"
	ip link add "veth-$1" type veth peer name eth0 netns "$1"
	ip link set "veth-$1" master br0 up
	ip -n "$1" link set lo up; ip -n "$1" link set eth0 up; ip -n "$1" address add "$2/24" dev eth0
}
attach cli 10.77.0.50
attach redis 10.77.0.100
attach nginx 10.77.0.101

mkdir -p -m 777 /tmp/redis /tmp/nginx; mkdir -p /tmp/nginx/html; echo here >/tmp/nginx/html/index.html; chmod -R a+rX /tmp/nginx
cat >/tmp/nginx/conf <<-X
	daemon off; worker_processes 2; user www-data; pid /tmp/nginx/pid; error_log /tmp/nginx/error;
	events {}
	http { access_log off; keepalive_timeout 600; server { listen 80; root /tmp/nginx/html; } }
X
# Sessions of their own, and nothing open that belongs to this script.
ip netns exec redis setsid setpriv --reuid nobody --regid nogroup --groups games,audio --no-new-privs \
	redis-server --bind 10.77.0.100 --protected-mode no --save "" --dir /tmp/redis </dev/null >/tmp/redis/log 2>&1 &
ip netns exec nginx setsid nginx -c /tmp/nginx/conf -p /tmp/nginx </dev/null >/tmp/nginx/log 2>&1 &

identity() { # of all processes in a namespace
	for pid in $(ip netns pids "$1" | sort -n); do
		grep -E '^(Name|Uid|Gid|Groups|Cap...|NoNewPrivs):' "/proc/$pid/status"
	done
}
move() { # NAMESPACE
	identity "$1" >"/tmp/$1.before"
	./nsmigrate dump --netns "$1" -e "/tmp/$1.nsm"
	test -z "$(ip netns pids "$1" 2>/dev/null)"
	./nsmigrate restore -i "/tmp/$1.nsm"
	rm "/tmp/$1.nsm"
	identity "$1" >"/tmp/$1.after"
	diff "/tmp/$1.before" "/tmp/$1.after"
}

# The client: a shell in a namespace of its own whose connections live through the moves. It asks over
# descriptors 3 and 4, and this script tells it when over a pipe.
cat >/tmp/client <<'X'
	while true; do
		{ exec 3<>/dev/tcp/10.77.0.100/6379 4<>/dev/tcp/10.77.0.101/80; } 2>/dev/null && break
		sleep 0.2
	done
	while read -r _; do
		printf 'INCR n\r\n' >&3; read -r -t 300 answer <&3; echo "redis $answer"
		printf 'GET / HTTP/1.1\r\nHost: x\r\n\r\n' >&4
		while read -r -t 300 line <&4; do [ "$line" != here ] || break; done
		echo "nginx $line"
	done
X
coproc client { ip netns exec cli bash /tmp/client; }
ask() {
	echo >&"${client[1]}"
	for want in "redis :$1"$'\r' "nginx here"; do
		read -r -t 700 answer <&"${client[0]}"
		[ "$answer" = "$want" ] || { echo "got $answer instead of $want" >&2; exit 1; }
	done
}
ask 1
move redis; move nginx
ask 2
uids() { sed -n 's/^Uid:\t//p' "/tmp/$1.after" | tr '\t\n' ' ,'; }
nobody=$(id -u nobody); web=$(id -u www-data)
test "$(uids redis)" = "$nobody $nobody $nobody $nobody,"
test "$(uids nginx)" = "0 0 0 0,$web $web $web $web,$web $web $web $web,"
`

// testUsers moves a redis that nobody runs, and an nginx whose workers are another user's than their master.
func testUsers(t *testing.T, l lane) {
	err := l.alone(t, func(ctx context.Context, m *vm.Machine) error {
		return m.Run(ctx, vm.Command{Args: []string{"bash", "-euc", users}, Env: []string{"SHARE=" + l.share}, Output: t.Output()})
	})
	if err != nil {
		t.Error(err)
	}
}
