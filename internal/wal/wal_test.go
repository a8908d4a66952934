package wal

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/leaktest"
	"github.com/chronik-go/chronik/internal/vfs"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func testOptions(t testing.TB) Options {
	return Options{FS: vfs.OS{}, Dir: t.TempDir(), FileBytes: 256 << 10, MaxBytes: 1 << 20, CacheBytes: 128 << 10}
}

func mustOpen(t testing.TB, o Options) *Log {
	t.Helper()
	l, err := Open(o)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return l
}

// drain steps until there is nothing to do.
func drain(l *Log) {
	for l.Step() || l.StepBackground() {
	}
}

func entries(from, to, term uint64, size int) []raftpb.Entry {
	var es []raftpb.Entry
	for i := from; i <= to; i++ {
		es = append(es, raftpb.Entry{Index: i, Term: term, Data: payload(i, term, size)})
	}
	return es
}

func payload(index, term uint64, size int) []byte {
	b := bytes.Repeat([]byte{byte(index), byte(term)}, size/2+1)[:size]
	if size >= 16 {
		le.PutUint64(b, index)
		le.PutUint64(b[8:], term)
	}
	return b
}

func firstState() Checkpoint {
	return Checkpoint{Index: 1, Term: 1, ConfState: raftpb.ConfState{Voters: []uint64{1, 2, 3}}, State: []byte("s")}
}

// ok returns a Done that counts, and fails the test on an error.
func ok(t testing.TB, n *int) func(error) {
	return func(err error) {
		if err != nil {
			t.Errorf("done: %v", err)
		}
		*n++
	}
}

func checkEntries(t testing.TB, g *Group, want []raftpb.Entry) {
	t.Helper()
	if len(want) == 0 {
		return
	}
	lo, hi := want[0].Index, want[len(want)-1].Index+1
	for lo < hi {
		got, err := g.Entries(lo, hi, 1<<20)
		if err != nil || len(got) == 0 {
			t.Fatalf("group %d entries [%d,%d): %d, %v", g.id, lo, hi, len(got), err)
		}
		for _, e := range got {
			w := want[e.Index-want[0].Index]
			if e.Index != lo || e.Term != w.Term || e.Type != w.Type || !bytes.Equal(e.Data, w.Data) {
				t.Fatalf("group %d entry %d (asked %d): term %d, %d bytes; want term %d, %d bytes", g.id, e.Index, lo, e.Term, len(e.Data), w.Term, len(w.Data))
			}
			if term, err := g.Term(e.Index); err != nil || term != e.Term {
				t.Fatalf("term of %d: %d, %v", e.Index, term, err)
			}
			lo++
		}
	}
}

func TestReopenGivesBackWhatWasWritten(t *testing.T) {
	o := testOptions(t)
	l := mustOpen(t, o)
	n := 0
	g, err := l.Create(7, firstState(), ok(t, &n))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Create(7, firstState(), nil); !errors.Is(err, ErrGroupExists) {
		t.Fatalf("second create: %v", err)
	}
	es := entries(2, 40, 2, 3000)
	es[3].Type = raftpb.EntryConfChangeV2
	es[4].Data = nil
	l.Append(Write{Group: 7, HardState: raftpb.HardState{Term: 2, Vote: 3, Commit: 1}, Entries: es, Sync: true, Done: ok(t, &n)})
	checkEntries(t, g, es) // readable before it is written
	if n != 0 {
		t.Fatal("done before a step")
	}
	drain(l)
	if n != 2 {
		t.Fatalf("%d dones", n)
	}
	over := entries(30, 33, 3, 10)
	l.Append(Write{Group: 7, Entries: over, HardState: raftpb.HardState{Term: 3, Vote: 1, Commit: 28}, Sync: true, Done: ok(t, &n)})
	l.Checkpoint(7, Checkpoint{Index: 20, Term: 2, ConfState: raftpb.ConfState{Voters: []uint64{1}}, State: []byte("twenty")}, ok(t, &n))
	l.Checkpoint(7, Checkpoint{Index: 10, Term: 2}, ok(t, &n))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if n != 5 {
		t.Fatalf("%d dones after close", n)
	}
	for range 3 {
		l = mustOpen(t, o)
		g = l.Group(7)
		if g == nil || g.Damage() != nil {
			t.Fatalf("group %v", g)
		}
		if hs := g.HardState(); hs != (raftpb.HardState{Term: 3, Vote: 1, Commit: 28}) {
			t.Fatalf("hard state %v", hs)
		}
		if cp := g.Checkpoint(); cp.Index != 20 || string(cp.State) != "twenty" || len(cp.ConfState.Voters) != 1 {
			t.Fatalf("checkpoint %+v", cp)
		}
		if g.FirstIndex() != 2 || g.LastIndex() != 33 {
			t.Fatalf("%d..%d", g.FirstIndex(), g.LastIndex())
		}
		checkEntries(t, g, append(append([]raftpb.Entry(nil), es[:28]...), over...))
		if _, err := g.Term(34); err != raft.ErrUnavailable {
			t.Fatalf("term above: %v", err)
		}
		if _, err := g.Entries(1, 5, 100); err != raft.ErrCompacted {
			t.Fatalf("entries below: %v", err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSecondOpenOfADirectoryIsLocked(t *testing.T) {
	o := testOptions(t)
	l := mustOpen(t, o)
	if _, err := Open(o); !errors.Is(err, ErrLocked) || !errors.Is(err, vfs.ErrLocked) {
		t.Fatalf("second open: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = mustOpen(t, o)
	if err := errors.Join(l.Close(), l.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestStartedLogFinishesEveryWrite(t *testing.T) { // lineage: group-commit deadlock
	o := testOptions(t)
	l := mustOpen(t, o)
	l.Start()
	const groups, writes = 8, 200
	errs := make(chan error, groups*writes)
	var writers sync.WaitGroup // which still ask for a checkpoint when their last write is done
	for id := uint64(1); id <= groups; id++ {
		if _, err := l.Create(id, firstState(), nil); err != nil {
			t.Fatal(err)
		}
		writers.Go(func() {
			for i := uint64(0); i < writes; i++ {
				l.Append(Write{Group: id, Entries: entries(2+i, 2+i, 1, 500), Sync: i%3 != 0, Done: func(err error) { errs <- err }})
				if i%50 == 49 {
					l.Checkpoint(id, Checkpoint{Index: 2 + i, Term: 1}, nil)
				}
			}
		})
	}
	const patience = 100 * time.Second // with the next write: a busy disk's sync may take a second; shorter than what test/mutants gives a test
	for i := range groups * writes {
		select {
		case err := <-errs:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(patience):
			t.Fatalf("only %d writes done; %+v", i, l.Stats())
		}
	}
	// A waiter that waits for a Done before it writes again, with the writer asleep in between.
	for i := uint64(0); i < 50; i++ {
		l.Append(Write{Group: 1, Entries: entries(2+writes+i, 2+writes+i, 1, 10), Sync: true, Done: func(err error) { errs <- err }})
		select {
		case <-errs:
		case <-time.After(patience):
			t.Fatalf("lost wake-up at %d", i)
		}
	}
	writers.Wait()
	if s := l.Stats(); s.Commits >= groups*writes+50 || s.Commits == 0 {
		t.Errorf("no group commit: %+v", s)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = mustOpen(t, o)
	defer l.Close()
	for id := uint64(1); id <= groups; id++ {
		want := uint64(1 + writes)
		if id == 1 {
			want += 50
		}
		if g := l.Group(id); g == nil || g.LastIndex() != want || g.Damage() != nil {
			t.Fatalf("group %d: %+v", id, g)
		}
	}
}

func TestBoundedDiskOneHotAndAThousandIdleGroups(t *testing.T) {
	o := testOptions(t)
	o.FileBytes, o.MaxBytes = 256<<10, 2<<20
	var hints []string
	o.OnPinned = func(g, i uint64) { hints = append(hints, fmt.Sprint(g, ":", i)) }
	l := mustOpen(t, o)
	const idle = 1000
	for id := uint64(1); id <= idle; id++ {
		if _, err := l.Create(id, firstState(), nil); err != nil {
			t.Fatal(err)
		}
		l.Append(Write{Group: id, HardState: raftpb.HardState{Term: 5, Vote: id%3 + 1, Commit: 1}, Entries: entries(2, 4, 5, 100), Sync: true})
	}
	hot, err := l.Create(5000, firstState(), nil)
	if err != nil {
		t.Fatal(err)
	}
	// A group without quorum: its entries cannot be checkpointed.
	if _, err := l.Create(6000, firstState(), nil); err != nil {
		t.Fatal(err)
	}
	stuck := entries(2, 30, 4, 10<<10)
	l.Append(Write{Group: 6000, Entries: stuck, HardState: raftpb.HardState{Term: 4, Vote: 1, Commit: 1}, Sync: true})
	drain(l)
	var peak int64
	next := uint64(2)
	for range 400 { // 400 * 64 KiB = 25 MiB through 2 MiB of files
		l.Append(Write{Group: 5000, Entries: entries(next, next, 1, 64<<10), Sync: true})
		hot.SetApplied(next)
		if next%4 == 0 {
			l.Checkpoint(5000, Checkpoint{Index: next, Term: 1}, nil)
		}
		next++
		drain(l)
		peak = max(peak, l.Stats().Bytes)
	}
	s := l.Stats()
	t.Logf("peak %d bytes, %+v, %d hints", peak, s, len(hints))
	if peak > o.MaxBytes+o.MaxBytes/2+4*o.FileBytes {
		t.Errorf("disk grew to %d", peak)
	}
	if s.Carried < idle || s.Recycled == 0 || len(hints) == 0 {
		t.Errorf("carried %d, recycled %d, hints %v", s.Carried, s.Recycled, hints)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = mustOpen(t, o)
	defer l.Close()
	for id := uint64(1); id <= idle; id++ {
		g := l.Group(id)
		if g == nil || g.Damage() != nil || g.HardState() != (raftpb.HardState{Term: 5, Vote: id%3 + 1, Commit: 1}) || string(g.Checkpoint().State) != "s" {
			t.Fatalf("idle group %d: %v", id, g)
		}
		checkEntries(t, g, entries(2, 4, 5, 100))
	}
	checkEntries(t, l.Group(6000), stuck)
	if g := l.Group(5000); g.LastIndex() != next-1 || g.Damage() != nil {
		t.Fatalf("hot group: %d, %v", g.LastIndex(), g.Damage())
	}
}
