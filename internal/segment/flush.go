package segment

import (
	"hash/crc32"
	"path/filepath"
)

const (
	// indexSyncBytes is how much a segment grows between two syncs of its index. After a power cut at most this much is
	// walked again to rebuild it.
	indexSyncBytes = 64 << 20
	// writebackBytes is how much must be dirty before the kernel is asked to begin writing.
	writebackBytes = 1 << 20
)

// flushItem is a segment with bytes to sync, as it was when the flush began.
type flushItem struct {
	s          *segment
	sealed     bool
	syncIndex  bool
	log        bool
	ilen, tlen int64
	size       int64
}

// Flush makes durable everything appended before the call, with the names of new files and the epochs, and returns its end
// offset. It is safe beside Append and reads. After an error nothing of it may be believed, and it is not retried.
func (l *Log) Flush() (end int64, err error) {
	l.flushMu.Lock()
	defer l.flushMu.Unlock()
	if err := l.usable(); err != nil {
		return 0, err
	}
	if err := l.files.err(); err != nil {
		return 0, l.fail(err)
	}
	if err := l.flush(false); err != nil {
		return 0, l.fail(err)
	}
	return l.FlushedOffset(), nil
}

// flushWork is what one flush has to make durable.
type flushWork struct {
	end         int64
	point       recoveryPoint
	items       []flushItem
	epochs      []byte // to be written, or nil
	newNames    bool
	newPoint    bool
	parentUnset bool
}

// flush does it; with all, the active segment's index as well. The caller holds flushMu, and appendMu if all is set.
func (l *Log) flush(all bool) error {
	l.mu.Lock()
	w := flushWork{end: l.end, newNames: l.newNames, newPoint: !l.pointOn, parentUnset: !l.parentDone}
	w.point, w.items = l.beginFlushLocked(all)
	if l.epochsDirty {
		w.epochs = l.epochs.encode()
		l.epochSum = int64(crc32.Checksum(w.epochs, castagnoli))
	}
	w.point.esum = l.epochSum
	nothing := len(w.items) == 0 && !l.newNames && !l.epochsDirty && l.flushed == w.end && l.pointOn
	l.newNames, l.epochsDirty = false, false
	l.mu.Unlock()
	if nothing && !all {
		return nil
	}
	err := l.doFlush(&w)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		// If this was a full disk, the next flush has the same to do.
		for _, it := range w.items {
			it.s.dirty = it.s.dirty || it.log
		}
		l.newNames = l.newNames || w.newNames
		l.epochsDirty = l.epochsDirty || w.epochs != nil
		return err
	}
	l.flushed, l.pointOn, l.parentDone = w.end, true, true
	l.pointBase = w.point.base
	l.clean = all
	return nil
}

func (l *Log) doFlush(w *flushWork) error {
	for _, it := range w.items {
		if err := l.syncItem(it, &w.point); err != nil {
			return err
		}
	}
	fsys := l.files.fs
	if w.epochs != nil {
		w.newNames = true
		if err := replaceFile(fsys, l.file(epochFile), w.epochs); err != nil {
			return err
		}
	}
	if w.newPoint {
		w.newNames = true
		if _, err := l.point.acquire(true); err != nil {
			return err
		}
		l.point.release()
	}
	if w.newNames {
		if err := syncDir(fsys, l.dir); err != nil {
			return err
		}
	}
	if w.parentUnset {
		if err := syncDir(fsys, filepath.Dir(l.dir)); err != nil {
			return err
		}
	}
	return writeSlot(&l.point, false, w.point.encode(), 0)
}

// beginFlushLocked takes what is dirty, and describes the state that holds once it is synced.
func (l *Log) beginFlushLocked(all bool) (recoveryPoint, []flushItem) {
	var items []flushItem
	for i, s := range l.segs {
		active := i == len(l.segs)-1
		grown := s.loaded && s.hasIndex && s.size-s.syncedAt >= indexSyncBytes
		unsynced := s.loaded && s.hasIndex && (s.ilen > s.isync || s.tlen > s.tsync || s.index.dirty.Load() || s.times.dirty.Load())
		it := flushItem{s: s, sealed: !active, log: s.dirty, ilen: s.ilen, tlen: s.tlen, size: s.size}
		it.syncIndex = unsynced && (!active || all || grown)
		if it.log || it.syncIndex {
			s.dirty = false
			s.nextICRC, s.nextTCRC = 0, 0
			items = append(items, it)
		}
	}
	p := recoveryPoint{base: l.end, offset: l.end}
	if s := l.activeLocked(); s != nil {
		p = recoveryPoint{base: s.base, pos: s.size, offset: l.end, maxTs: s.x.maxTs, maxOff: s.x.maxOff, since: -1,
			ilen: s.ilen, tlen: s.tlen, isync: s.isync, tsync: s.tsync, icrc: s.icrc, tcrc: s.tcrc}
		if len(s.x.idx) == 0 && len(s.x.tim) == 0 {
			p.since = s.x.since
		}
	}
	return p, items
}

// syncItem syncs one segment's files; a segment deleted meanwhile needs none (Tidy and Flush exclude each other, a file
// that was gone before the flush began is not among its items).
func (l *Log) syncItem(it flushItem, point *recoveryPoint) error {
	s := it.s
	if it.log {
		if err := s.log.sync(); err != nil {
			return err
		}
	}
	if !it.syncIndex {
		return nil
	}
	if err := s.index.sync(); err != nil {
		return err
	}
	if err := s.times.sync(); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s.isync, s.tsync, s.icrc, s.tcrc = it.ilen, it.tlen, s.nextICRC, s.nextTCRC
	s.syncedAt = it.size
	if point.base == s.base {
		point.isync, point.tsync, point.icrc, point.tcrc = it.ilen, it.tlen, 0, 0
	}
	return nil
}

// Writeback asks the kernel to begin writing what was appended, so that the next Flush finds little to do. It is cheap and
// promises nothing; call it as often as appending.
func (l *Log) Writeback() {
	l.mu.Lock()
	s := l.activeLocked()
	if s == nil || l.closed || s.size-s.writtenBack < writebackBytes {
		l.mu.Unlock()
		return
	}
	from := s.writtenBack &^ 4095
	n := s.size - from
	s.writtenBack = s.size
	l.mu.Unlock()
	f, err := s.log.acquire(false)
	if err != nil {
		return // Flush will say so
	}
	defer s.log.release()
	_ = f.StartWriteback(from, n)
}
