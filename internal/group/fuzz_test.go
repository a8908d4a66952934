package group

import (
	"testing"

	"github.com/chronik-go/chronik/internal/record"
)

// FuzzReplay feeds a coordinator that loads a record of any bytes, beside sound ones: it does not panic, comes up, and still knows what
// the sound ones say, unless the record was of the same group.
func FuzzReplay(f *testing.F) {
	w := newWorld(f, 1)
	w.stable(2)
	w.stable(1, static("i"), func(r *JoinRequest) { r.Group = "h" })
	w.commit(CommitRequest{Generation: -1, Group: "o", Partitions: []CommitPartition{{Topic: "t", Offset: 5}}})
	for _, b := range w.log.batches {
		_ = record.Records(b, 1<<20, func(r record.Record) error {
			f.Add(append([]byte{}, r.Key...), append([]byte{}, r.Value...), r.Value == nil)
			return nil
		})
	}
	f.Add([]byte{0, 2, 0, 1, 'g'}, []byte{0, 3, 0, 8}, false)
	f.Fuzz(func(t *testing.T, key, value []byte, tombstone bool) {
		w := newWorld(t, 1)
		w.commit(CommitRequest{Group: "sound", Generation: -1, Partitions: []CommitPartition{{Topic: "t", Offset: 7}}}).ok()
		if value == nil {
			value = []byte{}
		}
		if tombstone {
			value = nil
		}
		b, err := record.NewBuilder().Add(1, key, value).Build()
		if err != nil {
			t.Skip()
		}
		(&replica{w.log, w.log.leader}).Append(w.log.term, b, func(_ int64, err error) {
			if err != nil {
				t.Fatal(err)
			}
		})
		w.move(0)
		kind, err := kindOf(key)
		if same := err == nil && len(key) >= 9 && string(key[4:9]) == "sound"; same && (kind == kindOffsetCommit || kind == kindOffsetCommitOld) {
			return
		}
		if got := w.fetch("sound"); len(got) != 1 || got[0].Offset != 7 {
			t.Fatalf("after %x=%x: %+v", key, value, got)
		}
	})
}
