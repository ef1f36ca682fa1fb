package nftables_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/netstate/nftables"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/ns/nstest"
)

// large returns rulesets by name, big enough that starting nft doesn't count.
func large() map[string]string {
	var rules, elements, ranges, anonymous strings.Builder
	rules.WriteString("table inet r {\nchain in {\ntype filter hook input priority 0\n")
	anonymous.WriteString(rules.String())
	for i := range 10_000 {
		fmt.Fprintf(&rules, "ip saddr 10.%d.%d.1 tcp dport %d counter accept\n", i>>8, i&0xff, 1+i)
	}
	for i := range 2_000 {
		fmt.Fprintf(&anonymous, "ip saddr { 10.%d.%d.1, 10.%d.%d.2 } tcp dport { 80, 443, 1000-2000 } accept\n", i>>8, i&0xff, i>>8, i&0xff)
	}
	elements.WriteString("table inet e {\nset s {\ntype ipv4_addr . inet_service\nelements = {\n")
	ranges.WriteString("table inet i {\nset s {\ntype ipv4_addr\nflags interval\nelements = {\n")
	for i := range 100_000 {
		fmt.Fprintf(&elements, "10.%d.%d.%d . %d,\n", i>>16, i>>8&0xff, i&0xff, 1+i&0x3fff)
	}
	for i := range 50_000 {
		fmt.Fprintf(&ranges, "10.%d.%d.%d-10.%d.%d.%d,\n", i>>13, i>>5&0xff, i&0x1f*8, i>>13, i>>5&0xff, i&0x1f*8+6)
	}
	const end = "}\n}\n"
	return map[string]string{
		"rules=10000":      rules.String() + end,
		"elements=100000":  elements.String() + "}\n" + end,
		"intervals=50000":  ranges.String() + "}\n" + end,
		"anonymous=4000":   anonymous.String() + end,
		"rules=20":         "table inet f {\nchain in {\ntype filter hook input priority 0\n" + strings.Repeat("tcp dport 22 counter accept\n", 20) + end,
		"container=nat+20": "table ip n {\nchain p {\ntype nat hook prerouting priority dstnat\ntcp dport 80 redirect to :8080\n}\n}\ntable inet f {\nset s {\ntype ipv4_addr\nelements = { 10.0.0.1, 10.0.0.2 }\n}\nchain in {\ntype filter hook input priority 0\n" + strings.Repeat("ip saddr @s tcp dport 22 counter accept\n", 20) + end,
	}
}

// BenchmarkRuleset compares capture with `nft list ruleset` and applying with `nft -f`.
func BenchmarkRuleset(b *testing.B) {
	nstest.NeedRoot(b, "nft")
	for name, text := range large() {
		file := filepath.Join(b.TempDir(), "ruleset.nft")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			b.Fatal(err)
		}
		full := nstest.New(b)
		run(b, full, "nft", "-f", file)
		msgs, err := nftables.Capture(b.Context(), full)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name+"/capture", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := nftables.Capture(b.Context(), full); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/nft-list", func(b *testing.B) {
			for b.Loop() {
				run(b, full, "nft", "-j", "list", "ruleset")
			}
		})
		b.Run(name+"/plan", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := nftables.Plan(msgs); err != nil {
					b.Fatal(err)
				}
			}
		})
		plan, err := nftables.Plan(msgs)
		if err != nil {
			b.Fatal(err)
		}
		inFresh := func(fn func(n *ns.NS) error) func(*testing.B) {
			return func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					n, err := ns.Create()
					if err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
					if err := fn(n); err != nil {
						b.Fatal(err)
					}
					b.StopTimer()
					n.Close()
					b.StartTimer()
				}
			}
		}
		b.Run(name+"/apply", inFresh(func(n *ns.NS) error { return nftables.Apply(b.Context(), n, plan) }))
		b.Run(name+"/nft-f", inFresh(func(n *ns.NS) error {
			return n.Do(func() error { return exec.Command("nft", "-f", file).Run() })
		}))
	}
}
