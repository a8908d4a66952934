package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/chronik-go/chronik/test/mutants"
)

// tree is a copy of the module.
type tree struct {
	dir      string
	timeout  time.Duration
	fallback bool
	sim      uint64
	inSim    map[string]bool // the packages that the simulator runs
}

func copyTree(root string, o options) (*tree, error) {
	dir, err := os.MkdirTemp("", "chronik-mutants")
	if err != nil {
		return nil, err
	}
	t := &tree{dir: dir, timeout: o.timeout, fallback: o.fallback, sim: o.sim}
	skip := []string{".git", "bin", "node_modules", "target", "results"}
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		to := filepath.Join(dir, rel)
		switch {
		case slices.Contains(skip, d.Name()):
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		case d.IsDir():
			return os.MkdirAll(to, 0o755)
		case !d.Type().IsRegular():
			return nil
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		return os.WriteFile(to, b, 0o644)
	})
	if err != nil {
		t.remove()
		return nil, err
	}
	return t, nil
}

func (t *tree) remove() { _ = os.RemoveAll(t.dir) }

// passes runs everything that is to catch a mutant on the tree as it is. A test that fails once is asked again, alone: on a
// busy machine one may.
func (t *tree) passes(ctx context.Context, list []*mutants.Mutant) error {
	var errs []error
	for _, c := range union(list) {
		r := t.test(ctx, c, 2*t.timeout)
		if r.failed != "" {
			fmt.Printf("%s of %s failed without a mutant; once more, alone\n", r.failed, c.Package)
			alone := c
			alone.Tests = []string{r.failed}
			if r = t.test(ctx, alone, t.timeout); r.err == nil && r.failed == "" {
				continue
			}
		}
		if r.err != nil || r.failed != "" {
			errs = append(errs, fmt.Errorf("without a mutant, %s: %s %w\n%s", c.Package, r.failed, cmp.Or(r.err, errors.New("fails")), r.tail))
		}
	}
	return errors.Join(errs...)
}

// union puts the catches of one package and environment together.
func union(list []*mutants.Mutant) []mutants.Catch {
	var out []mutants.Catch
	for _, m := range list {
		for _, c := range m.Catch {
			i := slices.IndexFunc(out, func(o mutants.Catch) bool { return o.Package == c.Package && slices.Equal(o.Env, c.Env) })
			if i < 0 {
				c.Tests = slices.Clone(c.Tests)
				out = append(out, c)
				continue
			}
			for _, name := range c.Tests {
				if !slices.Contains(out[i].Tests, name) {
					out[i].Tests = append(out[i].Tests, name)
				}
			}
		}
	}
	return out
}

// try plants a mutant, looks who notices, and takes it out again.
func (t *tree) try(ctx context.Context, m *mutants.Mutant) (v verdict) {
	v = verdict{m: m, how: "ERROR"}
	began := time.Now()
	defer func() { v.took = time.Since(began) }() // with the simulator's, if asked for
	undo, err := t.change(m)
	if err != nil {
		v.text = err.Error()
		return v
	}
	defer undo()
	v = t.tests(ctx, m, undo)
	if t.sim > 0 && v.caught() {
		v.seed = t.simulate(ctx, m)
	}
	return v
}

// tests looks which test notices the mutant that is in place.
func (t *tree) tests(ctx context.Context, m *mutants.Mutant, undo func()) (v verdict) {
	v = verdict{m: m, how: "ERROR"}
	for _, c := range m.Catch {
		r := t.test(ctx, c, t.timeout)
		switch {
		case r.err != nil:
			v.text = fmt.Sprintf("%s: %v\n%s", c.Package, r.err, r.tail)
			return v
		case r.failed != "":
			v.how, v.by, v.test = "caught", name(c.Package, r), r.took
			return v
		}
	}
	if !t.fallback {
		v.how = "SURVIVED"
		return v
	}
	// Nobody who should have. All tests of the packages concerned, and the simulator.
	for _, pkg := range concerned(m) {
		r := t.test(ctx, mutants.Catch{Package: pkg}, 2*t.timeout)
		if r.err != nil {
			v.text = fmt.Sprintf("%s: %v\n%s", pkg, r.err, r.tail)
			return v
		}
		if r.failed != "" && t.passesWithout(ctx, undo, pkg, r.failed) {
			v.how, v.by, v.test = "elsewhere", name(pkg, r), r.took
			return v
		}
	}
	v.how = "SURVIVED"
	return v
}

// passesWithout takes the mutant out and asks the test that noticed it once more: it may have failed by itself.
func (t *tree) passesWithout(ctx context.Context, undo func(), pkg, test string) bool {
	undo()
	r := t.test(ctx, mutants.Catch{Package: pkg, Tests: []string{test}}, t.timeout)
	return r.err == nil && r.failed == ""
}

func name(pkg string, r result) string {
	s := r.failed
	if r.seed != "" {
		s += " seed " + r.seed
	}
	return path.Base(pkg) + "." + s
}

// simulator is the package whose tests run whole clusters.
const simulator = "./test/sim"

// concerned lists the packages that a mutant changes or names, and the simulator.
func concerned(m *mutants.Mutant) []string {
	var out []string
	add := func(pkg string) {
		if !slices.Contains(out, pkg) {
			out = append(out, pkg)
		}
	}
	for _, h := range m.Hunks {
		add("./" + path.Dir(h.File))
	}
	for _, c := range m.Catch {
		add(c.Package)
	}
	add(simulator)
	return slices.DeleteFunc(out, func(pkg string) bool { return strings.HasPrefix(pkg, "./cmd") })
}

// change writes the mutant's files and returns the function that puts the old ones back, as often as it is called.
func (t *tree) change(m *mutants.Mutant) (undo func(), err error) {
	files, err := m.Apply(t.dir)
	if err != nil {
		return nil, err
	}
	old := map[string][]byte{}
	undo = func() {
		for name, b := range old {
			_ = os.WriteFile(filepath.Join(t.dir, name), b, 0o644)
		}
	}
	for name, b := range files {
		was, err := os.ReadFile(filepath.Join(t.dir, name))
		if err == nil {
			old[name] = was
			err = os.WriteFile(filepath.Join(t.dir, name), b, 0o644)
		}
		if err != nil {
			undo()
			return nil, err
		}
	}
	return undo, nil
}
