package oracle

import "testing"

func TestAGroupThatMissesOrGoesBackIsFound(t *testing.T) {
	tp := TP{"orders", 0}
	consumed := func() *groupBook {
		b := newGroupBook()
		for i := range int64(10) {
			b.took(tp, i, ID{0, int32(i)}, i, i > 0)
		}
		b.committed(tp, 10)
		b.told(b.floors(), map[TP]int64{tp: 10})
		return b
	}
	ends := map[TP]int64{tp: 10}
	if b := consumed(); b.err() != nil || len(b.missing(ends)) > 0 {
		t.Fatal(b.err(), b.missing(ends))
	}
	for name, plant := range map[string]func(b *groupBook){
		"a committed offset goes back": func(b *groupBook) { b.told(b.floors(), map[TP]int64{tp: 9}) },
		"a committed offset is gone":   func(b *groupBook) { b.told(b.floors(), nil) },
		"a told offset goes back": func(b *groupBook) {
			b.told(b.floors(), map[TP]int64{tp: 12})
			b.told(b.floors(), map[TP]int64{tp: 11})
		},
		"a member begins too early":   func(b *groupBook) { b.took(tp, 8, ID{0, 8}, 10, false) },
		"a member is given a gap":     func(b *groupBook) { b.took(tp, 11, ID{0, 11}, 10, true) },
		"another record at an offset": func(b *groupBook) { b.took(tp, 9, ID{0, 7}, 9, false) },
	} {
		b := consumed()
		if plant(b); b.err() == nil {
			t.Errorf("%s: not found", name)
		}
	}
	for name, plant := range map[string]func(b *groupBook){
		"a record consumed again":            func(b *groupBook) { b.floor[tp] = 9; b.took(tp, 9, ID{0, 9}, 9, false) },
		"a commit that an older look misses": func(b *groupBook) { before := b.floors(); b.committed(tp, 11); b.told(before, map[TP]int64{tp: 10}) },
	} {
		b := consumed()
		if plant(b); b.err() != nil {
			t.Errorf("%s: %v", name, b.err())
		}
	}
	b := newGroupBook()
	b.took(tp, 0, ID{}, 0, false)
	b.took(tp, 5, ID{}, 5, false) // another member, which began where something else was committed
	if got := b.missing(map[TP]int64{tp: 6}); len(got) != 1 || got[0] != "orders-0: 4 of 6, the first at 1" {
		t.Errorf("%q", got)
	}
}
