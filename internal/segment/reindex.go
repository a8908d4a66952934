package segment

import (
	"errors"

	"github.com/chronik-go/chronik/internal/record"
)

// ensureIndex looks at the index files of a sealed segment that was trusted at Open, when they are first needed: their
// sizes, and the largest timestamp. If they are not there they are built.
func (l *Log) ensureIndex(s *segment) error {
	l.mu.RLock()
	loaded, has := s.loaded, s.hasIndex
	l.mu.RUnlock()
	if loaded {
		return nil
	}
	if !has {
		return l.reindex(s, errors.New("index is missing"))
	}
	l.appendMu.Lock()
	err := l.loadSealed(s)
	l.appendMu.Unlock()
	var damaged *DamageError
	if errors.As(err, &damaged) {
		return l.reindex(s, err)
	}
	return err
}

// loadSealed reads what a sealed segment's indexes say about it. The caller holds appendMu.
func (l *Log) loadSealed(s *segment) error {
	if s.loaded {
		return nil
	}
	ilen, err := slotSize(s.index)
	if err != nil {
		return err
	}
	tlen, err := slotSize(s.times)
	if err != nil {
		return err
	}
	if ilen%indexEntrySize != 0 || tlen%timeEntrySize != 0 {
		return &DamageError{File: s.index.path(), Offset: ilen, Reason: "index is not whole entries"}
	}
	x := newIndexer(s.base)
	if tlen > 0 {
		var b [timeEntrySize]byte
		if err := s.times.readAt(b[:], tlen-timeEntrySize); err != nil {
			return shortRead(s.times, tlen-timeEntrySize, err)
		}
		e := decodeTimeEntry(b[:])
		x.maxTs, x.maxOff, x.lastTime = e.ts, s.base+int64(e.rel), e.ts
		if x.maxOff >= s.end || e.ts < 0 {
			return &DamageError{File: s.times.path(), Offset: tlen - timeEntrySize, Reason: "time index points beyond the segment"}
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s.x, s.ilen, s.tlen, s.isync, s.tsync, s.loaded = x, ilen, tlen, ilen, tlen, true
	return nil
}

// reindex builds both indexes of a segment anew from its batches' headers, beside the old ones, and swaps them. Appends wait only while it
// reads the active segment. If the log is damaged itself, nothing changes and the error says where.
func (l *Log) reindex(s *segment, why error) error {
	state := func() (active, gone bool) {
		l.mu.RLock()
		defer l.mu.RUnlock()
		return l.activeLocked() == s, l.closed || s.gone
	}
	missing := &IOError{Op: "index", File: s.log.path(), Err: errNotExist}
	active, gone := state()
	if gone {
		return missing
	}
	l.logger.Warn("building index anew", "file", s.log.path(), "reason", why)
	var x indexer
	var size int64
	var err error
	sealed := !active
	if sealed { // for good
		if x, size, err = l.indexed(s, true); err != nil {
			return err
		}
	}
	l.appendMu.Lock()
	defer l.appendMu.Unlock()
	if active, gone = state(); gone {
		return missing
	}
	if !sealed {
		if x, size, err = l.indexed(s, !active); err != nil {
			return err
		}
	}
	var ib, tb []byte
	for _, e := range x.idx {
		ib = e.append(ib)
	}
	for _, e := range x.tim {
		tb = e.append(tb)
	}
	if err := replaceFile(l.files.fs, s.index.path(), ib); err != nil {
		return err
	}
	if err := replaceFile(l.files.fs, s.times.path(), tb); err != nil {
		return err
	}
	s.index.forget()
	s.times.forget()
	x.idx, x.tim = nil, nil
	l.mu.Lock()
	defer l.mu.Unlock()
	s.freshIndexSlots(l)
	s.x, s.loaded, s.hasIndex = x, true, true
	s.ilen, s.tlen = int64(len(ib)), int64(len(tb))
	s.isync, s.tsync, s.icrc, s.tcrc, s.syncedAt = s.ilen, s.tlen, 0, 0, size
	s.nextICRC, s.nextTCRC = 0, 0
	l.newNames, l.clean = true, false
	return nil
}

// indexed reads the headers of a segment's batches into the entries of its indexes, and returns the bytes they cover.
func (l *Log) indexed(s *segment, sealed bool) (x indexer, size int64, err error) {
	l.mu.RLock()
	size = s.size
	holes, interval := l.cleaned.Holes, l.cfg.IndexIntervalBytes
	l.mu.RUnlock()
	x = newIndexer(s.base)
	err = walk(&s.log, 0, size, s.base, holes, func(h record.Header, pos int64) (bool, error) {
		x.add(h, pos, interval)
		return false, nil
	})
	if err == nil && sealed {
		x.addTime()
	}
	return x, size, err
}
