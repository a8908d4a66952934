package wal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"path/filepath"
	"strconv"
	"strings"

	"go.etcd.io/raft/v3/raftpb"
)

// The byte layout is described in docs/wal-format.md; change both together.
const (
	formatVersion = 1

	headerMagic = "CHRONWAL"
	headerSize  = 4096 // one page, so that the first block begins on a page

	// blockAlign: every block begins on a page of its own. So no page that was made durable is ever written again, and a
	// write never has to read the rest of a page from a recycled file first.
	blockAlign = 4096
	blockMagic = 0x42574843 // "CHWB"
	frameSize  = 64
	recordSize = 48

	maxDirBytes  = 64 << 20
	maxEntrySize = 1<<30 - 1

	fileSuffix  = ".wal"
	spareSuffix = ".spare"
	lockName    = "LOCK"
)

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	zeroPage   = make([]byte, blockAlign)
)

// Kind says what a record means.
type Kind uint8

// The kinds of records. Values are on disk: never change one.
const (
	KindEntry      Kind = 1  // one raft entry; replaces everything of its group from its index on
	KindHardState  Kind = 2  // term, vote, commit
	KindCheckpoint Kind = 3  // a durable state of the state machine; repeats the hard state
	KindInstall    Kind = 4  // a snapshot mark: replaces checkpoint and log
	KindFullBegin  Kind = 5  // a group carried forward: hard state and checkpoint; takes effect with KindFullEnd
	KindFullEntry  Kind = 6  // a live entry of a group carried forward
	KindFullEnd    Kind = 7  // what came since KindFullBegin replaces everything before it
	KindRemove     Kind = 8  // the group is gone
	KindCreate     Kind = 9  // a group's first state
	KindIndex      Kind = 10 // the groups of the file before, with their latest sequence numbers
)

// String implements fmt.Stringer.
func (k Kind) String() string {
	names := [...]string{"?", "entry", "hard-state", "checkpoint", "install", "full-begin", "full-entry", "full-end", "remove", "create", "index"}
	if int(k) < len(names) {
		return names[k]
	}
	return "kind-" + strconv.Itoa(int(k))
}

// pos is a place in the log: file sequence number in the high half, offset in the low one. Places compare as numbers.
type pos uint64

func mkPos(seq uint32, off int64) pos { return pos(uint64(seq)<<32 | uint64(uint32(off))) }
func (p pos) seq() uint32             { return uint32(p >> 32) }
func (p pos) off() int64              { return int64(uint32(p)) }

// frame heads a block: one group commit, or a part of one.
type frame struct {
	blockLen uint32 // frame, directory and bodies, in bytes, without the padding to the next page
	dirLen   uint32
	count    uint32 // records in the directory
	durable  pos    // X: earlier fsyncs covered everything below
	prev     pos    // where the log ended before this file; what lies between there and this file is void
	first    uint32 // the oldest file that is needed
}

// record is one directory entry of a block.
type record struct {
	kind    Kind
	flag    uint8 // of an entry, its type; flagDamaged, flagAll
	bodyLen uint32
	bodyCRC uint32
	group   uint64
	seq     uint64 // counts the group's records: a jump means that one was lost
	index   uint64
	term    uint64
	inline  []byte
}

const (
	flagDamaged = 1 // KindFullBegin: the group is damaged
	flagAll     = 1 // KindIndex: lists every group, not only those of the file before
)

// seedCRC begins a checksum that only fits this file's generation (its sequence number is never used twice) and this
// place, so that blocks left over in a recycled file never validate.
func seedCRC(seq uint32, off int64) uint32 {
	var b [16]byte
	le.PutUint64(b[0:], uint64(seq))
	le.PutUint64(b[8:], uint64(off))
	return crc32.Checksum(b[:], castagnoli)
}

func fileName(dir string, seq uint32) string {
	return filepath.Join(dir, fmt.Sprintf("%010d%s", seq, fileSuffix))
}

func parseName(name string) (seq uint32, ok bool) {
	digits, found := strings.CutSuffix(name, fileSuffix)
	if !found || len(digits) != 10 {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 32)
	return uint32(n), err == nil && n > 0
}

// encodeHeader returns the first page of a file.
func encodeHeader(seq uint32) []byte {
	b := make([]byte, headerSize)
	copy(b, headerMagic)
	le.PutUint32(b[8:], formatVersion)
	le.PutUint32(b[16:], seq)
	le.PutUint32(b[12:], crc32.Update(crc32.Checksum(b[:12], castagnoli), castagnoli, b[16:]))
	return b
}

// checkHeader verifies a file's first page. A version that is newer in an intact header is ErrNewerFormat; a later format
// keeps magic, version and checksum where they are.
func checkHeader(b []byte, seq uint32) error {
	if len(b) < headerSize || string(b[:8]) != headerMagic {
		return fmt.Errorf("no log file header")
	}
	if le.Uint32(b[12:]) != crc32.Update(crc32.Checksum(b[:12], castagnoli), castagnoli, b[16:headerSize]) {
		return fmt.Errorf("header checksum does not match")
	}
	if v := le.Uint32(b[8:]); v > formatVersion {
		return fmt.Errorf("%w: version %d, this server knows %d; start it with the version that wrote it", ErrNewerFormat, v, formatVersion)
	}
	if got := le.Uint32(b[16:]); got != seq {
		return fmt.Errorf("header says file %d", got)
	}
	return nil
}

// putFrame completes a block's head, whose directory is already in b behind the frame's room.
func putFrame(b []byte, f frame, seq uint32, off int64) {
	le.PutUint32(b[0:], blockMagic)
	le.PutUint32(b[8:], f.blockLen)
	le.PutUint32(b[12:], f.dirLen)
	le.PutUint32(b[16:], f.count)
	le.PutUint32(b[20:], 0)
	le.PutUint64(b[24:], uint64(f.durable))
	le.PutUint64(b[32:], uint64(f.prev))
	le.PutUint64(b[40:], uint64(f.first))
	le.PutUint64(b[48:], 0)
	le.PutUint64(b[56:], 0)
	le.PutUint32(b[4:], crc32.Update(seedCRC(seq, off), castagnoli, b[8:]))
}

// parseFrame reads the fixed part of a frame; the checksum needs the directory and is checkFrame's.
func parseFrame(b []byte, room int64) (frame, bool) {
	if len(b) < frameSize || le.Uint32(b) != blockMagic {
		return frame{}, false
	}
	f := frame{
		blockLen: le.Uint32(b[8:]), dirLen: le.Uint32(b[12:]), count: le.Uint32(b[16:]),
		durable: pos(le.Uint64(b[24:])), prev: pos(le.Uint64(b[32:])), first: uint32(le.Uint64(b[40:])),
	}
	ok := int64(f.blockLen) <= room && f.dirLen <= maxDirBytes && frameSize+uint64(f.dirLen) <= uint64(f.blockLen) &&
		uint64(f.count)*recordSize <= uint64(f.dirLen)
	return f, ok
}

func checkFrame(head []byte, seq uint32, off int64) bool {
	return le.Uint32(head[4:]) == crc32.Update(seedCRC(seq, off), castagnoli, head[8:])
}

func appendRecord(dst []byte, r *record) []byte {
	var b [recordSize]byte
	b[0], b[1] = byte(r.kind), r.flag
	le.PutUint16(b[2:], uint16(len(r.inline)))
	le.PutUint32(b[4:], r.bodyLen)
	le.PutUint32(b[8:], r.bodyCRC)
	le.PutUint64(b[16:], r.group)
	le.PutUint64(b[24:], r.seq)
	le.PutUint64(b[32:], r.index)
	le.PutUint64(b[40:], r.term)
	dst = append(dst, b[:]...)
	return append(dst, r.inline...)
}

// parseDir decodes a directory whose checksum was right; errors mean a writer of another mind.
func parseDir(dir []byte, f frame, into []record) ([]record, error) {
	room := uint64(f.blockLen) - frameSize - uint64(f.dirLen)
	for range f.count {
		if len(dir) < recordSize {
			return nil, fmt.Errorf("directory is too short")
		}
		r := record{kind: Kind(dir[0]), flag: dir[1], bodyLen: le.Uint32(dir[4:]), bodyCRC: le.Uint32(dir[8:]),
			group: le.Uint64(dir[16:]), seq: le.Uint64(dir[24:]), index: le.Uint64(dir[32:]), term: le.Uint64(dir[40:])}
		n := recordSize + int(le.Uint16(dir[2:]))
		if len(dir) < n || uint64(r.bodyLen) > room {
			return nil, fmt.Errorf("record exceeds its block")
		}
		r.inline = dir[recordSize:n]
		room -= uint64(r.bodyLen)
		dir = dir[n:]
		into = append(into, r)
	}
	return into, nil
}

const hardStateSize = 24

func encodeHardState(hs raftpb.HardState) []byte {
	b := make([]byte, hardStateSize)
	le.PutUint64(b[0:], hs.Term)
	le.PutUint64(b[8:], hs.Vote)
	le.PutUint64(b[16:], hs.Commit)
	return b
}

func decodeHardState(b []byte) (raftpb.HardState, bool) {
	if len(b) < hardStateSize {
		return raftpb.HardState{}, false
	}
	return raftpb.HardState{Term: le.Uint64(b), Vote: le.Uint64(b[8:]), Commit: le.Uint64(b[16:])}, true
}

// encodeBase returns the body of a record that carries a checkpoint: the damage (if any), the ConfState, the state.
func encodeBase(cp *Checkpoint, d *Damage) ([]byte, error) {
	conf, err := cp.ConfState.Marshal()
	if err != nil {
		return nil, fmt.Errorf("wal: encode ConfState: %w", err)
	}
	var dmg []byte
	if d != nil {
		dmg = le.AppendUint64(dmg, uint64(d.Offset))
		dmg = le.AppendUint32(dmg, uint32(len(d.File)))
		dmg = append(append(dmg, d.File...), d.Reason...)
	}
	b := make([]byte, 0, 8+len(dmg)+len(conf)+len(cp.State))
	b = le.AppendUint32(b, uint32(len(dmg)))
	b = le.AppendUint32(b, uint32(len(conf)))
	b = append(append(append(b, dmg...), conf...), cp.State...)
	return b, nil
}

// decodeBase is encodeBase's inverse; the checkpoint's State is a copy.
func decodeBase(b []byte, index, term uint64) (Checkpoint, *Damage, error) {
	cp := Checkpoint{Index: index, Term: term}
	if len(b) < 8 {
		return cp, nil, fmt.Errorf("checkpoint body of %d bytes", len(b))
	}
	nd, nc := uint64(le.Uint32(b)), uint64(le.Uint32(b[4:]))
	if b = b[8:]; nd+nc > uint64(len(b)) {
		return cp, nil, fmt.Errorf("checkpoint body is too short")
	}
	dmg, conf, state := b[:nd], b[nd:nd+nc], b[nd+nc:]
	if err := cp.ConfState.Unmarshal(conf); err != nil {
		return cp, nil, fmt.Errorf("ConfState: %w", err)
	}
	if len(state) > 0 {
		cp.State = append([]byte(nil), state...)
	}
	if len(dmg) == 0 {
		return cp, nil, nil
	}
	if len(dmg) < 12 || uint64(le.Uint32(dmg[8:]))+12 > uint64(len(dmg)) {
		return cp, nil, fmt.Errorf("damage note is too short")
	}
	n := 12 + int(le.Uint32(dmg[8:]))
	return cp, &Damage{Offset: int64(le.Uint64(dmg)), File: string(dmg[12:n]), Reason: string(dmg[n:])}, nil
}

func alignUp(n int64) int64 { return (n + blockAlign - 1) &^ (blockAlign - 1) }
