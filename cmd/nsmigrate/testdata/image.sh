#!/bin/sh
# Makes svc.nsm, the image of the inspect tests: as root, in a mount namespace and under a host name of its own.
#   unshare --mount --uts cmd/nsmigrate/testdata/image.sh bin/nsmigrate
set -eu
nsmigrate=$(realpath "$1")
image=$(realpath "$(dirname "$0")")/svc.nsm
hostname old
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /opt
cd /
cat >/opt/echod.c <<'C'
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>
int main(void) {
	int l = socket(AF_INET6, SOCK_STREAM, 0), u = socket(AF_INET, SOCK_DGRAM, 0);
	struct sockaddr_in6 tcp = {.sin6_family = AF_INET6, .sin6_port = htons(7000)};
	struct sockaddr_in udp = {.sin_family = AF_INET, .sin_port = htons(7001)};
	bind(l, (void *)&tcp, sizeof tcp);
	bind(u, (void *)&udp, sizeof udp);
	listen(l, 16);
	int c = accept(l, 0, 0);
	write(c, "hello\n", 6);
	if (fork() == 0) {
		close(l);
		close(u);
	}
	for (;;)
		pause();
}
C
mkdir /opt/echo
gcc -O2 -static -o /opt/echo/echod /opt/echod.c

trap 'ip netns pids svc | xargs -r kill -9; ip netns del svc' EXIT
ip netns add svc
ip link add veth-svc type veth peer name eth0 netns svc
ip link set veth-svc address 02:00:00:00:00:02 up
ip addr add 203.0.113.1/24 dev veth-svc
ip -n svc link set eth0 address 02:00:00:00:00:01
ip -n svc addr add 203.0.113.2/24 dev eth0
ip -n svc addr add 2001:db8::2/64 dev eth0 nodad
ip -n svc link set lo up
ip -n svc link set eth0 up
ip -n svc route add default via 203.0.113.1
ip -n svc route add blackhole 198.51.100.0/24 table 100
ip -n svc rule add to 198.51.100.0/24 lookup 100 pref 1000
ip netns exec svc nft -f - <<'NFT'
table inet filter {
	chain input {
		type filter hook input priority 0; policy accept;
		tcp dport 7000 counter accept
	}
}
NFT
ip netns exec svc sysctl -qw net.ipv4.tcp_keepalive_time=600
setsid --fork env -i ip netns exec svc /opt/echo/echod </dev/null >/dev/null 2>&1
sleep 2
python3 - <<'PY' &
import socket, time
s = socket.socket()
s.bind(("203.0.113.1", 40000))
s.connect(("203.0.113.2", 7000))
s.send(b"not read yet")
time.sleep(6)
PY
sleep 2
rm -f "$image"
"$nsmigrate" dump --netns svc --export "$image"
trap - EXIT
