package mutants

import (
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every mutant still finds its place, leaves Go that parses, and names tests that exist: an edit that makes one drift is
// noticed at once. Whether it compiles and is caught is for make mutants.
func TestEveryMutantApplies(t *testing.T) {
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	list, err := Load(".")
	if err != nil {
		t.Fatal(err)
	}
	lineage, own, ids := map[int]string{}, 0, map[string]bool{}
	for _, m := range list {
		if ids[m.ID] {
			t.Errorf("two mutants are called %s", m.ID)
		}
		ids[m.ID] = true
		if m.Lineage == 0 {
			own++
		} else {
			lineage[m.Lineage] = m.ID
		}
		files, err := m.Apply(root)
		if err != nil {
			t.Error(err)
			continue
		}
		for name, src := range files {
			if strings.HasSuffix(name, "_test.go") {
				t.Errorf("%s changes a test: the bug belongs into the code", m.ID)
			}
			if _, err := parser.ParseFile(token.NewFileSet(), name, src, parser.SkipObjectResolution); err != nil {
				t.Errorf("%s leaves %s unreadable: %v", m.ID, name, err)
			}
		}
		for _, c := range m.Catch {
			have := testsOf(t, filepath.Join(root, c.Package))
			for _, name := range c.Tests {
				if !have[name] {
					t.Errorf("%s is to be caught by %s of %s, which does not exist", m.ID, name, c.Package)
				}
			}
		}
	}
	for i := 1; i <= Lineage; i++ {
		if lineage[i] == "" {
			t.Errorf("no mutant plants bug %d of the lineage", i)
		}
	}
	if own < 25 {
		t.Errorf("%d mutants beyond the lineage's", own)
	}
	t.Logf("%d mutants: %d of the lineage's bugs, %d others", len(list), len(lineage), own)
}

var known = map[string]map[string]bool{}

var decl = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)

func testsOf(t *testing.T, dir string) map[string]bool {
	if known[dir] != nil {
		return known[dir]
	}
	names, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for _, name := range names {
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range decl.FindAllSubmatch(src, -1) {
			out[string(m[1])] = true
		}
	}
	known[dir] = out
	return out
}

func TestHunksFindTheirPlaceOnce(t *testing.T) {
	src := "func a() {\n\tx++\n\ty++\n}\n\nfunc b() {\n\tx++\n}\n"
	for _, c := range []struct{ name, body, want, err string }{
		{name: "in a function", body: "in: func b(\n- x++\n+ x--\n", want: "func a() {\n\tx++\n\ty++\n}\n\nfunc b() {\nx--\n}\n"},
		{name: "by its neighbour", body: "  x++\n- y++\n", want: "func a() {\nx++\n}\n\nfunc b() {\n\tx++\n}\n"},
		{name: "twice", body: "- x++\n", err: "found twice"},
		{name: "nowhere", body: "- z++\n", err: "not found"},
		{name: "not in there", body: "in: func b(\n- y++\n", err: "not found"},
		{name: "no such function", body: "in: func c(\n- y++\n", err: "no line begins"},
		{name: "nothing changes", body: "  x++\n", err: "changes nothing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "f.go"), []byte(src), 0o644); err != nil {
				t.Fatal(err)
			}
			m, err := Parse("m", "title: t\narea: a\ncatch: ./p TestX\nfile: f.go\n"+c.body)
			var got map[string][]byte
			if err == nil {
				got, err = m.Apply(dir)
			}
			switch {
			case c.err != "":
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("error %v, want one with %q", err, c.err)
				}
			case err != nil:
				t.Fatal(err)
			case string(got["f.go"]) != c.want:
				t.Fatalf("got %q", got["f.go"])
			}
		})
	}
}

func TestBadMutantsAreRefused(t *testing.T) {
	const head = "title: t\narea: a\n"
	for _, text := range []string{
		"", head, head + "catch: ./p TestX\n", head + "file: f\n- x\n", head + "catch: p TestX\nfile: f\n- x\n", head + "catch: ./p\nfile: f\n- x\n",
		head + "catch: ./p TestX\n- x\n", head + "catch: ./p TestX\nin: f\n", head + "colour: red\n", head + "catch: ./p what\n", head + "nonsense\n",
	} {
		if m, err := Parse("m", text); err == nil {
			t.Errorf("%q is taken: %+v", text, m)
		}
	}
}
