package broker

import (
	"encoding/binary"
	"fmt"
	"io"
	"runtime"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// The whole way through server and broker on a real socket, over partitions that cost nothing. "alloc/B" is what is allocated for
// each byte carried; of a Produce one of them is the frame itself, which the partition keeps.

// pump sends n requests, at most window ahead of their answers, and reads the answers away.
func pump(b *testing.B, c *client, frame []byte, n, window int) {
	slots := make(chan struct{}, window)
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 1<<20)
		var head [4]byte
		for range n {
			if _, err := io.ReadFull(c.nc, head[:]); err != nil {
				b.Error(err)
				return
			}
			for left := int(binary.BigEndian.Uint32(head[:])); left > 0; {
				got, err := c.nc.Read(buf[:min(left, len(buf))])
				if left -= got; err != nil {
					b.Error(err)
					return
				}
			}
			<-slots
		}
	})
	for range n {
		slots <- struct{}{}
		if _, err := c.nc.Write(frame); err != nil {
			b.Fatal(err)
		}
	}
	wg.Wait()
}

func measure(b *testing.B, bytesEach int, run func()) {
	b.SetBytes(int64(bytesEach))
	b.ReportAllocs()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	b.ResetTimer()
	run()
	b.StopTimer()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/float64(b.N)/float64(bytesEach), "alloc/B")
}

func frameOf(version int16, req kmsg.Request) []byte {
	req.SetVersion(version)
	return kmsg.NewRequestFormatter(kmsg.FormatterClientID("bench")).AppendRequest(nil, req, 1)
}

func BenchmarkProduce(b *testing.B) {
	for _, size := range []int{1 << 10, 64 << 10, 1 << 20, 8 << 20} {
		b.Run(fmt.Sprint(size>>10, "KiB"), func(b *testing.B) {
			f := newFleet(b, 1)
			topic := f.topic("t", 1)
			f.part("t", 0).sink = true
			frame := frameOf(10, produceReq(topic, 0, batch(b, string(make([]byte, size)), 1), -1))
			c := f.nodes[1].dial(b)
			measure(b, len(frame), func() { pump(b, c, frame, b.N, 5) })
		})
	}
}

func BenchmarkFetch(b *testing.B) {
	for _, size := range []int{1 << 10, 64 << 10, 1 << 20} {
		for _, parts := range []int{1, 6} {
			b.Run(fmt.Sprint(size>>10, "KiB x ", parts), func(b *testing.B) {
				f := newFleet(b, 1)
				topic := f.topic("t", int32(parts))
				for i := range parts {
					fillPart(b, f, topic, int32(i), 1, size)
				}
				frame := frameOf(12, fetchReq(topic, 0, make([]int64, parts)...))
				c := f.nodes[1].dial(b)
				measure(b, size*parts, func() { pump(b, c, frame, b.N, 1) })
			})
		}
	}
}
