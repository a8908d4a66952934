package wal

import (
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/vfs"
)

// TestCarryingIdleGroupsCostsLittle: with files of the default proportions (eight to the bound), a thousand idle groups add
// only a small part to what is written, and each is carried about once for each time the log goes round.
func TestCarryingIdleGroupsCostsLittle(t *testing.T) {
	disk := vfs.NewMem(1)
	o, _ := memOptions(disk)
	o.FileBytes, o.MaxBytes = 8<<20, 64<<20 // an eighth of the defaults, so that the share of carried bytes is eight times theirs
	l := mustOpen(t, o)
	defer l.Close()
	const idle = 1000
	for id := uint64(1); id <= idle; id++ {
		if _, err := l.Create(id, firstState(), nil); err != nil {
			t.Fatal(err)
		}
		l.Append(Write{Group: id, HardState: raftpb.HardState{Term: 5, Vote: 1, Commit: 1}, Entries: entries(2, 3, 5, 100), Sync: true})
	}
	hot, err := l.Create(5000, firstState(), nil)
	if err != nil {
		t.Fatal(err)
	}
	drain(l)
	data := entries(2, 2, 1, 256<<10)[0].Data
	var payload int64
	for next := uint64(2); payload < 256<<20; next++ {
		es := entries(next, next, 1, 0)
		es[0].Data = data
		l.Append(Write{Group: 5000, Entries: es, Sync: true})
		hot.SetApplied(next)
		if next%8 == 0 {
			l.Checkpoint(5000, Checkpoint{Index: next, Term: 1}, nil)
		}
		payload += int64(len(data))
		drain(l)
	}
	s := l.Stats()
	rounds := float64(s.BytesWritten) / float64(o.MaxBytes-2*o.FileBytes)
	t.Logf("%d bytes written for %d of payload, %d of them carried (%.2f %%), %d groups carried in %.1f rounds", s.BytesWritten, payload,
		s.CarriedBytes, 100*float64(s.CarriedBytes)/float64(s.BytesWritten), s.Carried, rounds)
	if s.Carried < idle || float64(s.Carried) > 1.2*idle*(rounds+1) {
		t.Errorf("%d groups carried in %.1f rounds", s.Carried, rounds)
	}
	if s.CarriedBytes == 0 || s.CarriedBytes*40 > s.BytesWritten {
		t.Errorf("%d of %d bytes were carried", s.CarriedBytes, s.BytesWritten)
	}
}

// TestTwoHundredRestartsLeaveABoundedLog: every Open begins a new file, whether the one before ended well or not, and whether
// anything was written or not.
func TestTwoHundredRestartsLeaveABoundedLog(t *testing.T) {
	for _, busy := range []bool{false, true} {
		disk := vfs.NewMem(1)
		o, _ := memOptions(disk)
		const groups = 300
		var files int
		var bytes int64
		for cycle := range uint64(200) {
			o.Clock = clock.NewSim(time.Unix(1e9, 0))
			l := mustOpen(t, o)
			for id := uint64(1); id <= groups; id++ {
				g := l.Group(id)
				if cycle == 0 {
					if _, err := l.Create(id, firstState(), nil); err != nil {
						t.Fatal(err)
					}
				} else if g == nil || g.Damage() != nil || g.Checkpoint().Index != 1 || busy && id == 1 && g.LastIndex() != 1+min(cycle, 50) {
					t.Fatalf("cycle %d: group %d is %+v", cycle, id, g)
				}
			}
			if busy && cycle < 50 {
				l.Append(Write{Group: 1, Entries: entries(2+cycle, 2+cycle, 1, 100), Sync: true})
			} else if busy { // a restart's usual write: a new term
				l.Append(Write{Group: cycle%groups + 1, HardState: raftpb.HardState{Term: cycle, Commit: 1}, Sync: true})
			}
			drain(l)
			s := l.Stats()
			files, bytes = max(files, s.Files), max(bytes, s.Bytes)
			switch {
			case cycle%3 == 0 && (busy || cycle > 0):
				disk.Crash(cycle)
			default:
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
			}
		}
		names, err := disk.List(o.Dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("busy %v: at most %d files, %d bytes; %d names at the end, %d bytes on disk", busy, files, bytes, len(names), disk.Used())
		if bound := int(8 + 2*o.MaxBytes/o.FileBytes + 6); files > bound || len(names) > bound+2 || bytes > 3*o.MaxBytes || disk.Used() > 3*o.MaxBytes {
			t.Errorf("busy %v: %d files, %d names, %d bytes", busy, files, len(names), bytes)
		}
	}
}
