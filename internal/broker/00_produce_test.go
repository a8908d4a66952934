package broker

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/partition"
	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/transport"
)

func firstProduced(r *kmsg.ProduceResponse) *kmsg.ProduceResponseTopicPartition {
	return &r.Topics[0].Partitions[0]
}

func TestProduceEveryVersionAnswersTheBaseOffset(t *testing.T) {
	f := newFleet(t, 1)
	topic := f.topic("t", 1)
	c := f.nodes[1].dial(t)
	var want int64
	for v := int16(3); v <= 13; v++ {
		for _, acks := range []int16{-1, 1} {
			resp := ask[*kmsg.ProduceResponse](c, v, produceReq(topic, 0, batch(t, "a", 3), acks))
			p := firstProduced(resp)
			if p.ErrorCode != 0 || p.BaseOffset != want || p.LogAppendTime != -1 {
				t.Fatalf("v%d acks %d: %+v, want base %d", v, acks, p, want)
			}
			want += 3
		}
	}
}

func TestProduceRefusals(t *testing.T) {
	f := newFleet(t, 1)
	topic := f.topic("t", 1)
	internal := f.topic("__consumer_offsets", 1)
	f.edit(func() { internal.Internal = true })
	unknown := &metadata.Topic{Name: "nope", ID: [16]byte{9}}
	good := batch(t, "a", 1)
	old := append([]byte(nil), good...)
	old[16] = 1
	bad := append([]byte(nil), good...)
	bad[len(bad)-1] ^= 1
	for name, c := range map[string]struct {
		topic   *metadata.Topic
		index   int32
		records []byte
		acks    int16
		version int16
		code    int16
	}{
		"unknown topic is never created": {unknown, 0, good, -1, 12, 3},
		"unknown topic id":               {unknown, 0, good, -1, 13, 100},
		"partition beyond the last":      {topic, 1, good, -1, 12, 3},
		"negative partition":             {topic, -1, good, -1, 12, 3},
		"acks 2":                         {topic, 0, good, 2, 12, 21},
		"no records":                     {topic, 0, []byte{}, -1, 12, 87},
		"null records":                   {topic, 0, nil, -1, 12, 87},
		"magic 1":                        {topic, 0, old, -1, 12, 87},
		"wrong CRC":                      {topic, 0, bad, -1, 12, 2},
		"internal topic":                 {internal, 0, good, -1, 12, 17},
	} {
		cl := f.nodes[1].dial(t)
		p := firstProduced(ask[*kmsg.ProduceResponse](cl, c.version, produceReq(c.topic, c.index, append([]byte(nil), c.records...), c.acks)))
		if c.records == nil {
			p = firstProduced(ask[*kmsg.ProduceResponse](cl, c.version, produceReq(c.topic, c.index, nil, c.acks)))
		}
		if p.ErrorCode != c.code || p.BaseOffset != -1 || p.ErrorMessage == nil || *p.ErrorMessage == "" {
			t.Errorf("%s: %+v, want %d and a message", name, p, c.code)
		}
	}
	if n := f.created(); n != 0 {
		t.Errorf("Produce created %d topics", n)
	}
}

func TestProduceWithATransactionalIDIsRefused(t *testing.T) {
	f := newFleet(t, 1)
	req := produceReq(f.topic("t", 1), 0, batch(t, "a", 1), -1)
	req.TransactionID = kmsg.StringPtr("tx")
	if p := firstProduced(ask[*kmsg.ProduceResponse](f.nodes[1].dial(t), 9, req)); p.ErrorCode != kerr.InvalidTxnState.Code {
		t.Fatalf("%+v", p)
	}
}

func TestProduceErrorsOfThePartitionReachTheWire(t *testing.T) {
	f := newFleet(t, 1)
	topic := f.topic("t", 1)
	d := f.part("t", 0)
	c := f.nodes[1].dial(t)
	for _, e := range []struct {
		err  error
		code int16
	}{
		{partition.ErrRecordTooLarge, 10}, {partition.ErrInvalidRecord, 87}, {partition.ErrOutOfOrderSequence, 45},
		{partition.ErrInvalidProducerEpoch, 47}, {partition.ErrStorage, 56}, {multiraft.ErrOverloaded, 19},
		{multiraft.ErrUnknownOutcome, 7}, {multiraft.ErrStopped, 6}, {errors.New("odd"), -1},
		{&partition.RecordErrors{Err: partition.ErrInvalidTimestamp, Records: []partition.RecordError{{Index: 2, Message: "in 2040"}}}, 32},
	} {
		d.mu.Lock()
		d.fail = func(int) error { return fmt.Errorf("wrapped: %w", e.err) }
		d.mu.Unlock()
		p := firstProduced(ask[*kmsg.ProduceResponse](c, 12, produceReq(topic, 0, batch(t, "a", 1), -1)))
		if p.ErrorCode != e.code || p.ErrorMessage == nil || !strings.Contains(*p.ErrorMessage, "wrapped") {
			t.Errorf("%v: %+v, want %d", e.err, p, e.code)
		}
		if e.code == 32 && (len(p.ErrorRecords) != 1 || p.ErrorRecords[0].RelativeOffset != 2 || *p.ErrorRecords[0].ErrorMessage != "in 2040") {
			t.Errorf("error records %+v", p.ErrorRecords)
		}
	}
}

func TestProducesPipelineAndAnswerInOrder(t *testing.T) {
	f := newFleet(t, 1, still)
	topic := f.topic("t", 2)
	d := f.part("t", 0)
	d.hold = true
	c := f.nodes[1].dial(t)
	slow := produceReq(topic, 0, batch(t, "slow", 1), -1)
	a := c.send(9, slow)
	fast := produceReq(topic, 0, batch(t, "fast", 1), -1)
	b := c.send(9, fast)
	meta := kmsg.NewPtrMetadataRequest()
	m := c.send(9, meta)
	// Both are enqueued while neither is committed.
	until(t, "both batches enqueued", func() bool { d.mu.Lock(); defer d.mu.Unlock(); return len(d.held) == 2 })
	d.release()
	if p := firstProduced(recv[*kmsg.ProduceResponse](c, a, slow)); p.BaseOffset != 0 {
		t.Fatalf("%+v", p)
	}
	if p := firstProduced(recv[*kmsg.ProduceResponse](c, b, fast)); p.BaseOffset != 1 {
		t.Fatalf("%+v", p)
	}
	recv[*kmsg.MetadataResponse](c, m, meta)
}

func TestAcks0GetsNoAnswerAndACloseOnError(t *testing.T) {
	f := newFleet(t, 1)
	topic := f.topic("t", 1)
	c := f.nodes[1].dial(t)
	c.send(9, produceReq(topic, 0, batch(t, "a", 1), 0))
	// The next answer on the connection is the next request's.
	if p := firstProduced(ask[*kmsg.ProduceResponse](c, 9, produceReq(topic, 0, batch(t, "b", 1), -1))); p.BaseOffset != 1 {
		t.Fatalf("%+v", p)
	}
	c.send(9, produceReq(&metadata.Topic{Name: "nope"}, 0, batch(t, "a", 1), 0))
	c.closed()
}

func TestProduceTimeoutSaysFateUnknown(t *testing.T) {
	f := newFleet(t, 1)
	topic := f.topic("t", 1)
	d := f.part("t", 0)
	d.hold = true
	c := f.nodes[1].dial(t)
	req := produceReq(topic, 0, batch(t, "a", 1), -1)
	req.TimeoutMillis = 50
	if p := firstProduced(ask[*kmsg.ProduceResponse](c, 9, req)); p.ErrorCode != 7 {
		t.Fatalf("%+v", p)
	}
	d.release() // too late for the answer, and harmless
	if p := firstProduced(ask[*kmsg.ProduceResponse](c, 9, produceReq(topic, 0, batch(t, "b", 1), -1))); p.ErrorCode != 0 || p.BaseOffset != 1 {
		t.Fatalf("after the timeout: %+v", p)
	}
}

func TestFollowerProxiesProduceUntilTheMoveIsOldNews(t *testing.T) {
	f := newFleet(t, 2, func(_ int32, c *Config) { c.NewsAge = 50 * time.Millisecond })
	topic := f.topic("t", 1, 2)
	c := f.nodes[1].dial(t)
	p := firstProduced(ask[*kmsg.ProduceResponse](c, 11, produceReq(topic, 0, batch(t, "a", 2), -1)))
	if p.ErrorCode != 0 || p.BaseOffset != 0 {
		t.Fatalf("through the proxy: %+v", p)
	}
	until(t, "the client is told who leads", func() bool {
		resp := ask[*kmsg.ProduceResponse](c, 11, produceReq(topic, 0, batch(t, "a", 2), -1))
		p := firstProduced(resp)
		if p.ErrorCode == 0 {
			return false
		}
		// KIP-951: the leader's id and epoch, and where it is.
		if p.ErrorCode != 6 || p.CurrentLeader.LeaderID != 2 || p.CurrentLeader.LeaderEpoch != 3 {
			t.Fatalf("%+v", p)
		}
		if len(resp.Brokers) != 1 || resp.Brokers[0].NodeID != 2 || resp.Brokers[0].Port != f.img.Nodes[2].KafkaPort {
			t.Fatalf("node endpoints %+v", resp.Brokers)
		}
		return true
	})
	// v9 has no room for the hint; the error is the same.
	if p := firstProduced(ask[*kmsg.ProduceResponse](c, 9, produceReq(topic, 0, batch(t, "a", 2), -1))); p.ErrorCode != 6 {
		t.Fatalf("%+v", p)
	}
}

func TestProduceWithoutLeaderIsNotLeader(t *testing.T) {
	f := newFleet(t, 1)
	topic := f.topic("t", 1)
	f.lead(f.part("t", 0), -1, 3)
	resp := ask[*kmsg.ProduceResponse](f.nodes[1].dial(t), 11, produceReq(topic, 0, batch(t, "a", 1), -1))
	if p := firstProduced(resp); p.ErrorCode != 6 || p.CurrentLeader.LeaderID != -1 || len(resp.Brokers) != 0 {
		t.Fatalf("%+v", p)
	}
}

// Design rule 21: what follows a failed batch fails too, on the proxy's side ...
func TestProxyFirstFailureFailsWhatFollows(t *testing.T) {
	f := newFleet(t, 2, still)
	topic := f.topic("t", 2) // led by 1 and 2
	local := f.part("t", 0)
	local.hold = true
	fail := make(chan func(error), 1)
	var forwards atomic.Int64
	f.edit(func() {
		f.intercept = func(_ int32, _ func(), reject func(error)) bool {
			if forwards.Add(1) == 1 {
				fail <- reject
				return true
			}
			return false // delivered
		}
	})
	c := f.nodes[1].dial(t)
	// An answer that is due first keeps the failure from the client.
	first := produceReq(topic, 0, batch(t, "first", 1), -1)
	a := c.send(11, first)
	one, two, three := produceReq(topic, 1, batch(t, "one", 1), -1), produceReq(topic, 1, batch(t, "two", 1), -1), produceReq(topic, 1, batch(t, "three", 1), -1)
	b := c.send(11, one)
	(<-fail)(transport.ErrUnknownOutcome) // known here, and not to the client
	e := c.send(11, two)
	g := c.send(11, three)
	d := f.part("t", 1)
	until(t, "the leader's own batch is enqueued", func() bool { local.mu.Lock(); defer local.mu.Unlock(); return len(local.held) == 1 })
	// The requests behind are read before the answer is allowed to leave.
	last := kmsg.NewPtrApiVersionsRequest()
	h := c.send(0, last)
	until(t, "all are read", func() bool { return f.nodes[1].counter(t, "chronik_server_requests_total") == 5 })
	local.release()
	if p := firstProduced(recv[*kmsg.ProduceResponse](c, a, first)); p.ErrorCode != 0 {
		t.Fatalf("the local one: %+v", p)
	}
	if p := firstProduced(recv[*kmsg.ProduceResponse](c, b, one)); p.ErrorCode != 7 {
		t.Fatalf("the failed one: %+v", p)
	}
	for _, r := range []struct {
		corr int32
		req  *kmsg.ProduceRequest
	}{{e, two}, {g, three}} {
		if p := firstProduced(recv[*kmsg.ProduceResponse](c, r.corr, r.req)); p.ErrorCode != 6 {
			t.Fatalf("a batch behind the failed one: %+v", p)
		}
	}
	recv[*kmsg.ApiVersionsResponse](c, h, last)
	d.mu.Lock()
	reached := d.produces
	d.mu.Unlock()
	if n := forwards.Load(); n != 1 || reached != 0 {
		t.Fatalf("%d batches forwarded, %d reached the partition", n, reached)
	}
	// Once the client knows, it may go on.
	if p := firstProduced(ask[*kmsg.ProduceResponse](c, 11, produceReq(topic, 1, batch(t, "one", 1), -1))); p.ErrorCode != 0 || p.BaseOffset != 0 {
		t.Fatalf("after the client knows: %+v", p)
	}
}

// idempotent is a batch of one record with a producer's place.
func idempotent(t testing.TB, id int64, epoch int16, seq int32) []byte {
	t.Helper()
	b := record.NewBuilder()
	b.ProducerID, b.ProducerEpoch, b.BaseSequence = id, epoch, seq
	b.Add(1000, []byte("k"), []byte(fmt.Sprint("seq ", seq)))
	out, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// ... also when the failure has been answered already, and the next batch was in the socket then: the partition, to which the
// producer is unknown, would take it for its first.
func TestIdempotentBatchBehindAnAnsweredFailureDoesNotOvertake(t *testing.T) {
	for name, fail := range map[string]error{
		"fate unknown": transport.ErrUnknownOutcome, "not sent": transport.ErrNotSent, "no room": transport.ErrOverloaded,
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, 2, still)
			topic := f.topic("t", 1, 2)
			var forwards atomic.Int64
			f.edit(func() {
				f.intercept = func(_ int32, _ func(), reject func(error)) bool {
					if forwards.Add(1) == 1 {
						go reject(fail)
						return true
					}
					return false
				}
			})
			c := f.nodes[1].dial(t)
			produce := func(records []byte) int16 {
				t.Helper()
				return firstProduced(ask[*kmsg.ProduceResponse](c, 11, produceReq(topic, 0, records, -1))).ErrorCode
			}
			if code := produce(idempotent(t, 77, 0, 0)); code == 0 {
				t.Fatal("the first did not fail")
			}
			for seq := int32(1); seq <= 4; seq++ {
				if code := produce(idempotent(t, 77, 0, seq)); code != 6 {
					t.Fatalf("sequence %d passed the failed one: %d", seq, code)
				}
			}
			// Nobody else is held up.
			if code := produce(idempotent(t, 78, 0, 9)); code != 0 {
				t.Fatalf("another producer: %d", code)
			}
			if code := produce(batch(t, "plain", 1)); code != 0 {
				t.Fatalf("not idempotent: %d", code)
			}
			for seq := int32(0); seq <= 4; seq++ {
				if code := produce(idempotent(t, 77, 0, seq)); code != 0 {
					t.Fatalf("sequence %d sent again: %d", seq, code)
				}
			}
			if n := forwards.Load(); n != 1+2+5 {
				t.Errorf("%d batches forwarded", n)
			}
		})
	}
}

// A local partition that has no room for the first batch and has some for the second does not reorder them either.
func TestIdempotentBatchBehindALocalRefusalDoesNotOvertake(t *testing.T) {
	f := newFleet(t, 1, still)
	topic := f.topic("t", 1)
	d := f.part("t", 0)
	d.fail = func(n int) error {
		if n == 1 {
			return multiraft.ErrOverloaded
		}
		return nil
	}
	c := f.nodes[1].dial(t)
	for i, step := range []struct {
		seq  int32
		code int16
	}{{0, 19}, {1, 6}, {2, 6}, {0, 0}, {1, 0}, {2, 0}} {
		if p := firstProduced(ask[*kmsg.ProduceResponse](c, 11, produceReq(topic, 0, idempotent(t, 5, 1, step.seq), -1))); p.ErrorCode != step.code {
			t.Fatalf("step %d, sequence %d: %+v, want %d", i, step.seq, p, step.code)
		}
	}
}

func TestGaps(t *testing.T) {
	clk := clock.NewSim(time.Unix(1_700_000_000, 0))
	fresh := func() *conn { return &conn{b: &Broker{cfg: Config{Clock: clk}}} }
	seq := func(base int32) sequence { return sequence{1, 0, base} }
	var landed *sequence
	written := func(s sequence) bool { return landed != nil && !landed.before(s) }
	const top = math.MaxInt32

	c := fresh()
	c.tear(9, seq(3)) // the second is refused at once ...
	c.tear(9, seq(2)) // ... and then the first fails
	c.tear(9, seq(4))
	for _, s := range []int32{3, 4, 5} {
		if c.passes(9, seq(s), written) == "" {
			t.Errorf("sequence %d passes the gap at 2", s)
		}
	}
	if c.passes(8, seq(3), written) != "" || c.passes(9, sequence{2, 0, 3}, written) != "" || c.passes(9, sequence{id: -1}, written) != "" {
		t.Error("the gap concerns others")
	}
	if c.passes(9, seq(2), written) != "" || c.passes(9, seq(3), written) != "" {
		t.Error("once it came again the gap is closed")
	}

	c = fresh()
	c.tear(9, seq(2))
	if c.passes(9, sequence{1, 1, 0}, written) != "" || c.passes(9, seq(3), written) != "" {
		t.Error("another epoch ends the gap")
	}

	c = fresh() // sequences wrap at 2^31
	c.tear(9, seq(top-1))
	if c.passes(9, seq(1), written) == "" || c.passes(9, seq(top), written) == "" {
		t.Error("sequences after the wrap pass the gap before it")
	}

	c = fresh()
	c.tear(9, seq(2))
	clk.Advance(gapAge)
	if c.passes(9, seq(3), written) != "" || len(c.gaps) != 0 {
		t.Error("the gap does not end")
	}

	c = fresh() // bounded
	for g := range uint64(maxGaps + 10) {
		c.tear(g, seq(2))
	}
	if len(c.gaps) != maxGaps {
		t.Errorf("%d gaps held", len(c.gaps))
	}
	clk.Advance(gapAge)
	c.tear(1<<40, seq(2))
	if len(c.gaps) != 1 {
		t.Errorf("%d gaps held after they were over", len(c.gaps))
	}

	c = fresh() // sent again by another way, the batch that tore has landed
	c.tear(9, seq(2))
	if c.passes(9, seq(3), written) == "" {
		t.Error("sequence 3 passes the gap at 2")
	}
	landed = &sequence{1, 0, 2}
	if c.passes(9, seq(3), written) != "" || len(c.gaps) != 0 {
		t.Error("the gap outlives what it waits for")
	}
}

func TestRouteFailsBatchesBehindAFailure(t *testing.T) {
	f := newFleet(t, 1)
	begin := &conn{b: f.nodes[1].b, routes: map[routeKey]*route{}}
	i1, ok1 := begin.enter(9, 2, 5)
	i2, ok2 := begin.enter(9, 2, 5)
	if !ok1 || !ok2 || i1 != i2 {
		t.Fatal("two batches on one way")
	}
	begin.broken(9, i1)
	if _, ok := begin.enter(9, 2, 5); ok {
		t.Error("a batch passed behind a failed one")
	}
	if _, ok := begin.enter(8, 2, 5); !ok {
		t.Error("another partition is not concerned")
	}
	for range 3 {
		begin.leave(9)
	}
	i4, ok := begin.enter(9, 2, 5)
	if !ok || i4 == i1 {
		t.Errorf("after all were answered: %v, incarnation %d again", ok, i4)
	}
	begin.broken(9, i1) // late news of the former route
	if _, ok := begin.enter(9, 2, 5); !ok {
		t.Error("a former route's failure broke this one")
	}
	if _, ok := begin.enter(9, 1, 6); ok {
		t.Error("a batch took another way while others are on theirs")
	}
}

// ... and on the leader's side, for those already on the peer stream.
func TestHopFailureFailsTheSameIncarnation(t *testing.T) {
	f := newFleet(t, 2)
	f.topic("t", 1, 2)
	d := f.part("t", 0)
	send := func(incarnation uint32, epoch int32) outcome {
		b := forwardedBatch{group: d.group, epoch: epoch, conn: 1, incarnation: incarnation, records: batch(t, "x", 1)}
		got := make(chan outcome, 1)
		f.nodes[2].b.HandleForward(1, MethodProduce, b.encode(), func(body []byte, err error) {
			o, derr := decodeOutcome(body)
			if err != nil || derr != nil {
				t.Errorf("%v %v", err, derr)
			}
			got <- o
		})
		return <-got
	}
	d.fail = func(n int) error {
		if n == 1 {
			return multiraft.ErrOverloaded
		}
		return nil
	}
	if o := send(1, 3); o.err != kerr.NotEnoughReplicas || !o.broke {
		t.Fatalf("%+v", o)
	}
	if o := send(1, 3); o.err != kerr.NotLeaderForPartition {
		t.Fatalf("overtook the failed one: %+v", o)
	}
	if o := send(2, 3); o.err != nil || o.base != 0 {
		t.Fatalf("a new incarnation: %+v", o)
	}
	// Bound to the term.
	if o := send(3, 2); o.err != kerr.NotLeaderForPartition {
		t.Fatalf("of a former term: %+v", o)
	}
	f.lead(d, 1, 4)
	if o := send(4, 3); o.err != kerr.NotLeaderForPartition || o.leader != (hint{1, 4}) {
		t.Fatalf("one hop only: %+v", o)
	}
}

func TestForwardFailuresByFate(t *testing.T) {
	for err, code := range map[error]int16{
		transport.ErrNotSent: 6, transport.ErrPeerDown: 6, transport.ErrPeerUnknown: 6, transport.ErrClosed: 6,
		transport.ErrUnknownOutcome: 7, transport.ErrOverloaded: 19, transport.ErrTooLarge: 10,
	} {
		if o := hopFailed(2, fmt.Errorf("x: %w", err)); o.err.Code != code || !o.broke {
			t.Errorf("%v: %+v, want %d", err, o, code)
		}
	}
}

func TestOneAddressProxiesProduceWithoutEnd(t *testing.T) {
	f := newFleet(t, 2, func(_ int32, c *Config) { c.NewsAge = time.Nanosecond })
	topic := f.topic("t", 1, 2)
	c := f.nodes[1].dial(t, "one")
	for i := range 5 {
		if p := firstProduced(ask[*kmsg.ProduceResponse](c, 11, produceReq(topic, 0, batch(t, "a", 1), -1))); p.ErrorCode != 0 || p.BaseOffset != int64(i) {
			t.Fatalf("%d: %+v", i, p)
		}
	}
}

func TestOutcomeSurvivesTheWire(t *testing.T) {
	for _, o := range []outcome{
		{base: 5, ts: -1, from: 2, leader: noHint},
		{err: kerr.InvalidTimestamp, message: "bad", base: -1, ts: -1, from: -1, leader: hint{3, 9}, broke: true,
			records: []partition.RecordError{{Index: 1, Message: "one"}, {Index: 7, Message: ""}}},
	} {
		got, err := decodeOutcome(o.encode())
		if err != nil || fmt.Sprint(got) != fmt.Sprint(o) {
			t.Errorf("%+v became %+v (%v)", o, got, err)
		}
		for i := range o.encode() {
			if _, err := decodeOutcome(o.encode()[:i]); err == nil {
				t.Errorf("%d bytes passed for a whole outcome", i)
			}
		}
	}
}
