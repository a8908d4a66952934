package wal

import (
	"errors"
	"fmt"
	"io"
)

// settleChunk is what settle reads and writes at a time.
const settleChunk = 1 << 20

// settle makes what recovery has read durable, before anyone relies on it: it may be in the page cache only. A sync is not
// enough. Where the process before this one stopped because a sync had failed, the kernel holds the pages it could not write,
// calls them clean, and a later sync of them succeeds without writing anything ("Can applications recover from fsync
// failures?", USENIX ATC 2020). So everything above the largest X stated is written again, to where it is.
func (l *Log) settle(keep []*found, end pos) error {
	if len(keep) == 0 {
		return nil
	}
	var known pos // durable before this Open
	from := len(keep) - 1
	for ; from >= 0; from-- {
		x, err := keep[from].maxDurable(headerSize)
		if err != nil {
			return err
		}
		if known = max(known, x); known.seq() >= keep[from].seq {
			break
		}
	}
	for i := max(from, 0); i < len(keep); i++ {
		f, off, stop := keep[i], int64(0), end.off()
		if known.seq() == f.seq {
			off = known.off()
		}
		if i+1 < len(keep) {
			stop = keep[i+1].prev.off()
		}
		if err := f.rewrite(off, min(stop, f.size)); err != nil {
			return err
		}
		if err := f.f.SyncData(); err != nil {
			return fmt.Errorf("wal: fdatasync %s: %w", f.name, err)
		}
	}
	return nil
}

// rewrite writes the bytes of [off, stop) over themselves.
func (r *reader) rewrite(off, stop int64) error {
	buf := make([]byte, min(max(stop-off, 0), settleChunk))
	for off < stop {
		b := buf[:min(int64(len(buf)), stop-off)]
		n, err := r.f.ReadAt(b, off)
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("wal: read %s at %d: %w", r.name, off, err)
		}
		if n == 0 {
			return nil
		}
		if _, err := r.f.WriteAt(b[:n], off); err != nil {
			return fmt.Errorf("wal: write %s at %d: %w", r.name, off, err)
		}
		off += int64(n)
	}
	return nil
}
