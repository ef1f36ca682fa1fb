# Prints the directory that holds Debian's newest kernel for virtual machines: boot/vmlinuz-RELEASE and
# lib/modules/RELEASE with their lists of dependencies. What is missing is fetched from the machine's own
# package sources and unpacked beside the other ones; nothing is installed.
#
# Variables:
#   CACHE                where kernels are kept
#   NSMIGRATE_VM_KERNEL  the package to take, e.g. linux-image-amd64 (default: the newest of them)
set -euo pipefail
export LC_ALL=C
PATH=$PATH:/usr/sbin:/sbin

die() {
	printf '%s\n' "$@" >&2
	exit 1
}

command -v apt-get >/dev/null || die "this system has no apt to fetch Debian's kernel with"

# candidate PACKAGE prints the version that would be installed.
candidate() { apt-cache policy "$1" | sed -n 's/^ *Candidate: *//p'; }

# newest prints the meta-package whose kernel is the newest: a release of Debian has one for its own kernel
# and may have one for that of the next release.
newest() {
	apt-cache search --names-only '^linux-image-([0-9.]+-)?amd64$' | while read -r package _; do
		printf '%s %s\n' "$(candidate "$package")" "$package"
	done | sort -V | sed -n '$s/.* //p'
}

mkdir -p "$CACHE"
exec 9<"$CACHE"
flock 9 # two test runs at once would fetch it twice

package=${NSMIGRATE_VM_KERNEL:-$(newest)}
if [ -z "$package" ]; then
	apt-get update -qq # a fresh machine has no package lists yet
	package=$(newest)
fi
[ -n "$package" ] || die "no package source of this machine has Debian's kernel"
image=$(apt-cache depends "$package" | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p')
[ -n "$image" ] || die "$package names no kernel"
release=${image#linux-image-}
dir=$CACHE/${image}_$(candidate "$image")

if [ ! -e "$dir" ]; then
	work=$(mktemp -d "$CACHE/XXXXXX")
	trap 'rm -rf "$work"' EXIT
	# As root apt downloads as the user _apt, who can't write here, and says so.
	(cd "$work" && apt-get -o APT::Sandbox::User=root download -qq "$image") >&2
	dpkg --extract "$work"/*.deb "$work/root"
	depmod --basedir "$work/root" "$release"
	mv -T "$work/root" "$dir"
fi
echo "$dir"
