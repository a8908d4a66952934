package main

import (
	"context"
	"fmt"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/chronik-go/chronik/test/mutants"
)

var violation = regexp.MustCompile(`(?m)^seed (\d+): `)

// simulate runs the simulator over the tree as it is, and returns the first seed that broke a promise.
func (t *tree) simulate(ctx context.Context, m *mutants.Mutant) string {
	ctx, cancel := context.WithTimeout(ctx, 2*t.timeout)
	defer cancel()
	if t.inSim == nil {
		out, err := t.command(ctx, "go", "list", "-deps", "./internal/sim").Output()
		if err != nil {
			return err.Error()
		}
		t.inSim = map[string]bool{}
		for _, pkg := range strings.Fields(string(out)) {
			if _, dir, ok := strings.Cut(pkg, "/internal/"); ok {
				t.inSim["internal/"+dir] = true
			}
		}
	}
	for _, h := range m.Hunks {
		if !t.inSim[path.Dir(h.File)] {
			return "not in it"
		}
	}
	bin := filepath.Join(t.dir, "bin", "chronik")
	if out, err := t.command(ctx, "go", "build", "-trimpath", "-o", bin, "./cmd/chronik").CombinedOutput(); err != nil {
		return "does not build: " + string(out)
	}
	out, err := t.command(ctx, bin, "sim", "--from", "1", "--seeds", fmt.Sprint(t.sim)).CombinedOutput()
	switch found := violation.FindStringSubmatch(string(out)); {
	case found != nil:
		return "seed " + found[1]
	case ctx.Err() != nil:
		return "cut off by the clock"
	case err != nil:
		return "refused: " + strings.TrimSpace(lastLine(out))
	}
	return fmt.Sprintf("none of %d", t.sim)
}

// lastLine is the last line of an output.
func lastLine(b []byte) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

func (t *tree) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = t.dir
	cmd.WaitDelay = 10 * time.Second
	return cmd
}
