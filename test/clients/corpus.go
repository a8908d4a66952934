package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// maxLine keeps a line, as one record, below the default max.message.bytes.
const maxLine = 512 << 10

// corpus is the text: one file of numbered lines. The number makes every line unique, so that a checksum sees a duplicate and
// an exchange, and no line empty: kcat skips empty ones.
type corpus struct {
	path  string
	lines int
	files int
	bytes int64
	sum   [sha256.Size]byte
}

// writeCorpus writes the first so many lines of the toolchain's Go files, src first, in order of path.
func writeCorpus(path, goroot string, lines int) (*corpus, error) {
	var files []string
	// The other folders make up for a toolchain whose src alone is shorter.
	for _, root := range []string{"src", "test", "misc"} {
		var part []string
		err := filepath.WalkDir(filepath.Join(goroot, root), func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && filepath.Ext(p) == ".go" {
				part = append(part, p)
			}
			return err
		})
		if err != nil && root == "src" {
			return nil, err
		}
		slices.Sort(part)
		files = append(files, part...)
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	c := &corpus{path: path}
	h := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(f, h), 1<<20)
	for _, name := range files {
		if c.lines == lines {
			break
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		c.files++
		for line := range bytes.Lines(b) {
			if c.lines == lines {
				break
			}
			line = bytes.TrimSuffix(line, []byte("\n"))
			line = line[:min(len(line), maxLine)]
			n, err := fmt.Fprintf(out, "%d\t%s\n", c.lines, line)
			if err != nil {
				return nil, err
			}
			c.bytes += int64(n)
			c.lines++
		}
	}
	if c.lines < lines {
		return nil, fmt.Errorf("%s holds only %d lines of Go", goroot, c.lines)
	}
	if err := out.Flush(); err != nil {
		return nil, err
	}
	h.Sum(c.sum[:0])
	return c, f.Close()
}

// check compares a stream of lines with the text: count, order and bytes. It remembers where the first difference was, which
// a checksum alone would not tell.
type check struct {
	text  *corpus
	h     hash.Hash
	lines int
	first string // what is wrong with the first line that has the wrong number
	part  []byte // of a stream: the line that is not whole yet
}

func newCheck(text *corpus) *check { return &check{text: text, h: sha256.New()} }

// line takes one line, without its end.
func (c *check) line(b []byte) {
	if c.first == "" {
		number, _, _ := bytes.Cut(b, []byte("\t"))
		if n, err := strconv.Atoi(string(number)); err != nil || n != c.lines {
			c.first = fmt.Sprintf("line %d is %.80q", c.lines, b)
		}
	}
	c.lines++
	c.h.Write(b)
	c.h.Write([]byte("\n"))
}

// Write takes a stream of lines.
func (c *check) Write(b []byte) (int, error) {
	for line := range bytes.Lines(b) {
		whole := line[len(line)-1] == '\n'
		if !whole || len(c.part) > 0 {
			c.part = append(c.part, line...)
			line = c.part
		}
		if whole {
			c.line(line[:len(line)-1])
			c.part = c.part[:0]
		}
	}
	return len(b), nil
}

// result is nil if the lines were exactly the text's.
func (c *check) result() error {
	switch {
	case len(c.part) > 0:
		return fmt.Errorf("the last line does not end: %.80q", c.part)
	case c.first != "":
		return fmt.Errorf("%d lines of %d; the first that is wrong: %s", c.lines, c.text.lines, c.first)
	case c.lines != c.text.lines:
		return fmt.Errorf("%d lines of %d, in order", c.lines, c.text.lines)
	case !bytes.Equal(c.h.Sum(nil), c.text.sum[:]):
		return fmt.Errorf("%d lines in order, but with another checksum", c.lines)
	}
	return nil
}
