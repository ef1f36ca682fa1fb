// Package iptables carries the rules of the legacy xtables: ip_tables, ip6_tables and arp_tables, which have
// no netlink and whose binary form depends on the kernel and its word size. Their own tools save and
// restore them as text. Rules that iptables-nft and its siblings write are nftables rules; they belong to
// package nftables.
//
// Bridge tables of the legacy kind (ebtables) can't be seen without creating them: the kernel has no file
// that names those in use, and asking it for one instantiates the table (net/bridge/netfilter/ebtables.c).
// They aren't carried.
package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
)

// Table is what one tool saved: all tables of one protocol, with counters where the tool knows them, in the tool's own notation.
type Table struct {
	Tool string // the tool's name without -save or -restore: "iptables-legacy"
	Text string
}

// ToolError means that a namespace has legacy tables and this host lacks the tool to save or restore them.
type ToolError struct {
	Tool string // "iptables-legacy-save"
}

func (e *ToolError) Error() string {
	return fmt.Sprintf("legacy xtables rules need %s, which this host lacks", e.Tool)
}

// protocol is one of the kernel's legacy tables.
type protocol struct {
	names   string   // the file that lists the tables in use, below /proc/net
	tool    string   // the name in a Table
	also    string   // the tool's name on older systems, where it is the only kind
	save    []string // arguments for saving and restoring with counters, and for waiting for the lock
	restore []string
}

func protocols() []protocol {
	return []protocol{
		{"ip_tables_names", "iptables-legacy", "iptables", []string{"-c"}, []string{"-c", "-w"}},
		{"ip6_tables_names", "ip6tables-legacy", "ip6tables", []string{"-c"}, []string{"-c", "-w"}},
		{"arp_tables_names", "arptables-legacy", "arptables", nil, nil}, // knows neither
	}
}

// Capture saves the legacy tables that are in use in a namespace; none is no error. It looks at the lists
// of tables first: they are cheap to read, and reading neither loads a module nor creates a table, as the
// tools do. The error is a [*ToolError] if tables are in use and the tool is missing.
func Capture(ctx context.Context, n *ns.NS) ([]Table, error) {
	return captureIn(ctx, n, sbin())
}

// sbin lists where the tools are besides PATH, which may be that of a user who isn't root.
func sbin() []string { return []string{"/usr/sbin", "/sbin"} }

func captureIn(ctx context.Context, n *ns.NS, dirs []string) ([]Table, error) {
	var tables []Table
	err := n.Do(func() error {
		for _, p := range protocols() {
			// thread-self, because only this thread is inside the namespace.
			names, err := os.ReadFile(filepath.Join("/proc/thread-self/net", p.names))
			if errors.Is(err, fs.ErrNotExist) || err == nil && len(bytes.TrimSpace(names)) == 0 {
				continue
			}
			if err != nil {
				return fmt.Errorf("list legacy tables: %w", err)
			}
			text, err := p.run(ctx, dirs, "-save", "", p.save)
			if err != nil {
				return fmt.Errorf("save: %w", err)
			}
			tables = append(tables, Table{Tool: p.tool, Text: sortTables(dropComments(text))})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("capture legacy iptables: %w", err)
	}
	return tables, nil
}

// Apply restores tables in a namespace; each table named in the text replaces what it held before. The
// error is a [*ToolError] if a tool is missing.
func Apply(ctx context.Context, n *ns.NS, tables []Table) error {
	for _, t := range tables {
		if err := Validate(t); err != nil {
			return fmt.Errorf("apply legacy iptables: %w", err)
		}
	}
	if len(tables) == 0 {
		return nil
	}
	err := n.Do(func() error {
		for _, t := range tables {
			for _, p := range protocols() {
				if p.tool != t.Tool {
					continue
				}
				if _, err := p.run(ctx, sbin(), "-restore", t.Text, p.restore); err != nil {
					return fmt.Errorf("restore: %w", err)
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("apply legacy iptables: %w", err)
	}
	return nil
}

// run runs the protocol's tool on the calling thread, which is inside the namespace, and returns what it
// prints.
func (p protocol) run(ctx context.Context, dirs []string, suffix, stdin string, args []string) (string, error) {
	path, err := p.find(ctx, dirs, suffix)
	if err != nil {
		return "", err
	}
	var out, complaint bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &complaint
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", filepath.Base(path), err, firstLine(complaint.String()))
	}
	return out.String(), nil
}

// find returns the tool's path. The name without "-legacy" is taken only if the tool doesn't say that it
// is of the nf_tables kind.
func (p protocol) find(ctx context.Context, dirs []string, suffix string) (string, error) {
	if path := lookPath(dirs, p.tool+suffix); path != "" {
		return path, nil
	}
	if path := lookPath(dirs, p.also+suffix); path != "" {
		version, err := exec.CommandContext(ctx, path, "-V").Output()
		if err == nil && !strings.Contains(string(version), "nf_tables") {
			return path, nil
		}
	}
	return "", &ToolError{Tool: p.tool + suffix}
}

// lookPath finds a program on PATH or in one of dirs; "" if it is nowhere.
func lookPath(dirs []string, name string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, dir := range dirs {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	return ""
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

// Validate reports whether a table from a file can be given to a tool: the tool is one of ours and the text
// has only the lines that a save writes (table, chain, rule, COMMIT).
func Validate(t Table) error {
	known := false
	for _, p := range protocols() {
		known = known || p.tool == t.Tool
	}
	if !known {
		return fmt.Errorf("%q is no legacy xtables tool", t.Tool)
	}
	for line := range strings.Lines(t.Text) {
		line = strings.TrimRight(line, "\n")
		if line == "" || line == "COMMIT" || strings.ContainsRune("*:[-#", rune(line[0])) && !strings.ContainsRune(line, 0) {
			continue
		}
		return fmt.Errorf("%s: %q is no line of a saved table", t.Tool, line)
	}
	return nil
}

// Normalize returns a saved text without what may differ between equal rules, for comparison: comments,
// which hold the time, and counters of chains and rules.
func Normalize(text string) string {
	counters := regexp.MustCompile(`(?m)^\[\d+:\d+\] | \[\d+:\d+\]$`)
	return counters.ReplaceAllString(dropComments(text), "")
}

func dropComments(text string) string {
	var kept strings.Builder
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "#") {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

// sortTables orders the tables of a saved text by name. The kernel lists them youngest first, and each
// stands for itself.
func sortTables(text string) string {
	const end = "\nCOMMIT\n"
	tables := strings.SplitAfter(text, end)
	slices.Sort(tables)
	return strings.Join(tables, "")
}
