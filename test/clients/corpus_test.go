package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/chronik-go/chronik/internal/record"
)

// TestCheckSeesEveryDifference: the check that all runs rest on must fail for a line lost, doubled, exchanged or changed.
func TestCheckSeesEveryDifference(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "src"), 0o755); err != nil {
		t.Fatal(err)
	}
	// An empty line, a carriage return and a last line without an end are what sources have.
	for name, text := range map[string]string{"b.go": "package b\n\n// two\r\nvar b int", "a.go": "package a\n", "c.txt": "no\n"} {
		if err := os.WriteFile(filepath.Join(root, "src", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(root, "lines")
	text, err := writeCorpus(path, root, 5)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := "0\tpackage a\n1\tpackage b\n2\t\n3\t// two\r\n4\tvar b int\n"; string(b) != want || text.bytes != int64(len(want)) || text.files != 2 {
		t.Fatalf("%d bytes of %d files: %q", text.bytes, text.files, b)
	}
	if _, err := writeCorpus(path, root, 6); err == nil {
		t.Error("six lines were found in five")
	}
	lines := slices.Collect(bytes.Lines(b))
	read := func(lines ...[]byte) error {
		c := newCheck(text)
		all := bytes.Join(lines, nil)
		for step := 3; len(all) > 0; { // in pieces, as from a pipe
			n := min(step, len(all))
			if _, err := c.Write(all[:n]); err != nil {
				t.Fatal(err)
			}
			all = all[n:]
		}
		return c.result()
	}
	if err := read(lines...); err != nil {
		t.Errorf("the text itself: %v", err)
	}
	swapped := slices.Clone(lines)
	swapped[1], swapped[2] = swapped[2], swapped[1]
	changed := slices.Clone(lines)
	changed[2] = []byte("2\t \n")
	for name, l := range map[string][][]byte{
		"nothing":      nil,
		"last lost":    lines[:4],
		"first lost":   lines[1:],
		"middle lost":  slices.Delete(slices.Clone(lines), 2, 3),
		"one doubled":  slices.Insert(slices.Clone(lines), 2, lines[2]),
		"last doubled": append(slices.Clone(lines), lines[4]),
		"exchanged":    swapped,
		"changed":      changed,
		"cut":          append(slices.Clone(lines[:4]), lines[4][:5]),
	} {
		if err := read(l...); err == nil {
			t.Errorf("%s: not seen", name)
		}
	}
}

func TestStoredInAnotherCodecIsSeen(t *testing.T) {
	of := func(records map[record.Codec]int) stored { return stored{batches: records, records: records} }
	for _, c := range []struct {
		records map[record.Codec]int
		sent    string
		ok      bool
	}{
		{map[record.Codec]int{record.LZ4: 1000}, "lz4", true},
		{map[record.Codec]int{record.LZ4: 1000, record.None: 5}, "lz4", true}, // batches that don't shrink
		{map[record.Codec]int{record.LZ4: 1000, record.None: 50}, "lz4", false},
		{map[record.Codec]int{record.None: 1000}, "lz4", false},
		{map[record.Codec]int{record.LZ4: 1000, record.Gzip: 1}, "lz4", false},
		{map[record.Codec]int{record.Gzip: 1}, "none", false},
		{map[record.Codec]int{record.None: 1000}, "none", true},
	} {
		s := of(c.records)
		if err := s.check(c.sent); (err == nil) != c.ok {
			t.Errorf("%v sent as %s: %v", c.records, c.sent, err)
		}
	}
	if got := of(map[record.Codec]int{record.None: 2, record.Zstd: 900}).String(); !strings.HasPrefix(got, "zstd+") {
		t.Errorf("the commonest codec comes first: %s", got)
	}
}
