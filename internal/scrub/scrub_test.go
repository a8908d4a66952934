package scrub

import (
	"log/slog"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/partition"
	"github.com/chronik-go/chronik/internal/vfs"
	"github.com/chronik-go/chronik/internal/wal"
)

// The rate bounds what is read whatever there is to read; 0 pauses; a pass begins no sooner than the interval says; and damage to
// the log is told with its group.
func TestScrubberKeepsToItsRateAndInterval(t *testing.T) {
	fs, clk := vfs.NewMem(1), clock.NewSim(time.UnixMilli(1_700_000_000_000))
	log, err := wal.Open(wal.Options{FS: fs, Dir: "/wal", Clock: clk, FileBytes: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	step := func() {
		for log.Step() {
		}
	}
	if _, err := log.Create(7, wal.Checkpoint{Index: 1, Term: 1, ConfState: raftpb.ConfState{Voters: []uint64{1}}}, nil); err != nil {
		t.Fatal(err)
	}
	for i := uint64(2); i < 14; i++ {
		log.Append(wal.Write{Group: 7, Entries: []raftpb.Entry{{Index: i, Term: 1, Data: make([]byte, 256<<10)}}, Sync: true})
		step()
	}
	rate, busy := int64(0), false
	var hits []wal.Hit
	s := New(Config{Log: log, Clock: clk, Logger: slog.New(slog.DiscardHandler), Partitions: func() []*partition.Partition { return nil },
		Rate: func() int64 { return rate }, Interval: func() time.Duration { return time.Minute }, Busy: func() bool { return busy },
		OnLog: func(h wal.Hit) { hits = append(hits, h) }})
	run := func(d time.Duration) {
		for end := clk.Now().Add(d); clk.Now().Before(end); {
			if wait := s.Step(); wait > 0 {
				clk.Advance(min(wait, end.Sub(clk.Now())))
			}
		}
	}
	run(10 * time.Second)
	if s.Stats().Bytes != 0 {
		t.Fatal("it reads at a rate of 0")
	}
	rate = 100 << 10
	run(10 * time.Second)
	if n := s.Stats().Bytes; n < 900<<10 || n > 10*rate+2*chunk {
		t.Fatalf("%d bytes in 10 s at %d a second", n, rate)
	}
	busy = true
	before := s.Stats().Bytes
	run(10 * time.Second)
	if s.Stats().Bytes != before {
		t.Fatal("it reads while the disk is busy")
	}
	busy, rate = false, 100<<20
	run(30 * time.Second)
	if st := s.Stats(); st.Passes != 1 || st.LastPass == 0 || st.Bytes < 3<<20 {
		t.Fatalf("%+v", st)
	}
	if err := fs.FlipBit("/wal/0000000001.wal", 1<<20, 3); err != nil {
		t.Fatal(err)
	}
	run(time.Minute + time.Second)
	if st := s.Stats(); st.Passes != 2 || st.LogHits != 1 || len(hits) != 1 || hits[0].Group != 7 {
		t.Fatalf("%+v, hits %+v", st, hits)
	}
}
