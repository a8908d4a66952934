package wal

import (
	"bytes"
	"hash/crc32"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/vfs"
)

// FuzzBlock feeds the decoders of a block's head and directory, past its checksum.
func FuzzBlock(f *testing.F) {
	var dir []byte
	for _, r := range []record{
		{kind: KindEntry, bodyLen: 5, group: 7, seq: 1, index: 2, term: 1},
		{kind: KindCheckpoint, group: 7, seq: 2, index: 2, term: 1, inline: encodeHardState(raftpb.HardState{Term: 3, Vote: 2, Commit: 1})},
	} {
		dir = appendRecord(dir, &r)
	}
	b := append(make([]byte, frameSize), dir...)
	putFrame(b, frame{blockLen: 4096, dirLen: uint32(len(dir)), count: 2, first: 1}, 3, 4096)
	f.Add(b, int64(4096))
	f.Add(b[:frameSize], int64(1<<40))
	f.Fuzz(func(t *testing.T, b []byte, room int64) {
		fr, ok := parseFrame(b, room)
		if !ok {
			return
		}
		if int64(fr.blockLen) > room || fr.dirLen > maxDirBytes || uint64(fr.count)*recordSize > uint64(fr.dirLen) {
			t.Fatalf("%+v accepted with room for %d", fr, room)
		}
		if len(b) < frameSize+int(fr.dirLen) {
			return // the reader asks the file for it, and there is no more
		}
		recs, err := parseDir(b[frameSize:frameSize+int(fr.dirLen)], fr, nil)
		if err != nil {
			return
		}
		if len(recs) != int(fr.count) {
			t.Fatalf("%d records of %d", len(recs), fr.count)
		}
		var again []byte
		bodies := uint64(0)
		for i := range recs {
			again = appendRecord(again, &recs[i])
			bodies += uint64(recs[i].bodyLen)
			if hs, ok := decodeHardState(recs[i].inline); ok && !bytes.Equal(encodeHardState(hs), recs[i].inline[:hardStateSize]) {
				t.Fatalf("hard state %+v", hs)
			}
		}
		if bodies+frameSize+uint64(fr.dirLen) > uint64(fr.blockLen) {
			t.Fatalf("bodies of %d bytes in a block of %d", bodies, fr.blockLen)
		}
		if more, err := parseDir(again, frame{blockLen: fr.blockLen, dirLen: uint32(len(again)), count: fr.count}, nil); err != nil || len(more) != len(recs) {
			t.Fatalf("written again it reads as %d records, %v", len(more), err)
		}
	})
}

// FuzzBase feeds what a checkpoint's record carries.
func FuzzBase(f *testing.F) {
	for _, d := range []*Damage{nil, {File: "0000000001.wal", Offset: 4096, Reason: "bits"}} {
		b, err := encodeBase(&Checkpoint{ConfState: raftpb.ConfState{Voters: []uint64{1, 2, 3}}, State: []byte("state")}, d)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		cp, d, err := decodeBase(b, 9, 3)
		if err != nil {
			return
		}
		again, err := encodeBase(&cp, d)
		if err != nil {
			t.Fatal(err)
		}
		cp2, d2, err := decodeBase(again, 9, 3)
		if err != nil || !bytes.Equal(cp.State, cp2.State) || (d == nil) != (d2 == nil) || d != nil && *d != *d2 {
			t.Fatalf("%+v %+v comes back as %+v %+v, %v", cp, d, cp2, d2, err)
		}
	})
}

// FuzzAnchor feeds the file that says how far the log was durable: any bytes mean a position or nothing, never a failure to
// open for other reasons than a newer version.
func FuzzAnchor(f *testing.F) {
	f.Add(encodeAnchor(pos(1<<40 | 7)))
	f.Add([]byte(anchorMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, b := range [][]byte{b, sealedAnchor(b)} {
			disk := vfs.NewMem(1)
			writeWhole(t, disk, "/"+anchorName, b)
			x, err := readAnchor(disk, "/")
			if err != nil {
				if len(b) < anchorSize || le.Uint32(b[8:]) <= formatVersion {
					t.Fatal(err)
				}
				continue
			}
			if x != 0 && !bytes.Equal(b[16:24], encodeAnchor(x)[16:24]) {
				t.Fatalf("%x reads as %d", b, x)
			}
		}
	})
}

func sealedAnchor(b []byte) []byte {
	if len(b) < anchorSize {
		return b
	}
	b = bytes.Clone(b[:anchorSize])
	copy(b, anchorMagic)
	le.PutUint32(b[12:], crc32.Update(crc32.Checksum(b[:12], castagnoli), castagnoli, b[16:]))
	return b
}

func writeWhole(t testing.TB, fsys vfs.FS, name string, b []byte) {
	t.Helper()
	f, err := fsys.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// FuzzScan feeds whole log files, with the checksums of header and first block put right, to the reader that tools use and to
// Open: neither panics, and Open says what is wrong or gives a log that takes writes.
func FuzzScan(f *testing.F) {
	img, _ := settledLog(f, 100, true)
	for _, name := range img.logs() {
		b := img[name]
		f.Add(b[headerSize:min(len(b), headerSize+3*blockAlign)], true)
		break
	}
	f.Add([]byte{}, false)
	f.Fuzz(func(t *testing.T, body []byte, sealed bool) {
		if len(body) > 64<<10 {
			return
		}
		file := append(encodeHeader(1), body...)
		if sealed && len(body) > frameSize {
			reseal(file, 1, headerSize)
		}
		disk := vfs.NewMem(1)
		if err := disk.MkdirAll("/wal"); err != nil {
			t.Fatal(err)
		}
		writeWhole(t, disk, fileName("/wal", 1), file)
		if err := Scan(disk, "/wal", func(Record) error { return nil }); err != nil {
			t.Logf("scan: %v", err)
		}
		l, err := Open(Options{FS: disk, Dir: "/wal", Clock: clock.NewSim(time.Unix(0, 0)), FileBytes: minFileBytes})
		if err != nil {
			return
		}
		const fresh = 1 << 60
		g, err := l.Create(fresh, firstState(), nil)
		if err != nil {
			t.Fatalf("opened, and takes no group: %v", err)
		}
		drain(l)
		if g.Checkpoint().Index != firstState().Index {
			t.Fatalf("checkpoint %+v", g.Checkpoint())
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
