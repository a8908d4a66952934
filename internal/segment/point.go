package segment

import (
	"bytes"
	"fmt"
	"hash/crc32"
)

// pointFile is the one file that Kafka does not have (it keeps one recovery-point-offset-checkpoint for all logs). It is
// written in place after each flush and not synced: after a power cut an older one only makes recovery read more. Its 256
// bytes lie within one sector, so that it is old or new.
const (
	pointFile  = "recovery-point"
	pointBytes = 256
)

// recoveryPoint says up to where a log is on disk, and what its active segment's indexes held then.
type recoveryPoint struct {
	base, pos, offset int64 // segment, byte in it, and offset up to which everything is on disk
	maxTs, maxOff     int64 // as in indexer, at pos
	since             int64 // as in indexer, at pos; -1: entries waited that were not in the files
	ilen, tlen        int64 // bytes of the index files that belong to [0, pos)
	isync, tsync      int64 // of these, how many were on disk
	icrc, tcrc        uint32
	esum              int64 // CRC-32C of leader-epoch-checkpoint, -1: not known
}

func (p recoveryPoint) encode() []byte {
	b := fmt.Appendf(nil, "0 %d %d %d %d %d %d %d %d %d %d %d %d %d", p.base, p.pos, p.offset, p.maxTs, p.maxOff, p.since,
		p.ilen, p.tlen, p.isync, p.tsync, p.icrc, p.tcrc, p.esum)
	out := bytes.Repeat([]byte{' '}, pointBytes)
	n := copy(out, b)
	copy(out[n:], fmt.Sprintf(" %08x", crc32.Checksum(b, castagnoli)))
	out[pointBytes-1] = '\n'
	return out
}

// decodePoint returns false for anything but a whole, sound recovery point.
func decodePoint(b []byte) (recoveryPoint, bool) {
	var p recoveryPoint
	var version int
	var sum uint32
	text := bytes.TrimRight(b, " \n")
	cut := bytes.LastIndexByte(text, ' ')
	if len(b) != pointBytes || cut < 0 {
		return p, false
	}
	if n, err := fmt.Sscanf(string(text[cut+1:]), "%x", &sum); n != 1 || err != nil || sum != crc32.Checksum(text[:cut], castagnoli) {
		return p, false
	}
	p.esum = -1
	fields := []any{&version, &p.base, &p.pos, &p.offset, &p.maxTs, &p.maxOff, &p.since,
		&p.ilen, &p.tlen, &p.isync, &p.tsync, &p.icrc, &p.tcrc, &p.esum}
	has := len(bytes.Fields(text[:cut]))
	n, err := fmt.Sscan(string(text[:cut]), fields[:min(max(has, 13), len(fields))]...) // the last came later
	ok := n >= 13 && err == nil && version == 0 && p.base >= 0 && p.pos >= 0 && p.offset >= p.base &&
		p.ilen >= p.isync && p.tlen >= p.tsync && p.isync >= 0 && p.tsync >= 0 &&
		p.ilen%indexEntrySize == 0 && p.tlen%timeEntrySize == 0 && p.isync%indexEntrySize == 0 && p.tsync%timeEntrySize == 0
	return p, ok
}
