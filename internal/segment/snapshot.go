package segment

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/chronik-go/chronik/internal/vfs"
)

// ProducerEntry is what a producer snapshot holds of one producer: its last batch (Kafka's ProducerStateManager).
type ProducerEntry struct {
	ProducerID       int64
	ProducerEpoch    int16
	LastSequence     int32 // of the last record; -1 if none
	LastOffset       int64 // of the last record; -1 if none
	OffsetDelta      int32 // last offset - base offset of the last batch
	Timestamp        int64 // ms since 1970, of the last batch
	CoordinatorEpoch int32 // of the last transaction marker; -1 if none
	TxnFirstOffset   int64 // first offset of the open transaction; -1 if none
}

const (
	snapshotExt        = ".snapshot"
	snapshotVersion    = 1
	snapshotHeader     = 2 + 4 + 4 // version, CRC-32C of what follows it, count
	snapshotEntry      = 8 + 2 + 4 + 8 + 4 + 8 + 4 + 8
	maxProducerEntries = 16 << 20
)

// ProducerSnapshotName is the name Kafka gives the snapshot of the producers' state at offset.
func ProducerSnapshotName(offset int64) string { return fileName(offset, snapshotExt) }

// WriteProducerSnapshot writes a snapshot in Kafka's format, whole or not at all. It is durable once the directory has been
// synced, which is the caller's to do.
func WriteProducerSnapshot(fsys vfs.FS, name string, entries []ProducerEntry) error {
	be := binary.BigEndian
	b := make([]byte, snapshotHeader, snapshotHeader+len(entries)*snapshotEntry)
	be.PutUint16(b, snapshotVersion)
	be.PutUint32(b[6:], uint32(len(entries)))
	for _, e := range entries {
		b = be.AppendUint64(b, uint64(e.ProducerID))
		b = be.AppendUint16(b, uint16(e.ProducerEpoch))
		b = be.AppendUint32(b, uint32(e.LastSequence))
		b = be.AppendUint64(b, uint64(e.LastOffset))
		b = be.AppendUint32(b, uint32(e.OffsetDelta))
		b = be.AppendUint64(b, uint64(e.Timestamp))
		b = be.AppendUint32(b, uint32(e.CoordinatorEpoch))
		b = be.AppendUint64(b, uint64(e.TxnFirstOffset))
	}
	be.PutUint32(b[2:], crc32.Checksum(b[6:], castagnoli))
	return replaceFile(fsys, name, b)
}

// ReadProducerSnapshot reads what WriteProducerSnapshot or Kafka wrote. A file that is not whole is a *DamageError, a missing
// one an *IOError that matches fs.ErrNotExist.
func ReadProducerSnapshot(fsys vfs.FS, name string) ([]ProducerEntry, error) {
	b, err := readFile(fsys, name, snapshotHeader+maxProducerEntries*snapshotEntry)
	if err != nil {
		return nil, err
	}
	if b == nil {
		return nil, &IOError{Op: "open", File: name, Err: errNotExist}
	}
	be := binary.BigEndian
	if len(b) < snapshotHeader {
		return nil, &DamageError{File: name, Offset: int64(len(b)), Reason: "shorter than a header"}
	}
	if v := be.Uint16(b); v != snapshotVersion {
		return nil, &DamageError{File: name, Reason: fmt.Sprintf("version %d", v)}
	}
	if sum := crc32.Checksum(b[6:], castagnoli); sum != be.Uint32(b[2:]) {
		return nil, &DamageError{File: name, Offset: 2, Reason: "CRC-32C does not match"}
	}
	n := int64(int32(be.Uint32(b[6:])))
	b = b[snapshotHeader:]
	if n < 0 || n*snapshotEntry != int64(len(b)) {
		return nil, &DamageError{File: name, Offset: 6, Reason: fmt.Sprintf("%d entries in %d bytes", n, len(b))}
	}
	out := make([]ProducerEntry, n)
	for i := range out {
		e := b[i*snapshotEntry:]
		out[i] = ProducerEntry{
			ProducerID:       int64(be.Uint64(e)),
			ProducerEpoch:    int16(be.Uint16(e[8:])),
			LastSequence:     int32(be.Uint32(e[10:])),
			LastOffset:       int64(be.Uint64(e[14:])),
			OffsetDelta:      int32(be.Uint32(e[22:])),
			Timestamp:        int64(be.Uint64(e[26:])),
			CoordinatorEpoch: int32(be.Uint32(e[34:])),
			TxnFirstOffset:   int64(be.Uint64(e[38:])),
		}
	}
	return out, nil
}
