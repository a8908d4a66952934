package partition

import (
	"hash/crc32"
	"path"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/transport"
	"github.com/chronik-go/chronik/internal/vfs"
)

// forge changes a batch on a node's disk such that its CRC is right: nothing in the bytes tells.
func (nd *node) forge(offset int64) {
	nd.c.t.Helper()
	dir := nd.p.log.Dir()
	names, err := nd.fs.List(dir)
	if err != nil {
		nd.c.t.Fatal(err)
	}
	for _, name := range names {
		if !strings.HasSuffix(name, ".log") {
			continue
		}
		f, err := nd.fs.OpenReadWrite(path.Join(dir, name))
		if err != nil {
			nd.c.t.Fatal(err)
		}
		size, _ := f.Size()
		b := make([]byte, size)
		if _, err := f.ReadAt(b, 0); err != nil {
			nd.c.t.Fatal(err)
		}
		for at := 0; at < len(b); {
			h, err := record.Check(b[at:])
			if err != nil {
				nd.c.t.Fatal(err)
			}
			if h.BaseOffset <= offset && offset <= h.LastOffset() {
				batch := b[at : at+h.Size()]
				batch[len(batch)-2] ^= 0x20 // a letter of the last record's value
				sum := crc32.Checksum(batch[21:], castagnoli)
				batch[17], batch[18], batch[19], batch[20] = byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum)
				if _, err := f.WriteAt(batch, int64(at)); err != nil {
					nd.c.t.Fatal(err)
				}
				f.Close()
				return
			}
			at += h.Size()
		}
		f.Close()
	}
	nd.c.t.Fatalf("no batch holds offset %d", offset)
}

func (c *cluster) flushAll() {
	for _, nd := range c.nodes {
		nd.flush()
	}
}

// healed lets the cluster compare and mend until the node has nothing wrong any more.
func (c *cluster) healed(nd *node) {
	c.t.Helper()
	for range 100 {
		c.advance(time.Second)
		if !nd.p.unfit.Load() {
			break
		}
	}
	if d := nd.p.Damage(); len(d) > 0 {
		c.t.Fatalf("node %d: still %+v", nd.id, d)
	}
	c.agree()
}

// Two batches are changed on a follower's disk, CRCs and all. The leader's scrub finds it, names exactly these, and the follower serves
// nothing until it has the group's records again.
func TestForgedRecordsOfAFollowerAreFoundAndReplaced(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.elect(0, false)
	c.fillAll(60)
	c.flushAll()
	bad := c.nodes[2]
	bad.forge(30)
	bad.forge(99)
	bad.scrub()
	if bad.p.unfit.Load() {
		t.Fatal("the change can be seen in the bytes: the test tests nothing")
	}
	c.drop = noChunks
	c.leader.scrub()
	c.settle()
	d := bad.p.Damage()
	if len(d) == 0 || !d[0].Diverged || d[0].From > 30 || d[0].To <= 30 || !bad.unfit {
		t.Fatalf("damage %+v, unfit %v", d, bad.unfit)
	}
	if _, err := bad.p.Fetch(FetchRequest{Offset: 150, MaxBytes: 100, CurrentLeaderEpoch: -1, LastFetchedEpoch: -1, Follower: true}); err == nil {
		t.Fatal("a diverged replica serves")
	}
	c.drop = nil
	c.healed(bad)
	if c.nodes[0].p.unfit.Load() || c.nodes[1].p.unfit.Load() {
		t.Fatal("a sound replica was condemned")
	}
}

// The scrubber's comparisons take all the room while a search reads: what it has read is compared later, and not taken for equal.
func TestASearchLeavesNothingOut(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.elect(0, false)
	c.fillAll(60)
	c.flushAll()
	bad, p := c.nodes[2], c.leader.p
	bad.forge(10)
	c.settle()
	_, from, err := p.sumOnDisk(0, p.hw.Load(), 2<<10)
	if err != nil || from <= 10 {
		t.Fatal(from, err)
	}
	sum, to, err := p.sumOnDisk(from, p.hw.Load(), 1)
	if err != nil {
		t.Fatal(err)
	}
	p.proofMu.Lock()
	p.prove.search = &search{replica: c.peer(0, 2), to: p.hw.Load()}
	p.proofMu.Unlock()
	crowded := false
	c.leader.fs.SetHook(func(op vfs.Op, name string, _ time.Duration) {
		if op != vfs.OpRead || crowded {
			return
		}
		p.proofMu.Lock()
		defer p.proofMu.Unlock()
		for crowded = true; p.proveStretch(from, to, sum, c.clk.Now()); {
		}
	})
	c.drop = noChunks
	c.leader.m.enqueue(p, taskProof)
	c.settle()
	c.leader.fs.SetHook(nil)
	if d := bad.p.Damage(); !crowded || len(d) == 0 || d[0].From > 10 || d[0].To <= 10 {
		t.Fatalf("crowded %v, damage %+v", crowded, d)
	}
}

// A scrubber's step and the end of a partition, or a snapshot's, do not wait for each other: who reads the files takes no second hold of them
// while somebody waits to have them alone.
func TestAScrubDoesNotWaitForWhoWaitsForIt(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.elect(0, false)
	c.fillAll(60)
	c.flushAll()
	p := c.leader.p
	var alone sync.WaitGroup
	c.leader.fs.SetHook(func(op vfs.Op, name string, _ time.Duration) {
		if op != vfs.OpRead {
			return
		}
		c.leader.fs.SetHook(nil)
		alone.Go(func() {
			p.genMu.Lock()
			defer p.genMu.Unlock()
		})
		for p.genMu.TryRLock() { // until it waits
			p.genMu.RUnlock()
			runtime.Gosched()
		}
	})
	ended := make(chan error, 1)
	go func() {
		_, err := p.Scrub().Step(256 << 10)
		ended <- err
	}()
	select {
	case err := <-ended:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(patience):
		panic("the scrubber is stuck, and so is whoever waits for the files")
	}
	alone.Wait()
}

// The manager's schedule waits for no lock of a partition's: with it held, a message about sums is taken in, which the manager is told of.
func TestTheScheduleWaitsForNoPartition(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.elect(0, false)
	c.fillAll(10)
	p, m := c.leader.p, c.leader.m
	p.proofMu.Lock()
	polled := make(chan bool, 1)
	go func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.poll(c.clk.Now().Add(m.cfg.Limits.ProofInterval))
		polled <- p.tasks&taskProof != 0
	}()
	select {
	case due := <-polled:
		if !due {
			t.Error("nothing is due: the test tests nothing")
		}
	case <-time.After(patience):
		t.Error("the schedule waits for a partition, which waits for the schedule")
	}
	p.proofMu.Unlock()
}

// The leader is the one that is wrong: the followers' majority says so, and it gives way.
func TestForgedRecordsOfTheLeaderAreItsOwnTrouble(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.elect(0, false)
	c.fillAll(60)
	c.flushAll()
	bad := c.leader
	bad.forge(30)
	bad.scrub()
	c.settle()
	if !bad.p.diverged.Load() || !bad.unfit || c.nodes[1].p.unfit.Load() || c.nodes[2].p.unfit.Load() {
		t.Fatalf("diverged %v, unfit %v", bad.p.diverged.Load(), bad.unfit)
	}
	if _, err := bad.p.Fetch(FetchRequest{Offset: 0, MaxBytes: 100, CurrentLeaderEpoch: -1, LastFetchedEpoch: -1}); err == nil {
		t.Fatal("a diverged leader serves")
	}
	c.elect(1, false)
	c.flow()
	c.healed(bad)
}

// With two replicas nothing tells which one is right: the leader is believed. With three and one silent nobody is condemned.
func TestWithoutAMajority(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.elect(0, false)
	c.fillAll(40)
	c.flushAll()
	c.nodes[1].forge(30)
	c.leader.scrub()
	c.settle()
	if c.nodes[1].m.Health().Found == 0 {
		t.Fatal("the follower goes on with other records than the leader's")
	}
	c.healed(c.nodes[1])

	c = newCluster(t, 3, nil)
	c.elect(0, false)
	c.fillAll(40)
	c.flushAll()
	c.nodes[1].forge(30)
	down := c.nodes[2]
	down.down(1, true)
	c.leader.scrub()
	c.advance(30 * time.Second)
	if c.nodes[1].p.unfit.Load() || c.leader.p.unfit.Load() {
		t.Fatal("somebody was condemned by one against one")
	}
	down.open()
	down.apply()
	c.leader.scrub()
	c.settle()
	if c.nodes[1].m.Health().Found == 0 {
		t.Fatal("the majority does not condemn")
	}
	c.healed(c.nodes[1])
}

// A replica applies something else than the leader (its memory failed): the sums of what was applied differ at the next word, and
// the search finds where, without any scrub.
func TestApplyingSomethingElseIsFoundAtOnce(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.elect(0, false)
	c.fillAll(30)
	bad := c.nodes[1]
	c.fill(1)
	last := len(c.log) - 1
	sound := c.log[last].Data
	wrong := append([]byte(nil), sound...)
	wrong[len(wrong)-2] ^= 0x20
	sum := crc32.Checksum(wrong[21:], castagnoli)
	wrong[17], wrong[18], wrong[19], wrong[20] = byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum)
	c.log[last].Data = wrong
	bad.apply()
	c.log[last].Data = sound
	c.fillAll(10)
	c.advance(30 * time.Second)
	if h := bad.m.Health(); h.Found == 0 || h.Mended == 0 {
		t.Fatalf("not found: %+v", h)
	}
	c.fillAll(5)
	c.advance(time.Minute)
	c.fillAll(5)
	c.advance(time.Minute)
	c.healed(bad) // the running sum, too, is the leader's again
	before := bad.m.Health().Unequal
	c.fillAll(5)
	c.advance(time.Minute)
	if after := bad.m.Health().Unequal; after != before {
		t.Fatalf("sums still differ: %d, then %d", before, after)
	}
}

// Sums survive restarts, snapshots and a moved log start: replicas that took different ways agree.
func TestSumsOfReplicasThatTookDifferentWaysAgree(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.elect(0, false)
	for round := range 4 {
		c.fillAll(20)
		c.flushAll()
		c.nodes[1].crash(uint64(round), true)
		c.nodes[1].apply()
		c.leader.p.DeleteRecords(int64(round*30), func(int64, error) {})
		c.flow()
		c.advance(15 * time.Second)
	}
	for _, nd := range c.nodes {
		if h := nd.m.Health(); h.Unequal > 0 || h.Damaged > 0 {
			t.Fatalf("node %d: %+v", nd.id, h)
		}
	}
	if h := c.nodes[1].m.Health(); h.Compared == 0 {
		t.Fatal("nothing was compared")
	}
	c.agree()
}

func noChunks(env transport.Envelope) int {
	if env.Kind == transport.KindDeltaChunk {
		return 0
	}
	return 1
}

func TestProofMessages(t *testing.T) {
	m := proof{kind: proofPoints, from: 1, to: 2, sum: 3, points: []point{{1, 2, 3, 4}, {5, 6, 7, 8}}}
	b := m.encode()
	got, err := decodeProof(b)
	if err != nil || got.kind != m.kind || got.sum != 3 || len(got.points) != 2 || got.points[1] != m.points[1] {
		t.Fatalf("%+v, %v", got, err)
	}
	for i := range b {
		bad := append([]byte(nil), b...)
		bad[i] ^= 1
		if _, err := decodeProof(bad); err == nil {
			t.Fatalf("byte %d changed, and nothing noticed", i)
		}
		if _, err := decodeProof(b[:i]); err == nil {
			t.Fatalf("%d bytes are a message", i)
		}
	}
}

func BenchmarkSumOfABatch(b *testing.B) {
	h := record.Header{BaseOffset: 1 << 40, Length: 1000, LeaderEpoch: 3, Magic: 2, CRC: 0xdeadbeef}
	var sum uint64
	for b.Loop() {
		sum += record.Sum(h)
		h.BaseOffset++
	}
	_ = sum
}
