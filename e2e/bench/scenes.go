package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// scene is a namespace with many objects of one kind, and how the usual tool takes and makes them.
type scene struct {
	name  string
	kind  netstate.Kind
	count int    // how many objects a capture holds at least; 0 does not look
	stage string // shell commands for what must be there before the objects
	input string // what the tool reads to make them
	apply []tool // the first also makes the namespace that is captured
	save  []tool
	goal  float64 // how many times faster than apply
	dumps []query // of the objects: what of a capture is the kernel's
	rest  bool    // the kernel goes on for seconds with what was made
}

// tool is a command of iproute2 or nft.
type tool struct {
	name string
	args []string // FILE stands for a file with the input
	from string   // a command whose output is the input, in place of the scene's
}

const twoEnds = `ip link set lo up
	ip link add e0 type veth peer name e1; ip link set e0 up; ip link set e1 up; ip addr add 10.0.0.1/8 dev e0`

func command(line string) tool { return tool{name: line, args: strings.Fields(line)} }

func batch() tool { return tool{name: "ip -batch", args: []string{"ip", "-batch", "FILE"}} }

// restore is one of iproute2's pairs of save and restore.
func restore(object string) tool {
	return tool{
		name: "ip " + object + " restore", args: []string{"sh", "-c", "ip " + object + " restore <FILE"},
		from: "ip " + object + " save",
	}
}

// whole shows as much of a namespace as a capture holds.
func whole() tool {
	return tool{name: "ip, bridge, tc, nft, sysctl", args: []string{"sh", "-euc", `ip -d link; ip addr; ip route show table all
		ip -6 route show table all; ip rule; ip neigh; bridge fdb; bridge vlan; bridge mdb; tc qdisc; nft list ruleset; sysctl -a --pattern ^net`}}
}

func scenes() []scene {
	var routes, addresses, neighbours, links, rules, elements strings.Builder
	for i := range 50_000 {
		fmt.Fprintf(&routes, "route add 100.%d.%d.0/24 via 10.0.0.9\n", i>>8, i&0xff)
	}
	for i := range 2_000 {
		fmt.Fprintf(&addresses, "addr add 10.%d.%d.1/32 dev e0\n", 1+i>>8, i&0xff)
	}
	for i := range 10_000 {
		fmt.Fprintf(&neighbours, "neigh add 10.1.%d.%d lladdr 02:00:00:00:%02x:%02x dev e0 nud permanent\n", i>>8, i&0xff, i>>8, i&0xff)
	}
	links.WriteString("link add br0 type bridge\nlink set br0 up\n")
	for i := range 249 {
		fmt.Fprintf(&links, "link add p%d type veth peer name q%d\nlink set p%d master br0 up\nlink set q%d up\n", i, i, i, i)
	}
	rules.WriteString("table inet r {\nchain in {\ntype filter hook input priority 0\n")
	for i := range 10_000 {
		fmt.Fprintf(&rules, "ip saddr 10.%d.%d.1 tcp dport %d counter accept\n", i>>8, i&0xff, 1+i)
	}
	elements.WriteString("table inet e {\nset s {\ntype ipv4_addr . inet_service\nelements = {\n")
	for i := range 100_000 {
		fmt.Fprintf(&elements, "10.%d.%d.%d . %d,\n", i>>16, i>>8&0xff, i&0xff, 1+i&0x3fff)
	}
	nft := tool{name: "nft -f", args: []string{"nft", "-f", "FILE"}}
	list := []tool{command("nft list ruleset"), command("nft -j list ruleset")}
	set := rawnl.AppendAttr(rawnl.AppendAttr([]byte{unix.NFPROTO_INET, 0, 0, 0}, unix.NFTA_SET_ELEM_LIST_TABLE, []byte("e\x00")),
		unix.NFTA_SET_ELEM_LIST_SET, []byte("s\x00"))
	// Statistics are left out, as the capture does.
	linkDump := rawnl.AppendAttr(make([]byte, unix.SizeofIfInfomsg), unix.IFLA_EXT_MASK, []byte{8, 0, 0, 0})
	return []scene{
		{
			name: "50,000 routes", kind: netstate.KindRoute, count: 50_000, stage: twoEnds, input: routes.String(), goal: 3,
			apply: []tool{batch(), restore("route")}, save: []tool{command("ip route save"), command("ip route show"), whole()},
			dumps: []query{route(unix.RTM_GETROUTE, append([]byte{unix.AF_INET}, make([]byte, unix.SizeofRtMsg-1)...))},
		},
		{
			name: "2,000 addresses", kind: netstate.KindAddress, count: 2_000, stage: twoEnds, input: addresses.String(), goal: 3,
			apply: []tool{batch(), restore("addr")}, save: []tool{command("ip addr save"), command("ip addr show"), whole()},
			dumps: []query{route(unix.RTM_GETADDR, make([]byte, unix.SizeofIfAddrmsg))},
		},
		{
			name: "10,000 neighbours", kind: netstate.KindNeigh, count: 10_000, stage: twoEnds, input: neighbours.String(), goal: 3,
			apply: []tool{batch()}, save: []tool{command("ip neigh show nud all"), whole()},
			dumps: []query{route(unix.RTM_GETNEIGH, make([]byte, 12))},
		},
		{
			name: "500 links", kind: netstate.KindLink, count: 500, stage: "ip link set lo up", input: links.String(), goal: 3,
			apply: []tool{batch()}, save: []tool{command("ip -d link show"), whole()}, rest: true,
			dumps: []query{route(unix.RTM_GETLINK, linkDump)},
		},
		{
			name: "10,000 nft rules", kind: netstate.KindNFTables, count: 10_000, stage: "true", input: rules.String() + "}\n}\n", goal: 1,
			apply: []tool{nft}, save: list,
			dumps: []query{{unix.NETLINK_NETFILTER, rawnl.Message{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE, Data: make([]byte, 4)}}},
		},
		{
			name: "100,000 set elements", kind: netstate.KindNFTables, stage: "true", input: elements.String() + "}\n}\n}\n", goal: 1,
			apply: []tool{nft}, save: list,
			dumps: []query{{unix.NETLINK_NETFILTER, rawnl.Message{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETSETELEM, Data: set}}},
		},
	}
}

const captureGoal = 3

// bench holds what the scenes share.
type bench struct {
	options
	host *ns.NS // where uplinks end
	dir  string // files for the tools
	open []*ns.NS
}

// part is a scene, or what is measured in another way.
type part struct {
	name string
	run  func(context.Context) ([]Result, error)
}

func (b *bench) parts() []part {
	var parts []part
	for _, s := range scenes() {
		parts = append(parts, part{s.name, func(ctx context.Context) ([]Result, error) { return b.scene(ctx, &s) }})
	}
	return append(parts, part{"container", b.container}, part{"many routes", b.many})
}

func measure(ctx context.Context, o options) (results []Result, err error) {
	b := &bench{options: o}
	if b.dir, err = os.MkdirTemp("", "nsmigrate-bench"); err != nil {
		return nil, err
	}
	defer os.RemoveAll(b.dir)
	if b.host, err = ns.Create(); err != nil {
		return nil, err
	}
	defer b.host.Close()
	var failures []error // one scene's does not hide the figures of the others
	for _, p := range b.parts() {
		if !b.only.MatchString(p.name) {
			continue
		}
		start := time.Now()
		r, err := p.run(ctx)
		b.clean()
		if err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", p.name, err))
		}
		results = append(results, r...)
		done(p.name, time.Since(start))
	}
	return results, errors.Join(failures...)
}

// fresh makes a namespace that lives until the scene is over: the kernel takes namespaces down in the
// background, and that must not count for what is measured meanwhile.
func (b *bench) fresh() (*ns.NS, error) {
	n, err := ns.Create()
	if err == nil {
		b.open = append(b.open, n)
	}
	return n, err
}

func (b *bench) clean() {
	for _, n := range b.open {
		n.Close()
	}
	b.open = nil
	time.Sleep(time.Second)
}

// run runs a tool inside a namespace and says how long it took.
func (b *bench) run(ctx context.Context, n *ns.NS, t tool, file string) (time.Duration, error) {
	args := make([]string, len(t.args))
	for i, a := range t.args {
		args[i] = strings.ReplaceAll(a, "FILE", file)
	}
	var took time.Duration
	err := n.Do(func() error {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		var complaint bytes.Buffer
		cmd.Stderr = &complaint
		start := time.Now()
		err := cmd.Run()
		took = time.Since(start)
		if err != nil {
			return fmt.Errorf("%s: %w: %s", t.name, err, bytes.TrimSpace(complaint.Bytes()))
		}
		return nil
	})
	return took, err
}

// shell runs commands inside a namespace.
func (b *bench) shell(ctx context.Context, n *ns.NS, script string) error {
	_, err := b.run(ctx, n, tool{name: "shell", args: []string{"sh", "-euc", script}}, "")
	return err
}

func (b *bench) capture(ctx context.Context, n *ns.NS, prev *netstate.State) (*netstate.State, time.Duration, error) {
	runtime.GC() // what earlier rounds left behind is not this one's
	start := time.Now()
	s, err := netstate.Capture(ctx, n, netstate.CaptureOptions{Host: b.host, Prev: prev})
	return s, time.Since(start), err
}

func (b *bench) build(ctx context.Context, n *ns.NS, s *netstate.State, host *ns.NS) (time.Duration, error) {
	runtime.GC()
	start := time.Now()
	err := netstate.Build(ctx, n, s, netstate.BuildOptions{Host: host})
	return time.Since(start), err
}

func (b *bench) scene(ctx context.Context, s *scene) ([]Result, error) {
	source, err := b.fresh()
	if err != nil {
		return nil, err
	}
	input := filepath.Join(b.dir, "input")
	if err := os.WriteFile(input, []byte(s.input), 0o600); err != nil {
		return nil, err
	}
	if err := b.shell(ctx, source, s.stage); err != nil {
		return nil, err
	}
	if _, err := b.run(ctx, source, s.apply[0], input); err != nil {
		return nil, err
	}
	files := make([]string, len(s.apply))
	for i, t := range s.apply {
		files[i] = input
		if t.from == "" {
			continue
		}
		files[i] = filepath.Join(b.dir, fmt.Sprintf("saved%d", i))
		if err := b.shell(ctx, source, t.from+" >"+files[i]); err != nil {
			return nil, err
		}
	}
	if s.rest {
		time.Sleep(settling)
	}
	// A round of ours and the tools' each: they share what else the machine does. First all captures, because the kernel
	// has work for seconds with what is built.
	var captured, dumped, applied, made []time.Duration
	saves, applies := make([][]time.Duration, len(s.save)), make([][]time.Duration, len(s.apply))
	var state *netstate.State
	for range b.rounds {
		var took time.Duration
		if state, took, err = b.capture(ctx, source, nil); err != nil {
			return nil, err
		}
		captured = append(captured, took)
		if took, err = drain(source, s.dumps); err != nil {
			return nil, err
		}
		dumped = append(dumped, took)
		for i, t := range s.save {
			if took, err = b.run(ctx, source, t, ""); err != nil {
				return nil, err
			}
			saves[i] = append(saves[i], took)
		}
	}
	for range b.rounds {
		if s.rest {
			time.Sleep(settling)
		}
		took, err := b.again(ctx, s, state)
		if err != nil {
			return nil, err
		}
		applied = append(applied, took)
		if took, err = b.bare(ctx, s, state); err != nil {
			return nil, err
		}
		made = append(made, took)
		for i, t := range s.apply {
			n, err := b.fresh()
			if err != nil {
				return nil, err
			}
			if err := b.shell(ctx, n, s.stage); err != nil {
				return nil, err
			}
			if s.rest {
				time.Sleep(settling)
			}
			if took, err = b.run(ctx, n, t, files[i]); err != nil {
				return nil, err
			}
			applies[i] = append(applies[i], took)
		}
	}
	var results []Result
	add := func(r Result, kernel []time.Duration) {
		of := milliseconds(kernel)
		r.Kernel = &of
		results = append(results, r)
	}
	for i, t := range s.save {
		add(faster(s.name+": capture", milliseconds(captured), t.name, milliseconds(saves[i]), captureGoal), dumped)
	}
	for i, t := range s.apply {
		add(faster(s.name+": apply", milliseconds(applied), t.name, milliseconds(applies[i]), s.goal), made)
	}
	return results, nil
}

// settling is how long the kernel is left alone with what was just made: new links look for duplicates of their addresses
// and tell of their multicast groups.
const settling = 3 * time.Second

// again builds a state in a fresh namespace, and looks whether it is there.
func (b *bench) again(ctx context.Context, s *scene, state *netstate.State) (time.Duration, error) {
	n, err := b.fresh()
	if err != nil {
		return 0, err
	}
	took, err := b.build(ctx, n, state, b.host)
	if err != nil {
		return 0, err
	}
	built, _, err := b.capture(ctx, n, nil)
	if err != nil {
		return 0, err
	}
	if have := len(built.Messages[s.kind]); have < s.count {
		return 0, fmt.Errorf("built %d of %d objects of kind %s", have, s.count, s.kind)
	}
	return took, nil
}

// typical is what container engines make: a loopback device, a veth to a bridge, two addresses, five routes, and
// twenty rules.
const typical = `ip link set lo up
	ip addr add 10.0.0.2/24 dev eth0; ip addr add fd00::2/64 dev eth0 nodad; ip link set eth0 up
	ip route add default via 10.0.0.1; ip -6 route add default via fd00::1
	for i in 1 2 3; do ip route add 192.0.$i.0/24 via 10.0.0.$i; done
	nft add table inet filter; nft 'add chain inet filter input { type filter hook input priority 0; }'
	for i in $(seq 20); do echo "add rule inet filter input ip saddr 10.1.1.$i tcp dport $i accept"; done | nft -f -`

func (b *bench) container(ctx context.Context) ([]Result, error) {
	source, err := b.fresh()
	if err != nil {
		return nil, err
	}
	if err := b.shell(ctx, b.host, `ip link add br0 type bridge; ip link set br0 up`); err != nil {
		return nil, err
	}
	// Descriptor 3 is the child's: ip(8) takes a process or a name, and a name would have to be given and taken away.
	err = b.host.Do(func() error {
		cmd := exec.CommandContext(ctx, "sh", "-euc", "ip link add veth-svc type veth peer name eth0 netns /proc/self/fd/3; ip link set veth-svc master br0 up")
		cmd.ExtraFiles = []*os.File{source.File()}
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := b.shell(ctx, source, typical); err != nil {
		return nil, err
	}
	first, _, err := b.capture(ctx, source, nil)
	if err != nil {
		return nil, err
	}
	var full, again, built, shown []time.Duration
	var s *netstate.State
	for range 5 * b.rounds {
		var took time.Duration
		if s, took, err = b.capture(ctx, source, nil); err != nil {
			return nil, err
		}
		full = append(full, took)
		if _, took, err = b.capture(ctx, source, first); err != nil {
			return nil, err
		}
		again = append(again, took)
		if took, err = b.run(ctx, source, whole(), ""); err != nil {
			return nil, err
		}
		shown = append(shown, took)
	}
	for range 5 * b.rounds {
		target, err := b.fresh()
		if err != nil {
			return nil, err
		}
		host, err := b.fresh()
		if err != nil {
			return nil, err
		}
		if err := b.shell(ctx, host, `ip link add br0 type bridge; ip link set br0 up`); err != nil {
			return nil, err
		}
		took, err := b.build(ctx, target, s, host)
		if err != nil {
			return nil, err
		}
		built = append(built, took)
	}
	return []Result{
		within("container: capture", "ms", milliseconds(full), 2),
		faster("container: capture", milliseconds(full), whole().name, milliseconds(shown), captureGoal),
		within("container: capture again, for the switch", "ms", milliseconds(again), 2),
		within("container: build", "ms", milliseconds(built), 10),
	}, nil
}
