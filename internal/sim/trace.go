package sim

import (
	"encoding/binary"
	"fmt"
	"strings"
	"time"
)

// trace is the hash of everything that happened in a run, and shows it line by line to whoever asks. Two runs with one hash
// are the same run.
type trace struct {
	sum  uint64
	sink func(string) // nil: nobody looks
}

// mix adds numbers to the hash: FNV's step on whole words, and a turn so that high bits reach low ones.
func (t *trace) mix(values ...uint64) {
	for _, v := range values {
		t.sum = (t.sum ^ v) * 0x100000001b3
		t.sum ^= t.sum >> 29
	}
}

func (t *trace) mixString(s string) { t.mixBytes([]byte(s)) }

func (t *trace) mixBytes(b []byte) {
	sum := (t.sum ^ uint64(len(b))) * 0x100000001b3
	for ; len(b) >= 8; b = b[8:] {
		sum = (sum ^ binary.LittleEndian.Uint64(b)) * 0x100000001b3
		sum ^= sum >> 29
	}
	for _, c := range b {
		sum = (sum ^ uint64(c)) * 0x100000001b3
		sum ^= sum >> 29
	}
	t.sum = sum
}

// print shows a line that is in the hash already.
func (t *trace) print(at time.Duration, text string) {
	if t.sink != nil {
		t.sink(fmt.Sprintf("%10.3fms %s", float64(at.Microseconds())/1000, text))
	}
}

// tail keeps the last lines of a trace.
type tail struct {
	lines []string
	next  int
}

// traceKept is how many lines of the trace a failure shows.
const traceKept = 150

func (t *tail) add(line string) {
	if strings.Contains(line, " MsgHeartbeat") {
		return // there are many, and they say little
	}
	if len(t.lines) < traceKept {
		t.lines = append(t.lines, line)
		return
	}
	t.lines[t.next] = line
	t.next = (t.next + 1) % traceKept
}

func (t *tail) all() []string {
	return append(append([]string(nil), t.lines[t.next:]...), t.lines[:t.next]...)
}
