package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// folder writes a client's folder and returns its program.
func folder(t *testing.T, manifest, script string) *program {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "fake")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"client.json": manifest, "run": "#!/bin/sh\n" + script} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p, err := readManifest(filepath.Join(dir, "client.json"))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

const oneCase = `{"toolchain": ["sh"], "clients": [{"name": "fake", "cases": ["admin"]}], "timeout_seconds": 60}`

// exec runs a program's script outside of a cluster.
func execIt(t *testing.T, ctx context.Context, p *program, ci bool) row {
	t.Helper()
	p.got, p.outcome = p.exec(ctx, options{dir: t.TempDir(), cache: t.TempDir()}, "", nil)
	return p.judge(p.Clients[0], ci)
}

func TestWhatAProgramPrintsIsComparedWithItsManifest(t *testing.T) {
	say := func(name, result, detail string) string {
		return `echo '{"client":"fake","version":"1","case":"` + name + `","result":"` + result + `","detail":"` + detail + "\"}'\n"
	}
	for name, c := range map[string]struct {
		script, result, why string
		ci                  bool
	}{
		"all is well":              {say("admin", "ok", ""), "ok", "", true},
		"a failed case":            {say("admin", "failed", "no such thing"), "FAILED", "admin: no such thing", false},
		"a case that is missing":   {"", "FAILED", "admin: not reported", false},
		"a case twice":             {say("admin", "ok", "") + say("admin", "ok", ""), "FAILED", "twice", false},
		"a case nobody expects":    {say("admin", "ok", "") + say("more", "ok", ""), "FAILED", "more: not among", false},
		"a result that is none":    {say("admin", "fine", ""), "FAILED", `result "fine"`, false},
		"unsupported":              {say("admin", "unsupported", "no admin"), "ok", "", true},
		"unsupported, but not why": {say("admin", "unsupported", ""), "FAILED", "without a reason", false},
		"dead after its cases":     {say("admin", "ok", "") + "echo help >&2; exit 3", "FAILED", "help", false},
		"a log on standard output": {"echo hello\n" + say("admin", "ok", ""), "FAILED", "hello", false},
		"half a line":              {say("admin", "ok", "") + "printf '{'", "FAILED", "does not end", false},
		"too much":                 {"yes | head -c 300000 | tr -d '\\n'", "FAILED", "more than", false},
		"cannot run":               {"echo no network >&2; exit 77", "skipped", "no network", false},
		"cannot run, but should":   {"echo no network >&2; exit 77", "FAILED", "no network", true},
		"two versions of one":      {say("admin", "ok", "") + strings.ReplaceAll(say("admin", "ok", ""), `"1"`, `"2"`), "FAILED", "version", false},
		"a child that outlives it": {say("admin", "ok", "") + "sleep 1000 &\n", "FAILED", "left processes", false},
	} {
		t.Run(name, func(t *testing.T) {
			if strings.Contains(c.script, "&\n") { // it has to be waited for whole
				defer func(was time.Duration) { linger = was }(linger)
				linger = time.Second
			}
			r := execIt(t, t.Context(), folder(t, oneCase, c.script), c.ci)
			why := strings.Join(append(r.failures, r.skipped), "\n")
			if r.result() != c.result || !strings.Contains(why, c.why) {
				t.Errorf("%s: %q; want %s: %q", r.result(), why, c.result, c.why)
			}
		})
	}
}

func TestAProgramThatHangsIsEnded(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	began := filepath.Join(t.TempDir(), "began")
	go func() {
		defer cancel()
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if _, err := os.Stat(began); err == nil {
				return
			}
		}
	}()
	r := execIt(t, ctx, folder(t, oneCase, "echo waiting >&2; touch "+began+"; sleep 1000"), false)
	if why := strings.Join(r.failures, "\n"); !strings.Contains(why, "did not end in time") || !strings.Contains(why, "waiting") {
		t.Errorf("a program that hangs: %q", why)
	}
}

func TestAMissingToolchainIsASkipUnlessItShouldBeThere(t *testing.T) {
	const none = "no-such-command-1"
	if o := missing([]string{"sh", none + "|sh"}, nil); o != nil {
		t.Errorf("one of two commands is enough: %+v", o)
	}
	if o := missing([]string{"sh", none}, []string{"sh"}); o == nil || !o.skipped {
		t.Errorf("a missing command: %+v", o)
	}
	if o := missing([]string{none}, []string{none}); o == nil || o.skipped {
		t.Errorf("a missing command that CI says is there: %+v", o)
	}
	p := folder(t, strings.Replace(oneCase, `"sh"`, `"`+none+`"`, 1), "")
	p.outcome = missing(p.Toolchain, nil)
	if r := p.judge(p.Clients[0], true); r.result() != "skipped" {
		t.Errorf("a missing toolchain in CI: %s %q", r.result(), r.failures)
	}
}

func TestSlotsAreNeverOvercommitted(t *testing.T) {
	var programs []*program
	for i := range 9 {
		programs = append(programs, &program{manifest: manifest{Weight: i%3 + 1}})
	}
	var used, most, ran atomic.Int32
	var mu sync.Mutex
	inSlots(3, programs, func(p *program) {
		now := used.Add(int32(p.Weight))
		mu.Lock()
		most.Store(max(most.Load(), now))
		mu.Unlock()
		ran.Add(1)
		used.Add(-int32(p.Weight))
	})
	if ran.Load() != 9 || most.Load() > 3 {
		t.Errorf("%d programs ran, with up to %d slots of 3", ran.Load(), most.Load())
	}
}

func TestTheTableGoesBetweenItsMarkers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "doc.md")
	tab := newTable([]row{{client: "b", version: "2", ok: 1, cases: 2, notes: []string{"admin (none | at all)"}}, {client: "a", skipped: "no java"}}, 1000)
	if err := os.WriteFile(path, []byte("# x\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := tab.writeInto(path); err == nil {
		t.Error("a file without markers takes the table")
	}
	if err := os.WriteFile(path, []byte("before\n"+beginMark+"\nold\n"+endMark+"\nafter\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second writing replaces the first
		if err := tab.writeInto(path); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got := string(b)
	for _, want := range []string{"before\n", "\nafter\n", `| b | 2 | 1 of 2 | ok | admin (none \| at all) |`, "| a |  | 0 of 0 | skipped | no java |"} {
		if strings.Count(got, want) != 1 {
			t.Errorf("%q is there %d times in\n%s", want, strings.Count(got, want), got)
		}
	}
	if strings.Contains(got, "old") || strings.Index(got, "| a |") > strings.Index(got, "| b |") {
		t.Errorf("not the table:\n%s", got)
	}
}

func TestEveryFolderOfTheMatrixHasAScript(t *testing.T) {
	programs, err := discover(".", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range programs {
		if st, err := os.Stat(filepath.Join(p.dir, "run")); err != nil || st.Mode()&0o111 == 0 {
			t.Errorf("%s: run is not an executable: %v", p.name, err)
		}
	}
}
