package partition

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// Two messages bring a follower up to what a snapshot describes (RAFT rule 13). Both are big endian.
//
// Request: uint8 version 1, uint8 chunks wanted, uint16 the size of a chunk in KiB (0: as the sender likes), uint64 session, int64 from, int64 to (exclusive), uint32 CRC-32C of
// what comes before.
//
// Chunk: uint8 version 2, uint8 status, uint8 1 if it is the last for its request, uint8 1 if nothing acknowledged waits for this
// replica, so that it may be throttled, 3 if the sender does throttle it, uint64 session, int64 from as asked,
// int64 log start, int64 end, int64 holes, int64 horizon, uint32 CRC-32C of what comes before and of the rest, then whole record
// batches: all that the sender has of [from, end), of which the first may begin below from. Compaction may have left none. Below
// holes batches may be missing between others; tombstones below horizon may be missing altogether, so that a log which ends below it
// must be replaced whole.
//
// Requests name offsets, never byte positions: segments roll differently on every replica.
type deltaRequest struct {
	chunks   uint8
	kib      uint16
	session  uint64
	from, to int64
	peer     sender // who asks
	told     bool   // that it has to wait
}

type deltaChunk struct {
	status  chunkStatus
	last    bool
	spare   bool
	slowed  bool // with spare: by the sender's throttle
	session uint64
	from    int64
	start   int64
	end     int64
	holes   int64
	horizon int64
	batches []byte
}

type chunkStatus uint8

const (
	chunkOK chunkStatus = iota + 1
	// chunkBelowStart: from lies below this replica's log start, which the chunk names.
	chunkBelowStart
	// chunkUnavailable: this replica can't serve it now.
	chunkUnavailable
	// chunkThrottled: it comes, once the sender's leader.replication.throttled.rate has room.
	chunkThrottled
)

const (
	deltaVersion     = 1
	chunkVersion     = 2
	deltaRequestSize = 32
	deltaChunkHeader = 56
	deltaChunkSum    = deltaChunkHeader - 4
)

func (r *deltaRequest) encode() []byte {
	be := binary.BigEndian
	b := make([]byte, 0, deltaRequestSize)
	b = append(b, deltaVersion, r.chunks)
	b = be.AppendUint16(b, r.kib)
	b = be.AppendUint64(b, r.session)
	b = be.AppendUint64(b, uint64(r.from))
	b = be.AppendUint64(b, uint64(r.to))
	return be.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeDeltaRequest(b []byte) (deltaRequest, error) {
	be := binary.BigEndian
	if len(b) != deltaRequestSize || b[0] != deltaVersion || be.Uint32(b[28:]) != crc32.Checksum(b[:28], castagnoli) {
		return deltaRequest{}, fmt.Errorf("%w: request of %d bytes", errDelta, len(b))
	}
	r := deltaRequest{chunks: b[1], kib: be.Uint16(b[2:]), session: be.Uint64(b[4:]), from: int64(be.Uint64(b[12:])), to: int64(be.Uint64(b[20:]))}
	if r.from < 0 || r.to <= r.from || r.chunks == 0 || r.chunks > maxWindow {
		return deltaRequest{}, fmt.Errorf("%w: %d chunks of [%d, %d)", errDelta, r.chunks, r.from, r.to)
	}
	return r, nil
}

func (c *deltaChunk) encode() []byte {
	be := binary.BigEndian
	b := make([]byte, 0, deltaChunkHeader+len(c.batches))
	b = append(b, chunkVersion, byte(c.status), 0, 0)
	if c.last {
		b[2] = 1
	}
	switch {
	case c.spare && c.slowed:
		b[3] = 3
	case c.spare:
		b[3] = 1
	}
	b = be.AppendUint64(b, c.session)
	b = be.AppendUint64(b, uint64(c.from))
	b = be.AppendUint64(b, uint64(c.start))
	b = be.AppendUint64(b, uint64(c.end))
	b = be.AppendUint64(b, uint64(c.holes))
	b = be.AppendUint64(b, uint64(c.horizon))
	b = be.AppendUint32(b, crc32.Update(crc32.Checksum(b, castagnoli), castagnoli, c.batches))
	return append(b, c.batches...)
}

// decodeDeltaChunk checks a chunk's own CRC; the batches in it are checked one by one before they are appended.
func decodeDeltaChunk(b []byte) (deltaChunk, error) {
	be := binary.BigEndian
	if len(b) < deltaChunkHeader || b[0] != chunkVersion {
		return deltaChunk{}, fmt.Errorf("%w: chunk of %d bytes", errDelta, len(b))
	}
	if be.Uint32(b[deltaChunkSum:]) != crc32.Update(crc32.Checksum(b[:deltaChunkSum], castagnoli), castagnoli, b[deltaChunkHeader:]) {
		return deltaChunk{}, fmt.Errorf("%w: chunk CRC", errDelta)
	}
	c := deltaChunk{
		status: chunkStatus(b[1]), last: b[2] == 1, spare: b[3]&1 != 0, slowed: b[3] == 3, session: be.Uint64(b[4:]),
		from: int64(be.Uint64(b[12:])), start: int64(be.Uint64(b[20:])),
		end: int64(be.Uint64(b[28:])), holes: int64(be.Uint64(b[36:])), horizon: int64(be.Uint64(b[44:])), batches: b[deltaChunkHeader:],
	}
	if c.status < chunkOK || c.status > chunkThrottled || c.from < 0 || c.start < 0 || c.holes < 0 || c.horizon < 0 ||
		(c.status == chunkOK) != (c.end > c.from) || c.status != chunkOK && len(c.batches) > 0 {
		return deltaChunk{}, fmt.Errorf("%w: chunk status %d with %d bytes", errDelta, c.status, len(c.batches))
	}
	return c, nil
}
