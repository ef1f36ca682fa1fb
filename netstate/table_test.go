package netstate_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/netstate"
	"github.com/nsmigrate/nsmigrate/netstate/genl"
)

// row is one row of the tables in KINDS.md.
type row struct {
	line    int
	names   []string // in the first cell, as code
	verdict string
	text    string
	tests   []string
}

// readTables returns the rows of KINDS.md by their heading.
func readTables(t *testing.T) map[string][]row {
	t.Helper()
	text, err := os.ReadFile("KINDS.md")
	if err != nil {
		t.Fatal(err)
	}
	code := regexp.MustCompile("`([^`]+)`")
	words := func(cell string) (list []string) {
		for _, m := range code.FindAllStringSubmatch(cell, -1) {
			list = append(list, m[1])
		}
		return list
	}
	tables := map[string][]row{}
	heading := ""
	for i, line := range strings.Split(string(text), "\n") {
		if rest, ok := strings.CutPrefix(line, "## "); ok {
			heading = rest
		}
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|---") || strings.HasSuffix(line, "| test |") {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if len(cells) != 4 {
			t.Fatalf("KINDS.md:%d: %d cells", i+1, len(cells))
		}
		tables[heading] = append(tables[heading], row{i + 1, words(cells[0]), strings.TrimSpace(cells[1]), strings.TrimSpace(cells[2]), words(cells[3])})
	}
	return tables
}

// TestTable holds KINDS.md against the code: every kind that the code knows has a row with the same verdict, and
// every row names tests that exist.
func TestTable(t *testing.T) {
	tables := readTables(t)
	exists := testNames(t)
	for heading, rows := range tables {
		for _, r := range rows {
			if !slices.Contains([]string{"yes", "partly", "no"}, r.verdict) {
				t.Errorf("KINDS.md:%d: carried: %q", r.line, r.verdict)
			}
			if r.verdict != "yes" && r.text == "" {
				t.Errorf("KINDS.md:%d: no reason is given", r.line)
			}
			if len(r.tests) == 0 {
				t.Errorf("KINDS.md:%d: no test is named", r.line)
			}
			for _, test := range r.tests {
				if !exists(test) {
					t.Errorf("KINDS.md:%d: there is no test %s", r.line, test)
				}
			}
		}
		if heading != "Links" && heading != "Objects" {
			t.Errorf("KINDS.md has rows below %q", heading)
		}
	}
	links := map[string]row{}
	for _, r := range tables["Links"] {
		for _, name := range r.names {
			links[name] = r
		}
	}
	kinds := netstate.LinkKinds()
	for kind, carried := range kinds {
		r, ok := links[kind]
		if !ok {
			t.Errorf("KINDS.md has no row for links of kind %s", kind)
		} else if carried == (r.verdict == "no") {
			t.Errorf("KINDS.md:%d: carried: %s, but the code says %v", r.line, r.verdict, carried)
		}
	}
	fallbacks := netstate.FallbackKinds()
	for name := range fallbacks {
		if _, ok := links[name]; !ok {
			t.Errorf("KINDS.md has no row for the fallback device %s", name)
		}
	}
	for name, r := range links {
		_, known := kinds[name]
		if _, fallback := fallbacks[name]; !known && !fallback && name != "lo" {
			t.Errorf("KINDS.md:%d: the code knows no links of kind %s", r.line, name)
		}
	}
	objects := map[string]bool{}
	for _, r := range tables["Objects"] {
		for _, name := range r.names {
			objects[name] = true
		}
	}
	for _, kind := range netstate.Kinds() {
		if kind != netstate.KindLink && !objects[kind.String()] {
			t.Errorf("KINDS.md has no row for objects of kind %s", kind)
		}
	}
	for _, family := range genl.Families() {
		if !objects[family] {
			t.Errorf("KINDS.md has no row for the family %s of generic netlink", family)
		}
	}
}

// testNames returns a function that tells whether there is a test: "TestKinds/gre" is the function TestKinds of this
// package, which runs a subtest of a name that is written down in the package; "tc.TestReplay/u32" is one of package
// tc below this one.
func testNames(t *testing.T) func(name string) bool {
	type tests struct {
		functions map[string]bool
		names     map[string]bool
	}
	packages := map[string]tests{}
	read := func(dir string) tests {
		found := tests{map[string]bool{}, map[string]bool{}}
		files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.FuncDecl:
					found.functions[n.Name.Name] = true
				case *ast.BasicLit:
					if text, err := strconv.Unquote(n.Value); err == nil && n.Kind == token.STRING {
						found.names[text] = true
					}
				}
				return true
			})
		}
		return found
	}
	return func(name string) bool {
		dir := "."
		if pkg, rest, ok := strings.Cut(name, ".Test"); ok {
			dir, name = pkg, "Test"+rest
		}
		if dir == "e2e" {
			dir = filepath.Join("..", "e2e")
		}
		if _, ok := packages[dir]; !ok {
			packages[dir] = read(dir)
		}
		function, sub, hasSub := strings.Cut(name, "/")
		return packages[dir].functions[function] && (!hasSub || packages[dir].names[sub])
	}
}
