package wal

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/vfs"
)

var crashSeeds = flag.Int("wal.seeds", 15, "runs of the randomized crash test")

// modelGroup is what a group must look like after any number of its operations: states[k] after the first k.
type modelGroup struct {
	states []groupState
	acked  int // states[acked] and later may be found, nothing earlier
}

type groupState struct {
	exists, removed bool
	hs              raftpb.HardState
	cp              Checkpoint
	entries         []raftpb.Entry // above cp.Index
}

func (s groupState) last() uint64 { return s.cp.Index + uint64(len(s.entries)) }

// model drives a log and a model of it with the same random operations.
type model struct {
	rng    *rand.Rand
	l      *Log
	groups []*modelGroup
	ops    int
}

func (m *model) cur(i int) groupState {
	g := m.groups[i]
	return g.states[len(g.states)-1]
}

// push adds the state after one more operation, and returns a Done that says it is durable.
func (m *model) push(i int, s groupState) func(error) {
	g := m.groups[i]
	g.states = append(g.states, s)
	k := len(g.states) - 1
	return func(err error) {
		if err == nil {
			g.acked = max(g.acked, k)
		}
	}
}

func (m *model) op() {
	m.ops++
	i := m.rng.IntN(len(m.groups))
	id := uint64(i + 1)
	s := m.cur(i)
	if !s.exists {
		cp := Checkpoint{Index: uint64(m.rng.IntN(3)), Term: 1, State: []byte(fmt.Sprint("create", m.ops))}
		n := groupState{exists: true, hs: raftpb.HardState{Term: cp.Term, Commit: cp.Index}, cp: cp}
		if _, err := m.l.Create(id, cp, m.push(i, n)); err != nil {
			panic(err)
		}
		return
	}
	switch p := m.rng.IntN(100); {
	case p < 2:
		m.l.Remove(id, m.push(i, groupState{removed: true}))
	case p < 12 && len(s.entries) > 0:
		k := 1 + m.rng.IntN(len(s.entries))
		s.cp = Checkpoint{Index: s.entries[k-1].Index, Term: s.entries[k-1].Term, State: []byte(fmt.Sprint("cp", m.ops)),
			ConfState: raftpb.ConfState{Voters: []uint64{id, uint64(m.ops)}}}
		s.entries = s.entries[k:]
		m.l.Group(id).SetApplied(s.cp.Index)
		m.l.Checkpoint(id, s.cp, m.push(i, s))
	case p < 15:
		s.hs.Term++
		s.cp = Checkpoint{Index: s.last() + uint64(m.rng.IntN(5)), Term: s.hs.Term, State: []byte(fmt.Sprint("snap", m.ops))}
		s.hs.Commit = s.cp.Index
		s.entries = m.newEntries(s.cp.Index+1, s.hs.Term, m.rng.IntN(3))
		m.l.Append(Write{Group: id, HardState: s.hs, Install: &s.cp, Entries: s.entries, Sync: true, Done: m.push(i, s)})
	case p < 25:
		s.hs.Commit = s.cp.Index + uint64(m.rng.IntN(len(s.entries)+1))
		m.push(i, s) // no Sync: Done proves nothing
		m.l.Append(Write{Group: id, HardState: s.hs})
	default:
		w := Write{Group: id, Sync: m.rng.IntN(4) > 0}
		keep := len(s.entries)
		if keep > 0 && m.rng.IntN(8) == 0 { // a new term cuts off a tail
			keep = m.rng.IntN(keep + 1)
			s.hs.Term++
			s.hs.Vote = uint64(m.rng.IntN(3))
			s.hs.Commit = min(s.hs.Commit, s.cp.Index+uint64(keep))
			w.HardState = s.hs
		}
		w.Entries = m.newEntries(s.cp.Index+uint64(keep)+1, s.hs.Term, 1+m.rng.IntN(4))
		s.entries = append(append([]raftpb.Entry(nil), s.entries[:keep]...), w.Entries...)
		done := m.push(i, s)
		if w.Sync {
			w.Done = done
		}
		m.l.Append(w)
	}
}

func (m *model) newEntries(from, term uint64, n int) []raftpb.Entry {
	var es []raftpb.Entry
	for j := range n {
		size := m.rng.IntN(200)
		if m.rng.IntN(10) == 0 {
			size = m.rng.IntN(20 << 10)
		}
		data := make([]byte, size)
		for k := range data {
			data[k] = byte(m.rng.Uint32())
		}
		if size == 0 {
			data = nil
		}
		es = append(es, raftpb.Entry{Index: from + uint64(j), Term: term, Data: data})
	}
	return es
}

// check compares a reopened log with the model: each group must be in one of the states that began no earlier than the last
// acknowledged one. It returns which, for going on from there.
func (m *model) check(l *Log) ([]int, error) {
	at := make([]int, len(m.groups))
	for i, g := range m.groups {
		var why error
		at[i] = -1
		for k := len(g.states) - 1; k >= g.acked; k-- {
			err := sameState(l, uint64(i+1), g.states[k])
			if err == nil {
				at[i] = k
				break
			}
			why = fmt.Errorf("state %d of %d (acked %d): %w; later: %w", k, len(g.states)-1, g.acked, err, errors.Join(why))
		}
		if at[i] < 0 {
			return nil, fmt.Errorf("group %d: %w", i+1, why)
		}
	}
	return at, nil
}

func sameState(l *Log, id uint64, s groupState) error {
	g := l.Group(id)
	if (g != nil) != s.exists {
		return fmt.Errorf("exists: %v", g != nil)
	}
	if g == nil {
		return nil
	}
	if d := g.Damage(); d != nil {
		return fmt.Errorf("damage %+v", *d)
	}
	hs, cp := g.HardState(), g.Checkpoint()
	want := s.hs
	want.Commit = max(want.Commit, s.cp.Index)
	if hs.Term != want.Term || hs.Vote != want.Vote || hs.Commit != want.Commit {
		return fmt.Errorf("hard state %v, want %v", hs, want)
	}
	if cp.Index != s.cp.Index || cp.Term != s.cp.Term || !bytes.Equal(cp.State, s.cp.State) || len(cp.ConfState.Voters) != len(s.cp.ConfState.Voters) {
		return fmt.Errorf("checkpoint %+v, want %+v", cp, s.cp)
	}
	if g.LastIndex() != s.last() || g.FirstIndex() > cp.Index+1 {
		return fmt.Errorf("%d..%d, want last %d", g.FirstIndex(), g.LastIndex(), s.last())
	}
	for _, e := range s.entries {
		got, err := g.Entries(e.Index, e.Index+1, 1)
		if err != nil || len(got) != 1 || got[0].Term != e.Term || !bytes.Equal(got[0].Data, e.Data) {
			return fmt.Errorf("entry %d: %v %w", e.Index, len(got), err)
		}
	}
	if t, err := g.Term(cp.Index); err != nil || t != cp.Term {
		return fmt.Errorf("term of the checkpoint: %d, %w", t, err)
	}
	return nil
}

func simOptions(fs vfs.FS) Options {
	return Options{FS: fs, Dir: "/data/wal", Clock: clock.NewSim(time.Unix(1e9, 0)), FileBytes: 64 << 10, MaxBytes: 256 << 10, CacheBytes: 16 << 10}
}

// TestAckedWritesSurviveAnyPowerCut runs random operations on a disk that can lose, tear and reorder whatever was not
// synced, and cuts the power at random moments inside the log's own calls: acknowledged writes survive, unacknowledged ones
// may, whole, and nothing else appears. The log then goes on on what is left, so that cuts pile up. -wal.seeds sets the runs.
func TestAckedWritesSurviveAnyPowerCut(t *testing.T) {
	cuts := 0
	for seed := range uint64(*crashSeeds) {
		cuts += crashRun(t, seed)
	}
	t.Logf("%d power cuts", cuts)
	if cuts < 5**crashSeeds {
		t.Errorf("only %d power cuts: nothing was tested", cuts)
	}
}

func crashRun(t *testing.T, seed uint64) (cuts int) {
	rng := rand.New(rand.NewPCG(seed, 1))
	disk := vfs.NewMem(seed)
	m := &model{rng: rng}
	for range 2 + rng.IntN(6) {
		m.groups = append(m.groups, &modelGroup{states: []groupState{{}}})
	}
	for round := range 12 {
		// A clone is taken within a file system call somewhere in the coming run, another check at its end.
		var clone *vfs.Mem
		var past *model // what was true when the clone was taken
		left := rng.IntN(120)
		disk.SetHook(func(op vfs.Op, name string, delay time.Duration) {
			if left--; left == 0 {
				disk.SetHook(nil)
				clone = disk.CrashClone(rng.Uint64())
				past = &model{}
				for _, g := range m.groups {
					past.groups = append(past.groups, &modelGroup{states: append([]groupState(nil), g.states...), acked: g.acked})
				}
			}
		})
		l, err := Open(simOptions(disk))
		if err != nil {
			t.Fatalf("seed %d round %d: open: %v", seed, round, err)
		}
		m.l = l
		at, err := m.check(l)
		if err != nil {
			t.Fatalf("seed %d round %d: %v", seed, round, err)
		}
		for i, g := range m.groups { // what was found is the truth from now on
			g.states = g.states[at[i] : at[i]+1]
			g.acked = 0
		}
		for range rng.IntN(150) {
			m.op()
			for rng.IntN(3) == 0 && l.Step() {
			}
			if rng.IntN(4) == 0 {
				l.StepBackground()
			}
		}
		if clone != nil {
			cuts++
			checkClone(t, past, clone, fmt.Sprintf("seed %d round %d", seed, round))
		}
		disk.SetHook(nil)
		switch rng.IntN(4) {
		case 0:
			if err := l.Close(); err != nil {
				t.Fatalf("seed %d: close: %v", seed, err)
			}
			for _, g := range m.groups {
				if g.acked < len(g.states)-1 { // a clean stop writes everything
					g.acked = len(g.states) - 1
				}
			}
		case 1:
			disk.Kill()
		default:
			disk.Crash(rng.Uint64())
			cuts++
		}
	}
	return cuts
}

func checkClone(t *testing.T, past *model, clone *vfs.Mem, where string) {
	t.Helper()
	l, err := Open(simOptions(clone))
	if err != nil {
		t.Fatalf("%s: open of the clone: %v", where, err)
	}
	defer l.Close()
	if _, err := past.check(l); err != nil {
		t.Fatalf("%s: clone: %v", where, err)
	}
}
