package main_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/nsmigrate/nsmigrate/"

// An importRule is one line of the architecture: imports run downwards only,
// cmd -> transfer -> restore -> checkpoint -> netstate.
// Every path stands for itself and everything below it; those of the module are relative to its root.
type importRule struct {
	from   []string // who is bound by the rule: everybody, if empty
	except []string // and who isn't
	deny   []string // what they must not import
	reason string
}

var importRules = []importRule{
	{
		from:   []string{"netstate"},
		deny:   []string{"checkpoint", "restore", "transfer"},
		reason: "netstate is the ground floor: a namespace as data, without a thought of processes, images or other hosts",
	},
	{
		from:   []string{"checkpoint"},
		deny:   []string{"restore", "transfer"},
		reason: "a frozen service is the same however it travels and wherever it comes back",
	},
	{
		from:   []string{"restore"},
		deny:   []string{"transfer"},
		reason: "the way back is the same whatever brought the image",
	},
	{
		from:   []string{"transfer"},
		deny:   []string{"netstate/rawnl", "github.com/vishvananda/netlink", "checkpoint/criu"},
		reason: "transfer moves bytes and decides who lives: the kernel and CRIU stand behind its small interfaces, so that every crash can be tested without either",
	},
	{
		except: []string{"cmd"},
		deny:   []string{"cmd", "github.com/urfave/cli"},
		reason: "flags, output and exit codes are the command line's: a room takes an options struct and returns data",
	},
	{
		except: []string{"checkpoint/criu"},
		deny:   []string{"github.com/checkpoint-restore/go-criu"},
		reason: "checkpoint/criu alone knows how CRIU is spoken to: its client has traps that are avoided in one place",
	},
	{
		except: []string{"e2e"},
		deny:   []string{"e2e"},
		reason: "the product does not depend on its tests",
	},
	{
		from:   []string{"e2e"},
		except: []string{"e2e/bench"}, // which times the rooms themselves, without the start of a process
		deny:   []string{"cmd", "transfer", "restore", "checkpoint", "netstate"},
		reason: "the end-to-end tests see what a user sees: a program, what it prints and the files it leaves",
	},
}

// violated returns the rule that forbids from to import imported, or nil. Both are import paths.
func violated(from, imported string) *importRule {
	for i, rule := range importRules {
		bound := len(rule.from) == 0 || within(from, rule.from)
		if bound && !within(from, rule.except) && within(imported, rule.deny) {
			return &importRules[i]
		}
	}
	return nil
}

// within reports whether an import path is one of the given paths or below one.
func within(path string, paths []string) bool {
	path = strings.TrimPrefix(path, module)
	return slices.ContainsFunc(paths, func(p string) bool {
		return path == p || strings.HasPrefix(path, p+"/")
	})
}

// Every import of every file of the module, tests and other systems' files included, keeps to the rules.
func TestImportsRunDownwards(t *testing.T) {
	root := filepath.Join("..", "..")
	checked := 0
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && path != root && strings.HasPrefix(entry.Name(), "."), entry.Name() == "testdata":
			return fs.SkipDir
		case filepath.Ext(path) != ".go":
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		checked++
		pkg := module + filepath.Dir(name)
		for _, spec := range file.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if rule := violated(pkg, imported); rule != nil {
				t.Errorf("%s imports %s: %s", name, imported, rule.reason)
			}
		}
		if !within(pkg, []string{"cmd", "transfer", "restore", "checkpoint", "netstate", "e2e"}) {
			t.Errorf("%s stands in none of the module's rooms: a new one needs its import rules", name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if checked == 0 {
		t.Error("no Go file was found: nothing was checked")
	}
}

// The rules say what they are meant to say.
func TestImportRules(t *testing.T) {
	for _, test := range []struct {
		from, imported string
		allowed        bool
	}{
		{module + "cmd/nsmigrate", module + "transfer", true},
		{module + "cmd/nsmigrate", "github.com/urfave/cli/v2", true},
		{module + "transfer", module + "checkpoint", true},
		{module + "restore", module + "checkpoint/criu", true},
		{module + "checkpoint", module + "netstate/rawnl", true},
		{module + "checkpoint/criu", "github.com/checkpoint-restore/go-criu/v8/rpc", true},
		{module + "netstate", module + "netstate/ns", true},
		{module + "e2e/demo", module + "e2e/lab", true},

		{module + "netstate/ns", module + "checkpoint", false},
		{module + "checkpoint/criu", module + "restore", false},
		{module + "checkpoint", module + "transfer", false},
		{module + "restore", module + "transfer", false},
		{module + "transfer", module + "checkpoint/criu", false},
		{module + "transfer/ssh", "github.com/vishvananda/netlink", false},
		{module + "transfer", module + "cmd/nsmigrate", false},
		{module + "restore", "github.com/urfave/cli/v2", false},
		{module + "restore", "github.com/checkpoint-restore/go-criu/v8/rpc", false},
		{module + "cmd/nsmigrate", module + "e2e/lab", false},
		{module + "e2e", module + "checkpoint", false},
	} {
		if got := violated(test.from, test.imported) == nil; got != test.allowed {
			t.Errorf("%s importing %s: allowed %v, want %v", test.from, test.imported, got, test.allowed)
		}
	}
}
