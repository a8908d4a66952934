package partition

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"testing"

	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/record"
)

func TestProduceMergesIntoOneEntryAndStampsOffsets(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.elect(0, false)
	var rs []*result
	for i := range 3 {
		rs = append(rs, c.send(batchSpec{records: i + 1}))
	}
	c.propose(false)
	if len(c.pending) != 1 {
		t.Fatalf("%d entries, want one", len(c.pending))
	}
	var bases []int64
	if err := record.Each(c.pending[0].entry.Data, func(h record.Header, b []byte) error {
		if _, err := record.Validate(b); err != nil {
			return err
		}
		if h.LeaderEpoch != int32(c.term) {
			t.Errorf("leader epoch %d, term %d", h.LeaderEpoch, c.term)
		}
		bases = append(bases, h.BaseOffset)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(bases) != "[0 1 3]" {
		t.Fatalf("base offsets %v", bases)
	}
	for _, r := range rs {
		if r.n != 0 {
			t.Fatal("acknowledged before it was committed")
		}
	}
	if end, hw := c.leader.p.EndOffset(), c.leader.p.HighWatermark(); end != 6 || hw != 0 {
		t.Fatalf("end %d, high watermark %d before commit", end, hw)
	}
	c.flow()
	for i, want := range []int64{0, 1, 3} {
		rs[i].want(t, want, nil)
		if rs[i].res.AppendTime != -1 {
			t.Fatal("append time without LogAppendTime")
		}
	}
	c.agree()
}

func TestBatchAloneIsTheEntryWithoutACopy(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.elect(0, false)
	b := makeBatch(t, batchSpec{})
	c.leader.p.Produce(b, nil)
	c.propose(false)
	if d := c.pending[0].entry.Data; &d[0] != &b[0] {
		t.Fatal("the batch was copied")
	}
	c.flow()
	if got := c.leader.p.inflight.Load() + c.leader.m.inflight.Load(); got != 0 {
		t.Fatalf("%d bytes still counted", got)
	}
}

func TestPrepareRespectsMaxBytes(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.elect(0, false)
	for range 3 {
		c.send(batchSpec{records: 2})
	}
	size := c.leader.queue[0].Size()
	for _, want := range []int{2, 1} {
		data, bound, taken := c.leader.p.Prepare(c.term, c.leader.queue, 2*size)
		if len(data) != want*size || len(bound) != want || taken != want {
			t.Fatalf("%d bytes, %d bound, %d taken", len(data), len(bound), taken)
		}
		c.leader.queue = c.leader.queue[taken:]
	}
	c.send(batchSpec{records: 9})
	if data, bound, taken := c.leader.p.Prepare(c.term, c.leader.queue, 10); len(data) == 0 || len(bound) != 1 || taken != 1 {
		t.Fatal("a batch larger than the limit must travel alone")
	}
}

// TestSequenceRules is PROTOCOL.md's paragraph on idempotence.
func TestSequenceRules(t *testing.T) {
	for _, viaApply := range []bool{true, false} {
		t.Run(fmt.Sprintf("applied=%v", viaApply), func(t *testing.T) {
			c := newCluster(t, 1, nil)
			c.elect(0, false)
			step := func(s batchSpec, offset int64, want error) {
				t.Helper()
				r := c.send(s)
				if viaApply || want != nil {
					c.propose(false)
				}
				if viaApply {
					c.flow()
				}
				if viaApply || want != nil {
					r.want(t, offset, want)
				} else {
					c.propose(false)
					if r.n != 0 {
						t.Fatalf("settled early: %+v", r.res)
					}
				}
			}
			step(batchSpec{producer: 1, seq: 40, records: 10}, 0, nil) // unknown producer: any first sequence
			step(batchSpec{producer: 1, seq: 51}, 0, ErrOutOfOrderSequence)
			step(batchSpec{producer: 1, seq: 50}, 10, nil)
			for i := range int32(4) {
				step(batchSpec{producer: 1, seq: 51 + i}, int64(11+i), nil)
			}
			step(batchSpec{producer: 1, seq: 50}, 10, nil)                               // fifth but last: its first offset
			step(batchSpec{producer: 1, seq: 40, records: 10}, 0, ErrOutOfOrderSequence) // sixth: forgotten
			step(batchSpec{producer: 1, seq: 53, records: 2}, 0, ErrOutOfOrderSequence)  // overlaps, but is no batch of ours
			step(batchSpec{producer: 1, epoch: 2, seq: 5}, 0, ErrOutOfOrderSequence)     // a new epoch begins at 0
			step(batchSpec{producer: 1, epoch: 2, seq: 0}, 15, nil)
			step(batchSpec{producer: 1, epoch: 1, seq: 55}, 0, ErrInvalidProducerEpoch)
			step(batchSpec{producer: 2, seq: math.MaxInt32 - 1, records: 4}, 16, nil) // wraps: max-1, max, 0, 1
			step(batchSpec{producer: 2, seq: 2}, 20, nil)
			step(batchSpec{producer: 2, seq: math.MaxInt32 - 1, records: 4}, 16, nil)
			step(batchSpec{producer: 3, seq: math.MaxInt32 - 1, records: 2}, 21, nil) // ends at max: 0 is next
			step(batchSpec{producer: 3, seq: 1}, 0, ErrOutOfOrderSequence)
			step(batchSpec{producer: 3, seq: 0}, 23, nil)
		})
	}
}

func TestRetryOfABatchUnderWayJoinsItsWaiter(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.elect(0, false)
	spec := batchSpec{producer: 9, records: 3}
	c.send(batchSpec{})
	first := c.send(spec)
	same := c.send(spec) // in the same entry
	c.propose(false)
	later := c.send(spec) // while the entry is under way
	c.propose(false)
	if len(c.pending) != 1 {
		t.Fatalf("%d entries", len(c.pending))
	}
	if same.n+later.n != 0 {
		t.Fatal("a retry was answered before its original is committed")
	}
	c.flow()
	for _, r := range []*result{first, same, later} {
		r.want(t, 1, nil)
	}
	again := c.send(spec)
	c.flow()
	again.want(t, 1, nil)
	if hw := c.leader.p.HighWatermark(); hw != 4 {
		t.Fatalf("high watermark %d", hw)
	}
}

func TestJoinedRetrySharesTheFateOfItsOriginal(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.elect(0, false)
	first, retry := c.send(batchSpec{producer: 9}), (*result)(nil)
	c.propose(false)
	retry = c.send(batchSpec{producer: 9})
	c.propose(false)
	c.elect(1, false)
	first.want(t, 0, multiraft.ErrNotLeader)
	retry.want(t, 0, multiraft.ErrNotLeader)
	again := c.send(batchSpec{producer: 9})
	c.flow()
	again.want(t, 0, nil)
	c.agree()
}

func TestAbortRestoresTheOverlayExactly(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.elect(0, false)
	c.send(batchSpec{producer: 1, records: 2})
	c.send(batchSpec{producer: 2})
	c.propose(false)
	p := c.leader.p
	show := func() string {
		s := fmt.Sprintf("%d %d %d;", p.ov.term, p.ov.end, len(p.ov.flights))
		for id := range int64(10) {
			if q := p.ov.producers[id]; q != nil {
				s += fmt.Sprintf("%+v;", *q)
			}
		}
		return s + fmt.Sprint(len(p.ov.owners))
	}
	before := show()
	queue := []*result{
		c.send(batchSpec{producer: 1, seq: 2}), c.send(batchSpec{producer: 1, seq: 3, records: 4}),
		c.send(batchSpec{producer: 3, seq: 77}), c.send(batchSpec{}),
	}
	data, bound, taken := p.Prepare(c.term, c.leader.queue, 1<<20)
	if len(data) == 0 || len(bound) != 4 || taken != 4 || show() == before {
		t.Fatal("nothing was prepared")
	}
	p.Abort()
	if got := show(); got != before {
		t.Fatalf("after Abort\n%s\nwant\n%s", got, before)
	}
	p.Abort() // once more changes nothing
	if got := show(); got != before {
		t.Fatal("a second Abort changed something")
	}
	c.flow()
	for i, want := range []int64{3, 4, 8, 9} {
		queue[i].want(t, want, nil) // no gap
	}
}

// TestAbortAfterEarlierEntriesWereApplied: the applier may be done with older entries between Prepare and Abort.
func TestAbortAfterEarlierEntriesWereApplied(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.elect(0, false)
	c.send(batchSpec{producer: 1})
	c.propose(false)
	c.send(batchSpec{producer: 1, seq: 1})
	p := c.leader.p
	_, bound, _ := p.Prepare(c.term, c.leader.queue, 1<<20)
	c.leader.queue = nil
	c.commit()
	c.leader.apply()
	p.Abort()
	if len(p.ov.producers)+len(p.ov.owners)+len(p.ov.flights) != 0 || p.ov.end != 1 {
		t.Fatalf("overlay %+v", p.ov)
	}
	c.leader.queue = bound
	c.flow()
	if hw := p.HighWatermark(); hw != 2 {
		t.Fatalf("high watermark %d", hw)
	}
}

func TestAbortOfACommandTakesNothingBack(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.elect(0, false)
	c.send(batchSpec{producer: 1, records: 2})
	c.flow()
	c.send(batchSpec{producer: 1, seq: 2})
	c.propose(false)
	low := int64(-2)
	c.leader.p.DeleteRecords(1, func(l int64, err error) { low = l })
	c.propose(true)
	c.flow()
	if low != 1 || c.leader.p.HighWatermark() != 3 {
		t.Fatalf("low %d, high watermark %d", low, c.leader.p.HighWatermark())
	}
}

func TestLeaderLostDiscardsTheOverlay(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.elect(0, false)
	lost := c.send(batchSpec{producer: 1, records: 5})
	c.propose(false)
	c.elect(0, false)
	lost.want(t, 0, multiraft.ErrNotLeader)
	r := c.send(batchSpec{producer: 1, seq: 3}) // unknown again: any first sequence
	c.flow()
	r.want(t, 0, nil)
	c.agree()
}

// TestDuplicateIsAnsweredAfterLeaderChange is FAULTS 20 and pitfall 15: the retry gets the same offset from the next leader.
func TestDuplicateIsAnsweredAfterLeaderChange(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.elect(0, false)
	c.send(batchSpec{records: 3})
	r := c.send(batchSpec{producer: 5, seq: 10, records: 2})
	c.propose(false)
	c.elect(2, true) // the entry survives, the acknowledgement is lost
	for _, nd := range c.nodes {
		nd.apply()
	}
	r.want(t, 3, nil)
	again := c.send(batchSpec{producer: 5, seq: 10, records: 2})
	c.flow()
	again.want(t, 3, nil)
	c.nodes[1].m.Pinned(testGroup, 0)
	c.settle()
	c.nodes[1].crash(3, false)
	c.elect(1, true)
	third := c.send(batchSpec{producer: 5, seq: 10, records: 2})
	c.flow()
	third.want(t, 3, nil)
	c.agree()
}

func TestFollowerRefusesToProduce(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.elect(0, false)
	var r result
	c.nodes[1].p.Produce(makeBatch(t, batchSpec{}), r.done)
	r.want(t, 0, multiraft.ErrNotLeader)
	var nl *multiraft.NotLeaderError
	if !errors.As(r.res.Err, &nl) || nl.LeaderNode != 0 {
		t.Fatalf("leader not named: %v", r.res.Err)
	}
}

func TestLogAppendTimeIsTheLeadersClockAtProposal(t *testing.T) {
	c := newCluster(t, 2, func(c *cluster) { c.cfg.TimestampType = LogAppendTime })
	c.elect(0, false)
	r := c.send(batchSpec{producer: 1, records: 2, ts: 5})
	c.advance(1500 * 1e6)
	now := c.clk.Now().UnixMilli()
	c.flow()
	r.want(t, 0, nil)
	if r.res.AppendTime != now {
		t.Fatalf("append time %d, want %d", r.res.AppendTime, now)
	}
	h, err := record.Validate(c.nodes[1].contents())
	if err != nil || h.MaxTimestamp != now || !isAppendTime(&h) {
		t.Fatalf("stored %+v, %v", h, err)
	}
	c.advance(3e9)
	again := c.send(batchSpec{producer: 1, records: 2, ts: 5})
	c.flow()
	if again.res.AppendTime != now {
		t.Fatalf("a duplicate's append time is %d, want the first, %d", again.res.AppendTime, now)
	}
}

func TestProduceRefusals(t *testing.T) {
	now := int64(1_700_000_000_000)
	good := makeBatch(t, batchSpec{records: 2})
	bad := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(good)) }
	control := func(field func(b *record.Builder)) []byte {
		b := record.NewBuilder()
		field(b)
		out, err := b.Add(now, []byte("k"), nil).Build()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	cases := []struct {
		name  string
		batch []byte
		cfg   func(*TopicConfig)
		want  error
	}{
		{"empty", nil, nil, ErrInvalidRecord},
		{"two batches", append(bytes.Clone(good), good...), nil, ErrInvalidRecord},
		{"old magic", bad(func(b []byte) []byte { b[16] = 1; return b }), nil, ErrInvalidRecord},
		{"wrong CRC", bad(func(b []byte) []byte { b[len(b)-1] ^= 1; return b }), nil, ErrCorrupt},
		{"cut short", bad(func(b []byte) []byte { return b[:len(b)-1] }), nil, ErrInvalidRecord},
		{"control", control(func(b *record.Builder) { b.Control = true }), nil, ErrInvalidRecord},
		{"transactional", control(func(b *record.Builder) {
			b.Transactional, b.ProducerID, b.ProducerEpoch, b.BaseSequence = true, 1, 0, 0
		}), nil, ErrInvalidRecord},
		{"too large", good, func(c *TopicConfig) { c.MaxMessageBytes = len(good) - 1 }, ErrRecordTooLarge},
		{"more than an hour ahead", makeBatch(t, batchSpec{ts: now + 3_600_001}), nil, ErrInvalidTimestamp},
		{"too old", makeBatch(t, batchSpec{ts: now - 1001}), func(c *TopicConfig) { c.TimestampBeforeMaxMs = 1000 }, ErrInvalidTimestamp},
		{"sets LogAppendTime", control(func(b *record.Builder) { b.AppendTime = true }), nil, ErrInvalidTimestamp},
		{"null key", func() []byte {
			b := record.NewBuilder()
			out, _ := b.Add(now, []byte("k"), nil).Add(now, nil, nil).Build()
			return out
		}(), func(c *TopicConfig) { c.RequireKeys = true }, ErrInvalidRecord},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			c := newCluster(t, 1, func(c *cluster) {
				if tc.cfg != nil {
					tc.cfg(&c.cfg)
				}
			})
			c.elect(0, false)
			var r result
			c.leader.p.Produce(bytes.Clone(tc.batch), r.done)
			r.want(t, 0, tc.want)
			if len(c.leader.queue) != 0 || c.leader.p.inflight.Load() != 0 {
				t.Fatal("something was enqueued")
			}
			if errors.Is(tc.want, ErrInvalidTimestamp) {
				var re *RecordErrors
				if !errors.As(r.res.Err, &re) || len(re.Records) == 0 {
					t.Fatalf("no record errors: %v", r.res.Err)
				}
			}
		})
	}
}

func TestTimestampErrorNamesTheRecords(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.elect(0, false)
	now := c.clk.Now().UnixMilli()
	b, err := record.NewBuilder().Add(now, nil, nil).Add(now+3_600_001, nil, nil).Add(now+3_600_000, nil, nil).Build()
	if err != nil {
		t.Fatal(err)
	}
	var r result
	c.leader.p.Produce(b, r.done)
	var re *RecordErrors
	if !errors.As(r.res.Err, &re) || len(re.Records) != 1 || re.Records[0].Index != 1 {
		t.Fatalf("got %v", r.res.Err)
	}
}

func TestCompressionTypeRecompressesOnTheLeader(t *testing.T) {
	c := newCluster(t, 1, func(c *cluster) { c.cfg.Recompress, c.cfg.Compression = true, record.Zstd })
	c.elect(0, false)
	r := c.send(batchSpec{producer: 3, seq: 4, records: 50, codec: record.Gzip})
	c.flow()
	r.want(t, 0, nil)
	h, err := record.Validate(c.leader.contents())
	if err != nil || h.Codec() != record.Zstd || h.Count != 50 || h.ProducerID != 3 || h.BaseSequence != 4 {
		t.Fatalf("stored %+v, %v", h, err)
	}
}

func TestCodecsPassThroughUntouched(t *testing.T) {
	for codec := record.None; codec <= record.Zstd; codec++ {
		c := newCluster(t, 1, nil)
		c.elect(0, false)
		want := makeBatch(t, batchSpec{records: 20, codec: codec})
		c.leader.p.Produce(bytes.Clone(want), nil)
		c.flow()
		if got := c.leader.contents(); !bytes.Equal(got[16:], want[16:]) {
			t.Fatalf("%v: bytes after the leader epoch changed", codec)
		}
	}
}

func TestInflightBytesAreCapped(t *testing.T) {
	size := int64(len(makeBatch(t, batchSpec{records: 4})))
	c := newCluster(t, 1, func(c *cluster) { c.limits.PartitionBytes = 2 * size })
	c.elect(0, false)
	a, b := c.send(batchSpec{records: 4}), c.send(batchSpec{records: 4})
	c.send(batchSpec{records: 4}).want(t, 0, multiraft.ErrOverloaded)
	c.flow()
	a.want(t, 0, nil)
	b.want(t, 4, nil)
	big := c.send(batchSpec{records: 400}) // alone it may exceed the cap
	c.flow()
	big.want(t, 8, nil)
	c.leader.m.cfg.Limits.NodeBytes = size
	ok := c.send(batchSpec{records: 4})
	c.send(batchSpec{records: 4}).want(t, 0, multiraft.ErrOverloaded)
	c.flow()
	ok.want(t, 408, nil)
}

func TestWritesAreRefusedWhenTheDiskIsNearlyFull(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.elect(0, false)
	c.leader.full = errors.New("512 MiB left")
	c.send(batchSpec{}).want(t, 0, ErrStorage)
	if _, err := c.leader.p.Fetch(FetchRequest{CurrentLeaderEpoch: -1, LastFetchedEpoch: -1}); err != nil {
		t.Fatalf("reads must go on: %v", err)
	}
	c.leader.full = nil
	r := c.send(batchSpec{})
	c.flow()
	r.want(t, 0, nil)
}

func TestUnknownProposalIsRefused(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.elect(0, false)
	var got error
	c.leader.queue = append(c.leader.queue, &multiraft.RawProposal{Data: []byte("x"), OnDone: func(err error) { got = err }})
	c.flow()
	if !errors.Is(got, errProposal) {
		t.Fatalf("got %v", got)
	}
}

// In the ancestor the answer to a retry set the high watermark back to what it had been for the original, so that consumers saw
// the log shrink.
func TestARetryLeavesTheHighWatermarkAlone(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.elect(0, false)
	for i := range int32(4) {
		c.send(batchSpec{producer: 1, seq: 3 * i, records: 3})
		c.flow()
	}
	retry := func(seq int32, offset int64) {
		t.Helper()
		r := c.send(batchSpec{producer: 1, seq: seq, records: 3})
		c.flow()
		r.want(t, offset, nil)
		for _, nd := range c.nodes {
			if hw := nd.p.HighWatermark(); hw != 12 {
				t.Fatalf("node %d: high watermark %d after a retry of what is at %d, it was 12", nd.id, hw, offset)
			}
		}
	}
	retry(0, 0)
	retry(9, 9)
	c.elect(1, false) // also where the original was not received
	retry(3, 3)
}
