package wal

import (
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/vfs"
)

// BenchmarkGroupCommit writes to many groups at once, each with one write under way, on the operating system's disk. It
// tells how many bytes go to the file per byte of payload, and how many writes share an fdatasync.
func BenchmarkGroupCommit(b *testing.B) {
	for _, c := range []struct{ groups, size int }{{1, 1 << 10}, {64, 1 << 10}, {64, 64 << 10}, {16, 1 << 20}} {
		b.Run(fmt.Sprintf("groups=%d/size=%d", c.groups, c.size), func(b *testing.B) {
			l := mustOpen(b, Options{FS: vfs.OS{}, Dir: b.TempDir()})
			defer l.Close()
			for id := 1; id <= c.groups; id++ {
				if _, err := l.Create(uint64(id), firstState(), nil); err != nil {
					b.Fatal(err)
				}
			}
			l.Start()
			data := entries(2, 2, 1, c.size)[0].Data
			b.SetBytes(int64(c.size))
			b.ReportAllocs()
			before := l.Stats()
			b.ResetTimer()
			var wg sync.WaitGroup
			for id := 1; id <= c.groups; id++ {
				n := b.N / c.groups
				if id <= b.N%c.groups {
					n++
				}
				wg.Add(1)
				go func() {
					defer wg.Done()
					g, done := l.Group(uint64(id)), make(chan error, 1)
					for i := range uint64(n) {
						es := entries(2+i, 2+i, 1, 0)
						es[0].Data = data
						l.Append(Write{Group: uint64(id), Entries: es, Sync: true, Done: func(err error) { done <- err }})
						if err := <-done; err != nil {
							b.Error(err)
							return
						}
						g.SetApplied(2 + i)
						if i%64 == 63 {
							l.Checkpoint(uint64(id), Checkpoint{Index: 2 + i, Term: 1}, nil)
						}
					}
				}()
			}
			wg.Wait()
			b.StopTimer()
			s := l.Stats()
			b.ReportMetric(float64(s.BytesWritten-before.BytesWritten)/float64(b.N)/float64(c.size), "written/byte")
			b.ReportMetric(float64(b.N)/float64(s.Syncs-before.Syncs), "writes/sync")
		})
	}
}

// BenchmarkOpen opens a log of 10,000 groups and 512 MiB, closed or killed.
func BenchmarkOpen(b *testing.B) {
	for _, size := range []int{16 << 10, 512 << 10} {
		for _, closed := range []bool{true, false} {
			b.Run(fmt.Sprintf("entry=%d/closed=%v", size, closed), func(b *testing.B) {
				o := Options{FS: vfs.OS{}, Dir: b.TempDir()}
				fillLog(b, o, 10_000, 500<<20, size, closed)
				b.ResetTimer()
				for b.Loop() {
					begin := time.Now()
					l := mustOpen(b, o)
					b.ReportMetric(float64(time.Since(begin).Milliseconds()), "ms/open")
					b.ReportMetric(float64(l.Stats().Bytes)/(1<<20), "MiB")
					b.StopTimer()
					_ = l.lock.Close() // as a killed process leaves it
					l.files.close()
					_ = l.closeAnchor()
					b.StartTimer()
				}
			})
		}
	}
}

func fillLog(t testing.TB, o Options, groups, bytes, size int, closed bool) {
	l := mustOpen(t, o)
	for id := 1; id <= groups; id++ {
		if _, err := l.Create(uint64(id), firstState(), nil); err != nil {
			t.Fatal(err)
		}
	}
	drain(l)
	data := entries(2, 2, 1, size)[0].Data
	next := make([]uint64, groups+1)
	for n := 0; n < bytes; {
		for range 16 {
			id := uint64(n/size%100 + 1)
			if next[id] == 0 {
				next[id] = 2
			}
			es := entries(next[id], next[id], 1, 0)
			es[0].Data = data
			l.Append(Write{Group: id, Entries: es})
			l.Group(id).SetApplied(next[id])
			if next[id]%16 == 0 {
				l.Checkpoint(id, Checkpoint{Index: next[id], Term: 1}, nil)
			}
			next[id]++
			n += size
		}
		l.Step()
	}
	if closed {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		return
	}
	l.Append(Write{Group: 1, Sync: true})
	for l.Step() {
	}
	_ = l.lock.Close()
	l.files.close()
	_ = l.closeAnchor()
}

// BenchmarkIdleGroup tells how much memory a group takes that does nothing.
func BenchmarkIdleGroup(b *testing.B) {
	l := mustOpen(b, Options{FS: vfs.OS{}, Dir: b.TempDir()})
	defer l.Close()
	var before, after runtime.MemStats
	drain(l)
	runtime.GC()
	runtime.ReadMemStats(&before)
	const n = 10_000
	for id := uint64(1); id <= n; id++ {
		if _, err := l.Create(id, firstState(), nil); err != nil {
			b.Fatal(err)
		}
		l.Append(Write{Group: id, Entries: entries(2, 3, 1, 50), Sync: true})
		l.Group(id).SetApplied(3)
		if id%500 == 0 {
			drain(l)
		}
	}
	l.cache.limit = 0
	l.cache.trim()
	runtime.GC()
	runtime.ReadMemStats(&after)
	for b.Loop() {
	}
	b.ReportMetric((float64(after.HeapAlloc)-float64(before.HeapAlloc))/n, "B/group")
}
