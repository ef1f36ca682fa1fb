#!/usr/bin/env bash
#
# Provides the distribution's runc, crun and podman for the benchmark, unpacked into a directory of their own (the first
# argument): nothing of the system is touched, and removing them is `rm -r`. What the system has already is taken from there.
set -euo pipefail
shopt -s nullglob
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

prefix=$1
packages=(runc crun podman)
complete=$(IFS=-; echo "$prefix/has-${packages[*]}")
[ ! -e "$complete" ] || exit 0
command -v apt-get >/dev/null || {
	echo "this system has no apt to fetch ${packages[*]} with" >&2
	exit 1
}

mkdir -p "$prefix"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/cache/archives/partial" "$work/root"
chmod 755 "$work" # apt downloads as the user _apt
fetch() {
	apt-get install -qqy --download-only --no-install-recommends \
		-o "Dir::Cache=$work/cache" -o Dir::Cache::archives=archives "${packages[@]}" >/dev/null
}
# A fresh machine has no lists of packages yet.
fetch 2>/dev/null || { apt-get update -qq && fetch; }
for package in "$work"/cache/archives/*.deb; do
	case ${package##*/} in
	login_* | passwd_*) ;; # wanted by a library, for nothing that is used here
	*) dpkg --extract "$package" "$work/root" ;;
	esac
done
rm -rf "$prefix/root"
mv "$work/root" "$prefix/root"
touch "$complete"
