package partition

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/segment"
	"github.com/chronik-go/chronik/internal/transport"
	"github.com/chronik-go/chronik/internal/wal"
)

// load is idempotent producers writing to a partition, and what they were told.
type load struct {
	c     *realCluster
	mu    sync.Mutex
	acked []map[int64]string // by partition: offset -> value
	count atomic.Int64       // of batches acknowledged
}

func (l *load) run(part int, id int64, batches int) {
	seq := int32(0)
	for k := range batches {
		v := fmt.Sprintf("%d-%d-%d", part, id, k)
		n := 1 + k%3
		off := l.c.mustProduce(part, batchSpec{records: n, producer: id, seq: seq, value: v})
		if off < 0 {
			return
		}
		seq += int32(n)
		l.mu.Lock()
		if was, twice := l.acked[part][off]; twice {
			l.c.t.Errorf("partition %d: %q and %q were both acknowledged at %d", part, was, v, off)
		}
		l.acked[part][off] = v
		l.mu.Unlock()
		l.count.Add(1)
	}
}

// check holds a partition's log against what was acknowledged.
func (l *load) check(part int, p *Partition) {
	l.c.t.Helper()
	start, end := p.LogStart(), p.HighWatermark()
	found := map[int64]string{}
	at := map[string]int64{}
	err := record.Each(l.c.read(p, start, end), func(h record.Header, b []byte) error {
		return record.Records(b, 1<<20, func(r record.Record) error {
			if r.OffsetDelta == 0 {
				v := string(r.Value[len("v0-"):])
				if was, twice := at[v]; twice {
					l.c.t.Errorf("partition %d: %q is at %d and at %d", part, v, was, h.BaseOffset)
				}
				found[h.BaseOffset], at[v] = v, h.BaseOffset
			}
			return nil
		})
	})
	if err != nil {
		l.c.t.Fatal(err)
	}
	for off, v := range l.acked[part] {
		if off >= start && found[off] != v {
			l.c.t.Errorf("partition %d: acknowledged %q at %d, there is %q", part, v, off, found[off])
		}
	}
}

// follow reads a partition from anywhere as it grows: offsets follow one another, the high watermark of a node never goes back.
func follow(c *realCluster, part int, node *realNode, stop *atomic.Bool) {
	p := node.part(part)
	next, hw := int64(0), int64(0)
	w := NewWaiter()
	defer w.Cancel()
	for !stop.Load() {
		res, err := p.Fetch(FetchRequest{Offset: next, MaxBytes: 4 << 10, CurrentLeaderEpoch: -1, LastFetchedEpoch: -1, Follower: true})
		var oor *OffsetOutOfRangeError
		switch {
		case errors.As(err, &oor):
			if oor.Start <= next {
				c.t.Errorf("partition %d: %d is out of range, which goes from %d to %d", part, next, oor.Start, oor.End)
				return
			}
			next = oor.Start // deleted meanwhile
			continue
		case err != nil && !errors.Is(err, multiraft.ErrNotLeader):
			c.t.Errorf("partition %d at %d: %v", part, next, err)
			return
		}
		if err == nil && res.HighWatermark < hw {
			c.t.Errorf("partition %d: the high watermark went from %d to %d", part, hw, res.HighWatermark)
			return
		}
		if len(res.Records) == 0 {
			p.Wait(next, w)
			select {
			case <-w.C():
			case <-time.After(20 * time.Millisecond):
			}
			continue
		}
		hw = res.HighWatermark
		end, err := batchesEnd(res.Records)
		if err == nil {
			_, err = checkChunk(&deltaChunk{from: next, end: end, batches: res.Records})
		}
		if err != nil || end <= next || end > hw {
			c.t.Errorf("partition %d at %d: batches up to %d below %d, %v", part, next, end, hw, err)
			return
		}
		next = end
	}
}

// Everything a broker does, at once, on running parts, while leaderships move.
func TestEverythingAtOnceOnRunningParts(t *testing.T) {
	const parts = 3
	c := newRealCluster(t, 3, parts, func(_ *wal.Options, _ *Limits, cfg *TopicConfig) { cfg.Segment.SegmentBytes = 4 << 10 })
	l := &load{c: c}
	var producers, others sync.WaitGroup
	var stop atomic.Bool
	for range parts {
		l.acked = append(l.acked, map[int64]string{})
	}
	for i := range parts {
		c.leader(i)
		for id := range int64(3) {
			producers.Go(func() { l.run(i, id+1, 50) })
		}
		others.Go(func() { follow(c, i, c.nodes[i], &stop) })
		others.Go(func() { follow(c, i, c.nodes[(i+1)%3], &stop) })
		others.Go(func() { lookUp(c, i, &stop) })
	}
	var moves, deletions int64 // deletions without an outcome yet
	others.Go(func() {
		for ; !stop.Load(); time.Sleep(time.Millisecond) {
			// What is acknowledged paces the moves: by the clock they would leave a slow machine no time for anything else.
			if l.count.Load() < 5*moves {
				continue
			}
			part := int(moves % parts)
			n, p := c.tryLeader(part)
			if p == nil {
				continue
			}
			if r, ok := n.svc.Lookup("r", int32(part)); ok {
				r.TransferLeadership(-1)
			}
			if moves%4 == 3 {
				atomic.AddInt64(&deletions, 1)
				p.DeleteRecords(p.HighWatermark()/3, func(int64, error) { atomic.AddInt64(&deletions, -1) })
			}
			moves++
		}
	})
	producers.Wait()
	stop.Store(true)
	others.Wait()
	if moves < parts {
		t.Fatalf("%d moves: the test shows nothing", moves)
	}
	eventually(t, "no log start moves any more", func() bool { return atomic.LoadInt64(&deletions) == 0 })
	for i := range parts {
		c.converge(i)
		for _, n := range c.nodes {
			l.check(i, n.part(i))
		}
	}

	// Close flushes the last of it: a restart finds the state in its checkpoint, not in the log.
	type place struct{ start, end int64 }
	ends := map[[2]int]place{}
	for _, n := range c.nodes {
		for i := range parts {
			p := n.part(i)
			ends[[2]int{n.id, i}] = place{p.LogStart(), p.HighWatermark()}
		}
	}
	for _, n := range c.nodes {
		n.stop()
		if err := n.m.Load().Close(); err != nil {
			t.Fatal("closing twice:", err)
		}
	}
	for _, n := range c.nodes {
		n.start()
	}
	for _, n := range c.nodes {
		for i := range parts {
			st, err := decodeState(n.log.Group(c.firstG + uint64(i)).Checkpoint().State)
			if want := ends[[2]int{n.id, i}]; err != nil || st.end != want.end || st.start != want.start {
				t.Errorf("node %d partition %d: the checkpoint has [%d, %d), want %+v (%v)", n.id, i, st.start, st.end, want, err)
			}
		}
	}
	for i := range parts {
		c.converge(i)
		_, p := c.leader(i)
		l.check(i, p)
		// The producers' state is back as well: the next sequence is taken, an old one is known.
		if off := c.mustProduce(i, batchSpec{records: 1, producer: 1, seq: 99, value: "after"}); off < 0 {
			t.Error("the next batch of a producer was refused after a restart")
		}
	}
}

// lookUp asks for offsets while the partition changes.
func lookUp(c *realCluster, part int, stop *atomic.Bool) {
	for !stop.Load() {
		_, p := c.tryLeader(part)
		if p == nil {
			time.Sleep(time.Millisecond)
			continue
		}
		before := p.HighWatermark()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		latest, _, _, err := p.ListOffset(ctx, TimestampLatest, -1)
		cancel()
		switch {
		case err == nil && latest < before:
			c.t.Errorf("the latest offset is %d, it was %d before the call", latest, before)
			return
		case err != nil && !errors.Is(err, multiraft.ErrNotLeader) && !errors.Is(err, multiraft.ErrUnknownOutcome):
			c.t.Errorf("latest offset: %v", err)
			return
		}
		if off, _, _, err := p.ListOffset(context.Background(), 1_700_000_000_000, -1); err == nil && off > p.HighWatermark() {
			c.t.Errorf("offset by time: %d", off)
		}
		_, _, _ = p.EpochEnd(-1, p.LeaderEpoch())
		time.Sleep(time.Millisecond) // leaves the processor to the others
	}
}

// A topic is deleted while it is written to: everybody is answered, files and log go, the neighbour notices nothing, and a topic
// of the same name begins anew.
func TestDeleteOfAnOpenPartitionUnderLoad(t *testing.T) {
	c := newRealCluster(t, 3, 2, nil)
	var asked, answered atomic.Int64
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for !stop.Load() {
				for _, n := range c.nodes {
					// So much under way is load enough; more would only keep a slow machine from everything else.
					if p, ok := n.m.Load().Lookup("r", 0); ok && asked.Load()-answered.Load() < 500 {
						asked.Add(1)
						p.Produce(makeBatch(t, batchSpec{records: 2, value: fmt.Sprintf("%0400d", 7)}), func(ProduceResult) { answered.Add(1) })
					}
				}
				time.Sleep(200 * time.Microsecond)
			}
		})
	}
	c.leader(0)
	c.leader(1)
	old := c.nodes[0].part(0)
	eventually(t, "some records", func() bool { return old.HighWatermark() > 200 })
	w := NewWaiter()
	old.Wait(1<<40, w)
	for _, n := range c.nodes {
		if err := n.m.Load().Delete(c.firstG); err != nil {
			t.Fatal(err)
		}
		if _, ok := n.m.Load().Lookup("r", 0); ok {
			t.Fatal("it can still be found")
		}
	}
	select {
	case <-w.C():
	case <-time.After(patience):
		t.Fatal("who waits on a deleted partition is not woken")
	}
	stop.Store(true)
	wg.Wait()
	eventually(t, "everybody is answered", func() bool { return asked.Load() == answered.Load() })
	if _, err := old.Fetch(ask(0)); !errors.Is(err, multiraft.ErrStopped) && !errors.Is(err, multiraft.ErrNotLeader) {
		t.Fatalf("a deleted partition answers %v", err)
	}
	if off := c.mustProduce(1, batchSpec{records: 1}); off < 0 {
		t.Fatal("the neighbour suffers")
	}
	for _, n := range c.nodes {
		eventually(t, "the files are gone", func() bool {
			_, err := n.fs.Stat(fmt.Sprintf("/topics/r/0.%d", c.firstG))
			return isNotExist(err) && n.log.Group(c.firstG) == nil
		})
		if err := n.m.Load().Open(c.topic(c.firstG), c.topic(c.firstG).Partitions[0], c.topic(c.firstG).Partitions[0].Replicas[n.id]); err == nil {
			t.Fatal("a removed group came back")
		}
	}
	c.parts = 1 // the new topic has one
	for _, n := range c.nodes {
		n.open(c.firstG + 50)
	}
	if off := c.mustProduce(0, batchSpec{records: 1}); off != 0 {
		t.Fatalf("the new topic begins at %d", off)
	}
}

// smallFiles makes the log forget after a few hundred kilobytes.
func smallFiles(o *wal.Options, l *Limits, cfg *TopicConfig) {
	o.FileBytes, o.MaxBytes, o.CacheBytes = 64<<10, 256<<10, 32<<10
	l.FlushInterval, l.DeltaChunkBytes = 20*time.Millisecond, 8<<10
	cfg.Segment = segment.Config{SegmentBytes: 32 << 10, RetentionBytes: -1, RetentionAge: -1}
}

// left is a cluster whose node 2 is down and so far behind that no log reaches back to it.
func left(t *testing.T) (c *realCluster, f *realNode, was int64) {
	c = newRealCluster(t, 3, 1, smallFiles)
	f = c.nodes[2]
	c.mustProduce(0, batchSpec{records: 3, producer: 1, seq: 0})
	c.converge(0)
	was = f.part(0).HighWatermark()
	r, _ := f.svc.Lookup("r", 0)
	applied := r.AppliedIndex()
	f.stop()
	value := fmt.Sprintf("%04000d", 1)
	eventually(t, "the logs forget", func() bool {
		for range 10 {
			c.mustProduce(0, batchSpec{records: 2, value: value})
		}
		for _, n := range c.nodes[:2] { // either may lead when it is back
			if n.log.Group(c.firstG).FirstIndex() <= applied+2 {
				return false
			}
		}
		return true
	})
	return c, f, was
}

// mustDelete deletes all but the last few records, whoever leads.
func (c *realCluster) mustDelete(i int) {
	c.t.Helper()
	eventually(c.t, "records are deleted", func() bool {
		_, p := c.tryLeader(i)
		if p == nil {
			return false
		}
		done := make(chan error, 1)
		p.DeleteRecords(p.HighWatermark()-20, func(_ int64, err error) { done <- err })
		select {
		case err := <-done:
			if err != nil && !errors.Is(err, multiraft.ErrNotLeader) {
				c.t.Fatal(err)
			}
			return err == nil
		case <-time.After(patience):
			c.t.Fatal("a deletion was never answered")
		}
		return false
	})
}

func count(chunks, snaps *atomic.Int64) func(from, to int, env *transport.Envelope) {
	return func(_, to int, env *transport.Envelope) {
		switch {
		case to == 2 && env.Kind == transport.KindDeltaChunk:
			chunks.Add(1)
		case to == 2 && env.Kind == transport.KindRaft && env.Raft.Type == raftpb.MsgSnap:
			snaps.Add(1)
		}
	}
}

func TestFollowerBehindTheLogCatchesUpByDelta(t *testing.T) {
	for _, x := range []struct {
		name    string
		cut     bool // the power fails while it catches up
		deleted bool // the leader has deleted what comes after the follower's end
	}{{"delta", false, false}, {"delta and power cut", true, false}, {"whole", false, true}, {"whole and power cut", true, true}} {
		t.Run(x.name, func(t *testing.T) {
			var chunks, snaps atomic.Int64
			c, f, was := left(t)
			_, p := c.leader(0)
			if x.deleted {
				c.mustDelete(0)
				for _, n := range c.nodes[:2] { // either may lead when it is back
					eventually(t, "the files are gone", func() bool { return n.part(0).Size() < 256<<10 })
				}
			}
			watch := count(&chunks, &snaps)
			c.seen.Store(&watch)
			f.start()
			if x.cut {
				eventually(t, "it has begun", func() bool { return chunks.Load() > 0 })
				f.cut(uint64(chunks.Load()))
				f.start()
			}
			eventually(t, "the follower is there", func() bool { return f.part(0).HighWatermark() >= p.HighWatermark() })
			if snaps.Load() == 0 || chunks.Load() == 0 {
				t.Fatalf("%d snapshots, %d chunks: the log did it", snaps.Load(), chunks.Load())
			}
			if whole := f.part(0).isWhole(); whole != x.deleted {
				t.Fatalf("whole: %v", whole)
			}
			if x.deleted == (f.part(0).LogStart() == 0) || f.part(0).HighWatermark() <= was {
				t.Fatalf("log from %d to %d", f.part(0).LogStart(), f.part(0).HighWatermark())
			}
			c.converge(0)
			// It follows the log again, may lead, and knows the producer.
			c.mustProduce(0, batchSpec{records: 1})
			c.converge(0)
			r, _ := c.nodes[0].svc.Lookup("r", 0)
			eventually(t, "it leads", func() bool {
				n, q := c.tryLeader(0)
				if q != nil && n != f {
					r, _ = n.svc.Lookup("r", 0)
					r.TransferLeadership(2)
				}
				return q != nil && n == f
			})
			if off := c.mustProduce(0, batchSpec{records: 3, producer: 1, seq: 0}); off != 0 {
				t.Fatalf("a duplicate of the first batch was answered with %d", off)
			}
			f.stop()
			f.start()
			c.converge(0)
		})
	}
}

// isWhole says whether the replica's files were replaced.
func (p *Partition) isWhole() bool {
	p.genMu.RLock()
	defer p.genMu.RUnlock()
	return p.generation != 0
}
