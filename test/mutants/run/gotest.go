package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/chronik-go/chronik/test/mutants"
)

// result is what a run of go test came to. Neither failed nor err: it passed.
type result struct {
	failed string // the first top-level test that failed
	seed   string // the simulator's, if it names one
	took   time.Duration
	err    error // it says nothing: it did not build, or was cut off, or ran no test
	tail   string
}

// event is a line of go test -json (cmd/test2json).
type event struct {
	Action, Test, Output string
	Elapsed              float64
}

var seedOf = regexp.MustCompile(`\bseed (\d+)\b`)

// test runs a package's tests, all of them if c names none, until the first that fails.
func (t *tree) test(ctx context.Context, c mutants.Catch, timeout time.Duration) result {
	// go test's own patience is with the tests, and says where they were stuck; this one is with the build as well, which is the whole standard
	// library's when nothing was built with -trimpath before, on a machine that others keep busy.
	ctx, cancel := context.WithTimeout(ctx, timeout+10*time.Minute)
	defer cancel()
	args := []string{"test", "-json", "-trimpath", "-vet=off", "-count=1", "-failfast", "-timeout", timeout.String()}
	if len(c.Tests) > 0 {
		args = append(args, "-run", "^("+strings.Join(c.Tests, "|")+")$")
	}
	cmd := exec.CommandContext(ctx, "go", append(args, c.Package)...)
	cmd.Dir, cmd.Env = t.dir, append(os.Environ(), c.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	err := cmd.Run()
	if ctx.Err() != nil {
		return result{err: ctx.Err()}
	}
	return read(out.Bytes(), complaints.String(), err != nil)
}

func read(out []byte, complaints string, failed bool) (r result) {
	var text strings.Builder
	built, ran := true, false
	sc := bufio.NewScanner(bytes.NewReader(out))
	sc.Buffer(nil, 16<<20)
	for sc.Scan() {
		var e event
		if json.Unmarshal(sc.Bytes(), &e) != nil {
			continue
		}
		text.WriteString(e.Output)
		switch {
		case e.Action == "build-fail":
			built = false
		case e.Action == "run":
			ran = true
		case e.Action == "fail" && e.Test != "" && !strings.Contains(e.Test, "/") && r.failed == "":
			r.failed, r.took = e.Test, time.Duration(e.Elapsed*float64(time.Second))
		}
	}
	r.tail = tail(text.String() + complaints)
	switch all := text.String(); {
	case !built:
		r.err = errors.New("does not build")
	case strings.Contains(all, "panic: test timed out after"):
		r.err = errors.New("cut off by the clock: a test must have its own bound")
	case strings.Contains(all, "signal: killed"):
		r.err = errors.New("killed from outside")
	case failed && r.failed == "":
		r.err = errors.New("go test failed, but none of the tests")
	case !failed && !ran:
		r.err = errors.New("no test was run")
	case r.failed != "":
		if m := seedOf.FindStringSubmatch(all); m != nil {
			r.seed = m[1]
		}
		return r
	default:
		return result{}
	}
	r.failed = ""
	return r
}

// tail is the end of a test's output.
func tail(s string) string {
	const most = 3000
	if len(s) > most {
		return fmt.Sprintf("… %s", s[len(s)-most:])
	}
	return s
}
