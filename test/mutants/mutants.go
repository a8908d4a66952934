// Package mutants reads the planted bugs of this folder and puts them into a copy of the module.
//
// A mutant is a small text file, <id>.mutant: what the bug is, which tests must notice it, and the lines it changes.
//
//	# a comment
//	title: a write is told to be durable before the fsync
//	lineage: 1
//	area: fsync order
//	sample: yes
//	catch: ./internal/wal TestAckedWritesSurviveAnyPowerCut
//	catch: ./test/sim TestSimulation CHRONIK_SIM_SEEDS=1-8
//
//	file: internal/wal/commit.go
//	in: func (l *Log) commit(
//	  if sync {
//	- 	return l.syncActive()
//	+ 	return nil
//
// lineage is the number of the bug in docs/reliability.md, for those that the ancestor had. sample is for the few that CI
// plants at every change. A catch line is a package, the tests in it that must fail, and the environment they need.
//
// A hunk is a run of lines marked ' ' (stays), '-' (goes) and '+' (comes). The lines that stay or go must be found, one after
// the other, exactly once in the file, or below the line that begins with the text of in and above the next line that is "}".
// How a line is indented and aligned does not count: a mutant outlives an edit beside it, but not one of its own lines.
package mutants

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Mutant is one planted bug.
type Mutant struct {
	ID      string // the file's name
	Title   string
	Area    string
	Lineage int // the ancestor's bug, 0: none
	Sample  bool
	Catch   []Catch
	Hunks   []Hunk
}

// Catch names tests that must notice a mutant.
type Catch struct {
	Package string // ./internal/wal
	Tests   []string
	Env     []string
}

// Hunk is one place that a mutant changes.
type Hunk struct {
	File string // from the module's root, with slashes
	In   string // the line it lies below begins so; empty: anywhere
	Old  []string
	New  []string
}

// Lineage is how many bugs of the ancestor docs/reliability.md lists.
const Lineage = 26

// Ext is the ending of a mutant's file.
const Ext = ".mutant"

// Load reads every mutant below dir, by id.
func Load(dir string) ([]*Mutant, error) {
	var out []*Mutant
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != Ext {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		m, err := Parse(strings.TrimSuffix(filepath.Base(path), Ext), string(b))
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		out = append(out, m)
		return nil
	})
	slices.SortFunc(out, func(a, b *Mutant) int { return strings.Compare(a.ID, b.ID) })
	return out, err
}

// Parse reads one mutant.
func Parse(id, text string) (*Mutant, error) {
	m := &Mutant{ID: id}
	var file string
	hunk := func() *Hunk {
		if len(m.Hunks) == 0 {
			m.Hunks = append(m.Hunks, Hunk{File: file})
		}
		return &m.Hunks[len(m.Hunks)-1]
	}
	for i, line := range strings.Split(text, "\n") {
		err := func() error {
			if line == "" || line[0] == '#' {
				return nil
			}
			if strings.ContainsRune(" -+", rune(line[0])) {
				if file == "" {
					return errors.New("lines before the first file")
				}
				h, l := hunk(), strings.TrimSpace(line[1:])
				if line[0] != '+' {
					h.Old = append(h.Old, l)
				}
				if line[0] != '-' {
					h.New = append(h.New, l)
				}
				return nil
			}
			key, value, ok := strings.Cut(line, ":")
			value = strings.TrimSpace(value)
			if !ok || value == "" {
				return fmt.Errorf("neither a key with its value nor a line of a hunk: %q", line)
			}
			return m.set(key, value, &file)
		}()
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
	}
	return m, m.check()
}

func (m *Mutant) set(key, value string, file *string) (err error) {
	switch key {
	case "title":
		m.Title = value
	case "area":
		m.Area = value
	case "lineage":
		m.Lineage, err = strconv.Atoi(value)
	case "sample":
		m.Sample = value == "yes"
	case "catch":
		c, err := parseCatch(value)
		if err != nil {
			return err
		}
		m.Catch = append(m.Catch, c)
	case "file":
		*file = value
		m.Hunks = append(m.Hunks, Hunk{File: value})
	case "in":
		if *file == "" {
			return errors.New("a function before the first file")
		}
		if last := &m.Hunks[len(m.Hunks)-1]; len(last.Old)+len(last.New) == 0 {
			last.In = value
		} else {
			m.Hunks = append(m.Hunks, Hunk{File: *file, In: value})
		}
	default:
		err = fmt.Errorf("unknown key %q", key)
	}
	return err
}

var testName = regexp.MustCompile(`^(Test|Fuzz)\w+$`)

func parseCatch(s string) (c Catch, err error) {
	for i, f := range strings.Fields(s) {
		switch {
		case i == 0:
			c.Package = f
		case testName.MatchString(f):
			c.Tests = append(c.Tests, f)
		case strings.Contains(f, "="):
			c.Env = append(c.Env, f)
		default:
			return c, fmt.Errorf("%q is neither a test nor a setting", f)
		}
	}
	if len(c.Tests) == 0 || c.Package != "." && !strings.HasPrefix(c.Package, "./") {
		return c, fmt.Errorf("a catch is a package and its tests: %q", s)
	}
	return c, nil
}

func (m *Mutant) check() error {
	switch {
	case m.Title == "" || m.Area == "":
		return errors.New("title and area are needed")
	case len(m.Catch) == 0:
		return errors.New("no catch: which test notices it?")
	case len(m.Hunks) == 0:
		return errors.New("it changes nothing")
	}
	for _, h := range m.Hunks {
		if len(h.Old) == 0 || slices.Equal(h.Old, h.New) {
			return fmt.Errorf("a hunk of %s finds nothing or changes nothing", h.File)
		}
	}
	return nil
}

// Apply returns the changed files of the module at root, by their path in it. It writes nothing.
func (m *Mutant) Apply(root string) (map[string][]byte, error) {
	out := map[string][]byte{}
	for i := range m.Hunks {
		h := &m.Hunks[i]
		src, ok := out[h.File]
		if !ok {
			var err error
			if src, err = os.ReadFile(filepath.Join(root, filepath.FromSlash(h.File))); err != nil {
				return nil, err
			}
		}
		text, err := h.apply(string(src))
		if err != nil {
			return nil, fmt.Errorf("%s, hunk %d, %s: %w", m.ID, i+1, h.File, err)
		}
		out[h.File] = []byte(text)
	}
	return out, nil
}

func (h *Hunk) apply(src string) (string, error) {
	lines := strings.Split(src, "\n")
	from, to, err := h.scope(lines)
	if err != nil {
		return "", err
	}
	at := -1
	for i := from; i+len(h.Old) <= to; i++ {
		if !matches(lines[i:], h.Old) {
			continue
		}
		if at >= 0 {
			return "", fmt.Errorf("found twice, at lines %d and %d: %q", at+1, i+1, h.Old[0])
		}
		at = i
	}
	if at < 0 {
		return "", fmt.Errorf("not found: %q", h.Old)
	}
	return strings.Join(slices.Concat(lines[:at], h.New, lines[at+len(h.Old):]), "\n"), nil
}

// scope returns the lines in which the hunk must lie.
func (h *Hunk) scope(lines []string) (from, to int, err error) {
	if h.In == "" {
		return 0, len(lines), nil
	}
	from = -1
	for i, l := range lines {
		if !strings.HasPrefix(strings.TrimSpace(l), h.In) {
			continue
		}
		if from >= 0 {
			return 0, 0, fmt.Errorf("lines %d and %d begin with %q", from+1, i+1, h.In)
		}
		from = i
	}
	if from < 0 {
		return 0, 0, fmt.Errorf("no line begins with %q", h.In)
	}
	to = from + 1
	for to < len(lines) && lines[to] != "}" {
		to++
	}
	return from, to, nil
}

func matches(lines, want []string) bool {
	for i, w := range want {
		if canonical(lines[i]) != canonical(w) {
			return false
		}
	}
	return true
}

// canonical is a line without what gofmt decides: where it begins, and how its parts are aligned.
func canonical(line string) string { return strings.Join(strings.Fields(line), " ") }

// Root finds the module that the working directory is in.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("no go.mod here or above")
		}
		dir = up
	}
}
