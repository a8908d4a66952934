package partition

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/chronik-go/chronik/internal/segment"
	"github.com/chronik-go/chronik/internal/vfs"
	"github.com/chronik-go/chronik/internal/wal"
)

// BenchmarkProduceToApplied sends 64 KB batches of 1 KB records to six partitions of one node, eight in flight each, from Produce
// to done: validation, merging, log with fsync, apply. B/op beside bytes/op says what is allocated for a byte carried; the
// batch itself, which the server would take from a pool, is 1.0 of it.
func BenchmarkProduceToApplied(b *testing.B) {
	for _, disk := range []string{"mem", "os"} {
		b.Run(disk, func(b *testing.B) { benchProduce(b, disk) })
	}
}

func benchProduce(b *testing.B, disk string) {
	const parts, window = 6, 8
	dir := b.TempDir()
	c := &realCluster{t: b, parts: parts, firstG: 10, tune: func(o *wal.Options, l *Limits, cfg *TopicConfig) {
		o.Dir, o.FileBytes = dir+"/wal", 64<<20
		*l = Limits{}
		cfg.Segment = segment.Config{SegmentBytes: 256 << 20, RetentionBytes: -1, RetentionAge: -1}
	}}
	n := &realNode{c: c, fs: vfs.OS{}, dir: dir + "/topics"}
	if disk == "mem" {
		n.fs = vfs.NewMem(1)
	}
	c.nodes = []*realNode{n}
	n.start()
	defer n.stop()
	batch := makeBatch(b, batchSpec{records: 64, value: strings.Repeat("x", 1000)})
	for i := range parts {
		c.leader(i)
	}
	b.SetBytes(int64(len(batch)))
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for i := range parts {
		p := n.part(i)
		count := b.N / parts
		if i < b.N%parts {
			count++
		}
		wg.Go(func() {
			slots := make(chan struct{}, window)
			for range count {
				slots <- struct{}{}
				p.Produce(bytes.Clone(batch), func(r ProduceResult) {
					if r.Err != nil {
						b.Error(fmt.Errorf("produce: %w", r.Err))
					}
					<-slots
				})
			}
			for range window {
				slots <- struct{}{}
			}
		})
	}
	wg.Wait()
}
