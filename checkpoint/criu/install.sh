#!/usr/bin/env bash
#
# Provides a CRIU that nsmigrate can work with: version 4.2 or newer, passing `criu check`.
#
# The first of these that works is taken:
#   1. one that is already there, in the private prefix or on PATH;
#   2. the distribution's own package, if it is new enough;
#   3. on Debian and Ubuntu: Debian's newer package, unpacked with all the libraries it needs into the
#      private prefix. It brings its own libc, so no package and no library of the system is touched;
#      removing it is `rm -r PREFIX`.
#
# Variables:
#   PREFIX         the private prefix (default /usr/local/lib/nsmigrate/criu, where nsmigrate looks)
#   DEBIAN_MIRROR  where Debian's packages are (default: the machine's own mirror; needed on Ubuntu)
#   DEBIAN_SUITE   the suite they are taken from (default unstable)
set -euo pipefail
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

minimum=4.2
prefix=${PREFIX:-/usr/local/lib/nsmigrate/criu}
suite=${DEBIAN_SUITE:-unstable}

say() { printf 'criu: %s\n' "$*"; }
die() {
	printf 'criu: %s\n' "$@" >&2
	exit 1
}

# new_enough VERSION
new_enough() { [ "$(printf '%s\n' "$minimum" "$1" | sort -V | head -n 1)" = "$minimum" ]; }

# version_of CRIU prints its version, or nothing if it can't even start.
version_of() { "$1" --version 2>/dev/null | sed -n 's/^Version: *//p'; }

# works CRIU: it is new enough, and the running kernel gives it what it asks for. Says what it found.
works() {
	local version report
	version=$(version_of "$1") || true
	if [ -z "$version" ]; then
		say "$1 does not run"
		return 1
	fi
	if ! new_enough "$version"; then
		say "$1 is version $version, too old: nsmigrate needs $minimum"
		return 1
	fi
	if ! report=$("$1" check 2>&1); then
		say "$1 is version $version, but \`criu check\` fails:"
		sed 's/^/    /' <<<"$report"
		return 1
	fi
	say "$1 is version $version; criu check: ${report##*$'\n'}"
}

already_there() {
	local path
	if [ -x "$prefix/bin/criu" ] && works "$prefix/bin/criu"; then
		return
	fi
	path=$(command -v criu) && works "$path"
}

# candidate prints the version of the distribution's package, or nothing if it has none.
candidate() { apt-cache policy criu | sed -n 's/^ *Candidate: *//p' | grep -v '(none)' || true; }

from_distribution() {
	local version
	version=$(candidate)
	if [ -z "$version" ]; then
		# A fresh machine or a container image has no package lists yet.
		apt-get update -qq || die "apt-get update failed: see above"
		version=$(candidate)
	fi
	if [ -z "$version" ] || ! new_enough "$version"; then
		say "the distribution's package is ${version:-missing}, not $minimum or newer"
		return 1
	fi
	apt-get install -qqy --no-install-recommends criu
	works "$(command -v criu)"
}

# debian_mirror prints the mirror this machine is configured to fetch Debian from.
debian_mirror() {
	if [ -n "${DEBIAN_MIRROR:-}" ]; then
		echo "$DEBIAN_MIRROR"
		return
	fi
	# Only the archive proper: the security and third-party archives have no unstable suite.
	apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(SITE)' |
		sed -n 's/^Debian|Debian|\([a-z+]*:\/.*\)/\1/p' | sort -u | head -n 1
}

debian_keyring() {
	local file
	for file in /usr/share/keyrings/debian-archive-keyring.{pgp,gpg}; do
		if [ -f "$file" ]; then
			echo "$file"
			return
		fi
	done
	return 1
}

# wrapper ROOT LOADER LIBRARIES PROGRAM prints the script that starts the private program with the
# private loader and libraries. Nothing is put into the environment, so that what CRIU itself starts
# (ip, nft, scripts of the user) runs with the system's libraries.
wrapper() {
	cat <<-END
		#!/bin/sh
		exec "$1/$2" --library-path "$1/$3" --argv0 criu "$1/$4" "\$@"
	END
}

into_prefix() {
	local mirror keyring options package libraries loader program parts part
	mirror=$(debian_mirror)
	if [ -z "$mirror" ]; then
		die "this machine has no mirror of Debian configured, so there is nothing to take a newer CRIU from." \
			"Name one and run this again:" \
			"    make criu DEBIAN_MIRROR=http://HOST/debian" \
			"or build CRIU $minimum or newer from source (https://criu.org/Installation) and put it on PATH."
	fi
	debian_keyring >/dev/null || apt-get install -qqy --no-install-recommends debian-archive-keyring ||
		die "the package debian-archive-keyring is missing: without it Debian's signatures can't be checked."
	keyring=$(debian_keyring)

	# apt gets a world of its own: one source, and an empty list of installed packages, which makes
	# "install criu" mean "criu and every library down to libc". Its signature checks stay as they are.
	work=$(mktemp -d)
	stage=$(mktemp -d "$prefix.XXXXXX")
	chmod 755 "$work" "$stage" # apt downloads as the user _apt
	mkdir -p "$work"/{lists,cache/archives}/partial
	: >"$work/status"
	echo "deb [arch=$(dpkg --print-architecture) target=Packages signed-by=$keyring] $mirror $suite main" >"$work/sources.list"
	options=(
		-o "Dir::State::lists=$work/lists"
		-o "Dir::State::status=$work/status"
		-o "Dir::State::extended_states=$work/extended_states"
		-o "Dir::Cache=$work/cache"
		-o "Dir::Cache::archives=archives"
		-o "Dir::Etc::sourcelist=$work/sources.list"
		-o "Dir::Etc::sourceparts=/dev/null"
		# The machine's pins are about its own suites.
		-o "Dir::Etc::preferences=/dev/null"
		-o "Dir::Etc::preferencesparts=/dev/null"
		-o "APT::Default-Release=$suite"
		-o "Acquire::Languages=none"
		-o "APT::Update::Error-Mode=any"
	)
	say "fetching CRIU from Debian $suite, $mirror"
	apt-get "${options[@]}" update -qq
	apt-get "${options[@]}" install -qqy --download-only --no-install-recommends criu

	for package in "$work"/cache/archives/*.deb; do
		dpkg --extract "$package" "$stage"
	done
	libraries=$(cd "$stage" && dirname usr/lib/*/libc.so.6)
	loader=$(cd "$stage" && echo "$libraries"/ld-linux*.so.*)
	program=$(cd "$stage" && echo usr/*bin/criu)
	parts=("$loader" "$libraries" "$program")
	for part in "${parts[@]}"; do
		[ -e "$stage/$part" ] || die "the packages of Debian $suite don't hold what was expected: no $part"
	done

	# Tried where it was unpacked, so that a prefix that works is only ever replaced by one that works.
	mkdir -p "$stage/bin"
	wrapper "$stage" "${parts[@]}" >"$stage/bin/criu"
	chmod 755 "$stage/bin/criu"
	works "$stage/bin/criu" || die "no CRIU that works on this kernel ($(uname -r)) was found: see above for what it misses."
	wrapper "$prefix" "${parts[@]}" >"$stage/bin/criu"
	[ ! -e "$prefix" ] || mv -T "$prefix" "$stage.old"
	mv -T "$stage" "$prefix"
	works "$prefix/bin/criu"
}

work='' stage=''
trap 'rm -rf "$work" ${stage:+"$stage" "$stage.old"}' EXIT

[ "$(id -u)" = 0 ] || die "installing CRIU, and \`criu check\`, need root."
if already_there; then
	exit
fi
if ! command -v apt-get >/dev/null; then
	die "this system has no apt: install CRIU $minimum or newer by its own means, e.g." \
		"    dnf install criu | zypper install criu | pacman -S criu" \
		"or build it from source (https://criu.org/Installation), and put it on PATH."
fi
mkdir -p "$(dirname "$prefix")"
# Two runs at once would delete each other's prefix.
exec 9<"$(dirname "$prefix")"
flock 9
already_there >/dev/null || from_distribution || into_prefix
