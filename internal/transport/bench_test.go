package transport

import (
	"fmt"
	"io"
	"log/slog"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.etcd.io/raft/v3/raftpb"
)

// benchHandler counts entry bytes; tokens bound what is under way, as raft's inflight window does.
type benchHandler struct {
	recorder
	tokens chan struct{}
	seen   sync.WaitGroup
}

func (h *benchHandler) HandleEnvelopes(_ int32, envs []Envelope) {
	for range envs {
		<-h.tokens
		h.seen.Done()
	}
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkAppendEntries sends MsgApps through real sockets, both ends in this process. cpu-ms/MB counts both.
func BenchmarkAppendEntries(b *testing.B) {
	for _, size := range []int{1 << 10, 64 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			window := max(8, (8<<20)/size)
			h := &benchHandler{tokens: make(chan struct{}, min(window, 4096))}
			cfg := Config{NodeID: 2, Dir: uuid.New(), Listen: "127.0.0.1:0", ClusterID: func() string { return testCluster },
				Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
			srv, err := NewServer(cfg, h)
			if err != nil {
				b.Fatal(err)
			}
			srv.Start()
			defer srv.Close()
			cfg.NodeID = 1
			cl := NewClient(cfg, &recorder{})
			defer cl.Close()
			if err := cl.AddPeer(2, srv.Addr().String()); err != nil {
				b.Fatal(err)
			}
			h.seen.Add(1)
			h.tokens <- struct{}{}
			cl.Send(2, appendMsg(1, 2, 1)) // waits for the stream: until that is up the outbox takes little
			h.seen.Wait()
			data := make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			cpu := cpuTime(b)
			b.ResetTimer()
			h.seen.Add(b.N)
			for i := range b.N {
				h.tokens <- struct{}{}
				cl.Send(2, Envelope{Kind: KindRaft, Group: uint64(i%100 + 1), From: 1, To: 2, Raft: raftpb.Message{
					Type: raftpb.MsgApp, From: 1, To: 2, Term: 3, LogTerm: 3, Index: uint64(i), Commit: uint64(i),
					Entries: []raftpb.Entry{{Term: 3, Index: uint64(i + 1), Data: data}}}})
			}
			h.seen.Wait()
			b.StopTimer()
			b.ReportMetric(float64((cpuTime(b)-cpu).Microseconds())/1000/(float64(b.N)*float64(size)/1e6), "cpu-ms/MB")
		})
	}
}
