package wal

import (
	"fmt"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/vfs"
)

// Record is one record as Scan meets it.
type Record struct {
	File   string // path
	Block  int64  // where its block begins in the file
	Offset int64  // where its body begins
	Bytes  int    // size of its body
	Kind   Kind
	Group  uint64
	Seq    uint64 // number of the record among its group's
	Index  uint64
	Term   uint64
	Type   raftpb.EntryType                      // of entries
	Hard   *raftpb.HardState                     // of records that carry one
	Check  *Checkpoint                           // of records that carry one
	Latest map[uint64]uint64                     // of an index record: group to sequence number
	Bad    string                                // what is wrong, empty if sound; a hole between blocks is a record with Bad and no Kind
	Head   struct{ Durable, Prev, First uint64 } // what the block says: X, end of the log before the file, oldest file needed
}

// Scan reads a log directory without changing or locking it, oldest file first, and calls fn for every record of every
// valid block; also for those a recovery would not use (void, torn, below the oldest file needed). An error of fn ends it.
func Scan(fsys vfs.FS, dir string, fn func(Record) error) error {
	names, err := fsys.List(dir)
	if err != nil {
		return fmt.Errorf("wal: %w", err)
	}
	for _, name := range names {
		seq, ok := parseName(name)
		if !ok {
			continue
		}
		if err := scanFile(fsys, fileName(dir, seq), seq, fn); err != nil {
			return err
		}
	}
	return nil
}

func scanFile(fsys vfs.FS, name string, seq uint32, fn func(Record) error) (err error) {
	f, err := fsys.Open(name)
	if err != nil {
		return fmt.Errorf("wal: %w", err)
	}
	defer func() { _ = f.Close() }() // read only
	r := reader{f: f, name: name, seq: seq}
	if r.size, err = f.Size(); err != nil {
		return fmt.Errorf("wal: %w", err)
	}
	for off := int64(headerSize); off < r.size; {
		b, ok, err := r.blockAt(off, r.size, false)
		if err != nil {
			return err
		}
		if !ok {
			_, next, more, err := r.nextFrame(off+blockAlign, r.size)
			if err != nil || !more {
				return err
			}
			if err := fn(Record{File: name, Block: off, Offset: off, Bad: fmt.Sprintf("no valid block before %d", next)}); err != nil {
				return err
			}
			off = next
			continue
		}
		if err := scanBlock(name, b, fn); err != nil {
			return err
		}
		off = b.end()
	}
	return nil
}

func scanBlock(name string, b *block, fn func(Record) error) error {
	at := b.off + frameSize + int64(b.dirLen)
	for i := range b.recs {
		rec := &b.recs[i]
		r := Record{File: name, Block: b.off, Offset: at, Bytes: int(rec.bodyLen), Kind: rec.kind, Group: rec.group, Seq: rec.seq, Index: rec.index, Term: rec.term}
		r.Head.Durable, r.Head.Prev, r.Head.First = uint64(b.durable), uint64(b.prev), uint64(b.first)
		at += int64(rec.bodyLen)
		if b.bad[i] {
			r.Bad = "the body does not have the checksum it was written with"
		}
		switch rec.kind {
		case KindEntry, KindFullEntry:
			r.Type = raftpb.EntryType(rec.flag)
		case KindCheckpoint, KindInstall, KindCreate, KindFullBegin:
			if cp, _, err := decodeBase(b.body[i], rec.index, rec.term); err == nil {
				r.Check = &cp
			}
		case KindIndex:
			r.Latest = map[uint64]uint64{}
			for p := b.body[i]; len(p) >= 16; p = p[16:] {
				r.Latest[le.Uint64(p)] = le.Uint64(p[8:])
			}
		}
		if hs, ok := decodeHardState(rec.inline); ok {
			r.Hard = &hs
		}
		if err := fn(r); err != nil {
			return err
		}
	}
	return nil
}
