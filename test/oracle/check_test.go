package oracle

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/chronik-go/chronik/internal/record"
)

var orders = TP{"orders", 0}

// book is a ledger with two writers, the second of which is not idempotent, and the log that belongs to it.
func book() (*Ledger, []ID) {
	l := NewLedger()
	one := Load{Topic: orders.Topic, Partitions: 1}
	a, b := l.enter(true, one), l.enter(false, one)
	var log []ID
	for range 20 {
		for _, w := range []int32{a, b} {
			id := l.sent(orders, w)
			l.ended(orders, id, int64(len(log)), nil)
			log = append(log, id)
		}
	}
	return l, log
}

func TestASoundLogPasses(t *testing.T) {
	l, log := book()
	if v := l.Check(map[TP][]ID{orders: log}); v.Err() != nil {
		t.Error(v.Err())
	}
	// A record of unknown fate may be there or not.
	id := l.sent(orders, 0)
	l.ended(orders, id, 0, errors.New("timed out"))
	for _, log := range [][]ID{log, append(slices.Clone(log), id)} {
		if v := l.Check(map[TP][]ID{orders: log}); v.Err() != nil {
			t.Error(v.Err())
		}
	}
}

// An oracle that finds nothing proves nothing.
func TestWhatIsWrongIsFound(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func([]ID) []ID
		want  string
	}{
		"the end is gone":       {func(log []ID) []ID { return log[:len(log)-1] }, "is lost: the log ends at"},
		"one is gone":           {func(log []ID) []ID { return slices.Delete(log, 7, 8) }, "is lost"},
		"another in its place":  {func(log []ID) []ID { log[7] = stranger; return log }, "acknowledged at 7, is lost"},
		"one is there twice":    {func(log []ID) []ID { return append(log, log[3]) }, "twice, at 3 and 40"},
		"two in another order":  {func(log []ID) []ID { log[4], log[6] = log[6], log[4]; return log }, "follows its record"},
		"all moved":             {func(log []ID) []ID { return append([]ID{stranger}, log...) }, "acknowledged at 0, is at 1"},
		"the partition is gone": {func([]ID) []ID { return nil }, "lost"},
	} {
		t.Run(name, func(t *testing.T) {
			l, log := book()
			if v := l.Check(map[TP][]ID{orders: c.spoil(log)}); v.Err() == nil || !strings.Contains(v.Err().Error(), c.want) {
				t.Errorf("%v, want %q", v.Err(), c.want)
			}
		})
	}
}

// Of what an idempotent producer got no answer to, the order holds all the same; without idempotence a late one may come late.
func TestOrderOfRecordsOfUnknownFate(t *testing.T) {
	for w, bad := range map[int32]bool{0: true, 1: false} {
		l, log := book()
		late := l.sent(orders, w)
		l.ended(orders, late, 0, errors.New("timed out"))
		next := l.sent(orders, w)
		l.ended(orders, next, int64(len(log)), nil)
		if v := l.Check(map[TP][]ID{orders: append(log, next, late)}); (v.Err() != nil) != bad {
			t.Errorf("writer %d: %v", w, v.Err())
		}
	}
}

func TestSomethingReadThatGoesAwayIsFound(t *testing.T) {
	_, log := book()
	at := func(ids []ID) map[TP][]ID { return map[TP][]ID{orders: ids} }
	if v := Same("a reader", at(log[:10]), at(log)); v.Err() != nil {
		t.Error(v.Err())
	}
	if v := Same("a reader", at(log), at(log[:10])); v.Err() == nil {
		t.Error("a shorter log")
	}
	other := slices.Clone(log)
	other[5] = stranger
	if v := Same("a reader", at(log), at(other)); v.Err() == nil {
		t.Error("another record at the offset")
	}
}

func TestOnlyWhatWasSentIsIdentified(t *testing.T) {
	l, log := book()
	good := value(orders, log[5])
	if id, err := l.identify(orders, good); err != nil || id != log[5] {
		t.Fatal(id, err)
	}
	for name, v := range map[string][]byte{
		"cut":           good[:len(good)-1],
		"changed":       append(slices.Clone(good[:len(good)-1]), 'x'),
		"never sent":    value(orders, ID{Writer: 0, Seq: 99}),
		"other topic":   value(TP{"other", 0}, log[5]),
		"empty":         nil,
		"negative":      value(orders, ID{Writer: 0, Seq: -1}),
		"not a record":  []byte("orders:0:x:1:"),
		"other writer":  value(orders, ID{Writer: 9, Seq: 1}),
		"one that wasn": []byte("hello"),
	} {
		if id, err := l.identify(orders, v); err == nil {
			t.Errorf("%s: %v", name, id)
		}
	}
}

func TestPlainBatchesAreValid(t *testing.T) {
	b := batchOf([][]byte{[]byte("a"), []byte(strings.Repeat("b", 1000)), nil})
	batch, err := record.Validate(b)
	if err != nil {
		t.Fatal(err)
	}
	if batch.Count != 3 {
		t.Errorf("%+v", batch)
	}
}
