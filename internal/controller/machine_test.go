package controller

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"runtime"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/controller/controllerpb"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
)

func newMachine(t testing.TB, cfg MachineConfig, img *metadata.Image) *StateMachine {
	t.Helper()
	state, err := EncodeImage(img)
	if err != nil {
		t.Fatal(err)
	}
	m, err := NewStateMachine(cfg, img.Index, 1, state)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func entry(t testing.TB, index, term uint64, batch *controllerpb.Batch) raftpb.Entry {
	t.Helper()
	e := raftpb.Entry{Index: index, Term: term}
	if batch != nil {
		var err error
		if e.Data, err = seal(magicBatch, batch); err != nil {
			t.Fatal(err)
		}
	}
	return e
}

func registerBatch(base uint64, node byte, replica uint64) *controllerpb.Batch {
	return &controllerpb.Batch{BaseIndex: base, Commands: []*controllerpb.Command{{Op: &controllerpb.Command_RegisterNode{
		RegisterNode: &controllerpb.RegisterNode{Node: &controllerpb.Node{Id: int32(node), Dir: bytes.Repeat([]byte{node}, 16), MetadataReplica: replica}}}}}}
}

func producerBatch(base uint64, first, count int64) *controllerpb.Batch {
	return &controllerpb.Batch{BaseIndex: base, Commands: []*controllerpb.Command{{Op: &controllerpb.Command_AllocateProducerIds{
		AllocateProducerIds: &controllerpb.AllocateProducerIDs{First: first, Count: count}}}}}
}

// randomLog decides random requests, some of them from an image that has moved on, and returns the entries that came of it:
// accepted, refused, and empty ones.
func randomLog(t testing.TB, seed uint64, n int) []raftpb.Entry {
	rng := rand.New(rand.NewPCG(seed, 1))
	fc := newFakeCluster(t, testImage(4), 1)
	c := fc.ctl(1)
	batches := [][]byte{}
	for range n {
		name := fmt.Sprint("t", rng.IntN(12))
		switch rng.IntN(7) {
		case 0, 1:
			topics := []NewTopic{{Name: name, Partitions: int32(rng.IntN(4)), ReplicationFactor: int16(rng.IntN(5))}}
			for i := range rng.IntN(3) { // several in one command
				topics = append(topics, NewTopic{Name: fmt.Sprint(name, "-", i), Partitions: 1, ReplicationFactor: 1})
			}
			c.CreateTopics(testContext(t), topics, false)
		case 2:
			c.DeleteTopics(testContext(t), []TopicKey{{Name: name}})
		case 3:
			c.CreatePartitions(testContext(t), []NewPartitions{{Name: name, Count: int32(rng.IntN(9))}}, false)
		case 4:
			c.AlterConfigs(testContext(t), []ConfigChange{{Resource: Resource{ResourceTopic, name}, Edits: []ConfigEdit{{OpSet, fmt.Sprint("k", rng.IntN(3)), ptr(fmt.Sprint(rng.IntN(9)))}}}}, false)
		case 5:
			if _, err := c.AllocateProducerIDs(testContext(t), 1+rng.Int64N(5)); err != nil {
				t.Fatal(err)
			}
		case 6:
			fc.mu.Lock()
			if len(batches) > 0 && rng.IntN(2) == 0 {
				fc.appendLocked(batches[rng.IntN(len(batches))]) // an old leader's command, late
			} else {
				fc.appendLocked(nil)
			}
			fc.mu.Unlock()
		}
		if l := len(fc.log); l > 0 && fc.log[l-1].Data != nil {
			batches = append(batches, fc.log[l-1].Data)
		}
	}
	return fc.log
}

// Accepted or refused, replicas that apply the same log hold the same bytes, however the log was cut into calls of Apply, and
// with a restart from a snapshot in the middle.
func TestReplayIsDeterministic(t *testing.T) {
	for seed := range uint64(8) {
		log := randomLog(t, seed, 60)
		rng := rand.New(rand.NewPCG(seed, 2))
		var want []byte
		for replay := range 4 {
			m := newMachine(t, MachineConfig{}, testImage(4))
			for i := 0; i < len(log); {
				n := 1 + rng.IntN(min(len(log)-i, 9))
				if err := m.Apply(log[i : i+n]); err != nil {
					t.Fatal(err)
				}
				i += n
				if replay >= 2 && rng.IntN(5) == 0 {
					index, term, data, err := m.Snapshot()
					if err != nil || index != log[i-1].Index || term != log[i-1].Term {
						t.Fatal(index, term, err)
					}
					if m, err = NewStateMachine(MachineConfig{}, index, term, data); err != nil {
						t.Fatal(err)
					}
				}
			}
			_, _, got, err := m.Snapshot()
			if err != nil {
				t.Fatal(err)
			}
			if want == nil {
				want = got
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("seed %d: replay %d came to another state", seed, replay)
			}
		}
	}
}

func TestBatchFromAnotherStateIsRefused(t *testing.T) {
	m := newMachine(t, MachineConfig{}, testImage(1))
	outcome := func(e raftpb.Entry, batch *controllerpb.Batch) error {
		var got error
		p, err := m.newProposal(batch, func(err error) { got = err })
		if err != nil {
			t.Fatal(err)
		}
		e.Data = p.data
		if err := m.Apply([]raftpb.Entry{e}); err != nil {
			t.Fatal(err)
		}
		p.Done(nil)
		return got
	}
	wantErr(t, "fresh", outcome(raftpb.Entry{Index: 2, Term: 1}, producerBatch(1, 0, 5)), nil)
	wantErr(t, "old", outcome(raftpb.Entry{Index: 3, Term: 2}, producerBatch(1, 5, 5)), errStale)
	wantErr(t, "wrong first id", outcome(raftpb.Entry{Index: 4, Term: 2}, producerBatch(2, 4, 5)), errStale)
	wantErr(t, "fresh again", outcome(raftpb.Entry{Index: 5, Term: 2}, producerBatch(2, 5, 5)), nil)
	img := m.Image()
	if img.NextProducerID != 10 || img.Index != 5 {
		t.Errorf("next id %d at %d", img.NextProducerID, img.Index)
	}
	if len(m.proposals.pending) != 0 {
		t.Error("proposals are not forgotten")
	}
}

// RAFT.md 1, STYLE 8: a refusal is an outcome, anything else stops the replica.
func TestDamagedEntryFences(t *testing.T) {
	good := entry(t, 2, 1, registerBatch(1, 5, 2))
	flipped := append([]byte(nil), good.Data...)
	flipped[len(flipped)-1] ^= 1
	newer := append([]byte(nil), good.Data...)
	newer[3] = 9
	unknown := entry(t, 2, 1, &controllerpb.Batch{BaseIndex: 1, Commands: []*controllerpb.Command{{}}})
	for name, e := range map[string]raftpb.Entry{
		"flipped": {Index: 2, Term: 1, Data: flipped}, "newer": {Index: 2, Term: 1, Data: newer}, "short": {Index: 2, Term: 1, Data: []byte{1}},
		"unknown operation": unknown, "gap": {Index: 3, Term: 1}, "again": {Index: 1, Term: 1},
	} {
		m := newMachine(t, MachineConfig{}, testImage(1))
		before := m.Image()
		wantErr(t, name, m.Apply([]raftpb.Entry{e}), ErrCorrupt)
		if m.Image() != before {
			t.Errorf("%s: published", name)
		}
	}
}

func TestImageIsNeverChangedUnderReaders(t *testing.T) {
	fc := newFakeCluster(t, testImage(3), 1)
	c, m := fc.ctl(1), fc.nodes[0].machine
	type seen struct {
		img   *metadata.Image
		bytes []byte
	}
	var all []seen
	cancel := m.Watch(func(img *metadata.Image) {
		b, err := EncodeImage(img)
		if err != nil {
			t.Error(err)
		}
		all = append(all, seen{img, b})
	})
	defer cancel()
	mustCreate(t, c, NewTopic{Name: "a", Partitions: 2, ReplicationFactor: 2}, topic("b"))
	c.AlterConfigs(testContext(t), []ConfigChange{{Resource: Resource{ResourceTopic, "a"}, Edits: []ConfigEdit{{OpSet, "k", ptr("1")}}}}, false)
	c.AlterConfigs(testContext(t), []ConfigChange{{Resource: Resource{ResourceBroker, ""}, Edits: []ConfigEdit{{OpSet, "k", ptr("1")}}}}, false)
	c.AlterConfigs(testContext(t), []ConfigChange{{Resource: Resource{ResourceBroker, ""}, Edits: []ConfigEdit{{OpSet, "k", ptr("2")}}}}, false)
	c.CreatePartitions(testContext(t), []NewPartitions{{Name: "a", Count: 7}}, false)
	if err := c.RegisterNode(testContext(t), metadata.Node{ID: 2, Dir: uuid.UUID{15: 2}, KafkaHost: "new", KafkaPort: 1}); err != nil {
		t.Fatal(err)
	}
	c.DeleteTopics(testContext(t), []TopicKey{{Name: "a"}})
	mustCreate(t, c, topic("a"))
	if len(all) != 9 {
		t.Fatalf("%d images seen, want 9", len(all))
	}
	for i, s := range all {
		now, err := EncodeImage(s.img)
		if err != nil || !bytes.Equal(now, s.bytes) {
			t.Errorf("image %d changed after it was published (%v)", i, err)
		}
		if i > 0 && s.img.Index <= all[i-1].img.Index {
			t.Errorf("image %d at index %d after %d", i, s.img.Index, all[i-1].img.Index)
		}
	}
}

func TestWatchEndsAndStartsCurrent(t *testing.T) {
	m := newMachine(t, MachineConfig{}, testImage(1))
	var a, b []uint64
	cancelA := m.Watch(func(img *metadata.Image) { a = append(a, img.Index) })
	apply := func(index uint64, id byte) {
		if err := m.Apply([]raftpb.Entry{entry(t, index, 1, registerBatch(index-1, id, uint64(id)))}); err != nil {
			t.Fatal(err)
		}
	}
	apply(2, 2)
	cancelB := m.Watch(func(img *metadata.Image) { b = append(b, img.Index) })
	cancelA()
	cancelA()
	apply(3, 3)
	cancelB()
	apply(4, 4)
	if fmt.Sprint(a, b) != "[1 2] [2 3]" {
		t.Errorf("seen %v and %v", a, b)
	}
}

func TestSnapshotRoundTrip(t *testing.T) {
	fc := newFakeCluster(t, testImage(3), 1)
	mustCreate(t, fc.ctl(1), NewTopic{Name: "a", Partitions: 4, ReplicationFactor: 3, Configs: map[string]string{"k": "v"}}, topic("__consumer_offsets"))
	if _, err := fc.ctl(1).AllocateProducerIDs(testContext(t), 7); err != nil {
		t.Fatal(err)
	}
	from := fc.nodes[0].machine
	index, term, data, err := from.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	snap := raftpb.Snapshot{Data: data, Metadata: raftpb.SnapshotMetadata{Index: index, Term: term}}
	to, err := NewStateMachine(MachineConfig{}, 0, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	if to.Image() == nil || to.Image().Index != 0 {
		t.Fatal("an empty replica has no image")
	}
	var seen *metadata.Image
	to.Watch(func(img *metadata.Image) { seen = img })
	staged := errors.New("not called")
	to.Stage(snap, multiraft.Peer{}, func(err error) { staged = err })
	if staged != nil || to.Image().Index != 0 {
		t.Fatalf("staging: %v, visible at %d", staged, to.Image().Index)
	}
	if err := to.Install(snap); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(to.Image(), from.Image()) || seen != to.Image() {
		t.Errorf("another image: %+v, %+v", to.Image(), from.Image())
	}
	if !to.Image().Topics["__consumer_offsets"].Internal || to.Image().Topics["a"].Internal {
		t.Error("internal topics not told apart")
	}
	if i, tm := to.Applied(); i != index || tm != term {
		t.Errorf("applied %d, %d", i, tm)
	}
	if err := to.Apply([]raftpb.Entry{{Index: index + 1, Term: term}}); err != nil {
		t.Error(err)
	}
	wantErr(t, "older snapshot", to.Install(snap), ErrCorrupt)
	snap.Data = append([]byte(nil), data...)
	snap.Data[len(data)/2] ^= 4
	to.Stage(snap, multiraft.Peer{}, func(err error) { staged = err })
	wantErr(t, "damaged snapshot", staged, ErrCorrupt)
	wantErr(t, "damaged snapshot", to.Install(snap), ErrCorrupt)
}

type checkpoints struct {
	index []uint64
	state []byte
}

func (c *checkpoints) Checkpoint(index, _ uint64, state []byte) {
	c.index = append(c.index, index)
	c.state = state
}

// Design rule 7, for this group: the log is not kept for ever, and a restart from the checkpoint comes to the same state.
func TestCheckpointsBoundTheLog(t *testing.T) {
	var cps checkpoints
	m := newMachine(t, MachineConfig{CheckpointEntries: 10, CheckpointBytes: 600}, testImage(1))
	m.Bind(&cps)
	m.CheckpointNow()
	if len(cps.index) != 0 {
		t.Error("a checkpoint of nothing new")
	}
	index := uint64(1)
	for range 25 { // by entries
		index++
		if err := m.Apply([]raftpb.Entry{{Index: index, Term: 1}}); err != nil {
			t.Fatal(err)
		}
	}
	if fmt.Sprint(cps.index) != "[11 21]" {
		t.Errorf("checkpoints at %v", cps.index)
	}
	m.CheckpointNow()
	m.CheckpointNow()
	if n := len(cps.index); n != 3 || cps.index[2] != index {
		t.Errorf("checkpoints at %v", cps.index)
	}
	cps.index = nil
	base := uint64(1)
	for i := byte(2); len(cps.index) == 0 && i < 10; i++ { // by bytes
		index++
		b := registerBatch(base, i, uint64(i))
		b.Commands[0].GetRegisterNode().Node.RaftAddr = string(make([]byte, 300))
		if err := m.Apply([]raftpb.Entry{entry(t, index, 1, b)}); err != nil {
			t.Fatal(err)
		}
		base = index
	}
	if len(cps.index) != 1 {
		t.Fatalf("no checkpoint by bytes")
	}
	again, err := NewStateMachine(MachineConfig{}, cps.index[0], 1, cps.state)
	if err != nil || !reflect.DeepEqual(again.Image(), m.Image()) {
		t.Errorf("restart: %v", err)
	}
	_, err = NewStateMachine(MachineConfig{}, 1, 1, cps.state)
	wantErr(t, "an image later than its checkpoint", err, ErrCorrupt)
	_, err = NewStateMachine(MachineConfig{}, 1, 1, nil)
	wantErr(t, "a checkpoint without its image", err, ErrCorrupt)
}

func TestForeignProposalsAreRefused(t *testing.T) {
	m := newMachine(t, MachineConfig{}, testImage(1))
	own, err := m.newProposal(producerBatch(1, 0, 1), func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	f := &foreign{}
	data, bound, taken := m.Prepare(1, []multiraft.Proposal{f, own, own}, 1)
	if !errors.Is(f.err, errForeign) || !bytes.Equal(data, own.data) || len(bound) != 1 || taken != 2 {
		t.Errorf("%v, %d bound, %d taken", f.err, len(bound), taken)
	}
	if data, _, taken := m.Prepare(1, []multiraft.Proposal{&foreign{}}, 1); data != nil || taken != 1 {
		t.Error("foreign data goes into the log")
	}
}

type foreign struct{ err error }

func (*foreign) Size() int        { return 1 }
func (f *foreign) Done(err error) { f.err = err }

func TestRequestMarksAreBounded(t *testing.T) {
	b := metadata.NewBuilder(testImage(1))
	id := func(i int) uuid.UUID { return uuid.NewSHA1(uuid.Nil, fmt.Append(nil, i)) }
	for i := range 2000 {
		b.MarkRequest(id(i), []byte{1})
	}
	b.MarkRequest(id(1990), []byte{2, 1})
	img := b.Build()
	if len(img.Requests) != 512 {
		t.Errorf("%d requests remembered", len(img.Requests))
	}
	nb := metadata.NewBuilder(img)
	for i, want := range map[int]bool{1999: true, 1990: true, 10: false} {
		if _, ok := nb.Request(id(i)); ok != want {
			t.Errorf("request %d remembered: %v", i, ok)
		}
	}
	if m, _ := nb.Request(id(1990)); !m.Has(0) || !m.Has(1) || !m.Has(8) || m.Has(2) || m.Has(100) {
		t.Errorf("marks %v", m)
	}
	for i := range 300 {
		nb.MarkRequest(id(5000+i), make([]byte, 4000))
	}
	total := 0
	for _, r := range nb.Build().Requests {
		total += len(r.Done)
	}
	if total > 256<<10 || total < 200<<10 {
		t.Errorf("%d bytes of marks", total)
	}
	if len(img.Requests) != 512 {
		t.Error("the image changed")
	}
}

// Images of 10,000 topics: what one more topic costs. The times are for the log; the bound, against a slip to quadratic behaviour, is on
// what is allocated: beside ten times as many topics it may be ten times as much, and not a hundred.
func TestTenThousandTopicsStayCheap(t *testing.T) {
	fc := newFakeCluster(t, testImage(3), 1)
	c := fc.ctl(1)
	ask := make([]NewTopic, 10_000)
	for i := range ask {
		ask[i] = NewTopic{Name: fmt.Sprintf("orders.region-%05d", i), Partitions: 1, ReplicationFactor: 3}
	}
	const more = 50
	addSome := func(to string) (bytes uint64) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for i := range more {
			mustCreate(t, c, topic(fmt.Sprintf("%s_%d", to, i)))
		}
		runtime.ReadMemStats(&after)
		return (after.TotalAlloc - before.TotalAlloc) / more
	}
	mustCreate(t, c, ask[:1000]...)
	few := addSome("few")
	mustCreate(t, c, ask[1000:]...)
	img := fc.nodes[0].machine.Image()
	start := time.Now()
	many := addSome("many")
	each := time.Since(start) / more
	start = time.Now()
	b, err := EncodeImage(img)
	encode := time.Since(start)
	start = time.Now()
	if _, err2 := DecodeImage(b); err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	t.Logf("one more topic beside 10,000: %v; image of %d KiB encoded in %v, decoded in %v", each, len(b)>>10, encode, time.Since(start))
	if many > 30*few {
		t.Errorf("one more topic allocates %d bytes beside 1,000 topics, %d beside 10,000", few, many)
	}
}

func FuzzApplyCommand(f *testing.F) {
	for seed := range uint64(3) {
		for _, e := range randomLog(f, seed, 30) {
			if len(e.Data) > frameHead {
				f.Add(e.Data[frameHead:])
			}
		}
	}
	img := testImage(4)
	f.Fuzz(func(t *testing.T, body []byte) {
		// The checksum is put right, so that what is behind it is tried.
		var batch controllerpb.Batch
		data := append([]byte(magicBatch+"\x00\x00\x00\x00"), body...)
		putCRC(data)
		if unseal(magicBatch, "command", data, &batch) == nil {
			batch.BaseIndex = img.Index
			data = entry(t, 2, 1, &batch).Data
		}
		var states [2][]byte
		var errs [2]error
		for i := range states {
			m := newMachine(t, MachineConfig{}, img)
			errs[i] = m.Apply([]raftpb.Entry{{Index: 2, Term: 1, Data: data}})
			var err error
			if _, _, states[i], err = m.Snapshot(); err != nil {
				// Only text that is no UTF-8 can't be encoded, and such text can't be decoded from a command either.
				t.Fatalf("a state that can't be encoded: %v", err)
			}
			if errs[i] == nil {
				if _, err := DecodeImage(states[i]); err != nil {
					t.Fatalf("a state that can't be read back: %v", err)
				}
			} else if !errors.Is(errs[i], ErrCorrupt) {
				t.Fatalf("%v is no damage", errs[i])
			}
		}
		if !bytes.Equal(states[0], states[1]) || (errs[0] == nil) != (errs[1] == nil) {
			t.Fatal("two replicas differ")
		}
	})
}

func FuzzDecodeImage(f *testing.F) {
	log := randomLog(f, 1, 60)
	m := newMachine(f, MachineConfig{}, testImage(4))
	if err := m.Apply(log); err != nil {
		f.Fatal(err)
	}
	_, _, data, err := m.Snapshot()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data[frameHead:])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, body []byte) {
		data := append([]byte(magicImage+"\x00\x00\x00\x00"), body...)
		if _, err := DecodeImage(data); err == nil && len(body) > 0 {
			return // the checksum happened to be zero
		}
		putCRC(data)
		img, err := DecodeImage(data)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%v", err)
			}
			return
		}
		once, err := EncodeImage(img)
		if err != nil {
			t.Fatal(err)
		}
		again, err := DecodeImage(once)
		if err != nil || !reflect.DeepEqual(img, again) {
			t.Fatalf("%v: %+v, %+v", err, img, again)
		}
	})
}
