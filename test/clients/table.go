package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

const (
	beginMark = "<!-- make clients writes from here -->"
	endMark   = "<!-- to here -->"
)

// row is a client's line of the table.
type row struct {
	client, version string
	ok, cases       int
	notes           []string // what the client does not do
	failures        []string
	skipped         string // why
}

// ran says whether the program got so far as to speak to the cluster.
func (o *outcome) ran() bool { return o == nil || !o.skipped && !o.installing }

// rows judges what a program printed, one row a client.
func (p *program) rows(ctx context.Context, ci bool, c *cluster) []row {
	var out []row
	for _, cl := range p.Clients {
		r := p.judge(cl, ci)
		if r.skipped == "" {
			for _, l := range p.got {
				codec, isCodec := strings.CutPrefix(l.Case, codecCase)
				if l.Client != cl.Name || !isCodec || l.Result != "ok" {
					continue
				}
				if err := checkStored(ctx, c, p.prefix(cl)+"."+codec, codec); err != nil {
					r.ok--
					r.failures = append(r.failures, l.Case+": "+err.Error())
				}
			}
		}
		out = append(out, r)
	}
	// A case of a client that the manifest does not name.
	for _, l := range p.got {
		if !slices.ContainsFunc(p.Clients, func(c client) bool { return c.Name == l.Client }) {
			out[0].failures = append(out[0].failures, fmt.Sprintf("case %s of a client %q that client.json does not name", l.Case, l.Client))
		}
	}
	return out
}

// judge compares a client's cases with those expected.
func (p *program) judge(c client, ci bool) row {
	r := row{client: c.Name, cases: len(c.Cases)}
	if p.outcome != nil && p.outcome.skipped {
		// A missing toolchain ran nothing; exit code 77 with the toolchain there is no excuse in CI.
		if !ci || missing(p.Toolchain, nil) != nil {
			r.skipped = p.outcome.why
			return r
		}
		r.failures = append(r.failures, "it says that it cannot run here, though its toolchain is there: "+p.outcome.why)
	} else if p.outcome != nil {
		r.failures = append(r.failures, p.outcome.why)
	}
	got := map[string]int{}
	for _, l := range p.got {
		if l.Client != c.Name {
			continue
		}
		if r.version != "" && r.version != l.Version {
			r.failures = append(r.failures, fmt.Sprintf("%s: version %q, before it %q", l.Case, l.Version, r.version))
		}
		r.version = l.Version
		got[l.Case]++
		switch {
		case !slices.Contains(c.Cases, l.Case):
			r.failures = append(r.failures, l.Case+": not among the cases of client.json")
		case got[l.Case] > 1:
			r.failures = append(r.failures, l.Case+": reported twice")
		case l.Result == "failed":
			r.failures = append(r.failures, l.Case+": "+l.Detail)
		case l.Result == "unsupported" && l.Detail == "":
			r.failures = append(r.failures, l.Case+": unsupported without a reason")
		case l.Result == "unsupported":
			r.notes = append(r.notes, l.Case+" unsupported: "+l.Detail)
		default:
			r.ok++
			if l.Detail != "" && l.Case != "records" { // of which it is the pace
				r.notes = append(r.notes, l.Case+": "+l.Detail)
			}
		}
	}
	var silent []string
	for _, name := range c.Cases {
		if got[name] == 0 {
			silent = append(silent, name)
		}
	}
	if len(silent) > 0 {
		r.failures = append(r.failures, strings.Join(silent, ", ")+": not reported")
	}
	return r
}

func (r row) failed() bool { return r.result() == "FAILED" }

func (r row) result() string {
	switch {
	case r.skipped != "":
		return "skipped"
	case len(r.failures) > 0:
		return "FAILED"
	}
	return "ok"
}

// note is what there is to know of a client that has not failed.
func (r row) note() string {
	if r.skipped != "" {
		return r.skipped
	}
	return strings.Join(r.notes, "; ")
}

type table struct {
	rows                    []row
	lines                   int
	passed, failed, skipped int
}

func newTable(rows []row, lines int) *table {
	t := &table{rows: rows, lines: lines}
	slices.SortStableFunc(t.rows, func(a, b row) int { return strings.Compare(a.client, b.client) })
	for _, r := range rows {
		switch r.result() {
		case "skipped":
			t.skipped++
		case "FAILED":
			t.failed++
		default:
			t.passed++
		}
	}
	return t
}

// text is the table for the terminal, what failed first.
func (t *table) text() string {
	var b strings.Builder
	for _, r := range t.rows {
		for _, f := range r.failures {
			fmt.Fprintf(&b, "--- %s: %s\n", r.client, f)
		}
	}
	w := tabwriter.NewWriter(&b, 2, 8, 2, ' ', 0)
	fmt.Fprintln(w, "client\tversion\tcases ok\tresult\twhat it lacks")
	for _, r := range t.rows {
		note := r.note()
		fmt.Fprintf(w, "%s\t%s\t%d of %d\t%s\t%s\n", r.client, r.version, r.ok, r.cases, r.result(), note)
	}
	w.Flush()
	fmt.Fprintf(&b, "clients: %d passed, %d failed, %d skipped\n", t.passed, t.failed, t.skipped)
	return b.String()
}

// markdown is the table for docs.
func (t *table) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Run of %s, %d records checked one by one for each client:\n\n", time.Now().UTC().Format("2 January 2006"), t.lines)
	b.WriteString("| client | version | cases ok | result | what it lacks |\n|---|---|---|---|---|\n")
	for _, r := range t.rows {
		note := r.note()
		for _, f := range r.failures {
			name, _, _ := strings.Cut(f, ":")
			note = "FAILED: " + name + "; " + note
		}
		fmt.Fprintf(&b, "| %s | %s | %d of %d | %s | %s |\n", r.client, r.version, r.ok, r.cases, r.result(), strings.ReplaceAll(note, "|", "\\|"))
	}
	return b.String()
}

// writeInto replaces what is between the markers of a file.
func (t *table) writeInto(path string) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(old), beginMark)
	_, after, ok2 := strings.Cut(rest, endMark)
	if !ok || !ok2 {
		return fmt.Errorf("%s: the table goes between the lines %q and %q, which are not there", path, beginMark, endMark)
	}
	return os.WriteFile(path, []byte(before+beginMark+"\n\n"+t.markdown()+"\n"+endMark+after), 0o644)
}
