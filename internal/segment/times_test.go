package segment

import (
	"testing"

	"github.com/chronik-go/chronik/internal/record"
)

// rec is a record's offset and timestamp.
type rec struct{ off, ts int64 }

// recordsOf reads every record, as a lookup by time must seem to do.
func recordsOf(t testing.TB, all []byte) (recs []rec) {
	t.Helper()
	if err := record.Each(all, func(h record.Header, b []byte) error {
		return record.Records(b, 1<<20, func(r record.Record) error {
			recs = append(recs, rec{h.BaseOffset + int64(r.OffsetDelta), r.Timestamp})
			return nil
		})
	}); err != nil {
		t.Fatal(err)
	}
	return recs
}

// firstAt returns the offset of the first record whose timestamp is not below ts, or -1.
func firstAt(recs []rec, ts int64) int64 {
	for _, r := range recs {
		if r.ts >= ts {
			return r.off
		}
	}
	return -1
}

func TestTimestampLookupFindsTheFirstRecord(t *testing.T) {
	o := onDisk(t, small)
	l := o.open()
	all := fill(t, l, 300, 4)
	recs := recordsOf(t, all)
	end := l.EndOffset()
	check := func(l *Log, start, limit int64) {
		t.Helper()
		for ts := t0 - 5; ts < t0+10*end+60; ts += 7 {
			want := rec{-1, -1}
			for _, r := range recs {
				if r.off >= start && r.off < limit && r.ts >= ts {
					want = r
					break
				}
			}
			off, got, epoch, err := l.OffsetForTimestamp(ts, limit)
			if err != nil || off != want.off || got != want.ts || (off >= 0) != (epoch == 4) {
				t.Fatalf("timestamp %d in [%d, %d): %d at %d epoch %d, %v; want %+v", ts, start, limit, off, got, epoch, err, want)
			}
		}
		want := rec{-1, -1}
		for _, r := range recs {
			if r.off >= start && r.off < limit && r.ts > want.ts {
				want = r
			}
		}
		off, got, err := l.MaxTimestamp(limit)
		if err != nil || off != want.off || got != want.ts {
			t.Fatalf("max timestamp in [%d, %d): %d at %d, %v; want %+v", start, limit, off, got, err, want)
		}
	}
	check(l, 0, end)
	closeLog(t, l)
	l = o.open()
	defer closeLog(t, l)
	check(l, 0, end)
	l.SetStartOffset(333)
	check(l, 333, end)
	// A limit is always a batch's boundary.
	b, err := l.Read(500, end, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	h, _ := record.ParseHeader(b)
	check(l, 333, h.BaseOffset)
	if off, ts, err := l.MaxTimestamp(333); off != -1 || ts != -1 || err != nil {
		t.Fatal(off, ts, err)
	}
}
