#!/usr/bin/env bash
#
# Installs what the demo and the tests run: real services, their clients, and the tools that look at a
# namespace from outside. Installs only what is missing, and starts and enables no daemon: the tests
# bring up their own, inside their own hosts.
set -euo pipefail
export LC_ALL=C DEBIAN_FRONTEND=noninteractive
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin # root's PATH lacks these after a plain `su` on Debian

# What is needed (a command, or a pattern of files), and the Debian package that has it.
needs='
ping                  iputils-ping
nft                   nftables
iptables-legacy-save  iptables
ipset                 ipset
conntrack             conntrack
nfacct                nfacct
nfct                  nfct
ebtables-legacy       ebtables
ip                    iproute2
redis-server          redis-server
redis-cli             redis-tools
nginx                 nginx-light
/usr/lib/postgresql/*/bin/pgbench postgresql
tcpdump               tcpdump
iperf3                iperf3
socat                 socat
sshd                  openssh-server
ssh                   openssh-client
ps                    procps
jq                    jq
zstd                  zstd
wg                    wireguard-tools
ipvsadm               ipvsadm
ethtool               ethtool
modprobe              kmod
qemu-system-x86_64    qemu-system-x86
git                   git
gcc                   gcc
/usr/include/stdlib.h libc6-dev
'
# The last two are for Go's race detector.

commands=() packages=()
while read -r need package; do
	[ -n "$need" ] || continue
	if { [[ $need == /* ]] && ! compgen -G "$need" >/dev/null; } || { [[ $need != /* ]] && ! command -v "$need" >/dev/null; }; then
		commands+=("$need") packages+=("$package")
	fi
done <<<"$needs"
if [ ${#packages[@]} = 0 ]; then
	exit
fi

die() {
	printf 'deps: %s\n' "$@" >&2
	exit 1
}

if ! command -v apt-get >/dev/null; then
	die "missing: ${commands[*]}" "this system has no apt: install them by its own means."
fi
[ "$(id -u)" = 0 ] || die "missing: ${packages[*]}" "run as root: apt-get install ${packages[*]}"

# Debian starts a daemon as soon as it is installed, unless this file says no. A machine that has one
# already has its own rule.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
	trap 'rm -f "$policy"' EXIT
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
fi

# enabled_units prints what systemd starts at boot.
enabled_units() {
	command -v systemctl >/dev/null || return 0
	systemctl --root=/ list-unit-files --state=enabled --no-legend --no-pager | awk '{print $1}' | sort
}

printf 'deps: installing %s\n' "${packages[*]}"
before=$(enabled_units)
apt-get update -qq
apt-get install -qqy --no-install-recommends "${packages[@]}" >/dev/null
# A daemon that is new here would start at the next boot.
new=$(comm -13 <(echo "$before") <(enabled_units))
if [ -n "$new" ]; then
	# shellcheck disable=SC2086 # one word a unit
	systemctl --root=/ disable $new 2>/dev/null || die "could not disable:" $new
fi
