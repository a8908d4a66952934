package main

import (
	"strings"
	"testing"
)

// What go test says is judged with care: only a test that failed by itself is a catch.
func TestOnlyAFailedTestIsACatch(t *testing.T) {
	const run = `{"Action":"run","Test":"TestX"}` + "\n"
	for _, c := range []struct {
		name, out, complaint string
		failed               bool
		want, err            string
	}{
		{name: "passes", out: run + `{"Action":"pass","Test":"TestX"}`},
		{name: "fails", out: run + `{"Action":"fail","Test":"TestX/sub"}` + "\n" + `{"Action":"fail","Test":"TestX","Elapsed":0.5}`, failed: true, want: "TestX"},
		{name: "panics", out: run + `{"Action":"output","Test":"TestX","Output":"panic: nil map"}` + "\n" + `{"Action":"fail","Test":"TestX"}`, failed: true, want: "TestX"},
		{name: "does not build", out: `{"Action":"build-output","Output":"x.go:1: no"}` + "\n" + `{"Action":"build-fail"}` + "\n" + `{"Action":"fail","FailedBuild":"p"}`, failed: true, err: "does not build"},
		{name: "is cut off", out: run + `{"Action":"output","Test":"TestX","Output":"panic: test timed out after 1m0s"}` + "\n" + `{"Action":"fail","Test":"TestX"}`, failed: true, err: "clock"},
		{name: "is killed", out: run + `{"Action":"output","Output":"signal: killed"}` + "\n" + `{"Action":"fail","Test":"TestX"}`, failed: true, err: "killed"},
		{name: "finds no test", out: `{"Action":"output","Output":"no tests to run"}` + "\n" + `{"Action":"pass"}`, err: "no test"},
		{name: "fails without a test", out: run + `{"Action":"pass","Test":"TestX"}` + "\n" + `{"Action":"fail"}`, failed: true, err: "none of the tests"},
		{name: "does not start", complaint: "go: no such package", failed: true, err: "none of the tests"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := read([]byte(c.out), c.complaint, c.failed)
			if r.failed != c.want || (r.err != nil) != (c.err != "") || r.err != nil && !strings.Contains(r.err.Error(), c.err) {
				t.Errorf("%+v, want test %q and error %q", r, c.want, c.err)
			}
		})
	}
	r := read([]byte(run+`{"Action":"output","Test":"TestX","Output":"seed 17: lost"}`+"\n"+`{"Action":"fail","Test":"TestX"}`), "", true)
	if r.failed != "TestX" || r.seed != "17" {
		t.Errorf("%+v", r)
	}
}
