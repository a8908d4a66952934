package partition

import (
	"fmt"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/segment"
)

// compactedCluster is two replicas of a topic that is compacted, of which the second has only seen the first batches.
func compactedCluster(t *testing.T) *cluster {
	c := newCluster(t, 2, func(c *cluster) {
		c.cfg.RequireKeys = true
		c.cfg.Compaction = Compaction{Enabled: true, Only: true, MinDirtyRatio: 0.1}
	})
	c.elect(0, false)
	c.fill(5)
	c.nodes[1].apply()
	return c
}

// write commits a batch of one record that only the leader applies; a nil value is a tombstone.
func (c *cluster) write(key string, value []byte) {
	c.t.Helper()
	b := record.NewBuilder()
	b.Add(1_700_000_000_000, []byte(key), value)
	out, err := b.Build()
	if err != nil {
		c.t.Fatal(err)
	}
	r := &result{}
	c.leader.p.Produce(out, r.done)
	c.propose(false)
	c.commit()
	c.leader.apply()
	if r.n != 1 || r.res.Err != nil {
		c.t.Fatalf("%+v", r)
	}
}

// clean compacts a node's replica as far as it may be.
func (nd *node) clean() segment.Cleaned {
	nd.c.t.Helper()
	pass, err := nd.p.Clean(segment.NewOffsetMap(1<<16), nd.c.clk.Now())
	if err != nil {
		nd.c.t.Fatal(err)
	}
	for {
		done, err := pass.Step(1 << 10)
		if err != nil {
			nd.c.t.Fatal(err)
		}
		if done {
			return pass.Progress()
		}
	}
}

// values reads a replica at every offset from its log start on, and returns the records by offset.
func (nd *node) values() map[int64]string {
	nd.c.t.Helper()
	out := map[int64]string{}
	hw := nd.p.HighWatermark()
	for at := nd.p.LogStart(); at < hw; at++ {
		b, err := nd.p.log.ReadChecked(at, hw, 1, nil)
		if err != nil || len(b) == 0 {
			nd.c.t.Fatalf("node %d at offset %d of %d: %d bytes, %v", nd.id, at, hw, len(b), err)
		}
		err = record.Each(b, func(h record.Header, b []byte) error {
			if h.LastOffset() < at {
				return fmt.Errorf("a batch up to %d for offset %d", h.LastOffset(), at)
			}
			return record.Records(b, 1<<20, func(r record.Record) error {
				out[h.BaseOffset+int64(r.OffsetDelta)] = string(r.Key) + "=" + string(r.Value)
				return nil
			})
		})
		if err != nil {
			nd.c.t.Fatal(err)
		}
	}
	return out
}

// TestReplicaCatchesUpFromACompactedOne: the leader has compacted what the follower lacks. The follower takes what is left, at its offsets,
// and goes on with the log; both are readable at every offset, and know the same of producers.
func TestReplicaCatchesUpFromACompactedOne(t *testing.T) {
	c := compactedCluster(t)
	c.fill(80)
	c.advance(10 * time.Second) // flushed, and in a checkpoint
	l, f := c.nodes[0], c.nodes[1]
	st, ok := l.p.CleanState(c.clk.Now())
	if !ok || !st.Due || st.Dirty == 0 {
		t.Fatalf("%+v %v", st, ok)
	}
	before := l.values()
	done := l.clean()
	if done.Swaps == 0 || done.Records < 100 {
		t.Fatalf("%+v", done)
	}
	snap, r := c.stage(1, 0)
	c.fetched(r)
	if err := f.install(snap); err != nil {
		t.Fatal(err)
	}
	c.fill(3)
	f.apply()
	if string(l.encoded()) != string(f.encoded()) {
		t.Fatal("the states differ")
	}
	left, got := l.values(), f.values()
	for off, v := range left {
		if got[off] != v {
			t.Fatalf("offset %d: %q on the leader, %q on the follower", off, v, got[off])
		}
		if was, old := before[off]; old && was != v {
			t.Fatalf("offset %d was %q and is %q", off, was, v)
		}
	}
	end := l.p.EndOffset()
	// The last batch again, from its producer: the answer is its offset, on whoever leads.
	c.elect(1, true)
	again := c.send(batchSpec{records: 3, producer: 11, seq: int32(end - 3), value: fmt.Sprintf("%060d", 2)})
	c.propose(false)
	c.commit()
	f.apply()
	again.want(t, end-3, nil)
	// What it has taken it can compact in its turn, and open again.
	l.apply()
	c.advance(10 * time.Second)
	f.clean()
	f.crash(1, true)
	f.open()
	f.apply()
	for off, v := range f.values() {
		if was := before[off]; off < int64(len(before)) && was != v {
			t.Fatalf("offset %d was %q and is %q after a restart", off, was, v)
		}
	}
}

// TestNoRecordComesBackWhoseTombstoneIsGone: a follower has a record; the leader has removed it and its tombstone. A delta would leave the record
// there for good: it takes the log whole.
func TestNoRecordComesBackWhoseTombstoneIsGone(t *testing.T) {
	c := compactedCluster(t)
	l, f := c.nodes[0], c.nodes[1]
	c.write("gone", []byte("old"))
	f.apply()
	c.write("gone", nil)
	for i := range 200 {
		c.write(fmt.Sprint("k", i%3), fmt.Appendf(nil, "%060d", i))
	}
	c.advance(10 * time.Second)
	l.clean()
	c.advance(time.Second)
	if done := l.clean(); done.Tombstones != 1 {
		t.Fatalf("%+v", done)
	}
	snap, r := c.stage(1, 0)
	c.fetched(r)
	if err := f.install(snap); err != nil {
		t.Fatal(err)
	}
	for off, v := range f.values() {
		if v == "gone=old" {
			t.Fatalf("offset %d: the record is back", off)
		}
	}
	for off, v := range l.values() {
		if got := f.values()[off]; got != v {
			t.Fatalf("offset %d: %q on the leader, %q on the follower", off, v, got)
		}
	}
}

// TestCompactionStaysBelowTheCheckpoint: what a restart would apply again is left alone.
func TestCompactionStaysBelowTheCheckpoint(t *testing.T) {
	c := compactedCluster(t)
	l := c.nodes[0]
	l.holdCP = true
	c.fill(80)
	c.advance(10 * time.Second) // flushed, and the checkpoint is not durable yet
	if done := l.clean(); done.Swaps != 0 {
		t.Fatalf("%+v, checkpoint at %d", done, l.p.checkpointed.Load())
	}
	l.syncCP(len(l.cps))
	l.holdCP = false
	c.advance(10 * time.Second)
	if done := l.clean(); done.Swaps == 0 {
		t.Fatalf("%+v, checkpoint at %d", done, l.p.checkpointed.Load())
	}
}

// A topic that is to be compacted from now on, and gets no more records, is compacted as far as a segment's end all the same.
func TestIdlePartitionIsCompactedOnceItsTopicIs(t *testing.T) {
	c := newCluster(t, 2, func(c *cluster) { c.cfg.RequireKeys = true })
	c.elect(0, false)
	c.fill(80)
	c.advance(10 * time.Second) // flushed, and in a checkpoint that nobody waits for
	c.cfg.Compaction = Compaction{Enabled: true, Only: true, MinDirtyRatio: 0.1}
	c.advance(2 * time.Minute)
	l := c.nodes[0]
	st, ok := l.p.CleanState(c.clk.Now())
	if !ok || !st.Due || st.Dirty == 0 {
		t.Fatalf("%+v %v, checkpoint at %d of %d", st, ok, l.p.checkpointed.Load(), l.p.HighWatermark())
	}
	if done := l.clean(); done.Swaps == 0 {
		t.Fatalf("%+v", done)
	}
}
