package transport

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
)

type fakeClock struct {
	clock.System
	now time.Time
}

func (c *fakeClock) Now() time.Time { return c.now }

// boxTest drives an Outbox by hand, as a simulator does.
type boxTest struct {
	*Outbox
	clock  *fakeClock
	frames [][]Envelope
	drops  []drop
	fail   error
}

func newBoxTest(maxBytes int, inFlight bool) *boxTest {
	b := &boxTest{clock: &fakeClock{now: time.Unix(1000, 0)}}
	b.Outbox = NewOutbox(OutboxConfig{MaxBytes: maxBytes, DownBytes: maxBytes, FrameBytes: 1000, FrameCount: 5,
		TrackInFlight: inFlight, Clock: b.clock,
		Dropped: func(group, to uint64, snapshot bool) { b.drops = append(b.drops, drop{0, group, to, snapshot}) }})
	return b
}

func (b *boxTest) sink(envs []Envelope) error {
	if b.fail != nil {
		return b.fail
	}
	b.frames = append(b.frames, append([]Envelope(nil), envs...))
	return nil
}

func (b *boxTest) drain() {
	for b.Step() {
	}
}

func (b *boxTest) takeDrops() []drop {
	b.drain()
	d := b.drops
	b.drops = nil
	return d
}

func wantDrops(t *testing.T, got []drop, want ...drop) {
	t.Helper()
	if len(got) == 0 && len(want) == 0 {
		return
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("reported %v, want %v", got, want)
	}
}

func TestOutboxFillsFramesInOrder(t *testing.T) {
	b := newBoxTest(1<<20, false)
	b.Attach(b.sink)
	for i := range uint64(12) {
		b.Push(appendMsg(1, 2, i))
	}
	b.Push(appendMsg(1, 2, 12, make([]byte, 5000))) // alone in its frame: larger than one
	b.Push(appendMsg(1, 2, 13))
	if !b.Step() {
		t.Fatal("Step says that nothing more is ready")
	}
	b.drain()
	next, sizes := uint64(0), []int(nil)
	for _, f := range b.frames {
		sizes = append(sizes, len(f))
		for _, e := range f {
			if e.Raft.Index != next {
				t.Fatalf("message %d came when %d was next", e.Raft.Index, next)
			}
			next++
		}
	}
	if want := []int{5, 5, 2, 1, 1}; !reflect.DeepEqual(sizes, want) {
		t.Fatalf("frames of %v messages, want %v", sizes, want)
	}
	if b.Step() {
		t.Fatal("an empty outbox has more to do")
	}
}

// RAFT.md 14.
func TestOutboxOverflowReportsOncePerBurst(t *testing.T) {
	b := newBoxTest(3*(envelopeOverhead+entryOverhead+100), false)
	b.Attach(b.sink)
	push := func(group uint64) bool { return b.Push(appendMsg(group, 2, 1, make([]byte, 100))) }
	for i := range 10 {
		if ok := push(1); ok != (i < 3) {
			t.Fatalf("push %d accepted: %v", i, ok)
		}
	}
	push(2)
	push(2)
	if len(b.drops) != 0 {
		t.Fatal("Push itself reported: its caller may hold locks")
	}
	wantDrops(t, b.takeDrops(), drop{0, 1, 2, false}, drop{0, 2, 2, false})

	// Everything went out meanwhile: accepting again ends group 1's burst, and only that.
	if !push(1) {
		t.Fatal("an empty outbox refused a message")
	}
	push(3)
	push(3)
	for range 5 {
		push(1)
		push(2)
	}
	wantDrops(t, b.takeDrops(), drop{0, 1, 2, false})
}

// RAFT.md 13: one lost MsgSnap that nobody reports stalls a follower for ever.
func TestEveryDroppedSnapshotIsReported(t *testing.T) {
	b := newBoxTest(1000, true)
	for range 3 { // not connected: the attempt fails each time
		b.Push(snapMsg(1, 2))
		b.Push(appendMsg(1, 2, 1))
		b.Break()
		b.drain()
	}
	wantDrops(t, b.takeDrops(), drop{0, 1, 2, true}, drop{0, 1, 2, true}, drop{0, 1, 2, true})
	b.Attach(b.sink)
	b.Push(snapMsg(1, 2))
	b.drain()
	b.Break() // sent, but perhaps not delivered
	wantDrops(t, b.takeDrops(), drop{0, 1, 2, true})
	b.Refuse(snapMsg(1, 2))
	wantDrops(t, b.takeDrops(), drop{0, 1, 2, true})
}

func TestBrokenStreamReportsQueuedAndInFlightOnce(t *testing.T) {
	b := newBoxTest(1<<20, true)
	b.Attach(b.sink)
	for g := uint64(5); g > 0; g-- {
		b.Push(appendMsg(g, 2, 1))
		b.Push(appendMsg(g, 2, 2))
	}
	b.drain()
	b.Push(appendMsg(9, 2, 1)) // still queued
	b.Push(appendMsg(3, 2, 3))
	b.Break()
	wantDrops(t, b.takeDrops(), drop{0, 9, 2, false}, drop{0, 3, 2, false}, drop{0, 1, 2, false}, drop{0, 2, 2, false},
		drop{0, 4, 2, false}, drop{0, 5, 2, false})
	b.Push(appendMsg(3, 2, 4))
	b.Break() // and again while it stays down: the same burst
	wantDrops(t, b.takeDrops())
	b.Attach(b.sink)
	b.Break()
	wantDrops(t, b.takeDrops()) // nothing was sent on that stream
}

func TestWhatWasSentLongAgoIsNotInFlight(t *testing.T) {
	b := newBoxTest(1<<20, true)
	b.Attach(b.sink)
	for i, g := range []uint64{1, 2, 3} {
		b.clock.now = b.clock.now.Add(time.Duration(i) * inFlightFor)
		b.Push(appendMsg(g, 2, 1))
		b.drain()
	}
	b.Break()
	wantDrops(t, b.takeDrops(), drop{0, 2, 2, false}, drop{0, 3, 2, false})
}

func TestSinkErrorReportsTheFrameAndTheQueue(t *testing.T) {
	b := newBoxTest(1<<20, false)
	b.Attach(b.sink)
	b.fail = errors.New("broken pipe")
	for g := range uint64(7) {
		b.Push(heartbeat(g+1, 2, 3))
	}
	got := b.takeDrops()
	if len(got) != 7 || b.Stats().QueuedBytes != 0 {
		t.Fatalf("reported %v; %d bytes are still queued", got, b.Stats().QueuedBytes)
	}
	b.fail = nil
	b.Attach(b.sink)
	b.Push(heartbeat(1, 2, 3))
	b.drain()
	if len(b.frames) != 1 || len(b.frames[0]) != 1 {
		t.Fatalf("after the new stream: %v", b.frames)
	}
}

func TestOutboxHoldsMessagesUntilTheFirstStream(t *testing.T) {
	b := newBoxTest(1<<20, false)
	b.Push(heartbeat(1, 2, 3))
	b.drain()
	b.Attach(b.sink)
	b.drain()
	if len(b.frames) != 1 || len(b.drops) != 0 {
		t.Fatalf("sent %v, dropped %v", b.frames, b.drops)
	}
}

func TestClosedOutboxReportsAndEnds(t *testing.T) {
	b := newBoxTest(1<<20, false)
	b.Push(heartbeat(1, 2, 3))
	b.Close()
	if b.Push(heartbeat(2, 2, 3)) {
		t.Fatal("a closed outbox took a message")
	}
	for b.Wait() {
		b.Step()
	}
	wantDrops(t, b.drops, drop{0, 1, 2, false}, drop{0, 2, 2, false})
}

func TestMessagesBetweenNodesAreDroppedSilently(t *testing.T) {
	b := newBoxTest(1<<20, true)
	b.Push(Envelope{Kind: KindLeaders, Body: []byte("x")})
	b.Break()
	wantDrops(t, b.takeDrops())
	if n := b.Stats().Dropped; n != 1 {
		t.Fatalf("counted %d drops", n)
	}
}

func TestRingKeepsOrderAcrossGrowth(t *testing.T) {
	var r ring
	next, want := uint64(0), uint64(0)
	for round := range 200 {
		for range round % 37 {
			r.push(Envelope{Group: next}, 3)
			next++
		}
		for range round % 31 {
			if r.n == 0 {
				break
			}
			if e, size := r.pop(); e.Group != want || size != 3 {
				t.Fatalf("got %d, want %d", e.Group, want)
			}
			want++
		}
	}
	for r.n > 0 {
		if e, _ := r.pop(); e.Group != want {
			t.Fatalf("got %d, want %d", e.Group, want)
		}
		want++
	}
	if want != next || r.bytes != 0 {
		t.Fatalf("%d in, %d out, %d bytes left", next, want, r.bytes)
	}
}
