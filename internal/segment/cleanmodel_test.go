package segment

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/vfs"
)

// compactModel is a map from keys to values, and the history it came from.
type compactModel struct {
	recs  []modelRecord // by offset
	last  map[int64]int64
	first []coverage
	keep  time.Duration // delete.retention.ms

	lookups bool // check tries them, too
}

type modelRecord struct {
	key, value string
	null       bool // a tombstone
	ts         int64
}

// coverage: at this time a pass began that may have met every tombstone below to.
type coverage struct {
	at time.Time
	to int64
}

// batch makes the next batch of the history, of random keys.
func (m *compactModel) batch(t testing.TB, rng *rand.Rand, keys int, producer int64) []byte {
	t.Helper()
	b := record.NewBuilder()
	b.BaseOffset, b.LeaderEpoch, b.Codec = int64(len(m.recs)), int32(len(m.recs)/150), record.Codec(rng.IntN(5))
	if producer >= 0 {
		b.ProducerID, b.ProducerEpoch, b.BaseSequence = producer, 1, int32(len(m.recs))
	}
	for range 1 + rng.IntN(6) {
		r := modelRecord{key: fmt.Sprintf("k%d", rng.IntN(keys)), ts: t0 + int64(len(m.recs))*10 + int64(rng.IntN(50)), null: rng.IntN(4) == 0}
		var value []byte
		if !r.null {
			r.value = fmt.Sprintf("v%d-%s", len(m.recs), bytes.Repeat([]byte{'x'}, rng.IntN(40)))
			value = []byte(r.value)
		}
		b.Add(r.ts, []byte(r.key), value, record.RecordHeader{Key: []byte("h"), Value: []byte(r.key)})
		m.recs = append(m.recs, r)
	}
	out, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	if producer >= 0 {
		m.last[producer] = b.BaseOffset
	}
	return out
}

// check holds a log against the history: what is there is what was written, the latest of every key is there (but for tombstones
// whose time has come, which leave nothing older behind), every offset is readable, and lookups by time and offset agree with it.
func (m *compactModel) check(t testing.TB, l *Log, now time.Time, what string) {
	t.Helper()
	end := l.EndOffset()
	latest := map[string]int64{}
	for off, r := range m.recs[:end] {
		latest[r.key] = int64(off)
	}
	present := map[int64]bool{}
	starts := []int64{} // of the batches
	ends := []int64{}
	next := int64(0)
	lastOf := map[int64]int64{}
	for next < end {
		b, err := l.ReadChecked(next, end, 700, nil)
		if err != nil {
			t.Fatalf("%s: read at %d: %v", what, next, err)
		}
		if len(b) == 0 {
			t.Fatalf("%s: nothing at %d, the log ends at %d", what, next, end)
		}
		if err := record.Each(b, func(h record.Header, b []byte) error {
			if h.BaseOffset < next {
				return fmt.Errorf("batch at %d, wanted %d", h.BaseOffset, next)
			}
			next = h.LastOffset() + 1
			starts, ends = append(starts, h.BaseOffset), append(ends, h.LastOffset())
			if h.ProducerID >= 0 {
				lastOf[h.ProducerID] = h.BaseOffset
			}
			return record.Records(b, 1<<20, func(r record.Record) error {
				off := h.BaseOffset + int64(r.OffsetDelta)
				want := m.recs[off]
				if want.key != string(r.Key) || want.value != string(r.Value) || want.null != (r.Value == nil) || want.ts != r.Timestamp ||
					len(r.Headers) != 1 || string(r.Headers[0].Value) != want.key {
					return fmt.Errorf("offset %d holds %q=%q at %d, written was %+v", off, r.Key, r.Value, r.Timestamp, want)
				}
				present[off] = true
				return nil
			})
		}); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	stale := map[string]int64{}
	for off := range present {
		if k := m.recs[off].key; off < latest[k] {
			stale[k] = off
		}
	}
	for k, off := range latest {
		switch {
		case present[off]:
		case !m.recs[off].null:
			t.Fatalf("%s: the last value of %s, offset %d, is gone", what, k, off)
		default:
			if at, has := stale[k]; has {
				t.Fatalf("%s: the tombstone %d of %s is gone, and offset %d has come back", what, off, k, at)
			}
			met := time.Time{}
			for _, c := range m.first {
				if off < c.to {
					met = c.at
					break
				}
			}
			if met.IsZero() || now.Before(met.Add(m.keep)) {
				t.Fatalf("%s: the tombstone %d of %s went at %v, first met at %v", what, off, k, now, met)
			}
		}
	}
	for id, base := range m.last {
		if base < end && lastOf[id] != base {
			t.Fatalf("%s: the last batch of producer %d, offset %d, is gone (%d is there)", what, id, base, lastOf[id])
		}
	}
	if !m.lookups {
		return
	}
	i := 0
	for off := int64(0); off < end; off += 3 {
		for ends[i] < off {
			i++
		}
		b, err := l.Read(off, end, 1, nil)
		if h, e := record.ParseHeader(b); err != nil || e != nil || h.BaseOffset != starts[i] {
			t.Fatalf("%s: read at %d gives batch %d, want %d; %v %v", what, off, h.BaseOffset, starts[i], err, e)
		}
	}
	for ts := t0; ts < t0+end*10; ts += 97 {
		want := int64(-1)
		for off := range end {
			if present[off] && m.recs[off].ts >= ts {
				want = off
				break
			}
		}
		if got, _, _, err := l.OffsetForTimestamp(ts, end); err != nil || got != want {
			t.Fatalf("%s: timestamp %d: offset %d, want %d; %v", what, ts, got, want, err)
		}
	}
}

// dense says that below to no record is left that another one of its key, also below to, has replaced.
func (m *compactModel) dense(t testing.TB, l *Log, to int64, what string) {
	t.Helper()
	seen := map[string]int64{}
	for off, r := range m.recs[:to] {
		seen[r.key] = int64(off)
	}
	for next := int64(0); next < to; {
		b, err := l.Read(next, l.EndOffset(), 1<<20, nil)
		if err != nil || len(b) == 0 {
			t.Fatal(what, err)
		}
		_ = record.Each(b, func(h record.Header, b []byte) error {
			next = h.LastOffset() + 1
			return record.Records(b, 1<<20, func(r record.Record) error {
				if off := h.BaseOffset + int64(r.OffsetDelta); off < to && seen[string(r.Key)] != off {
					t.Fatalf("%s: offset %d of %s is left, offset %d replaces it, clean up to %d", what, off, r.Key, seen[string(r.Key)], to)
				}
				return nil
			})
		})
	}
}

func (m *compactModel) options(now time.Time, keys *OffsetMap) CleanOptions {
	return CleanOptions{Limit: math.MaxInt64, Now: now, DeleteRetention: m.keep, KeepTombstones: math.MaxInt64, Map: keys, MaxInflated: 1 << 20,
		KeepBatch: func(h record.Header) bool { return h.ProducerID >= 0 && m.last[h.ProducerID] == h.BaseOffset }}
}

// clean runs a pass to its end.
func clean(t testing.TB, l *Log, o CleanOptions) Cleaned {
	t.Helper()
	c, err := l.Clean(o)
	if err != nil {
		t.Fatal(err)
	}
	for {
		done, err := c.Step(2000)
		if err != nil {
			c.Abort()
			t.Fatal(err)
		}
		if done {
			return c.Progress()
		}
	}
}

// compactSeeds is how many random histories are tried: CHRONIK_COMPACT_SEEDS, a few without.
func compactSeeds() uint64 {
	if n, err := strconv.ParseUint(os.Getenv("CHRONIK_COMPACT_SEEDS"), 10, 64); err == nil {
		return n
	}
	return 4
}

// TestCompactionKeepsTheLastValueOfEachKey: random histories against a map, with passes whose memory takes a few keys only, restarts,
// power cuts and a clock that moves. What is left is checked after each, and the disk as a power cut before each operation of a pass
// would leave it.
func TestCompactionKeepsTheLastValueOfEachKey(t *testing.T) {
	for seed := range compactSeeds() {
		rng := rand.New(rand.NewPCG(seed, 44))
		mem := vfs.NewMem(seed)
		clk := clock.NewSim(time.UnixMilli(t0))
		if err := vfs.MkdirAllSync(mem, "/data"); err != nil {
			t.Fatal(err)
		}
		m := &compactModel{last: map[int64]int64{}, keep: time.Duration(rng.IntN(3)) * time.Minute}
		cfg := Config{SegmentBytes: int64(900 + rng.IntN(4000)), IndexIntervalBytes: 200}
		open := func(fs vfs.FS) *Log {
			l, err := Open(NewFiles(fs, 64), clk, "/data/t-0", cfg, 0, quiet)
			if err != nil {
				t.Fatal(err)
			}
			return l
		}
		l := open(mem)
		keys := 5 + rng.IntN(60)
		cuts := 0
		for round := range 6 {
			for range 10 + rng.IntN(30) {
				if err := l.Append(m.batch(t, rng, keys, int64(rng.IntN(4)-2))); err != nil {
					t.Fatal(err)
				}
			}
			if rng.IntN(4) > 0 {
				if _, err := l.RollOld(clk.Now().Add(time.Hour*24*365*20), Config{}); err != nil {
					t.Fatal(err)
				}
			}
			flush(t, l)
			clk.Advance(time.Duration(rng.IntN(90)) * time.Second)
			able, err := l.Cleanable(math.MaxInt64, clk.Now(), 0)
			if err != nil {
				t.Fatal(err)
			}
			m.first = append(m.first, coverage{clk.Now(), able.To})
			what := fmt.Sprintf("seed %d round %d", seed, round)
			o := m.options(clk.Now(), NewOffsetMap(int64(1+rng.IntN(40))*offsetEntryBytes*4))
			n := 0
			every := 1 + rng.IntN(3)
			mem.SetHook(func(op vfs.Op, name string, _ time.Duration) {
				if n++; n%every != 0 {
					return
				}
				cuts++
				after := open(mem.CrashClone(seed<<32 + uint64(n)))
				if after.Damage() != nil || after.EndOffset() != l.FlushedOffset() {
					t.Fatalf("%s, cut before %v %s: ends at %d of %d; %v", what, op, name, after.EndOffset(), l.FlushedOffset(), after.Damage())
				}
				m.lookups = n%11 == 0
				m.check(t, after, clk.Now(), fmt.Sprintf("%s, cut before operation %d, %v %s", what, n, op, name))
				if n%7 == 0 {
					flush(t, after)
					done := clean(t, after, m.options(clk.Now(), NewOffsetMap(1<<20)))
					m.check(t, after, clk.Now(), what+", cut and cleaned")
					m.dense(t, after, done.To, what+", cut and cleaned")
				}
				closeLog(t, after)
			})
			done := clean(t, l, o)
			mem.SetHook(nil)
			m.lookups = true
			m.check(t, l, clk.Now(), what)
			m.dense(t, l, done.To, what)
			for i := 0; done.To < able.To; i++ {
				if i > len(m.recs) {
					t.Fatalf("%s: passes do not come to an end: clean up to %d of %d", what, done.To, able.To)
				}
				done = clean(t, l, m.options(clk.Now(), o.Map))
			}
			m.check(t, l, clk.Now(), what+", all passes")
			m.dense(t, l, able.To, what+", all passes")
			switch rng.IntN(3) {
			case 0:
				closeLog(t, l)
				l = open(mem)
			case 1:
				mem.Crash(seed*100 + uint64(round))
				l = open(mem)
				m.recs = m.recs[:l.EndOffset()]
				for id, base := range m.last {
					if base >= l.EndOffset() {
						delete(m.last, id)
					}
				}
			}
			if l.Damage() != nil {
				t.Fatalf("%s: %v", what, l.Damage())
			}
			m.check(t, l, clk.Now(), what+", reopened")
		}
		closeLog(t, l)
		if cuts < 100 {
			t.Errorf("seed %d: only %d operations were cut", seed, cuts)
		}
	}
}
