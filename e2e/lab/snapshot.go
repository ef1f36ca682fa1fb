package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Snapshot is everything on a host that an operation could leave behind, one line a thing.
type Snapshot map[string]struct{}

// Snapshot takes the host's inventory: processes, mounts, files, and of the host's own and every named
// network namespace the links and the nftables.
func (h *Host) Snapshot(ctx context.Context) (Snapshot, error) {
	s := Snapshot{}
	for _, p := range h.Processes() {
		s.add("process %d %s (%s) [%s]", p.PID, p.Name, p.Command, zombie(p.State))
	}
	if err := s.addMounts(h); err != nil {
		return nil, err
	}
	for _, dir := range append(ownTmpfs, h.Dir) {
		if err := s.addFiles(h, dir); err != nil {
			return nil, err
		}
	}
	names, err := h.netnsNames(ctx)
	if err != nil {
		return nil, err
	}
	for _, name := range append(names, "") {
		if err := s.addNetwork(ctx, h, name); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func zombie(state string) string {
	if state == "Z" {
		return "zombie"
	}
	return "alive"
}

func (s Snapshot) add(format string, args ...any) { s[fmt.Sprintf(format, args...)] = struct{}{} }

func (s Snapshot) addMounts(h *Host) error {
	info, err := readText(h.Path("/proc/1/mountinfo"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(info) {
		left, right, _ := strings.Cut(line, " - ")
		f := strings.Fields(left)
		if slices.Contains(byTools, f[4]) {
			continue
		}
		s.add("mount %s %s of %s", f[4], f[3], strings.Fields(right)[0])
	}
	return nil
}

// byTools are files that standard tools make on their first use and keep: the directory of ip-netns(8), that
// of mount(8), CRIU's cache of the kernel's features, the lock of iptables(8), and the empty directory of sshd(8).
var byTools = []string{"/run/netns", "/run/mount", "/run/criu.kdat", "/run/xtables.lock", "/run/sshd", StateDir}

func (s Snapshot) addFiles(h *Host, dir string) error {
	root := h.Path(dir)
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		name := filepath.Join(dir, strings.TrimPrefix(path, root))
		switch {
		case err != nil || name == dir: // gone meanwhile
		case slices.Contains(byTools, name), name == h.shared && dir != h.Dir: // shared is nobody's alone
			if d.IsDir() {
				return fs.SkipDir
			}
		default:
			s.add("file %s", name)
		}
		return nil
	})
}

func (h *Host) netnsNames(ctx context.Context) ([]string, error) {
	var list []struct{ Name string }
	if err := h.JSON(ctx, &list, "ip", "-j", "netns", "list"); err != nil {
		return nil, err
	}
	var names []string
	for _, n := range list {
		names = append(names, n.Name)
	}
	return names, nil
}

func (s Snapshot) addNetwork(ctx context.Context, h *Host, name string) error {
	where, ip, nft := "host", []string{"ip", "-j"}, []string{"nft", "-j", "list", "ruleset"}
	if name != "" {
		where = "netns " + name
		s.add("%s", where)
		ip = []string{"ip", "-n", name, "-j"}
		nft = append([]string{"ip", "netns", "exec", name}, nft...)
	}
	var links []struct {
		IfName    string `json:"ifname"`
		Address   string
		Master    string
		OperState string
	}
	if err := h.JSON(ctx, &links, append(ip, "link")...); err != nil {
		return err
	}
	for _, l := range links {
		s.add("%s: link %s %s master %q %s", where, l.IfName, l.Address, l.Master, l.OperState)
	}
	var rules struct{ NFTables []map[string]json.RawMessage }
	if err := h.JSON(ctx, &rules, nft...); err != nil {
		return err
	}
	for _, object := range rules.NFTables {
		for kind, body := range object {
			if kind != "metainfo" {
				s.add("%s: nft %s %s", where, kind, body)
			}
		}
	}
	return nil
}

// JSON runs a command that has to succeed and decodes its output. No output is an empty answer.
func (h *Host) JSON(ctx context.Context, into any, args ...string) error {
	out, err := h.Output(ctx, args...)
	if err != nil || strings.TrimSpace(out) == "" {
		return err
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		return fmt.Errorf("%s: %s: %w", h.Name, strings.Join(args, " "), err)
	}
	return nil
}

// Diff lists what is in only one of two snapshots: "+" marks what came after s, "-" what went.
func (s Snapshot) Diff(later Snapshot) []string {
	var lines []string
	for _, line := range slices.Sorted(maps.Keys(later)) {
		if _, ok := s[line]; !ok {
			lines = append(lines, "+ "+line)
		}
	}
	for _, line := range slices.Sorted(maps.Keys(s)) {
		if _, ok := later[line]; !ok {
			lines = append(lines, "- "+line)
		}
	}
	return lines
}

// Same waits until the host's inventory equals the snapshot, for the kernel finishes removals (a killed
// process, the links of a namespace) after the call that asked for them. If the context ends first, the
// error lists the difference.
func (h *Host) Same(ctx context.Context, want Snapshot) error {
	return Eventually(ctx, func() error {
		got, err := h.Snapshot(context.WithoutCancel(ctx))
		if err != nil {
			return err
		}
		if diff := want.Diff(got); len(diff) > 0 {
			return fmt.Errorf("%s differs from before:\n  %s", h.Name, strings.Join(diff, "\n  "))
		}
		return nil
	})
}

func readText(path string) (string, error) {
	b, err := os.ReadFile(path)
	return string(b), err
}
