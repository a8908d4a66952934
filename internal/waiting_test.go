package internal

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// stepped are the packages that the simulator runs on one thread. What waits in them does so through clock.Recv, Select, Sleep
// and Group, with contexts of clock.WithTimeout; goroutines are started in functions called Start only, which it does not call.
var stepped = []string{"segment", "multiraft", "metadata", "partition", "cluster", "controller", "group", "txn", "broker"}

var forbiddenCalls = map[string]string{
	"context.WithTimeout": "clock.WithTimeout", "context.WithDeadline": "clock.WithTimeout", "time.Now": "the injected clock",
	"time.Since": "the injected clock", "time.Until": "the injected clock", "time.After": "clock.Select", "time.AfterFunc": "the injected clock", "time.Sleep": "clock.Sleep",
	"time.NewTimer": "the injected clock", "time.NewTicker": "the injected clock", "time.Tick": "the injected clock",
}

// checkWaiting returns a line for everything in a file that would block the simulator's one thread, or go by another clock.
func checkWaiting(fset *token.FileSet, f *ast.File) (bad []string) {
	say := func(n ast.Node, format string, args ...any) {
		bad = append(bad, fmt.Sprintf("%s: %s", fset.Position(n.Pos()), fmt.Sprintf(format, args...)))
	}
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if ok && fn.Name.Name == "Start" {
			continue
		}
		ast.Inspect(d, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.SelectStmt:
				blocks := !slices.ContainsFunc(n.Body.List, func(c ast.Stmt) bool { return c.(*ast.CommClause).Comm == nil })
				if blocks {
					say(n, "a select without default blocks the thread: clock.Select or clock.Recv")
				}
			case *ast.GoStmt:
				say(n, "a goroutine outside of Start: clock.Group")
			case *ast.CallExpr:
				sel, ok := n.Fun.(*ast.SelectorExpr)
				if !ok {
					break
				}
				if pkg, ok := sel.X.(*ast.Ident); ok {
					if instead := forbiddenCalls[pkg.Name+"."+sel.Sel.Name]; instead != "" {
						say(n, "%s.%s: %s", pkg.Name, sel.Sel.Name, instead)
					}
				}
			}
			return true
		})
	}
	return bad
}

func TestSteppedPackagesWaitThroughTheClock(t *testing.T) {
	files := 0
	for _, pkg := range stepped {
		names, err := filepath.Glob(filepath.Join(pkg, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			src, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, name, src, 0)
			if err != nil {
				t.Fatal(err)
			}
			files++
			for _, b := range checkWaiting(fset, f) {
				t.Error(b)
			}
		}
	}
	if files < 100 {
		t.Errorf("only %d files were looked at", files)
	}
}

func TestWaitingPastTheClockIsFound(t *testing.T) {
	const src = `package p
func Start() { go f(); select {} }
func f(c chan int) {
	select { case <-c: default: }
	select { case <-c: }
	go f(nil)
	time.Sleep(1)
	ctx, cancel := context.WithTimeout(ctx, 1)
}`
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, "p.go", src, 0)
	if err != nil {
		t.Fatal(err)
	}
	bad := checkWaiting(fset, f)
	if len(bad) != 4 || !strings.HasPrefix(bad[0], "p.go:5") || !strings.HasPrefix(bad[3], "p.go:8") {
		t.Errorf("found %q", bad)
	}
}
