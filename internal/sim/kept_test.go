package sim

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/record"
)

// keptWorld is a model with one compacted partition in which each batch holds a value of one key.
func keptWorld(t *testing.T) (*world, *partModel, *producer) {
	t.Helper()
	defer seedRandom(1)()
	set := drawSettings(rand.New(rand.NewPCG(1, 1)))
	set.topics, set.compacted, set.keys, set.groups = []int{1}, []string{"compact"}, 1, 0
	set.minLag, set.tombstones = 0, time.Hour
	w := newWorldOf(Options{Seed: 1}, set, nil)
	t.Cleanup(w.stopAll)
	return w, w.model.parts[0], w.producers[0]
}

// keptBatch puts a batch of one record into the log at an offset.
func (p *producer) keptBatch(w *world, offset int64, tombstone bool) *batch {
	for {
		b := w.model.newBatch(p, 1, 20)
		p.seq++
		if b.keyed[0].value == nil == tombstone {
			b.unclear = 1
			record.SetOffset(b.raw, offset, 1)
			w.model.ack(b, offset)
			return b
		}
		delete(p.part.kept.floating, b)
	}
}

func TestAuditFindsWhatCompactionMustNotDo(t *testing.T) {
	for name, c := range map[string]struct {
		last bool // is a tombstone
		left []int
		want string
	}{
		"sound":                            {left: []int{0, 1, 2}},
		"followed":                         {left: []int{2}},
		"the latest value is gone":         {left: []int{1}, want: "the latest of key0, is gone"},
		"a tombstone is gone early":        {last: true, left: []int{}, want: "before delete.retention.ms"},
		"what it had deleted is there":     {last: true, left: []int{1}, want: "before delete.retention.ms"},
		"a tombstone and what it deletes":  {last: true, left: []int{1, 2}},
		"a tombstone and nothing else":     {last: true, left: []int{2}},
		"an older one is read after a new": {left: []int{2, 0}, want: "comes a batch"},
	} {
		w, p, by := keptWorld(t)
		all := []*batch{by.keptBatch(w, 0, false), by.keptBatch(w, 1, false), by.keptBatch(w, 2, c.last)}
		var raw []byte
		for _, i := range c.left {
			raw = append(raw, all[i].raw...)
		}
		w.model.audit(p, 0, 3, raw, name)
		switch {
		case c.want == "" && w.failed != nil:
			t.Errorf("%s: %s", name, w.failed.text)
		case c.want != "" && (w.failed == nil || !strings.Contains(w.failed.text, c.want)):
			t.Errorf("%s: %v", name, w.failed)
		}
	}
}

// A tombstone may go once its time is up; what it had deleted must not be there any more.
func TestAuditFindsWhatATombstoneHadDeleted(t *testing.T) {
	w, p, by := keptWorld(t)
	w.set.tombstones = 0
	value := by.keptBatch(w, 0, false)
	by.keptBatch(w, 1, true)
	end := by.keptBatch(w, 2, false)
	_ = end
	by.keptBatch(w, 3, true)
	w.model.audit(p, 0, 4, nil, "nothing is left")
	if w.failed != nil {
		t.Fatal(w.failed.text)
	}
	if w.model.audit(p, 0, 4, value.raw, "a value is back"); w.failed == nil || !strings.Contains(w.failed.text, "what is left of the key") {
		t.Errorf("%v", w.failed)
	}
}

// A tombstone whose fate its producer never learnt may have been in the log, and have gone with what it deleted (seed 10193).
func TestAuditAllowsForATombstoneOfUnknownFate(t *testing.T) {
	for _, unclear := range []int{1, 0} {
		w, p, by := keptWorld(t)
		w.set.tombstones = 0
		by.keptBatch(w, 0, false)
		for {
			b := w.model.newBatch(by, 1, 20)
			by.seq++
			if b.unclear = unclear; b.keyed[0].value == nil {
				break
			}
			delete(p.kept.floating, b)
		}
		if w.model.audit(p, 0, 2, nil, "nothing is left"); (w.failed == nil) != (unclear > 0) {
			t.Errorf("unclear %d: %v", unclear, w.failed)
		}
	}
}

func TestACompactedRecordMustBeWhatWasSent(t *testing.T) {
	w, p, by := keptWorld(t)
	a, b := by.keptBatch(w, 0, false), by.keptBatch(w, 1, false)
	record.SetOffset(b.raw, 0, 1)
	if w.model.keptAll(p, 0, b.raw, "moved", func(int64, *keyedRecord) {}); w.failed == nil || !strings.Contains(w.failed.text, "offset 0 held batch") {
		t.Errorf("%v, and batch %d is at 0", w.failed, a.id)
	}
}

func TestAReassignmentMustEndWhereItWasWanted(t *testing.T) {
	for name, c := range map[string]struct {
		moves []move
		now   []int32
		want  string
	}{
		"as wanted":            {moves: []move{{to: []int32{1, 2, 4}, known: true, accepted: true, image: 1}}, now: []int32{1, 2, 4}},
		"half way":             {moves: []move{{to: []int32{2, 3, 4}, known: true, accepted: true, image: 1}}, now: []int32{1, 2, 4}, want: "the last reassignment wanted"},
		"the first of two":     {moves: []move{{to: []int32{1, 2, 4}, known: true, accepted: true, image: 5}, {to: []int32{1, 2, 3}, known: true, accepted: true, from: 5, image: 9}}, now: []int32{1, 2, 4}, want: "the last reassignment wanted"},
		"turned back":          {moves: []move{{to: []int32{1, 2, 4}, before: []int32{1, 2, 3}, known: true, accepted: true, image: 5}, {cancel: true, before: []int32{1, 2, 3}, known: true, accepted: true, from: 5, image: 9}}, now: []int32{1, 2, 3}},
		"turned back half way": {moves: []move{{to: []int32{3, 4, 5}, before: []int32{1, 2, 3}, known: true, accepted: true, image: 5}, {cancel: true, before: []int32{1, 2, 3}, known: true, accepted: true, from: 5, image: 9}}, now: []int32{2, 3, 4}, want: "which no reassignment wanted"},
		"the first of two, whose answer was lost": {moves: []move{{to: []int32{1, 2, 4}, known: true, accepted: true, from: 4, image: 12}, {to: []int32{1, 2, 3}, known: true, accepted: true, from: 5, image: 9}}, now: []int32{1, 2, 3}},
		"nothing to do, twice":                    {moves: []move{{to: []int32{1, 2, 4}, known: true, accepted: true, from: 5, image: 5}, {to: []int32{1, 2, 4}, known: true, accepted: true, from: 5, image: 5}}, now: []int32{1, 2, 4}},
		"nobody knows":                            {moves: []move{{to: []int32{1, 2, 4}, before: []int32{1, 2, 3}}}, now: []int32{1, 2, 3}},
		"nobody knows, and where it was neither":  {moves: []move{{to: []int32{1, 2, 4}}}, now: []int32{1, 2, 3}},
		"refused":                                 {moves: []move{{to: []int32{1, 2, 4}, before: []int32{1, 2, 3}, known: true}}, now: []int32{1, 2, 3}},
	} {
		w := &world{counts: Counts{}, trace: trace{}}
		w.scheduler.clk = clock.NewSim(epoch)
		for i := range c.moves {
			w.moves = append(w.moves, &c.moves[i])
		}
		w.checkWanted("", 0, c.now)
		switch {
		case c.want == "" && w.failed != nil:
			t.Errorf("%s: %s", name, w.failed.text)
		case c.want != "" && (w.failed == nil || !strings.Contains(w.failed.text, c.want)):
			t.Errorf("%s: %v", name, w.failed)
		}
	}
}
