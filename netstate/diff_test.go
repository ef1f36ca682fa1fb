package netstate_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/netstate"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
)

// changes captures a namespace before and after a script and returns the lines of the difference.
func changes(t *testing.T, n *ns.NS, script string) []string {
	t.Helper()
	before := capture(t, n, nil)
	sh(t, n, script)
	return lines(netstate.Diff(before, capture(t, n, nil)))
}

// lines renders the changes of a difference.
func lines(changes []netstate.Change) []string {
	var list []string
	for _, c := range changes {
		list = append(list, c.String())
	}
	return list
}

// checkLines compares lines with the words that each must begin with.
func checkLines(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.EqualFunc(got, want, strings.HasPrefix) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestDiffTentative compares a namespace whose IPv6 addresses are tentative with itself a moment later, when
// the kernel has made their routes.
func TestDiffTentative(t *testing.T) {
	needRoot(t)
	n := newNS(t)
	sh(t, n, `ip link add e0 type veth peer name e1; ip link set e1 up
		echo 1 > /proc/sys/net/ipv6/conf/e0/forwarding; ip link set e0 up; ip addr add fd01::1/64 dev e0`)
	wait := `while [ -n "$(ip -6 addr show tentative)" ]; do sleep 0.02; done`
	sh(t, n, `until [ "$(ip -6 addr show scope link | grep -c inet6)" = 2 ]; do sleep 0.02; done`) // they come with the carrier
	checkLines(t, changes(t, n, wait))
}

// TestDiffAddress expects one line for an address, not one more for each route that comes with it; and a line
// for such a route that somebody removed.
func TestDiffAddress(t *testing.T) {
	needRoot(t)
	n := newNS(t)
	sh(t, n, "ip link set lo up; ip link add e0 address 02:00:00:00:00:01 type veth peer name e1; ip link set e1 up addrgenmode none; ip link set e0 up addrgenmode none")
	checkLines(t, changes(t, n, "ip addr add 10.1.0.1/24 brd + dev e0; ip addr add fd01::1/128 dev e0 nodad noprefixroute"),
		"+ address inet 10.1.0.1/24", "+ address inet6 fd01::1/128", "+ route 10.1.0.0/24")
	checkLines(t, changes(t, n, "ip route del broadcast 10.1.0.255 dev e0 table local"), "- route broadcast 10.1.0.255")
	checkLines(t, changes(t, n, "ip route add local 10.9.0.0/16 dev lo proto kernel table local"), "+ route local 10.9.0.0/16")
}

// TestDiffOrder expects a moved rule to be told, and only that one.
func TestDiffOrder(t *testing.T) {
	needRoot(t)
	n := newNS(t)
	sh(t, n, `nft -f - <<-X
		table inet t {
			set s { type ipv4_addr; elements = { 10.0.0.1, 10.0.0.2, 10.0.0.3, 10.0.0.4 }; }
			chain c { tcp dport 1 accept; tcp dport 2 accept; tcp dport 3 accept; tcp dport 4 accept; tcp dport 2 accept; }
		}
	X
		ip rule add from 10.0.0.1 lookup 5 pref 9; ip rule add from 10.0.0.2 lookup 6 pref 9`)
	if got := changes(t, n, "true"); len(got) > 0 {
		t.Errorf("got %q", got)
	}
	checkLines(t, changes(t, n, `h=$(nft -a list chain inet t c | sed -n 's/.*dport 1 .*# handle //p')
		nft "delete rule inet t c handle $h; add rule inet t c tcp dport 1 accept"`),
		"- nft rule inet t c", "+ nft rule inet t c")
	checkLines(t, changes(t, n, `nft "delete element inet t s { 10.0.0.2 }; add element inet t s { 10.0.0.9 }"`),
		"- nft element inet t s { 0x0a000002 }", "+ nft element inet t s { 0x0a000009 }")
	checkLines(t, changes(t, n, "ip rule del from 10.0.0.1 lookup 5 pref 9; ip rule add from 10.0.0.1 lookup 5 pref 9"),
		"- rule 9: from 10.0.0.2", "+ rule 9: from 10.0.0.2")
}
