package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// standardCases are what every client does unless its manifest says otherwise.
var standardCases = []string{"create-topic", "produce-none", "produce-gzip", "produce-snappy", "produce-lz4", "produce-zstd",
	"group", "commit", "seek-time", "list-offsets", "admin", "large", "records"}

// codecCase is how the cases begin whose records the runner looks for on the disks.
const codecCase = "produce-"

// manifest is a folder's client.json.
type manifest struct {
	Toolchain      []string `json:"toolchain"` // commands; a|b: one of them
	Clients        []client `json:"clients"`
	TimeoutSeconds int      `json:"timeout_seconds"`
	Weight         int      `json:"weight"` // slots
}

type client struct {
	Name  string   `json:"name"`
	Cases []string `json:"cases"` // standardCases if there are none
}

// program is a folder with a manifest and a run script, and what became of it.
type program struct {
	manifest
	name, dir string
	round     string   // what follows the name in its topics' and groups' names when it runs again
	outcome   *outcome // nil as long as nothing has gone wrong
	got       []line
	took      time.Duration
}

// outcome says why a program as a whole did not do what it should.
type outcome struct {
	skipped    bool
	installing bool // it could not be installed
	why        string
}

// prefix is how the topics of one of the program's clients begin.
func (p *program) prefix(c client) string {
	if len(p.Clients) == 1 {
		return p.name + p.round
	}
	return p.name + p.round + "." + c.Name
}

// discover finds the folders with a client.json below root.
func discover(root, only string) ([]*program, error) {
	var wanted []string
	if only != "" {
		wanted = strings.Split(only, ",")
	}
	var out []*program
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() != "client.json" {
			return err
		}
		p, err := readManifest(path)
		if err != nil {
			return err
		}
		if i := slices.IndexFunc(out, func(o *program) bool { return o.name == p.name }); i >= 0 {
			return fmt.Errorf("%s: %s has the same name", path, out[i].dir)
		}
		out = append(out, p)
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, w := range wanted {
		if !slices.ContainsFunc(out, func(p *program) bool { return p.name == w }) {
			return nil, fmt.Errorf("-only: there is no client %q below %s", w, root)
		}
	}
	if wanted != nil {
		out = slices.DeleteFunc(out, func(p *program) bool { return !slices.Contains(wanted, p.name) })
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("there is no client.json below %s", root)
	}
	return out, nil
}

func readManifest(path string) (*program, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	p := &program{dir: dir, name: filepath.Base(dir)}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&p.manifest); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(p.Toolchain) == 0 || len(p.Clients) == 0 || p.TimeoutSeconds < 1 {
		return nil, fmt.Errorf("%s: toolchain, clients and timeout_seconds are needed", path)
	}
	seen := map[string]bool{}
	for i, c := range p.Clients {
		if c.Name == "" || seen[c.Name] {
			return nil, fmt.Errorf("%s: every client needs a name of its own", path)
		}
		seen[c.Name] = true
		if len(c.Cases) == 0 {
			p.Clients[i].Cases = standardCases
		}
	}
	return p, nil
}

// missing is nil if every command is on the PATH. A missing one is a skip, unless it is required.
func missing(toolchain, required []string) *outcome {
	for _, t := range toolchain {
		names := strings.Split(t, "|")
		if slices.ContainsFunc(names, func(n string) bool { _, err := exec.LookPath(n); return err == nil }) {
			continue
		}
		o := &outcome{skipped: true, why: fmt.Sprintf("%s is not on the PATH", strings.Join(names, " or "))}
		if slices.ContainsFunc(names, func(n string) bool { return slices.Contains(required, n) }) {
			o.skipped, o.why = false, o.why+", but CHRONIK_CI_TOOLCHAINS says that it is there"
		}
		return o
	}
	return nil
}

// byTime lists the programs, those with the longest bound first.
func byTime(programs []*program) []*program {
	out := slices.Clone(programs)
	slices.SortStableFunc(out, func(a, b *program) int { return cmp.Compare(b.TimeoutSeconds, a.TimeoutSeconds) })
	return out
}
