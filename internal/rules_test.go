package internal

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// testNames returns the tests and fuzz targets of the module.
func testNames(t *testing.T) map[string]bool {
	t.Helper()
	have := map[string]bool{}
	decl := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		src, err := os.ReadFile(path)
		for _, m := range decl.FindAllSubmatch(src, -1) {
			have[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return have
}

// TestRulesNameTestsThatExist keeps docs/raft.md and docs/reliability.md honest: a guard that was renamed or removed is missed
// here.
func TestRulesNameTestsThatExist(t *testing.T) {
	have := testNames(t)
	for doc, atLeast := range map[string]int{"../docs/raft.md": 40, "../docs/reliability.md": 26} {
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		named := regexp.MustCompile("`((?:Test|Fuzz)\\w+)`").FindAllSubmatch(text, -1)
		if len(named) < atLeast {
			t.Errorf("%s names only %d tests", doc, len(named))
		}
		for _, m := range named {
			if !have[string(m[1])] {
				t.Errorf("%s names %s, which does not exist", doc, m[1])
			}
		}
	}
}

// TestEveryBugOfTheLineageIsPlanted: the table of docs/reliability.md and the files of test/mutants say the same.
func TestEveryBugOfTheLineageIsPlanted(t *testing.T) {
	text, err := os.ReadFile("../docs/reliability.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(text), "\n## The lineage's bugs\n")
	if !ok {
		t.Fatal("docs/reliability.md has no section on the lineage's bugs")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	rows := regexp.MustCompile(`(?m)^\| (\d+) \| [^|]+ \| ([^|]+) \| ([^|]+) \|$`).FindAllStringSubmatch(section, -1)
	named := map[string]bool{} // "number mutant"
	name := regexp.MustCompile("`([a-z0-9-]+)`")
	for _, row := range rows {
		if !strings.Contains(row[2], "`Test") {
			t.Errorf("bug %s has no test", row[1])
		}
		for _, m := range name.FindAllStringSubmatch(row[3], -1) {
			named[row[1]+" "+m[1]] = true
		}
	}
	files, err := filepath.Glob("../test/mutants/lineage/*.mutant")
	if err != nil {
		t.Fatal(err)
	}
	var missing []string
	number := regexp.MustCompile(`(?m)^lineage: (\d+)$`)
	for _, f := range files {
		src, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		m := number.FindSubmatch(src)
		if m == nil {
			t.Errorf("%s does not say which bug it is", f)
			continue
		}
		key := string(m[1]) + " " + strings.TrimSuffix(filepath.Base(f), ".mutant")
		if !named[key] {
			missing = append(missing, key)
		}
		delete(named, key)
	}
	slices.Sort(missing)
	if len(rows) != 26 || len(missing) > 0 || len(named) > 0 {
		t.Errorf("%d bugs; not in the table: %q; no such mutant: %v", len(rows), missing, named)
	}
}
