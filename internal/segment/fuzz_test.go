package segment

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/vfs"
)

// FuzzEpochs feeds the leader epoch checkpoint.
func FuzzEpochs(f *testing.F) {
	f.Add(epochs{{1, 0}, {4, 20}}.encode())
	f.Add([]byte("0\n1000000000\n"))
	f.Add([]byte("0\n0\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := decodeEpochs(b)
		if err != nil {
			if !errors.Is(err, errEpochFormat) {
				t.Fatal(err)
			}
			return
		}
		if cap(e) > len(b) {
			t.Fatalf("%d bytes made room for %d epochs", len(b), cap(e))
		}
		if again, err := decodeEpochs(e.encode()); err != nil || !reflect.DeepEqual(e, again) {
			t.Fatalf("%v comes back as %v, %v", e, again, err)
		}
	})
}

// FuzzPoint feeds the recovery point, past its checksum.
func FuzzPoint(f *testing.F) {
	f.Add(recoveryPoint{base: 3, pos: 400, offset: 9, maxTs: 77, maxOff: 8, since: -1, ilen: 16, tlen: 12, isync: 8, icrc: 5}.encode())
	f.Add([]byte("0 1 2 3"))
	f.Fuzz(func(t *testing.T, b []byte) {
		text := bytes.TrimRight(b, " \n")
		sealed := bytes.Repeat([]byte{' '}, pointBytes)
		copy(sealed[copy(sealed, text[:min(len(text), pointBytes-12)]):], fmt.Sprintf(" %08x", crc32.Checksum(text[:min(len(text), pointBytes-12)], castagnoli)))
		for _, b := range [][]byte{b, sealed} {
			p, ok := decodePoint(b)
			if !ok {
				continue
			}
			if again, ok := decodePoint(p.encode()); !ok || again != p {
				t.Fatalf("%+v comes back as %+v, %v", p, again, ok)
			}
		}
	})
}

// FuzzCleanPoint feeds the cleaner's checkpoint, past its checksum.
func FuzzCleanPoint(f *testing.F) {
	f.Add(CleanPoint{Holes: 9, Horizon: 4, Clean: 8, DeleteAt: 77}.encode())
	f.Add(CleanPoint{DeleteAt: -1}.encode())
	f.Add([]byte("0 1 2 3 99999999999999999999"))
	f.Fuzz(func(t *testing.T, b []byte) {
		text := bytes.TrimRight(b, " \n")
		sealed := fmt.Appendf(bytes.Clone(text), " %08x\n", crc32.Checksum(text, castagnoli))
		for _, b := range [][]byte{b, sealed} {
			c, ok := decodeCleanPoint(b)
			if ok && !bytes.Equal(c.encode(), b) {
				t.Fatalf("%q is read as %+v, which is written as %q", b, c, c.encode())
			}
		}
	})
}

// FuzzLayout feeds a directory of any names: every name is told of once at most, segments are in order, and looking at them changes nothing.
func FuzzLayout(f *testing.F) {
	f.Add("00000000000000000000.log 00000000000000000000.index 00000000000000000005.log.cleaned 00000000000000000000-00000000000000000009.swap", int64(0))
	f.Add("00000000000000000007.timeindex 00000000000000000009.log 00000000000000000009.log.tmp x.swap", int64(9))
	f.Add("00000000000000000000-00000000000000000009.swap 00000000000000000003-00000000000000000012.swap 00000000000000000003.log", int64(-1))
	f.Fuzz(func(t *testing.T, text string, start int64) {
		mem := vfs.NewMem(1)
		if err := mem.MkdirAll("/d"); err != nil || len(text) > 2000 {
			return
		}
		for _, name := range strings.Fields(text) {
			if file, err := mem.Create(filepath.Join("/d", filepath.Base(name))); err == nil {
				_ = file.Close()
			}
		}
		y, err := ReadLayout(mem, "/d", start)
		if err != nil {
			t.Fatal(err)
		}
		told := map[string]bool{}
		for i, s := range y.Segments {
			if told[s.File] || i > 0 && s.Base <= y.Segments[i-1].Base || i+1 < len(y.Segments) && s.End != y.Segments[i+1].Base {
				t.Fatalf("%+v", y.Segments)
			}
			told[s.File] = true
		}
		for _, x := range y.Removed {
			if told[x.File] || x.Why == "" {
				t.Fatalf("%s is told of twice or without a reason: %+v", x.File, y)
			}
			told[x.File] = true
		}
		mem.SetHook(func(op vfs.Op, name string, _ time.Duration) {
			if op&vfs.OpChanges != 0 {
				t.Fatalf("looking at it changed %s: %v", name, op)
			}
		})
		if _, err := VerifyDir(mem, "/d", start, -1); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzProducerSnapshot feeds Kafka's file of producers' states, past its checksum.
func FuzzProducerSnapshot(f *testing.F) {
	mem := vfs.NewMem(1)
	if err := WriteProducerSnapshot(mem, "/s", []ProducerEntry{{ProducerID: 1, LastSequence: 4, LastOffset: 9, TxnFirstOffset: -1}, {ProducerID: 2}}); err != nil {
		f.Fatal(err)
	}
	f.Add(mustRead(f, mem, "/s"))
	f.Add([]byte{0, 1, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		sealed := bytes.Clone(b)
		if len(sealed) >= 6 {
			binary.BigEndian.PutUint32(sealed[2:], crc32.Checksum(sealed[6:], castagnoli))
		}
		for _, b := range [][]byte{b, sealed} {
			mem := vfs.NewMem(1)
			restore(t, mem, "/s", b)
			got, err := ReadProducerSnapshot(mem, "/s")
			if err != nil {
				var damaged *DamageError
				if !errors.As(err, &damaged) {
					t.Fatal(err)
				}
				continue
			}
			if len(got)*snapshotEntry > len(b) {
				t.Fatalf("%d entries in %d bytes", len(got), len(b))
			}
			if err := WriteProducerSnapshot(mem, "/again", got); err != nil {
				t.Fatal(err)
			}
			if again := mustRead(t, mem, "/again"); !bytes.Equal(again, b) {
				t.Fatalf("%x\nis written again as\n%x", b, again)
			}
		}
	})
}

// FuzzIndexes puts any bytes in the place of a sealed segment's index or time index: what is read by offset, and found by
// time, is right or is an error that says damage.
func FuzzIndexes(f *testing.F) {
	f.Add([]byte{}, true, int64(3), int64(500))
	f.Add([]byte{0, 0, 0, 1, 0, 0, 0, 2}, true, int64(3), int64(500))
	f.Add(bytes.Repeat([]byte{0xff}, 24), false, int64(12), int64(1<<50))
	f.Add(bytes.Repeat([]byte{0x7f, 0, 0, 0}, 6), true, int64(12), int64(-1))
	f.Fuzz(func(t *testing.T, b []byte, times bool, at, ts int64) {
		if len(b) > 4<<10 {
			return
		}
		mem := vfs.NewMem(3)
		o := opener{t: t, fs: mem, dir: "/t-0", cfg: Config{SegmentBytes: 2000, IndexIntervalBytes: 200}, start: -1}
		l := o.open()
		all := fill(t, l, 30, 1)
		flush(t, l)
		closeLog(t, l)
		ext := indexExt
		if times {
			ext = timeExt
		}
		restore(t, mem, filepath.Join(o.dir, fileName(0, ext)), b)
		l = o.open()
		end := l.EndOffset()
		at = ((at % end) + end) % end
		got, err := l.Read(at, end, 1, nil)
		switch {
		case err != nil:
			var damaged *DamageError
			if !errors.As(err, &damaged) {
				t.Fatalf("read at %d: %v", at, err)
			}
		default:
			h, err := record.Check(got)
			if err != nil || h.BaseOffset > at || h.LastOffset() < at || !bytes.Contains(all, got) {
				t.Fatalf("at %d: %+v, %v", at, h, err)
			}
		}
		if _, _, _, err := l.OffsetForTimestamp(ts, end); err != nil {
			var damaged *DamageError
			if !errors.As(err, &damaged) {
				t.Fatalf("by time %d: %v", ts, err)
			}
		}
		closeLog(t, l)
	})
}
