package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	maxLine  = 64 << 10 // bytes of a line that a program prints
	maxLines = 1000
	maxLog   = 16 << 20 // bytes of a program's standard error that are kept in its file
	tailSize = 64 << 10 // and of its end that a failure shows
	cannot   = 77       // exit code: it cannot run here
)

// linger is for how long what a program printed may still be on its way when it has ended. Who holds its output open after that has been left
// running by it. On a machine that does other things beside, it takes a while.
var linger = 20 * time.Second

// line is what a program prints for a case.
type line struct {
	Client  string `json:"client"`
	Version string `json:"version"`
	Case    string `json:"case"`
	Result  string `json:"result"` // ok, failed, unsupported
	Detail  string `json:"detail"`
}

func (p *program) install(ctx context.Context, o options) {
	ctx, cancel := context.WithTimeout(ctx, o.install)
	defer cancel()
	for try := 1; ; try++ { // a registry may not answer once
		if _, p.outcome = p.exec(ctx, o, "install", nil); p.outcome == nil {
			return
		}
		p.outcome.installing = true
		if try == 3 || ctx.Err() != nil {
			return
		}
		fmt.Printf("%s: installing it once more: %s\n", p.name, p.outcome.why)
		select {
		case <-time.After(time.Duration(try) * 5 * time.Second):
		case <-ctx.Done():
		}
	}
}

func (p *program) run(ctx context.Context, o options, c *cluster) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(p.TimeoutSeconds)*time.Second)
	defer cancel()
	began := time.Now()
	p.got, p.outcome = p.exec(ctx, o, "", []string{
		"BOOTSTRAP=" + strings.Join(c.nodes.Brokers(), ","), "CONTROL=" + c.url, "PREFIX=" + p.name + p.round, fmt.Sprintf("LINES=%d", o.lines)})
	p.took = time.Since(began)
}

// exec runs the program's script and returns the cases that it printed.
func (p *program) exec(ctx context.Context, o options, arg string, env []string) ([]line, *outcome) {
	fail := func(format string, args ...any) *outcome { return &outcome{why: fmt.Sprintf(format, args...)} }
	cache, err := filepath.Abs(filepath.Join(o.cache, p.name))
	if err != nil {
		return nil, fail("%v", err)
	}
	work, err := filepath.Abs(filepath.Join(o.dir, p.name))
	if err != nil {
		return nil, fail("%v", err)
	}
	if err := errors.Join(os.MkdirAll(cache, 0o755), os.MkdirAll(work, 0o755)); err != nil {
		return nil, fail("%v", err)
	}
	log, err := newBounded(filepath.Join(o.dir, p.name+".log"))
	if err != nil {
		return nil, fail("%v", err)
	}
	defer log.close()
	cmd := exec.CommandContext(ctx, "./run")
	if arg != "" {
		cmd.Args = append(cmd.Args, arg)
	}
	cmd.Dir = p.dir
	cmd.Env = append(append(os.Environ(), "CACHE="+cache, "WORK="+work), env...)
	cmd.Stderr = log
	// A program may start others: they end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = linger
	var out cases
	cmd.Stdout = &out
	if arg == "install" {
		cmd.Stdout = log
	}
	err = cmd.Run()
	if cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what it has left running
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		err = errors.New("it has left processes running")
	}
	if bad := out.finish(); bad != nil {
		err = bad
	}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return out.got, fail("%s did not end in time: %v\n%s", arg, ctx.Err(), log.tail())
	case errors.As(err, &exit) && exit.ExitCode() == cannot:
		return out.got, &outcome{skipped: true, why: log.lastLine()}
	case err != nil:
		return out.got, fail("%s: %v\n%s", arg, err, log.tail())
	}
	return out.got, nil
}

// cases reads what a program prints.
type cases struct {
	got  []line
	part []byte
	err  error // the first line that is none
}

func (c *cases) Write(b []byte) (int, error) {
	c.part = append(c.part, b...)
	for {
		text, rest, whole := bytes.Cut(c.part, []byte("\n"))
		if !whole {
			break
		}
		c.line(text)
		c.part = rest
	}
	if len(c.part) > maxLine || len(c.got) > maxLines {
		c.err = fmt.Errorf("more than %d bytes in a line or %d lines on standard output", maxLine, maxLines)
		return 0, c.err
	}
	return len(b), nil
}

func (c *cases) line(text []byte) {
	var l line
	err := json.Unmarshal(text, &l)
	switch {
	case c.err != nil:
	case err != nil:
		c.err = fmt.Errorf("standard output is for cases, not for %.200q: %w", text, err)
	case l.Result != "ok" && l.Result != "failed" && l.Result != "unsupported":
		c.err = fmt.Errorf("case %q has the result %q", l.Case, l.Result)
	default:
		c.got = append(c.got, l)
	}
}

func (c *cases) finish() error {
	if c.err == nil && len(bytes.TrimSpace(c.part)) > 0 {
		c.err = fmt.Errorf("the last line does not end: %.200q", c.part)
	}
	return c.err
}

// bounded keeps the beginning of a log in a file and its end in memory.
type bounded struct {
	mu   sync.Mutex
	file *os.File
	left int
	end  []byte
}

func newBounded(path string) (*bounded, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	return &bounded{file: f, left: maxLog}, nil
}

func (b *bounded) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, err := b.file.Write(p[:min(len(p), b.left)])
	b.left -= n
	if b.end = append(b.end, p...); len(b.end) > 2*tailSize {
		b.end = bytes.Clone(b.end[len(b.end)-tailSize:])
	}
	return len(p), err
}

func (b *bounded) tail() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.end[max(0, len(b.end)-tailSize):])
}

func (b *bounded) lastLine() string {
	last := ""
	in := bufio.NewScanner(strings.NewReader(b.tail()))
	in.Buffer(nil, 2*tailSize)
	for in.Scan() {
		if s := strings.TrimSpace(in.Text()); s != "" {
			last = s
		}
	}
	return last
}

func (b *bounded) close() { _ = b.file.Close() }

var _ io.Writer = (*bounded)(nil)
