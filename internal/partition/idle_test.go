package partition

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/segment"
	"github.com/chronik-go/chronik/internal/vfs"
	"github.com/chronik-go/chronik/internal/wal"
)

// idleHost is a Host whose replicas never hear of anything.
type idleHost struct{}

func (idleHost) Checkpoint(uint64) (wal.Checkpoint, bool, error) { return wal.Checkpoint{}, false, nil }
func (idleHost) Create(uint64, wal.Checkpoint) error             { return nil }
func (idleHost) Register(Registration) (Replica, error)          { return idleReplica{}, nil }
func (idleHost) Unregister(string, int32, func()) error          { return nil }
func (idleHost) Remove(_ uint64, done func(error))               { done(nil) }

type idleReplica struct{}

func (idleReplica) Enqueue(p multiraft.Proposal)                         { p.Done(multiraft.ErrStopped) }
func (idleReplica) ReadIndex(done func(error))                           { done(multiraft.ErrStopped) }
func (idleReplica) Status() multiraft.Status                             { return multiraft.Status{IsLeader: true, Ready: true} }
func (idleReplica) SetUnfit(bool)                                        {}
func (idleReplica) Peers() []multiraft.Peer                              { return nil }
func (idleReplica) CheckpointSynced(uint64, uint64, []byte, func(error)) {}

// idleManager has n partitions that hold a few records each, lead, and do nothing.
func idleManager(t testing.TB, n int) (*Manager, *clock.Sim, *vfs.Mem) {
	fs, clk := vfs.NewMem(1), clock.NewSim(time.UnixMilli(1_700_000_000_000))
	cfg := DefaultTopicConfig(segment.Config{RetentionBytes: 1 << 30, RetentionAge: 24 * time.Hour})
	m, err := NewManager(ManagerConfig{FS: fs, Dir: "/d", Clock: clk, Host: idleHost{}, Files: segment.NewFiles(fs, 64),
		Configs: func(string) TopicConfig { return cfg }})
	if err != nil {
		t.Fatal(err)
	}
	tp := &metadata.Topic{Name: "t"}
	for i := range n {
		r := metadata.Replica{ID: 1, Dir: uuid.UUID{1}}
		p := &metadata.Partition{Index: int32(i), Group: uint64(i + 1), Replicas: []metadata.Replica{r}}
		if err := m.Open(tp, p, r); err != nil {
			t.Fatal(err)
		}
		q, _ := m.Lookup("t", int32(i))
		q.LeaderReady(2)
		b := makeBatch(t, batchSpec{records: 2, producer: 5, value: fmt.Sprint(i)})
		if err := q.Apply([]raftEntry{{Index: 2, Term: 2, Data: b}}); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		_ = m.Close()
		for _, p := range m.Partitions() {
			_ = p.Close()
		}
	})
	return m, clk, fs
}

// idle lets d pass with a step whenever a timer asks for one, and returns how many steps there were.
func idle(m *Manager, clk *clock.Sim, d time.Duration) (steps int) {
	end := clk.Now().Add(d)
	for m.Step() {
	}
	for {
		at, ok := clk.NextDeadline()
		if !ok || at.After(end) {
			clk.RunUntil(end)
			return steps
		}
		clk.RunUntil(at)
		for more := true; more; steps++ {
			more = m.Step()
		}
	}
}

// Idle partitions cost a step each per maintenance, and no disk.
func TestIdlePartitionsCostNextToNothing(t *testing.T) {
	const n = 300
	m, clk, fs := idleManager(t, n)
	idle(m, clk, 2*time.Minute) // what is left to flush
	before := fs.Stats()
	steps := idle(m, clk, 10*time.Minute)
	after := fs.Stats()
	if steps > 10*(n+3) {
		t.Errorf("%d steps in ten idle minutes of %d partitions", steps, n)
	}
	if before != after {
		t.Errorf("idle partitions used the disk: %+v, then %+v", before, after)
	}
	if clk.Pending() > 1 {
		t.Errorf("%d timers", clk.Pending())
	}
}

// BenchmarkIdleMinute is what a minute of 1,000 idle partitions costs the manager.
func BenchmarkIdleMinute(b *testing.B) {
	m, clk, _ := idleManager(b, 1000)
	idle(m, clk, 2*time.Minute)
	b.ReportAllocs()
	for b.Loop() {
		idle(m, clk, time.Minute)
	}
}
