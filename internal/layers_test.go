// Package internal holds no code: this test keeps the order of the packages below it.
package internal

import (
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// rules is the architecture as a test can check it (docs/architecture.md, "Packages and the direction of imports").
type rules struct {
	// level of each package of internal/; a package below it (internal/transport/transportpb) belongs to it. Imports go
	// to lower levels only.
	level map[string]int
	// sideways lists the imports allowed within a level.
	sideways map[string][]string
	// embed is what the module's root package may import.
	embed []string
	// testOnly are helper packages that test files of any level may import, and nothing else may.
	testOnly []string
	// free are the folders outside of internal/ that may import anything.
	free []string
}

var layers = rules{
	level: map[string]int{
		"node": 5, "cli": 5, "ctl": 5, "admin": 5, "sim": 5,
		"server": 4, "broker": 4,
		"group": 3, "txn": 3, "controller": 3, "scrub": 3, "cleaner": 3,
		"partition": 2, "membership": 2, "cluster": 2, // cluster: the observed side of the cluster, over metadata, multiraft and transport
		"multiraft": 1, "metadata": 1, "auth": 1,
		"wal": 0, "transport": 0, "segment": 0, "record": 0, "config": 0, "vfs": 0, "clock": 0, "netlimit": 0, "throttle": 0,
	},
	sideways: map[string][]string{
		"wal":       {"vfs", "clock"},
		"segment":   {"vfs", "clock", "record"},
		"transport": {"clock", "netlimit"},
		// node opens and closes what admin serves, and cli starts a node for its server command. Neither knows the other, and
		// node does not know cli. sim runs nodes' parts on simulated machines, and cli runs sim.
		"node": {"admin"},
		"sim":  {"node"},
		"cli":  {"node", "ctl", "sim"},
	},
	embed:    []string{"node", "config"},
	testOnly: []string{"freeport", "leaktest"},
	free:     []string{"cmd", "test", "bench"},
}

const listThem = "list it in layers, internal/layers_test.go, at its level in the architecture"

// check returns, sorted, one line for every import in the module at root that the rules forbid, and the packages it read.
func (r rules) check(root, module string) (bad []string, seen map[string]bool, err error) {
	seen = make(map[string]bool)
	fset := token.NewFileSet()
	err = filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := e.Name()
		if e.IsDir() {
			if p != root && (strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") || name == "testdata" || name == "vendor") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		// Whatever its build tags: what is forbidden on one system is forbidden on all.
		f, err := parser.ParseFile(fset, p, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		seen[path.Dir(rel)] = true
		for _, spec := range f.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			to, ours := inModule(imp, module)
			if !ours {
				continue
			}
			if why := r.forbids(path.Dir(rel), to, strings.HasSuffix(name, "_test.go")); why != "" {
				bad = append(bad, fmt.Sprintf("%s:%d imports %s: %s", rel, fset.Position(spec.Pos()).Line, imp, why))
			}
		}
		return nil
	})
	for dir := range seen {
		if pkg := internalPackage(dir); pkg != "" && !r.knows(pkg) {
			bad = append(bad, fmt.Sprintf("%s: internal/%s is an unknown package: %s", dir, pkg, listThem))
		}
	}
	slices.Sort(bad)
	return bad, seen, err
}

// inModule returns the import's folder in the module, "." for its root.
func inModule(imp, module string) (string, bool) {
	if imp == module {
		return ".", true
	}
	return strings.CutPrefix(imp, module+"/")
}

// internalPackage returns the name below internal/ that a folder belongs to, or "".
func internalPackage(dir string) string {
	rest, ok := strings.CutPrefix(dir, "internal/")
	if !ok {
		return ""
	}
	name, _, _ := strings.Cut(rest, "/")
	return name
}

func (r rules) knows(pkg string) bool {
	_, ok := r.level[pkg]
	return ok || slices.Contains(r.testOnly, pkg)
}

// forbids says why a file in folder from may not import folder to, or "".
func (r rules) forbids(from, to string, test bool) string {
	top, _, _ := strings.Cut(from, "/")
	if slices.Contains(r.free, top) {
		return ""
	}
	target := internalPackage(to)
	if from == "." {
		if slices.Contains(r.embed, target) || test && (to == "." || slices.Contains(r.testOnly, target)) {
			return ""
		}
		return "the root package imports only internal/" + strings.Join(r.embed, " and internal/")
	}
	self := internalPackage(from)
	switch {
	case from == "internal":
		return "internal itself holds no code that imports any"
	case self == "":
		return "a folder the architecture does not name: list it in layers, internal/layers_test.go, if it may import anything"
	case target == "":
		return "internal packages import internal packages only: not the root package, not cmd, test or bench"
	case self == target:
		return ""
	case slices.Contains(r.testOnly, target):
		if test || slices.Contains(r.testOnly, self) {
			return ""
		}
		return "only tests may import it"
	case slices.Contains(r.testOnly, self):
		return "a test helper that every level may use imports no level"
	case !r.knows(self) || !r.knows(target):
		return "unknown package: " + listThem
	}
	mine, theirs := r.level[self], r.level[target]
	switch {
	case mine > theirs:
		return ""
	case mine < theirs:
		return fmt.Sprintf("upward, from level %d to level %d: declare an interface in %s and let node plug it in", mine, theirs, self)
	case test || slices.Contains(r.sideways[self], target):
		return "" // a test may use a neighbour, but not what is built on the package
	}
	return fmt.Sprintf("sideways within level %d, which the architecture does not list for %s", mine, self)
}

// moduleRoot finds the folder of go.mod and the module's name.
func moduleRoot(t *testing.T) (root, module string) {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		b, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil {
			for line := range strings.Lines(string(b)) {
				if name, ok := strings.CutPrefix(line, "module "); ok {
					return dir, strings.TrimSpace(name)
				}
			}
			t.Fatalf("no module line in %s/go.mod", dir)
		}
		if !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			t.Fatalf("no go.mod above the test: %v", err)
		}
		dir = filepath.Dir(dir)
	}
}

func TestImportsPointDownward(t *testing.T) {
	root, module := moduleRoot(t)
	bad, seen, err := layers.check(root, module)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range bad {
		t.Error(b)
	}
	// A walk that misses the packages would find nothing wrong with them.
	entries, err := os.ReadDir(filepath.Join(root, "internal"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		files, err := filepath.Glob(filepath.Join(root, "internal", e.Name(), "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		if e.IsDir() && len(files) > 0 && !seen["internal/"+e.Name()] {
			t.Errorf("internal/%s was not checked", e.Name())
		}
	}
	if !seen["internal/vfs"] || !seen["internal"] {
		t.Errorf("only %d folders were checked", len(seen))
	}
}

// Each forbidden kind of import, planted into a small tree, is found, with file, line and reason; each allowed kind is not.
func TestPlantedImportsAreFound(t *testing.T) {
	const module = "example.com/m"
	planted := rules{
		level: layers.level, sideways: layers.sideways, embed: layers.embed, free: layers.free, testOnly: []string{"testkit"},
	}
	for _, c := range []struct {
		file, imports, want string // want: part of the line reported, "" where the import is allowed
	}{
		{"internal/wal/log.go", "internal/multiraft", "upward, from level 0 to level 1"},
		{"internal/partition/p.go", "internal/broker", "upward, from level 2 to level 4"},
		{"internal/wal/log_windows.go", "internal/node", "upward"},
		{"internal/transport/transportpb/pb.go", "internal/multiraft", "upward, from level 0 to level 1"},
		{"internal/wal/log_test.go", "internal/multiraft", "upward"},
		{"internal/group/g.go", "internal/controller", "sideways within level 3"},
		{"internal/group/g.go", "internal/controller/bootstrap", "sideways within level 3"},
		{"internal/vfs/v.go", "internal/clock", "sideways within level 0"},
		{"internal/admin/a.go", "internal/node", "sideways within level 5"},
		{"internal/admin/a.go", "internal/cli", "sideways within level 5"},
		{"internal/node/n.go", "internal/cli", "sideways within level 5"},
		{"internal/novel/n.go", "internal/vfs", "list it in layers"},
		{"internal/wal/log.go", "internal/novel", "list it in layers"},
		{"internal/novel/n.go", "", "internal/novel is an unknown package"},
		{"internal/wal/log.go", "cmd/chronik", "internal packages import internal packages only"},
		{"internal/wal/log.go", ".", "internal packages import internal packages only"},
		{"internal/wal/log.go", "internal/testkit", "only tests may import it"},
		{"internal/testkit/k.go", "internal/wal", "a test helper"},
		{"internal/x.go", "internal/wal", "internal itself"},
		{"chronik.go", "internal/broker", "the root package imports only internal/node and internal/config"},
		{"tools/gen.go", "internal/wal", "a folder the architecture does not name"},

		{"internal/node/n.go", "internal/wal", ""},
		{"internal/node/n.go", "internal/admin", ""},
		{"internal/cli/server.go", "internal/node", ""},
		{"internal/multiraft/m.go", "internal/wal", ""},
		{"internal/segment/s.go", "internal/record", ""},
		{"internal/segment/s.go", "internal/vfs", ""},
		{"internal/transport/t.go", "internal/transport/transportpb", ""},
		{"internal/controller/bootstrap/b.go", "internal/controller", ""},
		{"internal/controller/c.go", "internal/controller/bootstrap", ""},
		{"internal/wal/log_test.go", "internal/testkit", ""},
		{"internal/record/r_test.go", "internal/segment", ""},
		{"internal/wal/testdata/x.go", "internal/node", ""},
		{"cmd/chronik/main.go", "internal/cli", ""},
		{"test/cluster/c_test.go", "internal/wal", ""},
		{"chronik.go", "internal/node", ""},
		{"chronik_test.go", ".", ""},
		{"chronik_test.go", "internal/testkit", ""},
	} {
		root := t.TempDir()
		plant(t, root, c.file, path.Join(module, c.imports), c.imports != "")
		bad, _, err := planted.check(root, module)
		if err != nil {
			t.Fatal(err)
		}
		switch all := strings.Join(bad, "\n"); {
		case c.want == "" && len(bad) > 0:
			t.Errorf("%s may import %q, but: %s", c.file, c.imports, all)
		case c.want != "" && !strings.Contains(all, c.want):
			t.Errorf("%s importing %q: got %q, want a line with %q", c.file, c.imports, all, c.want)
		case c.want != "" && c.imports != "" && !strings.HasPrefix(all, c.file+":6 imports "+path.Join(module, c.imports)+": "):
			t.Errorf("%q does not begin with file, line and import", all)
		}
	}
}

// An import planted into a copy of what the real module imports is found by the real rules.
func TestPlantedImportInTheRealTreeIsFound(t *testing.T) {
	root, module := moduleRoot(t)
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "internal", "vfs"), os.DirFS(filepath.Join(root, "internal", "vfs"))); err != nil {
		t.Fatal(err)
	}
	before, _, err := layers.check(dir, module)
	if err != nil || len(before) > 0 {
		t.Fatalf("before planting: %q, %v", before, err)
	}
	plant(t, dir, "internal/vfs/planted.go", module+"/internal/node", true)
	after, _, err := layers.check(dir, module)
	if err != nil || len(after) != 1 || !strings.HasPrefix(after[0], "internal/vfs/planted.go:6 ") {
		t.Fatalf("after planting: %q, %v", after, err)
	}
}

func plant(t *testing.T, root, file, imp string, withImport bool) {
	t.Helper()
	src := "package p\n"
	if withImport {
		src += "\nimport (\n\t\"fmt\"\n\n\t_ \"" + imp + "\"\n)\n\nvar _ = fmt.Sprint\n"
	}
	name := filepath.Join(root, filepath.FromSlash(file))
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(src), 0o644); err != nil {
		t.Fatal(err)
	}
}
