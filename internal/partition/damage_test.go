package partition

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/transport"
	"github.com/chronik-go/chronik/internal/vfs"
)

// damageFlips is how many random flips and truncations the seeded test makes.
func damageFlips() int {
	if n, err := strconv.Atoi(os.Getenv("CHRONIK_DAMAGE_FLIPS")); err == nil {
		return n
	}
	return 150
}

// scrub reads all of a node's partition as the scrubber does, and reports what it finds.
func (nd *node) scrub() {
	nd.c.t.Helper()
	for s := nd.p.Scrub(); ; {
		out, err := s.Step(64 << 10)
		if err != nil {
			nd.c.t.Fatalf("scrubbing node %d: %v", nd.id, err)
		}
		if out.Done {
			return
		}
	}
}

// readAll fetches as a consumer does until the high watermark, and checks every CRC; what can't be read is skipped and counted.
func (nd *node) readAll() (unreadable int) {
	nd.c.t.Helper()
	for off := nd.p.LogStart(); off < nd.p.HighWatermark(); {
		res, err := nd.p.Fetch(FetchRequest{Offset: off, MaxBytes: 1 << 20, CurrentLeaderEpoch: -1, LastFetchedEpoch: -1, Follower: true})
		if errors.Is(err, ErrDamaged) {
			off, unreadable = off+1, unreadable+1
			continue
		}
		if err != nil {
			return unreadable + 1 // an unfit follower sends its readers to the leader
		}
		for b := res.Records; len(b) > 0; {
			h, err := record.Check(b)
			if err != nil {
				nd.c.t.Fatalf("node %d served a damaged batch at %d: %v", nd.id, off, err)
			}
			off = h.LastOffset() + 1
			b = b[h.Size():]
		}
	}
	return unreadable
}

func (nd *node) flush() {
	nd.m.Pinned(testGroup, 0)
	nd.c.settle()
}

// spoilFile flips a random bit of one of the partition's files, or cuts it short, and says which.
func (nd *node) spoilFile(rng *rand.Rand) string {
	nd.c.t.Helper()
	dir := nd.p.log.Dir()
	names, err := nd.fs.List(dir)
	if err != nil {
		nd.c.t.Fatal(err)
	}
	for {
		name := names[rng.IntN(len(names))]
		full := path.Join(dir, name)
		info, err := nd.fs.Stat(full)
		if err != nil || info.Size == 0 || strings.HasSuffix(name, ".tmp") {
			continue
		}
		if rng.IntN(4) == 0 {
			f, err := nd.fs.OpenReadWrite(full)
			if err != nil {
				nd.c.t.Fatal(err)
			}
			to := rng.Int64N(info.Size)
			if err := errors.Join(f.Truncate(to), f.Sync(), f.Close()); err != nil {
				nd.c.t.Fatal(err)
			}
			return name + " cut at " + strconv.FormatInt(to, 10)
		}
		at := rng.Int64N(info.Size)
		if err := nd.fs.FlipBit(full, at, uint(rng.IntN(8))); err != nil {
			nd.c.t.Fatal(err)
		}
		return name + " flipped at " + strconv.FormatInt(at, 10)
	}
}

// Random damage to one replica's files, found while it runs or after a restart: every bit of it is found and mended, or changes
// nothing; a damaged batch is never served; and the replicas are equal again.
func TestRandomDamageIsFoundAndMendedOrHarmless(t *testing.T) {
	const perCluster = 25
	mended := int64(0)
	for seed := uint64(0); seed < uint64((damageFlips()+perCluster-1)/perCluster); seed++ {
		rng := rand.New(rand.NewPCG(seed, 7))
		c := newCluster(t, 2, nil)
		c.elect(0, false)
		bad := c.nodes[1]
		c.fillAll(20)
		bad.flush()
		for range perCluster {
			c.fillAll(10 + rng.IntN(20))
			if rng.IntN(3) > 0 {
				bad.flush()
			}
			what := bad.spoilFile(rng)
			switch rng.IntN(4) {
			case 0: // the scrubber finds it
			case 1:
				bad.readAll()
			default:
				bad.down(rng.Uint64(), true)
				bad.open()
				bad.apply()
			}
			bad.check(t, seed, what)
			mended += bad.m.stats.mended.Load()
		}
	}
	if mended == 0 {
		t.Fatal("no flip was mended: the test tests nothing")
	}
}

// check scrubs until nothing is damaged, and compares.
func (nd *node) check(t *testing.T, seed uint64, what string) {
	t.Helper()
	c := nd.c
	nd.flush()
	nd.scrub()
	for range 100 {
		c.advance(500 * time.Millisecond)
		if len(nd.p.Damage()) == 0 {
			break
		}
	}
	if d := nd.p.Damage(); len(d) > 0 || nd.unfit {
		t.Fatalf("seed %d, %s: still damaged: %+v, unfit %v", seed, what, d, nd.unfit)
	}
	nd.scrub()
	if d := nd.p.Damage(); len(d) > 0 {
		t.Fatalf("seed %d, %s: damaged after the repair: %+v", seed, what, d)
	}
	if n := nd.readAll(); n > 0 {
		t.Fatalf("seed %d, %s: %d offsets can't be read after the repair", seed, what, n)
	}
	for _, other := range c.nodes {
		if string(other.contents()) != string(nd.contents()) {
			t.Fatalf("seed %d, %s: the logs of nodes %d and %d differ", seed, what, other.id, nd.id)
		}
	}
}

// A replica with damage keeps out of the leadership across a restart, before anybody has looked at the records again.
func TestDamageIsRememberedAcrossARestart(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.elect(0, false)
	c.fillAll(50)
	bad := c.nodes[1]
	bad.flush()
	log := path.Join(bad.p.log.Dir(), "00000000000000000000.log")
	if err := bad.fs.FlipBit(log, 200, 3); err != nil {
		t.Fatal(err)
	}
	c.drop = nothing // nobody to mend it from
	bad.scrub()
	c.settle()
	want := bad.p.Damage()
	if len(want) != 1 || !bad.unfit {
		t.Fatalf("damage %+v, unfit %v", want, bad.unfit)
	}
	bad.down(1, true)
	bad.unfit = false
	bad.open()
	bad.apply()
	if got := bad.p.Damage(); len(got) != 1 || got[0] != want[0] || !bad.p.unfit.Load() {
		t.Fatalf("after a restart: %+v, want %+v", got, want)
	}
	c.drop = nil
	bad.check(t, 0, "flip")
	if names, _ := bad.fs.List(bad.p.log.Dir()); strings.Contains(strings.Join(names, " "), markName) {
		t.Fatalf("the mark stays: %v", names)
	}
}

// One answer may hold records of two damaged places and sound ones between them (found by the test of a running cluster).
func TestTwoDamagedPlacesInOneSegment(t *testing.T) {
	c := newCluster(t, 2, func(c *cluster) { c.limits.DeltaChunkBytes = 1 << 20 })
	c.elect(0, false)
	c.fillAll(20)
	bad := c.nodes[1]
	bad.flush()
	log := path.Join(bad.p.log.Dir(), "00000000000000000000.log")
	for _, at := range []int64{100, 2000} {
		if err := bad.fs.FlipBit(log, at, 3); err != nil {
			t.Fatal(err)
		}
	}
	bad.check(t, 0, "two flips")
}

// The damaged segment is the one in which the log start lies: what is below it is copied, too, and nothing spins (found by the
// simulator: the repair reported damage and forgot it, without end).
func TestDamageInTheSegmentOfTheLogStart(t *testing.T) {
	for name, batches := range map[string][]int{"above it": {8}, "around it": {4}, "above and below it": {0, 8}} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 2, nil)
			c.elect(0, false)
			c.fillAll(50)
			bad := c.nodes[1]
			bad.flush()
			raw, err := vfs.ReadFile(bad.fs, path.Join(bad.p.log.Dir(), "00000000000000000000.log"), 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			var at []int64 // where each batch begins, and an offset in the middle of the fifth
			var start int64
			for b := raw; len(b) > 0; {
				h, err := record.ParseHeader(b)
				if err != nil {
					t.Fatal(err)
				}
				if len(at) == 4 {
					start = h.BaseOffset + 1
					if h.LastOffset() < start {
						t.Fatal("the batch has one record")
					}
				}
				at = append(at, int64(len(raw)-len(b)))
				b = b[h.Size():]
			}
			flips := make([]int64, len(batches))
			for i, n := range batches {
				flips[i] = at[n] + 70
			}
			bad.startsAt(start)
			if bad.p.LogStart() != start {
				t.Fatalf("log start %d", bad.p.LogStart())
			}
			log := path.Join(bad.p.log.Dir(), "00000000000000000000.log")
			for _, at := range flips {
				if err := bad.fs.FlipBit(log, at, 3); err != nil {
					t.Fatal(err)
				}
			}
			if len(flips) == 1 {
				bad.check(t, 0, name)
				return
			}
			bad.scrub()
			for range 2000 { // it rests: a bounded number of steps leaves nothing to do
				if !bad.m.Step() {
					break
				}
			}
			if bad.m.Step() {
				t.Error("the repair spins")
			}
			if n := bad.readAll(); n == 0 || n > 10 {
				t.Errorf("%d offsets can't be read", n)
			}
		})
	}
}

// startsAt has the leader delete records below an offset, and the node know of it, durably.
func (nd *node) startsAt(offset int64) {
	c := nd.c
	c.t.Helper()
	c.leader.p.DeleteRecords(offset, func(_ int64, err error) {
		if err != nil {
			c.t.Error(err)
		}
	})
	c.flow()
	nd.apply()
	nd.flush()
}

// A leader epoch, which no CRC covers, has changed in the segment of the log start, and the list of epochs was made from it: what comes
// after looks damaged, and the copy meets the contradiction. What is fetched anew begins with the batch that has changed: below the log
// start nobody has anything (found by the simulator, seed 130: the repair asked for that for ever).
func TestChangedEpochInTheSegmentOfTheLogStart(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.elect(0, false)
	c.fillAll(50)
	bad := c.nodes[1]
	bad.flush()
	log, raw := bad.firstFile()
	start, rest := int64(0), raw
	for i := range 7 {
		h, err := record.ParseHeader(rest)
		if err != nil {
			t.Fatal(err)
		}
		if i == 4 {
			start = h.BaseOffset + 1
		}
		rest = rest[h.Size():]
	}
	at := int64(len(raw) - len(rest))
	bad.startsAt(start)
	bad.changeEpoch(log, at)
	bad.check(t, 0, "epoch")
}

// The same below the log start, where nobody else has the batch and nobody knows its epoch: it is copied as it is, and says nothing of the
// batches behind it (simulator, seed 1529: what was damaged above the log start was never mended).
func TestChangedEpochBelowTheLogStart(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		c := newCluster(t, 2, nil)
		c.elect(0, false)
		c.fillAll(50)
		bad := c.nodes[1]
		bad.flush()
		log, raw := bad.firstFile()
		var at []int64 // where each batch begins
		var start int64
		for b := raw; len(at) < 9; {
			h, err := record.ParseHeader(b)
			if err != nil {
				t.Fatal(err)
			}
			if at = append(at, int64(len(raw)-len(b))); len(at) == 5 {
				start = h.BaseOffset
			}
			b = b[h.Size():]
		}
		bad.startsAt(start)
		if restarted {
			bad.changeEpoch(log, at[2])
		} else if err := bad.fs.FlipBit(log, at[2]+13, 4); err != nil {
			t.Fatal(err)
		}
		if err := bad.fs.FlipBit(log, at[8]+70, 3); err != nil {
			t.Fatal(err)
		}
		bad.check(t, 0, fmt.Sprintf("restarted %v", restarted))
	}
}

// firstFile returns the name of the log's first segment, and what is in it.
func (nd *node) firstFile() (name string, raw []byte) {
	nd.c.t.Helper()
	name = path.Join(nd.p.log.Dir(), "00000000000000000000.log")
	raw, err := vfs.ReadFile(nd.fs, name, 1<<20)
	if err != nil {
		nd.c.t.Fatal(err)
	}
	return name, raw
}

// changeEpoch starts the node anew after a bit of the leader epoch has changed in the batch at a byte of a file, and nothing else knows epochs.
func (nd *node) changeEpoch(log string, at int64) {
	nd.c.t.Helper()
	nd.down(1, true)
	if err := nd.fs.FlipBit(log, at+13, 4); err != nil {
		nd.c.t.Fatal(err)
	}
	if err := nd.fs.Remove(path.Join(path.Dir(log), "leader-epoch-checkpoint")); err != nil {
		nd.c.t.Fatal(err)
	}
	nd.open()
	nd.apply()
}

// The last batch of a segment with another epoch makes the segments behind it look wrong, which are not. What another replica sends for those
// says so, and the batch is fetched as well; else they were fetched again and again (simulator, seed 2224).
func TestChangedEpochInTheSegmentBeforeOthers(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.elect(0, false)
	c.fillAll(50)
	bad := c.nodes[1]
	bad.flush()
	if bases := bad.p.log.Bases(0, bad.p.log.EndOffset()); len(bases) < 3 {
		t.Fatalf("segments begin at %v", bases)
	}
	log, raw := bad.firstFile()
	last := 0
	for at := 0; at < len(raw); {
		h, err := record.ParseHeader(raw[at:])
		if err != nil {
			t.Fatal(err)
		}
		last, at = at, at+h.Size()
	}
	bad.changeEpoch(log, int64(last))
	bad.check(t, 0, "epoch")
}

// Wrong epochs are on disk when what they came from is mended, and the process ends as soon as that is done: a restart does not believe them
// again, which nothing marks as damage any more.
func TestMendedEpochsOutliveTheProcess(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.elect(0, false)
	c.fillAll(50)
	bad := c.nodes[1]
	bad.flush()
	bad.changeEpoch(path.Join(bad.p.log.Dir(), "00000000000000000000.log"), 0)
	bad.flush()
	bad.scrub()
	if !bad.p.unfit.Load() {
		t.Fatal("nothing is damaged")
	}
	c.settle()
	if bad.p.unfit.Load() || bad.unfit {
		t.Fatalf("not mended at once: %+v", bad.p.Damage())
	}
	bad.crash(1, true)
	bad.scrub()
	if d := bad.p.Damage(); len(d) > 0 {
		t.Fatalf("damaged again: %+v", d)
	}
}

// The only copy: what is sound is served and written to; what is not has an error, and its bytes stay where they are.
func TestDamageOfTheOnlyCopyDeletesNothing(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.elect(0, false)
	c.fillAll(50)
	nd := c.nodes[0]
	nd.flush()
	log := path.Join(nd.p.log.Dir(), "00000000000000000000.log")
	before, _ := nd.fs.Stat(log)
	if err := nd.fs.FlipBit(log, 200, 3); err != nil {
		t.Fatal(err)
	}
	nd.scrub()
	c.advance(3 * time.Minute)
	if n := nd.readAll(); n == 0 || n > 10 {
		t.Fatalf("%d offsets can't be read", n)
	}
	r := c.send(batchSpec{records: 1})
	c.flow()
	if r.n != 1 || r.res.Err != nil {
		t.Fatalf("a batch is refused: %+v", r.res)
	}
	if after, err := nd.fs.Stat(log); err != nil || after.Size != before.Size {
		t.Fatalf("the damaged file has %d bytes, had %d (%v)", after.Size, before.Size, err)
	}
}

func nothing(transport.Envelope) int { return 0 }

// fillAll is fill, applied everywhere.
func (c *cluster) fillAll(n int) {
	c.t.Helper()
	c.fill(n)
	for _, nd := range c.nodes {
		nd.apply()
	}
}

// A repair that a partition's end interrupts leaves neither a file nor a descriptor.
func TestClosingGivesUpARepair(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.elect(0, false)
	c.fillAll(60)
	c.flushAll()
	nd := c.nodes[2]
	dir := nd.p.log.Dir()
	if err := nd.fs.FlipBit(path.Join(dir, "00000000000000000000.log"), 200, 1); err != nil {
		t.Fatal(err)
	}
	c.drop = func(transport.Envelope) int { return 0 }
	nd.scrub()
	c.settle()
	unfinished := func() (n int) {
		names, err := nd.fs.List(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if strings.HasSuffix(name, ".log.tmp") {
				n++
			}
		}
		return n
	}
	if unfinished() != 1 {
		t.Fatal("nothing is being rebuilt")
	}
	nd.stop()
	if unfinished() != 0 {
		t.Fatal("a file that was being rebuilt is left")
	}
}
