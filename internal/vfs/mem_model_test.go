package vfs

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// dataModel says what one file may hold after a power cut: for every sector any version since it was last certainly durable.
// It is written with nothing but slices of bytes, to be right where Mem is clever.
type dataModel struct {
	cur        []byte
	versions   map[int][][]byte // of sectors with more than one possible content; the first is the durable one
	lost       map[int]bool     // a sync failed on it and it was not written since
	durSize    int
	minS, maxS int // bounds of the length since the last sync
}

const modelSectors = 64

func newDataModel(content []byte) *dataModel {
	return &dataModel{
		cur: content, versions: map[int][][]byte{}, lost: map[int]bool{},
		durSize: len(content), minS: len(content), maxS: len(content),
	}
}

func (d *dataModel) sector(i int) []byte {
	b := make([]byte, sectorSize)
	if i*sectorSize < len(d.cur) {
		copy(b, d.cur[i*sectorSize:])
	}
	return b
}

// change runs fn on the content and notes a version of each sector that [from, to) touches.
func (d *dataModel) change(from, to int, fn func()) {
	for i := from / sectorSize; i*sectorSize < to; i++ {
		if d.versions[i] == nil {
			d.versions[i] = [][]byte{d.sector(i)}
		}
	}
	fn()
	for i := from / sectorSize; i*sectorSize < to; i++ {
		d.versions[i] = append(d.versions[i], d.sector(i))
		delete(d.lost, i)
	}
	d.minS, d.maxS = min(d.minS, len(d.cur)), max(d.maxS, len(d.cur))
}

func (d *dataModel) write(off int, b []byte) {
	if len(b) == 0 {
		return
	}
	d.change(off, off+len(b), func() {
		if n := off + len(b); n > len(d.cur) {
			d.cur = append(d.cur, make([]byte, n-len(d.cur))...)
		}
		copy(d.cur[off:], b)
	})
}

func (d *dataModel) truncate(n int) {
	if n >= len(d.cur) { // a hole: no byte is written, so that no lost sector is healed
		d.cur = append(d.cur, make([]byte, n-len(d.cur))...)
		d.maxS = max(d.maxS, n)
		return
	}
	d.change(n, len(d.cur), func() { d.cur = d.cur[:n:n] })
}

func (d *dataModel) sync(failed bool) {
	if failed {
		for i := range d.versions {
			d.lost[i] = true
		}
		return
	}
	for i, vs := range d.versions {
		if !d.lost[i] {
			delete(d.versions, i)
			continue
		}
		// A truncation is durable now, whatever became of the bytes: old versions end where it cut.
		for _, v := range vs {
			c := bytes.Clone(v)
			clear(c[min(max(d.minS-i*sectorSize, 0), sectorSize):])
			if !slices.ContainsFunc(d.versions[i], func(o []byte) bool { return bytes.Equal(o, c) }) {
				d.versions[i] = append(d.versions[i], c)
			}
		}
	}
	d.durSize, d.minS, d.maxS = len(d.cur), len(d.cur), len(d.cur)
}

// verify holds what survived against the model.
func (d *dataModel) verify(t *testing.T, got []byte) {
	t.Helper()
	if n := len(got); n != d.durSize && (n < d.minS || n > d.maxS) {
		t.Fatalf("%d bytes survived; synced were %d, since then %d to %d", n, d.durSize, d.minS, d.maxS)
	}
	for i := 0; i*sectorSize < len(got); i++ {
		part := got[i*sectorSize : min(len(got), (i+1)*sectorSize)]
		vs := d.versions[i]
		if vs == nil {
			vs = [][]byte{d.sector(i)}
		}
		ok := false
		for _, v := range vs {
			// A length between two of the file's lengths shows a version up to there; a hole, or a tail past an old end, zeros.
			ok = ok || bytes.Equal(part, v[:len(part)]) || d.clipped(part, v, i)
		}
		if !ok {
			t.Fatalf("sector %d holds %x, none of its %d versions", i, part[:8], len(vs))
		}
	}
}

// clipped reports whether part is v with zeros past the smallest length: what remains of an old version once a truncation
// survived and nothing written after it did.
func (d *dataModel) clipped(part, v []byte, i int) bool {
	keep := min(max(d.minS-i*sectorSize, 0), len(part))
	return bytes.Equal(part[:keep], v[:keep]) && len(bytes.Trim(part[keep:], "\x00")) == 0
}

func (d *dataModel) step(t *testing.T, m *Mem, f File, r *rand.Rand) {
	t.Helper()
	off := r.IntN(modelSectors * sectorSize)
	switch r.IntN(12) {
	case 0, 1, 2, 3, 4, 5:
		b := make([]byte, r.IntN(5*sectorSize))
		if r.IntN(4) > 0 {
			for i := range b {
				b[i] = byte(r.Uint32())
			}
		}
		if r.IntN(2) == 0 {
			off = off / sectorSize * sectorSize
		}
		_, err := f.WriteAt(b, int64(off))
		check(t, err)
		d.write(off, b)
	case 6:
		if r.IntN(2) == 0 {
			check(t, f.Truncate(int64(off)))
			d.truncate(off)
		}
	case 7, 8:
		check(t, f.SyncData())
		d.sync(false)
	case 9:
		check(t, f.StartWriteback(int64(off), int64(r.IntN(20000))))
	case 10:
		if r.IntN(3) == 0 {
			m.Inject(Fault{Ops: OpSync})
			if f.Sync() == nil {
				t.Fatal("the fault did not fire")
			}
			d.sync(true)
		}
	case 11:
		d.verify(t, content(t, m.CrashClone(r.Uint64()), "f"))
	}
	if got := content(t, m, "f"); !bytes.Equal(got, d.cur) {
		t.Fatal("readers see something else than was written")
	}
}

// Random writes, truncations, syncs (some of which fail), write-backs and power cuts, generation after generation: what was
// synced is there, every sector is one of its versions, and readers always see the last.
func TestDataModel(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 13))
			m := NewMem(seed)
			f := durableFile(t, m, "f", nil)
			d := newDataModel(nil)
			for range 8 {
				for range 60 {
					d.step(t, m, f, r)
				}
				m.Crash(r.Uint64())
				got := content(t, m, "f")
				d.verify(t, got)
				d = newDataModel(got)
				f = must(m.OpenReadWrite("f"))
			}
			if cut := m.Stats().Cut; cut.SectorsKept == 0 || cut.SectorsLost == 0 {
				t.Errorf("the power cuts did nothing: %+v", cut)
			}
		})
	}
}

// Power cuts straight after a successful sync leave exactly what readers saw, whatever happened before, unless a sync failed.
func TestSyncedStateIsExactUnderEveryCut(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 17))
		m := NewMem(seed)
		f := durableFile(t, m, "f", nil)
		for range 50 {
			for range r.IntN(6) {
				off := int64(r.IntN(40000))
				if r.IntN(4) == 0 {
					check(t, f.Truncate(off))
				} else {
					_, err := f.WriteAt(bytes.Repeat([]byte{byte(r.IntN(3))}, r.IntN(9000)), off)
					check(t, err)
				}
				if r.IntN(3) == 0 {
					check(t, f.StartWriteback(0, 1<<20))
				}
			}
			check(t, f.SyncData())
			want := content(t, m, "f")
			for range 3 {
				c := m.CrashClone(r.Uint64())
				if !bytes.Equal(content(t, c, "f"), want) {
					t.Fatalf("seed %d: a synced file changed in a power cut", seed)
				}
				if c.Used() > m.Used() {
					t.Fatalf("seed %d: the power cut took space: %d, was %d", seed, c.Used(), m.Used())
				}
			}
		}
	}
}
