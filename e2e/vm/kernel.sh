# Prints the directories that hold two of Debian's kernels for virtual machines, of different versions: the newest
# one, and another. Each has boot/vmlinuz-RELEASE, and lib/modules/RELEASE with its lists of dependencies. What is
# missing is fetched and unpacked beside the other ones; nothing is installed.
#
# They are taken from the machine's own package sources. If those have one kernel only, other suites of Debian's help
# out, from the machine's own mirror.
#
# Variables:
#   CACHE          where kernels are kept
#   DEBIAN_MIRROR  where Debian's packages are (default: the machine's own mirror; needed on Ubuntu)
#   DEBIAN_SUITE   the suites to help out, in the order in which they are asked (default bookworm trixie)
set -euo pipefail
export LC_ALL=C
PATH=$PATH:/usr/sbin:/sbin

die() {
	printf '%s\n' "$@" >&2
	exit 1
}

command -v apt-get >/dev/null || die "this system has no apt to fetch Debian's kernels with"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work" # apt downloads as the user _apt

# kernels [OPTION]... prints the version, package and apt's options of each kernel that there is: a release of Debian
# has one of its own, and may have the next release's. The packages with fixed names depend on those with a kernel.
kernels() {
	local meta image
	for meta in $(apt-cache "$@" search --names-only '^linux-image-([0-9.]+-)?amd64$' | cut -d ' ' -f 1); do
		image=$(apt-cache "$@" depends "$meta" | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p')
		[ -z "$image" ] || echo "$(apt-cache "$@" policy "$image" | sed -n 's/^ *Candidate: *//p') $image $*"
	done
}

# suite NAME prints the options that show apt another suite, in a world of its own.
suite() {
	local mirror=${DEBIAN_MIRROR:-} keyring
	# Only the archive proper: the security and third-party archives don't have all suites.
	[ -n "$mirror" ] || mirror=$(apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(SITE)' |
		sed -n 's/^Debian|Debian|\([a-z+]*:\/.*\)/\1/p' | sort -u | head -n 1)
	[ -n "$mirror" ] || die "this machine has no mirror of Debian configured: set DEBIAN_MIRROR=http://HOST/debian"
	keyring=$(ls /usr/share/keyrings/debian-archive-keyring.{pgp,gpg} 2>/dev/null | head -n 1) || true
	[ -n "$keyring" ] || die "the package debian-archive-keyring is missing: without it Debian's signatures can't be checked"
	local here=$work/$1
	mkdir -p "$here"/{lists,cache/archives}/partial
	: >"$here/status"
	echo "deb [arch=amd64 target=Packages signed-by=$keyring] $mirror $1 main" >"$here/sources.list"
	local options=(
		"Dir::State::lists=$here/lists" "Dir::State::status=$here/status" "Dir::Cache=$here/cache"
		"Dir::Etc::sourcelist=$here/sources.list" "Dir::Etc::sourceparts=/dev/null"
		"Dir::Etc::preferences=/dev/null" "Dir::Etc::preferencesparts=/dev/null"
		"Acquire::Languages=none" "APT::Update::Error-Mode=any"
	)
	apt-get "${options[@]/#/-o}" update -qq >&2
	echo "${options[@]/#/-o}"
}

# look fills the list of kernels, oldest first. They are of two branches at least: versions of one branch differ in
# the third number only.
look() {
	list=$(kernels | sort -V)
	if [ -z "$list" ]; then
		apt-get update -qq >&2 # a fresh machine has no package lists yet
		list=$(kernels | sort -V)
	fi
	local name options
	for name in ${DEBIAN_SUITE:-bookworm trixie}; do
		[ "$(branches)" -lt 2 ] || return 0
		options=$(suite "$name")
		list=$({ echo "$list" && kernels $options; } | sed '/^$/d' | sort -V)
	done
	[ "$(branches)" -ge 2 ] || die "no two kernels; the package sources have:" "$list"
}
branches() { cut -d . -f 1,2 <<<"$list" | sort -u | sed '/^$/d' | wc -l; }

# fetch VERSION IMAGE [OPTION]... unpacks a kernel, unless it is there.
fetch() {
	local dir=$CACHE/$2_$1 new=$CACHE/new
	[ ! -e "$dir" ] || return 0
	rm -rf "$new"
	mkdir "$new"
	# The user _apt can't write here, and apt says so.
	(cd "$new" && apt-get "${@:3}" -o APT::Sandbox::User=root download -qq "$2" $(parts "$2" "${@:3}")) >&2 &&
		find "$new" -name '*.deb' -exec dpkg --extract '{}' "$new/root" ';' &&
		{ [ -e "$new/root/lib/modules" ] || ln -s usr/lib "$new/root/lib"; } &&
		depmod --basedir "$new/root" "${2#linux-image-}" &&
		mv -T "$new/root" "$dir"
}

# parts IMAGE [OPTION]... prints the packages that hold parts of a kernel, as Debian has them since Linux 7.
parts() { apt-cache "${@:2}" depends "$1" | sed -n "s/^ *Depends: \(linux-[a-z]*-${1#linux-image-}\)\$/\1/p"; }

# provide fetches the newest and the oldest kernel of the list.
provide() {
	local version image options
	dirs=()
	while read -r version image options; do
		fetch "$version" "$image" $options || return
		dirs+=("$CACHE/${image}_$version")
	done < <(sed -n '$p' <<<"$list" && sed -n 1p <<<"$list")
}

mkdir -p "$CACHE"
exec 9<"$CACHE"
flock 9 # two test runs at once would fetch them twice

look
if ! provide; then
	apt-get update -qq >&2 # the package lists are older than the packages
	look
	provide
fi
printf '%s\n' "${dirs[@]}"
# What an upgrade of the packages left behind.
for dir in "$CACHE"/*; do
	[[ " ${dirs[*]} " == *" $dir "* ]] || rm -rf "$dir"
done
